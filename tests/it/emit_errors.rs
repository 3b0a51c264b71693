use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use orbhook_tests::{Cluster, Database, Refusal};
use uuid::Uuid;

#[tokio::test]
async fn an_unknown_event_type_is_refused_with_the_nearest_known_ones() {
    let database = Database::new().await;
    let refusal = refused_unharmed(&database, "select orbhook_emit('USER_CRAETED', '{}')").await;
    assert_eq!(refusal.sqlstate, "22023");
    assert!(refusal.message.contains("USER_CRAETED"), "{refusal:?}");
    assert!(refusal.hint.contains("USER_CREATED"), "{refusal:?}");
    assert!(refusal.hint.contains("orbhook.event_types"), "the hint says how to register one: {refusal:?}");
}

#[tokio::test]
async fn a_type_that_was_registered_is_accepted() {
    let database = Database::new().await;
    database
        .execute("insert into orbhook.event_types (name, category) values ('COFFEE_BREWED', 'kitchen')")
        .await;
    database.one::<Uuid>("select orbhook_emit('COFFEE_BREWED', '{}')", &[]).await;
}

#[tokio::test]
async fn a_payload_that_is_no_object_is_refused() {
    let database = Database::new().await;
    for payload in ["[]", "[{}]", "\"text\"", "1", "true", "null"] {
        let sql = format!("select orbhook_emit('USER_CREATED', '{payload}')");
        let refusal = refused_unharmed(&database, &sql).await;
        assert_eq!(refusal.sqlstate, "22023", "{payload}: {refusal:?}");
        assert!(refusal.message.contains("object"), "{payload}: {refusal:?}");
    }
}

#[tokio::test]
async fn an_event_type_in_the_payload_must_be_the_argument() {
    let database = Database::new().await;
    for given in ["\"USER_DELETED\"", "1", "null"] {
        let sql = format!("select orbhook_emit('USER_CREATED', '{{\"eventType\": {given}}}')");
        let refusal = refused_unharmed(&database, &sql).await;
        assert_eq!(refusal.sqlstate, "22023", "{given}: {refusal:?}");
        assert!(refusal.message.contains("eventType"), "{given}: {refusal:?}");
    }
    let same = "select orbhook_emit('USER_CREATED', '{\"eventType\": \"USER_CREATED\"}')";
    database.one::<Uuid>(same, &[]).await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused() {
    let database = Database::new().await;
    let by_kib = |kib: usize| {
        format!("select orbhook_emit('USER_CREATED', jsonb_build_object('blob', repeat('x', {kib} * 1024)))")
    };
    database.one::<Uuid>(&by_kib(255), &[]).await;
    let refusal = refused_unharmed(&database, &by_kib(257)).await;
    assert_eq!(refusal.sqlstate, "54000", "{refusal:?}");
    assert!(!refusal.message.contains("xxx"), "the payload is not repeated: {refusal:?}");
}

#[tokio::test]
async fn a_small_payload_that_would_print_to_megabytes_is_refused_without_printing_it() {
    let database = Database::new().await;
    let sql = "select orbhook_emit('USER_CREATED', (select jsonb_object_agg(n, 1e131071) from generate_series(1, 1000) n))";
    let started = Instant::now();
    let refusal = refused_unharmed(&database, sql).await;
    assert_eq!(refusal.sqlstate, "54000", "{refusal:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "131 MB were printed, it seems");
}

#[tokio::test]
async fn a_deeply_nested_payload_does_not_harm_the_server() {
    let database = Database::new().await;
    let session = database.connect().await;
    // Depths that PostgreSQL's own parser takes and that JSON parsers refuse.
    let nested = "('{\"a\": ' || repeat('[', 2000) || repeat(']', 2000) || '}')::jsonb";
    let taken = session.batch_execute(&format!("select orbhook_emit('USER_CREATED', {nested})")).await;
    if let Err(error) = taken {
        let sqlstate = error.as_db_error().expect("an answer of the server's").code().code().to_owned();
        assert!(["22023", "54000", "54001"].contains(&sqlstate.as_str()), "{error:?}");
    }
    assert_eq!(session.one::<i32>("select 1", &[]).await, 1);
}

#[tokio::test]
async fn a_read_only_transaction_cannot_emit() {
    let database = Database::new().await;
    let session = database.connect().await;
    session.execute("begin read only").await;
    let refusal = session.refusal("select orbhook_emit('USER_CREATED', '{}')").await;
    assert_eq!(refusal.sqlstate, "25006", "{refusal:?}");
    session.execute("rollback").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_cannot_emit() {
    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    cluster.become_standby();
    let refusal = database.refusal("select orbhook_emit('USER_CREATED', '{}')").await;
    assert_eq!(refusal.sqlstate, "25006", "{refusal:?}");
}

#[tokio::test]
async fn the_extension_refuses_a_database_that_is_not_utf8() {
    let database = Database::new().await;
    let cluster = database.cluster();
    let name = format!("{}_latin1", database.name());
    let create = format!("create database {name} template template0 encoding 'LATIN1' locale 'C'");
    database.execute(&create).await;
    let session = cluster.connect(&name).await;
    let error = session.batch_execute("create extension orbhook").await.unwrap_err();
    let message = error.as_db_error().expect("an answer of the server's").message().to_owned();
    assert!(message.contains("UTF8") && message.contains("LATIN1"), "{message}");
    drop(session);
    database.execute(&format!("drop database {name} with (force)")).await;
}

/// Runs a statement that must fail, in the middle of a transaction with other work, and returns how it failed. The
/// other work must be there afterwards, and the session must have lived through it.
async fn refused_unharmed(database: &Database, sql: &str) -> Refusal {
    let session = database.connect().await;
    session.execute("create table if not exists other_work (n int); truncate other_work").await;
    let events = "select id from orbhook.events";
    let before: BTreeSet<Uuid> = session.rows(events, &[]).await.iter().map(|row| row.get(0)).collect();

    session.execute("begin; insert into other_work values (1); savepoint here").await;
    let refusal = session.refusal(sql).await;
    session.execute("rollback to here; insert into other_work values (2)").await;
    let kept = session.one::<Uuid>("select orbhook_emit('USER_ACTION', '{}')", &[]).await;
    session.execute("commit").await;

    assert_eq!(session.one::<i64>("select count(*) from other_work", &[]).await, 2);
    let after: BTreeSet<Uuid> = session.rows(events, &[]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [&kept]);
    refusal
}
