//! A step that may fail without failing the statement.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use crate::fault::Fault;

/// Runs in a subtransaction. An error of any kind takes back what it did and becomes its message.
pub(crate) fn attempt(step: impl FnOnce() -> Result<(), Fault>) -> Result<(), String> {
    // SAFETY: as PL/pgSQL runs a block with EXCEPTION: memory context and resource owner are put back afterwards.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = PgTryBuilder::new(AssertUnwindSafe(|| step().map_err(|fault| fault.to_string())))
            .catch_others(|error| match error {
                CaughtError::PostgresError(report)
                | CaughtError::ErrorReport(report)
                | CaughtError::RustPanic { ereport: report, .. } => Err(report.message().to_owned()),
            })
            .execute();
        match &outcome {
            Ok(()) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        outcome
    }
}
