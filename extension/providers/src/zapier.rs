//! Zapier: a catch hook takes one JSON object and maps its fields from a sample.
//!
//! `providerSpecificConfig`: `source` and `version` go into the body, `api_key` into the header `X-API-Key`
//! and nowhere else: Zapier keeps bodies in its history, and a hook cannot check a key anyway.
//!
//! The keys of the document are in every body, null when the event does not say them, because Zaps are built
//! from a sample. Further keys of a part stand beside its own; further keys of the payload are in `details`.
//! All are in snake_case. A test call adds `"test": true`.

use serde_json::{Map, Value};

use crate::cut::cut;
use crate::event::{Event, Payload};
use crate::family::{FAMILIES, Family, rest};
use crate::judge::{Response, Verdict, rate_limited, retry, server_trouble};
use crate::render::{Header, Request, Settings, config_text};
use crate::snake::snake_case;
use crate::subscription;
use crate::webhook::ConfigError;
use crate::webhook::keys::Keys;

pub(crate) const CONFIG_KEYS: &[&str] = &["source", "version"];
/// The secret among the keys of `providerSpecificConfig`.
pub(crate) const CONFIG_SECRET: &str = "api_key";
/// Headers that are set here.
pub(crate) const OWN_HEADERS: &[&str] = &["x-api-key", "x-recurse-parse"];

const TEXT_CHARS_MAX: usize = 200;

/// A catch hook that keeps the body raw takes 2 MB. Further keys may fill half of that; what is larger is
/// left out as a whole.
const FURTHER_BYTES_MAX: usize = 1_000_000;

/// A longer text in one of the document's keys is cut; there are fewer than 90 of them, so all together stay
/// below 750 kB.
const VALUE_BYTES_MAX: usize = 8_192;

pub(crate) fn check_config(config: &Keys<'_>) -> Result<(), ConfigError> {
    config.text("source", TEXT_CHARS_MAX)?;
    config.text("version", TEXT_CHARS_MAX)?;
    Ok(())
}

pub(crate) fn render(
    event: &Event<'_>,
    payload: &Payload,
    config: &Map<String, Value>,
    settings: &Settings<'_>,
) -> Request {
    // Without it Zapier reads JSON or XML inside a text, and somebody's display name becomes an object.
    let mut headers = vec![Header::plain("X-Recurse-Parse", "false")];
    if settings.secret_names.contains(&CONFIG_SECRET) {
        headers.push(Header::secret("X-API-Key", "", CONFIG_SECRET));
    }
    Request { headers, body: body(event, payload, config).to_string() }
}

fn body(event: &Event<'_>, payload: &Payload, config: &Map<String, Value>) -> Value {
    let mut room = FURTHER_BYTES_MAX;
    let top = |key: &str| scalar(payload.get(key));
    let auto_renew = payload
        .get("autoRenew")
        .or_else(|| payload.part("subscription").and_then(|part| part.get("autoRenew")));
    let duration_days = subscription::duration_days(event, payload).map_or(Value::Null, Value::String);

    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("id", event.id.into());
    put("event_type", event.event_type.into());
    put("occurred_at", payload.occurred_at(event).into());
    put("source", config_text(config, "source").into());
    put("version", config_text(config, "version").into());
    if event.test {
        put("test", true.into());
    }
    put("user_id", top("userId"));
    put("email", top("email"));
    put("username", top("username"));
    put("active", top("active"));
    put("auto_renew", scalar(auto_renew));
    put("profile", part(payload, "profile", PROFILE, &mut room).into());
    let mut subscription = part(payload, "subscription", SUBSCRIPTION, &mut room);
    subscription.insert("duration_days".to_owned(), duration_days);
    put("subscription", subscription.into());
    put("reseller", part(payload, "reseller", RESELLER, &mut room).into());
    for family in FAMILIES {
        put(family.key, family_part(family, event, payload, &mut room).into());
    }
    let mut details = Map::new();
    for (key, value) in rest(payload, event.event_type) {
        add_further(&mut details, key, value, &mut room);
    }
    put("details", details.into());
    body.into()
}

const PROFILE: &[&str] =
    &["firstName", "lastName", "country", "phone", "address1", "city", "state", "postalCode"];
