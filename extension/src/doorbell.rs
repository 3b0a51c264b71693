//! The doorbell: wakes a sidecar at commit, but only when one sleeps.
//!
//! A NOTIFY in every transaction would serialise all commits of the server (it takes a cluster-wide lock until after
//! the flush of the log: 2.7k instead of 14.1k transactions per second at 64 writers). So whatever makes a delivery
//! due only arms. Just before the commit the armed transaction tries the advisory lock K shared:
//!
//! * granted: nobody sleeps. The lock stays until after the commit is visible, so no sidecar can take K, look, see
//!   nothing and fall asleep in between;
//! * refused: a sidecar sleeps (it holds K exclusively), and one NOTIFY goes with the commit.
//!
//! Ringing where the event is emitted would be wrong: ROLLBACK TO would drop both the lock and the notification, and a
//! transaction left open would keep sidecars from sleeping. PREPARE TRANSACTION rings nobody (NOTIFY cannot be
//! prepared); the sidecars' poll finds the work after COMMIT PREPARED.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::prelude::*;
use pgrx::{direct_function_call, pg_sys};

use crate::{majors, settings};

/// First key of the lock K; the second is 0. `sql/50_sidecars.sql` names the same numbers.
const DOORBELL_CLASS: u32 = 1_869_767_272;
/// A lock tag of two 32-bit keys, as `pg_advisory_lock(int, int)` makes it.
const TWO_KEYS: u16 = 2;
const CHANNEL: &CStr = c"orbhook";

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    /// The session's lock_timeout, while a commit that rings does without it.
    static LOCK_TIMEOUT: Cell<Option<c_int>> = const { Cell::new(None) };
}

unsafe extern "C-unwind" {
    // src/backend/commands/async.c; pgrx generates no binding for it.
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
}

/// Something becomes due with this transaction.
pub(crate) fn arm() {
    ARMED.set(true);
}

#[pg_extern(sql = false)]
fn arm_doorbell() {
    arm();
}

pub(crate) fn install() {
    // SAFETY: called from _PG_init, once per backend; the callback is a function of this library, which stays loaded.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_event), std::ptr::null_mut()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent as At;
    match event {
        At::XACT_EVENT_PRE_COMMIT if ARMED.get() => ring(),
        At::XACT_EVENT_COMMIT | At::XACT_EVENT_ABORT | At::XACT_EVENT_PREPARE => {
            ARMED.set(false);
            restore_lock_timeout();
        }
        _ => {}
    }
}

/// Runs inside CommitTransaction: it must not fail for any reason of its own, or the application's commit would.
fn ring() {
    if !settings::notify()
        || somebody_is_awake()
        || notification_queue_usage() >= settings::notify_queue_usage_max()
    {
        return;
    }
    suspend_lock_timeout();
    // SAFETY: both strings are NUL-terminated and copied. PreCommit_Notify runs after the callbacks, so what is queued
    // here goes with this commit. The transaction is not being prepared: PRE_PREPARE is another event.
    unsafe { Async_Notify(CHANNEL.as_ptr(), c"".as_ptr()) }
}

/// PreCommit_Notify waits for the transaction of this server that notifies before it, until that one is durable and its
/// synchronous standby has it. An application's lock_timeout is about its statements; here it would fail its COMMIT for
/// nothing but a wake-up.
fn suspend_lock_timeout() {
    // SAFETY: a plain global of the backend, read whenever it begins to wait for a lock.
    unsafe {
        LOCK_TIMEOUT.set(Some(pg_sys::LockTimeout));
        pg_sys::LockTimeout = 0;
    }
}

fn restore_lock_timeout() {
    if let Some(lock_timeout) = LOCK_TIMEOUT.take() {
        // SAFETY: as above. SET LOCAL is undone after the callbacks, and so undone on top of this.
        unsafe { pg_sys::LockTimeout = lock_timeout }
    }
}

fn somebody_is_awake() -> bool {
    let lock = pg_sys::LOCKTAG {
        // SAFETY: a plain global of the backend, set when it connected.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: DOORBELL_CLASS,
        locktag_field3: 0,
        locktag_field4: TWO_KEYS,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    };
    // The lock ends with the transaction, after its commit is visible to others. An emitter never waits for a sidecar, and
    // a full lock table is no reason to fail a commit: it then rings, which costs one NOTIFY.
    // SAFETY: called in a transaction.
    unsafe { majors::lock_at_once(&lock, pg_sys::ShareLock as pg_sys::LOCKMODE) }
}

fn notification_queue_usage() -> f64 {
    // SAFETY: pg_notification_queue_usage() takes no arguments and returns float8.
    unsafe { direct_function_call::<f64>(pg_sys::pg_notification_queue_usage, &[]) }.unwrap_or(1.0)
}
