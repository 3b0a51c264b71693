//! The payload of an event, from a row and the rows it leads to.

use pgrx::pg_sys;

use crate::emit::POSTGRES_EPOCH_UNIX_MICROS;
use crate::fault::Fault;
use crate::json::{Json, Members, joined};
use crate::watch::plan::{Sent, Watch};
use crate::watch::row::Row;

/// A key of the payload, laid out once for all rows.
pub(crate) struct Member {
    key: String,
    value: Value,
}

enum Value {
    /// Which of the watch's paths.
    Sent(usize),
    Object(Vec<Member>),
}

/// What one event has beyond the row: an object's key (empty: the top), a key, and its value.
pub(crate) type Extra = (&'static str, &'static str, Json);

/// The tree of a list of paths. `a` and `a.b` together: the later one is left out, as one key cannot be both.
pub(crate) fn arrange<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Member> {
    let mut top = Vec::new();
    for (number, path) in paths.enumerate() {
        let mut members = &mut top;
        let (parents, key) = path.rsplit_once('.').map_or(("", path), |(parents, key)| (parents, key));
        for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
            members = object(members, parent);
        }
        if !members.iter().any(|member: &Member| member.key == key) {
            members.push(Member { key: key.to_owned(), value: Value::Sent(number) });
        }
    }
    top
}

fn object<'a>(members: &'a mut Vec<Member>, key: &str) -> &'a mut Vec<Member> {
    let place =
        match members.iter().position(|member| member.key == key && matches!(member.value, Value::Object(_)))
        {
            Some(place) => place,
            None => {
                members.push(Member { key: key.to_owned(), value: Value::Object(Vec::new()) });
                members.len() - 1
            }
        };
    match &mut members[place].value {
        Value::Object(inner) => inner,
        Value::Sent(_) => unreachable!("found or made as an object"),
    }
}

/// The payload as jsonb, with the row's user, or a user's subscription and reseller.
pub(crate) fn build(
    watch: &Watch,
    row: &Row,
    event: &str,
    now: pg_sys::TimestampTz,
    extras: &[Extra],
) -> Result<Option<pg_sys::Datum>, Fault> {
    let mut members = members(&watch.body, &watch.sent, row, extras)?;
    for join in &watch.joins {
        let Some(other) = join.find(row)? else { continue };
        // A key that is there twice: jsonb keeps the last. A user's own row says better who it is than a foreign key.
        for member in &join.watch.body {
            if join.carries.is_none_or(|keys| keys.contains(&member.key.as_str()))
                && let Some(value) = value(member, &join.watch.sent, &other, &[])?
            {
                members.push((member.key.as_str(), value));
            }
        }
    }
    for (object, key, json) in extras {
        let in_place =
            watch.body.iter().any(|member| member.key == *object && matches!(member.value, Value::Object(_)));
        if object.is_empty() {
            members.push((key, *json));
        } else if !in_place {
            members.push((object, Json::object(vec![(key, *json)])));
        }
    }
    if let Ok(instant) = jiff::Timestamp::from_microsecond(now.saturating_add(POSTGRES_EPOCH_UNIX_MICROS)) {
        members.push(("timestamp", Json::text(&format!("{instant:.6}"))));
    }
    members.push(("eventType", Json::borrowed(event)));
    Ok(Some(Json::object(members).datum()))
}

/// The payload the application's own function makes, with what orbhook adds; `None` if it returned null.
pub(crate) fn custom(
    watch: &Watch,
    function: pg_sys::Oid,
    row: &Row,
    event: &str,
    extras: &[Extra],
) -> Result<Option<pg_sys::Datum>, Fault> {
    let Some(made) = call(watch, function, row)? else { return Ok(None) };
    let at_top = extras.iter().filter(|(object, ..)| object.is_empty());
    let extras = Json::object(at_top.map(|(_, key, json)| (*key, *json)).collect());
    let own = Json::object(vec![("eventType", Json::borrowed(event))]);
    joined(joined(extras.datum(), made)?, own.datum()).map(Some)
}

