//! Which column is what: the mapping first, the usual names otherwise.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::watch::mapping::Mapping;
use crate::watch::source::{Event, Source};

/// Names offered in a hint.
const NEAREST_LISTED_MAX: usize = 3;
/// Words in a column's name that make it a secret: never sent, mapped or not. Compared with the name in lower case.
const SECRET: &[&str] = &[
    "passw",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "private_key",
    "access_key",
    "credential",
    "salt",
    "_hash",
    "hash_",
    "digest",
    "encrypted",
    "otp_backup",
    "otp_seed",
    "backup_code",
    "recovery_code",
    "session_id",
    "session_key",
    "cookie",
    "cvv",
    "cvc",
    "card_number",
    "pin_code",
    "security_answer",
    "signature",
];

/// A column of the table, as the caller may use it.
pub(crate) struct Known {
    pub(crate) name: String,
    /// Whether the table's owner may read it.
    pub(crate) readable: bool,
}

/// What was found; stored with the watch.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Resolved {
    /// Payload path to column; several columns are the parts of a composite key.
    pub(crate) paths: BTreeMap<String, Vec<String>>,
    pub(crate) signals: BTreeMap<String, String>,
    /// Columns of the primary key.
    #[serde(default)]
    pub(crate) key: Vec<String>,
}

pub(crate) fn resolve(
    source: &Source,
    mapping: &Mapping,
    known: &[Known],
    key: &[String],
) -> Result<Resolved, Fault> {
    let mut resolved = Resolved { key: key.to_vec(), ..Resolved::default() };
    let user = mapping.user.as_ref().map(|user| user.column());
    for column in mapping
        .payload
        .values()
        .chain(mapping.signals.values())
        .flatten()
        .map(String::as_str)
        .chain(mapping.never.iter().map(String::as_str))
        .chain(user)
    {
        exists(column, known)?;
    }
    for (path, column) in &mapping.payload {
        let Some(column) = column else { continue };
        if is_secret(column) {
            return Err(Fault::argument(format!(
                "mapping: column {column:?} looks like a password, key or token; such columns are never sent"
            )));
        }
        if mapping.never.contains(column) {
            return Err(Fault::argument(format!(
                "mapping: column {column:?} is listed under never and under payload"
            )));
        }
        if !readable(column, known) {
            return Err(Fault::Forbidden(format!("the table's owner may not read column {column:?}")));
        }
        resolved.paths.insert(path.clone(), vec![column.clone()]);
    }
    for field in source.fields {
        let usual = || {
            field
                .names
                .iter()
                .find_map(|name| known.iter().find(|column| column.name == *name))
                .map(|column| column.name.clone())
        };
        let by_user = || user.filter(|_| field.signal == Some("user")).map(str::to_owned);
        let by_path = field.path.and_then(|path| mapping.payload.get(path));
        let by_signal = field.signal.and_then(|signal| mapping.signals.get(signal));
        if let Some(signal) = field.signal {
            let column = match (by_signal, by_path) {
                (Some(said), _) => said.clone(),
                (None, Some(Some(said))) => Some(said.clone()),
                _ => by_user().or_else(usual),
            };
            if let Some(column) = column {
                resolved.signals.insert(signal.to_owned(), column);
            }
        }
        if let Some(path) = field.path
            && by_path.is_none()
        {
            let column = by_signal.cloned().flatten().or_else(by_user).or_else(usual);
            let columns = match column {
                Some(column) => vec![column],
                // No column has a usual name: the primary key is the id.
                None if field.signal == Some("id") => key.to_vec(),
                None => Vec::new(),
            };
            let sendable = |column: &String| {
                !is_secret(column) && !mapping.never.contains(column) && readable(column, known)
            };
            if !columns.is_empty() && columns.iter().all(sendable) {
                resolved.paths.insert(path.to_owned(), columns);
            }
        }
    }
    // One column under two paths is one too many: a plan_id that had to serve as the plan's name is no group id as well.
    if let (Some(name), Some(id)) =
        (resolved.paths.get("subscription.groupName"), resolved.paths.get("subscription.groupId"))
        && name == id
        && !mapping.payload.contains_key("subscription.groupId")
    {
        resolved.paths.remove("subscription.groupId");
    }
    Ok(resolved)
}

