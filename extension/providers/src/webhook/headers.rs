//! `headers`: what a user sends besides. Their values may be secrets, so no error quotes one.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::secret::{MASK, is_sealed, masked};
use super::{ConfigError, Current, Webhook};
use crate::provider::Provider;
use crate::{gohighlevel, zapier};

const KEY: &str = "headers";
const PREFIX: &str = "header.";
const HEADERS_MAX: usize = 20;
const NAME_BYTES_MAX: usize = 100;
const VALUE_BYTES_MAX: usize = 4_096;

/// Headers that orbhook or the HTTP client sets, or that change how a connection works.
const RESERVED: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "accept-encoding",
    "user-agent",
];
/// The names of the signature: `webhook-id`, `webhook-timestamp`, `webhook-signature` and whatever the
/// standard adds.
const RESERVED_PREFIX: &str = "webhook-";

/// Reads `headers` into the webhook's secrets. Stored headers that are not given again are removed; a masked
/// one stays.
///
/// Which names are free depends on the provider, so stored ones are checked again when that changes.
pub(super) fn read(
    webhook: &mut Webhook,
    keys: &Keys<'_>,
    current: Option<&Current>,
    provider: Provider,
    target: Option<&str>,
) -> Result<(), ConfigError> {
    let stored: Vec<&str> = current
        .into_iter()
        .flat_map(|current| &current.secret_names)
        .filter_map(|name| name.strip_prefix(PREFIX))
        .collect();
    let Some(headers) = keys.object(KEY)? else {
        return stored
            .iter()
            .try_for_each(|name| check_free(&Keys::inside(KEY, &Map::new()), name, provider, target));
    };
    let given = Keys::inside(KEY, &headers);
    if headers.len() > HEADERS_MAX {
        return Err(keys.fault(KEY, "has more than 20 entries", None));
    }
    for (index, (name, value)) in headers.iter().enumerate() {
        check_name(&given, name)?;
        check_free(&given, name, provider, target)?;
        if headers.keys().take(index).any(|earlier| earlier.eq_ignore_ascii_case(name)) {
            return Err(given.fault(name, "is given twice; names are the same in any case", None));
        }
        let kept = stored.iter().find(|stored| stored.eq_ignore_ascii_case(name));
        match (value, kept) {
            (Value::String(text), Some(_)) if text == MASK => continue,
            (Value::String(text), None) if text == MASK => return Err(masked(&given, name)),
            _ => {}
        }
        let value = check_value(&given, name, value)?;
        webhook.secrets.insert(format!("{PREFIX}{name}"), Some(value.to_owned()));
    }
    for stored in stored {
        let is_kept = headers
            .iter()
            .any(|(name, value)| name.eq_ignore_ascii_case(stored) && value.as_str() == Some(MASK));
        if !is_kept && !headers.contains_key(stored) {
            webhook.secrets.insert(format!("{PREFIX}{stored}"), None);
        }
    }
    Ok(())
}

fn check_name(given: &Keys<'_>, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token_byte) {
        return Err(given.fault(
            name,
            "is not a header name",
            Some("use letters, digits and dashes, at most 100"),
        ));
    }
    Ok(())
}

fn check_free(
    given: &Keys<'_>,
    name: &str,
    provider: Provider,
    target: Option<&str>,
) -> Result<(), ConfigError> {
    let lower = name.to_ascii_lowercase();
    if RESERVED.contains(&lower.as_str()) || lower.starts_with(RESERVED_PREFIX) {
        return Err(given.fault(name, "is a reserved header", Some("orbhook sets it itself")));
    }
    let own: &[&str] = match (provider, target) {
        (Provider::GoHighLevel, Some(gohighlevel::API)) => gohighlevel::API_HEADERS,
        (Provider::Zapier, _) => zapier::OWN_HEADERS,
        _ => &[],
    };
    if own.contains(&lower.as_str()) {
        return Err(given.fault(name, "is a reserved header", Some("it is set from providerSpecificConfig")));
    }
    Ok(())
}

fn check_value<'v>(given: &Keys<'_>, name: &str, value: &'v Value) -> Result<&'v str, ConfigError> {
    let Some(text) = value.as_str() else { return Err(given.fault(name, "is not a text", None)) };
    if is_sealed(given, name, text)? {
        return Ok(text);
    }
    if text.len() > VALUE_BYTES_MAX {
        return Err(given.fault(name, "is longer than 4096 bytes", None));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(given.fault(name, "contains a control character or a character outside ASCII", None));
    }
    if text.trim() != text || text.is_empty() {
        return Err(given.fault(name, "is empty or begins or ends with a space", None));
    }
    Ok(text)
}

/// A `tchar` of RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
