//! Triggers on and off a table.

use pgrx::{Spi, pg_sys};

use crate::fault::Fault;
use crate::statement::{oid, once};
use crate::watch::join::{qualified, quoted};
use crate::watch::resolve::Resolved;
use crate::watch::source::Source;

/// Inserts of a plain table come as a whole statement; a partitioned table's row by row, because a statement trigger of
/// the root does not see what is written straight into a partition.
const INSERT: &str = "orbhook_insert";
const UPDATE: &str = "orbhook_update";
const DELETE: &str = "orbhook_delete";

/// Sets the triggers of a watched table. Runs as the extension's owner, under the pinned path.
pub(crate) fn attach(target: pg_sys::Oid, source: &Source, resolved: &Resolved) -> Result<(), Fault> {
    let partitioned = is_partitioned(target)?;
    detach(target)?;
    for table in family(target)? {
        let table = qualified(table)?;
        if partitioned {
            once(
                &format!(
                    "create trigger {INSERT} after insert on {table} for each row execute function orbhook._watch_changed()"
                ),
                &[],
            )?;
        } else {
            once(
                &format!(
                    "create trigger {INSERT} after insert on {table} referencing new table as orbhook_inserted \
                     for each statement execute function orbhook._watch_changed()"
                ),
                &[],
            )?;
        }
        if source.name != "payments" {
            once(
                &format!(
                    "create trigger {DELETE} after delete on {table} for each row execute function orbhook._watch_changed()"
                ),
                &[],
            )?;
        }
    }
    attach_update(target, source, resolved)
}

/// Sets the UPDATE trigger, or sets it anew without a moment in which there is none.
///
/// An UPDATE that names no column of interest does not even evaluate the WHEN clause, which PostgreSQL parses anew for
/// each statement. Where a BEFORE trigger may change columns that the UPDATE does not name, the clause alone decides.
pub(crate) fn attach_update(target: pg_sys::Oid, source: &Source, resolved: &Resolved) -> Result<(), Fault> {
    let decisive = decisive(target, source, resolved)?;
    if decisive.is_empty() {
        return Ok(());
    }
    let condition: Vec<&str> = decisive.iter().map(|(_, differs)| differs.as_str()).collect();
    let tables = family(target)?;
    let named = if tables.len() == 1 && !is_partitioned(target)? && !is_written_before(target)? {
        let columns: Vec<&str> = decisive.iter().map(|(column, _)| column.as_str()).collect();
        format!(" of {}", columns.join(", "))
    } else {
        String::new()
    };
    for table in tables {
        once(
            &format!(
                "create or replace trigger {UPDATE} after update{named} on {} for each row when ({}) \
                 execute function orbhook._watch_changed()",
                qualified(table)?,
                condition.join(" or ")
            ),
            &[],
        )?;
    }
    Ok(())
}

/// Takes them off.
pub(crate) fn detach(target: pg_sys::Oid) -> Result<(), Fault> {
    for table in family(target)? {
        let table = qualified(table)?;
        for trigger in [INSERT, UPDATE, DELETE] {
            if has(&table, trigger)? {
                once(&format!("drop trigger {trigger} on {table}"), &[])?;
            }
        }
    }
    Ok(())
}

/// The UPDATE trigger without the columns it names: they could not be dropped or change their type.
pub(crate) fn widen(target: pg_sys::Oid) -> Result<(), Fault> {
    for table in family(target)? {
        let table = qualified(table)?;
        if has(&table, UPDATE)? {
            once(&format!("drop trigger {UPDATE} on {table}"), &[])?;
            once(
                &format!(
                    "create trigger {UPDATE} after update on {table} for each row execute function orbhook._watch_changed()"
                ),
                &[],
            )?;
        }
    }
    Ok(())
}

