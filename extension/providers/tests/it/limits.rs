use std::collections::BTreeSet;

use orbhook_providers::{Provider, Settings, Unrenderable, render};
use serde_json::Value;

use crate::samples::{Case, Kind, cases, event};

fn rendered(kind: Kind) -> impl Iterator<Item = (&'static Case, Value)> {
    cases().iter().filter_map(move |case| {
        let result = kind.render(&event(&case.event_type, &case.payload));
        match result {
            Ok(request) => {
                let body = serde_json::from_str(&request.body).unwrap();
                assert!(
                    request.body.len() < 2_000_000,
                    "{} {} {}",
                    kind.name(),
                    case.event_type,
                    case.variant
                );
                Some((case, body))
            }
            Err(Unrenderable::NoContactIdentity) if kind == Kind::Api => None,
            Err(reason) => panic!("{kind:?} {} {}: {reason}", case.event_type, case.variant),
        }
    })
}

fn utf16(text: &str) -> usize {
    text.encode_utf16().count()
}

#[test]
fn slack_messages_stay_within_slacks_limits() {
    let mut count = 0;
    for (case, body) in rendered(Kind::Slack) {
        let at = format!("{} {}", case.event_type, case.variant);
        let blocks = body["blocks"].as_array().unwrap();
        assert!((1..=50).contains(&blocks.len()), "{at}");
        let texts: Vec<&str> = blocks.iter().map(|block| block["text"]["text"].as_str().unwrap()).collect();
        assert!(texts.iter().all(|text| (1..=3_000).contains(&utf16(text))), "{at}");
        assert!(texts.iter().map(|text| utf16(text)).sum::<usize>() <= 12_000, "{at}");
        assert!(utf16(body["text"].as_str().unwrap()) <= 40_000, "{at}");
        count += 1;
    }
    assert_eq!(count, 43 * 7);
}

#[test]
fn slack_messages_hold_no_mention_no_link_and_no_faked_line() {
    for (case, body) in rendered(Kind::Slack) {
        let at = format!("{} {}", case.event_type, case.variant);
        let blocks =
            body["blocks"].as_array().unwrap().iter().map(|block| block["text"]["text"].as_str().unwrap());
        for text in blocks.chain([body["text"].as_str().unwrap()]) {
            assert!(!text.contains(['<', '>']), "{at}: {text}");
            let bare = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            assert!(!bare.contains('&'), "{at}: {text}");
            for line in text.lines() {
                let is_ours = line.is_empty()
                    || line == "-------------------"
                    || line.starts_with("• ")
                    || line.starts_with("Time: ")
                    || line.starts_with("… _The event")
                    || line.ends_with('*');
                assert!(is_ours, "{at}: {line}");
                assert!(!line.starts_with("• Role: ") && !line.starts_with("• Fake: "), "{at}: {line}");
                assert!(
                    !line.contains(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)),
                    "{at}: {line}"
                );
            }
        }
    }
}

#[test]
fn inbound_bodies_have_the_same_keys_in_every_event() {
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let empty: Value =
        serde_json::from_str(&Kind::Inbound.render(&event("USER_LOGIN", "{}")).unwrap().body).unwrap();
    for (case, body) in rendered(Kind::Inbound) {
        let at = format!("{} {}", case.event_type, case.variant);
        assert_eq!(keys(&body), keys(&empty), "{at}");
        assert!(keys(&body["customFields"]).is_superset(&keys(&empty["customFields"])), "{at}");
        assert!(body["customFields"].as_object().unwrap().values().all(Value::is_string), "{at}");
        assert!([0, 11].contains(&keys(&body["contact"]).len()), "{at}");
        assert!(body["contact"].as_object().unwrap().values().all(Value::is_string), "{at}");
        assert_eq!(body["tags"].as_array().unwrap().len(), 2, "{at}");
        assert!(keys(&body["customFields"]).iter().all(|key| !key.contains(' ')), "{at}");
    }
}

/// `UpsertContactDto` in the OpenAPI description of API 2.0.
const UPSERT_KEYS: &[&str] = &[
    "firstName",
    "lastName",
    "name",
    "email",
    "phone",
    "address1",
    "city",
    "state",
    "postalCode",
    "website",
    "timezone",
    "dnd",
    "dndSettings",
    "inboundDndSettings",
    "tags",
    "customFields",
    "source",
    "dateOfBirth",
    "country",
    "companyName",
    "assignedTo",
    "gender",
    "locationId",
    "createNewIfDuplicateAllowed",
];

