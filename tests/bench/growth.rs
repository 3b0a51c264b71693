//! What must stay the same while tables, webhooks and old snapshots grow.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orbhook_tests::{Claimer, Cluster, Database, Session};
use serde_json::json;
use uuid::Uuid;

use crate::drain::{Load, Queue, USUAL};
use crate::figures::{Figures, Goal};
use crate::server;

const WEBHOOKS: usize = 10_000;

/// Few enough that a queue of so many counts as short.
const SHORT: usize = 10_000;
const LONG: usize = 1_000_000;
const FINISHED: i64 = 10_000_000;
const UNDER_SNAPSHOT: usize = 300_000;

/// Prints the free disk first: it needs about 5 GB.
pub(crate) async fn long_queue() -> Figures {
    let mut figures = begin();
    let cluster = server::start();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let short = best_of_short(&cluster).await;
        let long = Queue::fill(&cluster, Load { deliveries: LONG, ..USUAL }).await;
        rounds.push((short, long.drain(1).await));
    }
    figures.compare("drain, 1,000,000 queued ÷ 10,000 queued", "per second", &rounds, Goal::AtLeast(0.90));
    figures
}

/// A short drain is over in a second; the median of five is steadier.
async fn best_of_short(cluster: &Arc<Cluster>) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..5 {
        let short = Queue::fill(cluster, Load { deliveries: SHORT, ..USUAL }).await;
        rates.push(short.drain(1).await);
    }
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

pub(crate) async fn many_webhooks() -> Figures {
    let mut figures = begin();
    let cluster = server::start();
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let few = Queue::fill(&cluster, USUAL).await.drain(1).await;
        let many = Queue::fill(&cluster, Load { webhooks: WEBHOOKS, ..USUAL }).await.drain(1).await;
        rounds.push((few, many));
    }
    figures.compare("drain, 10,000 webhooks ÷ 20 webhooks", "per second", &rounds, Goal::AtLeast(0.80));
    figures
}

/// The history is made by copying rows, which is what 10,000,000 deliveries leave behind: about 8 GB.
pub(crate) async fn much_history() -> Figures {
    let mut figures = begin();
    let cluster = server::start();
    let mut rounds = Vec::new();
    let queue = Queue::fill(&cluster, USUAL).await;
    let none = queue.drain(1).await;
    grow_history(&queue.database).await;
    for _ in 0..2 {
        queue.refill(USUAL.deliveries).await;
        rounds.push((none, queue.drain(1).await));
    }
    figures.compare("drain, 10,000,000 finished ÷ none finished", "per second", &rounds, Goal::AtLeast(0.90));
    figures
}

async fn grow_history(database: &Database) {
    const STEP: i64 = 1_000_000;
    let began = Instant::now();
    for _ in 0..FINISHED / STEP {
        database
            .execute(&format!(
                "with model as (select d, t from orbhook.deliveries d join orbhook.attempts t on t.delivery_id = d.id
                                where d.status = 'delivered' limit 1),
                      made as (select orbhook._new_id() as id from generate_series(1, {STEP})),
                      history as (
                          insert into orbhook.deliveries
                          select r.* from model m, made a,
                          jsonb_populate_record(m.d, jsonb_build_object('id', a.id, 'event_id', a.id)) r)
                 insert into orbhook.attempts
                 select r.* from model m, made a,
                 jsonb_populate_record(m.t, jsonb_build_object('delivery_id', a.id)) r"
            ))
            .await;
    }
    database.execute("vacuum analyze orbhook.deliveries; vacuum analyze orbhook.attempts; checkpoint").await;
    println!("{FINISHED} finished deliveries made in {:.0} s", began.elapsed().as_secs_f64());
}

pub(crate) async fn old_snapshot() -> Figures {
    let mut figures = begin();
    under_snapshot(&mut figures, None).await;
    // High enough that it does not decide how fast the queue is drained.
    under_snapshot(&mut figures, Some(10_000)).await;
    figures
}

