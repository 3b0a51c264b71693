//! Runs that answer one question each, with the campaign's own checker behind them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use uuid::Uuid;

use crate::campaign::{Outcome, Settings};
use crate::clock::{MILLISECOND, Micros};
use crate::faults::Kind;
use crate::fleet::Orders;
use crate::history::History;
use crate::nemesis::Plan;
use crate::receivers::{Arrival, Misbehaviour};
use crate::stage::Commits;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Run {
    /// Everything at once: the campaign.
    Campaign,
    /// 1,000,000 deliveries with three sidecars and no fault: duplicates.
    Million,
    /// 200 SIGTERMs under load: duplicates.
    Sigterms,
    /// 200 kills: how long until what a dead sidecar had is sent by another.
    Orphans,
    /// Each kind of crash of the server ten times: how long until requests flow again.
    Resume,
}

impl Run {
    pub(crate) fn settings(self, seed: u64, duration: Duration) -> Settings {
        let usual = Settings::usual(seed, duration);
        let quiet = Settings {
            orders: Orders { abort_percent: 0, stop_percent: 0, ..usual.orders.clone() },
            misbehaviour: Misbehaviour::NONE,
            commits: Commits::Durable,
            with_operator: false,
            with_standby: false,
            // They end by the number of their faults.
            duration: Duration::from_secs(3600),
            ..usual.clone()
        };
        let times = |kind: Kind, count: usize, rest_ms_max: u64| Plan {
            weights: vec![(kind, 1)],
            rest_ms_max,
            faults_max: Some(count),
        };
        match self {
            Run::Campaign => usual,
            Run::Million => Settings {
                emitters: 0,
                preload: 1_000_000,
                plan: Plan::only(&[]),
                duration: Duration::ZERO,
                misbehaviour: Misbehaviour { thinks: false, ..Misbehaviour::NONE },
                ..quiet
            },
            Run::Sigterms => Settings { plan: times(Kind::SidecarTerminated, 200, 800), ..quiet },
            Run::Orphans => Settings { plan: times(Kind::SidecarKilled, 200, 1_600), ..quiet },
            Run::Resume => {
                let kinds =
                    [Kind::BackendKilled, Kind::PostmasterKilled, Kind::ServerRestarted, Kind::Promoted];
                let plan = Plan { faults_max: Some(40), rest_ms_max: 4_000, ..Plan::only(&kinds) };
                Settings { plan, with_standby: true, ..quiet }
            }
        }
    }

    /// The rows that answer it.
    pub(crate) fn figures(self, outcome: &Outcome) -> Vec<(String, String)> {
        match self {
            Run::Campaign | Run::Million | Run::Sigterms => Vec::new(),
            Run::Orphans => {
                vec![("orphan sent again after its sidecar's kill".to_owned(), orphans(&outcome.history))]
            }
            Run::Resume => resume(&outcome.history),
        }
    }
}

/// From the kill of a sidecar to the next request for each delivery that it had not reported.
fn orphans(history: &History) -> String {
    let mut killed: HashMap<&str, Micros> = HashMap::new();
    for fault in history.faults.iter().filter(|fault| fault.kind == Kind::SidecarKilled) {
        for process in &fault.processes {
            killed.insert(process, fault.from);
        }
    }
    let came: HashMap<(Uuid, i32), &Arrival> =
        history.arrivals.iter().map(|arrival| ((arrival.delivery, arrival.attempt), arrival)).collect();
    let mut waits: Vec<Micros> = history
        .database
        .attempts
        .iter()
        .filter(|(_, attempt)| attempt.is_unknown())
        .filter_map(|((delivery, number), attempt)| {
            let at = killed.get(history.database.process(attempt.sidecar?))?;
            let next = came.get(&(*delivery, number + 1))?;
            Some(next.at - at)
        })
        .collect();
    spread(&mut waits)
}

/// From the moment the server answers again to the first request that arrives.
fn resume(history: &History) -> Vec<(String, String)> {
    let mut waits: BTreeMap<Kind, (Vec<Micros>, Vec<Micros>)> = BTreeMap::new();
    let mut times: Vec<Micros> = history.arrivals.iter().map(|arrival| arrival.at).collect();
    times.sort_unstable();
    for fault in &history.faults {
        // What was under way when it struck still arrives.
        let after = fault.from + 100 * MILLISECOND;
        let Some(first) = times.get(times.partition_point(|at| *at < after)) else { continue };
        let (silences, delays) = waits.entry(fault.kind).or_default();
        silences.push(first - fault.from);
        delays.push((first - fault.to).max(0));
    }
    let mut rows: Vec<(String, String)> = waits
        .into_iter()
        .flat_map(|(kind, (mut silences, mut delays))| {
            [
                (format!("{kind:?}: no request for"), spread(&mut silences)),
                (format!("{kind:?}: first request after the server answers"), spread(&mut delays)),
            ]
        })
        .collect();
    rows.sort();
    rows
}

fn spread(waits: &mut [Micros]) -> String {
    waits.sort_unstable();
    let at = |share: f64| {
        let last = waits.len().saturating_sub(1);
        let index = (share * last as f64).round() as usize;
        waits.get(index).copied().unwrap_or(0) as f64 / 1e6
    };
    format!("p50 {:.2} s, p99 {:.2} s, max {:.2} s ({} times)", at(0.5), at(0.99), at(1.0), waits.len())
}
