//! The rows an event takes along: a subscription's user, a user's subscription and reseller.
//!
//! One indexed look-up for each, as the owner of the table read. A table is only joined when the watch's owner may
//! read the columns that would be sent.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::spi::OwnedPreparedStatement;
use pgrx::{PgOid, Spi, pg_sys};

use crate::fault::Fault;
use crate::statement::oid;
use crate::watch::column::Column;
use crate::watch::mapping::{Mapping, User};
use crate::watch::plan::{self, Facts, Watch};
use crate::watch::resolve::{Known, resolve};
use crate::watch::rights::Acting;
use crate::watch::row::Row;
use crate::watch::source;

pub(crate) struct Join {
    pub(crate) relation: pg_sys::Oid,
    /// How the other table's row is described.
    pub(crate) watch: Watch,
    /// The keys it adds to the payload; `None`: all of them.
    pub(crate) carries: Option<&'static [&'static str]>,
    /// The column of this table that finds the other's row.
    by: Column,
    statement: String,
    prepared: RefCell<Option<OwnedPreparedStatement>>,
}

impl Join {
    /// Runs as the extension's owner, under the pinned path.
    pub(crate) fn all(
        facts: &Facts,
        columns: &HashMap<String, Column>,
        orbhook: pg_sys::Oid,
    ) -> Result<Vec<Join>, Fault> {
        let by = |name: Option<&String>| name.and_then(|name| columns.get(name));
        let mut joins = Vec::new();
        match facts.source.name {
            "users" => {
                let id = match facts.resolved.paths.get("userId").map(Vec::as_slice) {
                    Some([id]) => columns.get(id),
                    _ => None,
                };
                if let Some(id) = id
                    && let Some((other, key)) = watched(facts, "subscriptions", "user")?
                {
                    joins.extend(Join::new(
                        facts,
                        id,
                        other,
                        &key,
                        Some(&["subscription", "autoRenew"]),
                        orbhook,
                    )?);
                }
                if let Some(reseller) = by(facts.resolved.signals.get("reseller"))
                    && let Some((other, key)) = watched(facts, "resellers", "id")?
                {
                    joins.extend(Join::new(facts, reseller, other, &key, Some(&["reseller"]), orbhook)?);
                }
            }
            _ => {
                if let Some(user) = by(facts.resolved.signals.get("user"))
                    && let Some((other, key)) = user_table(facts, user)?
                {
                    joins.extend(Join::new(facts, user, other, &key, None, orbhook)?);
                }
            }
        }
        Ok(joins)
    }

    fn new(
        facts: &Facts,
        by: &Column,
        relation: pg_sys::Oid,
        key: &str,
        carries: Option<&'static [&'static str]>,
        orbhook: pg_sys::Oid,
    ) -> Result<Option<Join>, Fault> {
        let source = match carries {
            None => "users",
            Some(["reseller"]) => "resellers",
            Some(_) => "subscriptions",
        };
        let Some(other) = other(relation, source, facts.owner, key)? else { return Ok(None) };
        let shape = Shape::of(relation);
        let columns = shape.columns();
        let Some(key_column) = columns.get(key) else { return Ok(None) };
        if !comparable(by.type_oid, key_column.type_oid) {
            return Ok(None);
        }
        let watch = Watch::new(&other, &columns, orbhook)?;
        // The current subscription: the one that ends last, and of those the newest.
        let order = if source == "subscriptions" {
            let newest = watch.signal("expires").into_iter().chain(watch.signal("id"));
            let by: Vec<String> =
                newest.map(|column| format!("r.{} desc nulls first", quoted(&column.name))).collect();
            if by.is_empty() { String::new() } else { format!("order by {}", by.join(", ")) }
        } else {
            String::new()
        };
        let statement = format!(
            "select r from {} r where r.{} operator(pg_catalog.=) $1 {order} limit 1",
            qualified(relation)?,
            quoted(key)
        );
        Ok(Some(Join { relation, watch, carries, by: by.clone(), statement, prepared: RefCell::new(None) }))
    }

    /// The other table's row; `None` if there is none.
    pub(crate) fn find(&self, row: &Row) -> Result<Option<Row>, Fault> {
        let Some(value) = row.get(&self.by) else { return Ok(None) };
        let _acting = Acting::as_table_owner(self.watch.owner);
        // SAFETY: a global of the backend.
        let outside = unsafe { pg_sys::CurrentMemoryContext };
        Spi::connect(|client| {
            let mut prepared = self.prepared.borrow_mut();
            let statement = match &mut *prepared {
                Some(kept) => kept,
                None => prepared.insert(
                    client.prepare(self.statement.as_str(), &[PgOid::from(self.by.type_oid)])?.keep(),
                ),
            };
            // SAFETY: the datum is a value of the column's type.
            let argument = unsafe { DatumWithOid::new(value, self.by.type_oid) };
            let found = client.select(&*statement, Some(1), &[argument])?;
            if found.is_empty() {
                return Ok(None);
            }
            let Some(datum) = found.first().get_datum_by_ordinal(1)? else { return Ok(None) };
            // Copied out, because what SPI returned ends with the connection.
            // SAFETY: the context was current before the connection; the datum is a row of the table.
            let row = unsafe {
                let before = pg_sys::MemoryContextSwitchTo(outside);
                let row = Row::of_composite(datum);
                pg_sys::MemoryContextSwitchTo(before);
                row
            };
            Ok(Some(row))
        })
    }
}

