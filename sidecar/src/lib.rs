//! The sidecar: claims what is due, POSTs it signed, reports what happened.
//!
//! ```text
//! wake    LISTEN, timer, doorbell: a hint that there may be work
//!   ▼
//! claim   select * from orbhook.claim(…): leased, committed, rendered
//!   ▼
//! send    sign, POST; no transaction open. An outcome, never an error
//!   ▼
//! settle  select * from orbhook.settle(…): delivered, retry at, or failed
//! ```
//!
//! `worker` holds all control flow; `claim`, `send` and `settle` never import each other. The database is the only state: the
//! process can be killed at any point, and a lease brings the delivery back. It names no table: its role may call a handful of
//! functions and nothing else.

#![forbid(unsafe_code)]

mod admin;
mod arguments;
mod backoff;
mod campaign;
mod check;
mod claim;
mod clean;
mod client;
mod config;
mod db;
mod deliver;
mod delivery;
mod dial;
mod error;
mod fault;
mod gauges;
mod graphql;
mod idle;
mod keygen;
mod keys;
mod lead;
mod link;
mod log;
mod metrics;
mod outage;
mod redact;
mod reseal;
mod resolve;
mod seal;
mod send;
mod settle;
mod sign;
mod supervisor;
mod tls;
mod top;
mod upkeep;
mod wake;
mod worker;

use std::sync::Arc;

use orbhook_address::Policy;
use tokio::sync::watch;

use crate::{admin::Exposition, metrics::Metrics, upkeep::Upkeep};

pub use arguments::{
    Arguments, CheckArguments, Command, KeygenArguments, LogArguments, LogFormat, ResealArguments,
    RunArguments, SealArguments, TopArguments,
};
pub use check::check;
pub use config::{Admin, CheckConfig, Config, ConfigError, Database};
pub use error::{DatabaseError, Error};
pub use keygen::keygen;
pub use keys::KeyFileError;
pub use log::start as start_log;
pub use reseal::reseal;
pub use seal::seal;
pub use tls::CertificateError;
pub use top::top;

/// Delivers until `shutdown` is ready, then finishes what is in flight.
///
/// Trouble with the database is said once and waited out, at the start as well as later. Errors: an option that cannot be used
/// (a certificate file, the admin listener's address), or a task of the sidecar itself that failed.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let tls = tls::outbound(config.ca_file.as_deref())?;
    let policy = Policy::new(config.allow_networks.clone());
    let http = client::HttpClient::new(policy, Arc::new(resolve::SystemLookup), tls, config.concurrency)
        .map_err(|error| Error::HttpClient(error.to_string()))?;
    let connector = db::Connector::new(&config.database)?;
    let (ready, is_ready) = watch::channel(false);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        environment = config.environment,
        concurrency = config.concurrency,
        claim_batch = config.claim_batch,
        "orbhook starts"
    );
    let metrics = Metrics::default();
    let upkeep = Arc::new(Upkeep::new(connector.clone(), metrics.clone()));
    let _listener = match &config.admin {
        Some(admin) => {
            let exposition = Exposition::new(&metrics, Arc::clone(&upkeep));
            Some(admin::listen(admin, connector.clone(), exposition, is_ready.clone()).await?)
        }
        None => {
            tracing::info!(
                "neither an admin token nor --admin-listen is set: no admin listener, no /metrics"
            );
            None
        }
    };
    let shutdown = async {
        shutdown.await;
        supervisor::stopping();
    };
    tokio::select! {
        ended = worker::work(&config, http, connector, metrics, ready, shutdown) => ended,
        never = upkeep.tend() => match never {},
        never = supervisor::report(is_ready) => match never {},
    }
}
