//! Events that were not recorded, counted where a DBA sees them.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::{Spi, pg_sys};

use crate::fault::Fault;
use crate::statement::{oid, run};
use crate::watch::plan;
use crate::watch::rights::Acting;
use crate::watch::savepoint::attempt;

/// A trigger without a watch is counted in memory, and written down this often (in changes): a restore that lost its
/// watches must not fill a table.
const UNWATCHED_PER_ROW: i64 = 1_000;
/// Longest reason kept, in characters.
const REASON_CHARACTERS_MAX: usize = 500;

/// Writes down that events of a table were lost. Nothing is locked that another writer needs: rows are only added.
pub(crate) fn note(owner: pg_sys::Oid, table: pg_sys::Oid, lost: i64, reason: &str) -> Result<(), Fault> {
    const ADD: &str = "insert into orbhook.watch_losses (target, lost, reason) values ($1, $2, $3)";
    let reason: String = reason.chars().take(REASON_CHARACTERS_MAX).collect();
    let _acting = Acting::as_orbhook(owner);
    Spi::connect_mut(|client| run(client, ADD, &[oid(table), lost.into(), reason.into()]).map(|_| ()))
}

/// A trigger fired whose watch is gone. Never an error: the application's statement goes on.
pub(crate) fn note_unwatched(table: pg_sys::Oid) {
    thread_local! {
        static SEEN: RefCell<HashMap<pg_sys::Oid, i64>> = RefCell::new(HashMap::new());
    }
    let seen = SEEN.with_borrow_mut(|seen| {
        let count = seen.entry(table).or_default();
        *count += 1;
        *count
    });
    // The first of a session, and then every thousandth with those before it.
    let count = match seen {
        1 => 1,
        _ if seen % UNWATCHED_PER_ROW == 0 => UNWATCHED_PER_ROW,
        _ => return,
    };
    let reason = "the table has orbhook's triggers and no watch; call orbhook_watch, or orbhook_unwatch to take them off";
    let _ = attempt(|| note(plan::extension_owner()?, table, count, reason));
}
