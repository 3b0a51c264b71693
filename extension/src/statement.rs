//! Statements of orbhook's own, prepared once in a session.
//!
//! They run under the application's search path, so every name and operator in them is qualified.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiTupleTable};
use pgrx::{PgOid, Spi};

use crate::fault::Fault;

pub(crate) fn run<'client>(
    client: &mut SpiClient<'client>,
    sql: &'static str,
    arguments: &[DatumWithOid<'_>],
) -> Result<SpiTupleTable<'client>, Fault> {
    thread_local! {
        static PREPARED: RefCell<HashMap<&'static str, OwnedPreparedStatement>> = RefCell::new(HashMap::new());
    }
    // Taken out while it runs: a trigger that somebody put on the table may come back here.
    let kept = PREPARED.with_borrow_mut(|all| all.remove(sql));
    let statement = match kept {
        Some(kept) => kept,
        None => {
            let types: Vec<PgOid> = arguments.iter().map(|argument| PgOid::from(argument.oid())).collect();
            client.prepare_mut(sql, &types)?.keep()
        }
    };
    let result = client.update(&statement, None, arguments);
    PREPARED.with_borrow_mut(|all| all.insert(sql, statement));
    Ok(result?)
}

/// For the rare case: not prepared.
pub(crate) fn once(sql: &str, arguments: &[DatumWithOid<'_>]) -> Result<(), Fault> {
    Spi::connect_mut(|client| client.update(sql, None, arguments).map(|_| ()))?;
    Ok(())
}

pub(crate) fn oid(value: pg_sys::Oid) -> DatumWithOid<'static> {
    DatumWithOid::from(value)
}
