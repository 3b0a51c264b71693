//! Reading a payload where it lies, as jsonb, without printing or parsing it.
//!
//! 9 kB of jsonb can print to 131 MB (`1e131071`, a thousand times), and jsonb nests deeper than any JSON parser goes.
//! So the size is summed while walking, with PostgreSQL's own iterator, which keeps its place in a list and does not
//! recurse; the walk stops at the limit.

use pgrx::{AnyElement, pg_sys};

/// What `orbhook_emit` needs to know about a payload.
#[derive(Debug)]
pub(crate) struct Payload {
    /// `eventType`, if it is there; the empty string if it is no string.
    pub(crate) event_type: Option<String>,
    /// Whether `timestamp` is there, of any type.
    pub(crate) has_timestamp: bool,
    /// `timestamp`, if it is a string.
    pub(crate) timestamp: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    NoObject,
    TooLarge,
}

/// Walks a jsonb value. `bytes_max` limits its size as text.
pub(crate) fn read(payload: &AnyElement, bytes_max: usize) -> Result<Payload, Unreadable> {
    // SAFETY: the function's SQL declaration says jsonb, so the datum is a jsonb, possibly toasted. Detoasting copies
    // it into the current memory context if need be; the iterator reads only from that copy, which outlives it.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(payload.datum().cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        walk(&raw mut (*jsonb).root, bytes_max)
    }
}

/// # Safety
/// `container` must be the root of a valid jsonb that stays where it is.
unsafe fn walk(container: *mut pg_sys::JsonbContainer, bytes_max: usize) -> Result<Payload, Unreadable> {
    use pg_sys::JsonbIteratorToken as Token;

    let mut found = Payload { event_type: None, has_timestamp: false, timestamp: None };
    let mut bytes = 0_usize;
    let mut depth = 0_usize;
    let mut key = Key::Other;
    // SAFETY: plain data; JsonbIteratorNext fills it before it is read.
    let mut value: pg_sys::JsonbValue = unsafe { std::mem::zeroed() };
    // SAFETY: by this function's contract.
    let mut iterator = unsafe { pg_sys::JsonbIteratorInit(container) };
    loop {
        pgrx::check_for_interrupts!();
        // SAFETY: the iterator was made above and is advanced only here.
        let token = unsafe { pg_sys::JsonbIteratorNext(&raw mut iterator, &raw mut value, false) };
        match token {
            Token::WJB_DONE => return Ok(found),
            Token::WJB_BEGIN_OBJECT => depth += 1,
            Token::WJB_BEGIN_ARRAY if depth == 0 => return Err(Unreadable::NoObject),
            Token::WJB_BEGIN_ARRAY => depth += 1,
            Token::WJB_END_OBJECT | Token::WJB_END_ARRAY => depth -= 1,
            Token::WJB_KEY => {
                // SAFETY: a key is a string value.
                let name = unsafe { string_of(&value) };
                key = if depth == 1 { Key::of(name) } else { Key::Other };
                // Two quotes, a colon and a space.
                bytes = bytes.saturating_add(name.len() + 4);
            }
            Token::WJB_VALUE | Token::WJB_ELEM => {
                // SAFETY: the iterator says that this is a scalar.
                bytes = bytes.saturating_add(unsafe { text_bytes(&value) });
                if depth == 1 && token == Token::WJB_VALUE {
                    // SAFETY: as above.
                    unsafe { found.note(key, &value) };
                }
            }
            _ => {}
        }
        // A container counts when it ends: brackets, and the comma and space after it.
        bytes = bytes.saturating_add(2);
        if bytes > bytes_max {
            return Err(Unreadable::TooLarge);
        }
    }
}

#[derive(Clone, Copy)]
enum Key {
    EventType,
    Timestamp,
    Other,
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"eventType" => Self::EventType,
            b"timestamp" => Self::Timestamp,
            _ => Self::Other,
        }
    }
}

impl Payload {
    /// # Safety
    /// `value` must be a scalar filled by the iterator.
    unsafe fn note(&mut self, key: Key, value: &pg_sys::JsonbValue) {
        let text = || {
            (value.type_ == pg_sys::jbvType::jbvString)
                // SAFETY: the type says string.
                .then(|| String::from_utf8_lossy(unsafe { string_of(value) }).into_owned())
        };
        match key {
            Key::EventType => self.event_type = Some(text().unwrap_or_default()),
            Key::Timestamp => {
                self.has_timestamp = true;
                self.timestamp = text();
            }
            Key::Other => {}
        }
    }
}

/// # Safety
/// `value` must be a scalar filled by the iterator.
unsafe fn text_bytes(value: &pg_sys::JsonbValue) -> usize {
    match value.type_ {
        // Escapes make it longer, by six at most; counted as they are stored, as a person would count them.
        // SAFETY: the type says which member of the union is set.
        pg_sys::jbvType::jbvString => unsafe { string_of(value) }.len() + 2,
        // SAFETY: as above; a numeric inside jsonb is not toasted.
        pg_sys::jbvType::jbvNumeric => unsafe { numeric_text_bytes(value.val.numeric.cast()) },
        _ => 5,
    }
}

/// # Safety
/// `value` must be a string.
unsafe fn string_of(value: &pg_sys::JsonbValue) -> &[u8] {
    // SAFETY: by this function's contract; PostgreSQL gives a pointer and a length that belong together.
    unsafe {
        let string = value.val.string;
        std::slice::from_raw_parts(string.val.cast::<u8>(), usize::try_from(string.len).unwrap_or_default())
    }
}

/// Digits a numeric prints to, from its header alone (src/backend/utils/adt/numeric.c: `n_header`, short and long
/// form). The weight counts groups of four decimal digits before the point, the scale digits after it.
///
/// # Safety
/// `numeric` must point to a numeric with a four-byte length header.
unsafe fn numeric_text_bytes(numeric: *const u8) -> usize {
    const SPECIAL_OR_SHORT: u16 = 0xC000;
    const SPECIAL: u16 = 0xC000;
    const SHORT: u16 = 0x8000;
    const LENGTH_HEADER_BYTES: usize = 4;

    // SAFETY: a numeric is at least its length header and two bytes; the long form has two more.
    let (header, second) = unsafe {
        let header = numeric.add(LENGTH_HEADER_BYTES).cast::<u16>().read_unaligned();
        let long = header & SPECIAL_OR_SHORT != SPECIAL && header & SPECIAL_OR_SHORT != SHORT;
        (header, if long { numeric.add(LENGTH_HEADER_BYTES + 2).cast::<i16>().read_unaligned() } else { 0 })
    };
    let (weight, scale) = match header & SPECIAL_OR_SHORT {
        SPECIAL => return 9,
        SHORT => {
            let weight = i32::from(header & 0x003F) - if header & 0x0040 != 0 { 64 } else { 0 };
            (weight, i32::from((header & 0x1F80) >> 7))
        }
        _ => (i32::from(second), i32::from(header & 0x3FFF)),
    };
    let integer_digits = (weight + 1).max(1) * 4;
    // The sign and the point.
    usize::try_from(integer_digits + scale + 2).unwrap_or_default()
}
