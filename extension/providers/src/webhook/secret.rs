//! Secrets of a configuration: never shown again, and replaced only when a new one is given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orbhook_seal::{SEALED_PREFIX, key_id_of};
use serde_json::Value;

use super::keys::Keys;
use super::{ConfigError, Current};

/// Stands for a whole secret wherever a configuration is shown. Given back in an update, the secret stays as
/// it is.
pub const MASK: &str = "********";

/// The longest secret, a header's value of 4 KiB, takes about 5,700 bytes sealed.
pub(super) const SEALED_BYTES_MAX: usize = 8_192;

/// What a configuration says about one secret.
pub(super) enum Given {
    Set(String),
    Keep,
    Remove,
}

/// A secret that `orbhook seal` has sealed. What is in it was checked there, and cannot be checked here.
pub(super) fn is_sealed(keys: &Keys<'_>, key: &str, text: &str) -> Result<bool, ConfigError> {
    if !text.starts_with(SEALED_PREFIX) {
        return Ok(false);
    }
    if text.len() > SEALED_BYTES_MAX {
        return Err(keys.fault(key, "is longer than 8192 bytes", None));
    }
    if key_id_of(text).is_none() {
        return Err(keys.fault(
            key,
            "is not a whole sealed secret",
            Some("copy all that orbhook seal prints"),
        ));
    }
    Ok(true)
}

/// A secret that travels in a header: visible ASCII, at most 4 KiB.
pub(super) fn header_safe(keys: &Keys<'_>, key: &str, is_stored: bool) -> Result<Option<Given>, ConfigError> {
    const BYTES_MAX: usize = 4_096;
    let text = match read(keys, key, is_stored)? {
        Some(Given::Set(text)) => text,
        given => return Ok(given),
    };
    if is_sealed(keys, key, &text)? {
        return Ok(Some(Given::Set(text)));
    }
    if text.len() > BYTES_MAX {
        return Err(keys.fault(key, "is longer than 4096 bytes", None));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(keys.fault(key, "contains a space or a character that no header can carry", None));
    }
    Ok(Some(Given::Set(text)))
}

/// `signingSecret`: `whsec_` and the base64 of 24 to 64 bytes, as Standard Webhooks has it.
pub(super) fn signing(keys: &Keys<'_>, current: Option<&Current>) -> Result<Option<Given>, ConfigError> {
    const KEY: &str = "signingSecret";
    let given = match read(keys, KEY, is_stored(current, "signing"))? {
        // At creation as if it had been left out: one is made at random.
        Some(Given::Remove) if current.is_none() => None,
        Some(Given::Remove) => {
            return Err(keys.fault(
                KEY,
                "cannot be taken away: every request is signed",
                Some("replace it with orbhook_rotate_secret"),
            ));
        }
        given => given,
    };
    let Some(Given::Set(text)) = &given else { return Ok(given) };
    if is_sealed(keys, KEY, text)? {
        return Ok(given);
    }
    let bytes = text.strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
    if !bytes.is_some_and(|bytes| (24..=64).contains(&bytes.len())) {
        return Err(keys.fault(
            KEY,
            "is not a signing secret",
            Some("write whsec_ followed by 24 to 64 random bytes in base64"),
        ));
    }
    Ok(given)
}

pub(super) fn is_stored(current: Option<&Current>, name: &str) -> bool {
    current.is_some_and(|current| current.secret_names.iter().any(|stored| stored == name))
}

fn read(keys: &Keys<'_>, key: &str, is_stored: bool) -> Result<Option<Given>, ConfigError> {
    match keys.get(key) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(Given::Remove)),
        Some(Value::String(text)) if text == MASK && is_stored => Ok(Some(Given::Keep)),
        Some(Value::String(text)) if text == MASK => Err(masked(keys, key)),
        Some(Value::String(text)) if text.trim().is_empty() => Err(keys.fault(key, "is empty", None)),
        Some(Value::String(text)) => Ok(Some(Given::Set(text.clone()))),
        Some(_) => Err(keys.fault(key, "is not a text", None)),
    }
}

/// The mask where there is nothing behind it.
pub(super) fn masked(keys: &Keys<'_>, key: &str) -> ConfigError {
    keys.fault(key, "is the mask of a secret, and none is stored", Some("give the secret itself"))
}
