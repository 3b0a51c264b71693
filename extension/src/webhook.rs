//! Configuration objects: validated by the pure crate, plus the address policy of this server.

use orbhook_address::{Policy, parse_networks};
use orbhook_providers::webhook::{self, ConfigError, Current};
use orbhook_seal::key_id_of;
use pgrx::prelude::*;

use crate::fault::{Fault, or_raise};
use crate::settings;

#[pg_extern(sql = false)]
fn validate_webhook(config: Option<&str>, current: Option<&str>) -> String {
    or_raise(validate(config, current))
}

fn validate(config: Option<&str>, current: Option<&str>) -> Result<String, Fault> {
    let config = config.ok_or_else(|| Fault::argument("config must be a JSON object, not null"))?;
    let current: Option<Current> = current.map(serde_json::from_str).transpose().map_err(|error| {
        Fault::Internal(format!("a webhook's current configuration is unreadable: {error}"))
    })?;
    let webhook = webhook::validate(config, current.as_ref()).map_err(argument)?;
    if let Some(Some(endpoint)) = webhook.secrets.get("endpoint") {
        match (key_id_of(endpoint), &webhook.endpoint_scheme, &webhook.endpoint_host) {
            // Sealed on the client, with scheme and host in clear beside it.
            (Some(_), Some(scheme), Some(host)) => check_address(&format!("{scheme}://{host}/"))?,
            _ => check_address(endpoint)?,
        }
    }
    serde_json::to_string(&webhook).map_err(|error| Fault::Internal(error.to_string()))
}

fn argument(error: ConfigError) -> Fault {
    Fault::Argument { message: error.to_string(), hint: error.hint }
}

/// An early, friendly error. The sidecar's own check, of the address it dials, is the one that counts.
fn check_address(endpoint: &str) -> Result<(), Fault> {
    let networks = parse_networks(&settings::allow_networks())
        .map_err(|error| Fault::argument(format!("orbhook.allow_networks: {error}")))?;
    Policy::new(networks).check_url(endpoint).map(|_| ()).map_err(|refused| Fault::Argument {
        message: format!("endpoint {refused}"),
        hint: Some("a superuser can open a network with the setting orbhook.allow_networks".to_owned()),
    })
}
