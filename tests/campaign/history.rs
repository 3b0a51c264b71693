//! Everything that is known at the end: the ledger, the receivers' log, the faults, and what the database says.

use std::collections::HashMap;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::clock::{Clock, Micros};
use crate::faults::Fault;
use crate::ledger::{Entry, Token};
use crate::receivers::Arrival;
use crate::stage::Webhook;

pub(crate) struct History {
    pub(crate) ledger: HashMap<Token, Entry>,
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) webhooks: Vec<Webhook>,
    pub(crate) database: Database,
    /// Why it is not drained, if it is not.
    pub(crate) pending: Option<String>,
    /// The longest time in which the receivers' threads did not run.
    pub(crate) standstill: Micros,
    /// Requests that no delivery can explain.
    pub(crate) strays: Vec<String>,
    /// What else was found at the end: leaks, damage, processes that ended by themselves.
    pub(crate) leftovers: Vec<String>,
}

/// The database's own account.
#[derive(Default)]
pub(crate) struct Database {
    /// Token and type of each committed event.
    pub(crate) events: HashMap<Uuid, (Token, String)>,
    pub(crate) deliveries: HashMap<Uuid, Delivery>,
    pub(crate) attempts: HashMap<(Uuid, i32), Attempt>,
    /// What each registration calls itself.
    pub(crate) names: HashMap<Uuid, String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) event: Uuid,
    pub(crate) webhook: Uuid,
    pub(crate) status: String,
    pub(crate) attempts: i32,
    pub(crate) finished_at: Option<Micros>,
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) sidecar: Option<Uuid>,
    pub(crate) started_at: Micros,
    pub(crate) duration_ms: Option<i32>,
    pub(crate) status_code: Option<i32>,
    pub(crate) error_class: Option<String>,
    pub(crate) late: bool,
}

impl Attempt {
    /// Nobody ever said what came of it.
    pub(crate) fn is_unknown(&self) -> bool {
        self.error_class.as_deref() == Some("unknown")
    }

    pub(crate) fn ended_at(&self) -> Micros {
        self.started_at + i64::from(self.duration_ms.unwrap_or(0)) * crate::clock::MILLISECOND
    }
}

impl Database {
    pub(crate) async fn read(client: &Client, clock: Clock) -> Result<Database, tokio_postgres::Error> {
        const UNIX_US: &str = "(extract(epoch from {}) * 1000000)::bigint";
        let unix_us = |column: &str| UNIX_US.replace("{}", column);
        let mut database = Database::default();

        let sql = "select id, (payload ->> 'token')::bigint, event_type from orbhook.events where payload ? 'token'";
        for row in client.query(sql, &[]).await? {
            let token = u64::try_from(row.get::<_, i64>(1)).expect("tokens are positive");
            database.events.insert(row.get(0), (token, row.get(2)));
        }
        let sql = format!(
            "select id, event_id, webhook_id, status, attempts, {} from orbhook.deliveries",
            unix_us("finished_at")
        );
        for row in client.query(&sql, &[]).await? {
            let delivery = Delivery {
                event: row.get(1),
                webhook: row.get(2),
                status: row.get(3),
                attempts: row.get(4),
                finished_at: row.get::<_, Option<i64>>(5).map(|at| clock.at_unix(at)),
            };
            database.deliveries.insert(row.get(0), delivery);
        }
        let sql = format!(
            "select delivery_id, number, sidecar, {}, duration_ms, status_code, error_class, late from orbhook.attempts",
            unix_us("started_at")
        );
        for row in client.query(&sql, &[]).await? {
            let attempt = Attempt {
                sidecar: row.get(2),
                started_at: clock.at_unix(row.get(3)),
                duration_ms: row.get(4),
                status_code: row.get(5),
                error_class: row.get(6),
                late: row.get(7),
            };
            database.attempts.insert((row.get(0), row.get(1)), attempt);
        }
        for row in client.query("select id, name from orbhook.instances", &[]).await? {
            database.names.insert(row.get(0), row.get(1));
        }
        Ok(database)
    }

    /// What the process behind a registration is called; empty if that is not known.
    pub(crate) fn process(&self, sidecar: Uuid) -> &str {
        self.names.get(&sidecar).map_or("", String::as_str)
    }
}

impl History {
    /// All that is known about one delivery, in order of time.
    pub(crate) fn of_delivery(&self, delivery: Uuid) -> Vec<String> {
        let mut lines: Vec<(Micros, String)> = Vec::new();
        let mut token = None;
        for arrival in self.arrivals.iter().filter(|arrival| arrival.delivery == delivery) {
            token = Some(arrival.token);
            let Arrival { at, attempt, sidecar, reply, body_hash, webhook, .. } = arrival;
            let process = self.database.process(*sidecar);
            lines.push((
                *at,
                format!("receiver {webhook}: attempt {attempt} of {process} ({sidecar}), body {body_hash:016x}: {reply:?}"),
            ));
        }
        for ((_, number), attempt) in self.database.attempts.iter().filter(|((id, _), _)| *id == delivery) {
            let process = attempt.sidecar.map_or("", |sidecar| self.database.process(sidecar));
            lines.push((
                attempt.started_at,
                format!(
                    "database: attempt {number} of {process}: status {:?}, error {:?}, {:?} ms{}",
                    attempt.status_code,
                    attempt.error_class,
                    attempt.duration_ms,
                    if attempt.late { ", late" } else { "" }
                ),
            ));
        }
        if let Some(row) = self.database.deliveries.get(&delivery) {
            token = token.or_else(|| self.database.events.get(&row.event).map(|(token, _)| *token));
            let at = row.finished_at.unwrap_or(Micros::MAX);
            lines.push((at, format!("database: {} after {} claims", row.status, row.attempts)));
        }
        if let Some((token, entry)) = token.and_then(|token| Some((token, self.ledger.get(&token)?))) {
            lines.push((entry.at, format!("emitter: token {token} {:?}", entry.fate)));
        }
        let first = lines.iter().map(|(at, _)| *at).min().unwrap_or(0) - 20 * crate::clock::SECOND;
        let last = lines.iter().map(|(at, _)| *at).filter(|at| *at != Micros::MAX).max().unwrap_or(0);
        for fault in self.faults.iter().filter(|fault| fault.to >= first && fault.from <= last) {
            let Fault { kind, from, to, processes, registrations } = fault;
            let long_ms = to.saturating_sub(*from) / crate::clock::MILLISECOND;
            let whom = if processes.is_empty() { format!("{registrations:?}") } else { processes.join(", ") };
            lines.push((*from, format!("nemesis: {kind:?} for {long_ms} ms: {whom}")));
        }
        lines.sort();
        lines.into_iter().map(|(at, line)| format!("{} {line}", in_seconds(at))).collect()
    }
}

fn in_seconds(at: Micros) -> String {
    match at {
        Micros::MAX => "       end".to_owned(),
        at => format!(
            "{:>10}",
            format!("{}.{:03}", at / crate::clock::SECOND, at.abs() % crate::clock::SECOND / 1000)
        ),
    }
}
