//! The vocabulary of the pipeline: what claim hands to send, and what send hands to settle. Depends on nothing.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

/// One request to make, as `orbhook.claim` returned it, with times turned into this process's monotonic clock.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) ticket: Ticket,
    pub(crate) event_type: String,
    pub(crate) headers: Vec<HeaderTemplate>,
    /// The exact bytes to send and to sign.
    pub(crate) body: String,
    pub(crate) secrets: Secrets,
    /// From dialling to the last byte of the answer's body.
    pub(crate) timeout: Duration,
    /// After this another sidecar may claim the delivery. Counted from before the claim was asked for, so it errs early.
    pub(crate) lease_until: Instant,
    /// Pacing: not before this.
    pub(crate) send_at: Instant,
    /// That moment was given out for it alone: it is not to be sent much later either. False: there is no rate limit.
    pub(crate) is_paced: bool,
}

/// What settle needs to find the delivery again. `attempt` is the fence: a later claim has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) delivery: Uuid,
    pub(crate) attempt: i32,
    pub(crate) webhook: Uuid,
    /// The registration it was claimed under.
    pub(crate) sidecar: Uuid,
}

/// A header as the provider wrote it: `prefix`, followed by the stored secret of that name if there is one.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct HeaderTemplate {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) prefix: String,
    #[serde(default)]
    pub(crate) secret: Option<String>,
}

/// The webhook's secrets by name: `endpoint`, `signing`, `signing.previous`, a provider's keys, `header.<Name>`. Sealed as claimed,
/// until [`Keys::open`](crate::keys::Keys::open).
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, secret)| (name.as_str(), secret.expose()))
    }

    /// The same names with other values, unless one of them cannot be had.
    pub(crate) fn try_map(
        self,
        mut change: impl FnMut(&str, Secret) -> Result<Secret, Fault>,
    ) -> Result<Secrets, Fault> {
        let changed = self.0.into_iter().map(|(name, value)| {
            let value = change(&name, value)?;
            Ok((name, value))
        });
        changed.collect::<Result<_, Fault>>().map(Secrets)
    }
}

/// Text that must never reach a log: it prints as `***`.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An attempt that is over, on its way to `orbhook.settle`.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ticket: Ticket,
    pub(crate) started: Instant,
    pub(crate) duration: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) wire: Wire,
}

impl Finished {
    /// Given back unsent: the next claim may have it at once, and no attempt is counted against it.
    pub(crate) fn released(ticket: Ticket, now: Instant) -> Finished {
        Finished {
            ticket,
            started: now,
            duration: Duration::ZERO,
            outcome: Outcome::Released,
            wire: Wire::default(),
        }
    }

    /// Nothing was sent, and no attempt is counted: a secret did not open.
    pub(crate) fn parked(ticket: Ticket, now: Instant, fault: Fault) -> Finished {
        Finished { outcome: Outcome::Parked(fault), ..Finished::released(ticket, now) }
    }

    pub(crate) fn unanswered(ticket: Ticket, started: Instant, now: Instant, fault: Fault) -> Finished {
        Finished {
            ticket,
            started,
            duration: now.saturating_duration_since(started),
            outcome: Outcome::Unanswered(fault),
            wire: Wire::default(),
        }
    }
}

/// What the attempt came to. Facts only: what they mean is decided in SQL.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Answer),
    Unanswered(Fault),
    Parked(Fault),
    Released,
}

/// A complete response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Only the headers somebody decides or debugs by, names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// Valid text without control characters.
    pub(crate) body: String,
    /// The endpoint said more than `body` holds.
    pub(crate) body_cut: bool,
}

/// Why there is no complete response, in words that say what to do. Never contains the URL or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: ErrorClass,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(class: ErrorClass, reason: impl Into<String>) -> Fault {
        Fault { class, reason: reason.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    ConnectionRefused,
    Dns,
    Tls,
    TimeoutConnect,
    TimeoutFirstByte,
    TimeoutBody,
    Reset,
    MalformedResponse,
    AddressBlocked,
    /// A secret does not fit its purpose, or cannot be opened with the key it names.
    Secret,
    /// The key that a secret is sealed with is not here.
    Key,
    Internal,
}

impl ErrorClass {
    pub(crate) const ALL: [ErrorClass; 11] = [
        ErrorClass::ConnectionRefused,
        ErrorClass::Dns,
        ErrorClass::Tls,
        ErrorClass::TimeoutConnect,
        ErrorClass::TimeoutFirstByte,
        ErrorClass::TimeoutBody,
        ErrorClass::Reset,
        ErrorClass::MalformedResponse,
        ErrorClass::AddressBlocked,
        ErrorClass::Secret,
        ErrorClass::Internal,
    ];

    /// The word stored with the attempt.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ErrorClass::ConnectionRefused => "connection_refused",
            ErrorClass::Dns => "dns",
            ErrorClass::Tls => "tls",
            ErrorClass::TimeoutConnect => "timeout_connect",
            ErrorClass::TimeoutFirstByte => "timeout_first_byte",
            ErrorClass::TimeoutBody => "timeout_body",
            ErrorClass::Reset => "reset",
            ErrorClass::MalformedResponse => "malformed_response",
            ErrorClass::AddressBlocked => "address_blocked",
            ErrorClass::Secret => "secret",
            ErrorClass::Key => "key",
            ErrorClass::Internal => "internal",
        }
    }
}

/// What was seen on the way to the endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    /// The address that was dialled, if it is known which.
    pub(crate) address: Option<SocketAddr>,
    /// DNS, TCP and TLS together. None when a kept connection was used.
    pub(crate) connect: Option<Duration>,
    /// From the start to the end of the response's headers.
    pub(crate) first_byte: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secrets: Secrets =
            serde_json::from_str(r#"{"endpoint":"https://a/CANARY","signing":"CANARY"}"#).unwrap();
        assert_eq!(secrets.get("signing"), Some("CANARY"));
        assert!(!format!("{secrets:?}").contains("CANARY"));
    }
}
