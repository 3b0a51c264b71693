use std::time::{Duration, Instant};

use orbhook_tests::{Cluster, DEADLINE, Database, Receiver, Session, Sidecar, generic, wait_until};
use serde_json::json;

const STATEMENTS_PER_SECOND_MAX: f64 = 2.0;
/// Long enough to average over several polls, which come once a second.
const WATCHED: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_idle_sidecar_issues_at_most_two_statements_a_second() {
    is_quiet("select 1").await;
}

#[tokio::test]
async fn an_emitting_transaction_left_open_does_not_keep_it_awake() {
    let emit = "begin; select orbhook_emit('USER_CREATED', '{\"n\": 2}')";
    let Quiet { database, receiver, emitter, .. } = &is_quiet(emit).await;
    // Others pass it by, and it arrives once it commits.
    database.emit("USER_CREATED", json!({"n": 3})).await;
    assert_eq!(receiver.requests(2).await[1].json()["data"]["n"], 3);
    emitter.execute("commit").await;
    assert_eq!(receiver.requests(3).await[2].json()["data"]["n"], 2);
}

/// What goes on after it was found quiet.
struct Quiet {
    database: Database,
    receiver: Receiver,
    emitter: Session,
    _sidecar: Sidecar,
}

/// While a session is where these statements leave it, a sidecar that has nothing to do leaves the database alone.
async fn is_quiet(statements_before: &str) -> Quiet {
    let cluster = Cluster::start(&[("shared_preload_libraries", "pg_stat_statements")]);
    let database = Database::on(&cluster).await;
    database.execute("create extension pg_stat_statements").await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let sidecar = Sidecar::start(&database).await;

    // One delivery, so that it is seen to work; then it has nothing more to do.
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(1).await;
    wait_until("the delivery to be settled", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;

    let emitter = database.connect().await;
    emitter.execute(statements_before).await;
    let role = database.role("sender").await;
    let count = async || {
        let calls = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
                     where userid = $1::text::regrole and toplevel";
        database.one::<i64>(calls, &[&role]).await
    };
    let (before, started) = (count().await, Instant::now());
    wait_until("time to pass", WATCHED * 2, async || (started.elapsed() >= WATCHED).then_some(())).await;
    let statements = count().await - before;

    assert!(statements > 0, "nothing was counted: no poll, or the wrong role");
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let per_second = statements as f64 / started.elapsed().as_secs_f64();
    assert!(per_second <= STATEMENTS_PER_SECOND_MAX, "{per_second} statements a second, doing nothing");
    Quiet { database, receiver, emitter, _sidecar: sidecar }
}
