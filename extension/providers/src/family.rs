//! The parts of a payload that belong to a family of events: payment, device, security, system and usage.
//!
//! A producer may put such a value into the family's own object (`"payment": {"amount": 5}`), or, in an event
//! of that family, at the top (`"amount": 5` or `"paymentAmount": 5`).

use serde_json::{Map, Value};

use crate::event::Payload;

pub(crate) struct Family {
    /// The payload's key of its object.
    pub(crate) key: &'static str,
    /// What the types of its events begin with.
    event_prefix: &'static str,
    pub(crate) emoji: &'static str,
    pub(crate) title: &'static str,
    pub(crate) fields: &'static [Field],
}

pub(crate) struct Field {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    /// The field that holds this one's unit, such as the currency of an amount.
    pub(crate) unit: Option<&'static str>,
}

const fn field(key: &'static str, label: &'static str) -> Field {
    Field { key, label, unit: None }
}

const fn measured(key: &'static str, label: &'static str, unit: &'static str) -> Field {
    Field { key, label, unit: Some(unit) }
}

/// In the order a person wants to read them.
pub(crate) const FAMILIES: &[Family] = &[
    Family {
        key: "payment",
        event_prefix: "PAYMENT_",
        emoji: "💳",
        title: "Payment Details",
        fields: &[
            measured("amount", "Amount", "currency"),
            field("currency", "Currency"),
            field("status", "Status"),
            field("method", "Method"),
            field("description", "Description"),
            field("failureReason", "Failure Reason"),
            measured("refundedAmount", "Refunded Amount", "currency"),
            field("invoiceId", "Invoice ID"),
            field("id", "Payment ID"),
            field("paidAt", "Paid At"),
            field("refundedAt", "Refunded At"),
        ],
    },
    Family {
        key: "device",
        event_prefix: "DEVICE_",
        emoji: "📱",
        title: "Device Details",
        fields: &[
            field("name", "Device"),
            field("type", "Type"),
            field("os", "OS"),
            field("appVersion", "App Version"),
            field("ipAddress", "IP Address"),
            field("location", "Location"),
            field("server", "Server"),
            field("count", "Devices In Use"),
            field("limit", "Device Limit"),
            field("id", "Device ID"),
            field("connectedAt", "Connected At"),
            field("disconnectedAt", "Disconnected At"),
        ],
    },
    Family {
        key: "security",
        event_prefix: "SECURITY_",
        emoji: "🔒",
        title: "Security Details",
        fields: &[
            field("reason", "Reason"),
            field("ipAddress", "IP Address"),
            field("location", "Location"),
            field("attempts", "Attempts"),
            field("method", "Method"),
            field("userAgent", "User Agent"),
            field("blockedUntil", "Blocked Until"),
        ],
    },
    Family {
        key: "system",
        event_prefix: "SYSTEM_",
        emoji: "🖥️",
        title: "System Details",
        fields: &[
            field("server", "Server"),
            field("region", "Region"),
            field("component", "Component"),
            field("message", "Message"),
            field("reason", "Reason"),
            field("version", "Version"),
            field("affectedUsers", "Affected Users"),
            field("startsAt", "Starts At"),
            field("endsAt", "Ends At"),
            field("downtimeSeconds", "Downtime (Seconds)"),
        ],
    },
    Family {
        key: "usage",
        event_prefix: "USAGE_",
        emoji: "📊",
        title: "Usage Details",
        fields: &[
            measured("used", "Used", "unit"),
            measured("limit", "Limit", "unit"),
            field("unit", "Unit"),
            field("percent", "Percent Used"),
            field("period", "Period"),
            field("description", "Description"),
            field("resetsAt", "Resets At"),
        ],
    },
];

impl Family {
    pub(crate) fn owns(&self, event_type: &str) -> bool {
        event_type.starts_with(self.event_prefix)
    }

