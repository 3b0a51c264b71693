//! `orbhook_emit`: an event and its deliveries, in the caller's transaction.
//!
//! Three statements at most, prepared once in a session: who subscribes, the idempotency key if there is one, and one
//! insert for everything. It never renders and never waits for a sidecar.

use std::cell::RefCell;

use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient};
use pgrx::{AnyElement, PgBuiltInOids, Uuid, pg_sys};
use serde_json::json;

use crate::fault::{Fault, or_raise};
use crate::payload::{self, Payload, Unreadable};
use crate::{doorbell, identity, settings};

pub(crate) const EVENT_TYPE_CHARACTERS_MAX: usize = 64;
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Webhooks listed in `events.skipped`; the rest are counted.
const SKIPPED_LISTED_MAX: usize = 100;
/// Names offered in the hint for an unknown type.
const NEAREST_LISTED_MAX: usize = 3;
/// How far a name may be from an offered one, in edits.
const NEAREST_EDITS_MAX: usize = 8;
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

#[pg_extern(sql = false)]
fn raise_unknown_event_type(prefix: &str, name: &str) {
    let fault = Spi::connect(|client| unknown_event_type(client, prefix, name)).unwrap_or_else(|fault| fault);
    fault.raise()
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
    let event = Event {
        id: identity::new_uuid(),
        event_type,
        payload: &datum,
        stamp: stamp(&payload, event_type, now),
        occurred_at: payload.timestamp.as_deref().and_then(occurred_at_micros).unwrap_or(now),
        created_at: now,
        due_at: due_at(deliver_at, now)?,
    };
    Spi::connect_mut(|client| {
        let subscribers = subscribers(client, event_type, &datum, Path::Pinned)?;
        if let Some(key) = idempotency_key
            && let Some(earlier) = claim_key(client, key, event.id)?
        {
            return Ok(earlier);
        }
        insert(client, &event, &subscribers, Path::Pinned)?;
        if !subscribers.webhooks.is_empty() {
            doorbell::arm();
        }
        Ok(event.id)
    })
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
    Spi::connect_mut(|client| {
        let subscribers = subscribers(client, event_type, &payload, Path::Foreign)?;
        insert(client, &event, &subscribers, Path::Foreign)?;
        if !subscribers.webhooks.is_empty() {
            doorbell::arm();
        }
        Ok(())
    })
}

/// Whose search path a statement runs under. A prepared statement is planned anew whenever the path has changed, so
/// each kind keeps its own; every name and operator in these statements is qualified.
#[derive(Clone, Copy)]
pub(crate) enum Path {
    /// That of `orbhook_emit`.
    Pinned,
    /// That of the application, in whose statement a trigger runs.
    Foreign,
}

type Prepared = RefCell<[Option<OwnedPreparedStatement>; 2]>;

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

