use orbhook_tests::{Claimed, Claimer, Database, generic};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn a_webhook_without_success_for_five_days_is_switched_off_and_keeps_what_is_queued() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 10})).await;
    fail_once(&database, &claimer).await;
    assert!(is_active(&database, webhook).await);
    age_failures(&database, "5 days 1 minute").await;
    fail_once(&database, &claimer).await;
    assert!(!is_active(&database, webhook).await);
    let reason: String =
        database.one("select inactive_reason from orbhook.webhooks where id = $1", &[&webhook]).await;
    assert!(reason.starts_with("no success since ") && reason.contains("orbhook_update_webhook"), "{reason}");
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 2);

    database.execute(&format!("select orbhook_update_webhook('{webhook}', '{{\"active\": true}}')")).await;
    fail_once(&database, &claimer).await;
    assert!(is_active(&database, webhook).await, "switching it on begins the count anew");
}

#[tokio::test]
async fn days_in_which_nothing_was_tried_do_not_count() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 10})).await;
    fail_once(&database, &claimer).await;
    age_failures(&database, "6 days").await;
    database
        .execute("update orbhook.webhook_state set last_failed_at = last_failed_at - interval '6 days'")
        .await;
    fail_once(&database, &claimer).await;
    assert!(is_active(&database, webhook).await, "two failures in six days are not six days of trying");
    age_failures(&database, "5 days 1 minute").await;
    fail_once(&database, &claimer).await;
    assert!(!is_active(&database, webhook).await);
}

#[tokio::test]
async fn messages_that_are_refused_for_good_count_as_well() {
    let (database, claimer, webhook) = with(json!({"providerType": "SLACK", "maxRetries": 10})).await;
    for age in ["5 days 1 minute", "0"] {
        assert!(is_active(&database, webhook).await);
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        let mut result = orbhook_tests::answered(&claimed, 400, json!({}));
        result["body"] = json!("invalid_payload");
        claimer.settle(&database, json!([result])).await;
        age_failures(&database, age).await;
    }
    assert!(!is_active(&database, webhook).await);
}

#[tokio::test]
async fn a_delivery_that_fails_before_it_is_sent_is_reported_too() {
    let (database, claimer, _) = with(json!({"providerType": "ZAPIER"})).await;
    let mut config = generic("http://127.0.0.1:9/operator");
    config["subscribedEvents"] = json!(["DELIVERY_FAILED"]);
    let operator = database.create_webhook(config.clone()).await;
    config["active"] = json!(false);
    let inactive = database.create_webhook(config).await;
    let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    database.execute(&format!("select orbhook_emit('USER_CREATED', '{deep}')")).await;
    assert!(claimer.claim(&database, 10).await.is_empty());
    let reports = claim_for(&database, &claimer, operator).await;
    assert_eq!(reports.len(), 1);
    assert!(reports[0].body.contains("nested"), "{}", reports[0].body);
    let skipped: Value =
        database.one("select skipped from orbhook.events where event_type = 'DELIVERY_FAILED'", &[]).await;
    assert_eq!(skipped, json!([{"webhook": inactive.to_string(), "reason": "inactive"}]));
}

#[tokio::test]
async fn zero_days_means_never() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 10})).await;
    let name = database.name();
    database
        .execute(&format!("load 'orbhook'; alter database {name} set orbhook.switch_off_after_days = 0"))
        .await;
    fail_once(&database, &claimer).await;
    age_failures(&database, "400 days").await;
    let session = database.connect().await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    let result = json!([orbhook_tests::answered(&claimed, 500, json!({}))]);
    session.rows("select * from orbhook.settle($1, $2)", &[&claimer.id, &result]).await;
    assert!(is_active(&database, webhook).await);
}

#[tokio::test]
async fn others_hear_of_a_webhook_switched_off_and_of_a_delivery_that_failed_once_an_hour() {
    let (database, claimer, failing) = with(json!({"maxRetries": 0, "subscribedEvents": ["*"]})).await;
    let mut config = generic("http://127.0.0.1:9/operator");
    config["subscribedEvents"] = json!(["WEBHOOK_DISABLED", "DELIVERY_FAILED"]);
    let operator = database.create_webhook(config).await;

    for _ in 0..3 {
        fail_once(&database, &claimer).await;
    }
    let reports = claim_for(&database, &claimer, operator).await;
    assert_eq!(reports.len(), 1, "one of a kind an hour");
    let body: Value = serde_json::from_str(&reports[0].body).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]["webhook"]["id"]),
        (&json!("DELIVERY_FAILED"), &json!(failing.to_string()))
    );
    assert_eq!(body["data"]["webhook"]["failedEventType"], "USER_CREATED");

    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 410, json!({})).await;
    let reports = claim_for(&database, &claimer, operator).await;
    let types: Vec<&str> = reports.iter().map(|report| report.event_type.as_str()).collect();
    assert_eq!(types, ["WEBHOOK_DISABLED"]);
    let about_itself = "select count(*) from orbhook.deliveries d join orbhook.events e on e.id = d.event_id
                        where d.webhook_id = $1 and e.event_type <> 'USER_CREATED'";
    assert_eq!(database.one::<i64>(about_itself, &[&failing]).await, 0, "never to the webhook it is about");
}

#[tokio::test]
async fn a_report_that_fails_makes_no_report() {
    let (database, claimer, _) = with(json!({"maxRetries": 0})).await;
    let mut config = generic("http://127.0.0.1:9/operator");
    config["subscribedEvents"] = json!(["DELIVERY_FAILED"]);
    config["maxRetries"] = json!(0);
    let operator = database.create_webhook(config.clone()).await;
    database.create_webhook(config).await;
    fail_once(&database, &claimer).await;
    for report in claim_for(&database, &claimer, operator).await {
        claimer.answer(&database, &report, 500, json!({})).await;
    }
    let reports = "select count(*) from orbhook.events where event_type = 'DELIVERY_FAILED'";
    assert_eq!(database.one::<i64>(reports, &[]).await, 1);
}

async fn with(changes: Value) -> (Database, Claimer, Uuid) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["subscribedEvents"] = json!(["USER_*"]);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let webhook = database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    (database, claimer, webhook)
}

/// Emits an event and lets its first attempt fail.
async fn fail_once(database: &Database, claimer: &Claimer) {
    let event = database.emit("USER_CREATED", json!({})).await;
    let delivery: Uuid =
        database.one("select id from orbhook.deliveries_open where event_id = $1", &[&event]).await;
    for claimed in claimer.claim(database, 100).await {
        if claimed.delivery == delivery {
            claimer.answer(database, &claimed, 500, json!({})).await;
        } else {
            let released = json!([{"delivery": claimed.delivery.to_string(), "attempt": claimed.attempt, "outcome": "released"}]);
            claimer.settle(database, released).await;
        }
    }
}

async fn claim_for(database: &Database, claimer: &Claimer, webhook: Uuid) -> Vec<Claimed> {
    claimer.claim(database, 100).await.into_iter().filter(|claimed| claimed.webhook == webhook).collect()
}

async fn age_failures(database: &Database, age: &str) {
    database
        .execute(&format!(
            "update orbhook.webhook_state set failing_since = failing_since - interval '{age}';
             update orbhook.webhooks set updated_at = updated_at - interval '{age}'"
        ))
        .await;
}

async fn is_active(database: &Database, webhook: Uuid) -> bool {
    database.one("select active from orbhook.webhooks where id = $1", &[&webhook]).await
}
