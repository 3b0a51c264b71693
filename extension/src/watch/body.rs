//! The payload of an event, from a row and the rows it leads to.

use std::fmt::Write as _;

use pgrx::{direct_function_call_as_datum, pg_sys};

use crate::emit::POSTGRES_EPOCH_UNIX_MICROS;
use crate::fault::Fault;
use crate::watch::column::write_string;
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

/// What one event has beyond the row: an object's key (empty: the top), a key, and JSON.
pub(crate) type Extra = (&'static str, &'static str, String);

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

/// The payload as jsonb. `people`: the row's user, or a user's subscription and reseller.
pub(crate) fn build(
    watch: &Watch,
    row: &Row,
    event: &str,
    now: pg_sys::TimestampTz,
    extras: &[Extra],
) -> Result<Option<pg_sys::Datum>, Fault> {
    let mut text = String::with_capacity(512);
    text.push('{');
    write_members(&watch.body, &watch.sent, row, extras, &mut text)?;
    for join in &watch.joins {
        let Some(other) = join.find(row)? else { continue };
        // A key that is there twice: jsonb keeps the last. A user's own row says better who it is than a foreign key.
        let members: Vec<&Member> = join
            .watch
            .body
            .iter()
            .filter(|member| join.carries.is_none_or(|keys| keys.contains(&member.key.as_str())))
            .collect();
        for member in members {
            write_member(member, &join.watch.sent, &other, &[], &mut text)?;
        }
    }
    for (object, key, json) in extras {
        let in_place =
            watch.body.iter().any(|member| member.key == *object && matches!(member.value, Value::Object(_)));
        if object.is_empty() {
            write_key(key, &mut text);
            text.push_str(json);
        } else if !in_place {
            write_key(object, &mut text);
            text.push('{');
            write_key(key, &mut text);
            text.push_str(json);
            text.push('}');
        }
    }
    if let Ok(instant) = jiff::Timestamp::from_microsecond(now.saturating_add(POSTGRES_EPOCH_UNIX_MICROS)) {
        write_key("timestamp", &mut text);
        let _ = write!(text, "\"{instant:.6}\"");
    }
    write_key("eventType", &mut text);
    let _ = write!(text, "\"{event}\"}}");
    Ok(Some(parse(text)?))
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
    let mut text = String::from("{");
    for (object, key, json) in extras {
        if object.is_empty() {
            write_key(key, &mut text);
            text.push_str(json);
        }
    }
    text.push('}');
    let extras = parse(text)?;
    let own = parse(format!("{{\"eventType\": \"{event}\"}}"))?;
    // SAFETY: jsonb_concat takes two jsonb.
    let joined = unsafe {
        direct_function_call_as_datum(pg_sys::jsonb_concat, &[Some(extras), Some(made)]).and_then(|joined| {
            direct_function_call_as_datum(pg_sys::jsonb_concat, &[Some(joined), Some(own)])
        })
    };
    Ok(joined)
}

/// `"changes"` of an update, or `None` if nothing that is sent changed.
pub(crate) fn changes(watch: &Watch, old: &Row, new: &Row) -> Result<Option<String>, Fault> {
    let mut text = String::from("{");
    for sent in &watch.sent {
        if !sent.described || !sent.columns.iter().any(|column| column.differs(old, new)) {
            continue;
        }
        write_key(&sent.label, &mut text);
        text.push_str("{\"old\": ");
        if !write_value(sent, old, &mut text)? {
            text.push_str("null");
        }
        text.push_str(", \"new\": ");
        if !write_value(sent, new, &mut text)? {
            text.push_str("null");
        }
        text.push('}');
    }
    text.push('}');
    Ok((text.len() > 2).then_some(text))
}

fn write_members(
    members: &[Member],
    sent: &[Sent],
    row: &Row,
    extras: &[Extra],
    text: &mut String,
) -> Result<(), Fault> {
    for member in members {
        write_member(member, sent, row, extras, text)?;
    }
    Ok(())
}

/// As deep as a mapping's paths go, which is limited. What is null is left out, and so is an object without keys.
fn write_member(
    member: &Member,
    sent: &[Sent],
    row: &Row,
    extras: &[Extra],
    text: &mut String,
) -> Result<(), Fault> {
    let before = text.len();
    write_key(&member.key, text);
    let written = match &member.value {
        Value::Sent(number) => match sent.get(*number) {
            Some(sent) => write_value(sent, row, text)?,
            None => false,
        },
        Value::Object(members) => {
            text.push('{');
            let empty = text.len();
            write_members(members, sent, row, &[], text)?;
            for (_, key, json) in extras.iter().filter(|(object, ..)| *object == member.key) {
                write_key(key, text);
                text.push_str(json);
            }
            let any = text.len() > empty;
            text.push('}');
            any
        }
    };
    if !written {
        text.truncate(before);
    }
    Ok(())
}

/// A composite key is one text, its parts joined by `/`.
fn write_value(sent: &Sent, row: &Row, text: &mut String) -> Result<bool, Fault> {
    if let [column] = sent.columns.as_slice() {
        return column.write_json(row, text);
    }
    let mut parts = Vec::with_capacity(sent.columns.len());
    for column in &sent.columns {
        parts.push(column.text(row)?.unwrap_or_default());
    }
    write_string(&parts.join("/"), text);
    Ok(true)
}

fn write_key(key: &str, text: &mut String) {
    if !text.ends_with(['{', ' ']) {
        text.push(',');
    }
    write_string(key, text);
    text.push(':');
}

fn parse(mut text: String) -> Result<pg_sys::Datum, Fault> {
    text.push('\0');
    // SAFETY: jsonb_in takes a NUL-terminated string; no value of a column holds a NUL.
    let parsed = unsafe {
        direct_function_call_as_datum(
            pg_sys::jsonb_in,
            &[Some(pg_sys::Datum::from(text.as_ptr().cast_mut()))],
        )
    };
    parsed.ok_or_else(|| Fault::Internal("jsonb_in returned null".to_owned()))
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
