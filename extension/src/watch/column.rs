//! A column of an application table: how its values print as JSON and what they mean as a signal.
//!
//! Most values are written here, without a statement. What has structure of its own (arrays, composites, json, types of
//! other extensions) goes through `to_jsonb`, which runs as whoever changes the table.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;
use pgrx::{AnyNumeric, PgOid, direct_function_call_as_datum, pg_sys};

use crate::emit::POSTGRES_EPOCH_UNIX_MICROS;
use crate::fault::Fault;
use crate::json::Json;
use crate::watch::row::Row;

unsafe extern "C-unwind" {
    // src/backend/utils/adt/datum.c; pgrx generates no binding for it.
    fn datum_image_eq(one: pg_sys::Datum, other: pg_sys::Datum, by_value: bool, length: i32) -> bool;
}

const MICROS_PER_DAY: i64 = 86_400_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// Place in the row, from 0.
    pub(crate) index: usize,
    pub(crate) type_oid: pg_sys::Oid,
    kind: Kind,
    by_value: bool,
    length: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Text,
    Timestamptz,
    Timestamp,
    Date,
    Numeric,
    /// The output function prints every digit.
    Float(pg_sys::Oid),
    Money,
    Jsonb,
    /// Anything else that is one word: its output function.
    Output(pg_sys::Oid),
    /// What has structure.
    Structured,
}

