//! What the arguments mean: they become a [`Config`] once, at the start. Nothing downstream reads arguments or environment.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use orbhook_address::{IpNet, NetworkError, parse_networks};
use orbhook_seal::KeyRing;

use crate::{
    arguments::{
        ADMIN_LISTEN_DEFAULT, CLAIM_BATCH_DEFAULT, CONCURRENCY_DEFAULT, CheckArguments, DatabaseArguments,
        ENVIRONMENT_DEFAULT, EnvironmentArguments, POLL_MS_DEFAULT, RunArguments,
        SHUTDOWN_GRACE_SECONDS_DEFAULT,
    },
    delivery::Secret,
    keys::{KeyFileError, read_keys},
};

const NAME_CHARACTERS_MAX: usize = 200;
const ENVIRONMENT_BYTES_MAX: usize = 63;

/// A token shorter than this can be guessed.
const ADMIN_TOKEN_BYTES_MIN: usize = 16;

/// An option that cannot be used. Never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error(
        "the database URL cannot be read; write postgres://user:password@host:5432/database, with % escapes in the password"
    )]
    DatabaseUrl,
    #[error("{0} is not understood in the database URL; {1}")]
    DatabaseUrlOption(&'static str, &'static str),
    #[error("the database URL names no host")]
    DatabaseHost,
    #[error("no database is named: set DATABASE_URL or --database-url-file")]
    DatabaseMissing,
    #[error("--database-url-file: cannot read {path}: {reason}")]
    DatabaseUrlFile { path: String, reason: String },
    #[error(
        "--environment must be 1 to {ENVIRONMENT_BYTES_MAX} letters, digits, dots, dashes and underscores, and begin with a letter or digit"
    )]
    Environment,
    #[error("--key-file: {0}")]
    KeyFile(#[from] KeyFileError),
    #[error("--allow-network: {0}")]
    AllowNetwork(#[from] NetworkError),
    #[error("--name must be 1 to {NAME_CHARACTERS_MAX} characters without control characters")]
    Name,
    #[error("--admin-token-file: cannot read {path}: {reason}")]
    AdminTokenFile { path: String, reason: String },
    #[error("the admin token must be at least {ADMIN_TOKEN_BYTES_MIN} printable ASCII characters")]
    AdminToken,
}

/// Everything `run` needs, checked. Start from [`Config::for_database`] and set what differs.
#[derive(Debug, Clone)]
pub struct Config {
    pub database: Database,
    pub name: String,
    /// What the database must be armed as; a database that has never sent is armed as this.
    pub environment: String,
    /// What sealed secrets are opened with.
    pub keys: KeyRing,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// Deliveries per claim at most.
    pub claim_batch: usize,
    pub poll: Duration,
    /// Reachable although not public.
    pub allow_networks: Vec<IpNet>,
    /// Trusted for endpoints, beside the system's roots.
    pub ca_file: Option<PathBuf>,
    pub shutdown_grace: Duration,
    /// None: no admin listener.
    pub admin: Option<Admin>,
}

/// Where the database is.
#[derive(Clone)]
pub struct Database {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) ca_file: Option<PathBuf>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // tokio-postgres hides the password, but not `options`.
        f.debug_struct("Database").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    pub listen: SocketAddr,
    /// None: no GraphQL, only health and metrics.
    pub(crate) token: Option<Secret>,
}

impl Admin {
    /// `token`: what a client must send as `Authorization: Bearer …`.
    pub fn new(listen: SocketAddr, token: &str) -> Result<Admin, ConfigError> {
        if token.len() < ADMIN_TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ConfigError::AdminToken);
        }
        Ok(Admin { listen, token: Some(Secret::new(token)) })
    }

    /// Health and metrics only.
    pub fn without_token(listen: SocketAddr) -> Admin {
        Admin { listen, token: None }
    }
}

