//! Reading one object of a configuration, key by key, with errors that name the key.

use serde_json::{Map, Value};

use super::ConfigError;
use crate::clean::one_line;
use crate::cut::{cut, utf16_units};

/// One object of the configuration and where it stands in it.
pub(crate) struct Keys<'a> {
    path: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(crate) fn top(map: &'a Map<String, Value>) -> Keys<'a> {
        Keys { path: "", map }
    }

    pub(crate) fn inside(path: &'static str, map: &'a Map<String, Value>) -> Keys<'a> {
        Keys { path, map }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// Refuses any key that is in none of the lists, and names the most similar one that is.
    pub(crate) fn only(&self, known: &[&[&str]]) -> Result<(), ConfigError> {
        let known: Vec<&str> = known.concat();
        let Some(unknown) = self.map.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
        let hint = match nearest(unknown, &known) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None if known.is_empty() => "this provider has no keys of its own".to_owned(),
            None => format!("the keys are {}", known.join(", ")),
        };
        Err(self.fault(unknown, "is not a known key", Some(&hint)))
    }

    /// A text without control characters; null counts as not given.
    pub(crate) fn text(&self, key: &str, chars_max: usize) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            Some(Value::Null) => Ok(None),
            _ => self.required_text(key, chars_max),
        }
    }

    /// As [`Keys::text`], but null is refused.
    pub(crate) fn required_text(&self, key: &str, chars_max: usize) -> Result<Option<&'a str>, ConfigError> {
        let text = match self.get(key) {
            None => return Ok(None),
            Some(Value::String(text)) => text.as_str(),
            Some(_) => return Err(self.fault(key, "is not a text", None)),
        };
        if text.trim().is_empty() {
            return Err(self.fault(key, "is empty", None));
        }
        if text.chars().count() > chars_max {
            return Err(self.fault(key, &format!("is longer than {chars_max} characters"), None));
        }
        if text.contains(char::is_control) {
            return Err(self.fault(key, "contains a control character", None));
        }
        Ok(Some(text))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.fault(key, "is neither true nor false", None)),
        }
    }

    /// An object; null counts as an empty one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Map<String, Value>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(Map::new())),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(_) => Err(self.fault(key, "is not an object", None)),
        }
    }

    pub(crate) fn fault(&self, key: &str, fault: &str, hint: Option<&str>) -> ConfigError {
        const KEY_UNITS_MAX: usize = 100;
        let key = cut(&one_line(key), KEY_UNITS_MAX, utf16_units).into_owned();
        let key = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
        ConfigError { key, fault: fault.to_owned(), hint: hint.map(str::to_owned) }
    }
}

/// The known key that a person most likely meant. Case and underscores do not count, so `max_retries` finds
/// `maxRetries`.
fn nearest<'k>(unknown: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |key: &str| -> String {
        key.chars()
            .filter(|character| character.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .take(100)
            .collect()
    };
    let unknown = plain(unknown);
    let distance = |key: &str| strsim::damerau_levenshtein(&unknown, &plain(key));
    let nearest = known.iter().min_by_key(|key| distance(key))?;
    // A third of the letters wrong is a typing error, more is another word.
    (distance(nearest) * 3 <= unknown.chars().count()).then_some(*nearest)
}
