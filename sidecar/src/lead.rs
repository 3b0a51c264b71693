//! How much later than a claim its first paced request can be sent.

use std::time::Duration;

/// A claim that takes longer than this makes the next ones ask for later moments; shorter ones are within what may be late.
const LEAD_MIN: Duration = Duration::from_millis(20);
const LEAD_MAX: Duration = Duration::from_secs(5);

/// How long claims take to come back: the longest of late, forgotten by and by.
///
/// A moment for sending that has passed when the claim is back is lost. With slow commits (a synchronous standby far away) every
/// first moment would be, and a webhook with a low limit would never be served.
#[derive(Debug, Default)]
pub(crate) struct Lead {
    longest: Duration,
}

impl Lead {
    pub(crate) fn note(&mut self, took: Duration) {
        self.longest = took.max(self.longest * 7 / 8);
    }

    pub(crate) fn get(&self) -> Duration {
        if self.longest < LEAD_MIN { Duration::ZERO } else { (self.longest * 5 / 4).min(LEAD_MAX) }
    }
}
