//! Which addresses a webhook may dial.
//!
//! A webhook's endpoint is chosen by whoever may write configuration, and dialled by a process that stands inside the network.
//! So everything that is not plainly a public address is refused unless the operator opens it by network.
//! Pure: no DNS, no sockets, no environment. The extension asks when an endpoint is stored, the sidecar asks again before it dials;
//! the sidecar's answer is the one that counts.

mod networks;
mod policy;
mod ranges;

pub use ipnet::IpNet;
pub use networks::{NetworkError, parse_networks};
pub use policy::{Blocked, Policy, Refused};
pub use url::Url;
