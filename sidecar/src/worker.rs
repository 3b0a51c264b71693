//! All control flow: when to claim and how much, what is sent when, what happens at the end. The stages know nothing of each other.
//!
//! One loop owns all state, so there are no locks. It never waits for a stage: claims, requests and results run beside it and
//! come back as events.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use uuid::Uuid;

use crate::{
    campaign::{self, Bug},
    claim::{ClaimRequest, Claimed, Claims},
    client::HttpClient,
    config::Config,
    db::Connector,
    deliver::{STANDSTILL, deliver},
    delivery::{Delivery, Finished},
    error::Error,
    keys::Keys,
    lead::Lead,
    link::Link,
    metrics::Metrics,
    settle::{Report, settle_all},
    wake::{self, Mode},
};

/// After the last work it stays awake so long, so that a steady stream of commits does not ring for each one,
const LINGER: Duration = Duration::from_millis(10);
/// and looks this often meanwhile.
const LINGER_CLAIM: Duration = Duration::from_millis(3);

/// A claim costs the database a millisecond, however little it brings. While few slots are free and more are about to be, it
/// waits so long for them: with a queue behind it, claims of a handful had cost more than the deliveries (245 µs of the server's
/// time for each, against 66 µs in claims of 200).
const ROOM_WAIT: Duration = Duration::from_millis(3);

/// While something is claimed or being claimed and not dialled yet, the loop turns at least this often.
const TURN: Duration = Duration::from_millis(100);

/// A wake connection that is alive speaks once per poll. This much later the worker polls by itself.
const SILENCE_SLACK: Duration = Duration::from_millis(250);

/// Paced deliveries held ahead of their time, in claims. They occupy no slot, but their bodies are in memory.
const DELAYED_CLAIMS_MAX: usize = 4;

/// Results that wait for the database, beyond those of a full house. More stop new claims: what cannot be settled should not
/// be sent.
const UNSETTLED_MAX: usize = 2_000;

/// At the end: how long an unfinished claim, the last results and the deregistration may take, each.
const LAST_WORDS: Duration = Duration::from_secs(3);

const WAKE_EVENTS_MAX: usize = 64;

/// Whether deliveries flow: registered, and results reach the database.
pub(crate) type Ready = watch::Sender<bool>;

