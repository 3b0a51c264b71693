//! `orbhook_emit`: an event and its deliveries, in the caller's transaction.
//!
//! Who subscribes is remembered, and the rows go straight into their tables (`ledger`): without an idempotency key no
//! statement is run. It never renders and never waits for a sidecar.

use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use pgrx::{AnyElement, Uuid, pg_sys};

use crate::fault::{Fault, or_raise};
use crate::ledger::{self, Delivery};
use crate::payload::{self, Payload, Unreadable};
use crate::statement::run;
use crate::subscription::{self, Subscribers};
use crate::{doorbell, identity, json, settings};

const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// A key that vanishes between the conflict and the look-up was purged meanwhile; the second round then wins.
const KEY_ROUNDS_MAX: usize = 3;
/// 2000-01-01 UTC, from which PostgreSQL counts.
pub(crate) const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

#[pg_extern(sql = false)]
fn emit(
    event_type: Option<&str>,
    payload: Option<AnyElement>,
    idempotency_key: Option<&str>,
    deliver_at: Option<TimestampWithTimeZone>,
) -> Uuid {
    or_raise(record(event_type, payload, idempotency_key, deliver_at))
}

/// What `orbhook_emit` does, for a caller in any language of the server.
pub(crate) fn record(
    event_type: Option<&str>,
    payload: Option<AnyElement>,
    idempotency_key: Option<&str>,
    deliver_at: Option<TimestampWithTimeZone>,
) -> Result<Uuid, Fault> {
    let event_type = event_type.ok_or_else(|| Fault::argument("event_type must not be null"))?;
    let datum = payload.ok_or_else(|| Fault::argument("payload must be a JSON object, not null"))?;
    refuse_read_only()?;
    if let Some(key) = idempotency_key
        && !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
    {
        return Err(Fault::argument(format!(
            "idempotency_key must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, this one has {}",
            key.len()
        )));
    }
    let payload = read_payload(&datum)?;
    if let Some(other) = payload.event_type.as_deref()
        && other != event_type
    {
        return Err(Fault::argument(
            "eventType in the payload differs from the event type of the call; leave it out or make them equal",
        ));
    }
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let mut event = Event {
        id: identity::new_uuid(),
        event_type,
        payload: &datum,
        stamp: stamp(&payload, event_type, now),
        occurred_at: payload.timestamp.as_deref().and_then(occurred_at_micros).unwrap_or(now),
        created_at: now,
        due_at: due_at(deliver_at, now)?,
    };
    let subscribers = subscription::subscribers(event_type, &datum)?;
    if let Some(key) = idempotency_key
        && let Some(earlier) = Spi::connect_mut(|client| claim_key(client, key, event.id))?
    {
        return Ok(earlier);
    }
    // Filters and the wait for a key may have taken long, and claims may have passed on meanwhile: what is due before the
    // front of its queue would be found late (front.rs).
    // SAFETY: reads the clock.
    event.due_at = event.due_at.max(unsafe { pg_sys::GetCurrentTimestamp() });
    insert(&event, &subscribers)?;
    Ok(event.id)
}

/// Records one event whose payload orbhook built itself: complete, of the right type, stamped with `now`.
///
/// To be called with the rights of the extension's owner; the search path may be anybody's.
pub(crate) fn record_built(
    event_type: &str,
    payload: pg_sys::Datum,
    now: pg_sys::TimestampTz,
) -> Result<(), Fault> {
    let payload = jsonb(payload)?;
    read_payload(&payload)?;
    let event = Event {
        id: identity::new_uuid(),
        event_type,
        payload: &payload,
        stamp: None,
        occurred_at: now,
        created_at: now,
        due_at: now,
    };
    insert(&event, &subscription::subscribers(event_type, &payload)?)
}

pub(crate) fn jsonb(datum: pg_sys::Datum) -> Result<AnyElement, Fault> {
    // SAFETY: callers pass a jsonb.
    unsafe { AnyElement::from_polymorphic_datum(datum, false, pg_sys::JSONBOID) }
        .ok_or_else(|| Fault::Internal("a payload is null".to_owned()))
}

struct Event<'a> {
    id: Uuid,
    event_type: &'a str,
    payload: &'a AnyElement,
    /// What the payload lacks, as a JSON object; empty if nothing.
    stamp: Option<String>,
    occurred_at: pg_sys::TimestampTz,
    created_at: pg_sys::TimestampTz,
    due_at: pg_sys::TimestampTz,
}

