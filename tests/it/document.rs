//! The product document, end to end: its objects go in unchanged, its formats come out.

use orbhook_tests::{Answer, Database, Receiver, Sidecar};
use serde_json::{Map, Value, json};

const CONFIGURATIONS: [&str; 2] =
    [include_str!("document/config_all_user_events.json"), include_str!("document/config_my_webhook.json")];
const EVENT: &str = include_str!("document/user_created.json");

#[tokio::test]
async fn both_configuration_objects_go_in_unchanged_and_come_back_with_the_endpoint_masked() {
    let database = Database::new().await;
    for text in CONFIGURATIONS {
        let mut given: Map<String, Value> = serde_json::from_str(text).unwrap();
        let id = database.create_webhook(Value::Object(given.clone())).await;
        let select = "select config from orbhook.webhook_configs where id = $1";
        let shown: Value = database.one(select, &[&id]).await;
        assert_eq!(shown["endpoint"], "https://hooks.slack.com/********");
        given.remove("endpoint");
        for (key, value) in given {
            assert_eq!(shown[&key], value, "{key}");
        }
    }
}

#[tokio::test]
async fn what_the_view_shows_can_be_handed_back_and_changes_no_secret() {
    let database = Database::new().await;
    let mut config: Value = serde_json::from_str(CONFIGURATIONS[1]).unwrap();
    config["headers"] = json!({"X-Team": "blue"});
    let id = database.create_webhook(config).await;
    let secrets = "select jsonb_object_agg(name, value) from orbhook.webhook_secrets where webhook_id = $1";
    let before: Value = database.one(secrets, &[&id]).await;
    database
        .rows("select orbhook_update_webhook(id, config || '{\"maxRetries\": 5}') from orbhook.webhook_configs where id = $1", &[&id])
        .await;
    assert_eq!(database.one::<Value>(secrets, &[&id]).await, before);
    assert_eq!(
        database.one::<i32>("select max_retries from orbhook.webhooks where id = $1", &[&id]).await,
        5
    );
}

#[tokio::test]
async fn all_43_event_types_are_in_the_catalogue_with_category_and_description() {
    let database = Database::new().await;
    let count = "select count(*) from orbhook.event_types where built_in and category <> 'Operations' and description <> ''";
    assert_eq!(database.one::<i64>(count, &[]).await, 43);
    let refusal = database.refusal("delete from orbhook.event_types where name = 'USER_CREATED'").await;
    assert_eq!(refusal.sqlstate, "22023");
}

#[tokio::test]
async fn each_provider_gets_the_documents_format_on_the_wire() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let providers = [
        ("SLACK", "/slack", include_str!("document/provider_config_slack.json"), "ok"),
        (
            "gohighlevel",
            "/ghl",
            include_str!("document/provider_config_gohighlevel.json"),
            "{\"status\":\"ok\",\"id\":\"1\"}",
        ),
        ("Zapier", "/zapier", include_str!("document/provider_config_zapier.json"), ""),
    ];
    for (provider, path, config, answer) in providers {
        receiver.answer(path, Answer::status(200).body(answer));
        database
            .create_webhook(json!({
                "name": provider, "providerType": provider, "endpoint": receiver.url(path), "subscribedEvents": ["USER_CREATED"],
                "providerSpecificConfig": serde_json::from_str::<Value>(config).unwrap(),
            }))
            .await;
    }
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", serde_json::from_str(EVENT).unwrap()).await;

    for request in receiver.requests(3).await {
        let body = request.json();
        match request.path.as_str() {
            "/slack" => {
                let text = body["text"].as_str().unwrap();
                assert!(
                    text.starts_with(include_str!("document/user_created.slack.txt").trim_end()),
                    "{text}"
                );
                assert_eq!(body["icon_emoji"], ":robot_face:");
                assert!(body.get("icon_url").is_none(), "with both icons set, icon_emoji is sent");
            }
            "/ghl" => {
                assert_contains(&body, include_str!("document/user_created.gohighlevel.json"));
                assert_eq!(request.header("authorization"), None, "an inbound webhook gets no key");
            }
            "/zapier" => {
                assert_contains(&body, include_str!("document/user_created.zapier.json"));
                assert_eq!(request.header("x-api-key"), Some("your-zapier-key"));
                assert_eq!(request.header("x-recurse-parse"), Some("false"));
                assert!(!body.to_string().contains("your-zapier-key"));
            }
            other => panic!("a request to {other}"),
        }
    }
}