const SUBSCRIPTION: &[&str] = &[
    "groupName",
    "groupId",
    "durationDays",
    "multiLoginCount",
    "startsAt",
    "expiresAt",
    "isTrialPeriod",
    "status",
    "price",
    "currency",
];
const RESELLER: &[&str] = &["id", "level", "levelId", "discountPercent", "credit", "name", "email"];

fn part(payload: &Payload, name: &str, keys: &[&str], room: &mut usize) -> Map<String, Value> {
    let source = payload.part(name);
    let mut part: Map<String, Value> = keys
        .iter()
        .map(|key| (snake_case(key), scalar(source.and_then(|source| source.get(*key)))))
        .collect();
    for (key, value) in source.into_iter().flatten().filter(|(key, _)| !keys.contains(&key.as_str())) {
        add_further(&mut part, key, value, room);
    }
    part
}

fn family_part(
    family: &Family,
    event: &Event<'_>,
    payload: &Payload,
    room: &mut usize,
) -> Map<String, Value> {
    let value = |key| scalar(family.value(key, payload, event.event_type));
    let mut part: Map<String, Value> =
        family.fields.iter().map(|field| (snake_case(field.key), value(field.key))).collect();
    for (key, value) in family.further(payload) {
        add_further(&mut part, key, value, room);
    }
    part
}

/// A value as the producer wrote it; null where a Zap expects one value and the payload has none or several.
fn scalar(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(text)) => cut(text, VALUE_BYTES_MAX, json_bytes).into(),
        // A number of that many digits is no number to any reader.
        Some(Value::Number(number)) if number.as_str().len() > VALUE_BYTES_MAX => Value::Null,
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.clone(),
        _ => Value::Null,
    }
}

/// Length of the text inside a JSON string.
fn json_bytes(text: &str) -> usize {
    let bytes = |character: char| match character {
        '"' | '\\' => 2,
        _ if character.is_ascii_control() => 6,
        _ => character.len_utf8(),
    };
    text.chars().map(bytes).sum()
}

/// Keys that differ only in spelling get a number, so that none hides another.
fn add_further(part: &mut Map<String, Value>, key: &str, value: &Value, room: &mut usize) {
    let value = in_snake_case(value);
    let base = snake_case(key);
    let bytes = base.len() + value.to_string().len();
    if bytes > *room {
        return;
    }
    *room -= bytes;
    insert_numbered(part, base, value);
}

fn insert_numbered(part: &mut Map<String, Value>, base: String, value: Value) {
    // More spellings of one key than this are an attack, and looking for a free number would take quadratic
    // time.
    const SPELLINGS_MAX: usize = 20;
    let numbered = (2..SPELLINGS_MAX).map(|number| format!("{base}_{number}"));
    if let Some(free) = std::iter::once(base.clone()).chain(numbered).find(|name| !part.contains_key(name)) {
        part.insert(free, value);
    }
}

fn in_snake_case(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let mut part = Map::new();
            for (key, value) in entries {
                insert_numbered(&mut part, snake_case(key), in_snake_case(value));
            }
            part.into()
        }
        Value::Array(items) => items.iter().map(in_snake_case).collect(),
        _ => value.clone(),
    }
}

/// A hook answers 200 also when no Zap is behind it, and with an empty body in silent mode: 2xx means
/// accepted, no more.
///
/// Zapier asks that everything but 200 be tried again; a body that is too large cannot shrink.
pub(crate) fn judge(response: &Response<'_>) -> Verdict {
    const WHO: &str = "Zapier";
    match response.status {
        200..=299 => Verdict::Delivered { note: None },
        410 => Verdict::EndpointPermanent {
            reason: "Zapier answered 410: the Zap unsubscribed this hook; turn the Zap on again and set its new URL as endpoint".to_owned(),
        },
        413 => Verdict::MessagePermanent { reason: "Zapier answered 413: the event is too large for it".to_owned() },
        429 => rate_limited(WHO, response, None),
        300..=399 => retry(response, format!("{WHO} {}: redirects are not followed; copy the hook's URL again", response.in_words())),
        400..=499 => retry(response, format!("{WHO} {}: it does not accept the request; check the hook's URL", response.in_words())),
        _ => server_trouble(WHO, response),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_collide_in_snake_case_are_numbered() {
        let value = json!({"userName": 1, "user_name": 2, "UserName": [{"aB": 3}]});
        assert_eq!(
            in_snake_case(&value),
            json!({"user_name": 1, "user_name_2": 2, "user_name_3": [{"a_b": 3}]})
        );
    }
}
