//! From an event to a request.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::event::{Event, Payload};
use crate::provider::Provider;
use crate::{generic, gohighlevel, json, slack, zapier};

/// What is known of a webhook when one of its deliveries is rendered.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// `providerSpecificConfig` as JSON text, without its secrets. Keys the provider does not use are
    /// ignored.
    pub config: &'a str,
    /// GoHighLevel only: `api` or `inbound`, decided when the webhook was configured.
    /// `None` leaves it to the configuration's `target`, and without that means `inbound`.
    pub target: Option<&'a str>,
    /// Names of the secrets that are stored: `apiKey`, `api_key`, `header.<Name>`, …
    pub secret_names: &'a [&'a str],
}

/// A request, always a POST to the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// `Content-Type`, the provider's own headers, then the webhook's `headers`. The signature is the
    /// sidecar's to add.
    pub headers: Vec<Header>,
    /// JSON in UTF-8.
    pub body: String,
}

/// One header. With `secret` set, `prefix` is followed by the stored secret of that name, which only the
/// sidecar fills in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    pub name: String,
    pub prefix: String,
    pub secret: Option<String>,
}

impl Header {
    pub(crate) fn plain(name: &str, value: &str) -> Header {
        Header { name: name.to_owned(), prefix: value.to_owned(), secret: None }
    }

    pub(crate) fn secret(name: &str, prefix: &str, secret: &str) -> Header {
        Header { name: name.to_owned(), prefix: prefix.to_owned(), secret: Some(secret.to_owned()) }
    }
}

/// Why there is no request for an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrenderable {
    /// The target identifies contacts by e-mail or phone and the event has neither. The delivery ends as
    /// `cancelled`.
    #[error("no contact identity")]
    NoContactIdentity,
    /// The payload or the provider's configuration cannot be read; says why. The delivery ends as `failed`.
    #[error("{0}")]
    Payload(String),
}

/// Renders one event for one webhook. The same input always gives the same bytes, so a retry repeats its
/// request.
pub fn render(
    provider: Provider,
    event: &Event<'_>,
    settings: &Settings<'_>,
) -> Result<Request, Unrenderable> {
    let config = json::parse_object(settings.config).map_err(|fault| {
        Unrenderable::Payload(format!("the webhook's providerSpecificConfig {fault}; update the webhook"))
    })?;
    let mut request = match provider {
        Provider::Slack => slack::render(event, &Payload::read(event)?, &config),
        Provider::GoHighLevel => gohighlevel::render(event, &Payload::read(event)?, &config, settings)?,
        Provider::Zapier => zapier::render(event, &Payload::read(event)?, &config, settings),
        // The payload passes through as it is, at any depth, so it is not read.
        Provider::Generic => generic::render(event)?,
    };
    request.headers.insert(0, Header::plain("Content-Type", "application/json"));
    for secret in settings.secret_names {
        if let Some(name) = secret.strip_prefix("header.") {
            request.headers.push(Header::secret(name, "", secret));
        }
    }
    Ok(request)
}

/// A text of the configuration; `None` when it is missing, blank or not a text.
pub(crate) fn config_text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str).filter(|text| !text.trim().is_empty())
}
