//! What can be typed: every option by flag and by environment variable, with its unit, range and default.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

pub(crate) const CONCURRENCY_DEFAULT: u32 = 512;
pub(crate) const ENVIRONMENT_DEFAULT: &str = "default";
pub(crate) const CLAIM_BATCH_DEFAULT: u32 = 200;
pub(crate) const POLL_MS_DEFAULT: u64 = 1000;
const TOP_WINDOW_SECONDS_DEFAULT: i32 = 30;
const TOP_INTERVAL_SECONDS_DEFAULT: u64 = 2;
pub(crate) const SHUTDOWN_GRACE_SECONDS_DEFAULT: u64 = 20;
pub(crate) const ADMIN_LISTEN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8901);

/// Delivers PostgreSQL's committed changes as webhooks.
#[derive(Debug, Parser)]
#[command(
    name = "orbhook",
    version,
    about,
    after_help = "Every option can be given by flag or by environment variable; a flag wins.\n\
                  Give secrets (DATABASE_URL, ORBHOOK_ADMIN_TOKEN) by environment or file: arguments are visible to every user of the machine."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Claim what is due, POST it, report what happened, until SIGTERM or SIGINT.
    ///
    /// The first signal lets requests in flight finish (see --shutdown-grace-seconds), the second ends the process at once.
    /// Exit codes: 0 stopped as asked, 1 failed, 2 an option is wrong, 130 ended by a second signal.
    Run(Box<RunArguments>),
    /// Say in plain words whether the database is ready for `orbhook run`.
    ///
    /// Exit codes: 0 ready, 1 unexpected trouble, 2 an option is wrong, 10 cannot connect, 11 extension missing,
    /// 12 version mismatch, 13 a privilege is missing, 14 a standby, 15 a copy or another environment's (nothing is sent),
    /// 16 the key that secrets are sealed with is missing.
    Check(CheckArguments),
    /// Show what flows, per webhook, live. On a terminal: q or Ctrl-C ends it. In a pipe: one snapshot.
    ///
    /// Connect as a role that `orbhook_grant(role, 'reader')` was called for.
    /// Exit codes: 0 ended as asked, 1 unexpected trouble, 2 an option is wrong, 10 cannot connect, 11 extension missing,
    /// 13 a privilege is missing, 14 a standby.
    Top(TopArguments),
    /// Make a pair of keys for sealing secrets: the private one goes into FILE (mode 0600), the public one is printed.
    ///
    /// Start every sidecar with --key-file FILE, then install the public key: select orbhook_install_key('orbhook-public-key:…').
    Keygen(KeygenArguments),
    /// Seal a secret on this machine, so that the server's statements and logs never hold it.
    ///
    /// Reads the secret from standard input and prints what to give orbhook_update_webhook in its place. It fits that webhook and
    /// that key of its configuration alone.
    Seal(SealArguments),
    /// Seal with the key installed last what is still sealed with an older one. Needs the files of the older keys.
    Reseal(ResealArguments),
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    #[command(flatten)]
    pub(crate) database: DatabaseArguments,
    #[command(flatten)]
    pub(crate) environment: EnvironmentArguments,
    #[command(flatten)]
    pub(crate) keys: KeyArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Debug, Args)]
pub struct TopArguments {
    #[command(flatten)]
    pub(crate) database: DatabaseArguments,

