//! What came more often, later or faster than it should.

use uuid::Uuid;

use super::{ARRIVES_WITHIN, CLAIMED_BEFORE, CLOCK_SLACK, Checker, Invariant};
use crate::clock::{MILLISECOND, Micros};
use crate::history::{Attempt, Delivery};
use crate::receivers::{Arrival, Reply};
use crate::stage::TIMEOUT_SECONDS;

/// Requests leave on time and arrive late, all the more when their receiver stands still. What arrived within this less
/// twice the standstill had left within a second.
const RATE_WINDOW: Micros = 800 * MILLISECOND;
const RATE_WINDOW_MIN: Micros = 300 * MILLISECOND;

impl Checker<'_> {
    pub(super) fn success_is_final(&mut self, id: Uuid, row: &Delivery, arrivals: &[&Arrival]) {
        let Some(finished_at) = row.finished_at.filter(|_| row.status == "delivered") else { return };
        for arrival in arrivals.iter().filter(|arrival| arrival.at > finished_at + CLOCK_SLACK) {
            // It may have been dialled before, and be late on its way. When, its sidecar says, if it lives.
            let began = self.history.database.attempts.get(&(id, arrival.attempt));
            let began_before = began.is_some_and(|attempt| {
                attempt.is_unknown() || attempt.started_at <= finished_at + CLOCK_SLACK
            });
            if !began_before {
                let what = format!("attempt {} began after the success was recorded", arrival.attempt);
                self.violate(Invariant::SuccessIsFinal, what, Some(id), arrival.at);
            }
        }
    }

    pub(super) fn duplicates(&mut self, id: Uuid, arrivals: &[&Arrival]) {
        let mut accepted: Option<&Arrival> = None;
        for arrival in arrivals {
            if let Some(before) = accepted {
                match self.cause(id, before, arrival) {
                    Ok(cause) => *self.verdict.duplicates.entry(cause).or_default() += 1,
                    Err(what) => {
                        *self.verdict.duplicates.entry("without a cause".to_owned()).or_default() += 1;
                        self.violate(Invariant::DuplicatesHaveACause, what, Some(id), arrival.at);
                    }
                }
            }
            if arrival.reply == Reply::Accepted {
                accepted = Some(arrival);
            }
        }
    }

    /// Why a request came although one before it had been accepted.
    fn cause(&self, id: Uuid, before: &Arrival, again: &Arrival) -> Result<String, String> {
        // The one whose sidecar did not get its result recorded in time; or, if the older attempt came last, that one.
        let culprit = if before.attempt < again.attempt { before } else { again };
        let process = self.history.database.process(culprit.sidecar);
        let attempt = self.history.database.attempts.get(&(id, culprit.attempt));
        // From its claim on: what hit its sidecar or the server before is no excuse.
        let claimed_at = attempt.map_or(Micros::MAX, |attempt| attempt.started_at - CLAIMED_BEFORE);
        let from = claimed_at.min(culprit.at - ARRIVES_WITHIN);
        if let Some(kind) = self.excuses.find(process, culprit.sidecar, from, again.at) {
            return Ok(format!("{kind:?}"));
        }
        match attempt {
            Some(attempt) if has_timed_out(attempt) => Ok("the answer was read too late".to_owned()),
            _ => Err(format!(
                "attempt {} was accepted, and then came attempt {}",
                before.attempt, again.attempt
            )),
        }
    }

    pub(super) fn rates(&mut self) {
        let window = RATE_WINDOW - 2 * self.history.standstill;
        if window < RATE_WINDOW_MIN {
            return;
        }
        self.verdict.rate_window = Some(window);
        for (number, webhook) in self.history.webhooks.iter().enumerate() {
            let Some(limit) = webhook.rate_limit else { continue };
            let mut times: Vec<Micros> = self
                .history
                .arrivals
                .iter()
                .filter(|arrival| arrival.webhook == number)
                .map(|arrival| arrival.at)
                .collect();
            times.sort_unstable();
            let mut first = 0;
            for (last, at) in times.iter().enumerate() {
                while at - times[first] >= window {
                    first += 1;
                }
                let within = last - first + 1;
                self.verdict.rate_most = self.verdict.rate_most.max(within);
                if within > usize::try_from(limit).expect("it is small") + 1 {
                    let what = format!(
                        "{within} requests within {} ms at a limit of {limit}/s",
                        window / MILLISECOND
                    );
                    self.violate(Invariant::RateLimitHolds, what, None, *at);
                    break;
                }
            }
        }
    }
}

fn has_timed_out(attempt: &Attempt) -> bool {
    let timeout_ms = i32::try_from(TIMEOUT_SECONDS * 1000).expect("it is small");
    attempt.error_class.as_deref().is_some_and(|class| class.starts_with("timeout"))
        && attempt.duration_ms.is_some_and(|duration_ms| duration_ms >= timeout_ms)
}
