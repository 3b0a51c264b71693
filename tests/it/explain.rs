use std::collections::BTreeMap;

use orbhook_tests::{Claimer, Database, generic};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use uuid::Uuid;

const ENDPOINT: &str = "http://127.0.0.1:9/hook";
/// Stands in an explained request for the event that does not exist.
const NO_EVENT: &str = "00000000-0000-7000-8000-000000000000";
const WEBHOOKS: usize = 40;
const EVENTS: usize = 60;

/// One webhook's line of an explanation.
#[derive(Debug)]
struct Explained {
    outcome: String,
    reason: String,
    body: Option<String>,
}

#[tokio::test]
async fn what_is_explained_is_what_then_happens_for_random_webhooks_and_events() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let database = Database::new().await;
    for number in 0..WEBHOOKS {
        random_webhook(&database, number, &mut random).await;
    }
    let claimer = Claimer::register(&database).await;
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..EVENTS {
        let (event_type, payload) = random_event(&mut random);
        let context = format!("seed {seed}: {event_type} {payload}");
        let explained = explain(&database, event_type, &payload).await;
        assert_eq!(explained.len(), WEBHOOKS, "every webhook has its line; {context}");
        let event = database.emit(event_type, payload.clone()).await;
        // Those that are paused are sent when they are resumed.
        database.execute("update orbhook.webhooks set paused = false where paused").await;
        let sent = claimer.claim(&database, 1000).await;

        for (webhook, explained) in explained {
            let context = format!("{context}: {webhook} {explained:?}");
            *outcomes.entry(explained.outcome.clone()).or_default() += 1;
            let body = sent
                .iter()
                .find(|claimed| claimed.webhook == webhook)
                .map(|claimed| claimed.body.replace(&event.to_string(), NO_EVENT));
            assert_eq!(body, explained.body, "{context}");
            let ended =
                "select status, last_error from orbhook.deliveries where event_id = $1 and webhook_id = $2";
            let ended = database.rows(ended, &[&event, &webhook]).await.pop();
            let ended = ended.map(|row| (row.get::<_, String>(0), row.get::<_, Option<String>>(1)));
            let skipped = "select s ->> 'reason' from orbhook.events e, jsonb_array_elements(e.skipped) s
                           where e.id = $1 and s ->> 'webhook' = $2";
            let skipped = database.rows(skipped, &[&event, &webhook.to_string()]).await.pop();
            let skipped = skipped.map(|row| row.get::<_, String>(0));
            match explained.outcome.as_str() {
                "sent" => assert_eq!((ended.unwrap().0.as_str(), skipped), ("pending", None), "{context}"),
                "skipped" => {
                    assert_eq!(ended, None, "{context}");
                    assert!(explained.reason.starts_with(&format!("{}: ", skipped.unwrap())), "{context}");
                }
                "not subscribed" => assert_eq!((ended, skipped), (None, None), "{context}"),
                status => assert_eq!(
                    (ended.unwrap(), skipped),
                    ((status.to_owned(), Some(explained.reason)), None),
                    "{context}"
                ),
            }
        }
        database.execute("delete from orbhook.deliveries_open").await;
        database.execute("update orbhook.webhooks set paused = true where name like 'paused%'").await;
    }
    let seen: Vec<&str> = outcomes.keys().map(String::as_str).collect();
    assert_eq!(
        seen,
        ["cancelled", "failed", "not subscribed", "sent", "skipped"],
        "seed {seed}: {outcomes:?}"
    );
}

#[tokio::test]
async fn explaining_sees_what_this_transaction_changed_and_leaves_nothing_behind() {
    let database = Database::new().await;
    let session = database.connect().await;
    session.execute("begin").await;
    session.rows("select orbhook_create_webhook($1)", &[&generic(ENDPOINT)]).await;
    let outcome = "select outcome from orbhook_explain('USER_CREATED', '{}')";
    assert_eq!(session.one::<String>(outcome, &[]).await, "sent");
    session.execute("update orbhook.webhooks set active = false").await;
    assert_eq!(session.one::<String>(outcome, &[]).await, "skipped");
    session.execute("rollback").await;
    assert!(session.rows(outcome, &[]).await.is_empty(), "no webhook, no line");
    session.execute("begin read only").await;
    session.rows(outcome, &[]).await;
    let written = "select pg_current_xact_id_if_assigned() is null";
    assert!(
        session.one::<bool>(written, &[]).await,
        "it writes nothing, and works where nothing can be written"
    );
}