/// Runs until `shutdown`, then lets what is in flight finish.
///
/// Errors: only when a task of the sidecar itself has failed, which is a bug; trouble with the database is waited out.
pub(crate) async fn work(
    config: &Config,
    http: HttpClient,
    connector: Connector,
    metrics: Metrics,
    ready: Ready,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (mode, mode_receiver) = watch::channel(Mode::Awake);
    let (wake_events, mut wakes) = mpsc::channel(WAKE_EVENTS_MAX);
    let (registered, mut registration) = watch::channel(None);
    let channels = wake::Channels { mode: mode_receiver, events: wake_events, registration: registered };
    let keep_awake = wake::keep_awake(
        connector.clone(),
        wake::Identity::of(config),
        config.poll,
        metrics.clone(),
        channels,
    );
    let mut waking = Task(tokio::spawn(keep_awake));
    let (results, results_receiver) = mpsc::unbounded_channel();
    let (reports_sender, mut reports) = mpsc::unbounded_channel();
    let settle_link = Link::new("settle", connector.clone(), metrics.clone());
    let mut settling = Task(tokio::spawn(settle_all(settle_link, results_receiver, reports_sender)));
    let (stop, stopping) = watch::channel(false);
    let mut claims = Claims::Idle(Box::new(Link::new("claim", connector, metrics.clone())));
    let mut worker = Worker::new(config, http, metrics, mode, results, ready, Instant::now());
    let mut shutdown = std::pin::pin!(shutdown);

    loop {
        worker.dispatch(Instant::now());
        worker.metrics.level(worker.sends.len(), worker.waiting(), worker.unsettled);
        if let Some(request) = worker.next_claim(Instant::now(), claims.is_idle()) {
            claims.begin(request, registration.clone(), stopping.clone());
        }
        let timer = worker.next_timer(Instant::now());
        tokio::select! {
            () = &mut shutdown => break,
            claimed = claims.finished() => worker.on_claimed(claimed, Instant::now()),
            Some(event) = wakes.recv() => worker.on_wake(event, Instant::now()),
            Ok(()) = registration.changed() => {
                let sidecar = *registration.borrow_and_update();
                worker.on_registration(sidecar, Instant::now());
            }
            Some(sent) = worker.sends.join_next() => worker.on_sent(sent.ok()),
            Some(report) = reports.recv() => worker.on_report(report),
            () = sleep_until(timer) => worker.on_timer(Instant::now()),
            _ = &mut waking.0 => return Err(Error::Task("wake")),
            _ = &mut settling.0 => return Err(Error::Task("settle")),
        }
    }

    tracing::info!(in_flight = worker.sends.len(), waiting = worker.waiting(), "stopping");
    let grace_until = Instant::now() + config.shutdown_grace;
    stop.send_replace(true);
    // Let go of the doorbell: from now on it is another sidecar's.
    worker.mode.send_replace(Mode::Awake);
    let last_claim = timeout(LAST_WORDS, claims.finished_or_none()).await;
    let mut is_clean = last_claim.is_ok();
    if let Ok(Some(claimed)) = last_claim {
        worker.take_in(claimed, true, Instant::now());
    }
    is_clean &= worker.finish_in_flight(grace_until).await;
    while let Ok(report) = reports.try_recv() {
        worker.on_report(report);
    }
    is_clean &= worker.settle_rest(settling).await;
    worker.leave(waking, is_clean).await;
    Ok(())
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The worker's state.
struct Worker {
    http: HttpClient,
    metrics: Metrics,
    keys: Keys,
    concurrency: usize,
    claim_batch: usize,
    poll: Duration,

    mode: watch::Sender<Mode>,
    results: mpsc::UnboundedSender<Finished>,
    ready: Ready,

    /// Who we are to the database; None while not registered.
    sidecar: Option<Uuid>,
    /// Results reach the database.
    settles: bool,
    unsettled: usize,

    /// There may be something to claim.
    wants_claim: bool,
    /// Claim again then: it lingers.
    claim_at: Option<Instant>,
    /// Then room for a few is room enough,
    room_at: Option<Instant>,
    /// and that moment has come.
    takes_few: bool,
    /// A claim is under way.
    claiming: bool,
    /// The process stood still meanwhile: what it brings may be somebody else's.
    claim_is_doubtful: bool,
    /// When the loop last came around.
    turned_at: Instant,
    /// Poll by itself then: the wake connection has been silent.
    silent_at: Instant,
    last_found: Instant,
    found_since_sleep: bool,
    /// Goes on where the last claim stopped.
    cursor: Option<Uuid>,
    lead: Lead,
    /// Claimed and not yet over, by webhook.
    held: HashMap<Uuid, usize>,

    /// Paced, by the time they may be sent. The number tells two of one moment apart.
    delayed: BTreeMap<(Instant, u64), Delivery>,
    delayed_count: u64,
    /// May be sent; waiting for a slot.
    ready_to_send: VecDeque<Delivery>,
    sends: JoinSet<Finished>,
}

impl Worker {
    fn new(
        config: &Config,
        http: HttpClient,
        metrics: Metrics,
        mode: watch::Sender<Mode>,
        results: mpsc::UnboundedSender<Finished>,
        ready: Ready,
        now: Instant,
    ) -> Worker {
        Worker {
            http,
            metrics,
            keys: Keys::new(config.keys.clone()),
            concurrency: config.concurrency,
            claim_batch: config.claim_batch,
            poll: config.poll,
            mode,
            results,
            ready,
            sidecar: None,
            settles: false,
            unsettled: 0,
            wants_claim: false,
            claim_at: None,
            room_at: None,
            takes_few: false,
            claiming: false,
            claim_is_doubtful: false,
            turned_at: now,
            silent_at: now + config.poll + SILENCE_SLACK,
            last_found: now.checked_sub(LINGER).unwrap_or(now),
            found_since_sleep: false,
            cursor: None,
            lead: Lead::default(),
            held: HashMap::new(),
            delayed: BTreeMap::new(),
            delayed_count: 0,
            ready_to_send: VecDeque::new(),
            sends: JoinSet::new(),
        }
    }

    fn waiting(&self) -> usize {
        self.delayed.len() + self.ready_to_send.len()
    }

    /// The next claim, if it is time for one and there is room for what it brings.
    fn next_claim(&mut self, now: Instant, is_idle: bool) -> Option<ClaimRequest> {
        if !is_idle || !self.wants_claim || self.sidecar.is_none() || !self.settles {
            return None;
        }
        let batch = self.room();
        if batch == 0 {
            return None;
        }
        if batch < self.worthwhile() && !self.takes_few {
            self.room_at.get_or_insert(now + ROOM_WAIT);
            return None;
        }
        self.wants_claim = false;
        self.claiming = true;
        self.claim_at = None;
        self.room_at = None;
        self.takes_few = false;
        self.silent_at = now + self.poll + SILENCE_SLACK;
        Some(ClaimRequest {
            batch,
            after: self.cursor,
            lead: self.lead.get(),
            share: (self.free_slots() / 2).max(1),
            held: self.held.iter().map(|(webhook, count)| (*webhook, *count)).collect(),
        })
    }

    fn free_slots(&self) -> usize {
        self.concurrency.saturating_sub(self.sends.len() + self.ready_to_send.len())
    }

    /// Room for so many is claimed for at once: a part of the slots, so that the others are busy meanwhile.
    fn worthwhile(&self) -> usize {
        (self.concurrency / 4).min(self.claim_batch / 2)
    }

    /// Never more than half of the free slots at once: the share of a webhook is counted against what is free before the claim,
    /// and many webhooks together must not fill the house in one go either.
    fn room(&self) -> usize {
        let slots = self.free_slots().div_ceil(2);
        let delayed = (DELAYED_CLAIMS_MAX * self.claim_batch).saturating_sub(self.delayed.len());
        let unsettled = (self.concurrency + UNSETTLED_MAX).saturating_sub(self.unsettled);
        self.claim_batch.min(slots).min(delayed).min(unsettled)
    }

    fn on_wake(&mut self, event: wake::Event, now: Instant) {
        self.silent_at = now + self.poll + SILENCE_SLACK;
        if event == wake::Event::Work {
            self.wants_claim = true;
        }
    }

    fn on_registration(&mut self, sidecar: Option<Uuid>, now: Instant) {
        if self.sidecar != sidecar {
            // Whatever waits was claimed under an id that others may already take for dead: they will send it.
            self.release_waiting(now);
        }
        self.sidecar = sidecar;
        self.wants_claim = sidecar.is_some();
        self.publish_ready();
    }

    /// `None`: the claim did not happen; try again.
    fn on_claimed(&mut self, claimed: Option<Claimed>, now: Instant) {
        self.claiming = false;
        let is_doubtful = std::mem::take(&mut self.claim_is_doubtful) || self.stood_still(now);
        let Some(claimed) = claimed else {
            self.wants_claim = true;
            return;
        };
        self.lead.note(claimed.took);
        if claimed.is_empty() {
            if now.duration_since(self.last_found) < LINGER {
                self.claim_at = Some(now + LINGER_CLAIM);
            } else {
                self.mode.send_replace(Mode::Sleepy { found: self.found_since_sleep });
                self.found_since_sleep = false;
            }
            return;
        }
        self.last_found = now;
        self.found_since_sleep = true;
        // Until a claim comes back empty: fairness and pacing can leave due work behind a batch that was not full.
        self.wants_claim = true;
        self.cursor = claimed.last_webhook.or(self.cursor);
        if *self.mode.borrow() != Mode::Awake {
            self.mode.send_replace(Mode::Awake);
        }
        self.take_in(claimed, is_doubtful, now);
    }

    fn take_in(&mut self, claimed: Claimed, is_doubtful: bool, now: Instant) {
        let is_current = self.sidecar == Some(claimed.sidecar) && !is_doubtful;
        for finished in claimed.unreadable {
            self.hold(finished.ticket.webhook);
            self.finish(finished);
        }
        for delivery in claimed.deliveries {
            self.hold(delivery.ticket.webhook);
            if !is_current {
                self.finish(Finished::released(delivery.ticket, now));
            } else if delivery.send_at > now {
                self.delayed_count += 1;
                self.delayed.insert((delivery.send_at, self.delayed_count), delivery);
            } else {
                self.ready_to_send.push_back(delivery);
            }
        }
    }

    fn stood_still(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.turned_at) > STANDSTILL && !campaign::has(Bug::IgnoredLease)
    }

    /// Moves what is due into free slots. Paced deliveries go first: theirs is a moment, the others' only an order.
    fn dispatch(&mut self, now: Instant) {
        if self.stood_still(now) {
            self.release_waiting(now);
            self.claim_is_doubtful = self.claiming;
        }
        self.turned_at = now;
        let mut due = Vec::new();
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove());
        }
        for delivery in due.into_iter().rev() {
            self.ready_to_send.push_front(delivery);
        }
        while self.sends.len() < self.concurrency
            && let Some(delivery) = self.ready_to_send.pop_front()
        {
            self.sends.spawn(deliver(self.http.clone(), self.keys.clone(), delivery, now));
        }
    }

    /// `None`: the task was aborted, which only happens at the end.
    fn on_sent(&mut self, finished: Option<Finished>) {
        if let Some(finished) = finished {
            self.finish(finished);
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Up => {
                self.settles = true;
                self.wants_claim = true;
            }
            Report::Down => self.settles = false,
            Report::Settled { count } => {
                self.unsettled = self.unsettled.saturating_sub(count);
                // A webhook that was at its cap of requests in flight may have more.
                self.wants_claim = true;
            }
        }
        self.publish_ready();
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let delayed = match self.sends.len() < self.concurrency {
            true => self.delayed.first_key_value().map(|((send_at, _), _)| *send_at),
            false => None,
        };
        if campaign::has(Bug::NoPoll) {
            return delayed.unwrap_or(self.silent_at + Duration::from_secs(3600));
        }
        let turn = (self.claiming || self.waiting() > 0).then_some(now + TURN);
        [self.claim_at, self.room_at, delayed, turn].into_iter().flatten().fold(self.silent_at, Instant::min)
    }

    fn on_timer(&mut self, now: Instant) {
        if self.claim_at.is_some_and(|claim_at| claim_at <= now) {
            self.claim_at = None;
            self.wants_claim = true;
        }
        if self.room_at.is_some_and(|room_at| room_at <= now) {
            self.room_at = None;
            self.takes_few = true;
        }
        if self.silent_at <= now {
            self.silent_at = now + self.poll;
            self.wants_claim = true;
        }
    }

    fn hold(&mut self, webhook: Uuid) {
        *self.held.entry(webhook).or_default() += 1;
    }

    fn let_go(&mut self, webhook: Uuid) {
        if let Some(held) = self.held.get_mut(&webhook) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&webhook);
            }
        }
    }

    fn finish(&mut self, finished: Finished) {
        self.let_go(finished.ticket.webhook);
        self.metrics.finished(&finished);
        self.unsettled += 1;
        // The receiver is gone only when the settling task has panicked; the lease then brings the delivery back.
        if self.results.send(finished).is_err() {
            tracing::error!("results can no longer be settled");
        }
    }

    fn release_waiting(&mut self, now: Instant) {
        let delayed = std::mem::take(&mut self.delayed).into_values();
        let waiting: Vec<_> = delayed.chain(self.ready_to_send.drain(..)).collect();
        for delivery in waiting {
            self.finish(Finished::released(delivery.ticket, now));
        }
    }

    fn publish_ready(&self) {
        let is_ready = self.sidecar.is_some() && self.settles;
        self.metrics.ready(is_ready);
        self.ready.send_if_modified(|ready| std::mem::replace(ready, is_ready) != is_ready);
    }

    /// Gives back what was not dialled and lets what was finish. False: something was still in flight when time was up.
    async fn finish_in_flight(&mut self, grace_until: Instant) -> bool {
        self.release_waiting(Instant::now());
        while let Ok(Some(sent)) = timeout_at(grace_until, self.sends.join_next()).await {
            self.on_sent(sent.ok());
        }
        let cut_off = self.sends.len();
        if cut_off > 0 {
            tracing::warn!(cut_off, "requests were cut off by the stop; they will be sent again");
        }
        self.sends.abort_all();
        cut_off == 0
    }

    /// False: some results did not reach the database.
    async fn settle_rest(&mut self, mut settling: Task) -> bool {
        if self.unsettled == 0 {
            return true;
        }
        // With the sender gone, the task ends when everything is settled.
        self.results = mpsc::unbounded_channel().0;
        let settled = timeout(LAST_WORDS, &mut settling.0).await.is_ok();
        if !settled {
            tracing::warn!(
                unsettled = self.unsettled,
                "results did not reach the database; those deliveries will be sent again"
            );
        }
        settled
    }

    /// Deregisters after a clean end. Otherwise goes without a word: an id whose lock goes free like that is dead, and what it
    /// had is taken over at once, while what a deregistered id had would wait for its lease.
    async fn leave(self, mut waking: Task, is_clean: bool) {
        if is_clean {
            self.mode.send_replace(Mode::Stop);
            if timeout(LAST_WORDS, &mut waking.0).await.is_err() {
                tracing::warn!("could not deregister in time; the database notices by itself");
            }
        }
        tracing::info!(is_clean, "stopped");
    }
}

#[cfg(test)]
mod tests;
