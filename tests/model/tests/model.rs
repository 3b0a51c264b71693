#![allow(clippy::print_stdout, reason = "the number of states is part of the result")]

use orbhook_model::{
    Fault, NO_LOST_WAKE_UP, NO_PHANTOM, NO_STALE_DIAL, ONE_OWNER, Protocol, Rules, SENT_ONCE, explore,
};
use stateright::{Checker as _, Model as _};

const CRASHES: &[Fault] = &[Fault::SidecarKilled, Fault::ServerCrashed];
const KEPT: Rules = Rules::KEPT;

#[test]
fn without_faults_no_wake_up_is_lost_and_everything_is_sent_once() {
    holds(&Protocol::new(KEPT, &[], 0));
}

#[test]
fn any_fault_at_any_step_breaks_nothing_and_everything_is_delivered() {
    holds(&Protocol::new(KEPT, Fault::ALL, 1));
}

#[test]
fn two_crashes_at_any_steps_break_nothing_and_everything_is_delivered() {
    holds(&Protocol::new(KEPT, CRASHES, 2));
}

#[test]
fn without_session_locks_leases_bring_everything_back() {
    holds(&Protocol::new(Rules { has_session_locks: false, ..KEPT }, Fault::ALL, 1));
}

#[test]
fn a_sidecar_that_falls_asleep_without_a_second_look_misses_a_commit() {
    fails(Rules { looks_after_taking_the_lock: false, ..KEPT }, &[], 0, NO_LOST_WAKE_UP);
}

#[test]
fn a_lock_let_go_before_the_commit_is_visible_loses_a_wake_up() {
    fails(Rules { holds_the_lock_until_visible: false, ..KEPT }, &[], 0, NO_LOST_WAKE_UP);
}

#[test]
fn a_commit_that_does_not_ring_loses_a_wake_up() {
    fails(Rules { rings_when_refused: false, ..KEPT }, &[], 0, NO_LOST_WAKE_UP);
}

#[test]
fn without_the_fence_a_late_result_is_taken_from_somebody_who_lost_the_delivery() {
    fails(Rules { fences: false, ..KEPT }, &[Fault::SidecarKilled, Fault::HeldUp], 1, ONE_OWNER);
}

#[test]
fn a_claim_that_ignores_leases_sends_twice_without_any_fault() {
    fails(Rules { respects_leases: false, ..KEPT }, &[], 0, SENT_ONCE);
}

#[test]
fn without_a_look_at_the_lease_a_sidecar_that_was_stopped_sends_late() {
    fails(Rules { checks_the_lease_before_dialling: false, ..KEPT }, &[Fault::HeldUp], 1, NO_STALE_DIAL);
}

#[test]
fn a_claim_that_is_not_durable_sends_what_a_crash_then_undoes() {
    fails(Rules { claims_durably: false, ..KEPT }, &[Fault::ServerCrashed], 1, NO_PHANTOM);
}

#[test]
fn without_the_poll_what_was_prepared_is_never_sent() {
    is_stuck(Rules { polls: false, ..KEPT }, &[Fault::Prepared]);
}

#[test]
fn leases_that_never_end_keep_a_delivery_for_ever() {
    is_stuck(Rules { leases_end: false, ..KEPT }, &[Fault::ClaimAnswerLost]);
}

/// Every property in every state, and from each of them everything can still be delivered.
fn holds(model: &Protocol) {
    let checker = model.clone().checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    let reached = explore(model);
    assert!(reached.stuck.is_none(), "from here nothing more is delivered: {:#?}", reached.stuck);
    assert!(reached.drained > 0);
    assert_eq!(reached.states, checker.unique_state_count());
    println!("{} faults of {:?}: {} states", model.faults_max, model.faults, reached.states);
}

/// The property fails, at the end of a path that is there to be read.
fn fails(rules: Rules, faults: &'static [Fault], faults_max: u8, property: &'static str) {
    let checker = Protocol::new(rules, faults, faults_max).checker().threads(2).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{property}: holds all the same"));
    println!("{property}: {:?}", path.into_actions());
}

fn is_stuck(rules: Rules, faults: &'static [Fault]) {
    assert!(
        explore(&Protocol::new(rules, faults, 1)).stuck.is_some(),
        "everything is delivered all the same"
    );
    holds(&Protocol::new(KEPT, faults, 1));
}
