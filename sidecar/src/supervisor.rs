//! What the service manager hears (systemd, `Type=notify`): that the process is up, whether it delivers, that it stops and, if it
//! asked for that, that it still turns. Without NOTIFY_SOCKET in the environment nothing is said.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{sync::watch, time::interval};

/// So many signs of life within the time after which the service manager kills.
const SIGNS_OF_LIFE: u32 = 2;

/// Nobody waits for one that often.
const UNWATCHED: Duration = Duration::from_secs(3_600);

/// Says that the process is up, and from then on whether it delivers. A database that is away is no failed start: the sidecar
/// waits for it, which the status says.
pub(crate) async fn report(mut ready: watch::Receiver<bool>) -> Infallible {
    say(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut signs = interval(watchdog.map_or(UNWATCHED, |limit| limit / SIGNS_OF_LIFE));
    let mut is_last_word = false;
    loop {
        let status = if *ready.borrow_and_update() { "delivering" } else { "waiting for the database" };
        say(&[NotifyState::Status(status)]);
        loop {
            tokio::select! {
                _ = signs.tick() => say(&[NotifyState::Watchdog]),
                changed = ready.changed(), if !is_last_word => {
                    is_last_word = changed.is_err();
                    break;
                }
            }
        }
    }
}

pub(crate) fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("finishing what is in flight")]);
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
