//! A table that is open and locked, and rows written into its heap and its indexes.

use std::rc::Rc;

use pgrx::{Uuid, pg_sys};

use crate::ledger::layout::{self, Known, Layout};

/// Rows written to the heap at a time.
const ROWS_AT_ONCE_MAX: usize = 1_000;

pub(super) const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

/// A table that takes rows without a statement.
pub(super) struct Table {
    relation: Relation,
    layout: Rc<Layout>,
}

impl Table {
    pub(super) fn open(relation: pg_sys::Oid, known: &Known) -> Option<Table> {
        let opened = Relation::open(relation)?;
        // SAFETY: it was just opened, with a lock.
        let layout = unsafe { layout::known(opened.0, known) }?;
        Some(Table { relation: opened, layout })
    }

    /// # Safety
    /// `values` must give the values of the known table's columns, in their order.
    pub(super) unsafe fn write<Row, const COLUMNS: usize>(
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

/// Open, and locked until the end of the transaction as an INSERT locks it.
pub(super) struct Relation(pub(super) pg_sys::Relation);

impl Relation {
    pub(super) fn open(relation: pg_sys::Oid) -> Option<Relation> {
        // SAFETY: NULL when it is gone.
        let relation = unsafe { pg_sys::try_table_open(relation, LOCK) };
        (!relation.is_null()).then_some(Relation(relation))
    }

    /// The partition for an id: the only key is a uuid, compared byte by byte.
    ///
    /// # Safety
    /// The relation must be the root of the events.
    pub(super) unsafe fn partition(&self, id: &Uuid) -> Option<pg_sys::Oid> {
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