#[derive(Default)]
struct Subscribers {
    webhooks: Vec<Uuid>,
    /// `events.skipped`.
    skipped: Option<String>,
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

/// Who gets the event and who does not, although subscribed. An unknown type is refused here.
fn subscribers(
    client: &mut SpiClient<'_>,
    event_type: &str,
    payload: &AnyElement,
    path: Path,
) -> Result<Subscribers, Fault> {
    // One row without webhook: the type is known and nobody subscribes. No row: the type is unknown.
    const WHO: &str = "\
        select s.webhook_id, s.active, \
               case when s.filter is null then true \
                    else orbhook._matches($3, s.filter) end \
        from (select from orbhook.event_types t where t.name operator(pg_catalog.=) $1) known \
        left join orbhook.subscriptions s on s.pattern operator(pg_catalog.=) any ($2)";
    thread_local! {
        static PREPARED: Prepared = const { RefCell::new([None, None]) };
    }
    if event_type.len() > EVENT_TYPE_CHARACTERS_MAX {
        return Err(Fault::argument(format!(
            "an event type has at most {EVENT_TYPE_CHARACTERS_MAX} characters"
        )));
    }
    let arguments = [
        DatumWithOid::from(event_type),
        DatumWithOid::from(patterns(event_type)),
        // SAFETY: the datum is a jsonb by the function's declaration.
        unsafe { DatumWithOid::new(payload.datum(), pg_sys::JSONBOID) },
    ];
    let types =
        [PgBuiltInOids::TEXTOID.oid(), PgBuiltInOids::TEXTARRAYOID.oid(), PgBuiltInOids::JSONBOID.oid()];
    let (webhooks, skipped) = PREPARED.with_borrow_mut(|prepared| -> Result<_, Fault> {
        let statement = kept(client, prepared, path, WHO, &types)?;
        let rows = client.select(statement, None, &arguments)?;
        if rows.is_empty() {
            return Ok((Vec::new(), None));
        }
        let mut webhooks = Vec::with_capacity(rows.len());
        let mut skipped = Vec::new();
        for row in rows {
            let Some(webhook) = row.get::<Uuid>(1)? else { continue };
            if row.get::<bool>(2)? != Some(true) {
                skipped.push((webhook, "inactive"));
            } else if row.get::<bool>(3)? != Some(true) {
                skipped.push((webhook, "filtered"));
            } else {
                webhooks.push(webhook);
            }
        }
        Ok((webhooks, Some(skipped)))
    })?;
    match skipped {
        None => Err(unknown_event_type(client, "", event_type)?),
        Some(skipped) => Ok(Subscribers { webhooks, skipped: skipped_json(&skipped) }),
    }
}

/// The type itself, its families from the narrowest to the widest, and everything.
pub(crate) fn patterns(event_type: &str) -> Vec<String> {
    let families = event_type.rmatch_indices('_').map(|(end, _)| format!("{}_*", &event_type[..end]));
    std::iter::once(event_type.to_owned()).chain(families).chain(std::iter::once("*".to_owned())).collect()
}

pub(crate) fn skipped_json(skipped: &[(Uuid, &str)]) -> Option<String> {
    if skipped.is_empty() {
        return None;
    }
    let mut entries: Vec<_> = skipped
        .iter()
        .take(SKIPPED_LISTED_MAX)
        .map(|(webhook, reason)| json!({ "webhook": webhook.to_string(), "reason": reason }))
        .collect();
    if skipped.len() > SKIPPED_LISTED_MAX {
        entries.push(json!({ "more": skipped.len() - SKIPPED_LISTED_MAX }));
    }
    Some(serde_json::Value::Array(entries).to_string())
}

/// Takes the key for this event, or returns the event that has it.
///
/// Two emits of one key at the same time: the second waits for the first to end, as the unique index demands.
fn claim_key(client: &mut SpiClient<'_>, key: &str, event: Uuid) -> Result<Option<Uuid>, Fault> {
    const TAKE: &str =
        "insert into orbhook.event_keys (key, event_id) values ($1, $2) on conflict (key) do nothing";
    const FIND: &str = "select k.event_id from orbhook.event_keys k where k.key = $1";
    for _ in 0..KEY_ROUNDS_MAX {
        let taken = client.update(TAKE, None, &[DatumWithOid::from(key), DatumWithOid::from(event)])?;
        if taken.len() == 1 {
            return Ok(None);
        }
        let found = client.update(FIND, Some(1), &[DatumWithOid::from(key)])?;
        if let Some(row) = found.into_iter().next() {
            return Ok(row.get::<Uuid>(1)?);
        }
    }
    Err(Fault::Internal("an idempotency key appears and disappears".to_owned()))
}

fn insert(
    client: &mut SpiClient<'_>,
    event: &Event<'_>,
    subscribers: &Subscribers,
    path: Path,
) -> Result<(), Fault> {
    // Deliveries go straight to the partition for open ones: routing each row through the parent costs more.
    const RECORD: &str = "\
        with recorded as ( \
            insert into orbhook.events (id, event_type, payload, occurred_at, created_at, skipped) \
            values ($1, $2, case when $4 is null then $3 \
                                 else $4::pg_catalog.jsonb operator(pg_catalog.||) $3 end, $5, $6, $7::pg_catalog.jsonb)) \
        insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, created_at) \
        select d.id, $1, d.webhook_id, $8, $6 from rows from (pg_catalog.unnest($9), pg_catalog.unnest($10)) as d (id, webhook_id)";
    thread_local! {
        static PREPARED: Prepared = const { RefCell::new([None, None]) };
    }
    use PgBuiltInOids as Type;
    let types = [
        Type::UUIDOID.oid(),
        Type::TEXTOID.oid(),
        Type::JSONBOID.oid(),
        Type::TEXTOID.oid(),
        Type::TIMESTAMPTZOID.oid(),
        Type::TIMESTAMPTZOID.oid(),
        Type::TEXTOID.oid(),
        Type::TIMESTAMPTZOID.oid(),
        Type::UUIDARRAYOID.oid(),
        Type::UUIDARRAYOID.oid(),
    ];
    let ids: Vec<Uuid> = subscribers.webhooks.iter().map(|_| identity::new_uuid()).collect();
    let arguments = [
        DatumWithOid::from(event.id),
        DatumWithOid::from(event.event_type),
        // SAFETY: the datum is a jsonb by the function's declaration.
        unsafe { DatumWithOid::new(event.payload.datum(), pg_sys::JSONBOID) },
        DatumWithOid::from(event.stamp.as_deref()),
        time(event.occurred_at),
        time(event.created_at),
        DatumWithOid::from(subscribers.skipped.as_deref()),
        time(event.due_at),
        DatumWithOid::from(ids),
        DatumWithOid::from(subscribers.webhooks.clone()),
    ];
    PREPARED.with_borrow_mut(|prepared| {
        let statement = kept(client, prepared, path, RECORD, &types)?;
        client.update(statement, None, &arguments)?;
        Ok(())
    })
}

pub(crate) fn time(micros: pg_sys::TimestampTz) -> DatumWithOid<'static> {
    // SAFETY: a timestamptz is its microseconds, passed by value.
    unsafe { DatumWithOid::new(pg_sys::Datum::from(micros), pg_sys::TIMESTAMPTZOID) }
}