    /// The value of one field; null counts as missing.
    pub(crate) fn value<'p>(&self, field: &str, payload: &'p Payload, event_type: &str) -> Option<&'p Value> {
        let inside = payload.part(self.key).and_then(|part| present(part.get(field)));
        inside.or_else(|| self.top_key(field, payload, event_type).and_then(|key| payload.get(&key)))
    }

    /// Keys of the family's object beyond its fields.
    pub(crate) fn further<'p>(&self, payload: &'p Payload) -> impl Iterator<Item = (&'p String, &'p Value)> {
        let entries = payload.part(self.key).into_iter().flat_map(Map::iter);
        entries.filter(|(key, _)| self.fields.iter().all(|field| field.key != key.as_str()))
    }

    /// The key at the top that stands for a field, when the family's object does not hold it.
    fn top_key(&self, field: &str, payload: &Payload, event_type: &str) -> Option<String> {
        if !self.owns(event_type)
            || payload.part(self.key).is_some_and(|part| present(part.get(field)).is_some())
        {
            return None;
        }
        let mut letters = field.chars();
        let capitalised: String =
            letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        [format!("{}{capitalised}", self.key), field.to_owned()]
            .into_iter()
            .find(|key| present(payload.get(key)).is_some())
    }
}

/// What a payload holds at the top besides the document's keys and the fields of its event's family.
pub(crate) fn rest<'p>(payload: &'p Payload, event_type: &str) -> Vec<(&'p str, &'p Value)> {
    let used: Vec<String> = FAMILIES
        .iter()
        .flat_map(|family| {
            family.fields.iter().filter_map(|field| family.top_key(field.key, payload, event_type))
        })
        .collect();
    payload
        .entries()
        .filter(|(key, value)| !value.is_null() && !is_known(key, value) && !used.contains(key))
        .map(|(key, value)| (key.as_str(), value))
        .collect()
}

/// A part of the document that is no object has no place of its own, so its text belongs to the rest.
fn is_known(key: &str, value: &Value) -> bool {
    const SCALARS: &[&str] =
        &["eventType", "timestamp", "userId", "email", "username", "active", "autoRenew"];
    const PARTS: &[&str] = &["profile", "subscription", "reseller"];
    let is_part = PARTS.contains(&key) || FAMILIES.iter().any(|family| family.key == key);
    SCALARS.contains(&key) || (is_part && value.is_object())
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn payload(text: &str) -> Payload {
        Payload::read(&Event { id: "", event_type: "", occurred_at: "", test: false, payload: text }).unwrap()
    }

    fn payment() -> &'static Family {
        FAMILIES.iter().find(|family| family.key == "payment").unwrap()
    }

    #[test]
    fn a_field_is_found_in_the_object_or_at_the_top_of_its_own_events() {
        for text in [r#"{"payment": {"amount": 5}}"#, r#"{"amount": 5}"#, r#"{"paymentAmount": 5}"#] {
            assert_eq!(payment().value("amount", &payload(text), "PAYMENT_FAILED").unwrap(), 5, "{text}");
        }
        assert!(payment().value("amount", &payload(r#"{"amount": 5}"#), "ORDER_CREATED").is_none());
    }

    #[test]
    fn the_rest_is_what_nothing_else_shows() {
        let keys = |text: &str, event_type: &str| -> Vec<String> {
            rest(&payload(text), event_type).into_iter().map(|(key, _)| key.to_owned()).collect()
        };
        assert_eq!(
            keys(r#"{"email": 1, "amount": 5, "orderId": 7, "x": null}"#, "PAYMENT_FAILED"),
            ["orderId"]
        );
        assert_eq!(
            keys(r#"{"email": 1, "amount": 5, "orderId": 7}"#, "ORDER_CREATED"),
            ["amount", "orderId"]
        );
        assert_eq!(keys(r#"{"amount": 5, "payment": {"amount": 6}}"#, "PAYMENT_FAILED"), ["amount"]);
        assert_eq!(keys(r#"{"profile": "none", "payment": {}}"#, "USER_LOGIN"), ["profile"]);
    }
}
