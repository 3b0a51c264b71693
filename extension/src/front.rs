//! Where each queue begins, remembered by a session that claims again and again.
//!
//! Deliveries leave a queue at its front. What has left stays in the index until somebody vacuums, and cannot be vacuumed
//! while an old snapshot is open: with 300,000 of them a sidecar delivered 250 a second in place of 4,700. A claim that begins
//! at the front it found the last time reads none of them again.
//!
//! What must stay true: a front is passed on only as far as the horizon, before which no transaction that is still under way
//! can have made a delivery due (`orbhook._horizon`). Emits make nothing due in the past. What else moves a delivery to the
//! front of a queue (a hand, a clock that was put back) waits until everything is forgotten and read again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

/// As long as a poll: what is overlooked for whatever reason is found as late as if its wake-up had been lost. Longer where
/// reading everything again takes so long that it would be a larger share of the session's time.
const FORGET_AFTER_MIN: Duration = Duration::from_secs(1);
const FORGET_AFTER_MAX: Duration = Duration::from_secs(10);
const SHARE_OF_READING: u32 = 20;

/// Reading the horizon takes some 50 µs, and is worth it only for a session that claims again and again.
const HORIZON_READ_EVERY: Duration = Duration::from_millis(50);
const SUCCESSION_MAX: Duration = Duration::from_secs(10);

const FRONTS_MAX: usize = 10_000;

/// The bytes of a uuid, which PostgreSQL compares in the same way.
type Webhook = [u8; 16];

#[derive(Default)]
struct Fronts {
    since: Option<Instant>,
    claimed: Option<Instant>,
    /// How long the first claim since then took to reach the last webhook that it served.
    reading: Duration,
    horizon: Option<pg_sys::TimestampTz>,
    horizon_read: Option<Instant>,
    by_webhook: BTreeMap<Webhook, pg_sys::TimestampTz>,
}

thread_local! {
    static FRONTS: RefCell<Fronts> = RefCell::new(Fronts::default());
}

/// To be called once at the beginning of a claim: forgets what is too old. Whether the horizon is to be read now.
#[pg_extern(sql = false)]
fn begin_claim() -> bool {
    FRONTS.with_borrow_mut(|fronts| fronts.begin_claim(Instant::now()))
}

#[pg_extern(sql = false)]
fn note_horizon(horizon: Option<pg_sys::TimestampTz>) {
    FRONTS.with_borrow_mut(|fronts| {
        fronts.horizon = horizon;
        fronts.horizon_read = Some(Instant::now());
    });
}

/// The first webhook after this one whose front is remembered.
#[pg_extern(sql = false)]
fn next_front(after: pgrx::Uuid) -> Option<pgrx::Uuid> {
    FRONTS.with_borrow(|fronts| fronts.next_after(*after.as_bytes())).map(pgrx::Uuid::from_bytes)
}

#[pg_extern(sql = false)]
fn front(webhook: pgrx::Uuid) -> Option<pg_sys::TimestampTz> {
    FRONTS.with_borrow(|fronts| fronts.by_webhook.get(webhook.as_bytes()).copied())
}

/// Returns the front, for the statement that calls it.
#[pg_extern(sql = false)]
fn remember_front(webhook: pgrx::Uuid, front: pg_sys::TimestampTz) -> pg_sys::TimestampTz {
    // SAFETY: reads backend state.
    let isolation = i64::from(unsafe { pg_sys::XactIsoLevel });
    // A snapshot from before the horizon was read does not see all that was committed by then.
    if isolation <= i64::from(pg_sys::XACT_READ_COMMITTED) {
        FRONTS.with_borrow_mut(|fronts| fronts.remember(*webhook.as_bytes(), front, Instant::now()));
    }
    front
}

impl Fronts {
    fn begin_claim(&mut self, now: Instant) -> bool {
        let age = |of: Option<Instant>| of.map(|then| now.saturating_duration_since(then));
        let forget_after = (self.reading * SHARE_OF_READING).clamp(FORGET_AFTER_MIN, FORGET_AFTER_MAX);
        if age(self.since).is_none_or(|age| age >= forget_after) {
            self.by_webhook.clear();
            self.since = Some(now);
            self.reading = Duration::ZERO;
        }
        let is_in_succession = age(self.claimed).is_some_and(|age| age < SUCCESSION_MAX);
        self.claimed = Some(now);
        is_in_succession && age(self.horizon_read).is_none_or(|age| age >= HORIZON_READ_EVERY)
    }

