use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{
    Answer, Cluster, DEADLINE, Database, Gate, Receiver, ShutdownMode, Sidecar, generic, wait_until,
};
use serde_json::json;

/// From the moment the server takes connections again.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_stops_delivery_for_a_moment_only() {
    survives(async |database, cluster| {
        let role = database.role("sender").await;
        let find = "select pid from pg_stat_activity where usename = $1 limit 1";
        let pid = database.one::<i32>(find, &[&role]).await;
        cluster.kill_backend(pid).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_restart_stops_delivery_for_a_moment_only() {
    survives(async |_, cluster| cluster.restart(ShutdownMode::Immediate)).await;
}

/// Crashes the server with requests under way and others queued; everything arrives, and soon.
async fn survives(crash: impl AsyncFnOnce(&Database, &Cluster)) {
    const EVENTS: i64 = 50;
    const IN_FLIGHT: usize = 10;

    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["maxInFlight"] = json!(IN_FLIGHT);
    database.create_webhook(config).await;
    let _sidecar = Sidecar::start(&database).await;

    let gate = Gate::new();
    receiver.answer("/hook", Answer::status(200).held_by(&gate));
    for number in 0..EVENTS {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    // Without a new claim, not one more can come: the next request is a sign of life.
    receiver.requests(IN_FLIGHT).await;
    crash(&database, &cluster).await;
    gate.open();

    database.emit("USER_ACTION", json!({"n": EVENTS})).await;
    wait_until("the sidecar to resume", RESUMED_WITHIN, async || {
        (receiver.count() > IN_FLIGHT).then_some(())
    })
    .await;
    let expected: BTreeSet<_> = (0..=EVENTS).collect();
    wait_until("every event to arrive", DEADLINE, async || {
        let arrived: BTreeSet<_> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
        (arrived == expected).then_some(())
    })
    .await;
}
