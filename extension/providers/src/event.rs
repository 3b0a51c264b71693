//! An event, and its payload as the renderers read it.

use serde_json::{Map, Value};

use crate::json;
use crate::render::Unrenderable;
use crate::time::Moment;

/// One event, as the extension stores it.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// The event's id, a UUID. The same on every retry and for every webhook.
    pub id: &'a str,
    /// Upper-case words joined by `_`.
    pub event_type: &'a str,
    /// RFC 3339 in UTC with microseconds and `Z`.
    pub occurred_at: &'a str,
    /// A test call: the body is marked as one.
    pub test: bool,
    /// The JSON text of an object.
    pub payload: &'a str,
}

/// A payload that was read. Every part of it may be missing or of the wrong type; neither is an error.
pub(crate) struct Payload {
    map: Map<String, Value>,
}

impl Payload {
    /// Reads the payload of an event. Too deep or unreadable is a reason for the delivery to fail, and
    /// nothing else is.
    pub(crate) fn read(event: &Event<'_>) -> Result<Payload, Unrenderable> {
        let map = json::parse_object(event.payload)
            .map_err(|fault| Unrenderable::Payload(format!("the payload {fault}")))?;
        Ok(Payload { map })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// A part such as `profile`; `None` when it is missing, empty or not an object.
    pub(crate) fn part(&self, key: &str) -> Option<&Map<String, Value>> {
        self.map.get(key).and_then(Value::as_object).filter(|part| !part.is_empty())
    }

    /// The text of `part.key`; `None` when it is missing, blank or not a scalar.
    pub(crate) fn part_text(&self, part: &str, key: &str) -> Option<String> {
        self.part(part).and_then(|part| filled(part.get(key)))
    }

    /// The text of a key at the top; `None` when it is missing, blank or not a scalar.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        filled(self.map.get(key))
    }

    /// `part.key` when it is a boolean.
    pub(crate) fn part_flag(&self, part: &str, key: &str) -> Option<bool> {
        self.part(part).and_then(|part| part.get(key)).and_then(Value::as_bool)
    }

    /// A boolean at the top.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.map.get(key).and_then(Value::as_bool)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// The producer's own `timestamp`, untouched, when it is a time; otherwise when orbhook says the event
    /// occurred.
    pub(crate) fn occurred_at(&self, event: &Event<'_>) -> String {
        match self.map.get("timestamp") {
            Some(Value::String(text)) if Moment::parse(text).is_some() => text.clone(),
            _ => event.occurred_at.to_owned(),
        }
    }

    /// First and last name joined, or the one name there is.
    pub(crate) fn full_name(&self) -> Option<String> {
        let first = self.part_text("profile", "firstName");
        let last = self.part_text("profile", "lastName");
        match (first, last) {
            (Some(first), Some(last)) => Some(format!("{first} {last}")),
            (None, None) => {
                self.part_text("profile", "name").or_else(|| self.part_text("profile", "fullName"))
            }
            (first, last) => first.or(last),
        }
    }
}

/// The text of a scalar that is not blank.
pub(crate) fn filled(value: Option<&Value>) -> Option<String> {
    value.and_then(json::scalar_text).filter(|text| !text.trim().is_empty())
}
