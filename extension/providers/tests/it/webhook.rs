use std::collections::BTreeMap;

use orbhook_providers::Provider;
use orbhook_providers::webhook::{ConfigError, Current, MASK, Webhook, validate};
use proptest::prelude::*;
use serde_json::{Value, json};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn new(changes: &Value) -> Result<Webhook, ConfigError> {
    let mut config = json!({"name": "n", "providerType": "GENERIC", "endpoint": "https://x.example/h", "subscribedEvents": ["*"]});
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    validate(&config.to_string(), None)
}

fn stored(provider: Provider, target: Option<&str>, config: &Value, secret_names: &[&str]) -> Current {
    Current {
        provider,
        target: target.map(str::to_owned),
        endpoint_host: "services.leadconnectorhq.com".to_owned(),
        provider_config: config.to_string(),
        secret_names: secret_names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn update(current: &Current, changes: &Value) -> Result<Webhook, ConfigError> {
    validate(&changes.to_string(), Some(current))
}

fn secrets(webhook: &Webhook) -> BTreeMap<&str, Option<&str>> {
    webhook.secrets.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect()
}

#[track_caller]
fn refused(changes: Value, key: &str, fault: &str) {
    let error = new(&changes).unwrap_err();
    assert_eq!((error.key.as_str(), error.fault.as_str()), (key, fault), "{changes}");
}

#[test]
fn only_what_is_given_is_in_the_record() {
    let record = serde_json::to_value(new(&json!({})).unwrap()).unwrap();
    assert_eq!(
        record,
        json!({
            "name": "n", "provider_type": "GENERIC", "subscribed_events": ["*"], "endpoint_scheme": "https",
            "endpoint_host": "x.example", "target": null, "secrets": {"endpoint": "https://x.example/h"},
        })
    );
}

#[test]
fn every_key_reaches_the_record() {
    let record = new(&json!({
        "active": false, "maxRetries": 0, "retryDelay": [30, 120.5, 300], "rateLimit": 0.01, "timeoutSeconds": 30, "maxInFlight": 1000,
        "maxAgeSeconds": 1, "filter": "$.amount > 100", "headers": {"X-Team": "blue one"}, "signingSecret": SECRET,
        "providerSpecificConfig": {}, "endpoint": "http://127.0.0.1:8080/a?b=c",
    }));
    assert_eq!(
        serde_json::to_value(record.unwrap()).unwrap(),
        json!({
            "name": "n", "provider_type": "GENERIC", "active": false, "subscribed_events": ["*"], "provider_config": {}, "max_retries": 0,
            "retry_delay": [30, 120.5, 300], "rate_limit_per_second": 0.01, "timeout_seconds": 30, "max_in_flight": 1000,
            "max_age_seconds": 1, "filter": "$.amount > 100", "endpoint_scheme": "http", "endpoint_host": "127.0.0.1:8080", "target": null,
            "secrets": {"endpoint": "http://127.0.0.1:8080/a?b=c", "header.X-Team": "blue one", "signing": SECRET},
        })
    );
    let without = serde_json::to_value(
        new(&json!({"rateLimit": null, "maxAgeSeconds": null, "filter": null})).unwrap(),
    )
    .unwrap();
    assert!(
        ["rate_limit_per_second", "max_age_seconds", "filter"]
            .iter()
            .all(|key| without.get(key).is_some_and(Value::is_null))
    );
}

#[test]
fn a_missing_or_unknown_key_is_named() {
    for key in ["name", "providerType", "endpoint", "subscribedEvents"] {
        let mut config = json!({"name": "n", "providerType": "SLACK", "endpoint": "https://x.example", "subscribedEvents": ["*"]});
        config.as_object_mut().unwrap().remove(key);
        let error = validate(&config.to_string(), None).unwrap_err();
        assert_eq!(error.to_string(), format!("{key} is missing"));
    }
    for (key, hint) in [
        ("max_retries", "did you mean maxRetries?"),
        ("retrydelay", "did you mean retryDelay?"),
        ("endpiont", "did you mean endpoint?"),
    ] {
        let error = new(&json!({key: 1})).unwrap_err();
        assert_eq!(
            (error.to_string(), error.hint.unwrap()),
            (format!("{key} is not a known key"), hint.to_owned())
        );
    }
    assert!(new(&json!({"zzz": 1})).unwrap_err().hint.unwrap().starts_with("the keys are name, "));
    let slack = json!({"providerType": "SLACK", "providerSpecificConfig": {"chanel": "#x"}});
    let error = new(&slack).unwrap_err();
    assert_eq!(
        (error.key.as_str(), error.hint.as_deref()),
        ("providerSpecificConfig.chanel", Some("did you mean channel?"))
    );
    assert!(validate("[]", None).unwrap_err().to_string().contains("is not a JSON object"));
}

#[test]
fn values_out_of_range_or_of_the_wrong_type_are_refused() {
    refused(json!({"name": ""}), "name", "is empty");
    refused(json!({"name": "a\nb"}), "name", "contains a control character");
    refused(json!({"name": "x".repeat(201)}), "name", "is longer than 200 characters");
    refused(json!({"providerType": "TEAMS"}), "providerType", "is not a provider");
    refused(json!({"active": "yes"}), "active", "is neither true nor false");
    refused(json!({"maxRetries": 101}), "maxRetries", "is not between 0 and 100");
    refused(json!({"maxRetries": -1}), "maxRetries", "is not between 0 and 100");
    refused(json!({"maxRetries": 1.5}), "maxRetries", "is not a whole number");
    refused(json!({"maxRetries": "3"}), "maxRetries", "is not a number");
    refused(json!({"retryDelay": -1}), "retryDelay", "is negative");
    refused(json!({"retryDelay": 604_801}), "retryDelay", "is longer than 604800 seconds (a week)");
    refused(json!({"retryDelay": []}), "retryDelay", "is an empty array");
    refused(json!({"retryDelay": vec![1; 21]}), "retryDelay", "has more than 20 delays");
    refused(json!({"retryDelay": [1, -2]}), "retryDelay[1]", "is negative");
    refused(json!({"retryDelay": [1, "2"]}), "retryDelay[1]", "is not a number");
    refused(json!({"retryDelay": "60"}), "retryDelay", "is neither a number nor an array of numbers");
    refused(json!({"rateLimit": 0}), "rateLimit", "is not between 0.01 and 10000");
    refused(json!({"rateLimit": -3}), "rateLimit", "is not between 0.01 and 10000");
    refused(json!({"rateLimit": 10_001}), "rateLimit", "is not between 0.01 and 10000");
    refused(json!({"rateLimit": "10"}), "rateLimit", "is not a number");
    refused(json!({"timeoutSeconds": 0}), "timeoutSeconds", "is not between 1 and 30");
    refused(json!({"timeoutSeconds": 31}), "timeoutSeconds", "is not between 1 and 30");
    refused(json!({"maxInFlight": 0}), "maxInFlight", "is not between 1 and 1000");
    refused(json!({"maxAgeSeconds": 0}), "maxAgeSeconds", "is not between 1 and 315360000");
    refused(json!({"filter": 5}), "filter", "is not a text");
    refused(json!({"providerSpecificConfig": []}), "providerSpecificConfig", "is not an object");
    refused(json!({"signingSecret": "whsec_c2hvcnQ="}), "signingSecret", "is not a signing secret");
    refused(json!({"signingSecret": &SECRET[6..]}), "signingSecret", "is not a signing secret");
    for huge in ["1e999", "-1e999"] {
        for key in ["maxRetries", "retryDelay", "rateLimit"] {
            let config = format!(r#"{{"{key}": {huge}}}"#);
            assert!(
                validate(&config, Some(&stored(Provider::Generic, None, &json!({}), &[]))).is_err(),
                "{config}"
            );
        }
    }
}

#[test]
fn provider_types_are_read_in_any_case_and_the_last_of_two_keys_counts() {
    assert_eq!(new(&json!({"providerType": "Slack"})).unwrap().provider_type, Some(Provider::Slack));
    let twice = r#"{"name": "a", "name": "b", "providerType": "zapier", "endpoint": "https://x.example", "subscribedEvents": ["*"]}"#;
    assert_eq!(validate(twice, None).unwrap().name.as_deref(), Some("b"));
}

#[test]
fn subscriptions_are_names_and_patterns() {
    let events = json!([
        "USER_CREATED",
        "SECURITY_2FA_ENABLED",
        "USER_*",
        "SECURITY_2FA_*",
        "*",
        "ORDER",
        "USER_CREATED"
    ]);
    let read = new(&json!({"subscribedEvents": events})).unwrap().subscribed_events.unwrap();
    assert_eq!(read, ["USER_CREATED", "SECURITY_2FA_ENABLED", "USER_*", "SECURITY_2FA_*", "*", "ORDER"]);
    for name in [
        "",
        "user_created",
        "USER",
        "USER*",
        "_USER",
        "USER_",
        "USER__X",
        "*_X",
        "2FA",
        "USER_é",
        "U_**",
        &"A".repeat(65),
    ] {
        let result = new(&json!({"subscribedEvents": ["A", name]}));
        match name {
            "USER" => assert!(result.is_ok()),
            _ => assert_eq!(result.unwrap_err().key, "subscribedEvents[1]", "{name}"),
        }
    }
    let hint = new(&json!({"subscribedEvents": ["user_created"]})).unwrap_err().hint.unwrap();
    assert_eq!(hint, "names are upper case: USER_CREATED");
    refused(json!({"subscribedEvents": []}), "subscribedEvents", "is empty");
    refused(json!({"subscribedEvents": "*"}), "subscribedEvents", "is not an array");
    refused(json!({"subscribedEvents": [5]}), "subscribedEvents[0]", "is not a text");
}

#[test]
fn endpoints_are_whole_web_addresses_and_never_quoted() {
    for (endpoint, fault) in [
        ("hooks.example/SECRET", "is not a URL"),
        ("ftp://hooks.example/SECRET", "is not an http or https URL"),
        ("https://", "is not a URL"),
        ("https://u:SECRET@x.example/", "contains a user name or password"),
        ("https://x.example/a#SECRET", "has a fragment"),
        ("https://x.example/a SECRET", "contains a space"),
        ("https://x.example/\tSECRET", "contains a control character"),
        ("https://x.example:0/SECRET", "has port 0"),
        ("https://x.example/SECRET/********", "contains the mask of a secret"),
        ("********", "is the mask of a secret, and none is stored"),
    ] {
        let error = new(&json!({"endpoint": endpoint})).unwrap_err();
        assert_eq!((error.key.as_str(), error.fault.as_str()), ("endpoint", fault), "{endpoint}");
        assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    }
    refused(
        json!({"endpoint": format!("https://x.example/{}", "x".repeat(2_048))}),
        "endpoint",
        "is longer than 2048 characters",
    );
    refused(json!({"endpoint": null}), "endpoint", "is not a text");
    for (endpoint, host) in [
        ("https://HOOKS.Example:443/x", "hooks.example"),
        ("http://[::1]:81/x", "[::1]:81"),
        ("https://bücher.example", "xn--bcher-kva.example"),
    ] {
        assert_eq!(new(&json!({"endpoint": endpoint})).unwrap().endpoint_host.unwrap(), host);
    }
}

#[test]
fn slacks_configuration_is_texts() {
    let slack =
        |config: Value| new(&json!({"providerType": "SLACK", "providerSpecificConfig": config})).map(|_| ());
    let fault = |config: Value| slack(config).unwrap_err().to_string();
    assert_eq!(
        slack(
            json!({"channel": "#x", "username": "b", "icon_emoji": ":a:", "icon_url": "https://x.example/i.png"})
        ),
        Ok(())
    );
    assert_eq!(fault(json!({"channel": 5})), "providerSpecificConfig.channel is not a text");
    assert_eq!(fault(json!({"channel": ""})), "providerSpecificConfig.channel is empty");
    assert_eq!(
        fault(json!({"icon_emoji": "shield"})),
        "providerSpecificConfig.icon_emoji is not the name of an emoji"
    );
    assert_eq!(
        fault(json!({"icon_url": "ftp://x.example"})),
        "providerSpecificConfig.icon_url is not an http or https URL"
    );
    assert_eq!(fault(json!({"apiKey": "x"})), "providerSpecificConfig.apiKey is not a known key");
}

#[test]
fn the_endpoint_or_the_configuration_decides_highlevels_target() {
    let full = json!({"locationId": "l", "apiKey": "k", "source": "s"});
    for (endpoint, configured, target, url) in [
        ("https://services.leadconnectorhq.com/hooks/l/webhook-trigger/1", None, "inbound", None),
        ("https://services.leadconnectorhq.com/contacts/upsert", None, "api", None),
        (
            "https://SERVICES.leadconnectorhq.com",
            None,
            "api",
            Some("https://services.leadconnectorhq.com/contacts/upsert"),
        ),
        (
            "https://services.leadconnectorhq.com/contacts/",
            None,
            "api",
            Some("https://services.leadconnectorhq.com/contacts/upsert"),
        ),
        ("https://rest.gohighlevel.com/v1/contacts/", None, "api", None),
        ("https://x.example/hook", None, "inbound", None),
        ("http://127.0.0.1:9/", Some("api"), "api", Some("http://127.0.0.1:9/contacts/upsert")),
        ("http://127.0.0.1:9/stub", Some("API"), "api", None),
        ("https://services.leadconnectorhq.com/contacts/upsert", Some("inbound"), "inbound", None),
    ] {
        let mut config = full.clone();
        if let Some(configured) = configured {
            config["target"] = configured.into();
        }
        let webhook = new(
            &json!({"providerType": "GOHIGHLEVEL", "endpoint": endpoint, "providerSpecificConfig": config}),
        )
        .unwrap();
        assert_eq!(webhook.target, Some(Some(target.to_owned())), "{endpoint}");
        assert_eq!(webhook.secrets["endpoint"].as_deref().unwrap(), url.unwrap_or(endpoint));
        assert_eq!(webhook.secrets["apiKey"].as_deref(), Some("k"));
    }
}

#[test]
fn highlevels_api_needs_a_location_and_a_key() {
    let api = |config: Value| {
        let config = json!({
            "providerType": "GOHIGHLEVEL", "endpoint": "https://services.leadconnectorhq.com/", "providerSpecificConfig": config,
        });
        new(&config).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(api(json!({"apiKey": "k"})).unwrap_err(), "providerSpecificConfig.locationId is missing");
    assert_eq!(api(json!({"locationId": "l"})).unwrap_err(), "providerSpecificConfig.apiKey is missing");
    assert_eq!(
        api(json!({"locationId": "l", "apiKey": "a b"})).unwrap_err(),
        "providerSpecificConfig.apiKey contains a space or a character that no header can carry"
    );
    assert_eq!(
        api(json!({"locationId": "l", "apiKey": "k", "target": "x"})).unwrap_err(),
        "providerSpecificConfig.target is not a target"
    );
    assert_eq!(
        api(json!({"locationId": "l", "apiKey": "k", "customFieldIds": {"a": 1}})).unwrap_err(),
        "providerSpecificConfig.customFieldIds.a is not a text of 1 to 200 characters"
    );
    assert_eq!(api(json!({"locationId": "l", "apiKey": "k", "customFieldIds": {"user_id": "f"}})), Ok(()));
    let missing =
        new(&json!({"providerType": "GOHIGHLEVEL", "endpoint": "https://services.leadconnectorhq.com/"}))
            .unwrap_err();
    assert_eq!(missing.key, "providerSpecificConfig.locationId");
}

#[test]
fn reserved_and_malformed_headers_are_refused() {
    for name in [
        "Host",
        "CONTENT-LENGTH",
        "content-type",
        "Transfer-Encoding",
        "connection",
        "TE",
        "trailer",
        "Upgrade",
        "expect",
        "User-Agent",
        "webhook-id",
        "Webhook-Signature",
        "webhook-x",
    ] {
        refused(json!({"headers": {name: "v"}}), &format!("headers.{name}"), "is a reserved header");
    }
    for name in ["", "a b", "a:b", "é", "a\u{7f}", &"x".repeat(101)] {
        let error = new(&json!({"headers": {name: "v"}})).unwrap_err();
        assert_eq!(error.fault, "is not a header name", "{name}");
    }
    for (value, fault) in [
        (json!("SECRET\r\nX: y"), "contains a control character or a character outside ASCII"),
        (json!("SECRETé"), "contains a control character or a character outside ASCII"),
        (json!(" SECRET"), "is empty or begins or ends with a space"),
        (json!(5), "is not a text"),
        (json!("x".repeat(4_097)), "is longer than 4096 bytes"),
    ] {
        let error = new(&json!({"headers": {"X-A": value}})).unwrap_err();
        assert_eq!((error.key.as_str(), error.fault.as_str()), ("headers.X-A", fault));
        assert!(!format!("{error:?}").contains("SECRET"));
    }
    refused(
        json!({"headers": {"X-A": "1", "x-a": "2"}}),
        "headers.x-a",
        "is given twice; names are the same in any case",
    );
    let many: Value =
        (0..21).map(|index| (format!("X-{index}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
    refused(json!({"headers": many}), "headers", "has more than 20 entries");
    assert!(new(&json!({"headers": {"Authorization": "Bearer x"}})).is_ok());
    refused(
        json!({"providerType": "ZAPIER", "headers": {"x-api-key": "v"}}),
        "headers.x-api-key",
        "is a reserved header",
    );
    let api = json!({
        "providerType": "GOHIGHLEVEL", "endpoint": "https://services.leadconnectorhq.com/",
        "providerSpecificConfig": {"locationId": "l", "apiKey": "k"}, "headers": {"Authorization": "x"},
    });
    refused(api, "headers.Authorization", "is a reserved header");
}

#[test]
fn an_update_takes_any_subset() {
    let current = stored(Provider::Slack, None, &json!({}), &["endpoint"]);
    assert_eq!(serde_json::to_value(update(&current, &json!({})).unwrap()).unwrap(), json!({"secrets": {}}));
    let renamed = update(&current, &json!({"name": "b", "maxRetries": 5})).unwrap();
    assert_eq!(serde_json::to_value(renamed).unwrap(), json!({"name": "b", "max_retries": 5, "secrets": {}}));
    assert_eq!(update(&current, &json!({"name": null})).unwrap_err().to_string(), "name is not a text");
}

#[test]
fn a_masked_secret_stays_and_null_removes_one() {
    let current = stored(
        Provider::Zapier,
        None,
        &json!({}),
        &["endpoint", "signing", "api_key", "header.X-Keep", "header.X-Drop", "header.X-Case"],
    );
    let webhook = update(
        &current,
        &json!({
            "endpoint": MASK, "signingSecret": MASK, "providerSpecificConfig": {"api_key": MASK, "source": "s"},
            "headers": {"X-Keep": MASK, "X-New": "n", "x-case": "c"},
        }),
    )
    .unwrap();
    let expected = BTreeMap::from([
        ("header.X-Drop", None),
        ("header.X-Case", None),
        ("header.X-New", Some("n")),
        ("header.x-case", Some("c")),
    ]);
    assert_eq!(secrets(&webhook), expected);
    assert_eq!(serde_json::to_value(&webhook.provider_config).unwrap(), json!({"source": "s"}));

    let removed =
        update(&current, &json!({"providerSpecificConfig": {"api_key": null}, "headers": {}})).unwrap();
    assert!(
        ["api_key", "header.X-Keep", "header.X-Drop", "header.X-Case"]
            .iter()
            .all(|name| removed.secrets[*name].is_none())
    );

    let bare = stored(Provider::Zapier, None, &json!({}), &["endpoint"]);
    for changes in [
        json!({"signingSecret": MASK}),
        json!({"providerSpecificConfig": {"api_key": MASK}}),
        json!({"headers": {"X-A": MASK}}),
    ] {
        assert!(
            update(&bare, &changes).unwrap_err().fault.starts_with("is the mask of a secret"),
            "{changes}"
        );
    }
}

#[test]
fn an_endpoint_as_the_view_shows_it_stays() {
    let current =
        stored(Provider::GoHighLevel, Some("api"), &json!({"locationId": "l"}), &["endpoint", "apiKey"]);
    let shown = json!({
        "name": "n", "providerType": "GOHIGHLEVEL", "endpoint": "https://services.leadconnectorhq.com/********",
        "subscribedEvents": ["*"], "providerSpecificConfig": {"locationId": "l", "apiKey": MASK}, "rateLimit": 10,
    });
    let webhook = update(&current, &shown).unwrap();
    assert!(secrets(&webhook).is_empty());
    assert_eq!((webhook.endpoint_host, webhook.target), (None, Some(Some("api".to_owned()))));
    let elsewhere = update(&current, &json!({"endpoint": "https://x.example/********"})).unwrap_err();
    assert_eq!(elsewhere.to_string(), "endpoint contains the mask of a secret");
}

#[test]
fn another_provider_needs_its_own_endpoint_and_loses_the_old_key() {
    let current =
        stored(Provider::GoHighLevel, Some("inbound"), &json!({"locationId": "l"}), &["endpoint", "apiKey"]);
    let alone = update(&current, &json!({"providerType": "ZAPIER"})).unwrap_err();
    assert_eq!(alone.to_string(), "endpoint is missing");
    let unfit =
        update(&current, &json!({"providerType": "ZAPIER", "endpoint": "https://z.example"})).unwrap_err();
    assert_eq!(unfit.to_string(), "providerSpecificConfig is missing");
    let whole = json!({"providerType": "ZAPIER", "endpoint": "https://z.example/", "providerSpecificConfig": {"api_key": "k"}});
    let webhook = update(&current, &whole).unwrap();
    assert_eq!(webhook.target, Some(None));
    let expected =
        BTreeMap::from([("apiKey", None), ("api_key", Some("k")), ("endpoint", Some("https://z.example/"))]);
    assert_eq!(secrets(&webhook), expected);
}

#[test]
fn a_change_of_highlevels_target_needs_the_endpoint_again() {
    let api =
        stored(Provider::GoHighLevel, Some("api"), &json!({"locationId": "l"}), &["endpoint", "apiKey"]);
    let kept = update(&api, &json!({"providerSpecificConfig": {"locationId": "m"}})).unwrap();
    assert_eq!(kept.target, Some(Some("api".to_owned())));
    assert_eq!(
        update(&api, &json!({"providerSpecificConfig": {}})).unwrap_err().key,
        "providerSpecificConfig.locationId"
    );
    assert_eq!(
        update(&api, &json!({"providerSpecificConfig": {"locationId": "m", "apiKey": null}}))
            .unwrap_err()
            .key,
        "providerSpecificConfig.apiKey"
    );
    let turned = update(&api, &json!({"providerSpecificConfig": {"locationId": "m", "target": "inbound"}}))
        .unwrap_err();
    assert_eq!(turned.to_string(), "endpoint is missing");
    let forced = stored(Provider::GoHighLevel, Some("inbound"), &json!({"target": "inbound"}), &["endpoint"]);
    assert_eq!(
        update(&forced, &json!({"providerSpecificConfig": {}})).unwrap_err().to_string(),
        "endpoint is missing"
    );
    let moved =
        update(&api, &json!({"endpoint": "https://services.leadconnectorhq.com/hooks/l/webhook-trigger/1"}))
            .unwrap();
    assert_eq!(moved.target, Some(Some("inbound".to_owned())));
    let with_header = stored(
        Provider::GoHighLevel,
        Some("inbound"),
        &json!({"locationId": "l"}),
        &["apiKey", "header.Authorization"],
    );
    let clash =
        update(&with_header, &json!({"endpoint": "https://services.leadconnectorhq.com/"})).unwrap_err();
    assert_eq!(clash.to_string(), "headers.Authorization is a reserved header");
}

#[test]
fn debug_output_names_secrets_without_showing_them() {
    let webhook = new(&json!({"signingSecret": SECRET, "headers": {"X-A": "hidden"}, "endpoint": "https://x.example/hidden"})).unwrap();
    let shown = format!("{webhook:?}");
    assert!(shown.contains("header.X-A") && !shown.contains("hidden") && !shown.contains(SECRET), "{shown}");
}

proptest! {
    #[test]
    fn an_accepted_header_is_a_token_with_a_printable_value(name in "[ -~]{1,12}|\\PC{1,6}|[A-Za-z-]{1,20}", value in "[ -~]{1,12}|(?s:.){1,6}") {
        let accepted = new(&json!({"headers": {&name: &value}})).is_ok();
        let is_token = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte));
        let is_printable = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim() == value && value != MASK;
        let is_reserved = name.to_lowercase().starts_with("webhook-")
            || ["te", "host", "expect", "trailer", "upgrade", "connection"].contains(&name.to_lowercase().as_str());
        prop_assert_eq!(accepted, is_token && is_printable && !is_reserved);
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "(?s:.){0,80}|[{}\\[\\]\":,a-z0-9 ]{0,80}") {
        let _ = validate(&text, None);
        let _ = validate(&text, Some(&stored(Provider::GoHighLevel, None, &json!({}), &[])));
    }
}
