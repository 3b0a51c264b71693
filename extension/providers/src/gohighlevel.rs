//! GoHighLevel has two doors, and what one accepts the other refuses.
//!
//! * `inbound`: the Inbound Webhook trigger of a workflow. The URL is the secret, any JSON object is
//!   accepted.
//! * `api`: `POST /contacts/upsert` of API 2.0 with a token; a property it does not know is an error.
//!
//! `providerSpecificConfig`: `locationId`, `apiKey`, `source`, `target` (chooses the door; otherwise the
//! endpoint's host does), `customFieldIds` (api only: name of a custom field as the inbound body has it, to
//! its id in the location).
//!
//! A test call is marked `"test": true` in the inbound body.
//! The API refuses unknown properties, so there the `source` of the contact ends in `(orbhook test)`.

mod contact;
mod custom_fields;
mod inbound;
mod tags;
mod upsert;
mod verdict;

use serde_json::{Map, Value};
use url::Url;

pub(crate) use verdict::judge;

use crate::event::{Event, Payload};
use crate::render::{Header, Request, Settings, Unrenderable, config_text};
use crate::webhook::ConfigError;
use crate::webhook::keys::Keys;

pub(crate) const CONFIG_KEYS: &[&str] = &["locationId", "source", "target", "customFieldIds"];
/// The secret among the keys of `providerSpecificConfig`.
pub(crate) const CONFIG_SECRET: &str = "apiKey";
/// Headers that the api door sets itself.
pub(crate) const API_HEADERS: &[&str] = &["authorization", "version", "accept"];

pub(crate) const API: &str = "api";
pub(crate) const INBOUND: &str = "inbound";

/// The only version in the header's documented list; the vendor's own SDK has another default, which is not
/// in it.
const API_VERSION: &str = "2021-07-28";

const API_HOST: &str = "services.leadconnectorhq.com";
const API_V1_HOST: &str = "rest.gohighlevel.com";
const UPSERT_PATH: &str = "/contacts/upsert";

const TEXT_CHARS_MAX: usize = 200;
const CUSTOM_FIELDS_MAX: usize = 100;

/// HighLevel documents no length for these texts. A longer one is cut, which keeps the body of a hostile
/// event below 1 MB.
const VALUE_UNITS_MAX: usize = 2_000;

pub(crate) fn check_config(config: &Keys<'_>) -> Result<(), ConfigError> {
    config.text("locationId", TEXT_CHARS_MAX)?;
    config.text("source", TEXT_CHARS_MAX)?;
    if config.text("target", TEXT_CHARS_MAX)?.is_some_and(|target| as_target(target).is_none()) {
        return Err(config.fault(
            "target",
            "is not a target",
            Some("use \"api\" or \"inbound\", or leave it out to decide by the endpoint"),
        ));
    }
    let Some(ids) = config.object("customFieldIds")? else { return Ok(()) };
    if ids.len() > CUSTOM_FIELDS_MAX {
        return Err(config.fault("customFieldIds", "has more than 100 entries", None));
    }
    for (name, id) in ids {
        if id.as_str().is_none_or(|id| id.trim().is_empty() || id.len() > TEXT_CHARS_MAX) {
            return Err(config.fault(
                &format!("customFieldIds.{name}"),
                "is not a text of 1 to 200 characters",
                None,
            ));
        }
    }
    Ok(())
}

/// The door that the configuration names, if any.
pub(crate) fn configured_target(config: &Map<String, Value>) -> Option<&'static str> {
    config_text(config, "target").and_then(as_target)
}

fn as_target(text: &str) -> Option<&'static str> {
    [API, INBOUND].into_iter().find(|target| target.eq_ignore_ascii_case(text.trim()))
}

/// The door behind an endpoint: the API's host, except for its `/hooks/` paths, is the API; every other host
/// is inbound.
pub(crate) fn target_of(endpoint: &Url) -> &'static str {
    match endpoint.host_str() {
        Some(API_V1_HOST) => API,
        Some(API_HOST) if endpoint.path() != "/hooks" && !endpoint.path().starts_with("/hooks/") => API,
        _ => INBOUND,
    }
}

/// Whether the host alone decides the door, as it does everywhere but at the API's.
pub(crate) fn target_of_host(host: &str) -> Option<&'static str> {
    match host {
        API_HOST => None,
        API_V1_HOST => Some(API),
        _ => Some(INBOUND),
    }
}

/// An endpoint that names the API but no operation gets the one whose body orbhook renders.
pub(crate) fn complete(endpoint: &mut Url) {
    if matches!(endpoint.path(), "" | "/" | "/contacts" | "/contacts/") {
        endpoint.set_path(UPSERT_PATH);
    }
}

pub(crate) fn render(
    event: &Event<'_>,
    payload: &Payload,
    config: &Map<String, Value>,
    settings: &Settings<'_>,
) -> Result<Request, Unrenderable> {
    if settings.target.or(configured_target(config)) != Some(API) {
        return Ok(Request { headers: Vec::new(), body: inbound::body(event, payload, config).to_string() });
    }
    let body = upsert::body(event, payload, config)?.to_string();
    let headers = vec![
        Header::plain("Accept", "application/json"),
        Header::plain("Version", API_VERSION),
        Header::secret("Authorization", "Bearer ", CONFIG_SECRET),
    ];
    Ok(Request { headers, body })
}