#[tokio::test]
async fn the_reason_is_exact() {
    let database = Database::new().await;
    let reason = async |change: &str, payload: &str| {
        let session = database.connect().await;
        session.execute(&format!("begin; {change}")).await;
        let sql =
            format!("select reason, send_at is null from orbhook_explain('PAYMENT_REFUNDED', '{payload}')");
        let row = session.rows(&sql, &[]).await.remove(0);
        (row.get::<_, String>(0), row.get::<_, bool>(1))
    };
    let mut config = generic(ENDPOINT);
    config["subscribedEvents"] = json!(["PAYMENT_*", "USER_LOGIN"]);
    database.create_webhook(config).await;
    for (change, payload, expected, never) in [
        ("", "{}", "subscribes to PAYMENT_*", false),
        (
            "update orbhook.webhooks set filter = '$.amount > 100'",
            r#"{"amount": 5}"#,
            r#"filtered: ($."amount" > 100) gives false"#,
            true,
        ),
        (
            "update orbhook.webhooks set filter = '$.vip'",
            r#"{"vip": null}"#,
            r#"filtered: $."vip" gives null"#,
            true,
        ),
        ("update orbhook.webhooks set filter = '$.vip'", "{}", r#"filtered: $."vip" gives nothing"#, true),
        ("update orbhook.webhooks set active = false", "{}", "inactive: switched off by hand", true),
        (
            "update orbhook.webhooks set active = false, inactive_reason = 'answered 410'",
            "{}",
            "inactive: answered 410",
            true,
        ),
        (
            "update orbhook.webhooks set subscribed_events = '{USER_*,SYSTEM_UPDATE}'",
            "{}",
            "subscribes to USER_*, SYSTEM_UPDATE",
            true,
        ),
        (
            "update orbhook.webhooks set paused = true",
            "{}",
            "subscribes to PAYMENT_*; paused, waits for orbhook_resume",
            true,
        ),
        (
            "update orbhook.webhook_state set paused_until = now() + interval '1 hour', pause_reason = 'answered 429'",
            "{}",
            "subscribes to PAYMENT_*; the receiver asked for quiet: answered 429",
            false,
        ),
        (
            "delete from orbhook.webhook_secrets where name = 'endpoint'",
            "{}",
            "the webhook has no endpoint; set one with orbhook_update_webhook",
            true,
        ),
    ] {
        assert_eq!(reason(change, payload).await, (expected.to_owned(), never), "{change} {payload}");
    }
}

#[tokio::test]
async fn send_at_counts_the_pause_the_pace_and_what_is_queued() {
    let database = Database::new().await;
    let mut config = generic(ENDPOINT);
    config["rateLimit"] = json!(0.5);
    config["maxAgeSeconds"] = json!(100);
    database.create_webhook(config).await;
    let wait = async || {
        let sql = "select outcome, extract(epoch from send_at - clock_timestamp())::float8 from orbhook_explain('USER_CREATED', '{}')";
        let row = database.rows(sql, &[]).await.remove(0);
        (row.get::<_, String>(0), row.get::<_, f64>(1).round())
    };
    assert_eq!(wait().await, ("sent".to_owned(), 0.0));
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 20)").await;
    assert_eq!(wait().await, ("sent".to_owned(), 40.0), "twenty at one every two seconds");
    database
        .execute("update orbhook.webhook_state set paused_until = clock_timestamp() + interval '50 seconds'")
        .await;
    assert_eq!(wait().await, ("sent".to_owned(), 90.0));
    database
        .execute("update orbhook.webhook_state set paused_until = clock_timestamp() + interval '80 seconds'")
        .await;
    assert_eq!(wait().await.0, "cancelled", "older than maxAgeSeconds by then");
}

#[tokio::test]
async fn an_explained_request_shows_no_secret() {
    let database = Database::new().await;
    let mut config = generic("https://example.com/canary-path?canary=query");
    config["headers"] = json!({"X-Key": "canary-header"});
    config["signingSecret"] = json!("whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5");
    database.create_webhook(config).await;
    let row = database
        .rows("select url, headers, e::text from orbhook_explain('USER_CREATED', '{}') e", &[])
        .await
        .remove(0);
    assert_eq!(row.get::<_, String>(0), "https://example.com/********");
    assert_eq!(row.get::<_, Value>(1)["X-Key"], "********");
    let whole = row.get::<_, String>(2);
    assert!(!whole.contains("canary") && !whole.contains("Y2FuYXJ5"), "{whole}");
}

