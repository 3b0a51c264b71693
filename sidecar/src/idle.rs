//! When an idle sidecar asks for work, and when it claims without asking. Pure: the clock comes in as a parameter.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Between two tries for the doorbell while emitters are committing: they hold it for a commit, so the first is short.
const REFUSED_FIRST: Duration = Duration::from_millis(3);
const REFUSED_LAST: Duration = Duration::from_millis(100);

/// What is known about sleep: whether the worker wants it, whether the doorbell is held, what is due when.
#[derive(Debug)]
pub(crate) struct Idle {
    /// The worker has nothing to do.
    pub(crate) sleepy: bool,
    /// This session holds the doorbell.
    pub(crate) dozing: bool,
    ask_at: Instant,
    /// Something is due then; claim without asking again.
    due_at: Option<Instant>,
    poll: Duration,
    refused: Backoff,
    /// Grows while the database says there is work and claims find none: it is locked by another claim, or at its cap.
    fruitless: Backoff,
    is_fruitless: bool,
}

impl Idle {
    pub(crate) fn new(now: Instant, poll: Duration) -> Idle {
        Idle {
            sleepy: false,
            dozing: false,
            ask_at: now + poll,
            due_at: None,
            poll,
            refused: Backoff::new(REFUSED_FIRST, REFUSED_LAST),
            fruitless: Backoff::new(REFUSED_FIRST, REFUSED_LAST),
            is_fruitless: false,
        }
    }

    pub(crate) fn stay_up(&mut self, now: Instant) {
        self.sleepy = false;
        self.due_at = None;
        self.ask_at = now + self.poll;
    }

    pub(crate) fn may_sleep(&mut self, now: Instant, found: bool) {
        self.sleepy = true;
        self.due_at = None;
        self.ask_at = now;
        if found {
            self.is_fruitless = false;
            self.fruitless.reset();
            self.refused.reset();
        }
    }

    pub(crate) fn next_at(&self) -> Instant {
        self.due_at.map_or(self.ask_at, |due_at| due_at.min(self.ask_at))
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due_at.is_some_and(|due_at| due_at <= now)
    }

    /// Takes in an answer: how long until there may be work, and whether the doorbell was refused. True: claim now.
    pub(crate) fn answer(&mut self, now: Instant, wait: Option<Duration>, refused: bool) -> bool {
        self.due_at = wait.map(|wait| now + wait);
        self.ask_at = now + self.poll;
        if refused {
            self.ask_at = now + self.refused.next(0.0);
        } else {
            self.refused.reset();
        }
        if wait == Some(Duration::ZERO) {
            if !self.is_fruitless {
                self.is_fruitless = true;
                return true;
            }
            self.due_at = Some(now + self.fruitless.next(0.0));
        } else {
            self.is_fruitless = false;
            self.fruitless.reset();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn idle() -> (Idle, Instant) {
        let now = Instant::now();
        let mut idle = Idle::new(now, POLL);
        idle.may_sleep(now, true);
        (idle, now)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_it_asks_once_per_poll() {
        let (mut idle, now) = idle();
        assert_eq!(idle.next_at(), now);
        assert!(!idle.answer(now, None, false));
        assert_eq!(idle.next_at(), now + POLL);
        assert!(!idle.answer(now, Some(3600 * POLL), false));
        assert_eq!(idle.next_at(), now + POLL);
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_when_something_becomes_due() {
        let (mut idle, now) = idle();
        assert!(!idle.answer(now, Some(40 * MS), false));
        assert_eq!(idle.next_at(), now + 40 * MS);
        assert!(!idle.is_due(now + 39 * MS));
        assert!(idle.is_due(now + 40 * MS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_doorbell_is_tried_again_after_three_milliseconds_and_at_most_a_hundred() {
        let (mut idle, now) = idle();
        let waits: Vec<_> = (0..8)
            .map(|_| {
                assert!(!idle.answer(now, None, true));
                (idle.next_at() - now).as_millis()
            })
            .collect();
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 100, 100]);
        idle.answer(now, None, false);
        idle.answer(now, None, true);
        assert_eq!(idle.next_at(), now + 3 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_no_claim_finds_does_not_make_it_spin() {
        let (mut idle, now) = idle();
        assert!(idle.answer(now, Some(Duration::ZERO), false), "the first time it claims at once");
        idle.stay_up(now);
        idle.may_sleep(now, false);
        assert!(!idle.answer(now, Some(Duration::ZERO), false));
        assert_eq!(idle.next_at(), now + 3 * MS);
        idle.stay_up(now);
        idle.may_sleep(now, false);
        assert!(!idle.answer(now, Some(Duration::ZERO), false));
        assert_eq!(idle.next_at(), now + 6 * MS);
        idle.may_sleep(now, true);
        assert!(idle.answer(now, Some(Duration::ZERO), false), "once a claim found work, at once again");
    }

    #[tokio::test(start_paused = true)]
    async fn awake_it_still_looks_once_per_poll() {
        let (mut idle, now) = idle();
        idle.stay_up(now);
        assert_eq!(idle.next_at(), now + POLL);
    }
}
