//! Payloads of all 43 types, and hostile versions of them.

use std::sync::LazyLock;

use orbhook_providers::{Event, Provider, Request, Settings, Unrenderable, render};
use serde_json::{Map, Value, json};

pub(crate) const EVENT_ID: &str = "0192f3a1-5b7e-7c3d-9a41-6f2b8d0c4e55";
pub(crate) const OCCURRED_AT: &str = "2024-11-03T15:27:47.002948Z";

/// The four kinds of body: GoHighLevel has two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Slack,
    Inbound,
    Api,
    Zapier,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Slack, Kind::Inbound, Kind::Api, Kind::Zapier];

    /// As the snapshots' directories are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Slack => "slack",
            Kind::Inbound => "gohighlevel",
            Kind::Api => "gohighlevel_api",
            Kind::Zapier => "zapier",
        }
    }

    pub(crate) fn render(self, event: &Event<'_>) -> Result<Request, Unrenderable> {
        let (provider, config, target, secrets): (_, _, _, &[&str]) = match self {
            Kind::Slack => {
                (Provider::Slack, include_str!("../goldens/provider_config_slack.json"), None, &[])
            }
            Kind::Inbound => (Provider::GoHighLevel, GOHIGHLEVEL, Some("inbound"), &["apiKey"]),
            Kind::Api => (Provider::GoHighLevel, GOHIGHLEVEL, Some("api"), &["apiKey"]),
            Kind::Zapier => (Provider::Zapier, ZAPIER, None, &["api_key"]),
        };
        render(provider, event, &Settings { config, target, secret_names: secrets })
    }
}

/// As stored: the document's configuration without its secret.
const GOHIGHLEVEL: &str = r#"{"locationId": "your-location-id", "source": "OrbVPN"}"#;
const ZAPIER: &str = r#"{"source": "OrbVPN", "version": "1.0"}"#;

pub(crate) fn event<'a>(event_type: &'a str, payload: &'a str) -> Event<'a> {
    Event { id: EVENT_ID, event_type, occurred_at: OCCURRED_AT, test: false, payload }
}

/// A realistic payload for each of the 43 types.
pub(crate) fn full_payloads() -> Map<String, Value> {
    serde_json::from_str(include_str!("../payloads.json")).unwrap()
}

pub(crate) struct Case {
    pub(crate) event_type: String,
    pub(crate) variant: &'static str,
    pub(crate) payload: String,
}

/// Every type with a full, an empty and several hostile payloads.
pub(crate) fn cases() -> &'static [Case] {
    static CASES: LazyLock<Vec<Case>> = LazyLock::new(build_cases);
    &CASES
}

fn build_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (event_type, full) in full_payloads() {
        let case = |variant, payload: Value| Case {
            event_type: event_type.clone(),
            variant,
            payload: payload.to_string(),
        };
        cases.push(case("empty", json!({})));
        cases.push(case("hostile_text", replace_leaves(&full, &mut hostile_texts())));
        cases.push(case("huge_text", replace_leaves(&full, &mut huge_texts())));
        cases.push(case("wrong_types", replace_leaves(&full, &mut wrong_types())));
        cases.push(case("wrong_parts", wrong_parts(&full)));
        cases.push(case("deep_and_many", deep_and_many(&full)));
        cases.push(case("full", full));
    }
    cases
}

pub(crate) const HOSTILE_TEXTS: &[&str] = &[
    "<!channel> <!here|x> <@U123|admin> <#C1> <http://evil.example|https://bank.example>",
    "a\n• Role: admin\r\n\n-------------------\u{2028}• Fake: yes\u{85}x\u{0}\u{1b}[31m",
    "محمد بن سلمان \u{202e}gpj.exe\u{2066}",
    "👨‍👩‍👧‍👦🇩🇪é😀 & < > &lt; &amp;amp; ``` *bold* _x_ ~y~",
    "{\"a\": [1, \"</script>\"]} \\ \" ' %0a $(id) ${jndi:x} '; DROP TABLE users; --",
    "",
    "   ",
    "infinity",
    "__proto__",
];

fn hostile_texts() -> impl FnMut() -> Value {
    let mut next = HOSTILE_TEXTS.iter().cycle();
    move || Value::from(*next.next().unwrap())
}

fn huge_texts() -> impl FnMut() -> Value {
    let mut count = 0_usize;
    move || {
        count += 1;
        let unit = HOSTILE_TEXTS[count % 5];
        Value::from(unit.repeat(30_000 / unit.len()))
    }
}

fn wrong_types() -> impl FnMut() -> Value {
    let digits: Value = serde_json::from_str(&"9".repeat(20_000)).unwrap();
    let tiny: Value = serde_json::from_str("1e-400").unwrap();
    let values = [
        json!([]),
        json!({}),
        json!(true),
        json!(null),
        digits,
        json!(["x", {"y": [null]}]),
        tiny,
        json!({"a": {"b": 1}}),
        json!(-0.5),
    ];
    let mut next = values.into_iter().cycle();
    move || next.next().unwrap()
}

fn replace_leaves(value: &Value, next: &mut dyn FnMut() -> Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), replace_leaves(value, next))).collect()
        }
        _ => next(),
    }
}

/// Every key at the top holds something of another kind.
fn wrong_parts(full: &Value) -> Value {
    let mut next = wrong_types();
    full.as_object().unwrap().keys().map(|key| (key.clone(), next())).collect()
}

/// Nested 100 levels deep in one key, 1,000 further keys, keys that are hostile themselves.
fn deep_and_many(full: &Value) -> Value {
    let mut value = full.clone();
    let map = value.as_object_mut().unwrap();
    let deep =
        (0..100).fold(
            json!("bottom"),
            |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({"x": inner}) },
        );
    map.insert("deep".to_owned(), deep);
    for text in HOSTILE_TEXTS {
        map.insert((*text).to_owned(), Value::from(*text));
        map.insert(format!("{text}Of__it"), json!({*text: *text}));
    }
    for index in 0..1_000 {
        map.insert(format!("key{index}"), Value::from("v".repeat(400)));
    }
    value
}

/// Fails unless `actual` holds everything that `expected` does; further keys of objects are fine, other values must be equal.
pub(crate) fn assert_superset(actual: &Value, expected: &Value, at: &str) {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            for (key, value) in expected {
                let at = format!("{at}.{key}");
                assert_superset(actual.get(key).unwrap_or_else(|| panic!("{at} is missing")), value, &at);
            }
        }
        _ => assert_eq!(actual, expected, "{at}"),
    }
}
