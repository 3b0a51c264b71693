use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{
    Cluster, DEADLINE, Database, Pooler, Receiver, ShutdownMode, Sidecar, SidecarProcess, Tunnel, generic,
    wait_until,
};
use serde_json::json;
use tokio_postgres::{AsyncMessage, NoTls};

/// A connection that is dead without a word is noticed within this.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn with_notify_off_the_poll_finds_everything() {
    let (database, receiver) = with_receiver(Database::new().await).await;
    let mut bells = Bells::of(&database).await;
    let _sidecar = Sidecar::start(&database).await;
    let emitter = database.connect().await;
    emitter.execute("set orbhook.notify = off").await;
    for number in 1..=3 {
        asleep(&database).await;
        emitter.execute(&format!("select orbhook_emit('USER_ACTION', '{{\"n\": {number}}}')")).await;
        receiver.requests(number).await;
    }
    assert_eq!(bells.rung(), 0);
    emitter.execute("reset orbhook.notify").await;
    rings(&database, &emitter, &mut bells).await;
}

#[tokio::test]
async fn a_notification_queue_that_fills_is_not_filled_further() {
    let cluster = Cluster::start(&[]);
    let (database, receiver) = with_receiver(Database::on(&cluster).await).await;
    let mut bells = Bells::of(&database).await;
    let _sidecar = Sidecar::start(&database).await;
    // A session that listens and does not come out of its transaction holds the queue where it is.
    let holder = database.connect().await;
    holder.execute("listen elsewhere").await;
    holder.execute("begin").await;
    database
        .execute("select pg_notify('elsewhere', repeat('x', 7900) || n) from generate_series(1, 100) n")
        .await;
    let emitter = database.connect().await;
    // Half of eight gigabytes would take a minute to fill; the guard is the same at a hundred pages.
    emitter.execute("set orbhook.notify_queue_usage_max = 0.00001").await;
    asleep(&database).await;
    emitter.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    receiver.requests(1).await;
    assert_eq!(bells.rung(), 0);
    holder.execute("rollback").await;
    holder.execute("unlisten *").await;
    rings(&database, &emitter, &mut bells).await;
}

