//! The configuration object of the product document, from JSON to a record.
//!
//! The keys are camelCase, as the document prints them. Required: `name`, `providerType`, `endpoint`,
//! `subscribedEvents`. Optional: `active`, `providerSpecificConfig`, `maxRetries`, `retryDelay`, `rateLimit`,
//! `timeoutSeconds`, `maxInFlight`, `maxAgeSeconds`, `filter`, `headers`, `signingSecret`. Defaults are not
//! filled in here.
//!
//! Whether an event type exists and whether an address may be called is decided elsewhere.

mod endpoint;
mod headers;
pub(crate) mod keys;
mod number;
mod provider_config;
mod secret;
mod subscription;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use self::endpoint::Endpoint;
use self::keys::Keys;
use self::provider_config::ProviderConfig;
use self::secret::Given;
pub use self::secret::MASK;
use crate::json;
use crate::provider::Provider;

/// Browsers and proxies agree on about this much; HighLevel's and Slack's URLs have fewer than 200
/// characters.
pub(crate) const URL_CHARS_MAX: usize = 2_048;

const NAME_CHARS_MAX: usize = 200;
const FILTER_CHARS_MAX: usize = 4_000;
const RETRIES_MAX: u32 = 100;
const TIMEOUT_SECONDS_MAX: u32 = 30;
const IN_FLIGHT_MAX: u32 = 1_000;
/// Ten years, as the column's constraint has it.
const AGE_SECONDS_MAX: u32 = 315_360_000;
const RATE_PER_SECOND: std::ops::RangeInclusive<f64> = 0.01..=10_000.0;

const REQUIRED: &[&str] = &["name", "providerType", "endpoint", "subscribedEvents"];
const OPTIONAL: &[&str] = &[
    "active",
    "providerSpecificConfig",
    "maxRetries",
    "retryDelay",
    "rateLimit",
    "timeoutSeconds",
    "maxInFlight",
    "maxAgeSeconds",
    "filter",
    "headers",
    "signingSecret",
];

/// What a stored webhook looks like when changes to it are checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Current {
    pub provider: Provider,
    /// `api` or `inbound` for GoHighLevel, otherwise `None`.
    pub target: Option<String>,
    /// Host, and port unless it is the scheme's own.
    pub endpoint_host: String,
    /// The stored `providerSpecificConfig` as JSON text, without its secret.
    pub provider_config: String,
    /// Names of the secrets that are stored, as in [`Webhook::secrets`].
    pub secret_names: Vec<String>,
}

/// A checked configuration. A key that was not given is `None`, and absent when serialised.
#[derive(Serialize)]
pub struct Webhook {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_type: Option<Provider>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// Names and patterns in the given order, each once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribed_events: Option<Vec<String>>,
    /// `providerSpecificConfig` as given, without its secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_config: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// A number of seconds or an array of them, exactly as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_delay: Option<Value>,
    /// Null: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_per_second: Option<Option<Number>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Null: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<Option<u32>>,
    /// A jsonpath; its syntax is not checked here. Null: no filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_host: Option<String>,
    /// Present whenever provider, endpoint or provider configuration were given; null for all but
    /// GoHighLevel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Option<String>>,
    /// What to store (a text) or remove (null): `endpoint`, `signing`, `apiKey`, `api_key`, `header.<Name>`.
    /// A secret that is not named stays as it is. Headers are replaced as a whole: those no longer given are
    /// null here.
    pub secrets: BTreeMap<String, Option<String>>,
}

impl fmt::Debug for Webhook {
    /// Names the secrets without showing them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets: Vec<&String> = self.secrets.keys().collect();
        f.debug_struct("Webhook").field("name", &self.name).field("secrets", &secrets).finish_non_exhaustive()
    }
}

/// What is wrong with a configuration. Never holds an endpoint, a header's value or any other secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {fault}")]
pub struct ConfigError {
    /// The key as the user wrote it, with its path: `retryDelay[2]`, `providerSpecificConfig.channel`.
    pub key: String,
    /// What is wrong, as the end of a sentence that begins with the key.
    pub fault: String,
    /// How to put it right.
    pub hint: Option<String>,
}

