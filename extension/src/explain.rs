//! For `orbhook_explain` and `orbhook.captured`: what SQL cannot ask.

use pgrx::prelude::*;
use pgrx::{AnyElement, pg_sys};

use crate::fault::{Fault, or_raise};
use crate::payload::{self, Unreadable};
use crate::settings;
use crate::subscription::EVENT_TYPE_CHARACTERS_MAX;

#[pg_extern(sql = false)]
fn check_event(event_type: Option<&str>, payload: Option<AnyElement>) {
    or_raise(check(event_type, payload));
}

fn check(event_type: Option<&str>, payload: Option<AnyElement>) -> Result<(), Fault> {
    let event_type = event_type.ok_or_else(|| Fault::argument("event_type must not be null"))?;
    let datum = payload.ok_or_else(|| Fault::argument("payload must be a JSON object, not null"))?;
    let bytes_max = settings::payload_bytes_max();
    let payload = payload::read(&datum, bytes_max).map_err(|unreadable| match unreadable {
        Unreadable::NoObject => Fault::argument("payload must be a JSON object"),
        Unreadable::TooLarge => Fault::TooLarge {
            message: format!("payload is larger than {bytes_max} bytes"),
            hint: "send a reference instead of the content, or raise orbhook.payload_bytes_max".to_owned(),
        },
    })?;
    if payload.event_type.is_some_and(|other| other != event_type) {
        return Err(Fault::argument(
            "eventType in the payload differs from the event type of the call; leave it out or make them equal",
        ));
    }
    if event_type.len() > EVENT_TYPE_CHARACTERS_MAX {
        return Err(Fault::argument(format!(
            "an event type has at most {EVENT_TYPE_CHARACTERS_MAX} characters"
        )));
    }
    Ok(())
}

/// Whether a row that is visible was written by this transaction or a savepoint of it. No SQL function says so for a
/// savepoint that was released: its lock is gone, and its number is told apart from others' by the backend alone.
#[pg_extern(sql = false)]
fn is_own_transaction(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: reads the backend's own transaction state; called in a transaction.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
}
