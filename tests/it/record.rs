use std::time::Duration;

use orbhook_tests::{Answer, Claimer, DEADLINE, Database, Receiver, Sidecar, answered, generic, wait_until};
use serde_json::json;
use uuid::Uuid;

#[tokio::test]
async fn an_attempt_began_as_long_ago_as_the_sidecar_says() {
    for (says, seconds) in [
        (json!(5_000), 5.0),
        (json!(1), 0.001),
        (json!(0), 0.0),
        (json!(null), 0.0),
        // No attempt begins in the future, and none lasts longer than a day.
        (json!(-5_000), 0.0),
        (json!(i64::MAX), 86_400.0),
    ] {
        let (database, claimer) = with_claimer().await;
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        let mut result = answered(&claimed, 500, json!({}));
        result["started_ago_ms"] = says.clone();
        settle_between(&database, &claimer, result).await;
        let began = began_between(&database, claimed.delivery, seconds).await;
        assert!(began, "started_ago_ms {says}");
    }
}

#[tokio::test]
async fn a_late_result_says_when_it_began_as_well() {
    let (database, claimer) = with_claimer().await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    assert!(database.one::<bool>("select orbhook_cancel($1)", &[&claimed.delivery]).await);
    let mut result = answered(&claimed, 200, json!({}));
    result["started_ago_ms"] = json!(5_000);
    settle_between(&database, &claimer, result).await;
    assert!(began_between(&database, claimed.delivery, 5.0).await);
}

#[tokio::test]
async fn when_and_how_long_are_those_of_the_real_request() {
    const HELD: Duration = Duration::from_millis(300);

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    receiver.answer("/hook", Answer::status(200).after(HELD));
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({})).await;
    let row = wait_until("the delivery to be settled", DEADLINE, async || {
        let select = "select a.started_at >= d.created_at,
                             a.started_at + make_interval(secs => a.duration_ms / 1000.0) <= d.finished_at,
                             a.duration_ms, a.first_byte_ms, a.connect_ms, a.address
                      from orbhook.deliveries d join orbhook.attempts a on a.delivery_id = d.id
                      where d.status = 'delivered'";
        database.rows(select, &[]).await.pop()
    })
    .await;
    assert!(row.get::<_, bool>(0), "it began after it was queued");
    assert!(row.get::<_, bool>(1), "it ended before it was settled");
    let (duration, first_byte, connect): (i32, i32, i32) = (row.get(2), row.get(3), row.get(4));
    let held = i32::try_from(HELD.as_millis()).unwrap();
    assert!(
        first_byte >= held && duration >= first_byte && connect < first_byte,
        "{connect} {first_byte} {duration}"
    );
    assert_eq!(row.get::<_, String>(5), receiver.address().to_string());
}

async fn with_claimer() -> (Database, Claimer) {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
    let claimer = Claimer::register(&database).await;
    (database, claimer)
}

/// Settles, and notes the time before and after.
async fn settle_between(database: &Database, claimer: &Claimer, result: serde_json::Value) {
    database
        .execute("create table span as select clock_timestamp() as before, null::timestamptz as after")
        .await;
    claimer.settle(database, json!([result])).await;
    database.execute("update span set after = clock_timestamp()").await;
}

/// Whether the attempt began so many seconds before some moment of that settling.
async fn began_between(database: &Database, delivery: Uuid, seconds: f64) -> bool {
    let select = "select a.started_at + make_interval(secs => $2) between s.before and s.after
                  from orbhook.attempts a, span s where a.delivery_id = $1";
    database.one(select, &[&delivery, &seconds]).await
}
