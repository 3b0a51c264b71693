//! What the campaign's build does at its hooks, chosen by environment variables when the process starts.

use std::{
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use reqwest::header::{HeaderMap, HeaderValue};

use super::{Bug, Point};
use crate::delivery::Ticket;

/// `point:action:pass`, as in `after_claim:abort:3`: at the third pass. Actions: `abort`, and `stop` (SIGSTOP to itself).
const POINT_VARIABLE: &str = "ORBHOOK_CAMPAIGN_POINT";

/// The file that gets the moment at which it happens, in microseconds since 1970: whoever waits for this process may notice
/// its end late.
const MOMENT_VARIABLE: &str = "ORBHOOK_CAMPAIGN_MOMENT";

/// A bug's name, as in `settle_before_send`.
const BUG_VARIABLE: &str = "ORBHOOK_CAMPAIGN_BUG";

struct Trigger {
    point: Point,
    stops: bool,
    passes_left: AtomicU32,
}

/// Dies or stops here, if this is the place and the time that was chosen.
pub(crate) fn pass(point: Point) {
    static TRIGGER: LazyLock<Option<Trigger>> =
        LazyLock::new(|| std::env::var(POINT_VARIABLE).ok().map(|text| parse_trigger(&text)));
    let Some(trigger) = TRIGGER.as_ref().filter(|trigger| trigger.point == point) else { return };
    if trigger.passes_left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    tracing::warn!(?point, stops = trigger.stops, "the campaign's moment has come");
    if !trigger.stops {
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let written = std::env::var(MOMENT_VARIABLE).map(|file| std::fs::write(file, unix_us.to_string()));
        tracing::warn!(?written, "the campaign ends it");
        std::process::abort();
    }
    // Returns when somebody has sent SIGCONT.
    let stopped = Command::new("kill").args(["-s", "STOP", &std::process::id().to_string()]).status();
    tracing::warn!(?stopped, "the campaign lets it go on");
}

/// Whether this process has the bug.
pub(crate) fn has(bug: Bug) -> bool {
    static CHOSEN: LazyLock<Option<Bug>> =
        LazyLock::new(|| std::env::var(BUG_VARIABLE).ok().map(|name| parse_bug(&name)));
    *CHOSEN == Some(bug)
}

/// Says which attempt this request is, and whose. Not signed: the receiver of the campaign knows what it is looking at.
pub(crate) fn mark(headers: &mut HeaderMap, ticket: Ticket) {
    for (name, value) in
        [("campaign-attempt", ticket.attempt.to_string()), ("campaign-sidecar", ticket.sidecar.to_string())]
    {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

fn parse_trigger(text: &str) -> Trigger {
    let mut words = text.split(':');
    let (point, action, pass) = (words.next(), words.next(), words.next());
    let point = match point {
        Some("after_claim") => Point::AfterClaim,
        Some("after_send") => Point::AfterSend,
        Some("before_settle") => Point::BeforeSettle,
        Some("after_settle") => Point::AfterSettle,
        other => panic!("{POINT_VARIABLE}: there is no point {other:?}"),
    };
    let stops = match action {
        Some("abort") => false,
        Some("stop") => true,
        other => panic!("{POINT_VARIABLE}: there is no action {other:?}"),
    };
    let passes_left = pass.and_then(|pass| pass.parse().ok()).filter(|pass| *pass > 0);
    let passes_left = passes_left.unwrap_or_else(|| panic!("{POINT_VARIABLE}: {pass:?} is no pass"));
    Trigger { point, stops, passes_left: AtomicU32::new(passes_left) }
}

fn parse_bug(name: &str) -> Bug {
    match name {
        "settle_before_send" => Bug::SettleBeforeSend,
        "ignored_lease" => Bug::IgnoredLease,
        "claim_not_committed" => Bug::ClaimNotCommitted,
        "swallowed_settle_error" => Bug::SwallowedSettleError,
        "no_poll" => Bug::NoPoll,
        "redirect_followed" => Bug::RedirectFollowed,
        other => panic!("{BUG_VARIABLE}: there is no bug {other:?}"),
    }
}