/// Checks a configuration object.
///
/// Without `current` it is a new webhook and the required keys must be there; with it, `config` holds any
/// subset of changes. In an update [`MASK`] in place of a secret means that the secret stays.
pub fn validate(config: &str, current: Option<&Current>) -> Result<Webhook, ConfigError> {
    let map = json::parse_object(config).map_err(|fault| ConfigError {
        key: "the configuration".to_owned(),
        fault,
        hint: None,
    })?;
    let keys = Keys::top(&map);
    keys.only(&[REQUIRED, OPTIONAL])?;
    if let (None, Some(missing)) = (current, REQUIRED.iter().find(|key| !map.contains_key(**key))) {
        return Err(keys.fault(
            missing,
            "is missing",
            Some("required are name, providerType, endpoint and subscribedEvents"),
        ));
    }
    let provider_type = read_provider(&keys)?;
    let endpoint = endpoint::read(&keys, current)?;
    let mut webhook = Webhook {
        name: read_name(&keys)?,
        provider_type,
        active: keys.flag("active")?,
        subscribed_events: subscription::read(&keys)?,
        provider_config: None,
        max_retries: number::whole(&keys, "maxRetries", 0..=RETRIES_MAX)?,
        retry_delay: number::retry_delay(&keys)?,
        rate_limit_per_second: number::or_null(&keys, "rateLimit", |keys, key| {
            number::decimal(keys, key, RATE_PER_SECOND)
        })?,
        timeout_seconds: number::whole(&keys, "timeoutSeconds", 1..=TIMEOUT_SECONDS_MAX)?,
        max_in_flight: number::whole(&keys, "maxInFlight", 1..=IN_FLIGHT_MAX)?,
        max_age_seconds: number::or_null(&keys, "maxAgeSeconds", |keys, key| {
            number::whole(keys, key, 1..=AGE_SECONDS_MAX)
        })?,
        filter: read_filter(&keys)?,
        endpoint_scheme: endpoint.as_ref().map(Endpoint::scheme),
        endpoint_host: endpoint.as_ref().map(Endpoint::host),
        target: None,
        secrets: BTreeMap::new(),
    };
    set_provider(&mut webhook, &keys, endpoint, current)?;
    if let Some(Given::Set(signing)) = secret::signing(&keys, current)? {
        webhook.secrets.insert("signing".to_owned(), Some(signing));
    }
    Ok(webhook)
}

/// Everything that depends on which provider it is: its configuration, the target, the headers it leaves
/// free.
fn set_provider(
    webhook: &mut Webhook,
    keys: &Keys<'_>,
    endpoint: Option<Endpoint>,
    current: Option<&Current>,
) -> Result<(), ConfigError> {
    let Some(provider) = webhook.provider_type.or(current.map(|current| current.provider)) else {
        return Ok(());
    };
    if current.is_some_and(|current| current.provider != provider) && endpoint.is_none() {
        return Err(keys.fault(
            "endpoint",
            "is missing",
            Some("another providerType needs an endpoint of that provider"),
        ));
    }
    let given = ProviderConfig::read(provider, keys, current)?;
    let target = provider_config::target(provider, given.as_ref(), endpoint.as_ref(), current, keys)?;
    provider_config::check_complete(target, given.as_ref(), current)?;
    headers::read(webhook, keys, current, provider, target)?;

    let is_touched = webhook.provider_type.is_some() || endpoint.is_some() || given.is_some();
    webhook.target = is_touched.then(|| target.map(str::to_owned));
    if let Some(endpoint) = endpoint {
        webhook.secrets.insert("endpoint".to_owned(), Some(endpoint.into_url(target)));
    }
    // The key of a former provider is of no more use.
    if let Some(current) = current.filter(|current| current.provider != provider) {
        let former = provider_config::secret_name(current.provider)
            .filter(|name| current.secret_names.iter().any(|stored| stored == name));
        webhook.secrets.extend(former.map(|name| (name.to_owned(), None)));
    }
    if let Some(given) = given {
        if let Some((name, value)) = given.secret {
            match value {
                Given::Set(value) => _ = webhook.secrets.insert(name.to_owned(), Some(value)),
                Given::Remove => _ = webhook.secrets.insert(name.to_owned(), None),
                Given::Keep => {}
            }
        }
        webhook.provider_config = Some(given.public);
    }
    Ok(())
}

fn read_provider(keys: &Keys<'_>) -> Result<Option<Provider>, ConfigError> {
    let Some(name) = keys.required_text("providerType", NAME_CHARS_MAX)? else { return Ok(None) };
    match name.trim().parse() {
        Ok(provider) => Ok(Some(provider)),
        Err(_) => Err(keys.fault(
            "providerType",
            "is not a provider",
            Some("use SLACK, GOHIGHLEVEL, ZAPIER or GENERIC"),
        )),
    }
}

fn read_name(keys: &Keys<'_>) -> Result<Option<String>, ConfigError> {
    Ok(keys.required_text("name", NAME_CHARS_MAX)?.map(str::to_owned))
}

fn read_filter(keys: &Keys<'_>) -> Result<Option<Option<String>>, ConfigError> {
    match keys.get("filter") {
        Some(Value::Null) => Ok(Some(None)),
        _ => Ok(keys.required_text("filter", FILTER_CHARS_MAX)?.map(|filter| Some(filter.to_owned()))),
    }
}
