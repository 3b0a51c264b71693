//! Whose rights a step runs with.
//!
//! A trigger runs as whoever changes the table. Look-ups in application tables run as the owner of the table read, as
//! foreign-key checks do; only orbhook's own tables are read and written as the extension's owner. A role switched to
//! here is switched back when the value goes out of scope; after an error PostgreSQL does it with the transaction.

use pgrx::pg_sys;

pub(crate) struct Acting {
    role: pg_sys::Oid,
    context: i32,
}

impl Acting {
    /// To run nothing but statements of orbhook's own.
    pub(crate) fn as_orbhook(owner: pg_sys::Oid) -> Acting {
        Acting::switch(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    /// To read an application table, or to run a function of the application's when nobody changes a row. Such a
    /// function cannot change the session or leave anything behind that runs later with more rights.
    pub(crate) fn as_table_owner(owner: pg_sys::Oid) -> Acting {
        Acting::switch(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION)
    }

    fn switch(to: pg_sys::Oid, flags: u32) -> Acting {
        let (mut role, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: plain out parameters; the flags are added to those in force.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut role, &raw mut context);
            pg_sys::SetUserIdAndSecContext(to, context | i32::try_from(flags).unwrap_or_default());
        }
        Acting { role, context }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // SAFETY: what was in force before.
        unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) }
    }
}

/// `search_path = pg_catalog, pg_temp` until it goes out of scope, for statements that are not fully qualified.
pub(crate) struct PinnedPath(i32);

impl PinnedPath {
    pub(crate) fn new() -> PinnedPath {
        // SAFETY: as a function's SET clause does it; both strings are NUL-terminated.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                c"search_path".as_ptr(),
                c"pg_catalog, pg_temp".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            PinnedPath(level)
        }
    }
}

impl Drop for PinnedPath {
    fn drop(&mut self) {
        // After an error the transaction's own clean-up has put the settings back, or will.
        if !std::thread::panicking() {
            // SAFETY: the level was opened by `new`.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) }
        }
    }
}
