use std::collections::BTreeSet;

use orbhook_tests::{Claimer, DEADLINE, Database, Session, generic, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

const EMIT: &str = "select orbhook_emit('USER_CREATED', $2, $1)";

#[tokio::test]
async fn the_same_key_again_returns_the_first_id_and_queues_nothing_new() {
    let database = with_webhook().await;
    let first: Uuid = database.one(EMIT, &[&"order-7", &json!({"n": 1})]).await;
    let again: Uuid = database.one(EMIT, &[&"order-7", &json!({"n": 2})]).await;
    let other_type: Uuid = database
        .one("select orbhook_emit('USER_DELETED', '{}', 'order-7', now() + interval '1 day')", &[])
        .await;
    assert_eq!((again, other_type), (first, first));
    assert_eq!(recorded(&database).await, (1, 1));
    let payload: Value = database.one("select payload from orbhook.events", &[]).await;
    assert_eq!((&payload["n"], &payload["eventType"]), (&json!(1), &json!("USER_CREATED")));

    let other: Uuid = database.one(EMIT, &[&"order-8", &json!({})]).await;
    assert_ne!(other, first);
    let (one, two) =
        (database.emit("USER_CREATED", json!({})).await, database.emit("USER_CREATED", json!({})).await);
    assert_ne!(one, two, "without a key every emit is an event");
    assert_eq!(recorded(&database).await, (4, 4));
}

#[tokio::test]
async fn a_key_stays_taken_after_its_delivery_has_ended() {
    let database = with_webhook().await;
    let claimer = Claimer::register(&database).await;
    let first: Uuid = database.one(EMIT, &[&"order-7", &json!({})]).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 200, json!({})).await;
    assert_eq!(database.one::<Uuid>(EMIT, &[&"order-7", &json!({})]).await, first);
    assert!(claimer.claim(&database, 10).await.is_empty());
}

#[tokio::test]
async fn a_key_used_twice_in_one_transaction_is_one_event_and_a_rollback_frees_it() {
    let database = with_webhook().await;
    let session = database.connect().await;
    session.execute("begin").await;
    let first = emit(&session, "order-7").await;
    assert_eq!(emit(&session, "order-7").await, first);
    session.execute("savepoint here").await;
    let undone = emit(&session, "order-8").await;
    session.execute("rollback to here").await;
    let done = emit(&session, "order-8").await;
    assert_ne!(done, undone, "what was rolled back never was");
    session.execute("commit").await;
    assert_eq!(recorded(&database).await, (2, 2));

    session.execute("begin").await;
    let undone = emit(&session, "order-9").await;
    session.execute("rollback").await;
    assert_ne!(emit(&session, "order-9").await, undone);
    assert_eq!(recorded(&database).await, (3, 3));
}

#[tokio::test]
async fn the_second_of_two_sessions_with_one_key_waits_and_gets_the_id_of_the_first() {
    let database = with_webhook().await;
    let (first, second) = (database.connect().await, database.connect().await);
    first.execute("begin").await;
    let id = emit(&first, "order-7").await;
    let waiting = emit_when_free(&database, second).await;
    first.execute("commit").await;
    assert_eq!(waiting.await.unwrap(), id);
    assert_eq!(recorded(&database).await, (1, 1));
}

#[tokio::test]
async fn the_second_of_two_sessions_with_one_key_makes_the_event_if_the_first_rolls_back() {
    let database = with_webhook().await;
    let (first, second) = (database.connect().await, database.connect().await);
    first.execute("begin").await;
    let undone = emit(&first, "order-7").await;
    let waiting = emit_when_free(&database, second).await;
    first.execute("rollback").await;
    let id = waiting.await.unwrap();
    assert_ne!(id, undone);
    assert_eq!(database.one::<Uuid>("select id from orbhook.events", &[]).await, id);
    assert_eq!(recorded(&database).await, (1, 1));
}