/// The columns an UPDATE has to change, and how each is compared. Types whose equality is not pg_catalog's own (json, citext, arrays) are compared as
/// text, so that the clause means the same under every search path, a restore's included.
fn decisive(
    target: pg_sys::Oid,
    source: &Source,
    resolved: &Resolved,
) -> Result<Vec<(String, String)>, Fault> {
    const PLAIN: &str = "\
        with recursive base (number, name, type) as ( \
            select a.attnum, a.attname::text, a.atttypid from pg_attribute a \
            where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped \
            union all \
            select b.number, b.name, t.typbasetype from base b join pg_type t on t.oid = b.type where t.typtype = 'd') \
        select b.name, \
               t.typtype = 'e' or t.oid = 'varchar'::regtype \
               or exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod \
                          where o.opcintype = t.oid and o.opcdefault and m.amname = 'btree' \
                            and o.opcnamespace = 'pg_catalog'::regnamespace) \
        from base b join pg_type t on t.oid = b.type where t.typtype <> 'd' order by b.number";
    let decisive = resolved.decisive(source);
    let mut parts = Vec::new();
    Spi::connect(|client| -> Result<(), Fault> {
        for row in client.select(PLAIN, None, &[oid(target)])? {
            let (Some(name), Some(plain)) = (row.get::<String>(1)?, row.get::<bool>(2)?) else { continue };
            if decisive.contains(name.as_str()) {
                let (name, cast) = (quoted(&name), if plain { "" } else { "::pg_catalog.text" });
                let differs = format!("old.{name}{cast} is distinct from new.{name}{cast}");
                parts.push((name, differs));
            }
        }
        Ok(())
    })?;
    Ok(parts)
}

/// Whether a trigger may change other columns of a row than the UPDATE names.
pub(crate) fn is_written_before(target: pg_sys::Oid) -> Result<bool, Fault> {
    // src/include/catalog/pg_trigger.h: TRIGGER_TYPE_ROW 1, TRIGGER_TYPE_BEFORE 2, TRIGGER_TYPE_UPDATE 16.
    const BEFORE: &str = "\
        select exists (select from pg_catalog.pg_trigger t \
                       where t.tgrelid operator(pg_catalog.=) $1 and t.tgtype operator(pg_catalog.&) 19::int2 operator(pg_catalog.=) 19)";
    let written =
        Spi::connect(|client| client.select(BEFORE, Some(1), &[oid(target)])?.first().get_one::<bool>())?;
    Ok(written == Some(true))
}

/// The table itself and the tables that inherit from it. Triggers of a partitioned table reach its partitions by
/// themselves.
pub(crate) fn family(target: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>, Fault> {
    const FAMILY: &str = "\
        with recursive family (relid) as ( \
            select $1 \
            union \
            select i.inhrelid from pg_catalog.pg_inherits i \
            join family f on i.inhparent operator(pg_catalog.=) f.relid \
            join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) i.inhrelid \
            where not c.relispartition and c.relkind operator(pg_catalog.=) 'r') \
        select f.relid from family f";
    Spi::connect(|client| {
        let mut tables = Vec::new();
        for row in client.select(FAMILY, None, &[oid(target)])? {
            tables.extend(row.get::<pg_sys::Oid>(1)?);
        }
        Ok(tables)
    })
}

fn is_partitioned(target: pg_sys::Oid) -> Result<bool, Fault> {
    const KIND: &str = "select c.relkind operator(pg_catalog.=) 'p' from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) $1";
    let partitioned =
        Spi::connect(|client| client.select(KIND, Some(1), &[oid(target)])?.first().get_one::<bool>())?;
    Ok(partitioned == Some(true))
}

fn has(table: &str, trigger: &str) -> Result<bool, Fault> {
    const HAS: &str = "\
        select exists (select from pg_catalog.pg_trigger t \
                       where t.tgrelid operator(pg_catalog.=) $1::pg_catalog.regclass and t.tgname operator(pg_catalog.=) $2::pg_catalog.name)";
    let has = Spi::connect(|client| {
        client.select(HAS, Some(1), &[table.into(), trigger.into()])?.first().get_one::<bool>()
    })?;
    Ok(has == Some(true))
}
