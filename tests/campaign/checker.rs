//! The ten invariants, and what breaks them.

mod repeats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use crate::clock::{MILLISECOND, Micros, SECOND};
use crate::faults::{Excuses, Fault, Kind};
use crate::history::History;
use crate::ledger::{Fate, Token};
use crate::receivers::{Arrival, Reply};
use crate::stage::Webhook;

/// What always holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// What was acknowledged, and every committed row, was accepted by a receiver.
    NothingIsLost,
    /// What a receiver got is a committed row's, claimed as that attempt, sent to its own endpoint.
    NothingIsInvented,
    /// What was rolled back is never seen.
    RolledBackStaysSilent,
    /// One id, one body; one event and webhook, one id.
    AnIdIsOneMessage,
    /// No attempt begins after a success was recorded.
    SuccessIsFinal,
    /// A second request after an accepted one has a fault behind it that hit its sidecar or the server.
    DuplicatesHaveACause,
    /// No second holds more than the limit and one.
    RateLimitHolds,
    /// What the database says of an attempt is what its receiver did.
    RecordsAreTrue,
    /// At the end nothing is pending. If something is, the rest of the verdict is not about it.
    EverythingDrains,
    /// No damage, no connection, lock or prepared transaction left behind; memory is bounded; emitters are not disturbed.
    NothingLeaks,
}

pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
    pub(crate) delivery: Option<Uuid>,
    /// For the order.
    pub(crate) at: Micros,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    pub(crate) accepted: usize,
    pub(crate) duplicates: BTreeMap<String, usize>,
    pub(crate) ambiguous_committed: usize,
    pub(crate) early_lost: usize,
    /// The most requests to a webhook with a limit within so long; None: the machine was too busy to tell.
    pub(crate) rate_window: Option<Micros>,
    pub(crate) rate_most: usize,
}

/// The database's times and the receivers' come from one clock, but not from one moment.
const CLOCK_SLACK: Micros = 250 * MILLISECOND;

/// How long before an attempt is recorded as begun it may have been claimed: a paced one waits for its moment, a quarter of a
/// second at most.
const CLAIMED_BEFORE: Micros = 500 * MILLISECOND;

/// A request may have been on its way, or its receiver busy, for so long after its sidecar was gone.
const ARRIVES_WITHIN: Micros = 2 * SECOND;

/// A process that lives on has this long to report an outcome.
const REPORT_WITHIN: Micros = 30 * SECOND;

pub(crate) fn check(history: &History) -> Verdict {
    let mut checker = Checker::new(history);
    checker.events();
    checker.arrivals();
    checker.deliveries();
    checker.attempts();
    checker.rates();
    if let Some(pending) = &history.pending {
        checker.violate(Invariant::EverythingDrains, pending.clone(), None, Micros::MAX);
    }
    for stray in &history.strays {
        checker.violate(Invariant::NothingIsInvented, stray.clone(), None, 0);
    }
    for leftover in &history.leftovers {
        checker.violate(Invariant::NothingLeaks, leftover.clone(), None, Micros::MAX);
    }
    checker.verdict.violations.sort_by_key(|violation| violation.at);
    checker.verdict
}

