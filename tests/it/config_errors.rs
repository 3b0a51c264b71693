use orbhook_tests::{Database, Refusal};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Stands in every secret place of a refused configuration; no message may repeat it.
const CANARY: &str = "canary-4711";

/// Literal addresses that no webhook may name, in the ways they can be written.
const BLOCKED: &[&str] = &[
    "http://10.0.0.1/hook",
    "http://172.16.5.4/hook",
    "http://192.168.1.1:8080/hook",
    "http://169.254.169.254/latest/meta-data",
    "http://100.64.0.1/hook",
    "http://0.0.0.0/hook",
    "http://255.255.255.255/hook",
    "http://[fe80::1]/hook",
    "http://[fd00::1]/hook",
    "http://[::]/hook",
    "http://[::ffff:10.0.0.1]/hook",
    "http://0x0a000001/hook",
    "http://167772161/hook",
];

#[tokio::test]
async fn a_key_with_a_wrong_value_is_named() {
    let database = Database::new().await;
    let wrong = [
        ("colour", json!("red")),
        ("name", json!(7)),
        ("name", json!("")),
        ("name", json!("two\nlines")),
        ("providerType", json!("TEAMS")),
        ("providerType", json!(null)),
        ("active", json!("yes")),
        ("subscribedEvents", json!("USER_CREATED")),
        ("subscribedEvents", json!([])),
        ("subscribedEvents", json!([7])),
        ("subscribedEvents", json!(["USER_CRAETED"])),
        ("subscribedEvents", json!(["user created"])),
        ("providerSpecificConfig", json!([])),
        ("maxRetries", json!(101)),
        ("maxRetries", json!(-1)),
        ("maxRetries", json!(1.5)),
        ("retryDelay", json!(-1)),
        ("retryDelay", json!([])),
        ("retryDelay", json!([30, -1])),
        ("retryDelay", json!(["30"])),
        ("retryDelay", json!(vec![30; 21])),
        ("rateLimit", json!(0)),
        ("rateLimit", json!(-1)),
        ("rateLimit", json!(10_001)),
        ("rateLimit", json!("10")),
        ("timeoutSeconds", json!(0)),
        ("timeoutSeconds", json!(31)),
        ("maxInFlight", json!(0)),
        ("maxInFlight", json!(1_001)),
        ("headers", json!(["X-A: b"])),
        ("headers", json!({"X-A": 1})),
        ("headers", json!({"X A": "b"})),
        ("headers", json!({"Host": "example.com"})),
        ("headers", json!({"content-length": "5"})),
        ("headers", json!({"Webhook-Id": "mine"})),
        ("headers", json!({"X-A": "line\nbreak canary-4711"})),
        ("headers", json!({"X-A": "nul\u{1}canary-4711"})),
        ("signingSecret", json!("canary-4711")),
        ("signingSecret", json!("whsec_!canary-4711")),
        ("signingSecret", json!(7)),
    ];
    for (key, value) in wrong {
        let refusal = refuse(&database, with(key, value.clone())).await;
        assert!(refusal.message.contains(key), "{key} = {value}: {refusal:?}");
    }
    assert_eq!(database.one::<i64>("select count(*) from orbhook.webhooks", &[]).await, 0);
    // The configuration that was varied is itself accepted.
    database.create_webhook(valid()).await;
}

#[tokio::test]
async fn each_required_key_is_asked_for() {
    let database = Database::new().await;
    for key in ["name", "providerType", "endpoint", "subscribedEvents"] {
        let mut config = valid();
        object(&mut config).remove(key);
        let refusal = refuse(&database, config).await;
        assert!(refusal.message.contains(key), "without {key}: {refusal:?}");
    }
    for config in [json!([]), json!("text"), json!(null)] {
        refuse(&database, config).await;
    }
}

#[tokio::test]
async fn a_provider_names_what_it_needs() {
    let database = Database::new().await;
    let cases = [
        ("SLACK", "https://hooks.slack.com/services/canary-4711", json!({"channel": 7}), "channel"),
        ("GOHIGHLEVEL", "https://services.leadconnectorhq.com/", json!({"apiKey": CANARY}), "locationId"),
        ("GOHIGHLEVEL", "https://example.com/hook", json!({"apiKey": [CANARY]}), "apiKey"),
        (
            "ZAPIER",
            "https://hooks.zapier.com/hooks/catch/canary-4711",
            json!({"api_key": {"is": CANARY}}),
            "api_key",
        ),
    ];
    for (provider, endpoint, provider_config, key) in cases {
        let mut config = valid();
        config["providerType"] = json!(provider);
        config["endpoint"] = json!(endpoint);
        config["providerSpecificConfig"] = provider_config;
        let refusal = refuse(&database, config).await;
        assert!(refusal.message.contains(key), "{provider}: {refusal:?}");
    }
}

