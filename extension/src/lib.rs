//! orbhook: committed changes in PostgreSQL become webhooks.
//!
//! The state machine is SQL (`sql/`, in the order of `schema.rs`). Rust does what SQL cannot do well:
//!
//! * `emit`: records an event and its deliveries in the caller's transaction; `payload` measures and reads it, `json` makes one;
//!   `subscription` says who gets it, `ledger` writes the rows, `stale` forgets what has changed, `statement` keeps what is prepared;
//! * `doorbell`: wakes a sidecar at commit, but only when one sleeps;
//! * `front`: where each queue began when this session claimed last;
//! * `webhook`, `render`, `judge`: thin SQL-callable faces of the pure crate `orbhook-providers`;
//! * `watch`: triggers that emit for application tables;
//! * `seal`: secrets sealed on their way in; where this database is;
//! * `majors`: where the majors of PostgreSQL differ;
//! * `identity`: ids and signing secrets; `signature`: verification in SQL; `settings`: the server settings; `fault`: errors and their SQLSTATE.
//!
//! A panic is turned into an ERROR by pgrx, but an abort or a stack overflow would restart the whole server: nothing
//! here recurses over data, and nothing here unwraps.

use pgrx::prelude::*;

mod doorbell;
mod emit;
mod explain;
mod fault;
mod front;
mod identity;
mod json;
mod judge;
mod ledger;
mod majors;
mod payload;
mod render;
mod schema;
mod seal;
mod settings;
mod signature;
mod stale;
mod statement;
mod subscription;
mod watch;
mod webhook;

pgrx::pg_module_magic!(name, version);

#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
    doorbell::install();
    stale::install();
    watch::install();
}
