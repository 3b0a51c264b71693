//! What the caller of `orbhook_watch` says about a table.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Number, Value};

use crate::fault::Fault;
use crate::watch::source::Source;

/// Longest delay of clock-driven events, in seconds: 90 days.
const GRACE_SECONDS_MAX: u32 = 90 * 86_400;
/// Keys between dots of a payload path.
const PATH_KEYS_MAX: usize = 8;
const PATH_BYTES_MAX: usize = 200;
const COLUMNS_MAX: usize = 500;

/// The object as it is written; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mapping {
    /// Payload path to column; null: this path is not sent.
    pub(crate) payload: BTreeMap<String, Option<String>>,
    /// Signal to column; null: this signal is not looked for.
    pub(crate) signals: BTreeMap<String, Option<String>>,
    /// Status word to event type; null: this word means nothing.
    pub(crate) status: BTreeMap<String, Option<String>>,
    /// Columns that are never sent, whatever they are called.
    pub(crate) never: Vec<String>,
    /// Plan to rank; a higher one is an upgrade.
    pub(crate) rank: BTreeMap<String, Number>,
    pub(crate) user: Option<User>,
    /// Function of the table's row type that returns jsonb.
    pub(crate) payload_function: Option<String>,
    /// How long after a subscription's end the clock says so.
    pub(crate) grace_seconds: u32,
}

/// How a row's user is found: a column of this table, or that column and the table and key it refers to.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum User {
    Column(String),
    #[serde(rename_all = "snake_case")]
    Reference {
        column: String,
        table: Option<String>,
        key: Option<String>,
    },
}

impl User {
    pub(crate) fn column(&self) -> &str {
        match self {
            User::Column(column) | User::Reference { column, .. } => column,
        }
    }
}

impl Mapping {
    /// Reads the JSON text and checks what can be checked without the table.
    pub(crate) fn read(text: &str, source: &Source) -> Result<Mapping, Fault> {
        // Twice: serde's message for an untagged or unknown key is clearest on the value, and a repeated key is gone.
        let value: Value = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        if !value.is_object() {
            return Err(refused("not a JSON object"));
        }
        let mapping: Mapping = serde_json::from_value(value).map_err(|error| Fault::Argument {
            message: format!("mapping: {error}"),
            hint: Some(
                "keys: payload {path: column}, signals {signal: column}, status {word: event type}, never [column], \
                 rank {plan: number}, user, payload_function, grace_seconds"
                    .to_owned(),
            ),
        })?;
        mapping.check(source)?;
        Ok(mapping)
    }

    /// What was checked when it was stored; anything unreadable counts as not said.
    pub(crate) fn stored(text: &str) -> Mapping {
        serde_json::from_str(text).unwrap_or_default()
    }

    fn check(&self, source: &Source) -> Result<(), Fault> {
        if self.payload.len() > COLUMNS_MAX
            || self.never.len() > COLUMNS_MAX
            || self.status.len() > COLUMNS_MAX
        {
            return Err(refused(format!("more than {COLUMNS_MAX} entries")));
        }
        for path in self.payload.keys() {
            let keys: Vec<&str> = path.split('.').collect();
            if path.len() > PATH_BYTES_MAX
                || keys.len() > PATH_KEYS_MAX
                || keys.iter().any(|key| key.is_empty())
            {
                return Err(refused(format!(
                    "payload: {path:?} is no path; write keys joined by dots, at most {PATH_KEYS_MAX}"
                )));
            }
            if matches!(path.as_str(), "eventType" | "timestamp") {
                return Err(refused(format!("payload: {path} is orbhook's own; choose another path")));
            }
        }
        for signal in self.signals.keys() {
            if !source.signals().any(|known| known == signal) {
                let known: Vec<&str> = source.signals().collect();
                return Err(Fault::Argument {
                    message: format!("mapping: {} have no signal {signal:?}", source.name),
                    hint: Some(format!("signals: {}", known.join(", "))),
                });
            }
        }
        for (word, meaning) in &self.status {
            let Some(meaning) = meaning else { continue };
            if !source.events.iter().any(|event| event.name == meaning) {
                let known: Vec<&str> = source.events.iter().map(|event| event.name).collect();
                return Err(Fault::Argument {
                    message: format!("mapping: status {word:?} cannot mean {meaning:?}"),
                    hint: Some(format!("null, or one of {}", known.join(", "))),
                });
            }
        }
        if self.grace_seconds > GRACE_SECONDS_MAX {
            return Err(refused(format!("grace_seconds is at most {GRACE_SECONDS_MAX}")));
        }
        Ok(())
    }
}

fn refused(what: impl std::fmt::Display) -> Fault {
    Fault::argument(format!("mapping: {what}"))
}
