//! Reports what attempts came to. Facts go in; what they mean (delivered, retry, failed) is decided in SQL.
//!
//! A result is kept until the database has it: a delivery whose outcome is lost is sent again. A result that comes too late is
//! recorded and changes nothing, so it is never wrong to report one.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, timeout_at},
};
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    campaign::{self, Bug, Point},
    db::Db,
    delivery::{Finished, Outcome, Ticket},
    error::DatabaseError,
    link::Link,
    metrics::{Metrics, Verdict},
};

/// Results in one statement. `orbhook.settle` takes 1,000; half of that is as fast and holds locks half as long.
const BATCH_MAX: usize = 500;

/// How long the first result of a batch waits for others. Well under what a receiver takes to answer.
const BATCH_WAIT: Duration = Duration::from_millis(5);

const SETTLE: &str = "\
SELECT delivery_id, attempt, status, late, due_in_ms, reason
FROM orbhook.settle($1, $2::pg_catalog.text::pg_catalog.jsonb)";

/// What the settling task tells the worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Results reach the database, and none are left from a time when they did not.
    Up,
    Down,
    /// So many results are off our hands.
    Settled {
        count: usize,
    },
}

/// Settles what arrives until the channel is closed and everything is settled.
pub(crate) async fn settle_all(
    mut link: Link,
    mut results: UnboundedReceiver<Finished>,
    reports: UnboundedSender<Report>,
) {
    // Reports go nowhere once the worker is stopping; the results still matter.
    let report = |report: Report| drop(reports.send(report));
    let mut is_up = false;
    link.connected().await;
    loop {
        if !is_up && results.is_empty() {
            report(Report::Up);
            is_up = true;
        }
        let Some(batch) = collect(&mut results).await else { break };
        // Newest last, so that a batch that is split keeps its order.
        let mut waiting: Vec<Vec<Finished>> = split_by_sidecar(batch);
        while let Some(batch) = waiting.pop() {
            let db = link.connected().await;
            campaign::pass(Point::BeforeSettle);
            let asked_at = Instant::now();
            match settle(db, &batch).await {
                Ok(rows) => {
                    campaign::pass(Point::AfterSettle);
                    link.worked(asked_at.elapsed());
                    count_rows(&rows, &batch, link.metrics());
                    log_rows(&rows, &batch);
                    report(Report::Settled { count: batch.len() });
                }
                Err(error) if campaign::has(Bug::SwallowedSettleError) => {
                    report(Report::Settled { count: batch.len() });
                    link.failed(error).await;
                }
                Err(error) if error.ends_connection() || error.is_passing() => {
                    if is_up {
                        report(Report::Down);
                        is_up = false;
                    }
                    waiting.push(batch);
                    link.failed(error).await;
                }
                Err(error) => match halve(batch) {
                    Ok(halves) => waiting.extend(halves),
                    Err(one) => {
                        let Ticket { delivery, attempt, webhook, .. } = one.ticket;
                        tracing::error!(%delivery, attempt, %webhook, %error,
                            "a result cannot be settled; the delivery comes back when its lease ends");
                        report(Report::Settled { count: 1 });
                    }
                },
            }
        }
    }
    link.close().await;
}

/// A row worth a line in the log.
#[derive(Debug)]
struct Settled {
    delivery: Uuid,
    attempt: i32,
    status: String,
    late: bool,
    due_in: Option<Duration>,
    reason: Option<String>,
}

impl Settled {
    fn verdict(&self) -> Verdict {
        match self.status.as_str() {
            _ if self.late => Verdict::Late,
            "delivered" => Verdict::Delivered,
            "pending" => Verdict::Retry,
            _ => Verdict::Failed,
        }
    }
}

