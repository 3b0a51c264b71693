//! What `/metrics` says of this process, by Prometheus' naming conventions. How the database stands is in [`crate::gauges`].
//!
//! Every label has a small, fixed set of values. Nothing here is a secret: no URL, no header, no text from a receiver.

use std::time::{Duration, SystemTime};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::delivery::{ErrorClass, Finished, Outcome};

pub(crate) const PREFIX: &str = "orbhook";

/// From what a receiver next door takes to what no request may take: 30 s.
const REQUEST_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a statement on an idle machine to the deadline of statements: 10 s.
const STATEMENT_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

/// Counters and gauges of one process. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_duration: Histogram,
    released: Counter,
    claimed: Counter,
    attempts: Family<AttemptLabels, Counter>,
    statement_duration: Family<StatementLabels, Histogram, fn() -> Histogram>,
    database_errors: Family<ConnectionLabels, Counter>,
    in_flight: Gauge,
    waiting: Gauge,
    unsettled: Gauge,
    ready: Gauge,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    /// `1xx` to `5xx`, or an [`ErrorClass`].
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AttemptLabels {
    verdict: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatementLabels {
    statement: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConnectionLabels {
    connection: &'static str,
}

/// What the database made of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    Retry,
    Failed,
    /// Its lease had gone to another attempt.
    Late,
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Delivered, Verdict::Retry, Verdict::Failed, Verdict::Late];

    fn as_str(self) -> &'static str {
        match self {
            Verdict::Delivered => "delivered",
            Verdict::Retry => "retry",
            Verdict::Failed => "failed",
            Verdict::Late => "late",
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        let metrics = Metrics {
            requests: Family::default(),
            request_duration: Histogram::new(REQUEST_SECONDS),
            released: Counter::default(),
            claimed: Counter::default(),
            attempts: Family::default(),
            statement_duration: Family::new_with_constructor(|| Histogram::new(STATEMENT_SECONDS)),
            database_errors: Family::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            unsettled: Gauge::default(),
            ready: Gauge::default(),
        };
        // A counter that appears with its first failure has no rate for it: all are there from the start, at 0.
        for outcome in OUTCOMES.into_iter().chain(ErrorClass::ALL.map(ErrorClass::as_str)) {
            drop(metrics.requests.get_or_create(&RequestLabels { outcome }));
        }
        for connection in CONNECTIONS {
            drop(metrics.database_errors.get_or_create(&ConnectionLabels { connection }));
        }
        for verdict in Verdict::ALL {
            drop(metrics.attempts.get_or_create(&AttemptLabels { verdict: verdict.as_str() }));
        }
        metrics
    }
}

/// What connections are for.
const CONNECTIONS: [&str; 4] = ["wake", "claim", "settle", "upkeep"];

const OUTCOMES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// An attempt is over: sent, or given back unsent.
    pub(crate) fn finished(&self, finished: &Finished) {
        let outcome = match &finished.outcome {
            Outcome::Released | Outcome::Parked(_) => {
                self.released.inc();
                return;
            }
            Outcome::Answered(answer) => status_class(answer.status),
            Outcome::Unanswered(fault) => fault.class.as_str(),
        };
        self.requests.get_or_create(&RequestLabels { outcome }).inc();
        self.request_duration.observe(finished.duration.as_secs_f64());
    }

    pub(crate) fn claimed(&self, deliveries: usize) {
        self.claimed.inc_by(deliveries as u64);
    }

    pub(crate) fn settled(&self, verdict: Verdict, attempts: usize) {
        self.attempts.get_or_create(&AttemptLabels { verdict: verdict.as_str() }).inc_by(attempts as u64);
    }

    /// A statement came back. `statement`: one of a few names, never SQL.
    pub(crate) fn statement(&self, statement: &'static str, took: Duration) {
        self.statement_duration.get_or_create(&StatementLabels { statement }).observe(took.as_secs_f64());
    }

    /// A connection could not be made, or a statement on it failed. `connection`: what it is for.
    pub(crate) fn database_error(&self, connection: &'static str) {
        self.database_errors.get_or_create(&ConnectionLabels { connection }).inc();
    }

    /// Requests under way, deliveries claimed and not yet dialled, results the database does not have yet.
    pub(crate) fn level(&self, in_flight: usize, waiting: usize, unsettled: usize) {
        let to_i64 = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.in_flight.set(to_i64(in_flight));
        self.waiting.set(to_i64(waiting));
        self.unsettled.set(to_i64(unsettled));
    }

    pub(crate) fn ready(&self, is_ready: bool) {
        self.ready.set(is_ready.into());
    }

    /// A registry that holds them. The texts end without a full stop: the library adds it.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let started = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        started.set(since_epoch.as_secs_f64());
        registry.register_with_unit(
            "process_start_time",
            "When this process started, in seconds since 1970",
            Unit::Seconds,
            started,
        );
        let ours = registry.sub_registry_with_prefix(PREFIX);
        ours.register(
            "build",
            "The version of this sidecar",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        ours.register(
            "requests",
            "Requests that are over, by the class of the answer's status or by what went wrong",
            self.requests.clone(),
        );
        ours.register_with_unit(
            "request_duration",
            "From dialling to the last byte of the answer, or to giving up",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        ours.register(
            "deliveries_claimed",
            "Deliveries this sidecar was given by the database",
            self.claimed.clone(),
        );
        ours.register(
            "deliveries_released",
            "Deliveries given back unsent: too little of the lease was left, or too late for their moment",
            self.released.clone(),
        );
        ours.register(
            "attempts",
            "Attempts whose result the database has, by what it made of them: delivered, retry, failed, late (the lease had gone to another attempt)",
            self.attempts.clone(),
        );
        ours.register_with_unit(
            "statement_duration",
            "How long the database took to answer, by statement",
            Unit::Seconds,
            self.statement_duration.clone(),
        );
        ours.register(
            "database_errors",
            "Failed tries to connect and failed statements, by what the connection is for",
            self.database_errors.clone(),
        );
        ours.register("requests_in_flight", "Requests under way", self.in_flight.clone());
        ours.register(
            "deliveries_waiting",
            "Deliveries claimed and not dialled yet: paced, or waiting for a slot",
            self.waiting.clone(),
        );
        ours.register("results_unsettled", "Results the database does not have yet", self.unsettled.clone());
        ours.register(
            "ready",
            "1 while this sidecar is registered and its results reach the database, as /readyz",
            self.ready.clone(),
        );
    }
}

fn status_class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        // An HTTP parser takes any three digits; what is no known class is no success.
        _ => "5xx",
    }
}
