//! What HighLevel answers.

use serde_json::{Map, Value};

use super::API;
use crate::cut::{cut, utf16_units};
use crate::json;
use crate::judge::{Response, Verdict, rate_limited, retry, server_trouble};

const WHO: &str = "HighLevel";

pub(crate) fn judge(target: Option<&str>, response: &Response<'_>) -> Verdict {
    let is_api = target == Some(API);
    let answered = response.in_words();
    match response.status {
        200..=299 => Verdict::Delivered {
            note: if is_api { contact_note(response.body) } else { trigger_note(response.body) },
        },
        429 => rate_limited(WHO, response, limit_seconds(response)),
        300..=399 => Verdict::MessagePermanent {
            reason: format!("{WHO} {answered}: redirects are not followed; check the endpoint"),
        },
        401 | 403 if is_api => Verdict::EndpointPermanent {
            reason: format!(
                "{WHO} {answered}: the apiKey is not accepted; set one with the scope contacts.write for this locationId"
            ),
        },
        404 | 410 if is_api => Verdict::EndpointPermanent {
            reason: format!("{WHO} {answered}: nothing is served there; check the endpoint and locationId"),
        },
        404 | 410 => Verdict::EndpointPermanent {
            reason: format!(
                "{WHO} {answered}: the workflow's trigger is gone; copy its webhook URL again and set it as endpoint"
            ),
        },
        408 => retry(response, format!("{WHO} {answered}: it asks to try again")),
        400..=499 => {
            Verdict::MessagePermanent { reason: format!("{WHO} {answered}: it does not accept this contact") }
        }
        _ => server_trouble(WHO, response),
    }
}

const SECONDS_PER_DAY: i64 = 86_400;

/// How long HighLevel's own headers say to wait: to the end of the day's quota, or one interval of the burst
/// limit.
fn limit_seconds(response: &Response<'_>) -> Option<f64> {
    let number = |name: &str| {
        response
            .header(name)
            .and_then(|value| value.trim().parse::<f64>().ok())
            .filter(|number| number.is_finite())
    };
    let milliseconds = |name: &str| number(name).filter(|wait| *wait > 0.0).map(|wait| wait / 1_000.0);
    if number("x-ratelimit-daily-remaining").is_some_and(|remaining| remaining <= 0.0) {
        let to_midnight = SECONDS_PER_DAY - response.now_unix_seconds.rem_euclid(SECONDS_PER_DAY);
        return Some(milliseconds("x-ratelimit-daily-reset").unwrap_or(to_midnight as f64));
    }
    milliseconds("x-ratelimit-interval-milliseconds")
}

/// The ids by which a person finds the contact and support finds the request.
fn contact_note(body: &str) -> Option<String> {
    let answer = json::parse_object(body).ok()?;
    let contact = id(answer.get("contact").and_then(Value::as_object).and_then(|contact| contact.get("id")))
        .map(|id| format!("contact {id}"));
    let trace = id(answer.get("traceId")).map(|id| format!("trace {id}"));
    let ids: Vec<String> = contact.into_iter().chain(trace).collect();
    (!ids.is_empty()).then(|| ids.join(", "))
}

/// HighLevel answers 200 also when nothing is live behind the URL; then the answer usually has no id.
fn trigger_note(body: &str) -> Option<String> {
    let answer: Map<String, Value> = json::parse_object(body).unwrap_or_default();
    let execution = id(answer.get("id")).map(|id| format!("execution {id}"));
    execution.or_else(|| {
        Some(
            "unconfirmed: HighLevel gave no id; check that the workflow is published and its trigger exists"
                .to_owned(),
        )
    })
}

fn id(value: Option<&Value>) -> Option<String> {
    const ID_UNITS_MAX: usize = 64;
    let text = value
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty() && text.chars().all(|character| character.is_ascii_graphic()))?;
    (!text.contains("://")).then(|| cut(text, ID_UNITS_MAX, utf16_units).into_owned())
}
