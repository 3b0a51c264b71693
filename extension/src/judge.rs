//! What an answer means, SQL-callable: the provider's own judgement as an array of text.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use orbhook_providers::{Provider, Response, Verdict, judge as judge_response};
use pgrx::prelude::*;

/// `[verdict, seconds to wait, rate_limited, pause, reason]`; `sql/65_settle.sql` says what follows from each.
#[pg_extern(sql = false)]
fn judge(
    provider: Option<&str>,
    target: Option<&str>,
    status: Option<i32>,
    headers: Option<&str>,
    body: Option<&str>,
    now_unix_seconds: Option<i64>,
) -> Vec<Option<String>> {
    let provider = provider.and_then(|name| Provider::from_str(name).ok()).unwrap_or(Provider::Generic);
    // The sidecar writes an object of strings; anything else has no header worth reading.
    let headers: BTreeMap<String, String> =
        headers.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let headers: Vec<(String, String)> = headers.into_iter().collect();
    let response = Response {
        status: status.and_then(|status| u16::try_from(status).ok()).unwrap_or_default(),
        headers: &headers,
        body: body.unwrap_or_default(),
        now_unix_seconds: now_unix_seconds.unwrap_or_default(),
    };
    match judge_response(provider, target, &response) {
        Verdict::Delivered { note } => row("delivered", None, false, false, note),
        Verdict::Retry { after_seconds, rate_limited, pause, reason } => {
            row("retry", after_seconds, rate_limited, pause, Some(reason))
        }
        Verdict::MessagePermanent { reason } => row("message_permanent", None, false, false, Some(reason)),
        Verdict::EndpointPermanent { reason } => row("endpoint_permanent", None, false, false, Some(reason)),
    }
}

fn row(
    verdict: &str,
    after_seconds: Option<f64>,
    rate_limited: bool,
    pause: bool,
    reason: Option<String>,
) -> Vec<Option<String>> {
    let flag = |set: bool| Some(set.to_string());
    vec![
        Some(verdict.to_owned()),
        after_seconds.filter(|seconds| seconds.is_finite()).map(|seconds| seconds.to_string()),
        flag(rate_limited),
        flag(pause),
        reason,
    ]
}