impl Config {
    /// The defaults, for one database.
    pub fn for_database(url: &str) -> Result<Config, ConfigError> {
        Ok(Config {
            database: Database::parse(url, None)?,
            name: host_name(),
            environment: ENVIRONMENT_DEFAULT.to_owned(),
            keys: KeyRing::default(),
            concurrency: to_usize(CONCURRENCY_DEFAULT),
            claim_batch: to_usize(CLAIM_BATCH_DEFAULT),
            poll: Duration::from_millis(POLL_MS_DEFAULT),
            allow_networks: Vec::new(),
            ca_file: None,
            shutdown_grace: Duration::from_secs(SHUTDOWN_GRACE_SECONDS_DEFAULT),
            admin: None,
        })
    }

    /// Ids of the keys, as the database knows them.
    pub(crate) fn key_ids(&self) -> Vec<String> {
        self.keys.ids().map(ToString::to_string).collect()
    }

    /// Validates what was typed. Reads the token file and the key files.
    pub fn from_arguments(arguments: RunArguments) -> Result<Config, ConfigError> {
        let name = arguments.name.unwrap_or_else(host_name);
        let characters = name.chars().count();
        if characters == 0 || characters > NAME_CHARACTERS_MAX || name.chars().any(char::is_control) {
            return Err(ConfigError::Name);
        }
        let token = match (arguments.admin_token, arguments.admin_token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(read_token(&path)?),
            (None, None) => None,
        };
        let admin = match (token, arguments.admin_listen) {
            (Some(token), listen) => Some(Admin::new(listen.unwrap_or(ADMIN_LISTEN_DEFAULT), token.trim())?),
            (None, Some(listen)) => Some(Admin::without_token(listen)),
            (None, None) => None,
        };
        Ok(Config {
            database: arguments.database.parse()?,
            name,
            environment: arguments.environment.parse()?,
            keys: read_keys(&arguments.keys.key_file)?,
            concurrency: to_usize(arguments.concurrency),
            claim_batch: to_usize(arguments.claim_batch),
            poll: Duration::from_millis(arguments.poll_ms),
            allow_networks: parse_networks(&arguments.allow_network.join(","))?,
            ca_file: arguments.ca_file,
            shutdown_grace: Duration::from_secs(arguments.shutdown_grace_seconds),
            admin,
        })
    }
}

impl Database {
    /// `url`: a URL or key=value pairs, as libpq takes them. `ca_file`: what the server's certificate is verified against.
    pub fn parse(url: &str, ca_file: Option<PathBuf>) -> Result<Database, ConfigError> {
        // libpq's words for what `require` already does here.
        let url = url
            .replace("sslmode=verify-full", "sslmode=require")
            .replace("sslmode=verify-ca", "sslmode=require");
        let config: tokio_postgres::Config = url.parse().map_err(|_| explain(&url))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(ConfigError::DatabaseHost);
        }
        Ok(Database { config, ca_file })
    }
}

/// Everything `check` needs.
#[derive(Debug, Clone)]
pub struct CheckConfig {
    pub database: Database,
    pub environment: String,
    pub keys: KeyRing,
}

impl CheckConfig {
    /// Validates what was typed. Reads the key files.
    pub fn from_arguments(arguments: CheckArguments) -> Result<CheckConfig, ConfigError> {
        Ok(CheckConfig {
            database: arguments.database.parse()?,
            environment: arguments.environment.parse()?,
            keys: read_keys(&arguments.keys.key_file)?,
        })
    }
}

impl DatabaseArguments {
    pub(crate) fn parse(self) -> Result<Database, ConfigError> {
        let url = match (self.database_url_file, self.database_url) {
            (Some(path), _) => read_url(&path)?,
            (None, Some(url)) => url,
            (None, None) => return Err(ConfigError::DatabaseMissing),
        };
        Database::parse(url.trim(), self.database_ca_file)
    }
}

impl EnvironmentArguments {
    fn parse(self) -> Result<String, ConfigError> {
        let name = self.environment;
        let is_plain = name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.len() <= ENVIRONMENT_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if is_plain { Ok(name) } else { Err(ConfigError::Environment) }
    }
}

