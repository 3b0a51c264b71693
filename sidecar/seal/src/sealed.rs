//! Sealing one secret, and opening it where it belongs.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use crypto_box::aead::OsRng;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::key::{KeyId, PrivateKey, PublicKey};

/// How a sealed value begins. Anything else is a secret in plain.
pub const SEALED_PREFIX: &str = "sealed:v1:";

/// Keeps boxes made for another purpose from being taken for a secret.
const PURPOSE: &[u8] = b"orbhook secret v1\0";

/// Why a sealed secret cannot be used. Never holds any part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("is sealed with key {0}, which this sidecar was not given")]
    KeyMissing(String),
    #[error("is damaged, or was sealed with another key than it says")]
    Damaged,
    #[error("was sealed for another webhook, or for another secret of this one")]
    Misplaced,
}

/// Seals a secret for one place: a webhook, and the name it has there.
///
/// `signing` and `signing.previous` count as one name: a rotation moves the secret from one to the other, and no key to open it
/// with is at hand then.
pub fn seal(key: &PublicKey, webhook: Uuid, name: &str, secret: &str) -> Option<String> {
    let mut message = Zeroizing::new(place(webhook, name));
    message.extend_from_slice(secret.as_bytes());
    // The only failure is a message too large for the cipher, 256 GiB.
    let sealed = key.key().seal(&mut OsRng, &message).ok()?;
    Some(format!("{SEALED_PREFIX}{}:{}", key.id(), BASE64_URL_SAFE_NO_PAD.encode(sealed)))
}

/// The id of the key a value is sealed with; None when it is in plain, or no sealed value at all.
pub fn key_id_of(value: &str) -> Option<&str> {
    let (id, encoded) = value.strip_prefix(SEALED_PREFIX)?.split_once(':')?;
    let is_id = id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_encoded = !encoded.is_empty()
        && encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    (is_id && is_encoded).then_some(id)
}

/// The private keys a process was given.
#[derive(Debug, Clone, Default)]
pub struct KeyRing(Vec<PrivateKey>);

impl KeyRing {
    pub fn new(keys: Vec<PrivateKey>) -> KeyRing {
        KeyRing(keys)
    }

    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.iter().map(|key| key.public().id())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secret behind a stored value: opened when it is sealed, itself when it is in plain.
    pub fn open(&self, webhook: Uuid, name: &str, value: &str) -> Result<Zeroizing<String>, OpenError> {
        let Some(rest) = value.strip_prefix(SEALED_PREFIX) else {
            return Ok(Zeroizing::new(value.to_owned()));
        };
        let (id, encoded) = rest.split_once(':').ok_or(OpenError::Damaged)?;
        let key = self
            .0
            .iter()
            .find(|key| key.public().id().as_str() == id)
            .ok_or_else(|| OpenError::KeyMissing(id.chars().take(16).collect()))?;
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| OpenError::Damaged)?;
        let message = Zeroizing::new(key.key().unseal(&sealed).map_err(|_| OpenError::Damaged)?);
        let secret = message.strip_prefix(place(webhook, name).as_slice()).ok_or(OpenError::Misplaced)?;
        match std::str::from_utf8(secret) {
            Ok(secret) => Ok(Zeroizing::new(secret.to_owned())),
            Err(_) => Err(OpenError::Damaged),
        }
    }
}

/// What comes before the secret. The name ends with a NUL, which no name contains, so no two places share a beginning.
fn place(webhook: Uuid, name: &str) -> Vec<u8> {
    let name = if name == "signing.previous" { "signing" } else { name };
    [PURPOSE, webhook.as_bytes(), name.as_bytes(), b"\0"].concat()
}