#[tokio::test]
async fn an_endpoint_is_an_absolute_http_url_without_a_user() {
    let database = Database::new().await;
    let wrong = [
        "",
        "/canary-4711",
        "example.com/canary-4711",
        "ftp://example.com/canary-4711",
        "file:///canary-4711",
        "https://",
        "https://example.com:0/canary-4711",
        "https://user:canary-4711@example.com/",
        "https://canary-4711@example.com/",
        "https://exa mple.com/canary-4711",
    ];
    for endpoint in wrong {
        let refusal = refuse(&database, with("endpoint", json!(endpoint))).await;
        assert!(refusal.message.contains("endpoint"), "{endpoint}: {refusal:?}");
    }
    refuse(&database, with("endpoint", json!(7))).await;
}

#[tokio::test]
async fn an_endpoint_with_a_blocked_address_is_refused() {
    let database = Database::new().await;
    for endpoint in BLOCKED {
        let refusal = refuse(&database, with("endpoint", json!(endpoint))).await;
        assert!(refusal.message.contains("endpoint"), "{endpoint}: {refusal:?}");
    }
}

#[tokio::test]
async fn the_loopback_address_is_blocked_unless_the_superuser_lists_it() {
    let database = Database::new().await;
    let loopback = with("endpoint", json!("http://127.0.0.1:9/canary-4711"));
    database.create_webhook(loopback.clone()).await;

    database.execute(&format!("alter database {} set orbhook.allow_networks = ''", database.name())).await;
    let session = database.connect().await;
    let sql = create(&loopback);
    let refusal = session.refusal(&sql).await;
    assert_eq!(refusal.sqlstate, "22023", "{refusal:?}");
    for endpoint in ["http://[::1]/", "http://localhost/", "http://127.1/"] {
        let refusal = session.refusal(&create(&with("endpoint", json!(endpoint)))).await;
        assert!(refusal.message.contains("endpoint"), "{endpoint}: {refusal:?}");
    }
}

#[tokio::test]
async fn only_a_superuser_lists_allowed_networks() {
    let database = Database::new().await;
    let admin = database.role("admin").await;
    let session = database.connect_as(&admin).await;
    // The library is loaded by the first call into it; before that, any setting of that name is a placeholder.
    session.execute("select orbhook_render('GENERIC', '{\"eventType\": \"USER_CREATED\"}')").await;
    let refusal = session.refusal("set orbhook.allow_networks = '0.0.0.0/0'").await;
    assert_eq!(refusal.sqlstate, "42501", "{refusal:?}");
}

#[tokio::test]
async fn a_refused_update_changes_nothing() {
    let database = Database::new().await;
    let webhook: Uuid = database.create_webhook(valid()).await;
    let select = "select w::text from orbhook.webhooks w";
    let before = database.one::<String>(select, &[]).await;
    for changes in
        [json!({"rateLimit": 0}), json!({"name": "new", "maxRetries": 101}), json!({"colour": "red"})]
    {
        let sql = format!("select orbhook_update_webhook('{webhook}', {})", literal(&changes));
        assert_eq!(database.refusal(&sql).await.sqlstate, "22023", "{changes}");
    }
    assert_eq!(database.one::<String>(select, &[]).await, before);
}

/// The refusal of a configuration. The caller's other work must be unharmed, and no secret repeated.
async fn refuse(database: &Database, config: Value) -> Refusal {
    let session = database.connect().await;
    session
        .execute("create temporary table other_work (n int); begin; insert into other_work values (1)")
        .await;
    session.execute("savepoint here").await;
    let refusal = session.refusal(&create(&config)).await;
    session.execute("rollback to here; commit").await;
    assert_eq!(session.one::<i64>("select count(*) from other_work", &[]).await, 1);

    assert_eq!(refusal.sqlstate, "22023", "{config}: {refusal:?}");
    assert!(
        !refusal.message.contains(CANARY) && !refusal.hint.contains(CANARY),
        "a secret is repeated: {refusal:?}"
    );
    refusal
}

fn create(config: &Value) -> String {
    format!("select orbhook_create_webhook({})", literal(config))
}

fn literal(value: &Value) -> String {
    format!("'{}'::jsonb", value.to_string().replace('\'', "''"))
}

fn with(key: &str, value: Value) -> Value {
    let mut config = valid();
    config[key] = value;
    config
}

fn valid() -> Value {
    json!({
        "name": "test",
        "providerType": "GENERIC",
        "endpoint": "https://example.com/canary-4711",
        "subscribedEvents": ["USER_CREATED"],
        "headers": {"X-Key": CANARY},
    })
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("an object")
}