/// All of one batch, in one transaction. The results must be of one sidecar.
async fn settle(db: &Db, batch: &[Finished]) -> Result<Vec<Settled>, DatabaseError> {
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    let results = to_json(batch, Instant::now());
    let rows = db.query(SETTLE, &[(&first.ticket.sidecar, Type::UUID), (&results, Type::TEXT)]).await?;
    rows.iter()
        .map(|row| {
            Ok(Settled {
                delivery: row.try_get(0)?,
                attempt: row.try_get(1)?,
                status: row.try_get(2)?,
                late: row.try_get(3)?,
                due_in: row
                    .try_get::<_, Option<i32>>(4)?
                    .map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
                reason: row.try_get(5)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .or_else(|error| {
            // The statement is committed; only its report cannot be read. Asking again would change nothing.
            tracing::error!(%error, "orbhook.settle returned rows that cannot be read");
            Ok(Vec::new())
        })
}

async fn collect(results: &mut UnboundedReceiver<Finished>) -> Option<Vec<Finished>> {
    let mut batch = Vec::new();
    if results.recv_many(&mut batch, BATCH_MAX).await == 0 {
        return None;
    }
    let until = Instant::now() + BATCH_WAIT;
    while batch.len() < BATCH_MAX {
        let room = BATCH_MAX - batch.len();
        match timeout_at(until, results.recv_many(&mut batch, room)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    Some(batch)
}

/// A statement settles for one sidecar. Ids change only when the database was lost, so this is one part nearly always.
fn split_by_sidecar(batch: Vec<Finished>) -> Vec<Vec<Finished>> {
    let mut parts: HashMap<Uuid, Vec<Finished>> = HashMap::new();
    for finished in batch {
        parts.entry(finished.ticket.sidecar).or_default().push(finished);
    }
    parts.into_values().collect()
}

/// A batch the database refuses is split until the one result that offends stands alone.
fn halve(mut batch: Vec<Finished>) -> Result<[Vec<Finished>; 2], Box<Finished>> {
    if batch.len() > 1 {
        let second = batch.split_off(batch.len() / 2);
        return Ok([second, batch]);
    }
    match batch.pop() {
        Some(one) => Err(Box::new(one)),
        None => Ok([Vec::new(), Vec::new()]),
    }
}

/// What the database has no row for was delivered, or was given back and has no result.
fn count_rows(rows: &[Settled], batch: &[Finished], metrics: &Metrics) {
    let count = |verdict: Verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
    let released = batch.iter().filter(|finished| matches!(finished.outcome, Outcome::Released)).count();
    for verdict in [Verdict::Retry, Verdict::Failed, Verdict::Late] {
        metrics.settled(verdict, count(verdict));
    }
    let without_success = rows.len() - count(Verdict::Delivered);
    metrics.settled(Verdict::Delivered, batch.len().saturating_sub(released + without_success));
}

fn log_rows(rows: &[Settled], batch: &[Finished]) {
    for row in rows {
        let finished = batch.iter().find(|finished| {
            finished.ticket.delivery == row.delivery && finished.ticket.attempt == row.attempt
        });
        let webhook = finished.map(|finished| tracing::field::display(finished.ticket.webhook));
        let reason = row.reason.as_deref().unwrap_or("");
        let Settled { delivery, attempt, status, late, due_in, .. } = row;
        let due_in_ms = due_in.map(ms);
        if *late {
            tracing::warn!(%delivery, attempt, webhook, status, "late result: {reason}");
        } else if status == "parked" {
            tracing::warn!(%delivery, attempt, webhook, reason, "parked");
        } else if due_in_ms.is_some() {
            tracing::info!(%delivery, attempt, webhook, status, due_in_ms, reason, "attempt failed; will be tried again");
        } else if status == "delivered" {
            tracing::info!(%delivery, attempt, webhook, status, reason, "delivered, with a remark");
        } else {
            tracing::warn!(%delivery, attempt, webhook, status, reason, "delivery ended without success");
        }
    }
}

/// One element of what `orbhook.settle` takes. Times in milliseconds, relative to now.
#[derive(Serialize)]
struct Element<'a> {
    delivery: String,
    attempt: i32,
    outcome: &'static str,
    started_ago_ms: u64,
    duration_ms: u64,
    connect_ms: Option<u64>,
    first_byte_ms: Option<u64>,
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<&'a std::collections::BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_cut: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn to_json(batch: &[Finished], now: Instant) -> String {
    let elements: Vec<Element<'_>> = batch.iter().map(|finished| to_element(finished, now)).collect();
    // Strings and integers only: there is nothing that could fail to serialize.
    serde_json::to_string(&elements).unwrap_or_else(|_| "[]".to_owned())
}

fn to_element(finished: &Finished, now: Instant) -> Element<'_> {
    let element = Element {
        delivery: finished.ticket.delivery.to_string(),
        attempt: finished.ticket.attempt,
        outcome: "released",
        started_ago_ms: ms(now.saturating_duration_since(finished.started)),
        duration_ms: ms(finished.duration),
        connect_ms: finished.wire.connect.map(ms),
        first_byte_ms: finished.wire.first_byte.map(ms),
        address: finished.wire.address.map(|address| address.to_string()),
        status: None,
        headers: None,
        body: None,
        body_cut: None,
        error_class: None,
        error: None,
    };
    match &finished.outcome {
        Outcome::Released => element,
        Outcome::Answered(answer) => Element {
            outcome: "answered",
            status: Some(answer.status),
            headers: Some(&answer.headers),
            body: Some(&answer.body),
            body_cut: Some(answer.body_cut),
            ..element
        },
        Outcome::Parked(fault) => Element {
            outcome: "parked",
            error_class: Some(fault.class.as_str()),
            error: Some(&fault.reason),
            ..element
        },
        Outcome::Unanswered(fault) => Element {
            outcome: "unanswered",
            error_class: Some(fault.class.as_str()),
            error: Some(&fault.reason),
            ..element
        },
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::delivery::{Answer, ErrorClass, Fault, Wire};

    fn finished(n: u128, outcome: Outcome) -> Finished {
        let ticket = Ticket {
            delivery: Uuid::from_u128(n),
            attempt: 2,
            webhook: Uuid::from_u128(7),
            sidecar: Uuid::from_u128(n % 2),
        };
        Finished { ticket, started: Instant::now(), duration: Duration::ZERO, outcome, wire: Wire::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_written_the_way_settle_reads_them() {
        let answer = Answer {
            status: 200,
            headers: BTreeMap::from([("retry-after".to_owned(), "5".to_owned())]),
            body: "ok \u{1F600}".to_owned(),
            body_cut: true,
        };
        let mut first = finished(1, Outcome::Answered(answer));
        first.duration = Duration::from_millis(12);
        first.wire = Wire {
            address: Some("[2001:db8::1]:443".parse().unwrap()),
            connect: Some(Duration::from_millis(3)),
            first_byte: Some(Duration::from_millis(9)),
        };
        let second = finished(2, Outcome::Unanswered(Fault::new(ErrorClass::TimeoutFirstByte, "slow")));
        let third = finished(3, Outcome::Released);
        let fourth = finished(4, Outcome::Parked(Fault::new(ErrorClass::Key, "no key")));
        tokio::time::advance(Duration::from_millis(250)).await;
        let json: serde_json::Value =
            serde_json::from_str(&to_json(&[first, second, third, fourth], Instant::now())).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                {"delivery": Uuid::from_u128(1).to_string(), "attempt": 2, "outcome": "answered", "started_ago_ms": 250, "duration_ms": 12,
                 "connect_ms": 3, "first_byte_ms": 9, "address": "[2001:db8::1]:443", "status": 200,
                 "headers": {"retry-after": "5"}, "body": "ok \u{1F600}", "body_cut": true},
                {"delivery": Uuid::from_u128(2).to_string(), "attempt": 2, "outcome": "unanswered", "started_ago_ms": 250, "duration_ms": 0,
                 "connect_ms": null, "first_byte_ms": null, "address": null, "error_class": "timeout_first_byte", "error": "slow"},
                {"delivery": Uuid::from_u128(3).to_string(), "attempt": 2, "outcome": "released", "started_ago_ms": 250, "duration_ms": 0,
                 "connect_ms": null, "first_byte_ms": null, "address": null},
                {"delivery": Uuid::from_u128(4).to_string(), "attempt": 2, "outcome": "parked", "started_ago_ms": 250, "duration_ms": 0,
                 "connect_ms": null, "first_byte_ms": null, "address": null, "error_class": "key", "error": "no key"},
            ])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_five_milliseconds_and_holds_five_hundred() {
        let (sender, mut receiver) = unbounded_channel();
        for n in 0..501 {
            sender.send(finished(n, Outcome::Released)).unwrap();
        }
        let begun = Instant::now();
        assert_eq!(collect(&mut receiver).await.unwrap().len(), 500);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(collect(&mut receiver).await.unwrap().len(), 1);
        assert!(begun.elapsed() >= BATCH_WAIT && begun.elapsed() < 2 * BATCH_WAIT);
        drop(sender);
        assert!(collect(&mut receiver).await.is_none());
    }

    #[tokio::test]
    async fn a_refused_batch_is_split_down_to_the_one_result_that_offends() {
        let mut waiting = vec![(0..7).map(|n| finished(n, Outcome::Released)).collect::<Vec<_>>()];
        let mut alone = Vec::new();
        while let Some(batch) = waiting.pop() {
            match halve(batch) {
                Ok(halves) => waiting.extend(halves),
                Err(one) => alone.push(one.ticket.delivery.as_u128()),
            }
        }
        assert_eq!(alone, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[tokio::test]
    async fn results_of_two_registrations_are_settled_apart() {
        let parts = split_by_sidecar((0..6).map(|n| finished(n, Outcome::Released)).collect());
        assert_eq!(parts.len(), 2);
        for part in parts {
            assert!(part.iter().all(|finished| finished.ticket.sidecar == part[0].ticket.sidecar));
        }
    }
}