fn refuse_read_only() -> Result<(), Fault> {
    // SAFETY: reads backend state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Fault::ReadOnly("orbhook_emit cannot run on a standby"));
    }
    // SAFETY: as above.
    if unsafe { pg_sys::XactReadOnly } {
        return Err(Fault::ReadOnly("orbhook_emit cannot run in a read-only transaction"));
    }
    Ok(())
}

fn read_payload(datum: &AnyElement) -> Result<Payload, Fault> {
    let bytes_max = settings::payload_bytes_max();
    payload::read(datum, bytes_max).map_err(|unreadable| match unreadable {
        Unreadable::NoObject => Fault::argument("payload must be a JSON object"),
        Unreadable::TooLarge => Fault::TooLarge {
            message: format!("payload is larger than {bytes_max} bytes"),
            hint: "send a reference instead of the content, or raise orbhook.payload_bytes_max".to_owned(),
        },
    })
}

/// What the document's event object has and this payload lacks.
fn stamp(payload: &Payload, event_type: &str, now: pg_sys::TimestampTz) -> Option<String> {
    let mut lacking = serde_json::Map::new();
    if payload.event_type.is_none() {
        lacking.insert("eventType".to_owned(), event_type.into());
    }
    if !payload.has_timestamp
        && let Ok(instant) = jiff::Timestamp::from_microsecond(now.saturating_add(POSTGRES_EPOCH_UNIX_MICROS))
    {
        lacking.insert("timestamp".to_owned(), format!("{instant:.6}").into());
    }
    (!lacking.is_empty()).then(|| serde_json::Value::Object(lacking).to_string())
}

/// Microseconds since 2000-01-01 UTC, PostgreSQL's epoch. `None` if the text is no time, or one PostgreSQL lacks.
fn occurred_at_micros(timestamp: &str) -> Option<pg_sys::TimestampTz> {
    let instant = orbhook_providers::instant(timestamp)?;
    instant.as_microsecond().checked_sub(POSTGRES_EPOCH_UNIX_MICROS)
}

/// Never in the past: a scan for due work may then begin where the last one saw nothing.
fn due_at(
    deliver_at: Option<TimestampWithTimeZone>,
    now: pg_sys::TimestampTz,
) -> Result<pg_sys::TimestampTz, Fault> {
    match deliver_at {
        None => Ok(now),
        Some(time) if time.is_infinity() || time.is_neg_infinity() => {
            Err(Fault::argument("deliver_at must be a finite time"))
        }
        Some(time) => Ok(pg_sys::TimestampTz::from(time).max(now)),
    }
}

/// Takes the key for this event, or returns the event that has it.
///
/// Two emits of one key at the same time: the second waits for the first to end, as the unique index demands.
fn claim_key(client: &mut SpiClient<'_>, key: &str, event: Uuid) -> Result<Option<Uuid>, Fault> {
    const TAKE: &str =
        "insert into orbhook.event_keys (key, event_id) values ($1, $2) on conflict (key) do nothing";
    const FIND: &str = "select k.event_id from orbhook.event_keys k where k.key operator(pg_catalog.=) $1";
    for _ in 0..KEY_ROUNDS_MAX {
        let taken = run(client, TAKE, &[DatumWithOid::from(key), DatumWithOid::from(event)])?;
        if taken.len() == 1 {
            return Ok(None);
        }
        let found = run(client, FIND, &[DatumWithOid::from(key)])?;
        if let Some(row) = found.into_iter().next() {
            return Ok(row.get::<Uuid>(1)?);
        }
    }
    Err(Fault::Internal("an idempotency key appears and disappears".to_owned()))
}

fn insert(event: &Event<'_>, subscribers: &Subscribers) -> Result<(), Fault> {
    let whole = match &event.stamp {
        // What the producer says wins.
        Some(stamp) => json::joined(json::parse(stamp)?, event.payload.datum())?,
        None => event.payload.datum(),
    };
    let row = ledger::Event {
        id: event.id,
        event_type: event.event_type.into_datum().unwrap_or_else(|| pg_sys::Datum::from(0_usize)),
        payload: whole,
        occurred_at: event.occurred_at,
        created_at: event.created_at,
        skipped: subscribers.skipped.as_deref().map(json::parse).transpose()?,
    };
    let deliveries: Vec<Delivery> = subscribers
        .webhooks
        .iter()
        .map(|webhook| Delivery {
            id: identity::new_uuid(),
            event_id: event.id,
            webhook_id: *webhook,
            due_at: event.due_at,
            created_at: event.created_at,
        })
        .collect();
    write(event.event_type, &[row], &deliveries)
}