    /// Requests of the last so many seconds are counted, 1 to 3600
    #[arg(long, env = "ORBHOOK_TOP_WINDOW_SECONDS", default_value_t = TOP_WINDOW_SECONDS_DEFAULT,
          value_parser = clap::value_parser!(i32).range(1..=3_600))]
    pub(crate) window_seconds: i32,

    /// Seconds between two looks, 1 to 60. A database that takes long to answer is asked less often
    #[arg(long, env = "ORBHOOK_TOP_INTERVAL_SECONDS", default_value_t = TOP_INTERVAL_SECONDS_DEFAULT,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) interval_seconds: u64,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub(crate) database: DatabaseArguments,
    #[command(flatten)]
    pub(crate) environment: EnvironmentArguments,
    #[command(flatten)]
    pub(crate) keys: KeyArguments,

    /// How this sidecar is called in the database and in logs, 1 to 200 characters [default: the host's name]
    #[arg(long, env = "ORBHOOK_NAME")]
    pub(crate) name: Option<String>,

    /// Requests in flight at most, 1 to 10000
    #[arg(long, env = "ORBHOOK_CONCURRENCY", default_value_t = CONCURRENCY_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,

    /// Deliveries claimed in one statement at most, 1 to 1000
    #[arg(long, env = "ORBHOOK_CLAIM_BATCH", default_value_t = CLAIM_BATCH_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) claim_batch: u32,

    /// Look for due work at least this often, in milliseconds, 100 to 1000. Only matters when a notification was lost
    #[arg(long, env = "ORBHOOK_POLL_MS", default_value_t = POLL_MS_DEFAULT,
          value_parser = clap::value_parser!(u64).range(100..=1_000))]
    pub(crate) poll_ms: u64,

    /// Network that webhooks may reach although it is not public, as CIDR (10.1.0.0/16, ::1/128); repeat it or separate by commas [default: none]
    #[arg(long, env = "ORBHOOK_ALLOW_NETWORK", value_name = "CIDR")]
    pub(crate) allow_network: Vec<String>,

    /// PEM file of certificate authorities trusted for endpoints, beside the system's [default: none]
    #[arg(long, env = "ORBHOOK_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// After the first SIGTERM, let requests in flight finish for so many seconds, 0 to 600
    #[arg(long, env = "ORBHOOK_SHUTDOWN_GRACE_SECONDS", default_value_t = SHUTDOWN_GRACE_SECONDS_DEFAULT,
          value_parser = clap::value_parser!(u64).range(0..=600))]
    pub(crate) shutdown_grace_seconds: u64,

    /// Address of the admin listener: /healthz, /readyz and /metrics, which need no token, and /graphql, which is there when a
    /// token is set [default: none; 127.0.0.1:8901 when a token is set]
    #[arg(long, env = "ORBHOOK_ADMIN_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) admin_listen: Option<SocketAddr>,

    /// File that holds the bearer token for /graphql, at least 16 characters [default: none]
    #[arg(long, env = "ORBHOOK_ADMIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "admin_token")]
    pub(crate) admin_token_file: Option<PathBuf>,

    /// The bearer token itself. Give it by environment, not as an argument [default: none]
    #[arg(long, env = "ORBHOOK_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) admin_token: Option<String>,

    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Debug, Args)]
pub struct KeygenArguments {
    /// Where the private key goes. The file must not exist yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub struct SealArguments {
    /// The webhook's id
    #[arg(long, value_name = "ID")]
    pub(crate) webhook: Uuid,

    /// Which of its secrets: endpoint, signingSecret, apiKey, api_key, or header.NAME
    #[arg(long, value_name = "KEY", default_value = "signingSecret")]
    pub(crate) secret: String,

    /// The public key to seal with [default: the one installed in the database]
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,

    #[command(flatten)]
    pub(crate) database: DatabaseArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Debug, Args)]
pub struct ResealArguments {
    #[command(flatten)]
    pub(crate) database: DatabaseArguments,
    #[command(flatten)]
    pub(crate) keys: KeyArguments,
    #[command(flatten)]
    pub log: LogArguments,
}

#[derive(Debug, Args)]
pub(crate) struct EnvironmentArguments {
    /// What this installation is called, 1 to 63 letters, digits, dots, dashes and underscores. A database sends for one environment
    /// only, so a snapshot of production that is started as another one stays silent
    #[arg(long, env = "ORBHOOK_ENVIRONMENT", default_value = ENVIRONMENT_DEFAULT, value_name = "NAME")]
    pub(crate) environment: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    /// File with a private key that secrets are sealed for (orbhook keygen), readable by its owner alone; repeat it or separate by
    /// commas while keys are changed [default: none]
    #[arg(long, env = "ORBHOOK_KEY_FILE", value_name = "FILE", value_delimiter = ',')]
    pub(crate) key_file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DatabaseArguments {
    /// The database, as URL (postgres://user@host/db) or as key=value pairs; several hosts may be listed, the primary is used.
    /// Give it by environment or file, not as an argument. sslmode: disable, prefer, require (which verifies the certificate)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,

    /// File that holds the database URL; it wins over --database-url. A process's environment can be read by its user, a file need
    /// not be [default: none]
    #[arg(long, env = "ORBHOOK_DATABASE_URL_FILE", value_name = "FILE")]
    pub(crate) database_url_file: Option<PathBuf>,

    /// PEM file of the certificate authorities that the database's certificate is verified against [default: the system's]
    #[arg(long, env = "ORBHOOK_DATABASE_CA_FILE", value_name = "FILE")]
    pub(crate) database_ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LogArguments {
    /// How log lines look, on standard error
    #[arg(long, env = "ORBHOOK_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or a filter such as orbhook_sidecar::wake=debug,info
    #[arg(long, env = "ORBHOOK_LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_option_has_an_environment_variable_and_an_explanation() {
        // What differs from one call to the next has no place in an environment.
        const OF_ONE_CALL: [&str; 4] = ["file", "webhook", "secret", "public_key"];
        for command in Arguments::command().get_subcommands() {
            for option in command.get_arguments().filter(|option| option.get_id() != "help") {
                let id = option.get_id();
                let variable = option.get_env().unwrap_or_default().to_string_lossy().into_owned();
                let is_of_one_call = OF_ONE_CALL.contains(&id.as_str());
                assert!(
                    is_of_one_call || variable == "DATABASE_URL" || variable.starts_with("ORBHOOK_"),
                    "{id}: {variable}"
                );
                assert!(option.get_help().is_some(), "{id} has no help");
            }
        }
    }
}
