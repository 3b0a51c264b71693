//! What the extension itself reads from a payload.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::filled;
use crate::json;
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

/// Reads the JSON text of an object, whose other keys may be nested at any depth.
/// What is no JSON object is [`Unrenderable::Payload`].
pub fn facts(payload: &str) -> Result<Facts, Unrenderable> {
    let fault = |fault: &str| Unrenderable::Payload(format!("the payload {fault}"));
    if !payload.trim_start().starts_with('{') {
        return Err(fault("is not a JSON object"));
    }
    let keys: Keys<'_> = serde_json::from_str(payload).map_err(|error| {
        fault(&format!("is not valid JSON at line {} column {}", error.line(), error.column()))
    })?;
    Ok(Facts {
        event_type: keys.event_type.and_then(scalar),
        occurred_at: keys.timestamp.and_then(scalar).as_deref().and_then(instant),
    })
}

/// The instant a producer's text means, read as UTC when it has no zone; `None` if it is no time.
pub fn instant(text: &str) -> Option<jiff::Timestamp> {
    Moment::parse(text).map(Moment::instant)
}

/// Everything else is skipped without being built, and without recursion.
#[derive(Deserialize)]
struct Keys<'a> {
    #[serde(borrow, default, rename = "eventType")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
}

fn scalar(raw: &RawValue) -> Option<String> {
    filled(json::parse(raw.get()).ok().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_zone_is_read_as_utc() {
        let read =
            facts(r#"{"eventType": "USER_CREATED", "timestamp": "2024-11-03T15:27:47.002948"}"#).unwrap();
        assert_eq!(read.event_type.as_deref(), Some("USER_CREATED"));
        assert_eq!(read.occurred_at.unwrap().to_string(), "2024-11-03T15:27:47.002948Z");
    }

    #[test]
    fn what_is_missing_or_no_time_is_none() {
        for payload in ["{}", r#"{"timestamp": "infinity", "eventType": []}"#, r#"{"timestamp": 5}"#] {
            assert_eq!(facts(payload).unwrap(), Facts { event_type: None, occurred_at: None }, "{payload}");
        }
        for payload in ["[]", "", "{\"a\": }", "5"] {
            assert!(facts(payload).is_err(), "{payload}");
        }
    }

    #[test]
    fn other_keys_may_be_nested_at_any_depth() {
        let deep = format!(
            r#"{{"a": {}1{}, "eventType": "ORDER\u005fCREATED"}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(facts(&deep).unwrap().event_type.as_deref(), Some("ORDER_CREATED"));
    }
}
