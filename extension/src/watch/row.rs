//! A row, taken apart once.

use pgrx::pg_sys;

use crate::watch::column::Column;

/// Values point into the tuple it was made from, which must live as long.
pub(crate) struct Row {
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// # Safety
    /// The tuple must have this shape; both must outlive the row.
    pub(crate) unsafe fn of(tuple: pg_sys::HeapTuple, shape: pg_sys::TupleDesc) -> Row {
        // SAFETY: by this function's contract.
        let columns = usize::try_from(unsafe { (*shape).natts }).unwrap_or_default();
        let mut values = vec![pg_sys::Datum::from(0_usize); columns];
        let mut nulls = vec![true; columns];
        // SAFETY: both arrays have a place for each column of the shape.
        unsafe { pg_sys::heap_deform_tuple(tuple, shape, values.as_mut_ptr(), nulls.as_mut_ptr()) };
        Row { tuple, shape, values, nulls }
    }

    /// Of a composite value, as a query returns it.
    ///
    /// # Safety
    /// The datum must be a composite value. Its copy stays in the current memory context.
    pub(crate) unsafe fn of_composite(datum: pg_sys::Datum) -> Row {
        // SAFETY: by this function's contract; the header says its own type and length.
        unsafe {
            let header =
                pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
            let shape = pg_sys::lookup_rowtype_tupdesc_copy(
                (*header).t_choice.t_datum.datum_typeid,
                (*header).t_choice.t_datum.datum_typmod,
            );
            let tuple = pg_sys::palloc0(size_of::<pg_sys::HeapTupleData>()).cast::<pg_sys::HeapTupleData>();
            (*tuple).t_len = u32::try_from(pgrx::varsize(header.cast())).unwrap_or_default();
            (*tuple).t_data = header;
            Row::of(tuple, shape)
        }
    }

    /// Of a slot: values are good until the slot is filled again.
    ///
    /// # Safety
    /// The slot must hold a tuple.
    pub(crate) unsafe fn of_slot(slot: *mut pg_sys::TupleTableSlot) -> Row {
        // SAFETY: by this function's contract; after slot_getallattrs both arrays are full.
        unsafe {
            pg_sys::slot_getsomeattrs_int(slot, (*(*slot).tts_tupleDescriptor).natts);
            let columns = usize::try_from((*(*slot).tts_tupleDescriptor).natts).unwrap_or_default();
            Row {
                tuple: std::ptr::null_mut(),
                shape: (*slot).tts_tupleDescriptor,
                values: std::slice::from_raw_parts((*slot).tts_values, columns).to_vec(),
                nulls: std::slice::from_raw_parts((*slot).tts_isnull, columns).to_vec(),
            }
        }
    }

    pub(crate) fn get(&self, column: &Column) -> Option<pg_sys::Datum> {
        match self.nulls.get(column.index) {
            Some(false) => self.values.get(column.index).copied(),
            _ => None,
        }
    }

    /// The row as a value of another row type with the same column names: a partition's row as one of its root.
    pub(crate) fn as_composite(&self, shape: pg_sys::TupleDesc) -> pg_sys::Datum {
        // SAFETY: values and nulls belong to the shape; conversion copies when the layouts differ.
        unsafe {
            let own = if self.tuple.is_null() {
                pg_sys::heap_form_tuple(
                    self.shape,
                    self.values.as_ptr().cast_mut(),
                    self.nulls.as_ptr().cast_mut(),
                )
            } else {
                self.tuple
            };
            let map = pg_sys::convert_tuples_by_name(self.shape, shape);
            let tuple = if map.is_null() { own } else { pg_sys::execute_attr_map_tuple(own, map) };
            pg_sys::heap_copy_tuple_as_datum(tuple, shape)
        }
    }
}
