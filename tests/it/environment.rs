use std::time::Duration;

use orbhook_tests::{
    Claimer, Cluster, DEADLINE, Database, Receiver, ShutdownMode, Sidecar, SidecarProcess, generic,
    orbhook_command, wait_until,
};
use serde_json::json;

/// Exit code of `orbhook check` for a database that sends nothing.
const SILENCED: i32 = 15;

/// Looks of a sidecar that must have been refused; one is a second at most.
const REFUSALS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_database_sends_nothing_until_somebody_takes_it_over() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    Claimer::register(&database).await;
    let session = database.connect().await;
    session.execute("begin").await;
    session
        .execute(
            "select orbhook_emit('USER_CREATED', jsonb_build_object('n', n)) from generate_series(1, 3) n",
        )
        .await;
    session.execute("commit").await;
    drop(session);

    let clone = clone(&database).await;
    let sidecar = refused(&clone, &[]).await;
    assert_eq!(receiver.count(), 0);
    let checked = check(&clone, &[]).await;
    assert_eq!(checked.0, Some(SILENCED), "{}", checked.1);
    for word in ["copy", "orbhook_takeover", database.name()] {
        assert!(checked.1.contains(word), "{word}: {}", checked.1);
    }

    let decided: i64 = clone.one("select orbhook_takeover('default', 'send')", &[]).await;
    assert_eq!(decided, 3);
    receiver.requests(3).await;
    assert_eq!(check(&clone, &[]).await.0, Some(0));
    drop(sidecar);

    // The original is still itself.
    let _original = Sidecar::start(&database).await;
    receiver.requests(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_started_under_another_name_sends_nothing_and_neither_does_a_registration_it_brought_along()
 {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    let production = SidecarProcess::start(&database, &["--environment", "production"]).await;
    production.logged("registered").await;
    production.kill().await;
    database.emit("USER_CREATED", json!({})).await;

    let staging = refused(&database, &["--environment", "staging"]).await;
    let checked = check(&database, &["--environment", "staging"]).await;
    assert_eq!(checked.0, Some(SILENCED), "{}", checked.1);
    assert!(checked.1.contains("production") && checked.1.contains("staging"), "{}", checked.1);
    let unnamed = check(&database, &[]).await;
    assert_eq!(unnamed.0, Some(SILENCED), "{}", unnamed.1);
    assert_eq!(receiver.count(), 0);

    database.one::<i64>("select orbhook_takeover('staging', 'send')", &[]).await;
    receiver.requests(1).await;
    drop(staging);
    refused(&database, &["--environment", "production"]).await;
}

#[tokio::test]
async fn claim_itself_gives_nothing_to_whoever_registered_for_another_place_or_name() {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    let claimer = Claimer::register(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    for (change, back) in
        [("place = '1/1'", "place = orbhook._place()"), ("name = 'other'", "name = 'default'")]
    {
        database.execute(&format!("update orbhook.environment set {change}")).await;
        assert!(claimer.claim(&database, 10).await.is_empty(), "{change}");
        let look = database.refusal(&format!("select orbhook.look('{}')", claimer.id)).await;
        assert_eq!(look.sqlstate, "55000", "{change}: {look:?}");
        let register =
            database.refusal("select orbhook.register(gen_random_uuid(), 'by hand', '0', false)").await;
        assert_eq!(register.sqlstate, "55000", "{change}: {register:?}");
        database.execute(&format!("update orbhook.environment set {back}")).await;
    }
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_sidecar_stops_sending_when_another_environment_takes_over() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    let sidecar = SidecarProcess::start(&database, &[]).await;
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(1).await;
    database.one::<i64>("select orbhook_takeover('blue', 'keep')", &[]).await;
    database.emit("USER_CREATED", json!({})).await;
    sidecar.logged("belongs to environment blue").await;
    assert_eq!(receiver.count(), 1);
    let _blue = SidecarProcess::start(&database, &["--environment", "blue"]).await;
    receiver.requests(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pending_is_cancelled_or_kept_as_the_operator_says() {
    let original = Database::new().await;
    let receiver = Receiver::start().await;
    original.create_webhook(generic(&receiver.url("/"))).await;
    Claimer::register(&original).await;
    for n in 0..3 {
        original.emit("USER_CREATED", json!({"n": n})).await;
    }

    let cancelled = clone(&original).await;
    assert_eq!(cancelled.one::<i64>("select orbhook_takeover('staging', 'cancel')", &[]).await, 3);
    let ended = "select count(*) from orbhook.deliveries where status = 'cancelled' and last_error like '%orbhook_takeover%'";
    assert_eq!(cancelled.one::<i64>(ended, &[]).await, 3);

    let kept = clone(&original).await;
    assert_eq!(kept.one::<i64>("select orbhook_takeover('staging', 'keep')", &[]).await, 3);
    let _sidecar = SidecarProcess::start(&kept, &["--environment", "staging"]).await;
    kept.emit("USER_LOGIN", json!({"n": "new"})).await;
    assert_eq!(receiver.requests(1).await[0].json()["type"], "USER_LOGIN", "only what is new is sent");
    let says: String = kept
        .one("select distinct next_try from orbhook.delivery_log where event_type = 'USER_CREATED'", &[])
        .await;
    assert!(says.contains("orbhook_retry"), "{says}");
    let pick = "select orbhook_retry((select id from orbhook.deliveries where status = 'pending' order by id limit 1))";
    assert!(kept.one::<bool>(pick, &[]).await);
    receiver.requests(2).await;
    assert_eq!(
        kept.one::<i64>("select orbhook_takeover('staging', 'send')", &[]).await,
        2,
        "all that was kept"
    );
    receiver.requests(4).await;
    let mut bodies: Vec<String> =
        receiver.so_far().iter().map(|request| request.json()["data"]["n"].to_string()).collect();
    bodies.sort();
    assert_eq!(bodies, ["\"new\"", "0", "1", "2"]);
}

#[tokio::test]
async fn a_takeover_typed_where_sending_goes_on_anyway_touches_nothing_that_is_pending() {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    let claimer = Claimer::register(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    for pending in ["cancel", "keep", "send"] {
        let decided: i64 = database.one("select orbhook_takeover('default', $1)", &[&pending]).await;
        assert_eq!(decided, 0, "{pending}");
    }
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
    for wrong in ["null, 'send'", "'', 'send'", "'-x', 'send'", "'a b', 'send'", "'a', 'drop'", "'a', null"] {
        let refused = database.refusal(&format!("select orbhook_takeover({wrong})")).await;
        assert_eq!(refused.sqlstate, "22023", "{wrong}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_a_rename_and_a_failover_of_the_same_system_go_on_by_themselves() {
    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    {
        let _sidecar = Sidecar::start(&database).await;
        database.emit("USER_CREATED", json!({})).await;
        receiver.requests(1).await;
    }
    cluster.stop(ShutdownMode::Immediate);
    cluster.resume();
    // A standby has its primary's identifier: promoting it is what a failover does.
    cluster.become_standby();
    let promoted = cluster
        .run("psql", &["--no-psqlrc", "--dbname", "postgres", "--command", "select pg_promote(true, 60)"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stdout));
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests_within(2, Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logical_subscriber_sends_nothing() {
    let cluster = Cluster::start(&[("wal_level", "logical")]);
    let publisher = Database::on(&cluster).await;
    let receiver = Receiver::start().await;
    publisher.create_webhook(generic(&receiver.url("/"))).await;
    Claimer::register(&publisher).await;
    publisher.emit("USER_CREATED", json!({})).await;
    for (name, tables) in [
        ("every_table", "for all tables with (publish_via_partition_root = true)".to_owned()),
        (
            "some_tables",
            "for table orbhook.webhooks, orbhook.webhook_secrets, orbhook.events, orbhook.deliveries
             with (publish_via_partition_root = true)"
                .to_owned(),
        ),
    ] {
        publisher.execute(&format!("create publication {name} {tables}")).await;
        // Within one server the slot has to be made by itself.
        publisher.execute(&format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
        let subscriber = Database::on(&cluster).await;
        subscriber.execute("truncate orbhook.event_types, orbhook.periods").await;
        let connection = publisher.url("postgres");
        subscriber
            .execute(&format!(
                "create subscription {name}_{0} connection '{connection}' publication {name}
                 with (create_slot = false, slot_name = '{name}')",
                subscriber.name()
            ))
            .await;
        wait_until("the subscriber to have the delivery", DEADLINE, async || {
            let both = "select exists (select from orbhook.deliveries_open) and exists (select from orbhook.webhook_secrets)";
            subscriber.one::<bool>(both, &[]).await.then_some(())
        })
        .await;
        refused(&subscriber, &[]).await;
        let checked = check(&subscriber, &[]).await;
        assert_eq!(checked.0, Some(SILENCED), "{name}: {}", checked.1);
        assert_eq!(receiver.count(), 0, "{name}");
        subscriber.execute(&format!("alter subscription {name}_{0} disable", subscriber.name())).await;
        subscriber
            .execute(&format!("alter subscription {name}_{0} set (slot_name = none)", subscriber.name()))
            .await;
        subscriber.execute(&format!("drop subscription {name}_{0}", subscriber.name())).await;
        let drop_slot = format!("select pg_drop_replication_slot('{name}')");
        wait_until("the slot to be free", DEADLINE, async || {
            publisher.connect().await.batch_execute(&drop_slot).await.ok()
        })
        .await;
    }
}

#[tokio::test]
async fn the_template_is_armed_by_nobody_and_the_first_sidecar_arms_once() {
    let database = Database::new().await;
    let armed = "select count(*) from orbhook.environment";
    assert_eq!(database.one::<i64>(armed, &[]).await, 0, "the install script writes no row");
    let checked = check(&database, &["--environment", "production"]).await;
    assert_eq!(checked.0, Some(0), "{}", checked.1);
    assert_eq!(database.one::<i64>(armed, &[]).await, 0, "looking arms nothing");
    let sessions = [database.connect().await, database.connect().await, database.connect().await];
    let register = "select orbhook.register(gen_random_uuid(), 'one', '0', false, $1, '{}')";
    let (first, second, third) = tokio::join!(
        sessions[0].query(register, &[&"a"]),
        sessions[1].query(register, &[&"b"]),
        sessions[2].query(register, &[&"c"]),
    );
    let registered = [first.is_ok(), second.is_ok(), third.is_ok()].iter().filter(|ok| **ok).count();
    assert_eq!(registered, 1, "whoever comes first decides");
}

/// CREATE DATABASE … TEMPLATE, with everything in it.
async fn clone(database: &Database) -> Database {
    let name = format!("{}_clone_{:08x}", database.name(), rand::random::<u32>());
    Database::copy(database, &name).await
}

/// A sidecar that was refused a few times.
async fn refused(database: &Database, arguments: &[&str]) -> SidecarProcess {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--log-level", "orbhook_sidecar=debug"]);
    let sidecar = SidecarProcess::start(database, &arguments).await;
    sidecar.logged("nothing is sent from here").await;
    wait_until("further refusals", DEADLINE, async || {
        (sidecar.log().matches("still not ready").count() >= REFUSALS).then_some(())
    })
    .await;
    sidecar
}

async fn check(database: &Database, arguments: &[&str]) -> (Option<i32>, String) {
    let url = database.url(&database.role("sender").await);
    let output = orbhook_command(&url).arg("check").args(arguments).output().await.unwrap();
    let says =
        [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    (output.status.code(), says)
}
