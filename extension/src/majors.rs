//! Where the majors of PostgreSQL differ for this library: whatever depends on the one it was built for stands here.

use pgrx::pg_sys;

/// The columns of a row shape, dropped ones among them.
///
/// PostgreSQL 18 keeps them behind a shorter form of each, which comes first.
///
/// # Safety
/// `shape` must be valid, and outlive what is returned.
pub(crate) unsafe fn attributes<'shape>(shape: pg_sys::TupleDesc) -> &'shape [pg_sys::FormData_pg_attribute] {
    // SAFETY: by this function's contract; both forms are there for each of the columns.
    unsafe {
        let count = usize::try_from((*shape).natts).unwrap_or_default();
        #[cfg(not(feature = "pg18"))]
        let first = (*shape).attrs.as_ptr();
        #[cfg(feature = "pg18")]
        let first = (*shape).compact_attrs.as_ptr().add(count).cast::<pg_sys::FormData_pg_attribute>();
        std::slice::from_raw_parts(first, count)
    }
}

/// Takes a lock until the end of the transaction if nobody is in its way, and says whether that was so.
///
/// Never waits. With the lock table full there is no error either: the answer is no.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn lock_at_once(lock: &pg_sys::LOCKTAG, mode: pg_sys::LOCKMODE) -> bool {
    const OF_THE_SESSION: bool = false;
    const DONT_WAIT: bool = true;
    const REPORT_MEMORY_ERROR: bool = false;
    // SAFETY: by this function's contract; the tag lives through the call.
    let result = unsafe {
        pg_sys::LockAcquireExtended(
            lock,
            mode,
            OF_THE_SESSION,
            DONT_WAIT,
            REPORT_MEMORY_ERROR,
            std::ptr::null_mut(),
            #[cfg(feature = "pg18")]
            false,
        )
    };
    result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}