struct Checker<'a> {
    history: &'a History,
    excuses: Excuses,
    /// What came for each delivery, in order.
    by_delivery: HashMap<Uuid, Vec<&'a Arrival>>,
    /// Committed tokens, with their event.
    committed: HashMap<Token, Uuid>,
    /// While a standby lagged that was promoted then: the database lost what was acknowledged in these times.
    lost_times: Vec<(Micros, Micros)>,
    verdict: Verdict,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Checker<'a> {
        let mut by_delivery: HashMap<Uuid, Vec<&Arrival>> = HashMap::new();
        for arrival in &history.arrivals {
            by_delivery.entry(arrival.delivery).or_default().push(arrival);
        }
        let committed = history.database.events.iter().map(|(id, (token, _))| (*token, *id)).collect();
        let lagging = history.faults.iter().filter(|fault| fault.kind == Kind::PromotedLagging);
        let lost_times = lagging.map(|Fault { from, to, .. }| (*from - SECOND, *to + SECOND)).collect();
        let excuses = Excuses::of(&history.faults);
        let verdict = Verdict::default();
        Checker { history, excuses, by_delivery, committed, lost_times, verdict }
    }

    fn violate(&mut self, invariant: Invariant, what: String, delivery: Option<Uuid>, at: Micros) {
        self.verdict.violations.push(Violation { invariant, what, delivery, at });
    }

    fn is_lost_time(&self, at: Micros) -> bool {
        self.lost_times.iter().any(|(from, to)| (*from..=*to).contains(&at))
    }

    /// The ledger against the database.
    fn events(&mut self) {
        let history = self.history;
        let mut queued: HashMap<Uuid, HashSet<Uuid>> = HashMap::new();
        for delivery in history.database.deliveries.values() {
            queued.entry(delivery.event).or_default().insert(delivery.webhook);
        }
        for (token, entry) in &history.ledger {
            let event = self.committed.get(token).copied();
            match (entry.fate, event) {
                (Fate::Acked, None) if !self.is_lost_time(entry.at) => self.violate(
                    Invariant::NothingIsLost,
                    format!("token {token} was acknowledged and is not in the database"),
                    None,
                    entry.at,
                ),
                (Fate::RolledBack | Fate::Intended, Some(_)) => self.violate(
                    Invariant::RolledBackStaysSilent,
                    format!("token {token} is {:?} and is in the database", entry.fate),
                    None,
                    entry.at,
                ),
                (Fate::Ambiguous, Some(_)) => self.verdict.ambiguous_committed += 1,
                (Fate::AckedEarly, None) => self.verdict.early_lost += 1,
                _ => {}
            }
            let Some(event) = event else { continue };
            let subscribed = |webhook: &&Webhook| webhook.event_types.contains(&entry.event_type);
            for webhook in history.webhooks.iter().filter(subscribed) {
                if !queued.get(&event).is_some_and(|queued| queued.contains(&webhook.id)) {
                    self.violate(
                        Invariant::NothingIsLost,
                        format!("token {token} is committed and has no delivery for webhook {}", webhook.id),
                        None,
                        entry.at,
                    );
                }
            }
        }
    }

    /// What the receivers got against the ledger and the database.
    fn arrivals(&mut self) {
        let mut bodies: HashMap<Uuid, &Arrival> = HashMap::new();
        let mut ids: HashMap<(Token, usize), Uuid> = HashMap::new();
        let mut seen: HashSet<(Uuid, i32)> = HashSet::new();
        for arrival in &self.history.arrivals {
            let Arrival { at, webhook, delivery, attempt, token, .. } = *arrival;
            self.verdict.accepted += usize::from(arrival.reply == Reply::Accepted);
            let first = *bodies.entry(delivery).or_insert(arrival);
            if (first.body_hash, first.token, first.webhook) != (arrival.body_hash, token, webhook) {
                let what =
                    format!("id {delivery} was sent with token {} and with token {token}", first.token);
                self.violate(Invariant::AnIdIsOneMessage, what, Some(delivery), at);
            }
            let lost = self.is_lost_time(at);
            let id = *ids.entry((token, webhook)).or_insert(delivery);
            if id != delivery && !lost {
                let what = format!("token {token} came under the ids {id} and {delivery}");
                self.violate(Invariant::AnIdIsOneMessage, what, Some(delivery), at);
            }
            if self.history.ledger.get(&token).is_none_or(|entry| entry.fate == Fate::RolledBack) {
                let what = format!("token {token} was rolled back and came");
                self.violate(Invariant::RolledBackStaysSilent, what, Some(delivery), at);
            }
            if lost {
                continue;
            }
            if !seen.insert((delivery, attempt)) {
                let what = format!("attempt {attempt} came twice");
                self.violate(Invariant::DuplicatesHaveACause, what, Some(delivery), at);
            }
            let row = self.history.database.deliveries.get(&delivery);
            let committed = row.and_then(|row| self.history.database.events.get(&row.event));
            match (row, committed) {
                (Some(row), Some((committed, _))) if *committed == token => {
                    if attempt > row.attempts {
                        let what = format!("attempt {attempt} came, and only {} were claimed", row.attempts);
                        self.violate(Invariant::NothingIsInvented, what, Some(delivery), at);
                    }
                }
                _ => {
                    let what = format!("token {token} came and is not in the database");
                    self.violate(Invariant::NothingIsInvented, what, Some(delivery), at);
                }
            }
        }
    }

    /// Each delivery from its first request to its end.
    fn deliveries(&mut self) {
        let history = self.history;
        for (id, row) in &history.database.deliveries {
            let arrivals = self.by_delivery.get(id).cloned().unwrap_or_default();
            let accepted = arrivals.iter().find(|arrival| arrival.reply == Reply::Accepted);
            match (row.status.as_str(), accepted) {
                ("pending", _) => {}
                ("delivered", Some(_)) => {}
                ("delivered", None) => {
                    let what = "it is recorded as delivered, and no receiver accepted it".to_owned();
                    self.violate(Invariant::RecordsAreTrue, what, Some(*id), row.finished_at.unwrap_or(0));
                }
                (status, _) => {
                    let what = format!("it ended as {status}");
                    self.violate(Invariant::NothingIsLost, what, Some(*id), row.finished_at.unwrap_or(0));
                }
            }
            let arrivals: Vec<&Arrival> =
                arrivals.into_iter().filter(|arrival| !self.is_lost_time(arrival.at)).collect();
            self.success_is_final(*id, row, &arrivals);
            self.duplicates(*id, &arrivals);
        }
    }

    /// What the database says of each attempt against what its receiver did.
    fn attempts(&mut self) {
        let mut came: HashMap<(Uuid, i32), &Arrival> = HashMap::new();
        for arrival in &self.history.arrivals {
            came.insert((arrival.delivery, arrival.attempt), arrival);
        }
        let history = self.history;
        for ((id, number), attempt) in &history.database.attempts {
            if self.is_lost_time(attempt.started_at) {
                continue;
            }
            let arrival = came.get(&(*id, *number));
            if let Some(status) = attempt.status_code {
                let seen = arrival.map(|arrival| (arrival.reply.status(), Some(arrival.sidecar)));
                if seen != Some((Some(status), attempt.sidecar)) {
                    let what = format!(
                        "attempt {number} is recorded with status {status}; the receiver saw {seen:?}"
                    );
                    self.violate(Invariant::RecordsAreTrue, what, Some(*id), attempt.started_at);
                }
            }
            let next = history.database.attempts.get(&(*id, number + 1));
            if let Some(next) = next
                && !attempt.late
                && !attempt.is_unknown()
                && !next.is_unknown()
                && attempt.ended_at() > next.started_at + CLOCK_SLACK
            {
                let what = format!("the result of attempt {number} counted although the next was under way");
                self.violate(Invariant::RecordsAreTrue, what, Some(*id), attempt.started_at);
            }
            let Some(arrival) = arrival.filter(|_| attempt.is_unknown()) else { continue };
            let process = history.database.process(arrival.sidecar);
            let until = arrival.at + REPORT_WITHIN;
            let was_answered = arrival.reply.status().is_some();
            if was_answered
                && self
                    .excuses
                    .find_silence(process, arrival.sidecar, arrival.at - ARRIVES_WITHIN, until)
                    .is_none()
            {
                let what = format!("{process} lived on and never reported attempt {number}");
                self.violate(Invariant::DuplicatesHaveACause, what, Some(*id), arrival.at);
            }
        }
    }
}
