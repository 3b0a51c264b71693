//! Does harm, in an order that the seed decides.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use orbhook_tests::pause;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::faults::{Faults, Kind};
use crate::fleet::{Fleet, is_stopped};
use crate::stage::{LEASE, Stage};

/// How much longer than a lease a process is stopped: others notice within a second that it has run out.
const PAST_LEASE_MS: Range<u64> = 500..4_000;

/// How often each kind is chosen, relative to the others, and how long it rests between two.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) weights: Vec<(Kind, u32)>,
    pub(crate) rest_ms_max: u64,
    /// It ends after so many, if its time has not ended before.
    pub(crate) faults_max: Option<usize>,
}

impl Plan {
    /// Everything that acknowledged work survives.
    pub(crate) fn everything() -> Plan {
        Plan {
            weights: vec![
                (Kind::SidecarKilled, 30),
                (Kind::SidecarStopped, 8),
                (Kind::SidecarStoppedPastLease, 5),
                (Kind::SidecarTerminated, 15),
                (Kind::SessionTerminated, 10),
                (Kind::AllSessionsTerminated, 8),
                (Kind::BackendKilled, 3),
                (Kind::PostmasterKilled, 3),
                (Kind::ServerRestarted, 5),
                (Kind::Promoted, 2),
            ],
            rest_ms_max: 1_500,
            faults_max: None,
        }
    }

    /// These, equally often.
    pub(crate) fn only(kinds: &[Kind]) -> Plan {
        Plan { weights: kinds.iter().map(|kind| (*kind, 1)).collect(), rest_ms_max: 1_000, faults_max: None }
    }
}

/// For so long; what has begun then is ended first.
pub(crate) async fn torment(
    plan: Plan,
    seed: u64,
    stage: &Stage,
    fleet: &Arc<Fleet>,
    faults: &Arc<Faults>,
    clock: Clock,
    duration: Duration,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut frozen: JoinSet<()> = JoinSet::new();
    let until = clock.now() + i64::try_from(duration.as_micros()).expect("it fits");
    while clock.now() < until && plan.faults_max.is_none_or(|most| faults.count() < most) {
        if plan.weights.is_empty() {
            pause(Duration::from_millis(100)).await;
            continue;
        }
        pause(Duration::from_millis(random.random_range(0..plan.rest_ms_max))).await;
        let kind = choose(&plan, &mut random);
        let slot = random.random_range(0..fleet.size());
        let which: u64 = random.random();
        match kind {
            Kind::SidecarKilled => fleet.kill(slot),
            Kind::SidecarTerminated => fleet.terminate(slot),
            Kind::SidecarStopped => {
                let duration = Duration::from_millis(random.random_range(500..3_000));
                frozen.spawn(Arc::clone(fleet).freeze(slot, kind, duration));
            }
            Kind::SidecarStoppedPastLease => {
                let duration = LEASE + Duration::from_millis(random.random_range(PAST_LEASE_MS));
                frozen.spawn(Arc::clone(fleet).freeze(slot, kind, duration));
            }
            Kind::SessionTerminated | Kind::AllSessionsTerminated => {
                let fault = faults.begin(kind, Vec::new(), Vec::new());
                let which = (kind == Kind::SessionTerminated).then_some(which);
                faults.blame(fault, stage.terminate_sidecar_sessions(which).await);
                faults.end(fault);
            }
            Kind::Promoted | Kind::PromotedLagging if !stage.is_replicated() || !stage.is_covered() => {}
            Kind::BackendKilled
            | Kind::PostmasterKilled
            | Kind::ServerRestarted
            | Kind::Promoted
            | Kind::PromotedLagging => {
                let fault = faults.begin(kind, Vec::new(), Vec::new());
                strike_server(stage, faults, fault, kind, which).await;
            }
            Kind::SidecarAborted => {}
        }
    }
    // Those who are stopped go on by themselves.
    while frozen.join_next().await.is_some() {}
}

fn choose(plan: &Plan, random: &mut StdRng) -> Kind {
    let total: u32 = plan.weights.iter().map(|(_, weight)| weight).sum();
    let mut chance = random.random_range(0..total);
    for (kind, weight) in &plan.weights {
        match chance.checked_sub(*weight) {
            Some(rest) => chance = rest,
            None => return *kind,
        }
    }
    unreachable!("the chance is below the total")
}

async fn strike_server(stage: &Stage, faults: &Faults, fault: usize, kind: Kind, which: u64) {
    match kind {
        Kind::BackendKilled => drop(stage.kill_backend(which).await),
        Kind::PostmasterKilled => stage.kill_postmaster().await,
        Kind::ServerRestarted => stage.restart_immediately().await,
        Kind::Promoted => return stage.fail_over(|| faults.end(fault)).await,
        _ => {
            stage.cut_standby_off().await;
            pause(Duration::from_secs(3)).await;
            return stage.fail_over(|| faults.end(fault)).await;
        }
    }
    faults.end(fault);
}

/// A process that was told to stop at a point does it by itself; this lets it go on after its lease. Runs until it is dropped.
pub(crate) async fn wake_those_who_stopped(fleet: Arc<Fleet>) {
    let mut asleep = JoinSet::new();
    let mut known = Vec::new();
    loop {
        pause(Duration::from_millis(50)).await;
        for slot in 0..fleet.size() {
            let Some(running) = fleet.running(slot) else { continue };
            if running.stops && !known.contains(&running.pid) && is_stopped(running.pid) {
                known.push(running.pid);
                let kind = Kind::SidecarStoppedPastLease;
                let duration = LEASE + Duration::from_millis(rand::random_range(PAST_LEASE_MS));
                asleep.spawn(Arc::clone(&fleet).freeze(slot, kind, duration));
            }
        }
        while asleep.try_join_next().is_some() {}
    }
}