impl Column {
    pub(crate) fn of(attribute: &pg_sys::FormData_pg_attribute, index: usize) -> Column {
        // SAFETY: a name is NUL-terminated.
        let name = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) }.to_string_lossy().into_owned();
        Column {
            name,
            index,
            type_oid: attribute.atttypid,
            kind: Kind::of(attribute.atttypid),
            by_value: attribute.attbyval,
            length: i32::from(attribute.attlen),
        }
    }

    pub(crate) fn is_time(&self) -> bool {
        matches!(self.kind, Kind::Timestamptz | Kind::Timestamp | Kind::Date)
    }

    /// Byte for byte: no operator of the type's is called.
    pub(crate) fn differs(&self, old: &Row, new: &Row) -> bool {
        match (old.get(self), new.get(self)) {
            (None, None) => false,
            (Some(old), Some(new)) => {
                // SAFETY: both are values of this column; an error (a damaged value) unwinds as any of PostgreSQL's.
                unsafe {
                    !pg_sys::ffi::pg_guard_ffi_boundary(|| {
                        datum_image_eq(old, new, self.by_value, self.length)
                    })
                }
            }
            _ => true,
        }
    }

    /// Set, and not false, zero or an empty word.
    pub(crate) fn truthy(&self, row: &Row) -> Result<bool, Fault> {
        let Some(datum) = row.get(self) else { return Ok(false) };
        Ok(match self.kind {
            Kind::Bool => datum.value() & 0xFF != 0,
            Kind::Timestamptz | Kind::Timestamp | Kind::Date | Kind::Structured | Kind::Jsonb => true,
            _ => {
                let text = self.text(row)?.unwrap_or_default();
                let text = text.trim();
                !matches!(text.to_ascii_lowercase().as_str(), "" | "0" | "f" | "false" | "n" | "no" | "off")
                    && text.parse::<f64>().ok() != Some(0.0)
            }
        })
    }

    /// Microseconds since 2000-01-01 UTC, if the column holds a time; the infinities are the ends of the range.
    /// A time without a zone is read as UTC, as the payload's readers read it.
    pub(crate) fn instant(&self, row: &Row) -> Option<i64> {
        let datum = row.get(self)?;
        match self.kind {
            Kind::Timestamptz | Kind::Timestamp => Some(datum.value() as i64),
            Kind::Date => Some(match datum.value() as i32 {
                i32::MAX => i64::MAX,
                i32::MIN => i64::MIN,
                days => i64::from(days) * MICROS_PER_DAY,
            }),
            _ => None,
        }
    }

    pub(crate) fn number(&self, row: &Row) -> Result<Option<AnyNumeric>, Fault> {
        let text = match self.kind {
            // SAFETY: the output function of what money becomes.
            Kind::Money => row
                .get(self)
                .and_then(money)
                .map(|number| unsafe { print(pg_sys::F_NUMERIC_OUT.into(), number) }),
            _ => self.text(row)?,
        };
        Ok(text.and_then(|text| AnyNumeric::try_from(text.trim()).ok()))
    }

    /// The value as the type prints it.
    pub(crate) fn text(&self, row: &Row) -> Result<Option<String>, Fault> {
        let Some(datum) = row.get(self) else { return Ok(None) };
        Ok(match self.kind {
            Kind::Bool => Some((datum.value() & 0xFF != 0).to_string()),
            Kind::Int2 => Some((datum.value() as i16).to_string()),
            Kind::Int4 => Some((datum.value() as i32).to_string()),
            Kind::Int8 => Some((datum.value() as i64).to_string()),
            // SAFETY: a text datum.
            Kind::Text => unsafe { String::from_datum(datum, false) },
            _ => {
                let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
                // SAFETY: plain out parameters; the function is that of the column's type.
                Some(unsafe {
                    pg_sys::getTypeOutputInfo(self.type_oid, &raw mut output, &raw mut varlena);
                    print(output, datum)
                })
            }
        })
    }

    /// The value as JSON; `None` if it is null.
    pub(crate) fn json(&self, row: &Row) -> Result<Option<Json>, Fault> {
        let Some(datum) = row.get(self) else { return Ok(None) };
        Ok(Some(match self.kind {
            Kind::Bool => Json::boolean(datum.value() & 0xFF != 0),
            Kind::Int2 => Json::integer(i64::from(datum.value() as i16)),
            Kind::Int4 => Json::integer(i64::from(datum.value() as i32)),
            Kind::Int8 => Json::integer(datum.value() as i64),
            // SAFETY: the datum is of the kind's type.
            Kind::Text => unsafe { Json::text_datum(datum) },
            // SAFETY: as above.
            Kind::Numeric => unsafe { Json::numeric(datum) },
            // SAFETY: as above.
            Kind::Jsonb => unsafe { Json::jsonb(datum) },
            Kind::Timestamptz | Kind::Timestamp | Kind::Date => match self.time_text(datum) {
                Some(text) => Json::text(&text),
                None => return self.structured(datum).map(Some),
            },
            Kind::Float(output) => {
                // SAFETY: the output function of the column's own type.
                let text = unsafe { print(output, datum) };
                // NaN and Infinity are no JSON numbers.
                if text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
                    Json::parsed(&text)?
                } else {
                    Json::text(&text)
                }
            }
            // SAFETY: a numeric.
            Kind::Money => return Ok(money(datum).map(|number| unsafe { Json::numeric(number) })),
            // SAFETY: the output function of the column's own type.
            Kind::Output(output) => unsafe { Json::printed(pg_sys::OidOutputFunctionCall(output, datum)) },
            Kind::Structured => self.structured(datum)?,
        }))
    }

    /// RFC 3339 (UTC) for a time with zone; without one, the same without the zone. `None` beyond the years 1 to 9999.
    fn time_text(&self, datum: pg_sys::Datum) -> Option<String> {
        let micros = match self.kind {
            Kind::Date => match datum.value() as i32 {
                i32::MAX => return Some("infinity".to_owned()),
                i32::MIN => return Some("-infinity".to_owned()),
                days => i64::from(days) * MICROS_PER_DAY,
            },
            _ => match datum.value() as i64 {
                i64::MAX => return Some("infinity".to_owned()),
                i64::MIN => return Some("-infinity".to_owned()),
                micros => micros,
            },
        };
        let instant =
            jiff::Timestamp::from_microsecond(micros.checked_add(POSTGRES_EPOCH_UNIX_MICROS)?).ok()?;
        let civil = instant.to_zoned(jiff::tz::TimeZone::UTC).datetime();
        if civil.year() < 1 {
            return None;
        }
        Some(match self.kind {
            Kind::Timestamptz => instant.to_string(),
            Kind::Date => civil.date().to_string(),
            _ => civil.to_string(),
        })
    }

    fn structured(&self, datum: pg_sys::Datum) -> Result<Json, Fault> {
        thread_local! {
            static PREPARED: RefCell<HashMap<pg_sys::Oid, OwnedPreparedStatement>> = RefCell::new(HashMap::new());
        }
        // SAFETY: a global of the backend.
        let outside = unsafe { pg_sys::CurrentMemoryContext };
        Spi::connect(|client| {
            // Taken out while it runs: a cast of the type's own may come back here.
            let kept = PREPARED.with_borrow_mut(|all| all.remove(&self.type_oid));
            let statement = match kept {
                Some(kept) => kept,
                None => {
                    client.prepare("select pg_catalog.to_jsonb($1)", &[PgOid::from(self.type_oid)])?.keep()
                }
            };
            // SAFETY: the datum is a value of the column's type.
            let argument = unsafe { DatumWithOid::new(datum, self.type_oid) };
            let made = client.select(&statement, Some(1), &[argument])?.first().get_datum_by_ordinal(1)?;
            PREPARED.with_borrow_mut(|all| all.insert(self.type_oid, statement));
            let Some(made) = made else { return Ok(Json::null()) };
            // Copied out, because what SPI returned ends with the connection.
            // SAFETY: the context was current before the connection; to_jsonb returns jsonb.
            unsafe {
                let before = pg_sys::MemoryContextSwitchTo(outside);
                let copy = pg_sys::pg_detoast_datum_copy(made.cast_mut_ptr());
                let json = Json::jsonb(pg_sys::Datum::from(copy));
                pg_sys::MemoryContextSwitchTo(before);
                Ok(json)
            }
        })
    }
}

