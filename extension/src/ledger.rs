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
use std::rc::Rc;

use pgrx::{IntoDatum as _, Uuid, pg_sys};

use crate::stale;

/// Rows written to the heap at a time.
const ROWS_AT_ONCE_MAX: usize = 1_000;

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

/// A table as this file knows it.
struct Known {
    name: &'static CStr,
    /// Name, type, whether it may be null: the values of a row, in this order.
    columns: &'static [(&'static CStr, pg_sys::Oid, bool)],
    /// Constraints that hold for every row formed here.
    checks: &'static [&'static CStr],
    /// Predicates of partial indexes that no row formed here satisfies.
    outside: &'static [&'static CStr],
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

/// What was found out about a table, good until it changes.
struct Layout {
    /// For each column of the table the value it takes; `None`: null.
    sources: Vec<Option<usize>>,
    /// Indexes every row goes into.
    indexes: Vec<pg_sys::Oid>,
}

thread_local! {
    /// `None`: needs a statement.
    static LAYOUTS: RefCell<HashMap<pg_sys::Oid, Option<Rc<Layout>>>> = RefCell::new(HashMap::new());
    static RELATIONS: RefCell<HashMap<&'static CStr, pg_sys::Oid>> = RefCell::new(HashMap::new());
}

pub(crate) fn forget() {
    LAYOUTS.with_borrow_mut(HashMap::clear);
    RELATIONS.with_borrow_mut(HashMap::clear);
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

/// The partition for events of these ids and, if asked for, the open deliveries. `None`: they need a statement.
fn open(first: &Uuid, last: &Uuid, deliveries: bool) -> Option<(Table, Option<Table>)> {
    let root = Relation::open(relation(EVENTS.name)?)?;
    // SAFETY: the relation is open; as long as it is locked no partition comes, goes or changes its bounds.
    let partition = unsafe {
        if !is_plain(root.0) {
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

/// Open, and locked until the end of the transaction as an INSERT locks it.
struct Relation(pg_sys::Relation);

const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

impl Relation {
    fn open(relation: pg_sys::Oid) -> Option<Relation> {
        // SAFETY: NULL when it is gone.
        let relation = unsafe { pg_sys::try_table_open(relation, LOCK) };
        (!relation.is_null()).then_some(Relation(relation))
    }

    /// The partition for an id: the only key is a uuid, compared byte by byte.
    ///
    /// # Safety
    /// The relation must be the root of the events.
    unsafe fn partition(&self, id: &Uuid) -> Option<pg_sys::Oid> {
        // SAFETY: by this function's contract the bounds are ranges of one uuid. A range table of n bounds has n + 1
        // indexes: that of what lies before the first, between each two, and after the last.
        unsafe {
            let partitions = pg_sys::RelationGetPartitionDesc(self.0, true);
            let bounds = (*partitions).boundinfo;
            if bounds.is_null() || (*bounds).strategy as u8 != b'r' {
                return None;
            }
            let (mut low, mut high) = (0, usize::try_from((*bounds).ndatums).ok()?);
            while low < high {
                let middle = low.midpoint(high);
                let reached = match **(*bounds).kind.add(middle) {
                    pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_VALUE => {
                        let bound = (**(*bounds).datums.add(middle)).cast_mut_ptr::<[u8; 16]>();
                        *bound <= *id.as_bytes()
                    }
                    kind => kind == pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE,
                };
                if reached { low = middle + 1 } else { high = middle }
            }
            let place = match *(*bounds).indexes.add(low) {
                none if none < 0 => (*bounds).default_index,
                place => place,
            };
            usize::try_from(place).ok().map(|place| *(*partitions).oids.add(place))
        }
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        // After an error PostgreSQL closes it with the transaction.
        if !std::thread::panicking() {
            // SAFETY: opened by `open`; the lock stays until the end of the transaction.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}

/// A table that takes rows without a statement.
struct Table {
    relation: Relation,
    layout: Rc<Layout>,
}

impl Table {
    fn open(relation: pg_sys::Oid, known: &Known) -> Option<Table> {
        let opened = Relation::open(relation)?;
        // What is remembered holds for the table as it is now that it is locked.
        stale::catch_up();
        let layout = match LAYOUTS.with_borrow(|layouts| layouts.get(&relation).cloned()) {
            Some(layout) => layout,
            None => {
                stale::depends_on(relation);
                // SAFETY: the relation is open.
                let layout = unsafe { Layout::of(opened.0, known) }.map(Rc::new);
                LAYOUTS.with_borrow_mut(|layouts| layouts.insert(relation, layout.clone()));
                layout
            }
        };
        Some(Table { relation: opened, layout: layout? })
    }

    /// # Safety
    /// `values` must give the values of the known table's columns, in their order.
    unsafe fn write<Row, const COLUMNS: usize>(
        &self,
        rows: &[Row],
        values: impl Fn(&Row) -> [Option<pg_sys::Datum>; COLUMNS],
    ) {
        for rows in rows.chunks(ROWS_AT_ONCE_MAX) {
            // SAFETY: by this function's contract.
            unsafe {
                let rows: Vec<[Option<pg_sys::Datum>; COLUMNS]> = rows.iter().map(&values).collect();
                let places = match rows.as_slice() {
                    [row] => vec![self.store(row)],
                    rows => self.store_all(rows),
                };
                for index in &self.layout.indexes {
                    self.enter(*index, &rows, &places);
                }
            }
        }
    }

    /// # Safety
    /// As `write`.
    unsafe fn form(&self, row: &[Option<pg_sys::Datum>]) -> pg_sys::HeapTuple {
        let (mut values, mut nulls) = self.arrange(row);
        // SAFETY: both have a place for each column.
        unsafe { pg_sys::heap_form_tuple((*self.relation.0).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr()) }
    }

    fn arrange(&self, row: &[Option<pg_sys::Datum>]) -> (Vec<pg_sys::Datum>, Vec<bool>) {
        let value = |source: &Option<usize>| source.and_then(|place| row.get(place).copied().flatten());
        self.layout
            .sources
            .iter()
            .map(|source| value(source).map_or((pg_sys::Datum::from(0_usize), true), |datum| (datum, false)))
            .unzip()
    }

    /// # Safety
    /// As `write`.
    unsafe fn store(&self, row: &[Option<pg_sys::Datum>]) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple has the relation's shape.
        unsafe {
            let tuple = self.form(row);
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_insert(self.relation.0, tuple, command, 0, std::ptr::null_mut());
            let place = (*tuple).t_self;
            pg_sys::heap_freetuple(tuple);
            place
        }
    }

    /// Page by page: one entry in the write-ahead log for all rows of a page.
    ///
    /// # Safety
    /// As `write`.
    unsafe fn store_all<const COLUMNS: usize>(
        &self,
        rows: &[[Option<pg_sys::Datum>; COLUMNS]],
    ) -> Vec<pg_sys::ItemPointerData> {
        // SAFETY: the tuples have the relation's shape, and so do the slots they are handed over in.
        unsafe {
            // A shape of their own: that of the relation is counted, and each slot would be noted down by its owner.
            let shape = pg_sys::CreateTupleDescCopy((*self.relation.0).rd_att);
            let mut slots: Vec<*mut pg_sys::TupleTableSlot> = rows
                .iter()
                .map(|row| {
                    let slot = pg_sys::MakeSingleTupleTableSlot(shape, &raw const pg_sys::TTSOpsHeapTuple);
                    pg_sys::ExecStoreHeapTuple(self.form(row), slot, true)
                })
                .collect();
            pg_sys::heap_multi_insert(
                self.relation.0,
                slots.as_mut_ptr(),
                i32::try_from(slots.len()).unwrap_or_default(),
                pg_sys::GetCurrentCommandId(true),
                0,
                std::ptr::null_mut(),
            );
            slots
                .into_iter()
                .map(|slot| {
                    let place = (*slot).tts_tid;
                    pg_sys::ExecDropSingleTupleTableSlot(slot);
                    place
                })
                .collect()
        }
    }

    /// # Safety
    /// As `write`; `places` are those of the rows in the heap.
    unsafe fn enter<const COLUMNS: usize>(
        &self,
        index: pg_sys::Oid,
        rows: &[[Option<pg_sys::Datum>; COLUMNS]],
        places: &[pg_sys::ItemPointerData],
    ) {
        // SAFETY: the index belongs to the open table; its layout was made of plain columns only.
        unsafe {
            let index = pg_sys::index_open(index, LOCK);
            let info = pg_sys::BuildIndexInfo(index);
            if (*info).ii_ReadyForInserts {
                let check = if (*info).ii_Unique {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                } else {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                };
                let columns = usize::try_from((*info).ii_NumIndexAttrs).unwrap_or_default();
                let numbers = &(&(*info).ii_IndexAttrNumbers)[..columns];
                for (row, place) in rows.iter().zip(places) {
                    let (values, nulls) = self.arrange(row);
                    let column = |number: &i16| usize::try_from(*number - 1).unwrap_or_default();
                    let mut keys: Vec<pg_sys::Datum> =
                        numbers.iter().map(|number| values[column(number)]).collect();
                    let mut null_keys: Vec<bool> =
                        numbers.iter().map(|number| nulls[column(number)]).collect();
                    let mut place = *place;
                    pg_sys::index_insert(
                        index,
                        keys.as_mut_ptr(),
                        null_keys.as_mut_ptr(),
                        &raw mut place,
                        self.relation.0,
                        check,
                        false,
                        info,
                    );
                }
            }
            pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }
}

/// Whether nothing but its columns, constraints and indexes concerns an insert.
///
/// # Safety
/// The relation must be open.
unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: by this function's contract.
    unsafe {
        (*relation).trigdesc.is_null()
            && (*relation).rd_rules.is_null()
            && !(*(*relation).rd_rel).relrowsecurity
    }
}

impl Layout {
    /// `None`: something about the table needs a statement.
    ///
    /// # Safety
    /// The relation must be open.
    unsafe fn of(relation: pg_sys::Relation, known: &Known) -> Option<Layout> {
        // SAFETY: by this function's contract.
        unsafe {
            let class = (*relation).rd_rel;
            if !is_plain(relation)
                || (*class).relkind as u8 != pg_sys::RELKIND_RELATION
                || (*class).relam != pg_sys::HEAP_TABLE_AM_OID
                || !Layout::holds_its_checks(relation, known)
            {
                return None;
            }
            Some(Layout {
                sources: Layout::sources(relation, known)?,
                indexes: Layout::indexes(relation, known)?,
            })
        }
    }

    /// # Safety
    /// The relation must be open.
    unsafe fn holds_its_checks(relation: pg_sys::Relation, known: &Known) -> bool {
        // SAFETY: by this function's contract; names are NUL-terminated.
        unsafe {
            let constraints = (*(*relation).rd_att).constr;
            if constraints.is_null() {
                return true;
            }
            (0..usize::from((*constraints).num_check)).all(|number| {
                let name = CStr::from_ptr((*(*constraints).check.add(number)).ccname);
                known.checks.contains(&name)
            })
        }
    }

    /// # Safety
    /// The relation must be open.
    unsafe fn sources(relation: pg_sys::Relation, known: &Known) -> Option<Vec<Option<usize>>> {
        // SAFETY: by this function's contract; a name is NUL-terminated.
        let attributes = unsafe {
            let shape = (*relation).rd_att;
            (*shape).attrs.as_slice(usize::try_from((*shape).natts).ok()?)
        };
        let mut sources = Vec::with_capacity(attributes.len());
        for attribute in attributes {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) };
            let place = known.columns.iter().position(|(column, ..)| *column == name);
            sources.push(match place {
                _ if attribute.attisdropped => None,
                Some(place) => {
                    let (_, type_oid, nullable) = known.columns[place];
                    if attribute.atttypid != type_oid || (nullable && attribute.attnotnull) {
                        return None;
                    }
                    Some(place)
                }
                // A further column stays null, if it may.
                None if attribute.attnotnull || attribute.atthasdef || attribute.attgenerated != 0 => {
                    return None;
                }
                None => None,
            });
        }
        let filled = sources.iter().flatten().count();
        (filled == known.columns.len()).then_some(sources)
    }

    /// # Safety
    /// The relation must be open.
    unsafe fn indexes(relation: pg_sys::Relation, known: &Known) -> Option<Vec<pg_sys::Oid>> {
        // SAFETY: by this function's contract; the list is a copy.
        unsafe {
            let list = pg_sys::RelationGetIndexList(relation);
            let mut indexes = Vec::new();
            for place in 0..pg_sys::list_length(list) {
                let oid = pg_sys::list_nth_oid(list, place);
                let index = pg_sys::index_open(oid, LOCK);
                let info = pg_sys::BuildIndexInfo(index);
                let usual = (*info).ii_Am == pg_sys::BTREE_AM_OID
                    && (*info).ii_Expressions.is_null()
                    && (*info).ii_ExclusionOps.is_null()
                    && (*(*index).rd_index).indimmediate;
                let outside = !(*info).ii_Predicate.is_null() && Layout::is_outside(index, known);
                let partial = !(*info).ii_Predicate.is_null();
                pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
                if outside {
                    continue;
                }
                if !usual || partial {
                    return None;
                }
                indexes.push(oid);
            }
            pg_sys::list_free(list);
            Some(indexes)
        }
    }

    /// Whether a partial index has one of the predicates that no row formed here satisfies: a boolean column alone.
    ///
    /// # Safety
    /// The index must be open.
    unsafe fn is_outside(index: pg_sys::Relation, known: &Known) -> bool {
        // SAFETY: by this function's contract; the predicate is a list of expressions joined by AND.
        unsafe {
            let predicate = pg_sys::RelationGetIndexPredicate(index);
            if pg_sys::list_length(predicate) != 1 {
                return false;
            }
            let node = pg_sys::list_nth(predicate, 0).cast::<pg_sys::Node>();
            if (*node).type_ != pg_sys::NodeTag::T_Var {
                return false;
            }
            let column = (*node.cast::<pg_sys::Var>()).varattno;
            let name = pg_sys::get_attname((*(*index).rd_index).indrelid, column, true);
            !name.is_null() && known.outside.contains(&CStr::from_ptr(name))
        }
    }
}
