//! What an update of the extension costs those who emit meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orbhook_tests::{Database, generic};
use tokio::task::JoinSet;

use crate::figures::{Figures, Goal, note};
use crate::server;

const FROM: &str = "0.1.0";

const PENDING: i64 = 100_000;

/// Every other one gives idempotency keys.
const EMITTERS: usize = 4;

const BEFORE_AND_AFTER: Duration = Duration::from_secs(2);

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let database = Arc::new(Database::on(&cluster).await);
    database.execute(&format!("drop extension orbhook; create extension orbhook version '{FROM}'")).await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    database
        .execute(&format!(
            "select orbhook_emit('USER_ACTION', '{{}}', 'before ' || n) from generate_series(1, {PENDING}) n"
        ))
        .await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut emitters = JoinSet::new();
    for number in 0..EMITTERS {
        emitters.spawn(longest_emit(Arc::clone(&database), number, Arc::clone(&stop)));
    }
    let none = std::future::pending::<()>;
    let _ = tokio::time::timeout(BEFORE_AND_AFTER, none()).await;
    let session = database.connect().await;
    let began = Instant::now();
    session.execute("alter extension orbhook update").await;
    let updated = began.elapsed();
    let _ = tokio::time::timeout(BEFORE_AND_AFTER, none()).await;
    stop.store(true, Ordering::Relaxed);
    let mut longest = [Duration::ZERO; 2];
    while let Some(emitter) = emitters.join_next().await {
        let (with_key, took) = emitter.expect("the emitter ends");
        let slot = &mut longest[usize::from(with_key)];
        *slot = took.max(*slot);
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    figures.measure("the update, from beginning to commit", "ms", ms(updated), Goal::AtMost(1_000.0));
    figures.measure("longest emit beside it, without a key", "ms", ms(longest[0]), None);
    figures.measure("longest emit beside it, with a key", "ms", ms(longest[1]), None);
    note(&mut figures, "pending deliveries and idempotency keys", PENDING.to_string());
    figures
}

async fn longest_emit(database: Arc<Database>, number: usize, stop: Arc<AtomicBool>) -> (bool, Duration) {
    let session = database.connect().await;
    let with_key = number % 2 == 1;
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let key = if with_key { format!("'{number} {count}'") } else { "null".to_owned() };
        let began = Instant::now();
        session.execute(&format!("select orbhook_emit('USER_ACTION', '{{}}', {key})")).await;
        longest = longest.max(began.elapsed());
    }
    (with_key, longest)
}
