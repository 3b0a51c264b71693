//! A watch as a trigger uses it, worked out once in a session and forgotten when the table or any watch changes.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::{AnyNumeric, Spi, pg_guard, pg_sys};

use crate::fault::Fault;
use crate::majors;
use crate::statement::{oid, run};
use crate::watch::body::{self, Member};
use crate::watch::column::Column;
use crate::watch::join::Join;
use crate::watch::mapping::Mapping;
use crate::watch::resolve::Resolved;
use crate::watch::rights::{Acting, PinnedPath};
use crate::watch::row::Row;
use crate::watch::source::{self, Source};

pub(crate) struct Watch {
    /// The table that was named to `orbhook_watch`: the root of a partition.
    pub(crate) target: pg_sys::Oid,
    pub(crate) owner: pg_sys::Oid,
    /// The extension's owner.
    pub(crate) orbhook: pg_sys::Oid,
    pub(crate) source: &'static Source,
    pub(crate) sent: Vec<Sent>,
    pub(crate) body: Vec<Member>,
    pub(crate) key: Vec<Column>,
    pub(crate) joins: Vec<Join>,
    pub(crate) function: Option<pg_sys::Oid>,
    pub(crate) grace_micros: i64,
    signals: Vec<(&'static str, Column)>,
    words: HashMap<String, Option<String>>,
    rank: HashMap<String, AnyNumeric>,
}

/// A path of the payload.
pub(crate) struct Sent {
    /// What a change of it is called: the last key of the path.
    pub(crate) label: String,
    /// Several: a composite key.
    pub(crate) columns: Vec<Column>,
    pub(crate) described: bool,
}

/// The row of `orbhook.watches`, or what stands for one.
pub(crate) struct Facts {
    pub(crate) target: pg_sys::Oid,
    pub(crate) owner: pg_sys::Oid,
    pub(crate) source: &'static Source,
    pub(crate) mapping: Mapping,
    pub(crate) resolved: Resolved,
}

thread_local! {
    static PLANS: RefCell<HashMap<pg_sys::Oid, Option<Rc<Watch>>>> = RefCell::new(HashMap::new());
    /// Relations whose change makes every plan stale.
    static RELATIONS: RefCell<HashSet<pg_sys::Oid>> = RefCell::new(HashSet::new());
    static STALE: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn install() {
    // SAFETY: called once per backend; the callback is a function of this library, which stays loaded.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0_usize)) }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let concerns = RELATIONS
        .with(|relations| relations.try_borrow().map_or(true, |relations| relations.contains(&relation)));
    if relation == pg_sys::InvalidOid || concerns {
        STALE.set(true);
    }
}

/// The watch of a table or of one of its partitions; `None` if there is none.
///
/// # Safety
/// `shape` must be the row shape of that relation.
pub(crate) unsafe fn of(relation: pg_sys::Oid, shape: pg_sys::TupleDesc) -> Result<Option<Rc<Watch>>, Fault> {
    if STALE.replace(false) {
        PLANS.with_borrow_mut(HashMap::clear);
        RELATIONS.with_borrow_mut(HashSet::clear);
    }
    if let Some(known) = PLANS.with_borrow(|plans| plans.get(&relation).cloned()) {
        return Ok(known);
    }
    RELATIONS.with_borrow_mut(|relations| relations.insert(relation));
    let orbhook = extension_owner()?;
    // SAFETY: by this function's contract.
    let columns = unsafe { columns(shape) };
    let watch = {
        let _acting = Acting::as_orbhook(orbhook);
        let _path = PinnedPath::new();
        match facts(relation)? {
            None => None,
            Some(facts) => {
                let mut watch = Watch::new(&facts, &columns, orbhook)?;
                watch.joins = Join::all(&facts, &columns, orbhook)?;
                RELATIONS.with_borrow_mut(|relations| {
                    relations.insert(facts.target);
                    relations.extend(watch.joins.iter().map(|join| join.relation));
                });
                Some(Rc::new(watch))
            }
        }
    };
    PLANS.with_borrow_mut(|plans| plans.insert(relation, watch.clone()));
    Ok(watch)
}

/// Every session works its plans out anew: called when a watch comes, goes or changes.
pub(crate) fn forget_everywhere(targets: &[pg_sys::Oid]) {
    STALE.set(true);
    for target in targets {
        // SAFETY: queues an invalidation; the relation exists, as its watch does.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(*target) }
    }
}

pub(crate) fn extension_owner() -> Result<pg_sys::Oid, Fault> {
    const OWNER: &str =
        "select e.extowner from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'orbhook'";
    let owner = Spi::connect(|client| client.select(OWNER, Some(1), &[])?.first().get_one::<pg_sys::Oid>())?;
    owner.ok_or_else(|| Fault::Internal("the extension is not in pg_extension".to_owned()))
}

/// Columns of a row shape by name, dropped ones left out.
///
/// # Safety
/// `shape` must be valid.
pub(crate) unsafe fn columns(shape: pg_sys::TupleDesc) -> HashMap<String, Column> {
    // SAFETY: by this function's contract.
    let attributes = unsafe { majors::attributes(shape) };
    attributes
        .iter()
        .enumerate()
        .filter(|(_, attribute)| !attribute.attisdropped)
        .map(|(index, attribute)| Column::of(attribute, index))
        .map(|column| (column.name.clone(), column))
        .collect()
}

fn facts(relation: pg_sys::Oid) -> Result<Option<Facts>, Fault> {
    const NEAREST: &str = "\
        with recursive up (relid, depth) as ( \
            select $1, 0 \
            union all \
            select i.inhparent, up.depth + 1 from pg_inherits i join up on i.inhrelid = up.relid) \
        select w.target::oid, c.relowner, w.source, w.mapping::text, w.resolved::text \
        from up \
        join orbhook.watches w on w.target::oid = up.relid \
        join pg_class c on c.oid = up.relid \
        order by up.depth limit 1";
    Spi::connect_mut(|client| {
        let rows = client.select(NEAREST, Some(1), &[oid(relation)])?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let (Some(target), Some(owner), Some(name), Some(mapping), Some(resolved)) = (
            row.get::<pg_sys::Oid>(1)?,
            row.get::<pg_sys::Oid>(2)?,
            row.get::<String>(3)?,
            row.get::<String>(4)?,
            row.get::<String>(5)?,
        ) else {
            return Ok(None);
        };
        let Some(source) = source::find(&name) else { return Ok(None) };
        Ok(Some(Facts {
            target,
            owner,
            source,
            mapping: Mapping::stored(&mapping),
            resolved: serde_json::from_str(&resolved).unwrap_or_default(),
        }))
    })
}

impl Watch {
    pub(crate) fn new(
        facts: &Facts,
        columns: &HashMap<String, Column>,
        orbhook: pg_sys::Oid,
    ) -> Result<Watch, Fault> {
        let Facts { source, mapping, resolved, .. } = facts;
        // A column that is gone is left out: the watch emits what it still can.
        let found: Vec<(&str, Vec<Column>)> = resolved
            .paths
            .iter()
            .map(|(path, names)| {
                (
                    path.as_str(),
                    names.iter().filter_map(|name| columns.get(name)).cloned().collect::<Vec<_>>(),
                )
            })
            .filter(|(_, columns)| !columns.is_empty())
            .collect();
        let sent = found
            .iter()
            .map(|(path, columns)| Sent {
                label: path.rsplit('.').next().unwrap_or(path).to_owned(),
                columns: columns.clone(),
                described: source.field_of_path(path).is_none_or(|field| field.described),
            })
            .collect();
        let words = source
            .words
            .iter()
            .map(|(word, meaning)| ((*word).to_owned(), Some((*meaning).to_owned())))
            .chain(mapping.status.iter().map(|(word, meaning)| (word.trim().to_lowercase(), meaning.clone())))
            .collect();
        Ok(Watch {
            target: facts.target,
            owner: facts.owner,
            orbhook,
            source,
            sent,
            body: body::arrange(found.iter().map(|(path, _)| *path)),
            key: resolved.key.iter().filter_map(|name| columns.get(name)).cloned().collect(),
            joins: Vec::new(),
            function: mapping
                .payload_function
                .as_deref()
                .map(|name| function(name, facts.target))
                .transpose()?
                .flatten(),
            grace_micros: i64::from(mapping.grace_seconds) * 1_000_000,
            signals: source
                .signals()
                .filter_map(|signal| Some((signal, columns.get(resolved.signals.get(signal)?)?.clone())))
                .collect(),
            words,
            rank: mapping
                .rank
                .iter()
                .filter_map(|(plan, rank)| {
                    Some((plan.clone(), AnyNumeric::try_from(rank.to_string().as_str()).ok()?))
                })
                .collect(),
        })
    }

    /// What the WHEN clause of an UPDATE asks, for a row that moved between partitions.
    pub(crate) fn any_difference(&self, old: &Row, new: &Row) -> bool {
        let mut columns = self
            .sent
            .iter()
            .flat_map(|sent| &sent.columns)
            .chain(self.signals.iter().map(|(_, column)| column));
        columns.any(|column| column.differs(old, new))
    }

    pub(crate) fn signal(&self, name: &str) -> Option<&Column> {
        self.signals.iter().find(|(signal, _)| *signal == name).map(|(_, column)| column)
    }

    pub(crate) fn truthy(&self, signal: &str, row: &Row) -> Result<bool, Fault> {
        self.signal(signal).map_or(Ok(false), |column| column.truthy(row))
    }

    pub(crate) fn instant(&self, signal: &str, row: &Row) -> Option<i64> {
        self.signal(signal).and_then(|column| column.instant(row))
    }

    pub(crate) fn changed(&self, signal: &str, old: &Row, new: &Row) -> bool {
        self.signal(signal).is_some_and(|column| column.differs(old, new))
    }

    /// Whether the row's status word stands for the event.
    pub(crate) fn means(&self, row: &Row, event: &str) -> Result<bool, Fault> {
        Ok(self.meaning(row)?.is_some_and(|meaning| meaning == event))
    }

    /// The event the row's status word stands for.
    pub(crate) fn meaning(&self, row: &Row) -> Result<Option<&str>, Fault> {
        let Some(column) = self.signal("status") else { return Ok(None) };
        let Some(word) = column.text(row)? else { return Ok(None) };
        let meaning =
            self.words.get(word.trim()).or_else(|| self.words.get(word.trim().to_lowercase().as_str()));
        Ok(meaning.and_then(Option::as_deref))
    }

    /// What makes a plan higher or lower: the rank of its name, a rank column, or the price.
    pub(crate) fn rank(&self, row: &Row) -> Result<Option<AnyNumeric>, Fault> {
        if !self.rank.is_empty() {
            let plan = match self.signal("plan") {
                Some(column) => column.text(row)?,
                None => None,
            };
            return Ok(plan.and_then(|plan| self.rank.get(plan.trim())).cloned());
        }
        match self.signal("rank").or_else(|| self.signal("price")) {
            Some(column) => column.number(row),
            None => Ok(None),
        }
    }

    /// The row's primary key as a JSON array of texts; `None` without one.
    pub(crate) fn row_key(&self, row: &Row) -> Result<Option<String>, Fault> {
        let mut parts = Vec::with_capacity(self.key.len());
        for column in &self.key {
            match column.text(row)? {
                Some(text) => parts.push(text),
                None => return Ok(None),
            }
        }
        Ok((!parts.is_empty()).then(|| serde_json::Value::from(parts).to_string()))
    }
}

/// The payload function of a table's row type; `None` if it is gone.
pub(crate) fn function(name: &str, target: pg_sys::Oid) -> Result<Option<pg_sys::Oid>, Fault> {
    const FIND: &str = "\
        select p.oid from pg_class c join pg_proc p on p.proargtypes[0] = c.reltype and p.pronargs = 1 \
        where c.oid = $2 and p.oid = to_regprocedure($1 || '(' || c.reltype::regtype || ')') \
          and p.prorettype = 'jsonb'::regtype and p.prokind = 'f' and not p.proretset";
    Spi::connect_mut(|client| {
        let rows = run(client, FIND, &[name.into(), oid(target)])?;
        Ok(match rows.into_iter().next() {
            Some(row) => row.get::<pg_sys::Oid>(1)?,
            None => None,
        })
    })
}
