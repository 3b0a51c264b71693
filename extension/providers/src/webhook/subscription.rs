//! `subscribedEvents`: names of event types, `PREFIX_*`, or `*` for all.

use serde_json::Value;

use super::ConfigError;
use super::keys::Keys;

const KEY: &str = "subscribedEvents";
const ENTRIES_MAX: usize = 1_000;
const NAME_CHARS_MAX: usize = 64;

pub(super) fn read(keys: &Keys<'_>) -> Result<Option<Vec<String>>, ConfigError> {
    let entries = match keys.get(KEY) {
        None => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            return Err(keys.fault(
                KEY,
                "is not an array",
                Some("give names as in [\"USER_CREATED\", \"PAYMENT_*\"]"),
            ));
        }
    };
    if entries.is_empty() {
        return Err(keys.fault(
            KEY,
            "is empty",
            Some("use [\"*\"] for every event, or active: false for none"),
        ));
    }
    if entries.len() > ENTRIES_MAX {
        return Err(keys.fault(KEY, "has more than 1000 entries", Some("use patterns such as USER_*, or *")));
    }
    let mut names: Vec<String> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let at = format!("{KEY}[{index}]");
        let Some(name) = entry.as_str() else { return Err(keys.fault(&at, "is not a text", None)) };
        if !is_pattern(name) {
            let hint = is_pattern(&name.to_uppercase())
                .then(|| format!("names are upper case: {}", name.to_uppercase()));
            let rule = "use upper-case words joined by _ (at most 64 characters), PREFIX_* or *";
            return Err(keys.fault(
                &at,
                "is neither the name of an event type nor a pattern",
                Some(hint.as_deref().unwrap_or(rule)),
            ));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(Some(names))
}

/// `*`, `USER_*` or `USER_CREATED`.
fn is_pattern(text: &str) -> bool {
    text.chars().count() <= NAME_CHARS_MAX
        && (text == "*" || is_name(text.strip_suffix("_*").unwrap_or(text)))
}

/// Upper-case words joined by `_`; the first begins with a letter.
fn is_name(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    text.starts_with(|first: char| first.is_ascii_uppercase()) && text.split('_').all(is_word)
}
