//! The trigger function of watched tables.
//!
//! It runs as whoever changes the table. INSERT into a plain table comes as one call for the statement with a transition
//! table, so that COPY of a million rows costs a few statements for every thousand; everything else comes row by row,
//! and an UPDATE only if a WHEN clause found something of interest.

use std::cell::RefCell;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{PgMemoryContexts, pg_sys};

use crate::emit;
use crate::fault::{Fault, or_raise};
use crate::settings::{self, OnEmitError};
use crate::watch::body;
use crate::watch::detect::{Change, Found};
use crate::watch::plan::{self, Watch};
use crate::watch::rights::Acting;
use crate::watch::row::Row;
use crate::watch::savepoint::attempt;
use crate::watch::{batch, loss, timer};

/// Rows of a statement whose events are recorded together: bounds memory, and makes a statement's cost a thousandth.
const BATCH_ROWS_MAX: usize = 1_000;
/// The same in bytes of built payloads.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

#[unsafe(no_mangle)]
#[doc(hidden)]
#[allow(unreachable_pub, reason = "the server looks it up by name")]
pub extern "C" fn pg_finfo_watch_changed() -> &'static pg_sys::Pg_finfo_record {
    const V1_API: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1_API
}

#[unsafe(no_mangle)]
#[pg_guard]
unsafe extern "C-unwind" fn watch_changed(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: PostgreSQL passes a valid call; its context is a TriggerData when it is a trigger call.
    unsafe {
        if !pgrx::trigger_support::called_as_trigger(call) {
            Fault::argument("orbhook's trigger function is called by triggers only").raise();
        }
        or_raise(on_change(&*(*call).context.cast::<pg_sys::TriggerData>()));
    }
    pg_sys::Datum::from(0_usize)
}

/// # Safety
/// The trigger data must be that of the current call.
unsafe fn on_change(trigger: &pg_sys::TriggerData) -> Result<(), Fault> {
    // SAFETY: the relation of a trigger call is open.
    let (relation, shape) = unsafe { ((*trigger.tg_relation).rd_id, (*trigger.tg_relation).rd_att) };
    // SAFETY: the shape of that relation.
    let Some(watch) = (unsafe { plan::of(relation, shape)? }) else {
        if settings::emit() {
            loss::note_unwatched(relation);
        }
        return Ok(());
    };
    // SAFETY: by this function's contract.
    let change = || unsafe {
        if pgrx::trigger_support::trigger_fired_for_row(trigger.tg_event) {
            row(&watch, trigger, shape)
        } else {
            statement(&watch, trigger, shape)
        }
    };
    match settings::on_emit_error() {
        OnEmitError::Error => change(),
        OnEmitError::Warning => match attempt(change) {
            Ok(()) => Ok(()),
            Err(reason) => {
                pgrx::warning!("orbhook recorded no event: {reason}");
                // As a last resort the warning alone has to do.
                let _ = attempt(|| loss::note(watch.orbhook, watch.target, 1, &reason));
                Ok(())
            }
        },
    }
}

/// # Safety
/// As `on_change`, for a row trigger.
unsafe fn row(
    watch: &Rc<Watch>,
    trigger: &pg_sys::TriggerData,
    shape: pg_sys::TupleDesc,
) -> Result<(), Fault> {
    use pgrx::trigger_support::{trigger_fired_by_delete, trigger_fired_by_insert};
    let first = trigger.tg_trigtuple;
    // SAFETY: the tuples of the call have the relation's shape and outlive it.
    unsafe {
        if trigger_fired_by_delete(trigger.tg_event) {
            if moved(first) {
                Departed::keep(watch, first, shape);
                return Ok(());
            }
            let old = Row::of(first, shape);
            return emit_all(watch, Some(&old), None);
        }
        if trigger_fired_by_insert(trigger.tg_event) {
            let new = Row::of(first, shape);
            return match Departed::take(watch.target, first) {
                // Another partition's row has another shape: the root's plan reads both by their own.
                Some(departed) => {
                    let old = departed.row_like(shape);
                    let decisive = watch.any_difference(&old, &new);
                    if decisive { emit_all(watch, Some(&old), Some(&new)) } else { Ok(()) }
                }
                None => emit_all(watch, None, Some(&new)),
            };
        }
        let (old, new) = (Row::of(first, shape), Row::of(trigger.tg_newtuple, shape));
        emit_all(watch, Some(&old), Some(&new))
    }
}