/// The only watched table of a source, and its column for the signal, if an index leads with that column.
fn watched(facts: &Facts, source: &str, signal: &str) -> Result<Option<(pg_sys::Oid, String)>, Fault> {
    const ONLY: &str = "\
        select min(w.target::oid), min(w.resolved -> 'signals' ->> $2) \
        from orbhook.watches w join pg_class c on c.oid = w.target \
        where w.source = $1 and w.target <> $3 having count(*) = 1";
    let found = Spi::connect(|client| {
        let rows = client.select(ONLY, Some(1), &[source.into(), signal.into(), oid(facts.target)])?;
        match rows.into_iter().next() {
            Some(row) => Ok::<_, Fault>(row.get::<pg_sys::Oid>(1)?.zip(row.get::<String>(2)?)),
            None => Ok(None),
        }
    })?;
    match found {
        Some((relation, key)) if leads_an_index(relation, &key)? => Ok(Some((relation, key))),
        _ => Ok(None),
    }
}

/// The table a row's user is in, and its key: what the mapping says, the foreign key, or the watched users.
fn user_table(facts: &Facts, user: &Column) -> Result<Option<(pg_sys::Oid, String)>, Fault> {
    const SAID: &str = "\
        select c.oid, coalesce($2, (select a.attname from pg_index i \
                                    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] \
                                    where i.indrelid = c.oid and i.indisprimary))::text \
        from pg_class c where c.oid = to_regclass($1)";
    const FOREIGN_KEY: &str = "\
        select con.confrelid, a.attname::text \
        from pg_constraint con \
        join pg_attribute own on own.attrelid = con.conrelid and own.attname = $2 \
        join pg_attribute a on a.attrelid = con.confrelid and a.attnum = con.confkey[1] \
        where con.conrelid = $1 and con.contype = 'f' and con.conkey = array[own.attnum] \
        order by con.confrelid limit 1";
    let one = |sql: &str, arguments: &[DatumWithOid<'_>]| {
        Spi::connect(|client| {
            let rows = client.select(sql, Some(1), arguments)?;
            match rows.into_iter().next() {
                Some(row) => Ok::<_, Fault>(row.get::<pg_sys::Oid>(1)?.zip(row.get::<String>(2)?)),
                None => Ok(None),
            }
        })
    };
    let said = match &facts.mapping.user {
        Some(User::Reference { table: Some(table), key, .. }) => {
            one(SAID, &[table.as_str().into(), key.as_deref().into()])?
        }
        _ => None,
    };
    let found = match said {
        Some(said) => Some(said),
        None => one(FOREIGN_KEY, &[oid(facts.target), user.name.as_str().into()])?,
    };
    match found {
        Some((relation, key)) if leads_an_index(relation, &key)? => Ok(Some((relation, key))),
        Some(_) => Ok(None),
        None => watched(facts, "users", "id"),
    }
}

