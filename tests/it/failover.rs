use std::collections::{BTreeMap, BTreeSet};

use orbhook_tests::{Cluster, DEADLINE, Database, Receiver, SidecarProcess, generic, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_at_a_standby_waits_says_so_and_goes_on_after_the_promotion() {
    let (primary, database, receiver) = with_receiver(&[]).await;
    let role = database.role("sender").await;
    let standby = Cluster::standby_of(&primary);
    let sidecar = SidecarProcess::start_at(&database, &standby.url(database.name(), &role), &[]);
    sidecar.logged("is a standby").await;
    database.emit("USER_ACTION", json!({"n": 1})).await;
    caught_up(&primary, &standby).await;
    assert_eq!(receiver.count(), 0);
    primary.kill_postmaster().await;
    standby.promote();
    receiver.requests(1).await;
    assert!(
        sidecar.log().matches("is a standby").count() <= 3,
        "said once for each connection, not with every try"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_to_a_standby_that_lagged_no_id_is_used_twice() {
    let (primary, database, receiver) = with_receiver(&[]).await;
    let role = database.role("sender").await;
    let standby = Cluster::standby_of(&primary);
    let ((first, first_port), (second, second_port)) = (primary.socket(), standby.socket());
    let url = format!(
        "host={second},{first} port={second_port},{first_port} user={role} dbname={} target_session_attrs=read-write",
        database.name()
    );
    let _sidecar = SidecarProcess::start_at(&database, &url, &[]);
    for number in 0..20 {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    receiver.requests(20).await;
    caught_up(&primary, &standby).await;

    // From here on it lags. What is emitted now is sent, and lost with the primary.
    standby.reload_with(&[]);
    wait_until("the standby to have let go", DEADLINE, async || {
        let following = "select exists (select from pg_stat_replication)";
        (!database.one::<bool>(following, &[]).await).then_some(())
    })
    .await;
    for number in 20..40 {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    receiver.requests(40).await;
    primary.kill_postmaster().await;
    standby.promote();

    let session = standby.connect(database.name()).await;
    for number in 40..60 {
        let emit = format!("select orbhook_emit('USER_ACTION', '{{\"n\": {number}}}')");
        session.batch_execute(&emit).await.unwrap();
    }
    wait_until("the new primary's events", DEADLINE, async || {
        let arrived: BTreeSet<i64> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
        (arrived == (0..60).collect()).then_some(())
    })
    .await;
    wait_until("no delivery to be pending", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!session.query_one(pending, &[]).await.ok()?.get::<_, bool>(0)).then_some(())
    })
    .await;
    let mut events: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for request in receiver.so_far() {
        let number = request.json()["data"]["n"].as_i64().unwrap();
        events.entry(request.webhook_id().to_owned()).or_default().insert(number);
    }
    assert_eq!(events.len(), 60);
    assert!(events.values().all(|numbers| numbers.len() == 1), "one id, two events: {events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_synchronous_standby_stands_still_nothing_is_sent() {
    let (primary, database, receiver) = with_receiver(&[]).await;
    let standby = Cluster::standby_of(&primary);
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("registered").await;
    let _until_the_end = primary.commits_wait_for("standby");
    wait_until("the standby to be synchronous", DEADLINE, async || {
        let synchronous = "select exists (select from pg_stat_replication where sync_state = 'sync')";
        database.one::<bool>(synchronous, &[]).await.then_some(())
    })
    .await;
    database.emit("USER_ACTION", json!({"n": 1})).await;
    receiver.requests(1).await;

    let frozen = standby.freeze();
    // An application that does not wait for the standby; the claim does.
    let emitter = database.connect().await;
    emitter.execute("set synchronous_commit = local; select orbhook_emit('USER_ACTION', '{\"n\": 2}')").await;
    wait_until("the claim to wait for the standby", DEADLINE, async || {
        let waiting = "select exists (select from pg_stat_activity where query ~ 'orbhook.claim' and wait_event = 'SyncRep')";
        emitter.one::<bool>(waiting, &[]).await.then_some(())
    })
    .await;
    assert_eq!(receiver.count(), 1);
    drop(frozen);
    receiver.requests(2).await;
    assert_eq!(receiver.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backup_sends_what_it_held_again_and_uses_no_id_for_another_event() {
    let (primary, database, receiver) = with_receiver(&[]).await;
    let emit = async |server: &Cluster, numbers: std::ops::Range<i64>| {
        let session = server.connect(database.name()).await;
        for number in numbers {
            let emit = format!("select orbhook_emit('USER_ACTION', '{{\"n\": {number}}}')");
            session.batch_execute(&emit).await.unwrap();
        }
    };
    let numbers_by_id = || {
        let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for request in receiver.so_far() {
            let number = request.json()["data"]["n"].as_i64().unwrap();
            numbers.entry(request.webhook_id().to_owned()).or_default().push(number);
        }
        numbers
    };
    emit(&primary, 0..10).await;
    let backup = Cluster::back_up(&primary);
    let sidecar = SidecarProcess::start(&database, &[]).await;
    emit(&primary, 10..30).await;
    receiver.requests(30).await;
    sidecar.kill().await;
    primary.kill_postmaster().await;

    let restored = backup.restore();
    let of_the_copy = Database::existing(&restored, database.name());
    let _sidecar = SidecarProcess::start(&of_the_copy, &[]).await;
    emit(&restored, 30..50).await;
    receiver.requests(60).await;
    wait_until("no delivery to be pending", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!of_the_copy.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
    let numbers = numbers_by_id();
    assert_eq!(numbers.len(), 50, "an id for each event");
    for sent in numbers.values() {
        let held = sent[0] < 10;
        assert_eq!(sent.len(), if held { 2 } else { 1 }, "event {}", sent[0]);
        assert!(sent.iter().all(|number| *number == sent[0]), "one id, two events: {sent:?}");
    }
}

async fn with_receiver(settings: &[(&str, &str)]) -> (std::sync::Arc<Cluster>, Database, Receiver) {
    let primary = Cluster::start(settings);
    let database = Database::on(&primary).await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    (primary, database, receiver)
}

async fn caught_up(primary: &Cluster, standby: &Cluster) {
    let (primary, standby) = (primary.connect("postgres").await, standby.connect("postgres").await);
    let written: String = primary.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    wait_until("the standby to catch up", DEADLINE, async || {
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        standby.query_one(&replayed, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}
