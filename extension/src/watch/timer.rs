//! What happens without anyone writing a row: a subscription or a trial ends.
//!
//! Triggers keep one row of `orbhook.watch_timers` for each end that is still to come. The sidecar's look reads that
//! small indexed table, never the application's. Whoever comes first, the clock or a change of the row, marks the timer
//! as fired; the other then says nothing.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::emit::{self, time};
use crate::fault::{Fault, or_raise};
use crate::statement::{oid, run};
use crate::watch::body;
use crate::watch::detect::Change;
use crate::watch::join::{qualified, quoted};
use crate::watch::loss;
use crate::watch::plan::{self, Watch};
use crate::watch::rights::Acting;
use crate::watch::row::Row;
use crate::watch::savepoint::attempt;

/// Timers looked at in one call: bounds how long a sidecar's look can take.
const TIMERS_PER_LOOK: i64 = 100;

struct Timer {
    event: &'static str,
    signal: &'static str,
}

const TIMERS: &[Timer] = &[
    Timer { event: "SUBSCRIPTION_EXPIRED", signal: "expires" },
    Timer { event: "SUBSCRIPTION_TRIAL_ENDED", signal: "trial_ends" },
];

/// Whether the change may say it: false if the clock has.
pub(crate) fn claim(watch: &Watch, event: &str, row: &Row, now: pg_sys::TimestampTz) -> Result<bool, Fault> {
    const CLAIM: &str = "\
        with fired as ( \
            update orbhook.watch_timers t set fired_at = $4 \
            where t.target operator(pg_catalog.=) $1 and t.row_key operator(pg_catalog.=) $2 \
              and t.event_type operator(pg_catalog.=) $3 and t.fired_at is null \
            returning 1) \
        select exists (select from fired) \
            or not exists (select from orbhook.watch_timers t \
                           where t.target operator(pg_catalog.=) $1 and t.row_key operator(pg_catalog.=) $2 \
                             and t.event_type operator(pg_catalog.=) $3)";
    let Some(key) = watch.row_key(row)? else { return Ok(true) };
    let _acting = Acting::as_orbhook(watch.orbhook);
    Spi::connect_mut(|client| {
        let rows = run(client, CLAIM, &[oid(watch.target), key.into(), event.into(), time(now)])?;
        Ok(rows.first().get_one::<bool>()? != Some(false))
    })
}

/// Keeps the timers of a changed row right.
pub(crate) fn keep(change: &Change<'_>) -> Result<(), Fault> {
    const SET: &str = "\
        insert into orbhook.watch_timers (target, row_key, event_type, at, fired_at) values ($1, $2, $3, $4, $5) \
        on conflict (target, event_type, row_key) do update set at = excluded.at, fired_at = excluded.fired_at";
    const DROP: &str = "\
        delete from orbhook.watch_timers t \
        where t.target operator(pg_catalog.=) $1 and t.row_key operator(pg_catalog.=) $2";
    const CLEAR: &str = "\
        delete from orbhook.watch_timers t \
        where t.target operator(pg_catalog.=) $1 and t.row_key operator(pg_catalog.=) $2 \
          and t.event_type operator(pg_catalog.=) $3";
    let watch = change.watch;
    if watch.source.name != "subscriptions" || TIMERS.iter().all(|timer| watch.signal(timer.signal).is_none())
    {
        return Ok(());
    }
    let key_before = change.old.map(|row| watch.row_key(row)).transpose()?.flatten();
    let key = change.new.map(|row| watch.row_key(row)).transpose()?.flatten();
    let (mut sets, mut cleared) = (Vec::new(), Vec::new());
    if let (Some(key), Some(new)) = (&key, change.new) {
        for timer in TIMERS {
            let Some(column) = watch.signal(timer.signal) else { continue };
            let at = timer.at(change, new)?;
            let moved =
                change.old.is_none_or(|old| column.differs(old, new)) || key_before.as_ref() != Some(key);
            let before = change.old.map(|old| timer.at(change, old)).transpose()?.flatten();
            if at == before && !moved {
                continue;
            }
            match (at, column.instant(new)) {
                // An end that lay in the past when the row came, or that was passed before, is no news.
                (Some(at), _) => {
                    let old_news = at <= change.now && (change.old.is_none() || !moved);
                    sets.push((key.clone(), timer.event, at, old_news.then_some(change.now)));
                }
                // It ended another way: the clock has nothing left to say.
                (None, Some(at)) if at != i64::MAX && at != i64::MIN => {
                    sets.push((key.clone(), timer.event, at, Some(change.now)));
                }
                _ => cleared.push((key.clone(), timer.event)),
            }
        }
    }
    let gone = key_before.filter(|before| Some(before) != key.as_ref());
    // A row that never had an end has no timer to take away.
    cleared.retain(|_| change.old.is_some());
    if sets.is_empty() && cleared.is_empty() && gone.is_none() {
        return Ok(());
    }
    let _acting = Acting::as_orbhook(watch.orbhook);
    Spi::connect_mut(|client| {
        if let Some(gone) = gone {
            run(client, DROP, &[oid(watch.target), gone.into()])?;
        }
        for (key, event) in cleared {
            run(client, CLEAR, &[oid(watch.target), key.into(), event.into()])?;
        }
        for (key, event, at, fired_at) in sets {
            let fired = fired_at.map_or_else(|| DatumWithOid::null_oid(pg_sys::TIMESTAMPTZOID), time);
            run(client, SET, &[oid(watch.target), key.into(), event.into(), time(at), fired])?;
        }
        Ok(())
    })
}