fn emit_all(watch: &Watch, old: Option<&Row>, new: Option<&Row>) -> Result<(), Fault> {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let change = Change { watch, old, new, now };
    let silent = !settings::emit();
    for found in change.events()? {
        let Some(row) = (if found.from_old { old } else { new }) else { continue };
        if found.timed && !timer::claim(watch, found.event, row, now)? {
            continue;
        }
        if silent {
            continue;
        }
        if let Some(payload) = payload(watch, row, &found, now)? {
            let _acting = Acting::as_orbhook(watch.orbhook);
            emit::record_built(found.event, payload, now)?;
        }
    }
    // Also in a silent transaction: the row is there, and its end will be news.
    timer::keep(&change)
}

/// Every row of an INSERT.
///
/// # Safety
/// As `on_change`, for a statement trigger with a transition table.
unsafe fn statement(
    watch: &Watch,
    trigger: &pg_sys::TriggerData,
    shape: pg_sys::TupleDesc,
) -> Result<(), Fault> {
    if trigger.tg_newtable.is_null() {
        return Ok(());
    }
    // SAFETY: a read pointer of our own, as a scan of the transition table takes one; the slot has the table's shape.
    let (rows, slot) = unsafe {
        let rows = Transition {
            store: trigger.tg_newtable,
            pointer: pg_sys::tuplestore_alloc_read_pointer(
                trigger.tg_newtable,
                pg_sys::EXEC_FLAG_REWIND as i32,
            ),
            memory: pg_sys::CurrentMemoryContext,
        };
        pg_sys::tuplestore_select_read_pointer(rows.store, rows.pointer);
        pg_sys::tuplestore_rescan(rows.store);
        (rows, pg_sys::MakeSingleTupleTableSlot(shape, &raw const pg_sys::TTSOpsMinimalTuple))
    };
    // Of a silent statement only the ends are noted.
    let silent = !settings::emit();
    let mut memory = PgMemoryContexts::new("orbhook batch");
    let mut more = true;
    while more {
        pgrx::check_for_interrupts!();
        // SAFETY: nothing built in one round is used in the next.
        unsafe {
            memory.switch_to(|_| {
                let mut batch = Batch::default();
                while more && !batch.is_full() {
                    more = rows.next(slot);
                    if more {
                        batch.add(watch, &Row::of_slot(slot), silent)?;
                    }
                }
                batch.record(watch)
            })?;
            memory.reset();
        }
    }
    // SAFETY: made above; the transition table itself belongs to the trigger manager.
    unsafe { pg_sys::ExecDropSingleTupleTableSlot(slot) };
    Ok(())
}

struct Transition {
    store: *mut pg_sys::Tuplestorestate,
    pointer: i32,
    /// Where a tuple that was read from disk is kept until the slot is filled again: not in the batch's memory.
    memory: pg_sys::MemoryContext,
}

impl Transition {
    /// # Safety
    /// The slot must have the shape of the table.
    unsafe fn next(&self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: by this function's contract. Another reader may have selected its own pointer meanwhile.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.memory);
            pg_sys::tuplestore_select_read_pointer(self.store, self.pointer);
            let any = pg_sys::tuplestore_gettupleslot(self.store, true, false, slot);
            pg_sys::MemoryContextSwitchTo(before);
            any
        }
    }
}

#[derive(Default)]
struct Batch {
    rows: usize,
    bytes: usize,
    now: pg_sys::TimestampTz,
    /// By event type, in the order they were first met.
    events: Vec<(&'static str, Vec<pg_sys::Datum>)>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn add(&mut self, watch: &Watch, new: &Row, silent: bool) -> Result<(), Fault> {
        if self.rows == 0 {
            // SAFETY: reads the clock.
            self.now = unsafe { pg_sys::GetCurrentTimestamp() };
        }
        self.rows += 1;
        let change = Change { watch, old: None, new: Some(new), now: self.now };
        if !silent {
            for found in change.events()? {
                let Some(payload) = payload(watch, new, &found, self.now)? else { continue };
                // SAFETY: a jsonb made just now: not toasted.
                self.bytes += unsafe { pgrx::varsize(payload.cast_mut_ptr()) };
                match self.events.iter_mut().find(|(event, _)| *event == found.event) {
                    Some((_, payloads)) => payloads.push(payload),
                    None => self.events.push((found.event, vec![payload])),
                }
            }
        }
        timer::keep(&change)
    }

