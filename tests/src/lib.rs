//! How a test is built: a private PostgreSQL, a database of its own, a scriptable receiver, the real sidecar.
//!
//! ```ignore
//! #[tokio::test]
//! async fn an_event_reaches_the_receiver() {
//!     let database = Database::new().await;                     // from a template that has the extension
//!     let receiver = Receiver::start().await;                   // answers 200 unless told otherwise
//!     database.create_webhook(generic(&receiver.url("/hook"))).await;
//!     let _sidecar = Sidecar::start(&database).await;           // in this process; SidecarProcess for crashes
//!     database.emit("USER_CREATED", json!({"userId": 1})).await;
//!     let requests = receiver.requests(1).await;                // waits with a deadline
//! }
//! ```
//!
//! Nothing sleeps. What takes time is waited for with [`wait_until`], which has a deadline and says what it waited for.

mod canary;
mod cluster;
mod database;
mod hostile;
mod hostile_h2;
mod http;
mod key_file;
mod namespace;
mod pooler;
mod queue;
mod receiver;
mod results;
mod sidecar;
mod signature;
mod storm;
mod tls;
mod tunnel;
mod vectors;
mod wait;
mod window;

pub use canary::Canaries;
pub use cluster::{Clock, Cluster, ShutdownMode, TEMPLATE};
pub use database::{Database, Refusal, Session, generic};
pub use hostile::{Hostile, Misbehaviour};
pub use http::{Incoming, Request, read_request};
pub use key_file::KeyFile;
pub use namespace::{NameServer, Trap, connections_begun, is_in_namespace};
pub use pooler::Pooler;
pub use queue::{Claimed, Claimer, answered};
pub use receiver::{Answer, Gate, Receiver};
pub use results::{load, machine, write_section};
pub use sidecar::{Sidecar, SidecarProcess, orbhook_command};
pub use signature::{signature, unix_seconds, verify_signature};
pub use storm::{SqlStorm, StormOutcome};
pub use tls::{Authority, Identity};
pub use tunnel::Tunnel;
pub use vectors::{blocked_addresses, blocked_urls};
pub use wait::{DEADLINE, pause, wait_until};
pub use window::{Standstill, most_within};
