use std::time::{Duration, Instant};

/// How long a test waits for something that normally takes milliseconds. Long, because a loaded machine is no bug.
pub const DEADLINE: Duration = Duration::from_secs(20);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks again and again until `condition` returns a value, and returns that.
///
/// # Panics
///
/// At the deadline, naming `what` was waited for.
pub async fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    let mut next_pause = FIRST_PAUSE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain for: {what}");
        pause(next_pause).await;
        next_pause = (next_pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lets time pass: between two looks, and where the passing of time is itself what a test is about.
#[expect(clippy::disallowed_methods, reason = "the one place that sleeps")]
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
