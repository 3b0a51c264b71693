//! What the extension itself reads from a payload.

use crate::event::{Event, Payload};
use crate::render::Unrenderable;
use crate::time::Moment;

/// The two keys orbhook has a meaning for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `eventType`; `None` when it is missing or not a scalar.
    pub event_type: Option<String>,
    /// The instant `timestamp` means, read as UTC when it has no zone; `None` when it is missing or no time.
    pub occurred_at: Option<jiff::Timestamp>,
}

/// Reads the JSON text of an object. Unreadable or too deep is [`Unrenderable::Payload`].
pub fn facts(payload: &str) -> Result<Facts, Unrenderable> {
    let payload = Payload::read(&Event { id: "", event_type: "", occurred_at: "", test: false, payload })?;
    Ok(Facts {
        event_type: payload.text("eventType"),
        occurred_at: payload.text("timestamp").as_deref().and_then(instant),
    })
}

/// The instant a producer's text means, read as UTC when it has no zone; `None` if it is no time.
pub fn instant(text: &str) -> Option<jiff::Timestamp> {
    Moment::parse(text).map(Moment::instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_zone_is_read_as_utc() {
        let read = facts(r#"{"eventType": "USER_CREATED", "timestamp": "2024-11-03T15:27:47.002948"}"#).unwrap();
        assert_eq!(read.event_type.as_deref(), Some("USER_CREATED"));
        assert_eq!(read.occurred_at.unwrap().to_string(), "2024-11-03T15:27:47.002948Z");
    }

    #[test]
    fn what_is_missing_or_no_time_is_none() {
        for payload in ["{}", r#"{"timestamp": "infinity", "eventType": []}"#, r#"{"timestamp": 5}"#] {
            assert_eq!(facts(payload).unwrap(), Facts { event_type: None, occurred_at: None }, "{payload}");
        }
        assert!(facts("[]").is_err());
    }
}
