use orbhook_tests::{Claimer, Database, generic};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn a_delivery_that_waits_for_its_retry_is_sent_at_once_with_a_fresh_budget() {
    let (database, claimer, _) = with(json!({"maxRetries": 1, "retryDelay": 600})).await;
    database.emit("USER_CREATED", json!({})).await;
    let first = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &first, 500, json!({})).await;
    assert!(claimer.claim(&database, 10).await.is_empty(), "due in ten minutes");
    assert!(retry(&database, first.delivery).await);
    let state = "select failures, attempts, due_at <= clock_timestamp() from orbhook.deliveries_open";
    let row = database.rows(state, &[]).await.remove(0);
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1), row.get::<_, bool>(2)), (0, 1, true));

    let again = claimer.claim(&database, 10).await.remove(0);
    assert_eq!((again.delivery, again.attempt), (first.delivery, 2));
    claimer.answer(&database, &again, 500, json!({})).await;
    // Without the fresh budget this second failure would have been the last.
    assert_eq!(status(&database).await, "pending");
    assert!(retry(&database, first.delivery).await);
    let last = claimer.claim(&database, 10).await.remove(0);
    claimer.answer(&database, &last, 200, json!({})).await;
    assert_eq!(status(&database).await, "delivered");
}

#[tokio::test]
async fn a_delivery_meant_for_later_is_sent_at_once_when_it_is_asked_for() {
    let (database, claimer, _) = with(json!({})).await;
    database
        .execute("select orbhook_emit('USER_CREATED', '{}', deliver_at => now() + interval '10 minutes')")
        .await;
    let delivery: Uuid = database.one("select id from orbhook.deliveries_open", &[]).await;
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert!(retry(&database, delivery).await);
    let claimed = claimer.claim(&database, 10).await.remove(0);
    assert_eq!((claimed.delivery, claimed.attempt), (delivery, 1));
}

#[tokio::test]
async fn a_retry_sends_nothing_to_a_webhook_that_is_paused_or_switched_off() {
    let (database, claimer, webhook) = with(json!({"retryDelay": 600})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    for (off, on) in [
        ("select orbhook_pause($1)", "select orbhook_resume($1)"),
        (
            "select orbhook_update_webhook($1, '{\"active\": false}')",
            "select orbhook_update_webhook($1, '{\"active\": true}')",
        ),
    ] {
        database.rows(off, &[&webhook]).await;
        assert!(retry(&database, claimed.delivery).await, "it is recorded all the same");
        assert!(claimer.claim(&database, 10).await.is_empty(), "{off}");
        database.rows(on, &[&webhook]).await;
        let again = claimer.claim(&database, 10).await.remove(0);
        assert_eq!(again.delivery, claimed.delivery);
        claimer.answer(&database, &again, 500, json!({})).await;
    }
}

#[tokio::test]
async fn resuming_a_webhook_ends_the_pause_its_receiver_had_asked_for() {
    for status in [429, 503] {
        let (database, claimer, webhook) = with(json!({})).await;
        database.emit("USER_CREATED", json!({})).await;
        let limited = claimer.claim(&database, 1).await.remove(0);
        database.emit("USER_CREATED", json!({})).await;
        claimer.answer(&database, &limited, status, json!({"retry-after": "600"})).await;
        assert!(claimer.claim(&database, 10).await.is_empty(), "paused for ten minutes");
        let look = "select orbhook.look($1)";
        assert!(database.one::<Option<i32>>(look, &[&claimer.id]).await > Some(590_000));

        database.rows("select orbhook_resume($1)", &[&webhook]).await;
        let state =
            "select paused_until <= clock_timestamp() and pause_reason is null from orbhook.webhook_state";
        assert!(database.one::<bool>(state, &[]).await);
        assert_eq!(
            database.one::<Option<i32>>(look, &[&claimer.id]).await,
            Some(0),
            "and whoever waits is told so"
        );
        let claimed = claimer.claim(&database, 10).await;
        assert!(claimed.iter().any(|claimed| claimed.delivery != limited.delivery), "{status}: {claimed:?}");
    }
}

#[tokio::test]
async fn what_queued_up_during_a_pause_is_sent_after_it() {
    let (database, claimer, webhook) = with(json!({"maxInFlight": 100})).await;
    database.rows("select orbhook_pause($1)", &[&webhook]).await;
    for n in 0..5 {
        database.emit("USER_CREATED", json!({"n": n})).await;
    }
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 5);
    database.rows("select orbhook_resume($1)", &[&webhook]).await;
    assert_eq!(claimer.claim(&database, 10).await.len(), 5);
}

async fn with(changes: Value) -> (Database, Claimer, Uuid) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let webhook = database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    (database, claimer, webhook)
}

async fn retry(database: &Database, delivery: Uuid) -> bool {
    database.one("select orbhook_retry($1)", &[&delivery]).await
}

async fn status(database: &Database) -> String {
    database.one("select status from orbhook.deliveries", &[]).await
}
