//! One campaign: build the stage, let everybody act, heal everything, wait, judge.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orbhook_tests::{DEADLINE, Standstill, pause};

use crate::checker::{self, Invariant, Verdict};
use crate::clock::{Clock, MILLISECOND};
use crate::emitters::{self, Signals};
use crate::faults::{self, Faults};
use crate::fleet::{Fleet, Orders, POINTS};
use crate::history::{Database, History};
use crate::ledger::{Fate, Ledger};
use crate::nemesis::{self, Plan};
use crate::operator;
use crate::receivers::{Misbehaviour, Receivers};
use crate::stage::{Commits, Stage};

/// More pending than this, and emitters hold back: what a campaign cannot drain proves nothing.
const PENDING_MAX: i64 = 3_000;

/// A sidecar with a full house of requests and results holds this at most.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Everything that decides what a campaign is.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) emitters: u32,
    /// Events that are there before the sidecars are.
    pub(crate) preload: u64,
    pub(crate) orders: Orders,
    pub(crate) plan: Plan,
    pub(crate) misbehaviour: Misbehaviour,
    pub(crate) commits: Commits,
    /// Somebody pauses webhooks and lets them go on.
    pub(crate) with_operator: bool,
    pub(crate) with_standby: bool,
    pub(crate) retry_delay_seconds: f64,
    /// Run in the campaign's database before anybody acts.
    pub(crate) planted_sql: Option<String>,
    /// With nothing drained for so long, it is not drained.
    pub(crate) patience: Duration,
}

impl Settings {
    /// The campaign as it is meant.
    pub(crate) fn usual(seed: u64, duration: Duration) -> Settings {
        Settings {
            seed,
            duration,
            emitters: 8,
            preload: 0,
            orders: Orders {
                sidecars: 3,
                seed,
                points: POINTS,
                abort_percent: 45,
                stop_percent: 5,
                bug: None,
            },
            plan: Plan::everything(),
            misbehaviour: Misbehaviour::USUAL,
            commits: Commits::Mixed,
            with_operator: true,
            with_standby: true,
            retry_delay_seconds: 0.3,
            planted_sql: None,
            patience: Duration::from_secs(60),
        }
    }
}

/// What a campaign came to.
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// What and how much.
    pub(crate) counts: Vec<(String, String)>,
    /// What is known about what was violated first.
    pub(crate) first_history: Vec<String>,
    pub(crate) directory: PathBuf,
    pub(crate) history: History,
}

impl Outcome {
    pub(crate) fn broken(&self) -> Vec<Invariant> {
        let mut broken: Vec<Invariant> =
            self.verdict.violations.iter().map(|violation| violation.invariant).collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }
}

