//! What there is to know about a table before rows go into it without a statement, found out once in a session.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys;

use crate::ledger::table::LOCK;
use crate::{majors, stale};

/// A table as this file knows it.
pub(super) struct Known {
    pub(super) name: &'static CStr,
    /// Name, type, whether it may be null: the values of a row, in this order.
    pub(super) columns: &'static [(&'static CStr, pg_sys::Oid, bool)],
    /// Constraints that hold for every row formed here.
    pub(super) checks: &'static [&'static CStr],
    /// Predicates of partial indexes that no row formed here satisfies.
    pub(super) outside: &'static [&'static CStr],
}

/// What was found out about a table, good until it changes.
pub(super) struct Layout {
    /// For each column of the table the value it takes; `None`: null.
    pub(super) sources: Vec<Option<usize>>,
    /// Indexes every row goes into.
    pub(super) indexes: Vec<pg_sys::Oid>,
}

thread_local! {
    /// `None`: needs a statement.
    static LAYOUTS: RefCell<HashMap<pg_sys::Oid, Option<Rc<Layout>>>> = RefCell::new(HashMap::new());
}

pub(super) fn forget() {
    LAYOUTS.with_borrow_mut(HashMap::clear);
}

/// That of an open table. `None`: it needs a statement.
///
/// # Safety
/// The relation must be open and locked.
pub(super) unsafe fn known(relation: pg_sys::Relation, known: &Known) -> Option<Rc<Layout>> {
    // SAFETY: by this function's contract.
    let oid = unsafe { (*relation).rd_id };
    // What is remembered holds for the table as it is now that it is locked.
    stale::catch_up();
    if let Some(layout) = LAYOUTS.with_borrow(|layouts| layouts.get(&oid).cloned()) {
        return layout;
    }
    stale::depends_on(oid);
    // SAFETY: by this function's contract.
    let layout = unsafe { Layout::of(relation, known) }.map(Rc::new);
    LAYOUTS.with_borrow_mut(|layouts| layouts.insert(oid, layout.clone()));
    layout
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
        let attributes = unsafe { majors::attributes((*relation).rd_att) };
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

/// Whether nothing but its columns, constraints and indexes concerns an insert.
///
/// # Safety
/// The relation must be open.
pub(super) unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: by this function's contract.
    unsafe {
        (*relation).trigdesc.is_null()
            && (*relation).rd_rules.is_null()
            && !(*(*relation).rd_rel).relrowsecurity
    }
}