/// `"changes"` of an update, or `None` if nothing that is sent changed.
pub(crate) fn changes(watch: &Watch, old: &Row, new: &Row) -> Result<Option<Json>, Fault> {
    let mut changes = Members::new();
    for sent in &watch.sent {
        if !sent.described || !sent.columns.iter().any(|column| column.differs(old, new)) {
            continue;
        }
        let before = sent_value(sent, old)?.unwrap_or_else(Json::null);
        let after = sent_value(sent, new)?.unwrap_or_else(Json::null);
        changes.push((&sent.label, Json::object(vec![("old", before), ("new", after)])));
    }
    Ok((!changes.is_empty()).then(|| Json::object(changes)))
}

/// As deep as a mapping's paths go, which is limited. What is null is left out, and so is an object without keys.
fn members<'a>(
    members: &'a [Member],
    sent: &[Sent],
    row: &Row,
    extras: &[Extra],
) -> Result<Members<'a>, Fault> {
    // Room for what is added at the end.
    let mut values = Members::with_capacity(members.len() + 4);
    for member in members {
        if let Some(value) = value(member, sent, row, extras)? {
            values.push((member.key.as_str(), value));
        }
    }
    Ok(values)
}

fn value(member: &Member, sent: &[Sent], row: &Row, extras: &[Extra]) -> Result<Option<Json>, Fault> {
    match &member.value {
        Value::Sent(number) => match sent.get(*number) {
            Some(sent) => sent_value(sent, row),
            None => Ok(None),
        },
        Value::Object(inner) => {
            let mut values = members(inner, sent, row, &[])?;
            let into_this = extras.iter().filter(|(object, ..)| *object == member.key);
            values.extend(into_this.map(|(_, key, json)| (*key, *json)));
            Ok((!values.is_empty()).then(|| Json::object(values)))
        }
    }
}

/// A composite key is one text, its parts joined by `/`.
fn sent_value(sent: &Sent, row: &Row) -> Result<Option<Json>, Fault> {
    if let [column] = sent.columns.as_slice() {
        return column.json(row);
    }
    let mut parts = Vec::with_capacity(sent.columns.len());
    for column in &sent.columns {
        parts.push(column.text(row)?.unwrap_or_default());
    }
    Ok(Some(Json::text(&parts.join("/"))))
}

/// As whoever changes the table, without a check of EXECUTE: the table's owner chose the function and could call it.
fn call(watch: &Watch, function: pg_sys::Oid, row: &Row) -> Result<Option<pg_sys::Datum>, Fault> {
    // SAFETY: the function takes one value of the table's row type and returns jsonb, as was checked when the plan was
    // made; a partition's row is turned into the root's type first.
    unsafe {
        let row_type = pg_sys::get_rel_type_id(watch.target);
        let shape = pg_sys::lookup_rowtype_tupdesc_copy(row_type, -1);
        let argument = row.as_composite(shape);
        let mut info: pg_sys::FmgrInfo = std::mem::zeroed();
        pg_sys::fmgr_info(function, &raw mut info);
        let space = size_of::<pg_sys::FunctionCallInfoBaseData>() + size_of::<pg_sys::NullableDatum>();
        let call = pg_sys::palloc0(space).cast::<pg_sys::FunctionCallInfoBaseData>();
        (*call).flinfo = &raw mut info;
        (*call).nargs = 1;
        let arguments = (*call).args.as_mut_ptr();
        (*arguments).value = argument;
        (*arguments).isnull = false;
        let Some(entry) = info.fn_addr else {
            return Err(Fault::Internal("a function without code".to_owned()));
        };
        let made = pg_sys::ffi::pg_guard_ffi_boundary(|| entry(call));
        if (*call).isnull {
            return Ok(None);
        }
        if !is_object(made) {
            return Err(Fault::argument("payload_function must return a JSON object, or null for no event"));
        }
        Ok(Some(made))
    }
}

/// # Safety
/// The datum must be a jsonb.
unsafe fn is_object(jsonb: pg_sys::Datum) -> bool {
    /// src/include/utils/jsonb.h
    const JB_FOBJECT: u32 = 0x2000_0000;
    // SAFETY: by this function's contract.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(jsonb.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        (*jsonb).root.header & JB_FOBJECT != 0
    }
}
