//! jsonb put together from its parts, without printing and parsing it.

use pgrx::{direct_function_call_as_datum, pg_sys};

use crate::fault::Fault;

/// A part of a payload to be.
///
/// What it points to lives in the current memory context, in a row or in a watch. Each of them outlives the payload,
/// which is a copy.
#[derive(Clone, Copy)]
pub(crate) struct Json(pg_sys::JsonbValue);

/// Keys and values of an object to be.
pub(crate) type Members<'a> = Vec<(&'a str, Json)>;

impl Json {
    pub(crate) fn null() -> Json {
        Json::of(pg_sys::jbvType::jbvNull, |_| {})
    }

    pub(crate) fn boolean(value: bool) -> Json {
        Json::of(pg_sys::jbvType::jbvBool, |to| to.boolean = value)
    }

    pub(crate) fn integer(value: i64) -> Json {
        // SAFETY: makes a number in the current context.
        Json::of(pg_sys::jbvType::jbvNumeric, |to| to.numeric = unsafe { pg_sys::int64_to_numeric(value) })
    }

    /// A number; NaN and the infinities, which JSON lacks, are words.
    ///
    /// # Safety
    /// The datum must be a numeric.
    pub(crate) unsafe fn numeric(datum: pg_sys::Datum) -> Json {
        // SAFETY: by this function's contract; a copy with a long header, as jsonb keeps numbers.
        unsafe {
            let numeric = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::NumericData>();
            if pg_sys::numeric_is_nan(numeric) || pg_sys::numeric_is_inf(numeric) {
                return Json::printed(pg_sys::OidOutputFunctionCall(pg_sys::F_NUMERIC_OUT.into(), datum));
            }
            Json::of(pg_sys::jbvType::jbvNumeric, |to| to.numeric = numeric)
        }
    }

    /// Text that lives long enough where it is.
    pub(crate) fn borrowed(text: &str) -> Json {
        Json::bytes(text.as_ptr(), text.len())
    }

    /// Text that does not.
    pub(crate) fn text(text: &str) -> Json {
        // SAFETY: a copy of that many bytes in the current context.
        unsafe {
            let copy = pg_sys::palloc(text.len().max(1)).cast::<u8>();
            copy.copy_from_nonoverlapping(text.as_ptr(), text.len());
            Json::bytes(copy, text.len())
        }
    }

    /// What an output function printed.
    ///
    /// # Safety
    /// `text` must be NUL-terminated.
    pub(crate) unsafe fn printed(text: *const std::ffi::c_char) -> Json {
        // SAFETY: by this function's contract.
        let length = unsafe { std::ffi::CStr::from_ptr(text) }.count_bytes();
        Json::bytes(text.cast(), length)
    }

    /// # Safety
    /// The datum must be a text.
    pub(crate) unsafe fn text_datum(datum: pg_sys::Datum) -> Json {
        // SAFETY: by this function's contract; only what is compressed or stored elsewhere is copied.
        unsafe {
            let text = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            Json::bytes(pgrx::vardata_any(text).cast(), pgrx::varsize_any_exhdr(text))
        }
    }

    /// # Safety
    /// The datum must be a jsonb.
    pub(crate) unsafe fn jsonb(datum: pg_sys::Datum) -> Json {
        /// src/include/utils/jsonb.h
        const JB_FSCALAR: u32 = 0x1000_0000;
        use pg_sys::JsonbIteratorToken as Token;
        // SAFETY: by this function's contract; the iterator reads from the copy, which stays.
        unsafe {
            let jsonb = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
            let mut value: pg_sys::JsonbValue = std::mem::zeroed();
            if (*jsonb).root.header & JB_FSCALAR != 0 {
                pg_sys::JsonbExtractScalar(&raw mut (*jsonb).root, &raw mut value);
                return Json(value);
            }
            let mut iterator = pg_sys::JsonbIteratorInit(&raw mut (*jsonb).root);
            let mut state = std::ptr::null_mut();
            let mut whole = std::ptr::null_mut();
            loop {
                let token = pg_sys::JsonbIteratorNext(&raw mut iterator, &raw mut value, false);
                let part = match token {
                    Token::WJB_DONE => break,
                    Token::WJB_KEY | Token::WJB_VALUE | Token::WJB_ELEM => &raw mut value,
                    _ => std::ptr::null_mut(),
                };
                whole = pg_sys::pushJsonbValue(&raw mut state, token, part);
            }
            if whole.is_null() { Json::null() } else { Json(*whole) }
        }
    }

