//! `providerSpecificConfig`: which keys a provider has, and which of them is a secret.

use serde_json::{Map, Value};

use super::endpoint::Endpoint;
use super::keys::Keys;
use super::secret::{self, Given};
use super::{ConfigError, Current};
use crate::gohighlevel::{API, configured_target, target_of_host};
use crate::provider::Provider;
use crate::render::config_text;
use crate::{generic, gohighlevel, json, slack, zapier};

const KEY: &str = "providerSpecificConfig";

pub(super) struct ProviderConfig {
    /// As given, without the secret.
    pub(super) public: Map<String, Value>,
    /// The name of the provider's secret and what was said about it.
    pub(super) secret: Option<(&'static str, Given)>,
}

impl ProviderConfig {
    /// Checks the configuration given; with another provider and none given, the stored one, which must fit
    /// the new provider.
    pub(super) fn read(
        provider: Provider,
        keys: &Keys<'_>,
        current: Option<&Current>,
    ) -> Result<Option<ProviderConfig>, ConfigError> {
        let Some(mut public) = keys.object(KEY)? else {
            return match current {
                Some(current) if current.provider != provider => {
                    check_stored(provider, keys, current).map(|()| None)
                }
                _ => Ok(None),
            };
        };
        let config = Keys::inside(KEY, &public);
        let secret_name = secret_name(provider);
        config.only(&[known(provider), secret_name.as_slice()])?;
        check(provider, &config)?;
        let given = match secret_name {
            Some(name) => secret::header_safe(&config, name, secret::is_stored(current, name))?
                .map(|given| (name, given)),
            None => None,
        };
        if let Some(name) = secret_name {
            public.remove(name);
        }
        Ok(Some(ProviderConfig { public, secret: given }))
    }
}

/// The key of `providerSpecificConfig` that is stored as a secret, under the same name.
pub(super) fn secret_name(provider: Provider) -> Option<&'static str> {
    match provider {
        Provider::GoHighLevel => Some(gohighlevel::CONFIG_SECRET),
        Provider::Zapier => Some(zapier::CONFIG_SECRET),
        Provider::Slack | Provider::Generic => None,
    }
}

/// GoHighLevel's door, decided by the configuration, else by the endpoint; `None` for other providers.
///
/// A stored endpoint cannot be read again here, so a change of the door needs it to be given again.
pub(super) fn target(
    provider: Provider,
    given: Option<&ProviderConfig>,
    endpoint: Option<&Endpoint>,
    current: Option<&Current>,
    keys: &Keys<'_>,
) -> Result<Option<&'static str>, ConfigError> {
    if provider != Provider::GoHighLevel {
        return Ok(None);
    }
    let stored = current.map(stored_config).unwrap_or_default();
    let config = given.map_or(&stored, |given| &given.public);
    let configured = configured_target(config);
    if let Some(endpoint) = endpoint {
        return Ok(Some(configured.unwrap_or_else(|| endpoint.target())));
    }
    let Some(current) = current else { return Ok(None) };
    let before =
        [API, gohighlevel::INBOUND].into_iter().find(|target| current.target.as_deref() == Some(*target));
    let after = match (configured, configured_target(&stored)) {
        (Some(configured), _) => Some(configured),
        (None, None) => before,
        (None, Some(_)) => target_of_host(&current.endpoint_host),
    };
    if after.is_none() || after != before {
        return Err(keys.fault(
            "endpoint",
            "is missing",
            Some("give it again when providerSpecificConfig.target changes"),
        ));
    }
    Ok(after)
}

/// What the API of HighLevel cannot do without.
pub(super) fn check_complete(
    target: Option<&str>,
    given: Option<&ProviderConfig>,
    current: Option<&Current>,
) -> Result<(), ConfigError> {
    if target != Some(API) {
        return Ok(());
    }
    let stored = current.map(stored_config).unwrap_or_default();
    let config = given.map_or(&stored, |given| &given.public);
    let missing = |key: &str| ConfigError {
        key: format!("{KEY}.{key}"),
        fault: "is missing".to_owned(),
        hint: Some(
            "HighLevel's API needs locationId and apiKey; the URL of an inbound webhook needs neither"
                .to_owned(),
        ),
    };
    if config_text(config, "locationId").is_none() {
        return Err(missing("locationId"));
    }
    let has_key = match given.and_then(|given| given.secret.as_ref()) {
        Some((_, Given::Set(_) | Given::Keep)) => true,
        Some((_, Given::Remove)) => false,
        None => secret::is_stored(current, gohighlevel::CONFIG_SECRET),
    };
    if has_key { Ok(()) } else { Err(missing(gohighlevel::CONFIG_SECRET)) }
}

fn check_stored(provider: Provider, keys: &Keys<'_>, current: &Current) -> Result<(), ConfigError> {
    let stored = stored_config(current);
    let config = Keys::inside(KEY, &stored);
    let fits = config.only(&[known(provider)]).is_ok() && check(provider, &config).is_ok();
    let hint = "the stored one belongs to another provider; give a new one, {} if need be";
    if fits { Ok(()) } else { Err(keys.fault(KEY, "is missing", Some(hint))) }
}

fn check(provider: Provider, config: &Keys<'_>) -> Result<(), ConfigError> {
    match provider {
        Provider::Slack => slack::check_config(config),
        Provider::GoHighLevel => gohighlevel::check_config(config),
        Provider::Zapier => zapier::check_config(config),
        Provider::Generic => Ok(()),
    }
}

fn known(provider: Provider) -> &'static [&'static str] {
    match provider {
        Provider::Slack => slack::CONFIG_KEYS,
        Provider::GoHighLevel => gohighlevel::CONFIG_KEYS,
        Provider::Zapier => zapier::CONFIG_KEYS,
        Provider::Generic => generic::CONFIG_KEYS,
    }
}

fn stored_config(current: &Current) -> Map<String, Value> {
    json::parse_object(&current.provider_config).unwrap_or_default()
}