    fn next_after(&self, webhook: Webhook) -> Option<Webhook> {
        let after = (Bound::Excluded(webhook), Bound::Unbounded);
        self.by_webhook.range(after).next().map(|(next, _)| *next)
    }

    fn remember(&mut self, webhook: Webhook, front: pg_sys::TimestampTz, now: Instant) {
        let Some(horizon) = self.horizon else { return };
        if let (true, Some(since)) = (self.since == self.claimed, self.since) {
            self.reading = now.saturating_duration_since(since);
        }
        let safe = front.min(horizon);
        let has_room = self.by_webhook.len() < FRONTS_MAX;
        match self.by_webhook.entry(webhook) {
            Entry::Occupied(mut remembered) => *remembered.get_mut() = safe.max(*remembered.get()),
            Entry::Vacant(place) if has_room => drop(place.insert(safe)),
            Entry::Vacant(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEBHOOK: Webhook = [7; 16];

    fn claimed_twice(now: Instant) -> Fronts {
        let mut fronts = Fronts::default();
        assert!(!fronts.begin_claim(now));
        assert!(fronts.begin_claim(now));
        fronts
    }

    #[test]
    fn a_front_is_remembered_no_further_than_the_horizon_and_only_onwards() {
        let now = Instant::now();
        let mut fronts = claimed_twice(now);
        fronts.remember(WEBHOOK, 5, now);
        assert!(fronts.by_webhook.is_empty(), "there is no horizon yet");
        for (horizon, front, remembered) in [(10, 5, 5), (10, 20, 10), (8, 20, 10), (30, 20, 20)] {
            fronts.horizon = Some(horizon);
            fronts.remember(WEBHOOK, front, now);
            assert_eq!(fronts.by_webhook[&WEBHOOK], remembered);
        }
    }

    #[test]
    fn the_horizon_is_read_only_by_a_session_that_claims_in_succession_and_not_each_time() {
        let now = Instant::now();
        let mut fronts = claimed_twice(now);
        fronts.horizon_read = Some(now);
        assert!(!fronts.begin_claim(now + HORIZON_READ_EVERY / 2));
        assert!(fronts.begin_claim(now + HORIZON_READ_EVERY));
        assert!(!fronts.begin_claim(now + HORIZON_READ_EVERY + SUCCESSION_MAX));
    }

    #[test]
    fn everything_is_forgotten_after_a_second_however_often_it_is_used() {
        let now = Instant::now();
        let mut fronts = claimed_twice(now);
        fronts.horizon = Some(10);
        fronts.remember(WEBHOOK, 5, now);
        fronts.begin_claim(now + FORGET_AFTER_MIN / 2);
        assert_eq!(fronts.next_after([0; 16]), Some(WEBHOOK));
        fronts.begin_claim(now + FORGET_AFTER_MIN);
        assert_eq!(fronts.next_after([0; 16]), None);
    }

    #[test]
    fn what_takes_long_to_read_again_is_remembered_longer() {
        let began = Instant::now();
        for (reading_ms, forgotten_after_ms) in [(10, 1_000), (200, 4_000), (3_000, 10_000)] {
            let mut fronts = Fronts { horizon: Some(10), ..Fronts::default() };
            fronts.begin_claim(began);
            fronts.remember(WEBHOOK, 5, began + Duration::from_millis(reading_ms));
            let forgotten = began + Duration::from_millis(forgotten_after_ms);
            fronts.begin_claim(forgotten - Duration::from_millis(1));
            // How long a later claim takes says nothing.
            fronts.remember(WEBHOOK, 5, forgotten);
            assert_eq!(fronts.next_after([0; 16]), Some(WEBHOOK));
            fronts.begin_claim(forgotten);
            assert_eq!(fronts.next_after([0; 16]), None);
        }
    }

    #[test]
    fn fronts_are_walked_in_the_order_of_their_webhooks() {
        let mut fronts = Fronts { horizon: Some(10), ..Fronts::default() };
        for first in [200, 3, 90] {
            fronts.remember([first; 16], 1, Instant::now());
        }
        assert_eq!(fronts.next_after([3; 16]), Some([90; 16]));
        assert_eq!(fronts.next_after([91; 16]), Some([200; 16]));
        assert_eq!(fronts.next_after([200; 16]), None);
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let mut fronts = Fronts { horizon: Some(10), ..Fronts::default() };
        for number in 0..FRONTS_MAX + 5 {
            let number = u128::try_from(number).expect("it fits");
            fronts.remember(number.to_be_bytes(), 1, Instant::now());
        }
        assert_eq!(fronts.by_webhook.len(), FRONTS_MAX);
    }
}