impl Resolved {
    /// Columns the event depends on; `None` if one it needs is missing.
    pub(crate) fn columns_for(
        &self,
        event: &Event,
        source: &Source,
        mapping: &Mapping,
    ) -> Option<Vec<String>> {
        let mut columns = BTreeSet::new();
        for group in event.needs {
            if *group == ["*"] {
                columns.extend(self.described(source).into_iter().map(str::to_owned));
            } else {
                columns.extend(group.iter().filter_map(|signal| self.signals.get(*signal)).cloned());
                let ranked = group.contains(&"rank") && !mapping.rank.is_empty();
                if !ranked && !group.iter().any(|signal| self.signals.contains_key(*signal)) {
                    return None;
                }
            }
        }
        if event.needs.is_empty() || *event.needs == [&["*"][..]] {
            if !event.needs.is_empty() && columns.is_empty() {
                return None;
            }
            columns.extend(
                self.signals
                    .iter()
                    .filter(|(name, _)| deciding(event, name))
                    .map(|(_, column)| column.clone()),
            );
        }
        Some(columns.into_iter().collect())
    }

    /// Columns whose change is a profile update.
    pub(crate) fn described(&self, source: &Source) -> Vec<&str> {
        self.paths
            .iter()
            .filter(|(path, _)| source.field_of_path(path).is_none_or(|field| field.described))
            .flat_map(|(_, columns)| columns.iter().map(String::as_str))
            .collect()
    }

    /// Columns an UPDATE has to change to be of interest.
    pub(crate) fn decisive(&self, source: &Source) -> BTreeSet<&str> {
        let mut columns: BTreeSet<&str> = source
            .watched_signals()
            .filter_map(|signal| self.signals.get(signal))
            .map(String::as_str)
            .collect();
        if source.events.iter().any(|event| event.needs.iter().any(|group| *group == ["*"])) {
            columns.extend(self.described(source));
        }
        if source.name == "subscriptions" {
            // A timer finds its row again by its key.
            columns.extend(self.key.iter().map(String::as_str));
        }
        columns
    }

    pub(crate) fn columns(&self) -> BTreeSet<&str> {
        let paths = self.paths.values().flatten();
        paths.chain(self.signals.values()).chain(&self.key).map(String::as_str).collect()
    }
}

/// Why an event will not be emitted, and what would help.
pub(crate) fn missing(event: &Event, source: &Source, resolved: &Resolved) -> String {
    let lacking =
        event.needs.iter().find(|group| !group.iter().any(|signal| resolved.signals.contains_key(*signal)));
    let group: &[&str] = lacking.copied().unwrap_or_default();
    let names: Vec<&str> = source
        .fields
        .iter()
        .filter(|field| field.signal.is_some_and(|signal| group.contains(&signal)))
        .flat_map(|field| field.names.iter().copied())
        .collect();
    let signal = group.first().copied().unwrap_or_default();
    format!(
        "{} is not emitted: found no column for {} (looked for {}); name one with {{\"signals\": {{\"{signal}\": \"column\"}}}}",
        event.name,
        group.join(" or "),
        names.join(", "),
    )
}

fn deciding(event: &Event, signal: &str) -> bool {
    (signal == "id" && event.needs.is_empty())
        || (signal == "deleted" && event.name.ends_with("_DELETED"))
        || (signal == "deleted" && event.name.ends_with("_REMOVED"))
        || (signal == "status" && event.name == "PAYMENT_RECEIVED")
}

fn is_secret(column: &str) -> bool {
    let lower = column.to_lowercase();
    SECRET.iter().any(|word| lower.contains(word))
        || matches!(lower.as_str(), "hash" | "pin" | "ssn" | "iban" | "otp")
}

fn readable(column: &str, known: &[Known]) -> bool {
    known.iter().any(|known| known.name == column && known.readable)
}

fn exists(column: &str, known: &[Known]) -> Result<(), Fault> {
    if known.iter().any(|known| known.name == column) {
        return Ok(());
    }
    let mut nearest: Vec<(usize, &str)> = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(column, &known.name), known.name.as_str()))
        .collect();
    nearest.sort_unstable();
    let offered: Vec<&str> = nearest.into_iter().take(NEAREST_LISTED_MAX).map(|(_, name)| name).collect();
    Err(Fault::Argument {
        message: format!("mapping: the table has no column {column:?}"),
        hint: Some(format!("nearest: {}", offered.join(", "))),
    })
}
