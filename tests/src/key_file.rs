use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use std::io::Write as _;

use orbhook_seal::{KeyRing, PrivateKey};

/// A private key in a file, as `orbhook keygen` writes it; removed with this value.
pub struct KeyFile {
    key: PrivateKey,
    path: PathBuf,
}

impl KeyFile {
    pub fn new() -> KeyFile {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("orbhook-test-key-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let key = PrivateKey::generate();
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .expect("a file in the temporary directory");
        file.write_all(key.to_text().as_bytes()).expect("the key is written");
        KeyFile { key, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path, for an argument.
    pub fn argument(&self) -> &str {
        self.path.to_str().expect("the temporary directory's path is text")
    }

    /// What `orbhook_install_key` takes.
    pub fn public(&self) -> String {
        self.key.public().to_string()
    }

    pub fn id(&self) -> String {
        self.key.public().id().to_string()
    }

    /// What a sidecar in this process is given.
    pub fn ring(&self) -> KeyRing {
        KeyRing::new(vec![self.key.clone()])
    }

    pub fn ring_with(&self, other: &KeyFile) -> KeyRing {
        KeyRing::new(vec![self.key.clone(), other.key.clone()])
    }
}

impl Default for KeyFile {
    fn default() -> KeyFile {
        KeyFile::new()
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