fn kept<'a>(
    client: &SpiClient<'_>,
    prepared: &'a mut [Option<OwnedPreparedStatement>; 2],
    path: Path,
    statement: &str,
    types: &[pgrx::PgOid],
) -> Result<&'a OwnedPreparedStatement, Fault> {
    let [pinned, foreign] = prepared;
    let prepared = match path {
        Path::Pinned => pinned,
        Path::Foreign => foreign,
    };
    match prepared {
        Some(kept) => Ok(kept),
        None => Ok(prepared.insert(client.prepare_mut(statement, types)?.keep())),
    }
}

fn unknown_event_type(client: &SpiClient<'_>, prefix: &str, name: &str) -> Result<Fault, Fault> {
    let mut known = Vec::new();
    for row in client.select("select t.name from orbhook.event_types t order by t.name", None, &[])? {
        known.extend(row.get::<String>(1)?);
    }
    let shown: String = name.chars().take(EVENT_TYPE_CHARACTERS_MAX).collect();
    let mut nearest: Vec<(usize, &String)> =
        known.iter().map(|candidate| (strsim::damerau_levenshtein(&shown, candidate), candidate)).collect();
    nearest.sort();
    let offered: Vec<&str> = nearest
        .iter()
        .filter(|(edits, _)| *edits <= NEAREST_EDITS_MAX)
        .take(NEAREST_LISTED_MAX)
        .map(|(_, candidate)| candidate.as_str())
        .collect();
    let near = if offered.is_empty() { String::new() } else { format!("nearest: {}. ", offered.join(", ")) };
    Ok(Fault::Argument {
        message: format!("{prefix}unknown event type {shown:?}"),
        hint: Some(format!(
            "{near}To register another: insert into orbhook.event_types (name, category, description) values (…)"
        )),
    })
}
