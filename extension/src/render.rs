//! Rendering, SQL-callable: text in, text out. A payload that cannot be rendered becomes a reason, never an exception.

use std::str::FromStr as _;

use orbhook_providers::{Event, Provider, Request, Settings, Unrenderable, facts, render as render_event};
use pgrx::prelude::*;

use crate::fault::{Fault, or_raise};

/// `orbhook_render`: the body alone, from an event object.
#[pg_extern(sql = false)]
fn render(provider: Option<&str>, event: Option<&str>, config: Option<&str>) -> String {
    or_raise(render_object(provider, event, config))
}

fn render_object(provider: Option<&str>, event: Option<&str>, config: Option<&str>) -> Result<String, Fault> {
    let provider = provider.ok_or_else(|| Fault::argument("provider must not be null"))?;
    let payload = event.ok_or_else(|| Fault::argument("event must be a JSON object, not null"))?;
    let provider = Provider::from_str(provider)
        .map_err(|_| Fault::argument("provider must be SLACK, GOHIGHLEVEL, ZAPIER or GENERIC"))?;
    let facts =
        facts(payload).map_err(|reason| Fault::argument(format!("event cannot be rendered: {reason}")))?;
    let event = Event {
        id: NO_EVENT,
        event_type: facts.event_type.as_deref().unwrap_or_default(),
        occurred_at: &rfc3339(facts.occurred_at.unwrap_or_else(jiff::Timestamp::now)),
        test: false,
        payload,
    };
    let settings = Settings { config: config.unwrap_or("{}"), target: None, secret_names: &[] };
    match render_event(provider, &event, &settings) {
        Ok(request) => Ok(request.body),
        Err(problem) => Err(Fault::argument(format!("event cannot be rendered: {problem}"))),
    }
}

/// Stands where a body names the event and there is none.
const NO_EVENT: &str = "00000000-0000-7000-8000-000000000000";

/// For `orbhook.claim`: headers and body, or the status the delivery ends with and why.
#[expect(clippy::too_many_arguments, reason = "the columns of one delivery, named in sql/60_claim.sql")]
#[pg_extern(sql = false)]
fn render_delivery(
    provider: Option<&str>,
    target: Option<&str>,
    config: Option<&str>,
    secret_names: Option<Vec<Option<String>>>,
    event_id: Option<&str>,
    event_type: Option<&str>,
    occurred_at: Option<&str>,
    is_test: Option<bool>,
    payload: Option<&str>,
) -> Vec<Option<String>> {
    let Some(provider) = provider.and_then(|name| Provider::from_str(name).ok()) else {
        return ends("failed", "the webhook's provider is unknown to this version of orbhook".to_owned());
    };
    let names: Vec<String> = secret_names.unwrap_or_default().into_iter().flatten().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let event = Event {
        id: event_id.unwrap_or(NO_EVENT),
        event_type: event_type.unwrap_or_default(),
        occurred_at: occurred_at.unwrap_or_default(),
        test: is_test.unwrap_or_default(),
        payload: payload.unwrap_or("{}"),
    };
    let settings = Settings { config: config.unwrap_or("{}"), target, secret_names: &names };
    match render_event(provider, &event, &settings) {
        Ok(request) => parts(request),
        Err(problem @ Unrenderable::NoContactIdentity) => ends("cancelled", problem.to_string()),
        Err(problem) => ends("failed", problem.to_string()),
    }
}

fn parts(request: Request) -> Vec<Option<String>> {
    match serde_json::to_string(&request.headers) {
        Ok(headers) => vec![Some(headers), Some(request.body), None, None],
        Err(error) => ends("failed", format!("headers cannot be written: {error}")),
    }
}

fn ends(status: &str, reason: String) -> Vec<Option<String>> {
    vec![None, None, Some(status.to_owned()), Some(reason)]
}

#[pg_extern(sql = false)]
fn occurred_at(payload: Option<&str>) -> Option<String> {
    facts(payload?).ok()?.occurred_at.map(rfc3339)
}

fn rfc3339(instant: jiff::Timestamp) -> String {
    format!("{instant:.6}")
}