impl Timer {
    /// When the clock is to say it; `None` if it is not to.
    fn at(&self, change: &Change<'_>, row: &Row) -> Result<Option<i64>, Fault> {
        let Some(at) = change.watch.instant(self.signal, row) else { return Ok(None) };
        if at == i64::MAX || at == i64::MIN {
            return Ok(None);
        }
        let open = match self.event {
            "SUBSCRIPTION_EXPIRED" => {
                !change.expired(row)? && !change.watch.means(row, "SUBSCRIPTION_CANCELLED")?
            }
            // The date alone says a trial runs until then; a flag or a status may say otherwise.
            _ if change.watch.signal("trial").is_none() && change.watch.signal("status").is_none() => true,
            _ => change.in_trial(row)?,
        };
        Ok(open.then(|| at.saturating_add(change.watch.grace_micros)))
    }
}

/// Emits what has come due by the clock, at most a hundred; returns how many timers fired.
#[pg_extern(sql = false)]
fn fire_timers() -> i32 {
    or_raise(fire())
}

fn fire() -> Result<i32, Fault> {
    const DUE: &str = "\
        select t.target::pg_catalog.oid, t.row_key, t.event_type \
        from orbhook.watch_timers t \
        where t.fired_at is null and t.at operator(pg_catalog.<=) $1 \
        order by t.at limit $2 for update skip locked";
    const FIRED: &str = "\
        update orbhook.watch_timers t set fired_at = $4 \
        where t.target operator(pg_catalog.=) $1 and t.row_key operator(pg_catalog.=) $2 \
          and t.event_type operator(pg_catalog.=) $3";
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let mut due = Vec::new();
    Spi::connect_mut(|client| -> Result<(), Fault> {
        for row in run(client, DUE, &[time(now), TIMERS_PER_LOOK.into()])? {
            if let (Some(target), Some(key), Some(event)) =
                (row.get::<pg_sys::Oid>(1)?, row.get::<String>(2)?, row.get::<String>(3)?)
            {
                due.push((target, key, event));
            }
        }
        Ok(())
    })?;
    let mut fired = 0;
    for (target, key, event) in due {
        pgrx::check_for_interrupts!();
        let Some(timer) = TIMERS.iter().find(|timer| timer.event == event) else { continue };
        // First, so that a row whose payload cannot be built does not come back for ever.
        Spi::connect_mut(|client| {
            run(client, FIRED, &[oid(target), key.as_str().into(), event.as_str().into(), time(now)])
                .map(|_| ())
        })?;
        if let Err(reason) = attempt(|| timer.fire(target, &key, now)) {
            loss::note(plan::extension_owner()?, target, 1, &reason)?;
        }
        fired += 1;
    }
    Ok(fired)
}

