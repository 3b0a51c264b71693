//! What a session remembers of orbhook's tables, and when it has to forget it.
//!
//! An emit looks up who subscribes and how the tables are laid out once in a session, not for every event. Whatever
//! changes one of those tables sends a relcache invalidation with its commit: DDL by itself, changed rows of
//! `orbhook.subscriptions` and `orbhook.event_types` by a trigger. PostgreSQL hands it to every session before the
//! committing one answers its client, so an emit that begins after that answer knows of the change.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::{ledger, subscription};

thread_local! {
    /// Relations whose change makes stale what is remembered.
    static RELATIONS: RefCell<HashSet<pg_sys::Oid>> = RefCell::new(HashSet::new());
    static STALE: Cell<bool> = const { Cell::new(false) };
}

/// Forgets what has changed. To be called before anything remembered is used, and before the snapshot is taken with
/// which it is read anew: a change that comes while it is read is then found at the next call.
pub(crate) fn catch_up() {
    // SAFETY: handles what other sessions have sent; open relations are rebuilt in place.
    unsafe { pg_sys::AcceptInvalidationMessages() }
    if STALE.replace(false) {
        RELATIONS.with_borrow_mut(HashSet::clear);
        ledger::forget();
        subscription::forget();
    }
}

/// From now on a change of this relation is noticed.
pub(crate) fn depends_on(relation: pg_sys::Oid) {
    RELATIONS.with_borrow_mut(|relations| relations.insert(relation));
}

pub(crate) fn install() {
    // SAFETY: called once per backend; the callback is a function of this library, which stays loaded.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(changed), pg_sys::Datum::from(0_usize)) }
}

#[pg_guard]
unsafe extern "C-unwind" fn changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let concerns = RELATIONS
        .with(|relations| relations.try_borrow().map_or(true, |relations| relations.contains(&relation)));
    if relation == pg_sys::InvalidOid || concerns {
        STALE.set(true);
    }
}

/// For the trigger of `orbhook.subscriptions` and `orbhook.event_types`: every session looks them up anew.
#[pg_extern(sql = false)]
fn forget_lookups(relation: pg_sys::Oid) {
    // This session does not wait for its own message: it may emit in the same statement.
    STALE.set(true);
    // SAFETY: queues an invalidation that is sent with the commit; the relation exists, its trigger calls this.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}
