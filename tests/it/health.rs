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
async fn after_how_many_days_is_for_the_operator_to_say() {
    for (days, age, stays_on) in
        [(1, "1 day 1 minute", false), (30, "29 days", true), (30, "30 days 1 minute", false)]
    {
        let (database, claimer, webhook) = with(json!({"maxRetries": 10})).await;
        let name = database.name();
        database
            .execute(&format!(
                "load 'orbhook'; alter database {name} set orbhook.switch_off_after_days = {days}"
            ))
            .await;
        fail_once(&database, &claimer).await;
        age_failures(&database, age).await;
        // Set for sessions to come.
        let session = database.connect().await;
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        let result = json!([orbhook_tests::answered(&claimed, 500, json!({}))]);
        session.rows("select * from orbhook.settle($1, $2)", &[&claimer.id, &result]).await;
        assert_eq!(is_active(&database, webhook).await, stays_on, "{age} of trying, {days} days allowed");
    }
}

#[tokio::test]
async fn a_success_within_the_five_days_begins_them_anew() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 100})).await;
    fail_once(&database, &claimer).await;
    age_failures(&database, "4 days").await;
    succeed_once(&database, &claimer).await;
    fail_once(&database, &claimer).await;
    age_failures(&database, "4 days").await;
    fail_once(&database, &claimer).await;
    assert!(is_active(&database, webhook).await, "eight days of trouble, and a success in the middle");
    age_failures(&database, "1 day 1 minute").await;
    fail_once(&database, &claimer).await;
    assert!(!is_active(&database, webhook).await, "five days since the first failure after it");
}

#[tokio::test]
async fn a_webhook_that_works_every_other_time_is_left_on() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 100})).await;
    for _ in 0..6 {
        fail_once(&database, &claimer).await;
        age_failures(&database, "4 days").await;
        fail_once(&database, &claimer).await;
        succeed_once(&database, &claimer).await;
    }
    assert!(is_active(&database, webhook).await);
    let reported = "select exists (select from orbhook.events where event_type = 'WEBHOOK_DISABLED')";
    assert!(!database.one::<bool>(reported, &[]).await);
}

#[tokio::test]
async fn a_hook_that_its_provider_revoked_is_switched_off_with_a_reason_a_person_understands() {
    for (provider, config, status, body, says) in [
        (
            "SLACK",
            json!({}),
            404,
            "no_service",
            "the webhook was removed or disabled in Slack; create a new one",
        ),
        ("SLACK", json!({}), 404, "channel_not_found", "the channel does not exist"),
        ("SLACK", json!({}), 403, "invalid_token", "not valid any more"),
        (
            "GOHIGHLEVEL",
            json!({"locationId": "loc", "target": "inbound"}),
            404,
            "",
            "copy its webhook URL again",
        ),
        (
            "GOHIGHLEVEL",
            json!({"locationId": "loc", "target": "api", "apiKey": "k"}),
            401,
            "",
            "the apiKey is not accepted",
        ),
        ("ZAPIER", json!({}), 410, "", "turn the Zap on again"),
    ] {
        let (database, claimer, webhook) =
            with(json!({"providerType": provider, "providerSpecificConfig": config})).await;
        let event: Value = serde_json::from_str(include_str!("document/user_created.json")).unwrap();
        database.emit("USER_CREATED", event.clone()).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        database.emit("USER_CREATED", event.clone()).await;
        let mut result = orbhook_tests::answered(&claimed, status, json!({}));
        result["body"] = json!(body);
        claimer.settle(&database, json!([result])).await;

        let select = "select active, inactive_reason from orbhook.webhooks where id = $1";
        let row = database.rows(select, &[&webhook]).await.remove(0);
        let reason = row.get::<_, Option<String>>(1).unwrap_or_default();
        assert!(!row.get::<_, bool>(0), "{provider} {status} {body}");
        assert!(
            reason.contains(&status.to_string()) && reason.contains(says),
            "{provider} {status} {body}: {reason}"
        );
        let queued = "select count(*) from orbhook.deliveries_open";
        assert_eq!(database.one::<i64>(queued, &[]).await, 1, "what is queued stays");

        let skipped: Uuid = database.emit("USER_CREATED", event).await;
        let skipped: Value =
            database.one("select skipped from orbhook.events where id = $1", &[&skipped]).await;
        assert_eq!(skipped, json!([{"webhook": webhook.to_string(), "reason": "inactive"}]));
    }
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
async fn an_hour_later_they_hear_of_it_again() {
    let (database, claimer, webhook) = with(json!({"maxRetries": 0})).await;
    let mut config = generic("http://127.0.0.1:9/operator");
    config["subscribedEvents"] = json!(["WEBHOOK_DISABLED", "DELIVERY_FAILED"]);
    let operator = database.create_webhook(config).await;
    let passes = async |time: &str, kind: &str| {
        let age = format!(
            "update orbhook.webhook_state set reported_{kind}_at = reported_{kind}_at - interval '{time}'"
        );
        database.execute(&age).await;
    };
    let heard = async || -> Vec<String> {
        claim_for(&database, &claimer, operator).await.into_iter().map(|report| report.event_type).collect()
    };
    fail_once(&database, &claimer).await;
    assert_eq!(heard().await, ["DELIVERY_FAILED"]);
    passes("59 minutes", "failed").await;
    fail_once(&database, &claimer).await;
    assert_eq!(heard().await, [""; 0], "59 minutes are not an hour");
    passes("1 minute", "failed").await;
    fail_once(&database, &claimer).await;
    assert_eq!(heard().await, ["DELIVERY_FAILED"]);

    for round in ["first", "second"] {
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, 410, json!({})).await;
        assert_eq!(heard().await, ["WEBHOOK_DISABLED"], "the {round} time");
        let on = "select orbhook_update_webhook($1, '{\"active\": true}')";
        database.rows(on, &[&webhook]).await;
        passes("1 hour", "disabled").await;
    }
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
    answer_once(database, claimer, 500).await;
}

async fn succeed_once(database: &Database, claimer: &Claimer) {
    answer_once(database, claimer, 200).await;
}

async fn answer_once(database: &Database, claimer: &Claimer, status: u16) {
    let event = database.emit("USER_CREATED", json!({})).await;
    let delivery: Uuid =
        database.one("select id from orbhook.deliveries_open where event_id = $1", &[&event]).await;
    for claimed in claimer.claim(database, 100).await {
        if claimed.delivery == delivery {
            claimer.answer(database, &claimed, status, json!({})).await;
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
