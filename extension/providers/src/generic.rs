//! Any receiver, in the shape and with the status codes of the Standard Webhooks recommendation.
//!
//! The body is `{"type", "timestamp", "data"}` with the payload as it was emitted, byte for byte and at any
//! depth; a test call adds `"test": true`. `providerSpecificConfig` has no keys.

use serde_json::value::RawValue;

use crate::event::Event;
use crate::judge::{Response, Verdict, rate_limited, retry, server_trouble};
use crate::render::{Request, Unrenderable};

pub(crate) const CONFIG_KEYS: &[&str] = &[];

pub(crate) fn render(event: &Event<'_>) -> Result<Request, Unrenderable> {
    // Checked, but not built: serde_json skips over a raw value without recursion and without reading its
    // numbers.
    let data: &RawValue = serde_json::from_str(event.payload).map_err(|error| {
        Unrenderable::Payload(format!(
            "the payload is not valid JSON at line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    let mark = if event.test { r#""test":true,"# } else { "" };
    let body = format!(
        r#"{{"type":{},"timestamp":{},{mark}"data":{}}}"#,
        serde_json::Value::from(event.event_type),
        serde_json::Value::from(event.occurred_at),
        data.get(),
    );
    Ok(Request { headers: Vec::new(), body })
}

/// Every 2xx is delivered and 410 ends the endpoint, as the recommendation says.
///
/// Other answers use up the retries, redirects and 4xx included: a receiver of one's own is often only wrong
/// for a while.
pub(crate) fn judge(response: &Response<'_>) -> Verdict {
    const WHO: &str = "the receiver";
    match response.status {
        200..=299 => Verdict::Delivered { note: None },
        410 => Verdict::EndpointPermanent {
            reason: "the receiver answered 410: it wants no more webhooks; give the webhook another endpoint or delete it".to_owned(),
        },
        429 => rate_limited(WHO, response, None),
        300..=399 => retry(response, format!("{WHO} {}: redirects are not followed; set the endpoint to the final address", response.in_words())),
        401 | 403 => retry(response, format!("{WHO} {}: it refuses the request; check its secret or the webhook's headers", response.in_words())),
        404 => retry(response, format!("{WHO} {}: nothing is served there; check the endpoint's path", response.in_words())),
        408 | 425 => retry(response, format!("{WHO} {}: it asks to try again", response.in_words())),
        500.. => server_trouble(WHO, response),
        _ => retry(response, format!("{WHO} {}: it does not accept the request", response.in_words())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(payload: &str) -> Event<'_> {
        Event {
            id: "e",
            event_type: "ORDER_CREATED",
            occurred_at: "2024-11-03T15:27:47.002948Z",
            test: false,
            payload,
        }
    }

    #[test]
    fn the_payload_passes_through_byte_for_byte() {
        let payload = r#"{"a": 1.0, "b" : [1e400,  "é\u00e9 <&>"], "a": 2}"#;
        let body = render(&event(payload)).unwrap().body;
        assert_eq!(
            body,
            format!(
                r#"{{"type":"ORDER_CREATED","timestamp":"2024-11-03T15:27:47.002948Z","data":{payload}}}"#
            )
        );
    }

    #[test]
    fn a_payload_of_any_depth_passes_through() {
        let payload = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(render(&event(&payload)).unwrap().body.ends_with(&format!("{payload}}}")));
    }

    #[test]
    fn a_test_is_marked() {
        let body = render(&Event { test: true, ..event("{}") }).unwrap().body;
        assert_eq!(
            body,
            r#"{"type":"ORDER_CREATED","timestamp":"2024-11-03T15:27:47.002948Z","test":true,"data":{}}"#
        );
    }

    #[test]
    fn broken_json_gives_a_reason() {
        assert_eq!(
            render(&event("{\"card\": 4111")).unwrap_err(),
            Unrenderable::Payload("the payload is not valid JSON at line 1 column 13".to_owned())
        );
    }
}
