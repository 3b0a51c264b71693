//! Secrets sealed on their way in, and the place that a database is at.

use std::ffi::CStr;

use orbhook_seal::{PublicKey, seal};
use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::fault::{Fault, or_raise};

#[pg_extern(sql = false)]
fn key_id(public_key: Option<&str>) -> String {
    or_raise(parse(public_key)).id().to_string()
}

#[pg_extern(sql = false)]
fn seal_secret(public_key: &str, webhook: Uuid, name: &str, value: &str) -> String {
    let key = or_raise(parse(Some(public_key)));
    let sealed = seal(&key, uuid::Uuid::from_bytes(*webhook.as_bytes()), name, value);
    or_raise(sealed.ok_or_else(|| Fault::Internal("a secret is too large to be sealed".to_owned())))
}

fn parse(public_key: Option<&str>) -> Result<PublicKey, Fault> {
    let text = public_key.ok_or_else(|| Fault::argument("public_key must not be null"))?;
    text.parse().map_err(|error| Fault::Argument {
        message: format!("public_key {error}"),
        hint: Some("orbhook keygen FILE prints it: orbhook-public-key:…".to_owned()),
    })
}

/// The key that seals, as committed now.
///
/// Not by the transaction's snapshot: in REPEATABLE READ a transaction would go on to store secrets in plain after a key has been
/// installed.
#[pg_extern(sql = false)]
fn current_key() -> Option<String> {
    const KEY: &CStr =
        c"select k.public_key from orbhook.sealing_keys k order by k.installed_at desc limit 1";
    // SAFETY: SPI and the snapshot are used between their beginning and end, on this thread; should PostgreSQL raise an error in
    // between, it ends both with the transaction. The text is copied before SPI frees it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        pg_sys::SPI_connect();
        // Read-only: the active snapshot is used as it is.
        let state = pg_sys::SPI_execute(KEY.as_ptr(), true, 1);
        let found = match (
            state == pg_sys::SPI_OK_SELECT as i32,
            pg_sys::SPI_processed,
            pg_sys::SPI_tuptable.as_ref(),
        ) {
            (true, 1.., Some(table)) => {
                let text = pg_sys::SPI_getvalue(*table.vals, table.tupdesc, 1);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
            _ => None,
        };
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
        found
    }
}

/// System identifier of the server and oid of the database.
#[pg_extern(sql = false)]
fn place() -> String {
    // SAFETY: both are set before a session runs its first statement, and do not change while it lasts.
    let (system, database) = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::MyDatabaseId) };
    format!("{system}/{}", database.to_u32())
}
