//! Reading JSON that others wrote, with a limit on its depth.
//!
//! serde_json's own `Value` gives two keys a meaning: with `arbitrary_precision` and `raw_value` an object
//! that holds `$serde_json::private::RawValue` is parsed again from its string, each time with a fresh
//! recursion limit. A payload could use that to grow the stack until the server dies, so values are built
//! here, key by key.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Levels of nesting below the outermost value. serde_json itself refuses more than 127, the outermost
/// included.
pub(crate) const DEPTH_MAX: usize = 100;

/// Reads one object, at most [`DEPTH_MAX`] levels deep. Numbers keep every digit, a repeated key keeps its
/// last value.
///
/// The error says in words what is wrong and quotes nothing of the text.
pub(crate) fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    match parse(text)? {
        Value::Object(map) => Ok(map),
        _ => Err("is not a JSON object".to_owned()),
    }
}

/// Reads one value of any kind; otherwise as [`parse_object`].
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Level(0).deserialize(&mut reader).map_err(|error| in_words(&error))?;
    reader.end().map_err(|error| in_words(&error))?;
    Ok(value)
}

/// The text of a string, number or boolean; `None` for null, arrays and objects.
pub(crate) fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

const TOO_DEEP: &str = "is nested more than 100 levels deep";

fn in_words(error: &serde_json::Error) -> String {
    // Data errors come from the visitor below and carry a fixed text; the others name a line and a column
    // only.
    if error.is_data() {
        TOO_DEEP.to_owned()
    } else {
        format!("is not valid JSON at line {} column {}", error.line(), error.column())
    }
}

/// The key under which serde_json hands over a number when `arbitrary_precision` is on.
const NUMBER_KEY: &str = "$serde_json::private::Number";

struct Level(usize);

impl Level {
    fn deeper<E: Error>(&self) -> Result<Level, E> {
        if self.0 > DEPTH_MAX { Err(E::custom(TOO_DEEP)) } else { Ok(Level(self.0 + 1)) }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.deeper()?)?;
            map.insert(key, value);
        }
        Ok(as_number(&map).map_or(Value::Object(map), Value::Number))
    }
}

fn as_number(map: &Map<String, Value>) -> Option<Number> {
    match (map.len(), map.get(NUMBER_KEY)) {
        (1, Some(Value::String(digits))) => digits.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        for text in [
            "100.0",
            "1e400",
            "0.1234567890123456789012345678901234567890",
            "-0",
            "123456789012345678901234567890",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text.replace("1e400", "1e+400"));
        }
    }

    #[test]
    fn a_hundred_levels_below_the_outermost_are_read_and_one_more_is_refused() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels + 1), "]".repeat(levels + 1));
        assert!(parse(&nested(100)).is_ok());
        assert_eq!(parse(&nested(101)).unwrap_err(), "is nested more than 100 levels deep");
        assert!(parse(&nested(100_000)).is_err());
    }

    #[test]
    fn keys_that_serde_json_reserves_are_ordinary_keys() {
        let raw = r#"{"$serde_json::private::RawValue": "[[1]]"}"#;
        assert_eq!(parse(raw).unwrap()["$serde_json::private::RawValue"], "[[1]]");
        let number = r#"{"$serde_json::private::Number": "abc"}"#;
        assert_eq!(parse(number).unwrap()["$serde_json::private::Number"], "abc");
        assert!(parse(r#"{"$serde_json::private::Number": [1], "a": 2}"#).unwrap().is_object());
    }

    #[test]
    fn a_repeated_key_keeps_its_last_value() {
        assert_eq!(parse(r#"{"a": 1, "a": 2}"#).unwrap()["a"], 2);
    }

    #[test]
    fn a_fault_quotes_nothing_of_the_text() {
        let fault = parse_object(r#"{"card": 4111, oops}"#).unwrap_err();
        assert_eq!(fault, "is not valid JSON at line 1 column 16");
        assert_eq!(parse_object("[]").unwrap_err(), "is not a JSON object");
        assert!(parse_object("{} {}").is_err());
    }
}
