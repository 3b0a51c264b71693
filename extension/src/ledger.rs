//! Events and deliveries, written straight into their tables.
//!
//! An INSERT statement would start an executor, route each row, and parse and compile the table's CHECK constraints
//! anew for each event: about half of what an emit cost. Here a row is formed, handed to the heap, and entered in the
//! indexes, as PostgreSQL itself writes its catalogues.
//!
//! What the executor would do and this does not is left out only where it is known to have nothing to do: constraints
//! are those of orbhook's own, which hold for every row formed here, and there are no triggers, rules, row security,
//! further columns to fill, or unusual indexes. Whatever else a DBA adds is respected: `append` then writes nothing and
//! says so, and the caller falls back on a statement.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::{IntoDatum as _, Uuid, pg_sys};

use crate::ledger::layout::Known;
use crate::ledger::table::{Relation, Table};
use crate::stale;

mod layout;
mod table;

pub(crate) struct Event {
    pub(crate) id: Uuid,
    /// A text.
    pub(crate) event_type: pg_sys::Datum,
    /// A jsonb.
    pub(crate) payload: pg_sys::Datum,
    pub(crate) occurred_at: pg_sys::TimestampTz,
    pub(crate) created_at: pg_sys::TimestampTz,
    /// A jsonb.
    pub(crate) skipped: Option<pg_sys::Datum>,
}

/// One that has not been tried.
pub(crate) struct Delivery {
    pub(crate) id: Uuid,
    pub(crate) event_id: Uuid,
    pub(crate) webhook_id: Uuid,
    pub(crate) due_at: pg_sys::TimestampTz,
    pub(crate) created_at: pg_sys::TimestampTz,
}

/// Writes all of them, or nothing and returns false: the tables then need a statement.
///
/// The ids of the events must be ascending. Needs no right on the tables: only for what the caller may record.
pub(crate) fn append(events: &[Event], deliveries: &[Delivery]) -> bool {
    let [first, .., last] = events else {
        return match events {
            [only] => append_between(&only.id, &only.id, events, deliveries),
            _ => true,
        };
    };
    append_between(&first.id, &last.id, events, deliveries)
}

fn append_between(first: &Uuid, last: &Uuid, events: &[Event], deliveries: &[Delivery]) -> bool {
    let Some((into_events, into_deliveries)) = open(first, last, !deliveries.is_empty()) else {
        return false;
    };
    let text = |word: &str| word.into_datum().unwrap_or_else(|| pg_sys::Datum::from(0_usize));
    // SAFETY: the values are in the order of the columns and of their types.
    unsafe {
        into_events.write(events, |event| {
            [
                Some(uuid(&event.id)),
                Some(event.event_type),
                Some(event.payload),
                Some(pg_sys::Datum::from(event.occurred_at)),
                Some(pg_sys::Datum::from(event.created_at)),
                event.skipped,
            ]
        });
        if let Some(into_deliveries) = into_deliveries {
            let pending = text("pending");
            let zero = Some(pg_sys::Datum::from(0_usize));
            into_deliveries.write(deliveries, |delivery| {
                [
                    Some(uuid(&delivery.id)),
                    Some(uuid(&delivery.event_id)),
                    Some(uuid(&delivery.webhook_id)),
                    Some(pending),
                    zero,
                    zero,
                    zero,
                    Some(pg_sys::Datum::from(delivery.due_at)),
                    zero,
                    Some(pg_sys::Datum::from(delivery.created_at)),
                ]
            });
        }
    }
    true
}

fn uuid(id: &Uuid) -> pg_sys::Datum {
    pg_sys::Datum::from(id.as_bytes().as_ptr())
}

/// The partition for events of these ids and, if asked for, the open deliveries. `None`: they need a statement.
fn open(first: &Uuid, last: &Uuid, deliveries: bool) -> Option<(Table, Option<Table>)> {
    let root = Relation::open(relation(EVENTS.name)?)?;
    // SAFETY: the relation is open; as long as it is locked no partition comes, goes or changes its bounds.
    let partition = unsafe {
        if !layout::is_plain(root.0) {
            return None;
        }
        let partition = root.partition(first)?;
        if root.partition(last)? != partition {
            return None;
        }
        partition
    };
    let events = Table::open(partition, &EVENTS)?;
    let deliveries =
        if deliveries { Some(Table::open(relation(DELIVERIES.name)?, &DELIVERIES)?) } else { None };
    Some((events, deliveries))
}

/// A table of orbhook's.
pub(crate) fn relation(name: &'static CStr) -> Option<pg_sys::Oid> {
    if let Some(known) = RELATIONS.with_borrow(|relations| relations.get(name).copied()) {
        return Some(known);
    }
    // SAFETY: look-ups in the catalogue caches; both names are NUL-terminated.
    let found = unsafe {
        let schema = pg_sys::get_namespace_oid(c"orbhook".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    if found == pg_sys::InvalidOid {
        return None;
    }
    stale::depends_on(found);
    RELATIONS.with_borrow_mut(|relations| relations.insert(name, found));
    Some(found)
}

thread_local! {
    static RELATIONS: RefCell<HashMap<&'static CStr, pg_sys::Oid>> = RefCell::new(HashMap::new());
}

pub(crate) fn forget() {
    layout::forget();
    RELATIONS.with_borrow_mut(HashMap::clear);
}

const EVENTS: Known = Known {
    name: c"events",
    columns: &[
        (c"id", pg_sys::UUIDOID, false),
        (c"event_type", pg_sys::TEXTOID, false),
        (c"payload", pg_sys::JSONBOID, false),
        (c"occurred_at", pg_sys::TIMESTAMPTZOID, false),
        (c"created_at", pg_sys::TIMESTAMPTZOID, false),
        (c"skipped", pg_sys::JSONBOID, true),
    ],
    checks: &[c"events_payload_is_object"],
    outside: &[],
};

const DELIVERIES: Known = Known {
    name: c"deliveries_open",
    columns: &[
        (c"id", pg_sys::UUIDOID, false),
        (c"event_id", pg_sys::UUIDOID, false),
        (c"webhook_id", pg_sys::UUIDOID, false),
        (c"status", pg_sys::TEXTOID, false),
        (c"attempts", pg_sys::INT4OID, false),
        (c"failures", pg_sys::INT4OID, false),
        (c"outcome_attempt", pg_sys::INT4OID, false),
        (c"due_at", pg_sys::TIMESTAMPTZOID, false),
        (c"is_test", pg_sys::BOOLOID, false),
        (c"created_at", pg_sys::TIMESTAMPTZOID, false),
    ],
    checks: &[
        c"deliveries_status_is_known",
        c"deliveries_attempts_not_negative",
        c"deliveries_failures_not_negative",
        c"deliveries_due_at_is_finite",
        c"deliveries_pending_is_due",
        c"deliveries_pending_is_open",
        c"deliveries_finished_is_unleased",
        c"deliveries_outcome_of_an_attempt",
    ],
    outside: &[c"is_test"],
};
