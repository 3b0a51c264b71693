//! Why the sidecar cannot start, had to end, or has to wait.

use std::net::SocketAddr;

use tokio_postgres::error::SqlState;

use crate::{config::ConfigError, tls::CertificateError};

/// What [`run`](crate::run) and [`check`](crate::check) return. The message says what, [`Error::hint`] how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the HTTP client cannot be set up: {0}")]
    HttpClient(String),
    #[error("--log-level: {0} is not a filter")]
    LogFilter(String),
    #[error("the admin listener cannot use {address}: {reason}")]
    AdminListen { address: SocketAddr, reason: String },
    #[error("the {0} task has failed; this is a bug")]
    Task(&'static str),
    #[error("the terminal cannot be used: {0}")]
    Terminal(String),
    #[error("the role may not call orbhook.top")]
    NoReader,
    #[error("the database has no function orbhook.top")]
    NothingToShow,
    #[error("cannot write the key to {path}: {reason}")]
    KeyFile { path: String, reason: String },
    #[error("{0}")]
    PublicKey(String),
    /// Never repeats the secret.
    #[error("the secret {0}")]
    Secret(String),
    #[error("{done} secrets were sealed anew, and these could not be opened:\n{failed}")]
    Unopened { done: u64, failed: String },
}

impl Error {
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Database(error) => Some(error.hint()),
            Error::Config(_) => Some("see orbhook run --help"),
            Error::LogFilter(_) => {
                Some("write a level (info) or targets with levels (orbhook_sidecar::wake=debug,info)")
            }
            Error::AdminListen { .. } => {
                Some("choose another address with --admin-listen; each sidecar of a machine needs its own")
            }
            Error::Terminal(_) => Some("in a pipe it prints one snapshot: orbhook top | cat"),
            Error::NoReader => {
                Some("run SELECT orbhook_grant('<role>', 'reader') as a superuser in that database")
            }
            Error::NothingToShow => {
                Some("run CREATE EXTENSION orbhook in that database, or ALTER EXTENSION orbhook UPDATE")
            }
            Error::KeyFile { .. } => {
                Some("choose a file that does not exist yet: a key is never overwritten")
            }
            Error::PublicKey(_) => {
                Some("orbhook keygen prints a public key, orbhook_install_key(key) installs it")
            }
            Error::Secret(_) => Some("see orbhook seal --help"),
            Error::Unopened { .. } => Some(
                "give the files of all keys in orbhook.keys with --key-file; a secret that is damaged must be set anew",
            ),
            Error::Certificate(_) | Error::HttpClient(_) | Error::Task(_) => None,
        }
    }

    /// The process's exit code, as `orbhook check --help` documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_)
            | Error::LogFilter(_)
            | Error::Certificate(_)
            | Error::KeyFile { .. }
            | Error::PublicKey(_)
            | Error::Secret(_) => 2,
            Error::Database(DatabaseError::CannotConnect { .. }) => 10,
            Error::Database(DatabaseError::ExtensionMissing { .. }) | Error::NothingToShow => 11,
            Error::Database(DatabaseError::VersionMismatch { .. }) => 12,
            Error::Database(DatabaseError::NoPrivilege { .. }) | Error::NoReader => 13,
            Error::Database(DatabaseError::Standby { .. }) => 14,
            Error::Database(DatabaseError::Silenced { .. }) => 15,
            Error::Database(DatabaseError::KeyMissing { .. }) | Error::Unopened { .. } => 16,
            _ => 1,
        }
    }
}

/// What stands between the sidecar and its work. Branch on the variant; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    #[error("cannot connect to PostgreSQL at {server}: {reason}")]
    CannotConnect { server: String, reason: String },
    #[error("the extension orbhook is not installed in database {database:?}")]
    ExtensionMissing { database: String },
    #[error("the extension in the database is version {extension}, this sidecar is version {sidecar}")]
    VersionMismatch { extension: String, sidecar: String },
    #[error("the role may not {action}")]
    NoPrivilege { action: String },
    #[error("{server} is a standby or read-only")]
    Standby { server: String },
    /// A copy of a database that sends, or another environment's.
    #[error("nothing is sent from here: {reason}")]
    Silenced { reason: String, hint: String },
    #[error("{reason}")]
    KeyMissing { reason: String, hint: String },
    #[error("lost the connection to PostgreSQL: {reason}")]
    Lost { reason: String },
    #[error("PostgreSQL refused a statement: {message} (SQLSTATE {code})")]
    Statement { code: String, message: String },
    #[error("PostgreSQL returned something unexpected: {reason}")]
    Unexpected { reason: String },
}

