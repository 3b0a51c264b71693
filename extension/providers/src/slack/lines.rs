//! One bullet: a label, and a value on one line, cut and escaped.

use serde_json::{Map, Value};

use crate::clean::{isolate, one_line};
use crate::cut::cut;
use crate::escape::{escape, escaped_units};
use crate::event::filled;
use crate::json;
use crate::snake::snake_case;
use crate::time::Moment;

/// A longer value is cut, so that one value cannot push the others out of the message.
const VALUE_UNITS_MAX: usize = 500;
const LABEL_UNITS_MAX: usize = 60;
/// More further keys than this are a data dump, not a message.
pub(super) const FURTHER_LINES_MAX: usize = 25;
const LIST_ITEMS_MAX: usize = 20;

/// The bullets of a section, escaped.
#[derive(Default)]
pub(super) struct Lines(pub(super) Vec<String>);

impl Lines {
    /// Slack refuses an empty text, so a missing value has no line.
    pub(super) fn add(&mut self, label: &str, key: &str, value: Option<&Value>) {
        if let Some(words) = value.and_then(|value| words(key, value)) {
            self.0.push(format!("{label}: {words}"));
        }
    }

    pub(super) fn add_fields(&mut self, part: Option<&Map<String, Value>>, fields: &[(&str, &str)]) {
        for (key, label) in fields {
            self.add(label, key, part.and_then(|part| part.get(*key)));
        }
    }

    pub(super) fn add_measured(&mut self, label: &str, value: Option<&Value>, unit: Option<&Value>) {
        match (filled(value), filled(unit)) {
            (Some(value), Some(unit)) => self.add(label, "", Some(&Value::String(format!("{value} {unit}")))),
            _ => self.add(label, "", value),
        }
    }

    /// Keys of the producer's own; an object among them is opened once.
    pub(super) fn add_further<'p>(&mut self, entries: impl Iterator<Item = (&'p str, &'p Value)>) {
        let line_count_max = self.0.len() + FURTHER_LINES_MAX;
        for (key, value) in entries {
            match value {
                Value::Object(part) => {
                    for (inner_key, inner) in part.iter().take(FURTHER_LINES_MAX) {
                        self.add(&format!("{} {}", label(key), label(inner_key)), inner_key, Some(inner));
                    }
                }
                _ => self.add(&label(key), key, Some(value)),
            }
            if self.0.len() >= line_count_max {
                self.0.truncate(line_count_max);
                return;
            }
        }
    }
}

/// A value on one line, cut and escaped; `None` when there is nothing to show.
pub(super) fn words(key: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) if is_time(key) => {
            Moment::parse(text).map_or_else(|| text.clone(), Moment::to_words)
        }
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => list(items),
        Value::Array(_) | Value::Object(_) => value.to_string(),
        _ => json::scalar_text(value)?,
    };
    shown(&text, VALUE_UNITS_MAX)
}

fn list(items: &[Value]) -> String {
    let mut texts: Vec<String> = items.iter().filter_map(json::scalar_text).take(LIST_ITEMS_MAX).collect();
    if items.len() > LIST_ITEMS_MAX {
        texts.push(format!("… {} in all", items.len()));
    }
    texts.join(", ")
}

/// `orderId` gives `Order ID`.
pub(super) fn label(key: &str) -> String {
    let words: Vec<String> = snake_case(key).split('_').map(capitalise).collect();
    shown(&words.join(" "), LABEL_UNITS_MAX).unwrap_or_default()
}

fn capitalise(word: &str) -> String {
    if matches!(word, "id" | "ip" | "os" | "url" | "vpn" | "2fa") {
        return word.to_uppercase();
    }
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn shown(text: &str, units_max: usize) -> Option<String> {
    let line = one_line(text);
    // Two units are kept for the marks that isolate a line written right to left.
    let short = isolate(cut(&line, units_max - 2, escaped_units).into_owned());
    (!short.is_empty()).then(|| escape(&short))
}

fn is_time(key: &str) -> bool {
    let key = snake_case(key);
    ["_at", "_until", "_date", "_time"].iter().any(|end| key.ends_with(end))
        || matches!(key.as_str(), "timestamp" | "date" | "time")
}
