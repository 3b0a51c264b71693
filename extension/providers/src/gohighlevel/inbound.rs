//! The body for an inbound webhook: the document's, and beside it what a workflow needs to tell events apart.

use serde_json::{Map, Value, json};

use super::contact::Contact;
use super::custom_fields::custom_fields;
use super::tags::tags;
use crate::event::{Event, Payload};
use crate::render::config_text;

/// Every key in every event; `contact` alone is empty when the event names nobody, since a workflow cannot
/// find a contact without e-mail or phone.
pub(super) fn body(event: &Event<'_>, payload: &Payload, config: &Map<String, Value>) -> Value {
    let contact = Contact::of(event, payload);
    let contact = match contact.is_reachable() {
        true => json!({
            "firstName": contact.first_name,
            "lastName": contact.last_name,
            "email": contact.email,
            "phone": contact.phone,
            "address1": contact.address,
            "city": contact.city,
            "country": contact.country,
            "postalCode": contact.postal_code,
            "name": contact.full_name,
            "state": contact.state,
            "companyName": contact.company,
        }),
        false => json!({}),
    };
    let custom_fields: Map<String, Value> =
        custom_fields(event, payload).into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    let source = config_text(config, "source").unwrap_or_default();
    let tags = tags(source, event.event_type);
    let mut body = json!({
        "contact": contact,
        "customFields": custom_fields,
        "tags": tags,
        "locationId": config_text(config, "locationId").unwrap_or_default(),
        "event_type": event.event_type,
        "event_id": event.id,
        "occurred_at": payload.occurred_at(event),
        "source": source,
        // Workflows cannot use arrays.
        "tags_csv": tags.join(","),
    });
    if let (true, Some(body)) = (event.test, body.as_object_mut()) {
        body.insert("test".to_owned(), true.into());
    }
    body
}
