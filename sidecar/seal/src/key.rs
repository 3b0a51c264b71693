//! Keys as text. Both kinds carry their id, so that a mistyped key is refused: what is sealed with a key that nobody has is lost.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use crypto_box::aead::OsRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const PUBLIC_PREFIX: &str = "orbhook-public-key:";
const PRIVATE_PREFIX: &str = "orbhook-private-key:";
const KEY_BYTES: usize = 32;

/// Digest bytes in a key's id. Ids tell an operator's few keys apart; they prove nothing.
const ID_BYTES: usize = 8;

/// Names a pair of keys: 16 hexadecimal digits, from the SHA-256 of the public one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

/// Seals. May be known to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    key: crypto_box::PublicKey,
}

/// Opens. Wiped from memory when dropped, and never printed but by [`PrivateKey::to_text`].
#[derive(Clone)]
pub struct PrivateKey {
    public: PublicKey,
    key: crypto_box::SecretKey,
}

/// A text that is no key. Never repeats it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("is not a key made by orbhook keygen")]
    Malformed,
    #[error("is damaged: a character is missing or wrong")]
    Damaged,
    #[error(
        "is the private key where the public one belongs; it has been seen now, so make a new pair with orbhook keygen"
    )]
    PrivateForPublic,
    #[error("is the public key where the private one belongs")]
    PublicForPrivate,
}

impl KeyId {
    fn of(key: &crypto_box::PublicKey) -> KeyId {
        let digest = Sha256::digest(key.as_bytes());
        KeyId(digest.iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PublicKey {
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    pub(crate) fn key(&self) -> &crypto_box::PublicKey {
        &self.key
    }

    fn new(key: crypto_box::PublicKey) -> PublicKey {
        PublicKey { id: KeyId::of(&key), key }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}:{}", self.id, BASE64_URL_SAFE_NO_PAD.encode(self.key.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        if text.trim_start().starts_with(PRIVATE_PREFIX) {
            return Err(KeyError::PrivateForPublic);
        }
        let (id, bytes) = split(text, PUBLIC_PREFIX)?;
        let public = PublicKey::new(crypto_box::PublicKey::from(*bytes));
        if public.id.as_str() == id { Ok(public) } else { Err(KeyError::Damaged) }
    }
}

impl PrivateKey {
    /// A new pair, from the operating system's randomness.
    pub fn generate() -> PrivateKey {
        PrivateKey::new(crypto_box::SecretKey::generate(&mut OsRng))
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What the key file holds.
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.key.to_bytes());
        let encoded = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice()));
        Zeroizing::new(format!("{PRIVATE_PREFIX}{}:{}", self.public.id, encoded.as_str()))
    }

    /// `text`: one key, among empty lines and lines that begin with `#`.
    pub fn from_text(text: &str) -> Result<PrivateKey, KeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(KeyError::Malformed) };
        if line.starts_with(PUBLIC_PREFIX) {
            return Err(KeyError::PublicForPrivate);
        }
        let (id, bytes) = split(line, PRIVATE_PREFIX)?;
        let private = PrivateKey::new(crypto_box::SecretKey::from(*bytes));
        if private.public.id.as_str() == id { Ok(private) } else { Err(KeyError::Damaged) }
    }

    pub(crate) fn key(&self) -> &crypto_box::SecretKey {
        &self.key
    }

    fn new(key: crypto_box::SecretKey) -> PrivateKey {
        PrivateKey { public: PublicKey::new(key.public_key()), key }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.id)
    }
}

fn split<'a>(text: &'a str, prefix: &str) -> Result<(&'a str, Zeroizing<[u8; KEY_BYTES]>), KeyError> {
    let (id, encoded) =
        text.trim().strip_prefix(prefix).and_then(|rest| rest.split_once(':')).ok_or(KeyError::Malformed)?;
    let decoded = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| KeyError::Damaged)?);
    let bytes = <[u8; KEY_BYTES]>::try_from(decoded.as_slice()).map_err(|_| KeyError::Damaged)?;
    Ok((id, Zeroizing::new(bytes)))
}