#[tokio::test]
async fn highlevels_api_gets_an_upsert_with_its_key_and_an_event_without_a_contact_is_cancelled() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database
        .create_webhook(json!({
            "name": "crm", "providerType": "GOHIGHLEVEL", "endpoint": receiver.url("/"), "subscribedEvents": ["*"],
            "providerSpecificConfig": {"locationId": "loc", "apiKey": "pit-1", "target": "api", "source": "OrbVPN"},
        }))
        .await;
    let _sidecar = Sidecar::start(&database).await;
    database.emit("SYSTEM_SERVER_DOWN", json!({"system": {"server": "node-1"}})).await;
    database.emit("USER_CREATED", serde_json::from_str(EVENT).unwrap()).await;
    let request = receiver.requests(1).await.remove(0);
    assert_eq!(
        (request.path.as_str(), request.header("authorization")),
        ("/contacts/upsert", Some("Bearer pit-1"))
    );
    assert_eq!(request.header("version"), Some("2021-07-28"));
    let body = request.json();
    assert_eq!((&body["locationId"], &body["email"]), (&json!("loc"), &json!("user@example.com")));
    assert!(body["customFields"].is_array() && body.get("tags").is_none(), "{body}");
    let reason = "select last_error from orbhook.deliveries where status = 'cancelled'";
    assert_eq!(database.one::<String>(reason, &[]).await, "no contact identity");
}

#[tokio::test]
async fn a_preview_is_what_is_sent_with_the_secrets_masked() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let id = database
        .create_webhook(json!({
            "name": "zap", "providerType": "ZAPIER", "endpoint": receiver.url("/hooks/secret"), "subscribedEvents": ["*"],
            "providerSpecificConfig": {"api_key": "key"}, "headers": {"X-Team": "blue"},
        }))
        .await;
    let _sidecar = Sidecar::start(&database).await;
    let event = database.emit("USER_CREATED", serde_json::from_str(EVENT).unwrap()).await;
    let sent = receiver.requests(1).await.remove(0);
    let row = database
        .rows(
            "select p.method, p.url, p.headers, p.body::jsonb || jsonb_build_object('id', $2::uuid)
             from orbhook_preview($1, 'USER_CREATED', (select payload from orbhook.events)) p",
            &[&id, &event],
        )
        .await
        .remove(0);
    assert_eq!((row.get::<_, &str>(0), row.get::<_, Value>(3)), ("POST", sent.json()));
    assert!(row.get::<_, &str>(1).ends_with("/********"), "the path is a secret");
    let headers: Value = row.get(2);
    assert_eq!((&headers["X-API-Key"], &headers["X-Team"]), (&json!("********"), &json!("********")));
    assert_eq!((sent.header("x-api-key"), sent.header("x-team")), (Some("key"), Some("blue")));
}

#[tokio::test]
async fn rendering_is_a_query_and_what_cannot_be_rendered_is_refused_with_the_reason() {
    let database = Database::new().await;
    let event: Value = serde_json::from_str(EVENT).unwrap();
    let render = "select orbhook_render($1, $2, $3)";
    let config: Value =
        serde_json::from_str(include_str!("document/provider_config_gohighlevel.json")).unwrap();
    let body: Value = database.one(render, &[&"gohighlevel", &event, &config]).await;
    assert_contains(&body, include_str!("document/user_created.gohighlevel.json"));
    let upsert: Value =
        database.one(render, &[&"GOHIGHLEVEL", &event, &json!({"locationId": "x", "target": "api"})]).await;
    assert_eq!(upsert["firstName"], "John");
    for wrong in [
        "select orbhook_render('TEAMS', '{}')",
        "select orbhook_render('SLACK', '[]')",
        "select orbhook_render('SLACK', null)",
    ] {
        assert_eq!(database.refusal(wrong).await.sqlstate, "22023", "{wrong}");
    }
}

#[tokio::test]
async fn occurred_at_is_the_payloads_time_read_as_utc_or_the_emit_time() {
    let database = Database::new().await;
    for (timestamp, expected) in [
        (json!("2024-11-03T15:27:47.002948"), Some("2024-11-03 15:27:47.002948")),
        (json!("2024-11-03T15:27:47+02:00"), Some("2024-11-03 13:27:47")),
        (json!("infinity"), None),
        (json!("yesterday"), None),
        (json!(1_730_647_667), None),
        (Value::Null, None),
    ] {
        let id = database.emit("USER_CREATED", json!({"timestamp": timestamp})).await;
        let select =
            "select (occurred_at at time zone 'UTC')::text, occurred_at = created_at, payload -> 'timestamp'
                      from orbhook.events where id = $1";
        let row = database.rows(select, &[&id]).await.remove(0);
        match expected {
            Some(time) => assert_eq!(row.get::<_, &str>(0), time),
            None => assert!(row.get::<_, bool>(1), "{timestamp}"),
        }
        assert_eq!(row.get::<_, Value>(2), timestamp, "the producer's own value passes unchanged");
    }
    let id = database.emit("USER_CREATED", json!({})).await;
    let select = "select payload ->> 'timestamp' from orbhook.events where id = $1";
    assert!(database.one::<String>(select, &[&id]).await.ends_with('Z'), "stamped when absent");
}

/// Every key of the document's example is there with its value; more keys may be.
fn assert_contains(body: &Value, example: &str) {
    fn contains(body: &Value, example: &Value, path: &str) {
        match example {
            Value::Object(keys) => {
                for (key, value) in keys {
                    contains(&body[key], value, &format!("{path}.{key}"));
                }
            }
            _ => assert_eq!(body, example, "{path}"),
        }
    }
    contains(body, &serde_json::from_str(example).unwrap(), "");
}
