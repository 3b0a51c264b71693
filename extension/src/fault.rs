//! Errors as people see them: what is wrong, how to fix it, and a SQLSTATE to branch on.
//!
//! The SQLSTATE is chosen here and nowhere else. No fault carries a payload, a secret or an endpoint.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// An error the caller can do something about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// An argument is wrong. SQLSTATE 22023.
    #[error("{message}")]
    Argument { message: String, hint: Option<String> },
    /// A limit of orbhook's is exceeded. SQLSTATE 54000.
    #[error("{message}")]
    TooLarge { message: String, hint: String },
    /// The caller lacks a right. SQLSTATE 42501.
    #[error("{0}")]
    Forbidden(String),
    /// A relation of a kind that cannot be watched. SQLSTATE 42809.
    #[error("{message}")]
    WrongKind { message: String, hint: String },
    /// The transaction cannot write. SQLSTATE 25006.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// The database answered something this library does not expect, for instance because its tables were changed.
    /// SQLSTATE XX000.
    #[error("orbhook could not read its own tables: {0}")]
    Internal(String),
}

impl Fault {
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::Argument { message: message.into(), hint: None }
    }

    /// Ends the statement with this fault.
    pub(crate) fn raise(self) -> ! {
        let (code, hint) = match &self {
            Self::Argument { hint, .. } => (PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, hint.clone()),
            Self::TooLarge { hint, .. } => {
                (PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, Some(hint.clone()))
            }
            Self::Forbidden(_) => (PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, None),
            Self::WrongKind { hint, .. } => (PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, Some(hint.clone())),
            Self::ReadOnly(_) => (PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION, None),
            Self::Internal(_) => (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, None),
        };
        let mut report = ErrorReport::new(code, self.to_string(), "orbhook");
        if let Some(hint) = hint {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }
}

impl From<pgrx::spi::Error> for Fault {
    fn from(error: pgrx::spi::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

/// The value, or the statement ends.
pub(crate) fn or_raise<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| fault.raise())
}
