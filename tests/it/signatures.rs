use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orbhook_tests::{
    Answer, Database, Receiver, Request, Sidecar, SidecarProcess, generic, signature, unix_seconds,
    verify_signature,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const VERIFY: &str = "select orbhook_verify($1, $2, $3)";

#[tokio::test]
async fn during_the_overlap_both_secrets_sign_and_after_it_the_new_one_alone() {
    let (database, receiver, webhook) = with_receiver().await;
    let _sidecar = Sidecar::start(&database).await;
    let before = next_request(&database, &receiver).await;
    assert_eq!(signatures(&before), 1);
    verify_signature(SECRET, &before).unwrap();

    let new = rotate(&database, webhook, "1 hour").await;
    assert_eq!(key_of(&new).len(), 32);
    let during = next_request(&database, &receiver).await;
    assert_eq!(signatures(&during), 2);
    verify_signature(SECRET, &during).unwrap();
    verify_signature(&new, &during).unwrap();

    // Another within the overlap: the previous one is now the one in between.
    let newest = rotate(&database, webhook, "1 hour").await;
    let again = next_request(&database, &receiver).await;
    assert_eq!(signatures(&again), 2);
    verify_signature(&new, &again).unwrap();
    verify_signature(&newest, &again).unwrap();
    assert!(verify_signature(SECRET, &again).is_err());

    database
        .execute("update orbhook.webhook_secrets set expires_at = clock_timestamp() where name = 'signing.previous'")
        .await;
    let after = next_request(&database, &receiver).await;
    assert_eq!(signatures(&after), 1);
    verify_signature(&newest, &after).unwrap();
    assert!(verify_signature(&new, &after).is_err());
}

#[tokio::test]
async fn without_an_overlap_the_old_secret_is_gone_at_once() {
    let (database, receiver, webhook) = with_receiver().await;
    let new = rotate(&database, webhook, "0").await;
    let _sidecar = Sidecar::start(&database).await;
    let request = next_request(&database, &receiver).await;
    assert_eq!(signatures(&request), 1);
    verify_signature(&new, &request).unwrap();
    assert!(verify_signature(SECRET, &request).is_err());
}

#[tokio::test]
async fn an_overlap_is_0_to_7_days_and_a_refused_rotation_changes_nothing() {
    let (database, _, webhook) = with_receiver().await;
    let secrets = "select jsonb_object_agg(name, value) from orbhook.webhook_secrets where webhook_id = $1";
    let before: Value = database.one(secrets, &[&webhook]).await;
    for overlap in
        ["null", "'-1 second'", "'7 days 1 microsecond'", "'1 month'", "'-1 month 40 days -1 year'"]
    {
        let refusal =
            database.refusal(&format!("select orbhook_rotate_secret('{webhook}', {overlap})")).await;
        assert_eq!(refusal.sqlstate, "22023", "{overlap}: {refusal:?}");
        assert!(refusal.message.contains("overlap"), "{overlap}: {refusal:?}");
    }
    let refusal = database.refusal("select orbhook_rotate_secret(gen_random_uuid())").await;
    assert_eq!(refusal.sqlstate, "22023", "no such webhook: {refusal:?}");
    assert_eq!(database.one::<Value>(secrets, &[&webhook]).await, before);

    rotate(&database, webhook, "7 days").await;
    let after: Value = database.one(secrets, &[&webhook]).await;
    assert_eq!(after["signing.previous"], before["signing"]);
    let expires =
        "select expires_at - clock_timestamp() between interval '6 days 23 hours' and interval '7 days'
                   from orbhook.webhook_secrets where name = 'signing.previous'";
    assert!(database.one::<bool>(expires, &[]).await);
}

#[tokio::test]
async fn a_received_request_is_verified_in_sql_however_its_headers_are_spelled() {
    let (database, receiver, webhook) = with_receiver().await;
    let _sidecar = Sidecar::start(&database).await;
    let request = next_request(&database, &receiver).await;
    let body = String::from_utf8(request.body.clone()).unwrap();
    let verified = async |secret: &str, headers: &Value, body: &str| -> bool {
        database.one(VERIFY, &[&secret, headers, &body]).await
    };
    let headers = |spell: fn(&str) -> String| -> Value {
        Value::Object(request.headers.iter().map(|(name, value)| (spell(name), json!(value))).collect())
    };
    let plain = headers(str::to_owned);
    assert!(verified(SECRET, &plain, &body).await);
    assert!(verified(SECRET, &headers(str::to_uppercase), &body).await);
    assert!(verified(SECRET, &headers(|name| name.replace("webhook-", "Webhook-")), &body).await);

    assert!(!verified("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &plain, &body).await, "another secret");
    assert!(!verified("", &plain, &body).await);
    assert!(!verified(SECRET, &plain, &format!("{body} ")).await, "another body");
    assert!(!verified(SECRET, &plain, "").await);
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut changed = plain.clone();
        changed[name] = json!(format!("{}0", plain[name].as_str().unwrap()));
        assert!(!verified(SECRET, &changed, &body).await, "another {name}");
        changed.as_object_mut().unwrap().remove(name);
        assert!(!verified(SECRET, &changed, &body).await, "no {name}");
    }

    // While a secret is being rotated, either end may be ahead of the other.
    let new = rotate(&database, webhook, "1 hour").await;
    let rotated = next_request(&database, &receiver).await;
    let body = String::from_utf8(rotated.body.clone()).unwrap();
    let headers: Map<String, Value> =
        rotated.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    for secret in [SECRET, &new] {
        assert!(verified(secret, &Value::Object(headers.clone()), &body).await);
    }
}

#[tokio::test]
async fn a_signature_is_good_for_five_minutes_both_ways() {
    let database = Database::new().await;
    // The clock goes on meanwhile: what lies ahead of it comes nearer. To the second it is shown in the extension's own tests.
    for (offset, is_good) in [
        (-100_000, false),
        (-301, false),
        (-270, true),
        (0, true),
        (270, true),
        (330, false),
        (100_000, false),
    ] {
        let timestamp = unix_seconds() + offset;
        let signature = signature(SECRET, "msg_1", timestamp, b"{}").unwrap();
        let headers = json!({"webhook-id": "msg_1", "webhook-timestamp": timestamp.to_string(), "webhook-signature": signature});
        assert_eq!(database.one::<bool>(VERIFY, &[&SECRET, &headers, &"{}"]).await, is_good, "{offset} s");
    }
}

#[tokio::test]
async fn what_is_no_request_is_not_verified_and_raises_nothing() {
    let database = Database::new().await;
    let timestamp = unix_seconds();
    let signature = signature(SECRET, "msg_1", timestamp, b"{}").unwrap();
    let good = format!(
        r#"'{{"webhook-id": "msg_1", "webhook-timestamp": "{timestamp}", "webhook-signature": "{signature}"}}'"#
    );
    let secret = format!("'{SECRET}'");
    assert!(database.one::<bool>(&format!("select orbhook_verify({secret}, {good}, '{{}}')"), &[]).await);
    for arguments in [
        format!("null, {good}, '{{}}'"),
        format!("{secret}, null, '{{}}'"),
        format!("{secret}, {good}, null"),
        "null, null, null".to_owned(),
        format!("{secret}, '[]', '{{}}'"),
        format!("{secret}, '[{{\"webhook-id\": \"msg_1\"}}]', '{{}}'"),
        format!("{secret}, 'null', '{{}}'"),
        format!("{secret}, '\"webhook-id\"', '{{}}'"),
        format!("{secret}, '7', '{{}}'"),
        format!("{secret}, '{{}}', '{{}}'"),
        format!(
            r#"{secret}, '{{"webhook-id": null, "webhook-timestamp": null, "webhook-signature": null}}', '{{}}'"#
        ),
        format!(
            r#"{secret}, '{{"webhook-id": {{}}, "webhook-timestamp": 1e400, "webhook-signature": []}}', '{{}}'"#
        ),
        format!("'no base64 ☃', {good}, '{{}}'"),
    ] {
        let verified: Option<bool> = database.one(&format!("select orbhook_verify({arguments})"), &[]).await;
        assert_eq!(verified, Some(false), "{arguments}");
    }
}

#[tokio::test]
async fn every_provider_gets_a_signature_over_the_bytes_that_are_sent() {
    const NAME: &str = "Zoë 日本 🚀 \u{2028} <&> \\ \u{7f}";

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let configs = [
        ("SLACK", json!({})),
        ("GOHIGHLEVEL", json!({"locationId": "loc", "target": "inbound"})),
        ("GOHIGHLEVEL", json!({"locationId": "loc", "target": "api", "apiKey": "pit-1"})),
        ("ZAPIER", json!({})),
        ("GENERIC", json!({})),
    ];
    for (number, (provider, config)) in configs.iter().enumerate() {
        receiver.answer(&format!("/{number}"), Answer::status(200).body("ok"));
        database
            .create_webhook(json!({
                "name": provider, "providerType": provider, "endpoint": receiver.url(&format!("/{number}")),
                "subscribedEvents": ["USER_CREATED"], "providerSpecificConfig": config, "signingSecret": SECRET,
            }))
            .await;
    }
    let _sidecar = Sidecar::start(&database).await;
    let mut event: Value = serde_json::from_str(include_str!("document/user_created.json")).unwrap();
    event["profile"]["firstName"] = json!(NAME);
    event["profile"]["lastName"] = json!("Müller-Ångström");
    database.emit("USER_CREATED", event).await;

    let requests = receiver.requests(configs.len()).await;
    let paths: BTreeSet<_> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths.len(), configs.len(), "{paths:?}");
    for request in &requests {
        verify_signature(SECRET, request).unwrap_or_else(|error| panic!("{}: {error}", request.path));
        let text = String::from_utf8_lossy(&request.body);
        assert!(text.contains("日本") && text.contains("Ångström"), "{}: {text}", request.path);
        assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
        assert_eq!(request.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn a_secret_that_was_not_given_is_made_of_32_random_bytes_and_shown_nowhere() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let admin = database.connect_as(&database.role("admin").await).await;
    let mut config = generic(&receiver.url("/hook"));
    config["subscribedEvents"] = json!(["USER_CREATED"]);
    let webhook: Uuid = admin.one("select orbhook_create_webhook($1)", &[&config]).await;
    let other: Uuid = admin.one("select orbhook_create_webhook($1)", &[&config]).await;
    let secret_of = async |webhook: Uuid| -> String {
        let select = "select value from orbhook.webhook_secrets where webhook_id = $1 and name = 'signing'";
        database.one(select, &[&webhook]).await
    };
    let (secret, other) = (secret_of(webhook).await, secret_of(other).await);
    assert_eq!((key_of(&secret).len(), key_of(&other).len()), (32, 32));
    assert_ne!(secret, other);

    let sidecar = SidecarProcess::start(&database, &["--log-level", "debug"]).await;
    receiver.answer("/hook", Answer::status(500).body("no"));
    database.emit("USER_CREATED", json!({})).await;
    let requests = receiver.requests(2).await;
    assert!(
        requests.iter().any(|request| verify_signature(&secret, request).is_ok()),
        "it is the one that signs"
    );
    sidecar.logged("answered 500").await;

    // Whoever may read most, in everything that can be read; and what the programs say of themselves.
    let readable = admin
        .rows(
            "select format('select concat_ws('' '', %s) from %s as x', string_agg(format('to_jsonb(x.%I)', a.attname), ', '), c.oid::regclass)
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             where c.relnamespace = 'orbhook'::regnamespace and c.relkind in ('r', 'p', 'v')
               and has_column_privilege(c.oid, a.attnum, 'select')
             group by c.oid",
            &[],
        )
        .await;
    let mut all = sidecar.log();
    for query in readable.iter().map(|row| row.get::<_, String>(0)) {
        for row in admin.rows(&query, &[]).await {
            all.push_str(&row.get::<_, Option<String>>(0).unwrap_or_default());
        }
    }
    assert!(all.contains("answered 500") && all.contains(&webhook.to_string()), "{all}");
    all.push_str(&database.cluster().log());
    let encoded = secret.strip_prefix("whsec_").unwrap();
    assert!(!all.contains(encoded), "the secret can be read");
    let refusal = admin.refusal("select value from orbhook.webhook_secrets").await;
    assert_eq!(refusal.sqlstate, "42501");
}

#[tokio::test]
async fn a_secret_that_is_given_has_24_to_64_bytes() {
    let database = Database::new().await;
    for (bytes, is_taken) in [(0, false), (23, false), (24, true), (32, true), (64, true), (65, false)] {
        let secret = format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        let mut config = generic("http://127.0.0.1:9/hook");
        config["signingSecret"] = json!(secret);
        let call = format!("select orbhook_create_webhook('{config}')");
        if is_taken {
            let webhook: Uuid = database.one(&call, &[]).await;
            let select =
                "select value from orbhook.webhook_secrets where webhook_id = $1 and name = 'signing'";
            assert_eq!(database.one::<String>(select, &[&webhook]).await, secret);
        } else {
            let refusal = database.refusal(&call).await;
            assert_eq!(refusal.sqlstate, "22023", "{bytes} bytes: {refusal:?}");
            assert!(!format!("{refusal:?}").contains("BwcHBw"), "the secret is repeated: {refusal:?}");
        }
    }
}

/// A webhook with [`SECRET`].
async fn with_receiver() -> (Database, Receiver, Uuid) {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["signingSecret"] = json!(SECRET);
    let webhook = database.create_webhook(config).await;
    (database, receiver, webhook)
}

async fn next_request(database: &Database, receiver: &Receiver) -> Request {
    let seen = receiver.count();
    database.emit("USER_CREATED", json!({"name": "Zoë 🚀"})).await;
    receiver.requests(seen + 1).await.remove(seen)
}

async fn rotate(database: &Database, webhook: Uuid, overlap: &str) -> String {
    database.one(&format!("select orbhook_rotate_secret('{webhook}', '{overlap}')"), &[]).await
}

fn signatures(request: &Request) -> usize {
    request.header("webhook-signature").expect("it is signed").split(' ').count()
}

fn key_of(secret: &str) -> Vec<u8> {
    STANDARD.decode(secret.strip_prefix("whsec_").expect("it begins with whsec_")).expect("base64")
}