#[tokio::test]
async fn a_repeatable_read_transaction_that_cannot_see_the_keys_event_is_told_to_try_again() {
    for isolation in ["repeatable read", "serializable"] {
        let database = with_webhook().await;
        let session = database.connect().await;
        session.execute(&format!("begin isolation level {isolation}")).await;
        session.one::<i64>("select count(*) from orbhook.events", &[]).await;
        let id: Uuid = database.one(EMIT, &[&"order-7", &json!({})]).await;
        let refusal = session.refusal("select orbhook_emit('USER_CREATED', '{}', 'order-7')").await;
        assert_eq!(refusal.sqlstate, "40001", "{isolation}: {refusal:?}");
        session.execute("rollback").await;

        session.execute(&format!("begin isolation level {isolation}")).await;
        assert_eq!(emit(&session, "order-7").await, id, "{isolation}: the second try sees it");
        session.execute("commit").await;
        assert_eq!(recorded(&database).await, (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sessions_with_the_same_keys_make_one_event_of_each_key() {
    const SESSIONS: usize = 10;
    const KEYS: usize = 30;

    let database = with_webhook().await;
    let mut emitting = tokio::task::JoinSet::new();
    for _ in 0..SESSIONS {
        let session = database.connect().await;
        emitting.spawn(async move {
            let mut ids = Vec::new();
            for key in 0..KEYS {
                ids.push(emit(&session, &format!("order-{key}")).await);
            }
            ids
        });
    }
    let ids: BTreeSet<Vec<Uuid>> = emitting.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1, "every session got the same ids");
    let keys = i64::try_from(KEYS).unwrap();
    assert_eq!(recorded(&database).await, (keys, keys));
}

#[tokio::test]
async fn a_key_has_1_to_255_bytes() {
    let database = with_webhook().await;
    for (key, is_taken) in [
        (String::new(), false),
        ("k".to_owned(), true),
        ("k".repeat(255), true),
        ("k".repeat(256), false),
        // Bytes are what counts: two each.
        (format!("k{}", "é".repeat(127)), true),
        ("é".repeat(128), false),
    ] {
        let call = format!("select orbhook_emit('USER_CREATED', '{{}}', '{key}')");
        if is_taken {
            let id: Uuid = database.one(&call, &[]).await;
            assert_eq!(database.one::<Uuid>(&call, &[]).await, id, "{} bytes", key.len());
        } else {
            let refusal = database.refusal(&call).await;
            assert_eq!(refusal.sqlstate, "22023", "{} bytes: {refusal:?}", key.len());
            assert!(refusal.message.contains("idempotency_key"), "{refusal:?}");
        }
    }
    assert_eq!(recorded(&database).await, (3, 3));
}

#[tokio::test]
async fn a_deliver_at_in_the_past_means_now() {
    let database = with_webhook().await;
    let claimer = Claimer::register(&database).await;
    for past in ["now() - interval '1 day'", "now() - interval '1 microsecond'", "'4713-01-01 BC'"] {
        database.execute(&format!("select orbhook_emit('USER_CREATED', '{{}}', deliver_at => {past})")).await;
        let due = "select due_at between created_at and clock_timestamp() from orbhook.deliveries_open where lease_until is null";
        assert!(database.one::<bool>(due, &[]).await, "{past}");
        assert_eq!(claimer.claim(&database, 10).await.len(), 1, "{past}");
    }
}

#[tokio::test]
async fn a_deliver_at_in_the_future_is_kept_to_the_microsecond_and_nothing_is_claimed_before() {
    let database = with_webhook().await;
    let claimer = Claimer::register(&database).await;
    for future in ["'2099-12-31 23:59:59.999999+00'", "'294276-12-31 23:59:59.999999+00'"] {
        database
            .execute(&format!("select orbhook_emit('USER_CREATED', '{{}}', deliver_at => {future})"))
            .await;
        let kept = format!("select exists (select from orbhook.deliveries_open where due_at = {future})");
        assert!(database.one::<bool>(&kept, &[]).await, "{future}");
    }
    assert!(claimer.claim(&database, 10).await.is_empty());
    // And whoever waits for them can count that far.
    assert!(database.one::<i32>("select orbhook.look($1)", &[&claimer.id]).await > 0);
}

#[tokio::test]
async fn a_deliver_at_without_an_end_is_refused() {
    let database = with_webhook().await;
    for endless in ["'infinity'", "'-infinity'"] {
        let refusal =
            database.refusal(&format!("select orbhook_emit('USER_CREATED', '{{}}', 'k', {endless})")).await;
        assert_eq!(refusal.sqlstate, "22023", "{endless}: {refusal:?}");
        assert!(refusal.message.contains("deliver_at"), "{refusal:?}");
    }
    assert_eq!(recorded(&database).await, (0, 0));
    assert_eq!(database.one::<i64>("select count(*) from orbhook.event_keys", &[]).await, 0);
}

async fn with_webhook() -> Database {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
    database
}

async fn emit(session: &Session, key: &str) -> Uuid {
    session.one(EMIT, &[&key, &json!({})]).await
}

/// Emits order-7 in the background; returns when that waits for another transaction.
async fn emit_when_free(database: &Database, session: Session) -> tokio::task::JoinHandle<Uuid> {
    let pid: i32 = session.one("select pg_backend_pid()", &[]).await;
    let waiting = tokio::spawn(async move { emit(&session, "order-7").await });
    wait_until("the second session to wait", DEADLINE, async || {
        let waits = "select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = $1";
        database.one::<bool>(waits, &[&pid]).await.then_some(())
    })
    .await;
    waiting
}

/// How many events and deliveries there are.
async fn recorded(database: &Database) -> (i64, i64) {
    let count = "select (select count(*) from orbhook.events), (select count(*) from orbhook.deliveries)";
    let row = database.rows(count, &[]).await.remove(0);
    (row.get(0), row.get(1))
}
