use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{Answer, DEADLINE, Database, Gate, Receiver, SidecarProcess, generic, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

/// Timeout and 10 s, the shortest lease there is, with time for a busy machine.
const LEASE_DEADLINE: Duration = Duration::from_secs(40);

/// Well under a lease, so that what is shown is not its end.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_sidecar_had_in_flight_another_sends_before_its_lease_ends() {
    const HELD: usize = 5;
    let (database, receiver) = with(json!({"timeoutSeconds": 30})).await;
    let gate = Gate::new();
    receiver.answer("/hook", Answer::status(200).held_by(&gate));
    let dying = SidecarProcess::start(&database, &[]).await;
    emit(&database, HELD).await;
    receiver.requests(HELD).await;
    let survivor = SidecarProcess::start(&database, &[]).await;
    survivor.logged("registered").await;
    receiver.answer("/hook", Answer::status(200));
    dying.kill().await;
    receiver.requests_within(2 * HELD, TAKEN_OVER_WITHIN).await;
    gate.open();
    settled(&database, DEADLINE).await;
    let requests = receiver.so_far();
    let ids: BTreeSet<_> = requests.iter().map(|request| request.webhook_id().to_owned()).collect();
    assert_eq!((requests.len(), ids.len()), (2 * HELD, HELD), "each once more, under the id it had");
    assert_eq!(attempts(&database).await, [[("unknown", None), ("ok", Some(200))]; HELD].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_the_answer_and_its_settling_it_costs_one_repeat() {
    let (database, receiver) = with(json!({})).await;
    let sidecar = SidecarProcess::start(&database, &[]).await;
    let gate = Gate::new();
    receiver.answer_next("/hook", [Answer::status(200).held_by(&gate)]);
    emit(&database, 1).await;
    receiver.requests(1).await;
    let holder = database.connect().await;
    holder.execute("begin; select from orbhook.deliveries_open for update").await;
    gate.open();
    wait_until("settle to wait for the row", DEADLINE, async || {
        let waiting = "select exists (select from pg_stat_activity where query ~ 'orbhook.settle' and wait_event_type = 'Lock'
                                      and datname = current_database())";
        database.one::<bool>(waiting, &[]).await.then_some(())
    })
    .await;
    sidecar.kill().await;
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where query ~ 'orbhook.settle' and wait_event_type = 'Lock' and datname = current_database()";
    assert!(holder.one::<i64>(end, &[]).await >= 1, "a settle that went on would be no kill before it");
    holder.execute("commit").await;
    let _survivor = SidecarProcess::start(&database, &[]).await;
    receiver.requests(2).await;
    settled(&database, DEADLINE).await;
    let requests = receiver.so_far();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].webhook_id(), requests[1].webhook_id());
    assert_eq!(attempts(&database).await, [("unknown", None), ("ok", Some(200))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_stopped_past_its_lease_wakes_late_and_changes_nothing_but_the_log() {
    let (database, receiver) = with(json!({"timeoutSeconds": 1, "retryDelay": 3600})).await;
    let gate = Gate::new();
    receiver.answer_next("/hook", [Answer::status(200).held_by(&gate), Answer::status(500)]);
    let stopped = SidecarProcess::start(&database, &[]).await;
    emit(&database, 1).await;
    receiver.requests(1).await;
    stopped.freeze();
    let other = SidecarProcess::start(&database, &[]).await;
    receiver.requests_within(2, LEASE_DEADLINE).await;
    other.logged("attempt failed; will be tried again").await;
    let state = "select jsonb_build_array(status, attempts, failures, due_at, lease_until, claimed_by, last_status_code)
                 from orbhook.deliveries";
    let before: Value = database.one(state, &[]).await;
    gate.open();
    stopped.thaw();
    stopped.logged("late result").await;
    assert_eq!(database.one::<Value>(state, &[]).await, before);
    assert_eq!(receiver.count(), 2);
    let late = "select number, late from orbhook.attempts order by number";
    let late: Vec<(i32, bool)> =
        database.rows(late, &[]).await.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(late, [(1, true), (2, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_in_a_stopped_sidecar_is_not_sent_after_its_lease_has_run_down() {
    // Five a second: the second delivery is claimed together with the first and waits for its moment. The timeout leaves a
    // busy machine time to answer.
    let (database, receiver) = with(json!({"timeoutSeconds": 5, "rateLimit": 5})).await;
    let stopped = SidecarProcess::start(&database, &[]).await;
    stopped.logged("registered").await;
    let mut before = 0;
    let (second, _other): (Uuid, SidecarProcess) = loop {
        emit(&database, 2).await;
        receiver.requests(before + 1).await;
        stopped.freeze();
        let first: Uuid = receiver.so_far()[before].webhook_id().parse().unwrap();
        let waiting = "select id from orbhook.deliveries_open where attempts = 1 and lease_until is not null and id <> $1
                       and not exists (select from orbhook.attempts a where a.delivery_id = id)";
        let waiting = database.rows(waiting, &[&first]).await;
        // What was on its way when the process was stopped has arrived by the time another one has started.
        let other = SidecarProcess::start(&database, &[]).await;
        other.logged("registered").await;
        if let (true, [second]) = (receiver.count() == before + 1, waiting.as_slice()) {
            break (second.get(0), other);
        }
        assert!(other.terminate().await.success());
        // Not stopped in time, or claimed one by one; a busy machine.
        stopped.thaw();
        settled(&database, DEADLINE).await;
        before = receiver.count();
    };
    let sent = async || {
        let requests = receiver.so_far();
        requests.iter().filter(|request| request.webhook_id() == second.to_string()).count()
    };
    wait_until("the other sidecar to send it", LEASE_DEADLINE, async || (sent().await == 1).then_some(()))
        .await;
    settled(&database, DEADLINE).await;
    stopped.thaw();
    emit(&database, 1).await;
    assert!(stopped.terminate().await.success(), "it lives, and has given back what it had");
    settled(&database, DEADLINE).await;
    assert_eq!(sent().await, 1);
    let numbers: Vec<i32> = database
        .rows(
            "select number from orbhook.attempts where delivery_id = $1 and not late order by number",
            &[&second],
        )
        .await
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(numbers.last(), Some(&2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_told_to_stop_under_load_loses_nothing_and_repeats_nothing() {
    const STOPS: usize = 8;
    const EVENTS: usize = 6_000;
    let (database, receiver) = with(json!({"maxInFlight": 100})).await;
    receiver.answer("/hook", Answer::status(200).after(Duration::from_millis(50)));
    emit(&database, EVENTS).await;
    for stop in 1..=STOPS {
        let sidecar = SidecarProcess::start(&database, &[]).await;
        receiver.requests_within(receiver.count() + 50, LEASE_DEADLINE).await;
        assert!(sidecar.terminate().await.success());
        assert!(receiver.count() < EVENTS, "at stop {stop} everything was sent: the test is too small");
    }
    let two = [SidecarProcess::start(&database, &[]).await, SidecarProcess::start(&database, &[]).await];
    settled(&database, LEASE_DEADLINE).await;
    assert_eq!(receiver.count(), EVENTS);
    let unknown = "select count(*) from orbhook.attempts where error_class is not null";
    assert_eq!(database.one::<i64>(unknown, &[]).await, 0);
    drop(two);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    const SECOND_SIGNAL: i32 = 130;
    let (database, receiver) = with(json!({"timeoutSeconds": 30})).await;
    receiver.answer("/hook", Answer::hang());
    let mut sidecar = SidecarProcess::start(&database, &["--shutdown-grace-seconds", "600"]).await;
    emit(&database, 1).await;
    receiver.requests(1).await;
    sidecar.send_signal("TERM");
    sidecar.logged("stopping").await;
    sidecar.send_signal("TERM");
    assert_eq!(sidecar.ended().await.code(), Some(SECOND_SIGNAL));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sidecars_share_the_work_and_send_nothing_twice() {
    const EVENTS: usize = 6_000;
    let (database, receiver) = with(json!({"maxInFlight": 200})).await;
    let sidecars = [
        SidecarProcess::start(&database, &["--concurrency", "50"]).await,
        SidecarProcess::start(&database, &["--concurrency", "50"]).await,
        SidecarProcess::start(&database, &["--concurrency", "50"]).await,
    ];
    emit(&database, EVENTS).await;
    settled(&database, LEASE_DEADLINE).await;
    assert_eq!(receiver.count(), EVENTS);
    let shared = "select count(distinct sidecar) from orbhook.attempts";
    assert_eq!(database.one::<i64>(shared, &[]).await, 3);
    for sidecar in sidecars {
        assert!(sidecar.terminate().await.success());
    }
}

async fn with(changes: Value) -> (Database, Receiver) {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    database.create_webhook(config).await;
    (database, receiver)
}

async fn emit(database: &Database, count: usize) {
    database
        .execute(&format!("select orbhook_emit('USER_ACTION', '{{}}') from generate_series(1, {count})"))
        .await;
}

/// Of all deliveries in turn: what became of each attempt.
async fn attempts(database: &Database) -> Vec<(&'static str, Option<i32>)> {
    let select = "select error_class, status_code from orbhook.attempts order by delivery_id, number";
    let class = |class: Option<&str>| match class {
        None => "ok",
        Some("unknown") => "unknown",
        Some(_) => "failed",
    };
    database.rows(select, &[]).await.iter().map(|row| (class(row.get(0)), row.get(1))).collect()
}

async fn settled(database: &Database, deadline: Duration) {
    wait_until("no delivery to be pending", deadline, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}
