use orbhook_providers::{Event, Header, Provider, Request, Settings, Unrenderable, render, webhook};
use serde_json::{Value, json};

use crate::samples::{EVENT_ID, Kind, assert_superset, event};

const USER_CREATED: &str = include_str!("../goldens/user_created.json");

fn body(kind: Kind, event: &Event<'_>) -> Value {
    serde_json::from_str(&kind.render(event).unwrap().body).unwrap()
}

#[test]
fn the_slack_message_begins_as_the_document_prints_it_and_goes_on_with_the_reseller() {
    let body = body(Kind::Slack, &event("USER_CREATED", USER_CREATED));
    let expected: Vec<&str> = include_str!("../goldens/user_created.slack.txt").lines().collect();
    let text: Vec<&str> = body["text"].as_str().unwrap().lines().collect();
    assert_eq!(text[..expected.len()], expected);
    let reseller = [
        "",
        "🤝 *Reseller Information*",
        "-------------------",
        "• Reseller ID: 1",
        "• Level: OWNER",
        "• Discount: 100.0%",
        "• Credit: 600.0",
    ];
    assert_eq!(text[expected.len()..], reseller);

    let blocks: Vec<&str> = body["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["text"]["text"].as_str().unwrap())
        .collect();
    assert_eq!(blocks.join("\n\n"), body["text"].as_str().unwrap());
    assert_eq!(blocks[0], "🔔 *USER_CREATED*\nTime: Nov 03, 2024 15:27:47");
    assert_eq!(body["blocks"][0]["type"], "section");
    assert_eq!(body["blocks"][0]["text"]["type"], "mrkdwn");
}

#[test]
fn slack_gets_channel_username_and_one_icon() {
    let given = |config: &str| -> Value {
        let settings = Settings { config, target: None, secret_names: &[] };
        serde_json::from_str(&render(Provider::Slack, &event("USER_CREATED", "{}"), &settings).unwrap().body)
            .unwrap()
    };
    let both = given(include_str!("../goldens/provider_config_slack.json"));
    assert_superset(
        &both,
        &json!({"channel": "#notifications", "username": "OrbVPN Bot", "icon_emoji": ":robot_face:"}),
        "body",
    );
    assert!(both.get("icon_url").is_none());
    assert_eq!(given(r#"{"icon_url": "https://x.example/i.png"}"#)["icon_url"], "https://x.example/i.png");
    let none = given(r#"{"channel": 5, "unknown": true}"#);
    assert!(
        ["channel", "username", "icon_emoji", "icon_url", "unknown"]
            .iter()
            .all(|key| none.get(key).is_none())
    );
}

#[test]
fn the_inbound_body_is_the_documents() {
    let expected: Value =
        serde_json::from_str(include_str!("../goldens/user_created.gohighlevel.json")).unwrap();
    assert_superset(&body(Kind::Inbound, &event("USER_CREATED", USER_CREATED)), &expected, "body");
}

#[test]
fn the_zapier_body_is_the_documents() {
    let expected: Value = serde_json::from_str(include_str!("../goldens/user_created.zapier.json")).unwrap();
    let body = body(Kind::Zapier, &event("USER_CREATED", USER_CREATED));
    assert_superset(&body, &expected, "body");
    assert_superset(&body, &json!({"id": EVENT_ID, "source": "OrbVPN", "version": "1.0"}), "body");
}

#[test]
fn the_upsert_request_is_the_one_the_api_takes() {
    let request = Kind::Api.render(&event("USER_CREATED", USER_CREATED)).unwrap();
    let expected = json!({
        "locationId": "your-location-id",
        "firstName": "John",
        "lastName": "Doe",
        "email": "user@example.com",
        "phone": "+1234567890",
        "country": "US",
        "source": "OrbVPN",
        "customFields": [
            {"key": "user_id", "field_value": "63396"},
            {"key": "subscription_group", "field_value": "3 Month"},
            {"key": "subscription_status", "field_value": "ACTIVE"},
            {"key": "subscription_expiresAt", "field_value": "2025-02-01T15:27:22.887568"},
        ],
    });
    assert_eq!(serde_json::from_str::<Value>(&request.body).unwrap(), expected);
    let header = |name: &str, prefix: &str, secret: Option<&str>| Header {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        secret: secret.map(str::to_owned),
    };
    assert_eq!(
        request.headers,
        [
            header("Content-Type", "application/json", None),
            header("Accept", "application/json", None),
            header("Version", "2021-07-28", None),
            header("Authorization", "Bearer ", Some("apiKey")),
        ]
    );
}

#[test]
fn the_target_decides_between_the_two_bodies_of_gohighlevel() {
    let is_flat = |config: &str, target: Option<&str>| -> bool {
        let settings = Settings { config, target, secret_names: &[] };
        let body =
            render(Provider::GoHighLevel, &event("USER_CREATED", USER_CREATED), &settings).unwrap().body;
        serde_json::from_str::<Value>(&body).unwrap().get("contact").is_none()
    };
    assert!(!is_flat("{}", None));
    assert!(is_flat(r#"{"target": "api"}"#, None));
    assert!(is_flat(r#"{"target": "inbound"}"#, Some("api")));
    assert!(!is_flat(r#"{"target": "api"}"#, Some("inbound")));
}

#[test]
fn nobody_to_contact_cancels_an_upsert_and_empties_an_inbound_contact() {
    for payload in
        [r#"{"userId": 5}"#, r#"{"email": "", "profile": {"phone": " "}}"#, r#"{"email": ["a@b.c"]}"#]
    {
        assert_eq!(
            Kind::Api.render(&event("USER_CREATED", payload)),
            Err(Unrenderable::NoContactIdentity),
            "{payload}"
        );
        assert_eq!(body(Kind::Inbound, &event("USER_CREATED", payload))["contact"], json!({}), "{payload}");
    }
    let unusable = r#"{"email": "not an address", "profile": {"phone": "555-0100"}}"#;
    assert_eq!(Kind::Api.render(&event("USER_CREATED", unusable)), Err(Unrenderable::NoContactIdentity));
    let by_phone = body(Kind::Api, &event("USER_CREATED", r#"{"profile": {"phone": "+49 (30) 123-4567"}}"#));
    assert_eq!(by_phone["phone"], "+49301234567");
    assert_eq!(Unrenderable::NoContactIdentity.to_string(), "no contact identity");
}

#[test]
fn a_reseller_event_is_about_the_reseller() {
    let payload = r#"{"email": "owner@x.org", "reseller": {"name": "Shop", "email": "shop@x.org", "phone": "+4930123456"}}"#;
    assert_eq!(body(Kind::Inbound, &event("RESELLER_UPDATED", payload))["contact"]["email"], "shop@x.org");
    assert_eq!(body(Kind::Api, &event("RESELLER_UPDATED", payload))["name"], "Shop");
    assert_eq!(body(Kind::Inbound, &event("USER_LOGIN", payload))["contact"]["email"], "owner@x.org");
    let unreachable = r#"{"email": "owner@x.org", "reseller": {"name": "Shop"}}"#;
    assert_eq!(
        body(Kind::Inbound, &event("RESELLER_UPDATED", unreachable))["contact"]["email"],
        "owner@x.org"
    );
}

#[test]
fn custom_fields_of_the_api_take_the_ids_of_the_location() {
    let config =
        r#"{"customFieldIds": {"user_id": "f1", "payment_amount": "f2", "subscription_group": "f3"}}"#;
    let settings = Settings { config, target: Some("api"), secret_names: &[] };
    let payload = r#"{"userId": 7, "email": "a@b.org", "amount": 9.90}"#;
    let body: Value = serde_json::from_str(
        &render(Provider::GoHighLevel, &event("PAYMENT_FAILED", payload), &settings).unwrap().body,
    )
    .unwrap();
    assert_eq!(
        body["customFields"],
        json!([
            {"id": "f1", "key": "user_id", "field_value": "7"},
            {"id": "f2", "key": "payment_amount", "field_value": "9.90"},
        ])
    );
}

#[test]
fn secrets_are_named_in_headers_and_never_in_bodies() {
    let secret = |request: &Request, name: &str| {
        request
            .headers
            .iter()
            .find(|header| header.name == name)
            .map(|header| (header.prefix.clone(), header.secret.clone().unwrap()))
    };
    let zapier = Kind::Zapier.render(&event("USER_CREATED", USER_CREATED)).unwrap();
    assert_eq!(secret(&zapier, "X-API-Key").unwrap(), (String::new(), "api_key".to_owned()));
    assert!(zapier.headers.iter().any(|header| header.name == "X-Recurse-Parse" && header.prefix == "false"));
    let settings = Settings {
        config: r#"{"api_key": "k-123", "apiKey": "k-123"}"#,
        target: None,
        secret_names: &["header.X-Team", "endpoint"],
    };
    for provider in Provider::ALL {
        let request = render(provider, &event("USER_CREATED", USER_CREATED), &settings).unwrap();
        assert!(!request.body.contains("k-123"));
        assert_eq!(secret(&request, "X-Team").unwrap(), (String::new(), "header.X-Team".to_owned()));
        assert_eq!(request.headers[0].prefix, "application/json");
    }
    let without_key = render(Provider::Zapier, &event("USER_CREATED", "{}"), &settings).unwrap();
    assert!(secret(&without_key, "X-API-Key").is_none());
}

#[test]
fn a_header_serialises_as_the_sidecar_reads_it() {
    let request = Kind::Zapier.render(&event("USER_CREATED", "{}")).unwrap();
    let headers = serde_json::to_value(&request.headers).unwrap();
    assert_eq!(headers[2], json!({"name": "X-API-Key", "prefix": "", "secret": "api_key"}));
    assert_eq!(headers[0], json!({"name": "Content-Type", "prefix": "application/json", "secret": null}));
}

#[test]
fn a_test_is_marked_in_every_body() {
    let test = Event { test: true, ..event("USER_CREATED", USER_CREATED) };
    let slack = body(Kind::Slack, &test);
    let first_line = "🧪 *TEST*: sent to try this webhook, nothing has happened\n🔔 *USER_CREATED*";
    assert!(slack["text"].as_str().unwrap().starts_with(first_line));
    assert!(slack["blocks"][0]["text"]["text"].as_str().unwrap().starts_with(first_line));
    assert_eq!(body(Kind::Inbound, &test)["test"], true);
    assert_eq!(body(Kind::Zapier, &test)["test"], true);
    assert_eq!(body(Kind::Api, &test)["source"], "OrbVPN (orbhook test)");
    for kind in Kind::ALL {
        let plain = kind.render(&event("USER_CREATED", USER_CREATED)).unwrap().body;
        assert!(
            !plain.contains("TEST") && !plain.contains("orbhook test") && !plain.contains(r#""test":true"#),
            "{kind:?}"
        );
    }
}

#[test]
fn the_time_is_the_producers_when_it_is_one_and_otherwise_the_events() {
    for (timestamp, occurred_at, shown) in [
        (r#""2023-05-06T07:08:09.123""#, "2023-05-06T07:08:09.123", "May 06, 2023 07:08:09"),
        (r#""2023-05-06T07:08:09+02:00""#, "2023-05-06T07:08:09+02:00", "May 06, 2023 05:08:09 UTC"),
        (r#""yesterday""#, "2024-11-03T15:27:47.002948Z", "Nov 03, 2024 15:27:47 UTC"),
        ("1730647667", "2024-11-03T15:27:47.002948Z", "Nov 03, 2024 15:27:47 UTC"),
        ("null", "2024-11-03T15:27:47.002948Z", "Nov 03, 2024 15:27:47 UTC"),
    ] {
        let payload = format!(r#"{{"timestamp": {timestamp}}}"#);
        let event = event("USER_LOGIN", &payload);
        assert_eq!(body(Kind::Zapier, &event)["occurred_at"], occurred_at, "{timestamp}");
        assert_eq!(body(Kind::Inbound, &event)["occurred_at"], occurred_at, "{timestamp}");
        assert_eq!(
            body(Kind::Slack, &event)["text"],
            format!("🔔 *USER_LOGIN*\nTime: {shown}"),
            "{timestamp}"
        );
    }
}

#[test]
fn computed_values_follow_the_payload() {
    let inbound = |event_type: &str, payload: &str| body(Kind::Inbound, &event(event_type, payload));
    for (event_type, subscription, status, days, tag) in [
        (
            "USER_LOGIN",
            r#"{"groupName": "x", "expiresAt": "2024-11-03T15:27:46Z"}"#,
            "INACTIVE",
            None,
            "Logged In",
        ),
        (
            "USER_CREATED",
            r#"{"groupName": "x", "expiresAt": "2024-11-17T15:27:46Z"}"#,
            "ACTIVE",
            Some("14"),
            "New User",
        ),
        (
            "SUBSCRIPTION_CANCELLED",
            r#"{"durationDays": 365}"#,
            "CANCELLED",
            Some("365"),
            "Subscription Cancelled",
        ),
        (
            "PAYMENT_FAILED",
            r#"{"isTrialPeriod": true, "startsAt": "2024-11-01", "expiresAt": "2024-11-08"}"#,
            "TRIAL",
            Some("7"),
            "Payment Failed",
        ),
        ("USER_DELETED", "null", "", None, "Deleted User"),
    ] {
        let payload = format!(r#"{{"email": "a@b.org", "subscription": {subscription}}}"#);
        let rendered = inbound(event_type, &payload);
        assert_eq!(rendered["customFields"]["subscription_status"], status, "{event_type}");
        assert_eq!(
            rendered["customFields"]["subscription_duration_days"],
            days.unwrap_or(""),
            "{event_type}"
        );
        assert_eq!(rendered["tags"], json!(["OrbVPN User", tag]), "{event_type}");
        assert_eq!(
            body(Kind::Zapier, &event(event_type, &payload))["subscription"]["duration_days"].as_str(),
            days,
            "{event_type}"
        );
    }
}

#[test]
fn the_documents_configurations_are_accepted_unchanged() {
    for text in [
        include_str!("../goldens/config_all_user_events.json"),
        include_str!("../goldens/config_my_webhook.json"),
    ] {
        let given: Value = serde_json::from_str(text).unwrap();
        let webhook = serde_json::to_value(webhook::validate(text, None).unwrap()).unwrap();
        for (key, stored) in [
            ("name", "name"),
            ("providerType", "provider_type"),
            ("active", "active"),
            ("subscribedEvents", "subscribed_events"),
            ("providerSpecificConfig", "provider_config"),
            ("maxRetries", "max_retries"),
            ("retryDelay", "retry_delay"),
        ] {
            assert_eq!(webhook[stored], given[key], "{key}");
        }
        assert_eq!(
            webhook["secrets"],
            json!({"endpoint": "https://hooks.slack.com/services/YOUR/WEBHOOK/URL"})
        );
        assert_eq!(webhook["endpoint_host"], "hooks.slack.com");
    }
}

#[test]
fn the_documents_provider_configurations_are_accepted_unchanged() {
    for (provider, text, secret) in [
        ("slack", include_str!("../goldens/provider_config_slack.json"), None),
        ("GoHighLevel", include_str!("../goldens/provider_config_gohighlevel.json"), Some("apiKey")),
        ("ZAPIER", include_str!("../goldens/provider_config_zapier.json"), Some("api_key")),
    ] {
        let mut given: Value = serde_json::from_str(text).unwrap();
        let config = json!({
            "name": "n", "providerType": provider, "endpoint": "https://x.example/h", "subscribedEvents": ["*", "USER_*"],
            "providerSpecificConfig": given,
        });
        let webhook = webhook::validate(&config.to_string(), None).unwrap();
        if let Some(secret) = secret {
            let value = given.as_object_mut().unwrap().remove(secret).unwrap();
            assert_eq!(webhook.secrets[secret].as_deref(), value.as_str());
        }
        assert_eq!(Value::from(webhook.provider_config.unwrap()), given);
    }
}
