//! The checker against accounts made by hand, of one delivery that came twice.

use std::collections::HashMap;

use super::*;
use crate::history::{Attempt, Database, Delivery};
use crate::ledger::Entry;

const CLAIMED: Micros = 60 * SECOND;
const TOKEN: Token = 7;
const LIMIT: u32 = 30;

#[test]
fn what_a_killed_sidecar_had_claimed_may_come_again() {
    let killed = [fault(Kind::SidecarKilled, CLAIMED + 100 * MILLISECOND, "first")];
    let verdict = check(&sent_twice(&killed, "unknown"));
    assert_eq!(broken(&verdict), []);
    assert_eq!(verdict.duplicates, BTreeMap::from([("SidecarKilled".to_owned(), 1)]));
}

#[test]
fn a_repeat_without_any_fault_is_noticed() {
    assert_eq!(broken(&check(&sent_twice(&[], "late"))), [Invariant::DuplicatesHaveACause]);
}

#[test]
fn what_hit_another_sidecar_excuses_no_repeat() {
    let killed = [fault(Kind::SidecarKilled, CLAIMED + 100 * MILLISECOND, "second")];
    assert_eq!(broken(&check(&sent_twice(&killed, "late"))), [Invariant::DuplicatesHaveACause]);
}

#[test]
fn a_server_that_died_after_the_claim_excuses_a_repeat_and_one_that_was_back_before_it_does_not() {
    let died = |at| [fault(Kind::PostmasterKilled, at, "")];
    assert_eq!(broken(&check(&sent_twice(&died(CLAIMED + 100 * MILLISECOND), "late"))), []);
    let before = died(CLAIMED - 5 * SECOND);
    assert_eq!(broken(&check(&sent_twice(&before, "late"))), [Invariant::DuplicatesHaveACause]);
}

#[test]
fn a_sidecar_that_lives_and_never_reports_is_noticed() {
    let died = [fault(Kind::PostmasterKilled, CLAIMED + 100 * MILLISECOND, "")];
    assert_eq!(broken(&check(&sent_twice(&died, "unknown"))), [Invariant::DuplicatesHaveACause]);
}

#[test]
fn what_was_rolled_back_and_came_is_noticed() {
    let killed = [fault(Kind::SidecarKilled, CLAIMED + 100 * MILLISECOND, "first")];
    let mut history = sent_twice(&killed, "unknown");
    history
        .ledger
        .insert(TOKEN, Entry { fate: Fate::RolledBack, at: CLAIMED - SECOND, event_type: "USER_LOGIN" });
    assert_eq!(broken(&check(&history)), [Invariant::RolledBackStaysSilent]);
}

#[test]
fn more_requests_than_the_limit_and_one_are_noticed() {
    let rates = |requests: u32| {
        let mut history = sent_twice(&[], "late");
        let arrival = history.arrivals[0].clone();
        history.arrivals = (0..requests)
            .map(|n| Arrival { at: CLAIMED + i64::from(n) * MILLISECOND, ..arrival.clone() })
            .collect();
        broken(&check(&history)).contains(&Invariant::RateLimitHolds)
    };
    assert!(!rates(LIMIT + 1));
    assert!(rates(LIMIT + 2));
}

#[test]
fn what_is_left_behind_is_noticed() {
    let killed = [fault(Kind::SidecarKilled, CLAIMED + 100 * MILLISECOND, "first")];
    let mut history = sent_twice(&killed, "unknown");
    history.leftovers.push("advisory locks are left".to_owned());
    assert_eq!(broken(&check(&history)), [Invariant::NothingLeaks]);
}

/// Claimed by the first sidecar and accepted; two seconds later accepted from the second. `first`: what became of the first
/// attempt, `unknown` or `late`.
fn sent_twice(faults: &[Fault], first: &str) -> History {
    let [delivery, event, webhook, one, two] = [1, 2, 3, 4, 5].map(Uuid::from_u128);
    let arrival = |at, attempt, sidecar| Arrival {
        at,
        webhook: 0,
        delivery,
        attempt,
        sidecar,
        token: TOKEN,
        body_hash: 1,
        reply: Reply::Accepted,
    };
    let attempt = |sidecar, started_at, is_unknown: bool, late| Attempt {
        sidecar: Some(sidecar),
        started_at,
        duration_ms: Some(20),
        status_code: (!is_unknown).then_some(200),
        error_class: is_unknown.then(|| "unknown".to_owned()),
        late,
    };
    let again = CLAIMED + 2 * SECOND;
    let finished_at = Some(again + 30 * MILLISECOND);
    let row = Delivery { event, webhook, status: "delivered".to_owned(), attempts: 2, finished_at };
    let acked = Entry { fate: Fate::Acked, at: CLAIMED - SECOND, event_type: "USER_LOGIN" };
    History {
        ledger: HashMap::from([(TOKEN, acked)]),
        arrivals: vec![arrival(CLAIMED + 50 * MILLISECOND, 1, one), arrival(again, 2, two)],
        faults: faults.to_vec(),
        webhooks: vec![Webhook { id: webhook, event_types: &["USER_LOGIN"], rate_limit: Some(LIMIT) }],
        database: Database {
            events: HashMap::from([(event, (TOKEN, "USER_LOGIN".to_owned()))]),
            deliveries: HashMap::from([(delivery, row)]),
            attempts: HashMap::from([
                ((delivery, 1), attempt(one, CLAIMED, first == "unknown", first == "late")),
                ((delivery, 2), attempt(two, again, false, false)),
            ]),
            names: HashMap::from([(one, "first".to_owned()), (two, "second".to_owned())]),
        },
        pending: None,
        standstill: 0,
        strays: Vec::new(),
        leftovers: Vec::new(),
    }
}

/// Over after a second. `process`: whom it hit, empty for the server.
fn fault(kind: Kind, from: Micros, process: &str) -> Fault {
    let processes = if process.is_empty() { Vec::new() } else { vec![process.to_owned()] };
    Fault { kind, from, to: from + SECOND, processes, registrations: Vec::new() }
}

fn broken(verdict: &Verdict) -> Vec<Invariant> {
    let mut broken: Vec<Invariant> = verdict.violations.iter().map(|violation| violation.invariant).collect();
    broken.sort_unstable();
    broken.dedup();
    broken
}
