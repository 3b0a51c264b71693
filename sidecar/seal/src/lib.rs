//! Secrets at rest.
//!
//! A secret is sealed where it comes in (the extension, or `orbhook seal` on the operator's machine) and opened where it is used
//! (the sidecar). Sealing needs the public key alone, which lies in the database; the private key is a file beside the sidecar.
//! So a dump, a replica or a superuser's SELECT shows nothing that could be used.
//!
//! ```text
//! sealed:v1:<key id>:<base64url of a NaCl sealed box: X25519, XSalsa20-Poly1305>
//!                      └ "orbhook secret v1\0", webhook id (16 bytes), name, "\0", secret
//! ```
//!
//! A sealed box has no associated data. What it belongs to is inside, and checked on opening: a box copied to another webhook, or
//! to another name, does not open there.

mod key;
mod sealed;

pub use key::{KeyError, KeyId, PrivateKey, PublicKey};
pub use sealed::{KeyRing, OpenError, SEALED_PREFIX, key_id_of, seal};