pub(crate) async fn run(settings: &Settings) -> Outcome {
    let clock = Clock::start();
    let directory = Stage::new_directory(settings.seed);
    let stage = Arc::new(Stage::build(settings.with_standby, settings.commits).await);
    let (receivers, urls) =
        Receivers::start(Stage::secrets(), settings.misbehaviour, settings.seed, clock, &directory).await;
    let webhooks = stage.create_webhooks(&urls, settings.retry_delay_seconds).await;
    if let Some(sql) = &settings.planted_sql {
        stage.run(sql).await;
    }

    let standstill = Standstill::watch();
    let ledger = Arc::new(Ledger::create(&directory, clock));
    let faults = Arc::new(Faults::create(&directory, clock));
    let signals = Arc::new(Signals::default());
    emitters::preload(settings.preload, &stage, &ledger).await;
    let (fleet, keepers) = Fleet::start(&stage, &faults, &directory, clock, settings.orders.clone());
    let mut emitters =
        emitters::start(settings.emitters, settings.seed, &stage, &ledger, &signals, settings.commits);
    let operator = settings.with_operator.then(|| {
        let ids = webhooks.iter().map(|webhook| webhook.id).collect();
        tokio::spawn(operator::pause_and_resume(Arc::clone(&stage), ids, Arc::clone(&signals), settings.seed))
    });
    let brake = tokio::spawn(hold_back(Arc::clone(&stage), Arc::clone(&signals)));
    let waking = tokio::spawn(nemesis::wake_those_who_stopped(Arc::clone(&fleet)));
    let (plan, duration) = (settings.plan.clone(), settings.duration);
    nemesis::torment(plan, settings.seed, &stage, &fleet, &faults, clock, duration).await;

    // From here on nothing is harmed any more.
    brake.abort();
    signals.stop.store(true, Ordering::Relaxed);
    while emitters.join_next().await.is_some() {}
    let pauses = match operator {
        Some(operator) => Some(operator.await.expect("the operator comes to an end")),
        None => None,
    };
    let pending = drain(&stage, settings.patience).await;
    fleet.stop(keepers).await;
    waking.abort();
    let leftovers = look_for_leftovers(&stage, &fleet, &ledger, pending.is_some()).await;
    let client = stage.connect().await.expect("a session");
    let database = Database::read(&client, clock).await.expect("the database's account");
    let history = History {
        ledger: ledger.entries(),
        arrivals: receivers.arrivals(),
        faults: faults.all(),
        webhooks,
        database,
        pending,
        standstill: i64::try_from(standstill.longest().as_micros()).expect("it fits"),
        strays: receivers.strays(),
        leftovers,
    };
    let verdict = checker::check(&history);
    let first = verdict.violations.iter().find_map(|violation| violation.delivery);
    let first_history = first.map_or(Vec::new(), |id| history.of_delivery(id));
    let mut counts = counts(&history, &verdict, receivers.torn());
    if let Some(pauses) = pauses {
        counts.push(("webhooks paused for a while".to_owned(), pauses.to_string()));
    }
    counts.push(("transactions".to_owned(), ledger.transactions().to_string()));
    counts.push(("sidecar processes started".to_owned(), fleet.started().to_string()));
    let memory = format!("{} MiB", fleet.memory_bytes_max() / 1024 / 1024);
    counts.push(("most memory of a sidecar".to_owned(), memory));
    if verdict.violations.is_empty() {
        drop(fs::remove_dir_all(&directory));
    } else {
        stage.keep_logs(&directory);
    }
    Outcome { verdict, counts, first_history, directory, history }
}

/// Keeps the emitters within what can be drained.
async fn hold_back(stage: Arc<Stage>, signals: Arc<Signals>) {
    loop {
        pause(Duration::from_millis(300)).await;
        if let Some(pending) = count_pending(&stage).await {
            signals.hold.store(pending > PENDING_MAX, Ordering::Relaxed);
        }
    }
}

async fn count_pending(stage: &Stage) -> Option<i64> {
    let client = stage.connect().await.ok()?;
    let sql = "select count(*) from orbhook.deliveries where status = 'pending'";
    client.query_one(sql, &[]).await.ok().map(|row| row.get(0))
}

/// Waits until nothing is pending. As long as it becomes less, it may take its time; what is said if it does not is about
/// being slow or stuck, not about being lost.
async fn drain(stage: &Stage, patience: Duration) -> Option<String> {
    let mut least = i64::MAX;
    let mut since = std::time::Instant::now();
    loop {
        match count_pending(stage).await {
            Some(0) => return None,
            Some(pending) if pending < least => {
                least = pending;
                since = std::time::Instant::now();
            }
            _ => {}
        }
        if since.elapsed() >= patience {
            return Some(format!("{least} deliveries are still pending, and were for {patience:?}"));
        }
        pause(Duration::from_millis(100)).await;
    }
}

