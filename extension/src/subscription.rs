//! Who gets an event: the webhooks that subscribe to its type, looked up once in a session and type.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use pgrx::{AnyElement, Uuid, pg_sys};
use serde_json::json;

use crate::fault::Fault;
use crate::statement::run;
use crate::{ledger, stale};

pub(crate) const EVENT_TYPE_CHARACTERS_MAX: usize = 64;
/// Webhooks listed in `events.skipped`; the rest are counted.
const SKIPPED_LISTED_MAX: usize = 100;
/// Names offered in the hint for an unknown type.
const NEAREST_LISTED_MAX: usize = 3;
/// How far a name may be from an offered one, in edits.
const NEAREST_EDITS_MAX: usize = 8;
/// Subscriptions a session remembers, over all types: 24 bytes each.
const REMEMBERED_MAX: usize = 50_000;

/// Who gets one event.
#[derive(Default)]
pub(crate) struct Subscribers {
    pub(crate) webhooks: Vec<Uuid>,
    /// `events.skipped`.
    pub(crate) skipped: Option<String>,
}

/// A webhook that subscribes to a type.
#[derive(Clone, Copy)]
pub(crate) struct Subscription {
    pub(crate) webhook: Uuid,
    pub(crate) active: bool,
    /// Its filter decides for each event.
    pub(crate) filtered: bool,
}

thread_local! {
    static KNOWN: RefCell<HashMap<String, Rc<[Subscription]>>> = RefCell::new(HashMap::new());
}

pub(crate) fn forget() {
    KNOWN.with_borrow_mut(HashMap::clear);
}

/// Who gets the event and who does not, although subscribed. An unknown type is refused here.
///
/// To be called with the rights of the extension's owner; the search path may be anybody's.
pub(crate) fn subscribers(event_type: &str, payload: &AnyElement) -> Result<Subscribers, Fault> {
    let subscriptions = of(event_type)?;
    // Filters are asked in one statement with everything else: what is remembered may be older than what it reads.
    let judged = if subscriptions.iter().any(|one| one.active && one.filtered) {
        judged(event_type, payload)?
    } else {
        subscriptions.iter().map(|one| (one.webhook, one.active, true)).collect()
    };
    let (mut webhooks, mut skipped) = (Vec::with_capacity(judged.len()), Vec::new());
    for (webhook, active, passes) in judged {
        if !active {
            skipped.push((webhook, "inactive"));
        } else if !passes {
            skipped.push((webhook, "filtered"));
        } else {
            webhooks.push(webhook);
        }
    }
    Ok(Subscribers { webhooks, skipped: skipped_json(&skipped) })
}

/// The subscriptions to a type. An unknown type is refused here.
pub(crate) fn of(event_type: &str) -> Result<Rc<[Subscription]>, Fault> {
    // One row without webhook: the type is known and nobody subscribes. No row: the type is unknown.
    const WHO: &str = "\
        select s.webhook_id, s.active, s.filter is not null \
        from (select from orbhook.event_types t where t.name operator(pg_catalog.=) $1) known \
        left join orbhook.subscriptions s on s.pattern operator(pg_catalog.=) any ($2)";
    if event_type.len() > EVENT_TYPE_CHARACTERS_MAX {
        return Err(Fault::argument(format!(
            "an event type has at most {EVENT_TYPE_CHARACTERS_MAX} characters"
        )));
    }
    stale::catch_up();
    if let Some(known) = KNOWN.with_borrow(|known| known.get(event_type).cloned()) {
        return Ok(known);
    }
    depend()?;
    let arguments = [DatumWithOid::from(event_type), DatumWithOid::from(patterns(event_type))];
    // connect_mut: with a snapshot of its own. That of the statement that emits may be older than the last
    // change this session was told of, and would be remembered beyond it.
    let found = Spi::connect_mut(|client| -> Result<_, Fault> {
        let rows = run(client, WHO, &arguments)?;
        if rows.is_empty() {
            return Err(unknown_event_type(client, "", event_type)?);
        }
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            if let (Some(webhook), Some(active), Some(filtered)) =
                (row.get::<Uuid>(1)?, row.get::<bool>(2)?, row.get::<bool>(3)?)
            {
                found.push(Subscription { webhook, active, filtered });
            }
        }
        Ok(Rc::<[Subscription]>::from(found))
    })?;
    // A transaction that sees the database as it was at its beginning must not say how it is to the next one.
    // SAFETY: reads a global of the backend.
    if unsafe { pg_sys::XactIsoLevel } < pg_sys::XACT_REPEATABLE_READ as i32 {
        remember(event_type, &found);
    }
    Ok(found)
}

fn remember(event_type: &str, found: &Rc<[Subscription]>) {
    KNOWN.with_borrow_mut(|known| {
        let size: usize = known.values().map(|subscriptions| subscriptions.len() + 1).sum();
        if size + found.len() > REMEMBERED_MAX {
            known.clear();
        }
        if found.len() < REMEMBERED_MAX {
            known.insert(event_type.to_owned(), Rc::clone(found));
        }
    });
}

fn depend() -> Result<(), Fault> {
    for table in [c"subscriptions", c"event_types"] {
        let relation = ledger::relation(table)
            .ok_or_else(|| Fault::Internal(format!("there is no table {}", table.to_string_lossy())))?;
        stale::depends_on(relation);
    }
    Ok(())
}

/// Subscribed webhooks: whether each is active, and whether the payload passes its filter.
fn judged(event_type: &str, payload: &AnyElement) -> Result<Vec<(Uuid, bool, bool)>, Fault> {
    const JUDGED: &str = "\
        select s.webhook_id, s.active, \
               case when s.filter is null then true else orbhook._matches($2, s.filter) end \
        from orbhook.subscriptions s where s.pattern operator(pg_catalog.=) any ($1)";
    let arguments = [
        DatumWithOid::from(patterns(event_type)),
        // SAFETY: callers pass a jsonb.
        unsafe { DatumWithOid::new(payload.datum(), pg_sys::JSONBOID) },
    ];
    Spi::connect_mut(|client| {
        let mut judged = Vec::new();
        for row in run(client, JUDGED, &arguments)? {
            if let (Some(webhook), Some(active), Some(passes)) =
                (row.get::<Uuid>(1)?, row.get::<bool>(2)?, row.get::<bool>(3)?)
            {
                judged.push((webhook, active, passes));
            }
        }
        Ok(judged)
    })
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

#[pg_extern(sql = false)]
fn raise_unknown_event_type(prefix: &str, name: &str) {
    let fault = Spi::connect(|client| unknown_event_type(client, prefix, name)).unwrap_or_else(|fault| fault);
    fault.raise()
}

fn unknown_event_type(client: &SpiClient<'_>, prefix: &str, name: &str) -> Result<Fault, Fault> {
    let mut known = Vec::new();
    let names = "select t.name from orbhook.event_types t order by t.name";
    for row in client.select(names, None, &[])? {
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