impl Timer {
    fn fire(&self, target: pg_sys::Oid, key: &str, now: pg_sys::TimestampTz) -> Result<(), Fault> {
        // SAFETY: NULL is returned when the relation is gone, and checked.
        let relation = unsafe {
            let relation = pg_sys::try_relation_open(target, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            if relation.is_null() {
                return Ok(());
            }
            relation
        };
        // SAFETY: the shape of the open relation.
        let watch = unsafe { plan::of(target, (*relation).rd_att) };
        let result = match watch {
            Ok(Some(watch)) => self.fire_row(&watch, key, now),
            Ok(None) => Ok(()),
            Err(fault) => Err(fault),
        };
        // SAFETY: opened above; the lock stays until the end of the transaction.
        unsafe { pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE) };
        result
    }

    fn fire_row(&self, watch: &Watch, key: &str, now: pg_sys::TimestampTz) -> Result<(), Fault> {
        let Some(row) = row_of(watch, key)? else { return Ok(()) };
        let change = Change { watch, old: None, new: Some(&row), now };
        if self.at(&change, &row)?.is_none_or(|at| at > now) {
            return Ok(());
        }
        let payload = {
            let _acting = Acting::as_table_owner(watch.owner);
            match watch.function {
                Some(function) => body::custom(watch, function, &row, self.event, &[])?,
                None => body::build(watch, &row, self.event, now, &[])?,
            }
        };
        let Some(payload) = payload else { return Ok(()) };
        let _acting = Acting::as_orbhook(watch.orbhook);
        emit::record_built(self.event, payload, now)
    }
}

/// The row of a key, read as the table's owner.
fn row_of(watch: &Watch, key: &str) -> Result<Option<Row>, Fault> {
    let parts: Vec<String> = serde_json::from_str(key).unwrap_or_default();
    if parts.len() != watch.key.len() || parts.is_empty() {
        return Ok(None);
    }
    let mut conditions = Vec::new();
    for (number, column) in watch.key.iter().enumerate() {
        let type_name = Spi::connect(|client| {
            client
                .select("select pg_catalog.format_type($1, -1)", Some(1), &[oid(column.type_oid)])?
                .first()
                .get_one::<String>()
        })?;
        let type_name = type_name.unwrap_or_default();
        conditions.push(format!("r.{} = ${}::{type_name}", quoted(&column.name), number + 1));
    }
    let statement =
        format!("select r from {} r where {}", qualified(watch.target)?, conditions.join(" and "));
    let arguments: Vec<DatumWithOid<'_>> = parts.iter().map(|part| part.as_str().into()).collect();
    // SAFETY: a global of the backend.
    let outside = unsafe { pg_sys::CurrentMemoryContext };
    let _acting = Acting::as_table_owner(watch.owner);
    Spi::connect(|client| {
        let found = client.select(statement.as_str(), Some(1), &arguments)?;
        if found.is_empty() {
            return Ok(None);
        }
        let Some(datum) = found.first().get_datum_by_ordinal(1)? else { return Ok(None) };
        // SAFETY: the context was current before the connection, whose own ends with it; the datum is a row.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(outside);
            let row = Row::of_composite(datum);
            pg_sys::MemoryContextSwitchTo(before);
            Ok(Some(row))
        }
    })
}

/// Timers for the rows that are there already, so that what ends after the watch began is said. What has ended is not.
pub(crate) fn backfill(
    target: pg_sys::Oid,
    source: &str,
    resolved: &crate::watch::resolve::Resolved,
    grace_seconds: u32,
) -> Result<(), Fault> {
    if source != "subscriptions" || resolved.key.is_empty() {
        return Ok(());
    }
    let key: Vec<String> =
        resolved.key.iter().map(|name| format!("(r.{})::pg_catalog.text", quoted(name))).collect();
    for timer in TIMERS {
        let Some(column) = resolved.signals.get(timer.signal) else { continue };
        let column = quoted(column);
        let sql = format!(
            "insert into orbhook.watch_timers (target, row_key, event_type, at) \
             select $1, pg_catalog.jsonb_build_array({})::pg_catalog.text, $2, \
                    r.{column}::pg_catalog.timestamptz + pg_catalog.make_interval(secs => $3) \
             from {} r \
             where pg_catalog.isfinite(r.{column}::pg_catalog.timestamptz) and r.{column} > pg_catalog.now() \
             on conflict do nothing",
            key.join(", "),
            qualified(target)?
        );
        crate::statement::once(&sql, &[oid(target), timer.event.into(), f64::from(grace_seconds).into()])?;
    }
    Ok(())
}
