//! From a response to a verdict. What the words and codes mean is in the provider's own file.

use crate::provider::Provider;
use crate::quote::quote;
use crate::retry_after::retry_after_seconds;
use crate::{generic, gohighlevel, slack, zapier};

/// What came back over HTTP.
#[derive(Clone, Copy)]
pub struct Response<'a> {
    pub status: u16,
    /// Names in any case.
    pub headers: &'a [(String, String)],
    /// As much of the body as was kept.
    pub body: &'a str,
    /// When it arrived, for a `Retry-After` that is a date.
    pub now_unix_seconds: i64,
}

/// What a response means for the delivery and its webhook. Reasons are sentences for a person and hold no
/// URL.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Accepted. `note` is worth keeping: an id at the receiver, or a doubt.
    Delivered { note: Option<String> },
    /// May work later.
    Retry {
        /// What the receiver asked for; finite and never negative.
        after_seconds: Option<f64>,
        /// The receiver said that there are too many requests: not the message's fault, so it uses up no
        /// retry.
        rate_limited: bool,
        /// The whole webhook waits for `after_seconds`, not this delivery alone.
        pause: bool,
        reason: String,
    },
    /// This message will never be accepted; others may be.
    MessagePermanent { reason: String },
    /// Nothing sent to this endpoint will be accepted until someone changes something.
    EndpointPermanent { reason: String },
}

/// Judges a response. `target` as in [`crate::Settings`]; it tells HighLevel's API from its inbound webhooks.
pub fn judge(provider: Provider, target: Option<&str>, response: &Response<'_>) -> Verdict {
    match provider {
        Provider::Slack => slack::judge(response),
        Provider::GoHighLevel => gohighlevel::judge(target, response),
        Provider::Zapier => zapier::judge(response),
        Provider::Generic => generic::judge(response),
    }
}

impl Response<'_> {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn retry_after(&self) -> Option<f64> {
        self.header("retry-after").and_then(|value| retry_after_seconds(value, self.now_unix_seconds))
    }

    /// `answered 404 “no such hook”`, or without the quotation when the body is empty.
    pub(crate) fn in_words(&self) -> String {
        match quote(self.body) {
            Some(quotation) => format!("answered {} {quotation}", self.status),
            None => format!("answered {}", self.status),
        }
    }
}

/// Too many requests. The webhook pauses when the wait is known: going on would keep every delivery limited.
pub(crate) fn rate_limited(who: &str, response: &Response<'_>, after_seconds: Option<f64>) -> Verdict {
    let after_seconds = longest(after_seconds, response.retry_after());
    let reason = match after_seconds {
        Some(seconds) => format!(
            "{who} answered {}: too many requests, asks to wait {} s",
            response.status,
            seconds.ceil()
        ),
        None => {
            format!("{who} answered {}: too many requests; lower rateLimit if this goes on", response.status)
        }
    };
    Verdict::Retry { after_seconds, rate_limited: true, pause: after_seconds.is_some(), reason }
}

/// Trouble on the receiver's side. 502, 503 and 504 with a `Retry-After` speak for the whole receiver, so the
/// webhook pauses.
pub(crate) fn server_trouble(who: &str, response: &Response<'_>) -> Verdict {
    let after_seconds = response.retry_after();
    let pause = after_seconds.is_some() && matches!(response.status, 502..=504);
    let reason = format!("{who} {}: trouble on its side", response.in_words());
    Verdict::Retry { after_seconds, rate_limited: false, pause, reason }
}

/// Not accepted now, for a reason that may pass.
pub(crate) fn retry(response: &Response<'_>, reason: String) -> Verdict {
    Verdict::Retry { after_seconds: response.retry_after(), rate_limited: false, pause: false, reason }
}

fn longest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}