    fn record(&self, watch: &Watch) -> Result<(), Fault> {
        let _acting = Acting::as_orbhook(watch.orbhook);
        for (event, payloads) in &self.events {
            match payloads.as_slice() {
                [payload] => emit::record_built(event, *payload, self.now)?,
                payloads => batch::record(event, payloads, self.now)?,
            }
        }
        Ok(())
    }
}

fn payload(
    watch: &Watch,
    row: &Row,
    found: &Found,
    now: pg_sys::TimestampTz,
) -> Result<Option<pg_sys::Datum>, Fault> {
    match watch.function {
        Some(function) => body::custom(watch, function, row, found.event, &found.extras),
        None => body::build(watch, row, found.event, now, &found.extras),
    }
}

/// The row that an UPDATE took out of one partition, until it arrives in another.
///
/// PostgreSQL reports such an UPDATE as a DELETE followed at once by an INSERT.
struct Departed {
    target: pg_sys::Oid,
    /// The transaction that moved it.
    transaction: pg_sys::TransactionId,
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
}

thread_local! {
    static DEPARTED: RefCell<Option<Departed>> = const { RefCell::new(None) };
}

impl Departed {
    /// # Safety
    /// The tuple must have this shape.
    unsafe fn keep(watch: &Watch, tuple: pg_sys::HeapTuple, shape: pg_sys::TupleDesc) {
        // SAFETY: copies that last as long as the transaction; a copy that is not collected is not used after it.
        let departed = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopTransactionContext);
            let departed = Departed {
                target: watch.target,
                transaction: pg_sys::GetTopTransactionIdIfAny(),
                tuple: pg_sys::heap_copytuple(tuple),
                shape: pg_sys::CreateTupleDescCopy(shape),
            };
            pg_sys::MemoryContextSwitchTo(before);
            departed
        };
        DEPARTED.set(Some(departed));
    }

    /// The row that arrives with this tuple.
    ///
    /// # Safety
    /// The tuple must be one just inserted.
    unsafe fn take(target: pg_sys::Oid, arrived: pg_sys::HeapTuple) -> Option<Departed> {
        let departed = DEPARTED.take()?;
        // SAFETY: the departed tuple is read only if its transaction is still the current one.
        let same = unsafe {
            departed.target == target
                && departed.transaction == pg_sys::GetTopTransactionIdIfAny()
                && (*(*departed.tuple).t_data).t_choice.t_heap.t_xmax
                    == (*(*arrived).t_data).t_choice.t_heap.t_xmin
        };
        same.then_some(departed)
    }

    /// The row in another partition's shape.
    fn row_like(&self, shape: pg_sys::TupleDesc) -> Row {
        // SAFETY: both shapes are partitions of one table, so that columns of one name have one type.
        unsafe {
            let map = pg_sys::convert_tuples_by_name(self.shape, shape);
            let tuple =
                if map.is_null() { self.tuple } else { pg_sys::execute_attr_map_tuple(self.tuple, map) };
            Row::of(tuple, shape)
        }
    }
}

/// Whether the deleted row went to another partition (src/include/access/htup_details.h,
/// HeapTupleHeaderIndicatesMovedPartitions).
///
/// # Safety
/// The tuple must come from a table.
unsafe fn moved(tuple: pg_sys::HeapTuple) -> bool {
    const MOVED_OFFSET: u16 = 0xFFFD;
    // SAFETY: by this function's contract.
    let to = unsafe { (*(*tuple).t_data).t_ctid };
    to.ip_posid == MOVED_OFFSET && to.ip_blkid.bi_hi == 0xFFFF && to.ip_blkid.bi_lo == 0xFFFF
}