async fn under_snapshot(figures: &mut Figures, rate_limit: Option<u32>) {
    let cluster = server::start();
    let load = Load { rate_limit, ..USUAL };
    let mut rounds = Vec::new();
    let without = Queue::fill(&cluster, load).await.drain(1).await;
    for _ in 0..2 {
        let queue = Queue::empty(&cluster, load).await;
        let old: Session = queue.database.connect().await;
        old.execute("begin isolation level repeatable read; select count(*) from orbhook.webhooks").await;
        queue.refill(UNDER_SNAPSHOT).await;
        queue.drain(1).await;
        queue.refill(load.deliveries).await;
        rounds.push((without, queue.drain(1).await));
        old.execute("commit").await;
    }
    let pacing = if rate_limit.is_some() { "on" } else { "off" };
    figures.compare(
        format!("drain, old snapshot and 300,000 deliveries since ÷ without, pacing {pacing}"),
        "per second",
        &rounds,
        Goal::AtLeast(0.80),
    );
}

/// A claim that has one thing to find and a look that has none, among webhooks that all have something pending.
pub(crate) async fn one_due() -> Figures {
    let mut figures = begin();
    const TRIES: usize = 100;
    let cluster = server::start();
    for kind in ["later", "paused", "paced"] {
        let rate_limit = (kind == "paced").then_some(10);
        let load = Load { webhooks: WEBHOOKS, deliveries: WEBHOOKS, rate_limit, ..USUAL };
        let queue = Queue::empty(&cluster, load).await;
        let database = &queue.database;
        let target: Uuid = database
            .one(
                "select orbhook_create_webhook($1)",
                &[&{
                    let mut config = orbhook_tests::generic(&queue.sink.url("/due"));
                    config["subscribedEvents"] = json!(["USER_CREATED"]);
                    config
                }],
            )
            .await;
        queue.refill(WEBHOOKS).await;
        let others = "webhook_id <> $1";
        let hold = match kind {
            "later" => format!(
                "update orbhook.deliveries_open set due_at = now() + interval '1 hour' where {others} returning 1"
            ),
            "paused" => format!("update orbhook.webhooks set paused = true where {} returning 1", "id <> $1"),
            _ => format!(
                "update orbhook.webhook_state set next_send_at = now() + interval '1 hour' where {others} returning 1"
            ),
        };
        database.rows(&hold, &[&target]).await;
        database.execute("vacuum analyze").await;
        let claimer = Claimer::register(database).await;
        let looker = database.connect().await;
        // What a new session has to find out first is not what a running one pays.
        for _ in 0..20 {
            claimer.claim(database, 200).await;
            looker.one::<Option<i32>>("select orbhook.look($1)", &[&claimer.id]).await;
        }
        let (mut claims, mut looks) = (Vec::new(), Vec::new());
        for _ in 0..TRIES {
            let began = Instant::now();
            let wait = looker.one::<Option<i32>>("select orbhook.look($1)", &[&claimer.id]).await;
            looks.push(began.elapsed());
            assert_ne!(wait, Some(0), "nothing is due");
            database.execute("select orbhook_emit('USER_CREATED', '{}')").await;
            let began = Instant::now();
            let claimed = claimer.claim(database, 200).await;
            claims.push(began.elapsed());
            assert_eq!(claimed.len(), 1, "one is due");
            claimer.answer(database, &claimed[0], 200, json!({})).await;
        }
        for (what, times) in [("claim of one due", claims), ("idle look", looks)] {
            let name = format!("{what}, beside 10,000 webhooks whose work is {kind}");
            figures.measure(name, "ms", median_ms(times), Goal::AtMost(2.0));
        }
    }
    figures
}

fn begin() -> Figures {
    println!("{}", free_disk());
    Figures::new()
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn free_disk() -> String {
    let output =
        Command::new("df").args(["-h", "--output=avail,target", "/var/tmp"]).output().expect("df runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().last().unwrap_or_default().trim().to_owned();
    format!("free disk: {line}")
}