impl DatabaseError {
    /// How to fix it.
    pub fn hint(&self) -> &str {
        match self {
            DatabaseError::CannotConnect { .. } => {
                "check DATABASE_URL, that the server runs, and its pg_hba.conf"
            }
            DatabaseError::ExtensionMissing { .. } => "run CREATE EXTENSION orbhook in that database",
            DatabaseError::VersionMismatch { .. } => {
                "run ALTER EXTENSION orbhook UPDATE, or install the sidecar of the extension's version"
            }
            DatabaseError::NoPrivilege { .. } => {
                "run SELECT orbhook_grant('<role>', 'sender') as a superuser in that database"
            }
            DatabaseError::Standby { .. } => {
                "list all servers in DATABASE_URL (host=a,b); the sidecar follows the primary"
            }
            DatabaseError::Silenced { hint, .. } | DatabaseError::KeyMissing { hint, .. } => hint,
            DatabaseError::Lost { .. } => {
                "the sidecar reconnects by itself; see the server's log for the cause"
            }
            DatabaseError::Statement { .. } | DatabaseError::Unexpected { .. } => {
                "see the server's log for the statement"
            }
        }
    }

    /// The connection is of no more use.
    pub(crate) fn ends_connection(&self) -> bool {
        !matches!(self, DatabaseError::Statement { .. } | DatabaseError::Unexpected { .. })
    }

    /// The same statement may succeed a moment later: serialization, deadlock, lock, cancel, out of resources.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            DatabaseError::Statement { code, .. } => {
                ["40001", "40P01", "55P03", "57014"].contains(&code.as_str()) || code.starts_with("53")
            }
            DatabaseError::Unexpected { .. } => false,
            _ => true,
        }
    }

    pub(crate) fn from_statement(error: &tokio_postgres::Error, server: &str) -> DatabaseError {
        let Some(db) = error.as_db_error() else {
            return match error.is_closed() || find_io(error).is_some() {
                true => DatabaseError::Lost { reason: describe(error) },
                false => DatabaseError::Unexpected { reason: error.to_string() },
            };
        };
        let code = db.code();
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return DatabaseError::NoPrivilege { action: format!("do what it must: {}", db.message()) };
        }
        // What register and look raise; none of the other calls does.
        if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE {
            return DatabaseError::Silenced {
                reason: db.message().to_owned(),
                hint: db.hint().unwrap_or_default().to_owned(),
            };
        }
        if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
            return DatabaseError::Standby { server: server.to_owned() };
        }
        // ALTER EXTENSION UPDATE brought a function that the library of before has not got, and this session has that one loaded.
        if *code == SqlState::UNDEFINED_FUNCTION {
            return DatabaseError::Lost { reason: db.message().to_owned() };
        }
        // 57P01 to 57P05: shut down, crashed, starting up, database dropped, idle too long. 08: connection exceptions.
        if code.code().starts_with("57P") || code.code().starts_with("08") {
            return DatabaseError::Lost { reason: db.message().to_owned() };
        }
        DatabaseError::Statement { code: code.code().to_owned(), message: db.message().to_owned() }
    }

    pub(crate) fn from_connect(error: &tokio_postgres::Error, server: &str) -> DatabaseError {
        match error.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                DatabaseError::NoPrivilege { action: "connect to the database".to_owned() }
            }
            _ => DatabaseError::CannotConnect { server: server.to_owned(), reason: describe(error) },
        }
    }
}

/// The server's own words, or the system's. Not tokio-postgres's, which only say that there was an error.
fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), find_io(error)) {
        (Some(db), _) => db.message().to_owned(),
        (None, Some(io)) => io.to_string(),
        // The innermost cause says the most: "server does not support TLS" rather than "error performing TLS handshake".
        (None, None) => causes(error).last().unwrap_or(error).to_string(),
    }
}

fn find_io(error: &tokio_postgres::Error) -> Option<&std::io::Error> {
    causes(error).find_map(|error| error.downcast_ref())
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
