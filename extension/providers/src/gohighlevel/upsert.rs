//! The body for `POST /contacts/upsert` (`UpsertContactDto` of API 2.0).
//!
//! Flat, and without empty keys: several properties are not nullable, and an empty one would overwrite the
//! contact's. Without tags: an upsert replaces all tags of the contact.

use serde_json::{Map, Value, json};

use super::contact::Contact;
use super::custom_fields::{DOCUMENTED, custom_fields};
use crate::country;
use crate::event::{Event, Payload};
use crate::phone;
use crate::render::{Unrenderable, config_text};

/// Ends the `source` of a contact that a test call wrote.
const TEST_MARK: &str = "(orbhook test)";

/// The API finds contacts by e-mail or phone, so an event with neither has no request.
pub(super) fn body(
    event: &Event<'_>,
    payload: &Payload,
    config: &Map<String, Value>,
) -> Result<Value, Unrenderable> {
    let contact = Contact::of(event, payload);
    let email = Some(contact.email.trim()).filter(|email| is_email(email));
    let phone = phone::to_e164(&contact.phone);
    if email.is_none() && phone.is_none() {
        return Err(Unrenderable::NoContactIdentity);
    }
    let configured_source = config_text(config, "source").unwrap_or_default();
    let source =
        if event.test { format!("{configured_source} {TEST_MARK}") } else { configured_source.to_owned() };
    let has_parts = !contact.first_name.is_empty() || !contact.last_name.is_empty();
    let properties = [
        ("locationId", config_text(config, "locationId").unwrap_or_default()),
        ("firstName", &contact.first_name),
        ("lastName", &contact.last_name),
        // HighLevel would split it; only sent when the producer has no parts.
        ("name", if has_parts { "" } else { &contact.full_name }),
        ("email", email.unwrap_or_default()),
        ("phone", phone.as_deref().unwrap_or_default()),
        ("address1", &contact.address),
        ("city", &contact.city),
        ("state", &contact.state),
        ("postalCode", &contact.postal_code),
        ("country", country::to_code(&contact.country).unwrap_or_default()),
        ("companyName", &contact.company),
        ("source", source.trim()),
    ];
    let filled = properties.into_iter().filter(|(_, value)| !value.trim().is_empty());
    let mut body: Map<String, Value> = filled.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let fields = api_fields(event, payload, config);
    if !fields.is_empty() {
        body.insert("customFields".to_owned(), fields.into());
    }
    Ok(Value::Object(body))
}

/// The document's fields and whichever others the configuration gives an id for: a field must exist in the
/// location.
fn api_fields(event: &Event<'_>, payload: &Payload, config: &Map<String, Value>) -> Vec<Value> {
    let id = |name: &str| config.get("customFieldIds").and_then(|ids| ids.get(name)).and_then(Value::as_str);
    let event_fields = [
        ("event_type".to_owned(), event.event_type.to_owned()),
        ("event_id".to_owned(), event.id.to_owned()),
    ];
    custom_fields(event, payload)
        .into_iter()
        .chain(event_fields)
        .filter(|(name, value)| {
            !value.is_empty() && (DOCUMENTED.contains(&name.as_str()) || id(name).is_some())
        })
        .map(|(name, value)| match id(&name) {
            Some(id) => json!({"id": id, "key": name, "field_value": value}),
            None => json!({"key": name, "field_value": value}),
        })
        .collect()
}

/// The longest address that can be mailed to (RFC 5321, with the erratum to RFC 3696).
const EMAIL_BYTES_MAX: usize = 254;

/// Only what would make the API refuse the whole contact; it judges the rest itself.
fn is_email(text: &str) -> bool {
    let sides = text.rsplit_once('@');
    text.len() <= EMAIL_BYTES_MAX
        && !text.contains(|character: char| character.is_whitespace() || character.is_control())
        && sides.is_some_and(|(name, host)| {
            !name.is_empty()
                && host.len() > 2
                && host.contains('.')
                && !host.starts_with('.')
                && !host.ends_with('.')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_name_a_host_and_no_space() {
        for text in ["a@b.co", "user+tag@example.com", "ü@exämple.de", "\"a@b\"@c.org"] {
            assert!(is_email(text), "{text}");
        }
        for text in [
            "",
            "a",
            "@b.co",
            "a@",
            "a@b",
            "a@.b",
            "a@b.",
            "a b@c.de",
            "a\n@c.de",
            &format!("{}@b.co", "a".repeat(300)),
        ] {
            assert!(!is_email(text), "{text}");
        }
    }
}
