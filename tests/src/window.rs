use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::http::Request;
use crate::wait::pause;

/// The most requests that arrived within any span of this length, by the monotonic clock. A span includes its beginning
/// and not its end.
pub fn most_within(requests: &[Request], span: Duration) -> usize {
    let mut arrivals: Vec<_> = requests.iter().map(|request| request.at).collect();
    arrivals.sort();
    let in_span_from = |first: usize| {
        arrivals[first..].iter().take_while(|at| at.duration_since(arrivals[first]) < span).count()
    };
    (0..arrivals.len()).map(in_span_from).max().unwrap_or(0)
}

/// Notices when this runtime stands still because the machine has other things to do.
///
/// Requests that arrive meanwhile are all read in the moment after it, so a span of time can only be measured to within
/// the longest standstill.
pub struct Standstill {
    longest_us: Arc<AtomicU64>,
    watching: AbortHandle,
}

impl Standstill {
    pub fn watch() -> Standstill {
        const BEAT: Duration = Duration::from_millis(2);
        let longest_us = Arc::new(AtomicU64::new(0));
        let longest = Arc::clone(&longest_us);
        let watching = tokio::spawn(async move {
            loop {
                let before = Instant::now();
                pause(BEAT).await;
                let lost = before.elapsed().saturating_sub(BEAT).as_micros();
                longest.fetch_max(u64::try_from(lost).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Standstill { longest_us, watching: watching.abort_handle() }
    }

    /// The longest so far.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