impl Kind {
    fn of(type_oid: pg_sys::Oid) -> Kind {
        let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
        // SAFETY: look-ups in the type cache; out parameters are plain data.
        let (base, class, category) = unsafe {
            let base = pg_sys::getBaseType(type_oid);
            pg_sys::getTypeOutputInfo(base, &raw mut output, &raw mut varlena);
            let (mut category, mut preferred): (std::ffi::c_char, bool) = (0, false);
            pg_sys::get_type_category_preferred(base, &raw mut category, &raw mut preferred);
            (base, pg_sys::get_typtype(base) as u8, category as u8)
        };
        match base {
            pg_sys::BOOLOID => Kind::Bool,
            pg_sys::INT2OID => Kind::Int2,
            pg_sys::INT4OID => Kind::Int4,
            pg_sys::INT8OID => Kind::Int8,
            pg_sys::TEXTOID | pg_sys::VARCHAROID => Kind::Text,
            pg_sys::TIMESTAMPTZOID => Kind::Timestamptz,
            pg_sys::TIMESTAMPOID => Kind::Timestamp,
            pg_sys::DATEOID => Kind::Date,
            pg_sys::NUMERICOID => Kind::Numeric,
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Kind::Float(output),
            pg_sys::MONEYOID => Kind::Money,
            pg_sys::JSONBOID => Kind::Jsonb,
            pg_sys::JSONOID => Kind::Structured,
            // Enums, and strings of other extensions such as citext.
            _ if class == b'e' || category == b'S' => Kind::Output(output),
            _ if class == b'c' || category == b'A' => Kind::Structured,
            _ if base.to_u32() < pg_sys::FirstNormalObjectId => Kind::Output(output),
            _ => Kind::Structured,
        }
    }
}

/// # Safety
/// `output` must be the output function of the datum's type.
unsafe fn print(output: pg_sys::Oid, datum: pg_sys::Datum) -> String {
    // SAFETY: by this function's contract; the result is a NUL-terminated string in the current context.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(output, datum);
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        pg_sys::pfree(text.cast());
        owned
    }
}

/// Money as a numeric: how it prints depends on lc_monetary.
fn money(datum: pg_sys::Datum) -> Option<pg_sys::Datum> {
    // SAFETY: cash_numeric takes one money.
    unsafe { direct_function_call_as_datum(pg_sys::cash_numeric, &[Some(datum)]) }
}