#[test]
fn upsert_bodies_hold_only_known_keys_and_nothing_empty() {
    let mut count = 0;
    for (case, body) in rendered(Kind::Api) {
        let at = format!("{} {}", case.event_type, case.variant);
        for (key, value) in body.as_object().unwrap() {
            assert!(UPSERT_KEYS.contains(&key.as_str()) && key != "tags", "{at} {key}");
            assert!(
                key == "customFields" || value.as_str().is_some_and(|text| !text.trim().is_empty()),
                "{at} {key}"
            );
        }
        assert_eq!(body["locationId"], "your-location-id", "{at}");
        assert!(body.get("email").or(body.get("phone")).is_some(), "{at}");
        for field in body.get("customFields").and_then(Value::as_array).into_iter().flatten() {
            assert!(
                field["key"].is_string()
                    && field["field_value"].as_str().is_some_and(|text| !text.is_empty()),
                "{at}"
            );
        }
        count += 1;
    }
    assert!(count > 60, "{count}");
}

#[test]
fn zapier_bodies_have_stable_keys_in_snake_case() {
    let empty: Value =
        serde_json::from_str(&Kind::Zapier.render(&event("USER_LOGIN", "{}")).unwrap().body).unwrap();
    for (case, body) in rendered(Kind::Zapier) {
        let at = format!("{} {}", case.event_type, case.variant);
        check_snake_case(&body, &at);
        for (key, value) in empty.as_object().unwrap() {
            let Some(part) = value.as_object() else {
                assert!(body.get(key).is_some(), "{at} {key}");
                continue;
            };
            assert!(part.keys().all(|inner| body[key].get(inner).is_some()), "{at} {key}");
        }
        assert_eq!(body.as_object().unwrap().len(), empty.as_object().unwrap().len(), "{at}");
        assert!(
            body["subscription"]["duration_days"].is_null()
                || body["subscription"]["duration_days"].is_string(),
            "{at}"
        );
    }
}

fn check_snake_case(value: &Value, at: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                assert!(!key.is_empty() && !key.contains("__") && *key == key.to_lowercase(), "{at}: {key}");
                assert!(
                    key.chars().all(|character| character.is_alphanumeric() || character == '_'),
                    "{at}: {key}"
                );
                check_snake_case(value, at);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check_snake_case(item, at)),
        _ => {}
    }
}

#[test]
fn zapier_numbers_keep_their_digits() {
    let payload = r#"{"userId": 12345678901234567890123, "amount": 10.50, "further": {"exactAmount": 0.1000000000000000000000001}}"#;
    let body = Kind::Zapier.render(&event("PAYMENT_FAILED", payload)).unwrap().body;
    for part in [
        r#""user_id":12345678901234567890123"#,
        r#""amount":10.50"#,
        r#""exact_amount":0.1000000000000000000000001"#,
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[test]
fn a_payload_that_cannot_be_read_gives_a_reason_and_never_a_panic() {
    let deep = |levels: usize| format!(r#"{{"a": {}1{}}}"#, "[".repeat(levels), "]".repeat(levels));
    for (payload, reason) in [
        (deep(101), "the payload is nested more than 100 levels deep"),
        (deep(50_000), "the payload is nested more than 100 levels deep"),
        ("[1]".to_owned(), "the payload is not a JSON object"),
        ("{\"a\"".to_owned(), "the payload is not valid JSON at line 1 column 4"),
    ] {
        for kind in Kind::ALL {
            let result = kind.render(&event("USER_CREATED", &payload));
            assert_eq!(result.unwrap_err(), Unrenderable::Payload(reason.to_owned()), "{kind:?}");
        }
    }
    let settings = Settings { config: "[]", target: None, secret_names: &[] };
    let reason = render(Provider::Slack, &event("USER_CREATED", "{}"), &settings).unwrap_err().to_string();
    assert_eq!(reason, "the webhook's providerSpecificConfig is not a JSON object; update the webhook");
}