#[tokio::test]
async fn what_emit_refuses_is_refused_in_the_same_words() {
    let database = Database::new().await;
    let large = format!("jsonb_build_object('text', repeat('x', {}))", 300 * 1024);
    for arguments in [
        "null, '{}'",
        "'USER_CREATED', null",
        "'USER_CREATED', '[]'",
        "'USER_CREATED', '1'",
        "'USER_CREATED', '{\"eventType\": \"USER_DELETED\"}'",
        "'USER_CREATED', '{\"eventType\": 1}'",
        "'USER_CRAETED', '{}'",
        "'', '{}'",
        "repeat('X', 65), '{}'",
        &format!("'USER_CREATED', {large}"),
    ] {
        let emit = database.refusal(&format!("select orbhook_emit({arguments})")).await;
        let explain = database.refusal(&format!("select orbhook_explain({arguments})")).await;
        assert_eq!(
            (explain.sqlstate, explain.message, explain.hint),
            (emit.sqlstate, emit.message, emit.hint),
            "{arguments}"
        );
    }
}

async fn explain(database: &Database, event_type: &str, payload: &Value) -> Vec<(Uuid, Explained)> {
    let sql = "select webhook_id, outcome, reason, body from orbhook_explain($1, $2)";
    let rows = database.rows(sql, &[&event_type, payload]).await;
    rows.iter()
        .map(|row| (row.get(0), Explained { outcome: row.get(1), reason: row.get(2), body: row.get(3) }))
        .collect()
}

async fn random_webhook(database: &Database, number: usize, random: &mut StdRng) {
    const PATTERNS: [&str; 9] = [
        "*",
        "USER_*",
        "PAYMENT_*",
        "SECURITY_*",
        "USER_CREATED",
        "USER_PASSWORD_CHANGED",
        "PAYMENT_REFUNDED",
        "SUBSCRIPTION_*",
        "SYSTEM_UPDATE",
    ];
    const FILTERS: [Option<&str>; 8] = [
        None,
        None,
        None,
        Some("$.payment.amount > 100"),
        Some("$.active"),
        Some("$.items[*] ? (@ > 1)"),
        Some("strict $.profile.country"),
        Some("$.eventType"),
    ];
    let paused = random.random_bool(0.2);
    let mut config = generic(ENDPOINT);
    config["name"] = json!(format!("{} {number}", if paused { "paused" } else { "webhook" }));
    config["subscribedEvents"] =
        (0..random.random_range(1..4)).map(|_| *PATTERNS.choose(random).unwrap()).collect();
    config["filter"] = json!(FILTERS.choose(random).unwrap());
    config["active"] = json!(random.random_bool(0.8));
    config["headers"] = if random.random_bool(0.3) { json!({"X-Key": "k"}) } else { json!({}) };
    match random.random_range(0..5) {
        0 => config["providerType"] = json!("SLACK"),
        1 => config["providerType"] = json!("ZAPIER"),
        2 => {
            config["providerType"] = json!("GOHIGHLEVEL");
            config["endpoint"] = json!("https://services.leadconnectorhq.com/contacts");
            config["providerSpecificConfig"] = json!({"apiKey": "key", "locationId": "location"});
        }
        _ => {}
    }
    let id = database.create_webhook(config).await;
    if paused {
        database.execute(&format!("select orbhook_pause('{id}')")).await;
    }
    if random.random_bool(0.1) {
        let sql =
            format!("delete from orbhook.webhook_secrets where webhook_id = '{id}' and name = 'endpoint'");
        database.execute(&sql).await;
    }
}

fn random_event(random: &mut StdRng) -> (&'static str, Value) {
    const TYPES: [&str; 8] = [
        "USER_CREATED",
        "USER_PASSWORD_CHANGED",
        "PAYMENT_RECEIVED",
        "PAYMENT_REFUNDED",
        "SECURITY_2FA_ENABLED",
        "SUBSCRIPTION_TRIAL_ENDED",
        "SYSTEM_UPDATE",
        "USAGE_ABNORMAL",
    ];
    const TIMES: [&str; 3] =
        ["2024-06-14T15:30:00Z", "2024-06-14T15:30:00.123456+02:00", "2024-06-14T15:30:00"];
    let event_type = TYPES.choose(random).unwrap();
    let mut payload =
        json!({"timestamp": TIMES.choose(random).unwrap(), "userId": random.random_range(0..1000)});
    let mut sometimes = |key: &str, value: Value| {
        if random.random_bool(0.5) {
            payload[key] = value;
        }
    };
    sometimes("eventType", json!(event_type));
    sometimes("email", json!("user@example.com"));
    sometimes("active", json!(true));
    sometimes("items", json!([0, 2, 5]));
    sometimes("profile", json!({"firstName": "Zoë", "lastName": "<b>&", "country": "US"}));
    sometimes("payment", json!({"id": "pay_1", "amount": 99.5, "currency": "USD"}));
    if random.random_bool(0.3) {
        payload["active"] = json!(false);
        payload["payment"] = json!({"amount": 1000.25});
    }
    if random.random_bool(0.1) {
        payload["deep"] = (0..200).fold(json!(1), |inner, _| json!([inner]));
    }
    (event_type, payload)
}
