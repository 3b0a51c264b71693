use orbhook_tests::{Database, generic};
use serde_json::{Value, json};

const ENDPOINT: &str = "http://127.0.0.1:9/hook";

/// Filter, payload, whether the event passes. The first item counts: it must exist and be neither false nor null.
fn truths() -> Vec<(&'static str, Value, bool)> {
    vec![
        ("$.amount > 100", json!({"amount": 500}), true),
        ("$.amount > 100", json!({"amount": 5}), false),
        ("$.amount > 100", json!({"amount": "500"}), false),
        ("$.amount > 100", json!({}), false),
        ("$.amount", json!({"amount": 0}), true),
        ("$.amount", json!({"amount": ""}), true),
        ("$.amount", json!({"amount": {}}), true),
        ("$.amount", json!({"amount": "false"}), true),
        ("$.amount", json!({"amount": false}), false),
        ("$.amount", json!({"amount": null}), false),
        ("$.amount", json!({}), false),
        ("$.amounts", json!({"amounts": []}), true),
        ("$.amounts[*]", json!({"amounts": []}), false),
        ("$.amounts[*]", json!({"amounts": [false, true]}), false),
        ("$.amounts[*]", json!({"amounts": [true, false]}), true),
        ("$.amounts[*] ? (@ > 100)", json!({"amounts": [1, 101]}), true),
        ("$.amounts[*] ? (@ > 100)", json!({"amounts": [1, 2]}), false),
        ("$.amount / 0", json!({"amount": 1}), false),
        ("strict $.profile.country", json!({"amount": 1}), false),
        (
            "$.payment.status == \"refunded\" && $.payment.amount > 100",
            json!({"payment": {"status": "refunded", "amount": 101}}),
            true,
        ),
        (
            "$.payment.status == \"refunded\" && $.payment.amount > 100",
            json!({"payment": {"status": "paid", "amount": 101}}),
            false,
        ),
        ("$.email like_regex \"@example[.]com$\"", json!({"email": "a@example.com"}), true),
        ("$.email like_regex \"@example[.]com$\"", json!({"email": "a@example.org"}), false),
        ("$.eventType == \"USER_CREATED\"", json!({"eventType": "USER_CREATED"}), true),
        // A filter sees what the producer gave, not what an emit adds.
        ("$.eventType == \"USER_CREATED\"", json!({}), false),
    ]
}

#[tokio::test]
async fn an_event_passes_when_the_first_item_exists_and_is_neither_false_nor_null() {
    let database = Database::new().await;
    let webhook = webhook(&database, Value::Null).await;
    for (filter, payload, passes) in truths() {
        let change = json!({"filter": filter});
        database.rows("select orbhook_update_webhook($1, $2)", &[&webhook, &change]).await;
        let event = database.emit("USER_CREATED", payload.clone()).await;
        let delivered = "select exists (select from orbhook.deliveries where event_id = $1)";
        assert_eq!(database.one::<bool>(delivered, &[&event]).await, passes, "{filter} on {payload}");
        let skipped: Option<Value> =
            database.one("select skipped from orbhook.events where id = $1", &[&event]).await;
        let reason = (!passes).then(|| json!([{"webhook": webhook.to_string(), "reason": "filtered"}]));
        assert_eq!(skipped, reason, "{filter} on {payload}");
    }
}

#[tokio::test]
async fn a_broken_filter_is_refused_when_it_is_set_and_the_old_one_stays() {
    let database = Database::new().await;
    let webhook = webhook(&database, json!("$.amount > 100")).await;
    let session = database.connect().await;
    for broken in ["", "$.[", "amount >", "$.amount >", "$.a ? (@ like_regex \"(\")", "select 1", "$$"] {
        let mut config = generic(ENDPOINT);
        config["filter"] = json!(broken);
        for (sql, argument) in [
            ("select orbhook_create_webhook($1)".to_owned(), config),
            (format!("select orbhook_update_webhook('{webhook}', $1)"), json!({"filter": broken})),
        ] {
            let error = session.query(sql.as_str(), &[&argument]).await.unwrap_err();
            let error = error.as_db_error().unwrap();
            assert_eq!(error.code().code(), "22023", "{broken:?}: {error:?}");
            assert!(error.message().starts_with("filter"), "{broken:?} names the key: {error:?}");
        }
    }
    let kept: String = database.one("select filter::text from orbhook.webhooks", &[]).await;
    assert_eq!(kept, "($.\"amount\" > 100)");
}

#[tokio::test]
async fn a_filter_that_is_taken_away_lets_everything_pass() {
    let database = Database::new().await;
    let webhook = webhook(&database, json!("$.amount > 100")).await;
    database.emit("USER_CREATED", json!({})).await;
    database.rows("select orbhook_update_webhook($1, '{\"filter\": null}')", &[&webhook]).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    let delivered: uuid::Uuid = database.one("select event_id from orbhook.deliveries", &[]).await;
    assert_eq!(delivered, event);
}

async fn webhook(database: &Database, filter: Value) -> uuid::Uuid {
    let mut config = generic(ENDPOINT);
    config["filter"] = filter;
    database.create_webhook(config).await
}

#[tokio::test]
async fn a_filter_that_cannot_be_evaluated_skips_the_event_and_never_raises() {
    let database = Database::new().await;
    for filter in
        ["$.at.datetime() < \"2030-01-01\".datetime()", "$.n > $x", "$.at.datetime(\"garbage\") == 1"]
    {
        let mut config = generic(ENDPOINT);
        config["filter"] = json!(filter);
        database.create_webhook(config).await;
    }
    let event = database.emit("USER_CREATED", json!({"at": "2026-01-01T00:00:00+00:00", "n": 1})).await;
    let skipped = "select jsonb_array_length(skipped) from orbhook.events where id = $1";
    assert_eq!(database.one::<i32>(skipped, &[&event]).await, 3);
}