/// Writes events of one type and their deliveries, and has a sidecar woken if there are any.
///
/// To be called with the rights of the extension's owner; the search path may be anybody's.
pub(crate) fn write(
    event_type: &str,
    events: &[ledger::Event],
    deliveries: &[Delivery],
) -> Result<(), Fault> {
    if !ledger::append(events, deliveries) {
        write_by_statement(event_type, events, deliveries)?;
    }
    if !deliveries.is_empty() {
        doorbell::arm();
    }
    Ok(())
}

/// For tables that somebody has added something to: a constraint, a trigger, an unusual index.
fn write_by_statement(
    event_type: &str,
    events: &[ledger::Event],
    deliveries: &[Delivery],
) -> Result<(), Fault> {
    const EVENTS: &str = "\
        insert into orbhook.events (id, event_type, payload, occurred_at, created_at, skipped) \
        select e.id, $1, e.payload, e.occurred_at, e.created_at, e.skipped \
        from rows from (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6)) \
             as e (id, payload, occurred_at, created_at, skipped)";
    // Straight to the partition for open ones: routing each row through the parent costs more.
    const DELIVERIES: &str = "\
        insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, created_at) \
        select d.id, d.event_id, d.webhook_id, d.due_at, d.created_at \
        from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) \
             as d (id, event_id, webhook_id, due_at, created_at)";
    Spi::connect_mut(|client| {
        run(
            client,
            EVENTS,
            &[
                event_type.into(),
                events.iter().map(|event| event.id).collect::<Vec<_>>().into(),
                array(pg_sys::JSONBOID, events.iter().map(|event| Some(event.payload))),
                times(events.iter().map(|event| event.occurred_at)),
                times(events.iter().map(|event| event.created_at)),
                array(pg_sys::JSONBOID, events.iter().map(|event| event.skipped)),
            ],
        )?;
        if !deliveries.is_empty() {
            run(
                client,
                DELIVERIES,
                &[
                    deliveries.iter().map(|delivery| delivery.id).collect::<Vec<_>>().into(),
                    deliveries.iter().map(|delivery| delivery.event_id).collect::<Vec<_>>().into(),
                    deliveries.iter().map(|delivery| delivery.webhook_id).collect::<Vec<_>>().into(),
                    times(deliveries.iter().map(|delivery| delivery.due_at)),
                    times(deliveries.iter().map(|delivery| delivery.created_at)),
                ],
            )?;
        }
        Ok(())
    })
}

fn times(values: impl Iterator<Item = pg_sys::TimestampTz>) -> DatumWithOid<'static> {
    array(pg_sys::TIMESTAMPTZOID, values.map(|value| Some(pg_sys::Datum::from(value))))
}

/// An array of one dimension.
pub(crate) fn array(
    element: pg_sys::Oid,
    values: impl Iterator<Item = Option<pg_sys::Datum>>,
) -> DatumWithOid<'static> {
    let (mut datums, mut nulls): (Vec<pg_sys::Datum>, Vec<bool>) = values
        .map(|value| value.map_or((pg_sys::Datum::from(0_usize), true), |datum| (datum, false)))
        .unzip();
    let mut count = i32::try_from(datums.len()).unwrap_or_default();
    let mut lower = 1;
    // SAFETY: the values are of the type whose layout is looked up; both lists have one dimension of that length.
    unsafe {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        pg_sys::get_typlenbyvalalign(element, &raw mut length, &raw mut by_value, &raw mut align);
        let array = pg_sys::construct_md_array(
            datums.as_mut_ptr(),
            nulls.as_mut_ptr(),
            1,
            &raw mut count,
            &raw mut lower,
            element,
            i32::from(length),
            by_value,
            align,
        );
        DatumWithOid::new(pg_sys::Datum::from(array), pg_sys::get_array_type(element))
    }
}

pub(crate) fn time(micros: pg_sys::TimestampTz) -> DatumWithOid<'static> {
    // SAFETY: a timestamptz is its microseconds, passed by value.
    unsafe { DatumWithOid::new(pg_sys::Datum::from(micros), pg_sys::TIMESTAMPTZOID) }
}
