//! `orbhook_watch`: an application's table speaks for itself.
//!
//! * `source`: what is known of users, subscriptions, payments, devices, resellers; `mapping`, `resolve`: which column is what;
//! * `attach`: the triggers; `refit`: what happens when the table's columns change;
//! * `trigger`: what they run; `plan`: a watch as they use it; `detect`: which events a change is; `timer`: what the clock says;
//! * `row`, `column`, `body`, `join`: from a row to a payload;
//! * `batch`: recording many at once; `rights`: whose rights a step has; `savepoint`, `loss`: failing without failing the statement.

mod attach;
mod batch;
mod body;
mod column;
mod detect;
mod join;
mod loss;
mod mapping;
mod plan;
mod refit;
mod resolve;
mod rights;
mod row;
mod savepoint;
mod source;
mod timer;
mod trigger;

use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{AnyElement, direct_function_call_as_datum, pg_sys};

use crate::fault::{Fault, or_raise};
use crate::statement::{oid, once};
use crate::watch::mapping::Mapping;
use crate::watch::resolve::{Known, Resolved};
use crate::watch::rights::{Acting, PinnedPath};
use crate::watch::source::Source;

pub(crate) use plan::install;

/// What is returned for an event: its type, when it fires, the columns it uses. Without a type: what was not found.
type Line = (Option<String>, String, Vec<String>);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity, reason = "pgrx reads the columns of the result from this type")]
fn watch(
    source: Option<&str>,
    target: Option<pg_sys::Oid>,
    mapping: Option<AnyElement>,
) -> TableIterator<
    'static,
    (name!(event_type, Option<String>), name!(fires_when, String), name!(columns, Vec<String>)),
> {
    TableIterator::new(or_raise(attach_watch(source, target, mapping)))
}

#[pg_extern(sql = false)]
fn unwatch(target: Option<pg_sys::Oid>) {
    or_raise(detach_watch(target));
}

fn attach_watch(
    source: Option<&str>,
    target: Option<pg_sys::Oid>,
    mapping: Option<AnyElement>,
) -> Result<Vec<Line>, Fault> {
    let source = source.and_then(source::find).ok_or_else(|| {
        let known: Vec<&str> = source::SOURCES.iter().map(|source| source.name).collect();
        Fault::argument(format!("source must be one of {}", known.join(", ")))
    })?;
    let target = target.ok_or_else(|| Fault::argument("target must not be null"))?;
    let text = mapping.map_or_else(|| "{}".to_owned(), |mapping| jsonb_text(&mapping));
    let mapping = Mapping::read(&text, source)?;
    // Asked as the caller; everything after it is orbhook's own.
    refuse_foreign(target)?;
    let orbhook = plan::extension_owner()?;
    let table = {
        let _path = PinnedPath::new();
        Table::look(target)?
    };
    table.refuse_unfit()?;
    let resolved = {
        let _path = PinnedPath::new();
        if let Some(name) = &mapping.payload_function {
            check_function(name, target)?;
        }
        resolve::resolve(source, &mapping, &table.columns, &table.key)?
    };
    let _acting = Acting::as_orbhook(orbhook);
    let _path = PinnedPath::new();
    attach::attach(target, source, &resolved)?;
    refit::store(target, source, &text, &resolved)?;
    timer::backfill(target, source.name, &resolved, mapping.grace_seconds)?;
    forget_all()?;
    lines(target, source, &mapping, &resolved)
}

fn detach_watch(target: Option<pg_sys::Oid>) -> Result<(), Fault> {
    let target = target.ok_or_else(|| Fault::argument("target must not be null"))?;
    refuse_foreign(target)?;
    let _acting = Acting::as_orbhook(plan::extension_owner()?);
    let _path = PinnedPath::new();
    attach::detach(target)?;
    forget_all()?;
    plan::forget_everywhere(&[target]);
    once("delete from orbhook.watch_timers t where t.target = $1", &[oid(target)])?;
    once("delete from orbhook.watches w where w.target = $1", &[oid(target)])
}

fn lines(
    target: pg_sys::Oid,
    source: &Source,
    mapping: &Mapping,
    resolved: &Resolved,
) -> Result<Vec<Line>, Fault> {
    let (mut emitted, mut missing) = (Vec::new(), Vec::new());
    for event in source.events {
        match resolved.columns_for(event, source, mapping) {
            Some(columns) => {
                let mut when = event.fires_when.to_owned();
                let timed = matches!(event.name, "SUBSCRIPTION_EXPIRED" | "SUBSCRIPTION_TRIAL_ENDED");
                if timed && resolved.key.is_empty() {
                    when.push_str("; without a primary key not by the clock");
                }
                emitted.push((Some(event.name.to_owned()), when, columns));
            }
            None => missing.push((None, resolve::missing(event, source, resolved), Vec::new())),
        }
    }
    for field in source.fields {
        if let Some(path) = field.path
            && !resolved.paths.contains_key(path)
            && !mapping.payload.contains_key(path)
            && matches!(path, "email" | "userId" | "username" | "payment.amount" | "subscription.groupName")
        {
            missing.push((
                None,
                format!(
                    "{path} is not sent: found no column (looked for {}); name one with {{\"payload\": {{\"{path}\": \"column\"}}}}",
                    field.names.join(", ")
                ),
                Vec::new(),
            ));
        }
    }
    if source.name == "subscriptions"
        && let Some(user) = resolved.signals.get("user")
        && !join::leads_an_index(target, user)?
    {
        missing.push((
            None,
            format!("events of users do not carry this subscription: no index begins with {user}; create one and watch again"),
            vec![user.clone()],
        ));
    }
    emitted.extend(missing);
    Ok(emitted)
}