fn read_url(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::DatabaseUrlFile {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

/// Options of libpq that people bring along. Only names from this list are ever repeated: the rest could be part of a password.
fn explain(url: &str) -> ConfigError {
    const FOREIGN: [(&str, &str); 7] = [
        ("sslrootcert", "pass the file with --database-ca-file"),
        ("sslcert", "client certificates are not supported"),
        ("sslkey", "client certificates are not supported"),
        ("sslcrl", "revocation lists are not supported"),
        ("passfile", "put the password into DATABASE_URL"),
        ("service", "write out host, user and dbname"),
        ("gssencmode", "leave it out; GSSAPI is not used"),
    ];
    FOREIGN
        .iter()
        .find(|(name, _)| url.contains(&format!("{name}=")))
        .map_or(ConfigError::DatabaseUrl, |(name, advice)| ConfigError::DatabaseUrlOption(name, advice))
}

fn read_token(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::AdminTokenFile {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "orbhook".to_owned(),
        name => name.to_owned(),
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn run(extra: &[&str]) -> Result<Config, String> {
        let all = ["orbhook", "run", "--database-url", "postgres://u:CANARY@h/d"].iter().chain(extra);
        match Arguments::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Run(arguments) => Config::from_arguments(*arguments).map_err(|error| error.to_string()),
            _ => unreachable!("run was typed"),
        }
    }

    #[test]
    fn the_defaults_typed_and_built_are_the_same() {
        let typed = run(&[]).unwrap();
        let built = Config::for_database("postgres://u:CANARY@h/d").unwrap();
        assert_eq!(format!("{typed:?}"), format!("{built:?}"));
        assert_eq!((built.concurrency, built.claim_batch), (512, 200));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for wrong in [
            ["--concurrency", "0"],
            ["--concurrency", "10001"],
            ["--claim-batch", "0"],
            ["--claim-batch", "1001"],
            ["--poll-ms", "99"],
            ["--poll-ms", "1001"],
            ["--shutdown-grace-seconds", "601"],
            ["--admin-listen", "localhost"],
            ["--allow-network", "10.0.0.1/8"],
            ["--name", ""],
            ["--name", "a\nb"],
            ["--environment", ""],
            ["--environment", "-prod"],
            ["--environment", "a b"],
            ["--key-file", "/nowhere/at/all"],
            ["--database-url-file", "/nowhere/at/all"],
            ["--admin-token", "short"],
            ["--admin-token", "with a space in the middle"],
            ["--admin-token-file", "/nowhere/at/all"],
            ["--log-format", "xml"],
        ] {
            assert!(run(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn networks_may_be_repeated_or_separated_by_commas() {
        let config =
            run(&["--allow-network", "10.0.0.0/8,::1/128", "--allow-network", "127.0.0.0/8"]).unwrap();
        assert_eq!(config.allow_networks.len(), 3);
    }

    #[test]
    fn nothing_that_is_printed_holds_a_secret() {
        let config = run(&["--admin-token", "CANARY-CANARY-CANARY"]).unwrap();
        assert!(!format!("{config:?}").contains("CANARY"), "{config:?}");
        for broken in
            ["postgres://u:CANARY@h:port/d", "host=h password=CANARY x", "CANARY", "postgres://u:CANARY@"]
        {
            let error = Database::parse(broken, None).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
        }
    }

    #[test]
    fn urls_written_for_libpq_are_understood_or_explained() {
        for good in [
            "postgres://u@h/d?sslmode=verify-full",
            "host=a,b port=1,2 user=u dbname=d target_session_attrs=read-write sslmode=verify-ca",
            "postgresql:///d?host=/run/postgresql",
        ] {
            assert!(Database::parse(good, None).is_ok(), "{good}");
        }
        let error = Database::parse("postgres://u@h/d?sslrootcert=/ca.pem", None).unwrap_err();
        assert!(error.to_string().contains("--database-ca-file"), "{error}");
        assert_eq!(Database::parse("user=u dbname=d", None).unwrap_err(), ConfigError::DatabaseHost);
    }
}