#[tokio::test]
async fn a_listen_that_the_server_refuses_leaves_the_poll() {
    let (database, receiver) = with_receiver(Database::new().await).await;
    let tunnel = Tunnel::start(database.cluster().address()).await;
    // What servers before 15.15 could answer ("could not access status of transaction") is any error to the sidecar.
    tunnel.replace("LISTEN orbhook", "LISTEN 0rbhook");
    let url = database.tcp_url(&database.role("sender").await, tunnel.address()).await;
    let sidecar = SidecarProcess::start_at(&database, &url, &[]);
    sidecar.logged("LISTEN failed").await;
    sidecar.logged("listens=false").await;
    for number in 1..=3 {
        database.emit("USER_ACTION", json!({"n": number})).await;
        receiver.requests(number).await;
    }
    settled(&database).await;
    assert_eq!(receiver.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listen_connection_that_is_dead_without_a_word_is_noticed_and_meanwhile_costs_a_poll() {
    let (database, receiver) = with_receiver(Database::new().await).await;
    let tunnel = Tunnel::start(database.cluster().address()).await;
    let url = database.tcp_url(&database.role("sender").await, tunnel.address()).await;
    let sidecar = SidecarProcess::start_at(&database, &url, &[]);
    sidecar.logged("listens=true").await;
    asleep(&database).await;

    assert_eq!(tunnel.cut_where("LISTEN orbhook"), 1);
    database.emit("USER_ACTION", json!({"n": 1})).await;
    receiver.requests(1).await;
    wait_until("a new registration", NOTICED_WITHIN, async || {
        (sidecar.log().matches("registered").count() == 2).then_some(())
    })
    .await;
    // The server has yet to notice: the old session still holds the doorbell, and rings are heard all the same.
    for number in 2..=4 {
        database.emit("USER_ACTION", json!({"n": number})).await;
        receiver.requests(number).await;
    }
    settled(&database).await;
    assert_eq!(receiver.count(), 4, "nothing was in flight, so nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_connection_is_dead_without_a_word_others_are_made() {
    let (database, receiver) = with_receiver(Database::new().await).await;
    let tunnel = Tunnel::start(database.cluster().address()).await;
    let url = database.tcp_url(&database.role("sender").await, tunnel.address()).await;
    let sidecar = SidecarProcess::start_at(&database, &url, &[]);
    database.emit("USER_ACTION", json!({"n": 0})).await;
    receiver.requests(1).await;
    settled(&database).await;
    asleep(&database).await;
    assert!(tunnel.cut_where("SELECT") >= 3, "wake, claim and settle have one each");
    for number in 1..=20 {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    arrive(&receiver, 0..=20, NOTICED_WITHIN * 3).await;
    drop(sidecar);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_it_warns_once_polls_and_sends_nothing_twice() {
    const EVENTS: i64 = 300;
    let (database, receiver) = with_receiver(Database::new().await).await;
    let role = database.role("sender").await;
    let pooler = Pooler::start(database.cluster(), &[&role]).await;
    let url = format!("postgresql://{role}@{}/{}", pooler.address(), database.name());
    let sidecars = [(); 2].map(|()| SidecarProcess::start_at(&database, &url, &[]));
    for sidecar in &sidecars {
        sidecar.logged("listens=false").await;
    }
    for number in 1..=EVENTS {
        database.emit("USER_ACTION", json!({"n": number})).await;
    }
    arrive(&receiver, 1..=EVENTS, DEADLINE).await;
    settled(&database).await;
    assert_eq!(receiver.count(), usize::try_from(EVENTS).unwrap());
    let locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
                 where l.locktype = 'advisory' and d.datname = current_database()";
    assert_eq!(database.one::<i64>(locks, &[]).await, 0, "a pooled session would keep them");
    for sidecar in sidecars {
        let log = sidecar.log();
        assert!(sidecar.terminate().await.success());
        assert_eq!(log.matches("a transaction pooler?").count(), 1, "{log}");
        assert_eq!(log.matches("trouble with the database").count(), 0, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_before_a_crash_is_sent_after_its_commit_and_a_forgotten_one_disturbs_nobody() {
    let cluster = Cluster::start(&[]);
    let (database, receiver) = with_receiver(Database::on(&cluster).await).await;
    let _sidecar = Sidecar::start(&database).await;
    for name in ["kept", "forgotten"] {
        let emit = format!("select orbhook_emit('USER_ACTION', '{{\"name\": \"{name}\"}}')");
        database.execute(&format!("begin; {emit}; prepare transaction '{name}'")).await;
    }
    cluster.kill_postmaster().await;
    cluster.resume();
    database.emit("USER_ACTION", json!({"name": "after"})).await;
    receiver.requests(1).await;
    database.execute("commit prepared 'kept'").await;
    let requests = receiver.requests(2).await;
    let names: BTreeSet<_> =
        requests.iter().map(|request| request.json()["data"]["name"].to_string()).collect();
    assert_eq!(names, BTreeSet::from(["\"after\"".to_owned(), "\"kept\"".to_owned()]));
    asleep(&database).await;
    database.execute("rollback prepared 'forgotten'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_connection_may_be_ended_at_any_time() {
    const ROUNDS: i64 = 12;
    let (database, receiver) = with_receiver(Database::new().await).await;
    let sidecar = SidecarProcess::start(&database, &[]).await;
    let role = database.role("sender").await;
    sidecar.logged("registered").await;
    for round in 0..ROUNDS {
        // Each time another of them, sometimes all, and an event right behind.
        let end = "select count(pg_terminate_backend(pid)) from (
                       select pid, row_number() over (order by pid) as place, count(*) over () as among
                       from pg_stat_activity where usename = $1 and datname = current_database()) s
                   where $2::bigint % 4 = 3 or place = 1 + $2::bigint % among";
        database.one::<i64>(end, &[&role, &round]).await;
        database.emit("USER_ACTION", json!({"n": round})).await;
        arrive(&receiver, 0..=round, DEADLINE).await;
    }
    settled(&database).await;
    let connections = "select count(*) from pg_stat_activity where usename = $1";
    wait_until("no connection too many", DEADLINE, async || {
        (database.one::<i64>(connections, &[&role]).await <= 4).then_some(())
    })
    .await;
    assert!(sidecar.terminate().await.success());
}

#[tokio::test]
async fn what_a_role_is_set_to_does_not_disturb_the_sidecar() {
    let (database, receiver) = with_receiver(Database::new().await).await;
    let role = database.role("sender").await;
    for setting in [
        "statement_timeout = '1s'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "idle_session_timeout = '1s'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "search_path = nowhere",
        "synchronous_commit = off",
        "client_min_messages = debug1",
        "standard_conforming_strings = off",
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Kathmandu'",
        "enable_indexscan = off",
    ] {
        database.execute(&format!("alter role {role} set {setting}")).await;
    }
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("registered").await;
    for round in 1..=3 {
        asleep(&database).await;
        // A settle that waits for a lock takes longer than all those timeouts.
        let holder = database.connect().await;
        let gate = orbhook_tests::Gate::new();
        receiver.answer("/hook", orbhook_tests::Answer::status(200).held_by(&gate));
        database.emit("USER_ACTION", json!({"n": round})).await;
        receiver.requests(round).await;
        holder.execute("begin; select from orbhook.deliveries_open for update").await;
        gate.open();
        wait_until("settle to have waited for long", DEADLINE, async || {
            let waiting =
                "select exists (select from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'
                                          and clock_timestamp() - query_start > interval '1300 ms')";
            database.one::<bool>(waiting, &[&role]).await.then_some(())
        })
        .await;
        holder.execute("commit").await;
        settled(&database).await;
    }
    assert_eq!(receiver.count(), 3);
    let log = sidecar.log();
    assert!(!log.contains("trouble") && !log.contains("not ready"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_connections_is_waited_out() {
    let cluster = Cluster::start(&[("max_connections", "12"), ("max_wal_senders", "0")]);
    let (database, receiver) = with_receiver(Database::on(&cluster).await).await;
    let role = database.role("sender").await;
    database.emit("USER_ACTION", json!({"n": 1})).await;
    let mut guests = Vec::new();
    while let Ok(guest) = cluster.connect_as(database.name(), &role).await {
        guests.push(guest);
    }
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("trying again").await;
    assert_eq!(receiver.count(), 0);
    drop(guests);
    receiver.requests(1).await;
    database.cluster().restart(ShutdownMode::Fast);
    database.emit("USER_ACTION", json!({"n": 2})).await;
    receiver.requests(2).await;
}

/// Rings of the doorbell, heard by one who listens beside the sidecar.
struct Bells {
    rung: tokio::sync::mpsc::UnboundedReceiver<()>,
    so_far: usize,
    _client: tokio_postgres::Client,
}

impl Bells {
    async fn of(database: &Database) -> Bells {
        let (client, mut connection) =
            tokio_postgres::connect(&database.url("postgres"), NoTls).await.expect("a session");
        let (sender, rung) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) =
                std::future::poll_fn(|context| connection.poll_message(context)).await
            {
                // A payload is a sidecar's self-check.
                if let AsyncMessage::Notification(notification) = message
                    && notification.payload().is_empty()
                {
                    let _ = sender.send(());
                }
            }
        });
        client.batch_execute("listen orbhook").await.expect("it listens");
        Bells { rung, so_far: 0, _client: client }
    }

    fn rung(&mut self) -> usize {
        while self.rung.try_recv().is_ok() {
            self.so_far += 1;
        }
        self.so_far
    }
}

/// An ordinary commit while the sidecar sleeps is heard: otherwise silence would prove nothing.
async fn rings(database: &Database, emitter: &orbhook_tests::Session, bells: &mut Bells) {
    let before = bells.rung();
    asleep(database).await;
    emitter.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    wait_until("the doorbell", DEADLINE, async || (bells.rung() > before).then_some(())).await;
}

async fn with_receiver(database: Database) -> (Database, Receiver) {
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    (database, receiver)
}

/// Waits until a sidecar holds the doorbell lock.
async fn asleep(database: &Database) {
    wait_until("a sidecar to sleep", DEADLINE, async || {
        let held = "select exists (select from pg_locks l join pg_database d on d.oid = l.database
                    where d.datname = current_database() and l.locktype = 'advisory' and l.classid = 1869767272
                      and l.mode = 'ExclusiveLock' and l.granted)";
        database.one::<bool>(held, &[]).await.then_some(())
    })
    .await;
}

async fn settled(database: &Database) {
    wait_until("no delivery to be pending", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}

async fn arrive(receiver: &Receiver, numbers: std::ops::RangeInclusive<i64>, deadline: Duration) {
    let expected: BTreeSet<i64> = numbers.collect();
    wait_until("every event to arrive", deadline, async || {
        let arrived: BTreeSet<i64> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
        (arrived == expected).then_some(())
    })
    .await;
}
