//! How long to wait before trying again.

use std::time::Duration;

/// Doubles from `first` to `last`. Pure: the jitter is the caller's.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { first, last, next: first }
    }

    /// The next delay: at most the current step, at least half of it. `jitter` lies in 0..1.
    ///
    /// Downwards, so that the longest wait is `last` whatever the jitter; spread, because every sidecar lost the same server.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let step = self.next;
        self.next = (self.next * 2).min(self.last);
        step.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_delay_doubles_up_to_its_bound_and_starts_over_after_success() {
        let mut backoff = Backoff::new(100 * MS, 1000 * MS);
        let delays: Vec<_> = (0..6).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), 100 * MS);
    }

    #[test]
    fn jitter_only_shortens_and_never_by_more_than_half() {
        for jitter in [-1.0, 0.0, 0.3, 0.999, 1.0, 7.0] {
            let delay = Backoff::new(100 * MS, 1000 * MS).next(jitter);
            assert!((50 * MS..=100 * MS).contains(&delay), "{delay:?}");
        }
    }
}
