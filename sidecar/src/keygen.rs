//! `orbhook keygen`: a new pair of keys. The private one goes into a file, the public one is printed.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt};

use orbhook_seal::PrivateKey;

use crate::{arguments::KeygenArguments, error::Error};

const KEY_FILE_MODE: u32 = 0o600;

/// Writes the private key and returns the public one. Never overwrites a file: the key in it may be the only one that opens what
/// it sealed.
pub fn keygen(arguments: &KeygenArguments) -> Result<String, Error> {
    let key = PrivateKey::generate();
    let path = &arguments.file;
    let failed = |error: std::io::Error| Error::KeyFile {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(KEY_FILE_MODE).open(path).map_err(failed)?;
    let text = zeroize::Zeroizing::new(format!(
        "# orbhook: opens secrets sealed with {}. Keep a copy, but not where the database's backups are.\n{}\n",
        key.public(),
        key.to_text().as_str()
    ));
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(key.public().to_string())
}
