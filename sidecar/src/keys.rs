//! The private keys, and what they open: secrets come sealed from `orbhook.claim` and are opened just before they are used.
//!
//! A key is read from a file that nobody else may read, never from an argument or the environment: those are visible in /proc.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use orbhook_seal::{KeyRing, OpenError, PrivateKey, SEALED_PREFIX};
use uuid::Uuid;

use crate::delivery::{ErrorClass, Fault, Secret, Secrets};

/// A key file holds one line and perhaps a comment.
const FILE_BYTES_MAX: u64 = 4096;

/// Permissions that a key file must not have: anything for group and others.
const MODE_FORBIDDEN: u32 = 0o077;

/// Opened secrets kept, a few for each webhook. Opening one takes about 0.1 ms, which at thousands of deliveries per second is
/// most of a core.
const OPENED_MAX: usize = 16_384;

/// A key file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("{path} may be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    Open { path: String, mode: u32 },
    #[error("{path} {reason}")]
    NoKey { path: String, reason: orbhook_seal::KeyError },
}

/// Reads the files that `orbhook keygen` wrote.
pub(crate) fn read_keys(paths: &[impl AsRef<Path>]) -> Result<KeyRing, KeyFileError> {
    let keys = paths.iter().map(|path| read_key(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
    Ok(KeyRing::new(keys))
}

fn read_key(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let name = path.display().to_string();
    let unreadable =
        |error: std::io::Error| KeyFileError::Unreadable { path: name.clone(), reason: error.to_string() };
    let file = File::open(path).map_err(unreadable)?;
    // Asked of the open file: a path could be another one by now.
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & MODE_FORBIDDEN != 0 {
        return Err(KeyFileError::Open { path: name, mode });
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    PrivateKey::from_text(&text).map_err(|reason| KeyFileError::NoKey { path: name, reason })
}

/// Opens secrets, and remembers those it has opened.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Inner>);

struct Inner {
    ring: KeyRing,
    opened: Mutex<HashMap<String, Opened>>,
}

/// A sealed value opens in one place only; whoever asks for it elsewhere is told so by the ring.
struct Opened {
    webhook: Uuid,
    name: String,
    secret: Secret,
}

impl Keys {
    pub(crate) fn new(ring: KeyRing) -> Keys {
        Keys(Arc::new(Inner { ring, opened: Mutex::new(HashMap::new()) }))
    }

    /// All secrets of a webhook, in plain. One that does not open stops the delivery: nothing is sent unsigned.
    pub(crate) fn open(&self, webhook: Uuid, secrets: Secrets) -> Result<Secrets, Fault> {
        secrets.try_map(|name, value| {
            if !value.expose().starts_with(SEALED_PREFIX) {
                return Ok(value);
            }
            self.open_one(webhook, name, value.expose()).map_err(|error| {
                let class = match error {
                    OpenError::KeyMissing(_) => ErrorClass::Key,
                    OpenError::Damaged | OpenError::Misplaced => ErrorClass::Secret,
                };
                Fault::new(class, format!("nothing was sent: the secret {name:?} {error}"))
            })
        })
    }

    fn open_one(&self, webhook: Uuid, name: &str, value: &str) -> Result<Secret, OpenError> {
        if let Some(secret) = self.remembered(webhook, name, value) {
            return Ok(secret);
        }
        let secret = Secret::new(self.0.ring.open(webhook, name, value)?.as_str());
        let mut opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= OPENED_MAX {
            opened.clear();
        }
        opened.insert(value.to_owned(), Opened { webhook, name: name.to_owned(), secret: secret.clone() });
        Ok(secret)
    }

    fn remembered(&self, webhook: Uuid, name: &str, value: &str) -> Option<Secret> {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let found = opened.get(value)?;
        (found.webhook == webhook && found.name == name).then(|| found.secret.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use orbhook_seal::seal;

    use super::*;

    const WEBHOOK: Uuid = Uuid::from_u128(7);

    #[test]
    fn a_secret_that_was_opened_is_still_bound_to_its_place() {
        let key = PrivateKey::generate();
        let sealed = seal(key.public(), WEBHOOK, "signing", "CANARY").unwrap();
        let secrets = || -> Secrets {
            serde_json::from_value(
                serde_json::json!({"signing": sealed, "endpoint": "https://plain.example/"}),
            )
            .unwrap()
        };
        let keys = Keys::new(KeyRing::new(vec![key]));
        for _ in 0..2 {
            let opened = keys.open(WEBHOOK, secrets()).unwrap();
            assert_eq!(opened.get("signing"), Some("CANARY"));
            assert_eq!(opened.get("endpoint"), Some("https://plain.example/"));
        }
        let fault = keys.open(Uuid::from_u128(8), secrets()).unwrap_err();
        assert_eq!(fault.class, ErrorClass::Secret);
        assert!(!fault.reason.contains("CANARY") && !fault.reason.contains("sealed:"), "{}", fault.reason);
        let fault = Keys::new(KeyRing::default()).open(WEBHOOK, secrets()).unwrap_err();
        assert_eq!(fault.class, ErrorClass::Key);
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let key = PrivateKey::generate();
        let keys = Keys::new(KeyRing::new(vec![key.clone()]));
        {
            let mut opened = keys.0.opened.lock().unwrap();
            for n in 0..OPENED_MAX {
                let entry = Opened { webhook: WEBHOOK, name: String::new(), secret: Secret::new("") };
                opened.insert(n.to_string(), entry);
            }
        }
        let sealed = seal(key.public(), WEBHOOK, "signing", "x").unwrap();
        keys.open_one(WEBHOOK, "signing", &sealed).unwrap();
        assert_eq!(keys.0.opened.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_key_file_is_refused_unless_it_is_its_owners_alone() {
        let path = std::env::temp_dir().join(format!("orbhook-key-{}", std::process::id()));
        let key = PrivateKey::generate();
        fs::write(&path, key.to_text().as_str()).unwrap();
        for (mode, is_accepted) in
            [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = read_keys(&[&path]);
            assert_eq!(read.is_ok(), is_accepted, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "CANARY").unwrap();
        let error = read_keys(&[&path]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(matches!(read_keys(&[&path]), Err(KeyFileError::Unreadable { .. })));
    }
}