/// What the catalogue says of the table.
struct Table {
    kind: u8,
    persistence: u8,
    is_partition: bool,
    schema: String,
    columns: Vec<Known>,
    key: Vec<String>,
}

impl Table {
    fn look(target: pg_sys::Oid) -> Result<Table, Fault> {
        const TABLE: &str = "\
            select c.relkind::text, c.relpersistence::text, c.relispartition, n.nspname::text \
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1";
        // A virtual generated column (PostgreSQL 18) is computed when it is read: a changed row does not hold it.
        const COLUMNS: &str = "\
            select a.attname::text, has_column_privilege(c.relowner, a.attrelid, a.attnum, 'select') \
            from pg_attribute a join pg_class c on c.oid = a.attrelid \
            where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v' \
            order by a.attnum";
        const KEY: &str = "\
            select a.attname::text from pg_index i \
            cross join lateral unnest(i.indkey) with ordinality as k (attnum, place) \
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum \
            where i.indrelid = $1 and i.indisprimary order by k.place";
        Spi::connect(|client| {
            let rows = client.select(TABLE, Some(1), &[oid(target)])?;
            let Some(row) = rows.into_iter().next() else {
                return Err(Fault::argument("target is no relation of this database"));
            };
            let letter = |text: Option<String>| text.and_then(|text| text.bytes().next()).unwrap_or_default();
            let mut table = Table {
                kind: letter(row.get(1)?),
                persistence: letter(row.get(2)?),
                is_partition: row.get(3)?.unwrap_or_default(),
                schema: row.get(4)?.unwrap_or_default(),
                columns: Vec::new(),
                key: Vec::new(),
            };
            for row in client.select(COLUMNS, None, &[oid(target)])? {
                if let (Some(name), Some(readable)) = (row.get(1)?, row.get(2)?) {
                    table.columns.push(Known { name, readable });
                }
            }
            for row in client.select(KEY, None, &[oid(target)])? {
                table.key.extend(row.get::<String>(1)?);
            }
            Ok(table)
        })
    }

    fn refuse_unfit(&self) -> Result<(), Fault> {
        let refuse = |what: &str, hint: &str| {
            Err(Fault::WrongKind { message: format!("{what} cannot be watched"), hint: hint.to_owned() })
        };
        match self.kind {
            b'r' | b'p' => {}
            b'v' => {
                return refuse(
                    "a view (it stores no rows: a row trigger of it fires before anything is written, if it is)",
                    "watch the table the view writes to",
                );
            }
            b'm' => return refuse("a materialized view", "watch the tables it is made of"),
            b'f' => return refuse("a foreign table", "watch the table where it lives, with orbhook there"),
            _ => return refuse("this relation", "name a table"),
        }
        if self.is_partition {
            return refuse(
                "a partition by itself",
                "watch the partitioned table: its partitions are seen with it",
            );
        }
        if self.persistence == b't' {
            return refuse("a temporary table", "call orbhook_emit where its rows are written");
        }
        if matches!(self.schema.as_str(), "pg_catalog" | "information_schema" | "orbhook") {
            return refuse("a table of the system or of orbhook", "name a table of the application");
        }
        Ok(())
    }
}

/// Only the owner, or a member of the owning role. Asked as the caller: inside SECURITY DEFINER it would be lost.
fn refuse_foreign(target: pg_sys::Oid) -> Result<(), Fault> {
    const OWNED: &str = "\
        select pg_catalog.pg_has_role(c.relowner, 'usage') \
        from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) $1";
    let owned = Spi::connect(|client| {
        let rows = client.select(OWNED, Some(1), &[oid(target)])?;
        match rows.into_iter().next() {
            Some(row) => Ok::<_, Fault>(row.get::<bool>(1)?),
            None => Err(Fault::argument("target is no relation of this database")),
        }
    })?;
    if owned == Some(true) {
        return Ok(());
    }
    Err(Fault::Forbidden("only the table's owner can have it watched, or stop that".to_owned()))
}

fn check_function(name: &str, target: pg_sys::Oid) -> Result<(), Fault> {
    const MAY: &str = "select pg_catalog.has_function_privilege(c.relowner, $2, 'execute') from pg_class c where c.oid = $1";
    let Some(function) = plan::function(name, target)? else {
        return Err(Fault::Argument {
            message: format!(
                "mapping: there is no function {name:?} that takes the table's row type and returns jsonb"
            ),
            hint: Some(
                "write its schema, quoted as in SQL where needed, and no arguments: \"app.user_payload\""
                    .to_owned(),
            ),
        });
    };
    let may = Spi::connect(|client| {
        client.select(MAY, Some(1), &[oid(target), oid(function)])?.first().get_one::<bool>()
    })?;
    if may == Some(true) {
        return Ok(());
    }
    Err(Fault::Forbidden(format!("the table's owner may not execute the payload function {name}")))
}

/// Every watch may lead to another table's rows, so a change of one concerns all.
fn forget_all() -> Result<(), Fault> {
    let mut targets = Vec::new();
    Spi::connect(|client| -> Result<(), Fault> {
        let existing = "select c.oid from orbhook.watches w join pg_class c on c.oid = w.target";
        for row in client.select(existing, None, &[])? {
            targets.extend(row.get::<pg_sys::Oid>(1)?);
        }
        Ok(())
    })?;
    plan::forget_everywhere(&targets);
    Ok(())
}

fn jsonb_text(value: &AnyElement) -> String {
    // SAFETY: the function's SQL declaration says jsonb; jsonb_out returns a NUL-terminated string.
    unsafe {
        direct_function_call_as_datum(pg_sys::jsonb_out, &[Some(value.datum())])
            .map(|text| CStr::from_ptr(text.cast_mut_ptr()).to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}
