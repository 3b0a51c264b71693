//! The custom fields of a contact, flat and as text.

use serde_json::Value;

use super::contact::bounded;
use crate::event::{Event, Payload, filled};
use crate::family::{FAMILIES, rest};
use crate::snake::snake_case;
use crate::subscription;

/// The document's four, which the API target sends without being asked.
pub(super) const DOCUMENTED: &[&str] =
    &["user_id", "subscription_group", "subscription_status", "subscription_expiresAt"];

/// Keys of the producer's own beyond this many are left out; a workflow maps each by hand.
const FURTHER_FIELDS_MAX: usize = 50;

/// Names and values in a fixed order, every name in every event.
///
/// HighLevel maps fields from one stored sample, so a value that is missing is an empty text rather than a
/// missing key. Keys of the producer's own come last.
pub(super) fn custom_fields(event: &Event<'_>, payload: &Payload) -> Vec<(String, String)> {
    let part = |part: &str, key: &str| payload.part_text(part, key);
    let auto_renew = payload.text("autoRenew").or_else(|| part("subscription", "autoRenew"));
    let mut fields: Vec<(String, String)> = [
        ("user_id", payload.text("userId")),
        ("subscription_group", part("subscription", "groupName")),
        ("subscription_status", Some(subscription::status(event, payload).to_owned())),
        ("subscription_expiresAt", part("subscription", "expiresAt")),
        ("username", payload.text("username")),
        ("active", payload.text("active")),
        ("auto_renew", auto_renew),
        ("subscription_duration_days", subscription::duration_days(event, payload)),
        ("subscription_starts_at", part("subscription", "startsAt")),
        ("subscription_multi_login_count", part("subscription", "multiLoginCount")),
        ("subscription_is_trial", part("subscription", "isTrialPeriod")),
        ("reseller_id", part("reseller", "id")),
        ("reseller_level", part("reseller", "level")),
        ("reseller_credit", part("reseller", "credit")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), bounded(value)))
    .collect();
    for family in FAMILIES {
        for field in family.fields {
            let value = filled(family.value(field.key, payload, event.event_type));
            fields.push((format!("{}_{}", family.key, snake_case(field.key)), bounded(value)));
        }
    }
    add_further(&mut fields, event, payload);
    fields
}

fn add_further(fields: &mut Vec<(String, String)>, event: &Event<'_>, payload: &Payload) {
    let field_count_max = fields.len() + FURTHER_FIELDS_MAX;
    let inside = FAMILIES.iter().flat_map(|family| {
        family.further(payload).map(|(key, value)| (format!("{}_{key}", family.key), value))
    });
    let top = rest(payload, event.event_type).into_iter().flat_map(|(key, value)| flattened(key, value));
    for (key, value) in inside.chain(top) {
        let name = snake_case(&key);
        let Some(text) = filled(Some(value)) else { continue };
        if fields.len() < field_count_max && fields.iter().all(|(taken, _)| *taken != name) {
            fields.push((name, bounded(Some(text))));
        }
    }
}

fn flattened<'p>(key: &str, value: &'p Value) -> Vec<(String, &'p Value)> {
    match value {
        Value::Object(part) => part
            .iter()
            .take(FURTHER_FIELDS_MAX)
            .map(|(inner, value)| (format!("{key}_{inner}"), value))
            .collect(),
        _ => vec![(key.to_owned(), value)],
    }
}