    /// JSON text.
    pub(crate) fn parsed(text: &str) -> Result<Json, Fault> {
        // SAFETY: a jsonb.
        Ok(unsafe { Json::jsonb(parse(text)?) })
    }

    /// An object. Of a key that is there twice the last one stays.
    pub(crate) fn object(mut members: Members<'_>) -> Json {
        // As jsonb keeps them: by length, then byte by byte.
        members.sort_by(|(one, _), (other, _)| one.len().cmp(&other.len()).then_with(|| one.cmp(other)));
        members.reverse();
        members.dedup_by(|(one, _), (other, _)| one == other);
        members.reverse();
        let size = size_of::<pg_sys::JsonbPair>();
        // SAFETY: room for every member in the current context, filled before it is read.
        unsafe {
            let pairs = pg_sys::palloc(size * members.len().max(1)).cast::<pg_sys::JsonbPair>();
            for (place, (key, value)) in members.iter().enumerate() {
                pairs.add(place).write(pg_sys::JsonbPair {
                    key: Json::borrowed(key).0,
                    value: value.0,
                    order: 0,
                });
            }
            let count = i32::try_from(members.len()).unwrap_or_default();
            Json::of(pg_sys::jbvType::jbvObject, |to| {
                to.object.nPairs = count;
                to.object.pairs = pairs;
            })
        }
    }

    /// The finished jsonb.
    pub(crate) fn datum(mut self) -> pg_sys::Datum {
        // SAFETY: everything it points to is alive.
        unsafe { pg_sys::Datum::from(pg_sys::JsonbValueToJsonb(&raw mut self.0)) }
    }

    fn bytes(start: *const u8, length: usize) -> Json {
        Json::of(pg_sys::jbvType::jbvString, |to| {
            to.string = pg_sys::JsonbValue__bindgen_ty_1__bindgen_ty_1 {
                len: i32::try_from(length).unwrap_or_default(),
                val: start.cast_mut().cast(),
            };
        })
    }

    fn of(kind: pg_sys::jbvType::Type, fill: impl FnOnce(&mut pg_sys::JsonbValue__bindgen_ty_1)) -> Json {
        // SAFETY: plain data; the member that the kind names is set.
        let mut value: pg_sys::JsonbValue = unsafe { std::mem::zeroed() };
        value.type_ = kind;
        fill(&mut value.val);
        Json(value)
    }
}

/// Joins two objects; keys of the second win.
pub(crate) fn joined(first: pg_sys::Datum, second: pg_sys::Datum) -> Result<pg_sys::Datum, Fault> {
    // SAFETY: jsonb_concat takes two jsonb.
    let whole = unsafe { direct_function_call_as_datum(pg_sys::jsonb_concat, &[Some(first), Some(second)]) };
    whole.ok_or_else(|| Fault::Internal("jsonb_concat returned null".to_owned()))
}

/// JSON text as a jsonb.
pub(crate) fn parse(text: &str) -> Result<pg_sys::Datum, Fault> {
    let text = format!("{text}\0");
    // SAFETY: jsonb_in takes a NUL-terminated string.
    let parsed = unsafe {
        direct_function_call_as_datum(
            pg_sys::jsonb_in,
            &[Some(pg_sys::Datum::from(text.as_ptr().cast_mut()))],
        )
    };
    parsed.ok_or_else(|| Fault::Internal("jsonb_in returned null".to_owned()))
}