/// What nothing should have left behind, once emitters and sidecars are gone.
async fn look_for_leftovers(stage: &Stage, fleet: &Fleet, ledger: &Ledger, is_pending: bool) -> Vec<String> {
    let mut leftovers = fleet.surprises();
    leftovers.extend(
        ledger.refusals().into_iter().take(3).map(|refusal| format!("an emitter was refused: {refusal}")),
    );
    if fleet.memory_bytes_max() > MEMORY_BYTES_MAX {
        leftovers.push(format!("a sidecar held {} bytes", fleet.memory_bytes_max()));
    }
    let checks = [
        ("sessions of sidecars", "select count(*) from pg_stat_activity where application_name = 'orbhook'"),
        ("prepared transactions", "select count(*) from pg_prepared_xacts"),
        ("advisory locks", "select count(*) from pg_locks where locktype = 'advisory'"),
    ];
    for (what, sql) in checks {
        let gone = async {
            loop {
                if let Ok(client) = stage.connect().await
                    && let Ok(row) = client.query_one(sql, &[]).await
                    && row.get::<_, i64>(0) == 0
                {
                    return;
                }
                pause(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, gone).await.is_err() {
            leftovers.push(format!("{what} are left"));
        }
    }
    if stage.had_deadlocks() {
        leftovers.push("a server's log tells of a deadlock".to_owned());
    }
    // What is pending is held by a bug that leaves more behind than damage; one verdict is enough.
    if !is_pending {
        let damage = stage.amcheck();
        if !damage.is_empty() {
            leftovers.push(format!("pg_amcheck: {damage}"));
        }
    }
    leftovers
}

fn counts(history: &History, verdict: &Verdict, torn: usize) -> Vec<(String, String)> {
    let fates = |fate: Fate| history.ledger.values().filter(|entry| entry.fate == fate).count();
    let broken = |invariant: Invariant| {
        verdict.violations.iter().filter(|violation| violation.invariant == invariant).count()
    };
    let duplicates: usize = verdict.duplicates.values().sum();
    let percent = 100.0 * duplicates as f64 / verdict.accepted.max(1) as f64;
    let mut counts: Vec<(String, String)> = faults::count(&history.faults)
        .into_iter()
        .map(|(kind, count)| (format!("{kind:?}"), count.to_string()))
        .collect();
    counts.push(("events committed".to_owned(), history.database.events.len().to_string()));
    counts.push((
        "events acknowledged, rolled back, ambiguous (of these committed)".to_owned(),
        format!(
            "{}, {}, {} ({})",
            fates(Fate::Acked) + fates(Fate::AckedEarly),
            fates(Fate::RolledBack),
            fates(Fate::Ambiguous),
            verdict.ambiguous_committed
        ),
    ));
    counts.push((
        "acknowledged with synchronous_commit = off and taken back by a crash".to_owned(),
        verdict.early_lost.to_string(),
    ));
    counts.push(("deliveries".to_owned(), history.database.deliveries.len().to_string()));
    counts.push((
        "requests complete, accepted, torn".to_owned(),
        format!("{}, {}, {torn}", history.arrivals.len(), verdict.accepted),
    ));
    counts.push((
        "lost, invented, ids used twice".to_owned(),
        format!(
            "{}, {}, {}",
            broken(Invariant::NothingIsLost),
            broken(Invariant::NothingIsInvented) + broken(Invariant::RolledBackStaysSilent),
            broken(Invariant::AnIdIsOneMessage)
        ),
    ));
    let causes: Vec<String> =
        verdict.duplicates.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    counts.push((
        "duplicates, by cause".to_owned(),
        format!("{duplicates} ({percent:.2} % of accepted): {}", causes.join(", ")),
    ));
    let standstill_ms = history.standstill / MILLISECOND;
    let rate = match verdict.rate_window {
        None => format!("not measured: the receivers stood still for {standstill_ms} ms"),
        Some(window) => format!(
            "{} within {} ms (the receivers stood still for at most {standstill_ms} ms)",
            verdict.rate_most,
            window / MILLISECOND
        ),
    };
    counts.push(("most requests at a limit of 30/s".to_owned(), rate));
    counts
}
