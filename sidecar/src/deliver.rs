//! One claimed delivery, from the last look at whether it may still be sent to the result.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::time::Instant;

use crate::{
    campaign::{self, Bug, Point},
    client::HttpClient,
    delivery::{Answer, Delivery, ErrorClass, Fault, Finished, Outcome, Ticket, Wire},
    keys::Keys,
    send::send,
};

/// What a delivery's lease must still hold beyond its timeout when it is dialled, for the result to be settled in.
const LEASE_RESERVE: Duration = Duration::from_secs(5);

/// A paced delivery that would be dialled this much after its moment is given back for another moment. Moments are spaced over all
/// sidecars, so what is sent near them is spaced too; what was held up (a process that was stopped, slots that were full) would
/// arrive in a bunch, among those that others send on time. Long enough for a busy machine's timers.
const PACE_LATE_MAX: Duration = Duration::from_millis(40);

/// A turn of the worker's loop that took so long means that the process stood still (SIGSTOP, a suspended machine, a swapped-out one). Its session
/// may have ended meanwhile, and others may have sent what it had: that is given back instead of dialled.
pub(crate) const STANDSTILL: Duration = Duration::from_millis(500);

/// One delivery, in a task of its own. A panic in it costs this delivery an attempt and nothing else.
pub(crate) async fn deliver(
    http: HttpClient,
    keys: Keys,
    mut delivery: Delivery,
    dispatched: Instant,
) -> Finished {
    let begun = Instant::now();
    let ignores_lease = campaign::has(Bug::IgnoredLease);
    let stood_still = begun.saturating_duration_since(dispatched) > STANDSTILL;
    if !ignores_lease && (stood_still || !may_dial(&delivery, begun) || is_late(&delivery, begun)) {
        return Finished::released(delivery.ticket, begun);
    }
    let ticket = delivery.ticket;
    delivery.secrets = match keys.open(ticket.webhook, delivery.secrets) {
        Ok(secrets) => secrets,
        Err(fault) => return Finished::parked(ticket, begun, fault),
    };
    tracing::debug!(delivery = %ticket.delivery, attempt = ticket.attempt, webhook = %ticket.webhook,
        event_type = delivery.event_type, "sending");
    if campaign::has(Bug::SettleBeforeSend) {
        return settle_then_send(http, delivery, begun);
    }
    let sent = or_fault(ticket, begun, send(&http, &delivery, unix_seconds())).await;
    campaign::pass(Point::AfterSend);
    sent
}

pub(crate) async fn or_fault(
    ticket: Ticket,
    begun: Instant,
    sending: impl Future<Output = Finished>,
) -> Finished {
    match AssertUnwindSafe(sending).catch_unwind().await {
        Ok(finished) => finished,
        Err(_) => {
            tracing::error!(delivery = %ticket.delivery, attempt = ticket.attempt, "the sending task panicked");
            let fault =
                Fault::new(ErrorClass::Internal, "the sidecar failed while sending; please report this");
            Finished::unanswered(ticket, begun, Instant::now(), fault)
        }
    }
}

fn settle_then_send(http: HttpClient, delivery: Delivery, begun: Instant) -> Finished {
    let answer = Answer { status: 200, headers: BTreeMap::new(), body: String::new(), body_cut: false };
    let ticket = delivery.ticket;
    tokio::spawn(async move { send(&http, &delivery, unix_seconds()).await });
    Finished {
        ticket,
        started: begun,
        duration: begun.elapsed(),
        outcome: Outcome::Answered(answer),
        wire: Wire::default(),
    }
}

/// Asked immediately before dialling: a process that was stopped, or a queue that was long, must not send what somebody else
/// may have by now.
pub(crate) fn may_dial(delivery: &Delivery, now: Instant) -> bool {
    delivery.lease_until.saturating_duration_since(now) >= delivery.timeout + LEASE_RESERVE
}

/// Asked at the same place for the same reason: a process can be stopped at any line before it.
pub(crate) fn is_late(delivery: &Delivery, now: Instant) -> bool {
    delivery.is_paced && now.saturating_duration_since(delivery.send_at) > PACE_LATE_MAX
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