/// A look-up without an index would read the whole table for each row that is written.
pub(crate) fn leads_an_index(relation: pg_sys::Oid, column: &str) -> Result<bool, Fault> {
    const LEADS: &str = "\
        select exists (select from pg_index i \
                       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] \
                       where i.indrelid = $1 and a.attname = $2 and i.indisvalid and i.indpred is null)";
    let leads = Spi::connect(|client| {
        client.select(LEADS, Some(1), &[oid(relation), column.into()])?.first().get_one::<bool>()
    })?;
    Ok(leads == Some(true))
}

/// How the other table is described: by its own watch, or else by its usual names. Only columns that both its owner
/// and `reader`, the owner of the watch, may read; `None` if that leaves out the key.
fn other(
    relation: pg_sys::Oid,
    source: &str,
    reader: pg_sys::Oid,
    key: &str,
) -> Result<Option<Facts>, Fault> {
    const DESCRIBED: &str = "\
        select c.relowner, w.source, w.mapping::text, w.resolved::text \
        from pg_class c left join orbhook.watches w on w.target = c.oid \
        where c.oid = $1 and c.relkind in ('r', 'p')";
    const COLUMNS: &str = "\
        select a.attname::text, has_column_privilege($2, a.attrelid, a.attnum, 'select') \
        from pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'";
    let Some(source) = source::find(source) else { return Ok(None) };
    Spi::connect(|client| {
        let rows = client.select(DESCRIBED, Some(1), &[oid(relation)])?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let Some(owner) = row.get::<pg_sys::Oid>(1)? else { return Ok(None) };
        let mut known = Vec::new();
        for row in client.select(COLUMNS, None, &[oid(relation), oid(reader)])? {
            if let (Some(name), Some(readable)) = (row.get::<String>(1)?, row.get::<bool>(2)?) {
                known.push(Known { name, readable });
            }
        }
        let readable = |name: &String| known.iter().any(|column| column.name == *name && column.readable);
        if !readable(&key.to_owned()) {
            return Ok(None);
        }
        let watched = row.get::<String>(2)?.is_some_and(|watched| watched == source.name);
        let (mapping, mut resolved) = match (row.get::<String>(3)?, row.get::<String>(4)?) {
            (Some(mapping), Some(resolved)) if watched => {
                (Mapping::stored(&mapping), serde_json::from_str(&resolved).unwrap_or_default())
            }
            _ => (Mapping::default(), resolve(source, &Mapping::default(), &known, &[key.to_owned()])?),
        };
        resolved.paths.retain(|_, columns| columns.iter().all(readable));
        let mapping = Mapping { payload_function: None, ..mapping };
        Ok(Some(Facts { target: relation, owner, source, mapping, resolved }))
    })
}

/// Types whose values `=` of pg_catalog compares, with an index.
fn comparable(one: pg_sys::Oid, other: pg_sys::Oid) -> bool {
    const INTEGERS: &[pg_sys::Oid] = &[pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID];
    const TEXTS: &[pg_sys::Oid] = &[pg_sys::TEXTOID, pg_sys::VARCHAROID];
    // SAFETY: look-ups in the type cache.
    let (one, other) = unsafe { (pg_sys::getBaseType(one), pg_sys::getBaseType(other)) };
    let both = |family: &[pg_sys::Oid]| family.contains(&one) && family.contains(&other);
    (one == other && one.to_u32() < pg_sys::FirstNormalObjectId) || both(INTEGERS) || both(TEXTS)
}

/// An open relation's row shape.
struct Shape(pg_sys::Relation);

impl Shape {
    fn of(relation: pg_sys::Oid) -> Shape {
        // SAFETY: the relation exists, by the catalogue; the lock keeps it so until the end of the transaction.
        Shape(unsafe { pg_sys::relation_open(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE) })
    }

    fn columns(&self) -> HashMap<String, Column> {
        // SAFETY: the relation is open.
        unsafe { plan::columns((*self.0).rd_att) }
    }
}

impl Drop for Shape {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `of`; the lock stays until the end of the transaction.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Schema and name, quoted.
pub(crate) fn qualified(relation: pg_sys::Oid) -> Result<String, Fault> {
    const NAME: &str = "\
        select pg_catalog.format('%I.%I', n.nspname, c.relname) \
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace \
        where c.oid operator(pg_catalog.=) $1";
    let name =
        Spi::connect(|client| client.select(NAME, Some(1), &[oid(relation)])?.first().get_one::<String>())?;
    name.ok_or_else(|| Fault::Internal("a relation has no name".to_owned()))
}
