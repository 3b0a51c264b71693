//! Ids and secrets: random, made here and not in SQL.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgrx::prelude::*;
use rand::TryRng as _;

use crate::fault::{Fault, or_raise};

/// Length of a signing secret made here, in bytes. Standard Webhooks asks for 24 to 64.
const SIGNING_SECRET_BYTES: usize = 32;

/// A UUIDv7: begins with the time, so that indexes stay dense; increases within a session.
///
/// Never a sequence: after a failover to a standby that lags, a sequence hands out the same number twice.
pub(crate) fn new_uuid() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes())
}

#[pg_extern(sql = false)]
fn new_id() -> pgrx::Uuid {
    new_uuid()
}

#[pg_extern(sql = false)]
fn new_signing_secret() -> String {
    let mut secret = [0; SIGNING_SECRET_BYTES];
    or_raise(
        rand::rngs::SysRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| Fault::Internal(format!("the operating system gave no random bytes: {error}"))),
    );
    format!("whsec_{}", STANDARD.encode(secret))
}
