//! Keeping a watch right when the table's columns change.
//!
//! Called by event triggers (sql/47_watch_schema.sql). A renamed column is followed; a dropped one is left out, and the
//! watch says so; a column whose type is to change is let go of before and taken up again after.

use std::collections::BTreeMap;

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

use crate::fault::{Fault, or_raise};
use crate::statement::{oid, once};
use crate::watch::resolve::Resolved;
use crate::watch::source::{self, Source};
use crate::watch::{attach, plan};

/// Writes a watch down, with the number of each column, by which a rename is recognised.
pub(crate) fn store(
    target: pg_sys::Oid,
    source: &Source,
    mapping: &str,
    resolved: &Resolved,
) -> Result<(), Fault> {
    const STORE: &str = "\
        insert into orbhook.watches (target, source, mapping, resolved, numbers) values ($1, $2, $3::jsonb, $4::jsonb, $5::jsonb) \
        on conflict (target) do update \
        set source = excluded.source, mapping = excluded.mapping, resolved = excluded.resolved, numbers = excluded.numbers, \
            broken = null";
    let numbers = numbers(target)?;
    once(
        STORE,
        &[
            oid(target),
            source.name.into(),
            mapping.into(),
            serde_json::to_string(resolved).unwrap_or_default().into(),
            json!({ "table": target.to_u32(), "columns": numbers }).to_string().into(),
        ],
    )
}

/// Before an ALTER TABLE that may drop a column or change its type.
#[pg_extern(sql = false)]
fn watch_widen(target: pg_sys::Oid) {
    or_raise(attach::widen(target));
}

/// After an ALTER TABLE, and after a BEFORE trigger was made.
#[pg_extern(sql = false)]
fn watch_refit(target: pg_sys::Oid) {
    or_raise(refit(target));
}

fn refit(target: pg_sys::Oid) -> Result<(), Fault> {
    const WATCH: &str = "\
        select w.source, w.resolved::text, w.numbers::text, w.broken, \
               exists (select from pg_trigger t where t.tgrelid = w.target and t.tgname = 'orbhook_insert'), \
               exists (select from pg_trigger t \
                       where t.tgrelid = w.target and t.tgname = 'orbhook_update' and t.tgqual is null), \
               exists (select from pg_trigger t \
                       where t.tgrelid = w.target and t.tgname = 'orbhook_update' and cardinality(t.tgattr::int2[]) > 0) \
        from orbhook.watches w where w.target = $1";
    const CHANGED: &str = "update orbhook.watches w set resolved = $2::jsonb, numbers = $3::jsonb, broken = $4 where w.target = $1";
    let found = Spi::connect(|client| -> Result<_, Fault> {
        let rows = client.select(WATCH, Some(1), &[oid(target)])?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        Ok(Some((
            row.get::<String>(1)?.unwrap_or_default(),
            row.get::<String>(2)?.unwrap_or_default(),
            row.get::<String>(3)?.unwrap_or_default(),
            row.get::<Vec<String>>(4)?.unwrap_or_default(),
            row.get::<bool>(5)? == Some(true),
            row.get::<bool>(6)? == Some(true),
            row.get::<bool>(7)? == Some(true),
        )))
    })?;
    let Some((name, resolved, stored, mut broken, attached, widened, narrowed)) = found else {
        return Ok(());
    };
    let Some(source) = source::find(&name) else { return Ok(()) };
    let resolved: Resolved = serde_json::from_str(&resolved).unwrap_or_default();
    let now = numbers(target)?;
    let before = Numbers::read(&stored, target);
    let gone: Vec<String> = resolved
        .columns()
        .into_iter()
        .filter(|column| !now.contains_key(*column))
        .map(str::to_owned)
        .collect();
    let renamed = |column: &str| {
        let number = before.0.get(column)?;
        now.iter().find(|(_, other)| *other == number).map(|(name, _)| name.clone())
    };
    let follow = |column: &String| {
        if now.contains_key(column) { Some(column.clone()) } else { renamed(column) }
    };
    let fitted = Resolved {
        paths: resolved
            .paths
            .iter()
            .map(|(path, columns)| (path.clone(), columns.iter().filter_map(follow).collect::<Vec<_>>()))
            .filter(|(_, columns)| !columns.is_empty())
            .collect(),
        signals: resolved
            .signals
            .iter()
            .filter_map(|(signal, column)| Some((signal.clone(), follow(column)?)))
            .collect(),
        key: resolved.key.iter().filter_map(follow).collect(),
    };
    for column in gone.iter().filter(|column| renamed(column).is_none()) {
        if !broken.contains(column) {
            broken.push(column.clone());
        }
    }
    if !gone.is_empty() || before.0 != now {
        once(
            CHANGED,
            &[
                oid(target),
                serde_json::to_string(&fitted).unwrap_or_default().into(),
                json!({ "table": target.to_u32(), "columns": now }).to_string().into(),
                (!broken.is_empty()).then_some(broken).into(),
            ],
        )?;
    }
    // While a dump is restored the watch is there before its triggers, or before some of them: the dump brings those itself.
    if attached && (widened || gone.iter().any(|column| renamed(column).is_none())) {
        attach::attach(target, source, &fitted)?;
    } else if narrowed && attach::is_written_before(target)? {
        attach::attach_update(target, source, &fitted)?;
    }
    plan::forget_everywhere(&[target]);
    Ok(())
}

/// Column names and numbers as they were stored; empty if they were stored for another table (a restored dump).
struct Numbers(BTreeMap<String, i64>);

impl Numbers {
    fn read(text: &str, target: pg_sys::Oid) -> Numbers {
        let stored: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        if stored["table"].as_u64() != Some(u64::from(target.to_u32())) {
            return Numbers(BTreeMap::new());
        }
        Numbers(serde_json::from_value(stored["columns"].clone()).unwrap_or_default())
    }
}

fn numbers(target: pg_sys::Oid) -> Result<BTreeMap<String, i64>, Fault> {
    const NUMBERS: &str = "\
        select a.attname::text, a.attnum::int8 from pg_attribute a \
        where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped";
    Spi::connect(|client| {
        let mut numbers = BTreeMap::new();
        for row in client.select(NUMBERS, None, &[oid(target)])? {
            if let (Some(name), Some(number)) = (row.get::<String>(1)?, row.get::<i64>(2)?) {
                numbers.insert(name, number);
            }
        }
        Ok(numbers)
    })
}
