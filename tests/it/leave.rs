use orbhook_tests::{DEADLINE, Database, Receiver, SidecarProcess, generic, wait_until};
use serde_json::json;
use tokio_postgres::error::SqlState;

const TABLES: &str = "create schema app;
    create table app.users (id bigint primary key, email text);
    create table app.\"Payments due\" (id bigint primary key, status text);
    select from orbhook_watch('users', 'app.users');
    select from orbhook_watch('payments', 'app.\"Payments due\"')";

#[tokio::test]
async fn drop_extension_refuses_while_tables_are_watched_and_names_them() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let error = database.connect().await.batch_execute("drop extension orbhook").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "2BP01", "{error:?}");
    for table in ["app.users", "app.\"Payments due\""] {
        assert!(error.detail().unwrap_or_default().contains(table), "{table}: {error:?}");
    }
    // Let go of one by one, it goes; the history's partitions go with it.
    database
        .execute("select orbhook_unwatch('app.users'); select orbhook_unwatch('app.\"Payments due\"')")
        .await;
    database.execute("select orbhook.register(gen_random_uuid(), 'one', '0', false)").await;
    database.execute("drop extension orbhook").await;
    let left = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'orbhook'";
    assert_eq!(database.one::<i64>(left, &[]).await, 0);
}

#[tokio::test]
async fn cascade_leaves_working_tables() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let before = database.connect().await;
    before.execute("insert into app.users (id) values (1)").await;
    database.execute("drop extension orbhook cascade").await;
    // A session that has the library loaded and its plans made, and a new one.
    for session in [before, database.connect().await] {
        session
            .execute(
                "insert into app.users (id) values (2); update app.users set email = 'x'; delete from app.users where id = 2;
                 insert into app.\"Payments due\" values (1, 'paid'); delete from app.\"Payments due\"",
            )
            .await;
    }
    let triggers = "select count(*) from pg_trigger where tgrelid in ('app.users'::regclass, 'app.\"Payments due\"'::regclass)";
    assert_eq!(database.one::<i64>(triggers, &[]).await, 0);
    database
        .execute("create table app.more (id int); alter table app.more add x int; drop table app.more")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_sidecar_notices_waits_and_goes_on_when_the_extension_is_back() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    let sender = database.role("sender").await;
    let sidecar = SidecarProcess::start(&database, &["--log-level", "debug"]).await;
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(1).await;
    wait_until("the delivery to be settled", DEADLINE, async || {
        database
            .one::<bool>("select not exists (select from orbhook.deliveries_open)", &[])
            .await
            .then_some(())
    })
    .await;

    // Beside a running sidecar it may meet a deadlock, in which the server chooses one of the two: then once more.
    wait_until("the extension to be gone", DEADLINE, async || {
        match database.connect().await.batch_execute("drop extension orbhook").await {
            Ok(()) => Some(()),
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => None,
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;
    sidecar.logged("is not installed").await;
    wait_until("further tries", DEADLINE, async || {
        (sidecar.log().matches("still not ready").count() >= 3).then_some(())
    })
    .await;
    // It says so a few times, and then waits without a word.
    let warnings = sidecar.log().lines().filter(|line| line.contains("WARN")).count();
    assert!(warnings < 20, "{}", sidecar.log());

    database.execute("create extension orbhook").await;
    database.execute(&format!("select orbhook_grant('{sender}', 'sender')")).await;
    database.create_webhook(generic(&receiver.url("/"))).await;
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(2).await;
    assert_eq!(sidecar.terminate().await.code(), Some(0));
}
