//! orbhook's two protocols, small enough to try every order of steps: how a sidecar falls asleep without missing what is
//! committed meanwhile (the doorbell), and how a delivery is sent by one owner at a time (claim, lease, settle).
//!
//! Two emitters, each with one delivery, and two sidecars, as PostgreSQL sees them. Every step a process or the server
//! takes is a [`Step`]; it names the function whose behaviour it stands for. Faults are steps as well, and a run holds a
//! few of them, at any place. Each rule that the design rests on can be broken by a [`Rules`] flag: a model in which
//! nothing can go wrong would prove nothing.
//!
//! Left out: time (a lease may end whenever its holder has stopped or gone), pacing, and what an answer means beyond
//! "taken" and "not taken".

mod reach;
mod rules;
mod state;
mod step;

use stateright::{Model, Property};

pub use reach::{Reached, explore};
pub use rules::{Fault, Rules};
pub use state::{Delivery, Emitter, Lease, Phase, Sidecar, Stage, State, Ticket};
pub use step::Step;

/// The protocol under some rules and with a number of faults.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub rules: Rules,
    /// Which faults may happen,
    pub faults: &'static [Fault],
    /// and how many of them in one run.
    pub faults_max: u8,
}

/// Names of the properties, as a discovery names them.
pub const NO_LOST_WAKE_UP: &str =
    "no wake-up is lost: with work to do and nothing on its way, somebody is awake";
pub const ONE_OWNER: &str = "a delivery is settled by nobody but the owner of its latest claim";
pub const SETTLED_ONCE: &str = "a delivery is settled once";
pub const NO_STALE_DIAL: &str = "nothing is sent on a lease that has run down";
pub const NO_PHANTOM: &str = "nothing is sent for a transaction that never was";
pub const SENT_ONCE: &str = "without faults everything is sent once";

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.faults_max)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        step::possible(self, state, steps);
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut after = before.clone();
        step::take(&self.rules, &mut after, step);
        after.normalise(self.is_undisturbed(&after));
        Some(after)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        vec![
            Property::<Protocol>::always(NO_LOST_WAKE_UP, |model, state| {
                // A fault may lose one, and without session locks nobody rings: then the poll finds the work, which is shown by
                // asking of every state whether it can still be drained.
                !model.is_undisturbed(state) || !model.rules.has_session_locks || !state.has_overslept()
            }),
            Property::<Protocol>::always(ONE_OWNER, |_, state| !state.was_usurped),
            Property::<Protocol>::always(SETTLED_ONCE, |_, state| {
                state.deliveries.iter().all(|d| d.settled <= 1)
            }),
            Property::<Protocol>::always(NO_STALE_DIAL, |_, state| !state.was_dialled_late),
            Property::<Protocol>::always(NO_PHANTOM, |_, state| {
                state.deliveries.iter().all(|delivery| !(delivery.was_undone && delivery.sent > 0))
            }),
            Property::<Protocol>::always(SENT_ONCE, |model, state| {
                !model.is_undisturbed(state) || state.deliveries.iter().all(|delivery| delivery.sent <= 1)
            }),
        ]
    }
}

impl Protocol {
    pub fn new(rules: Rules, faults: &'static [Fault], faults_max: u8) -> Protocol {
        Protocol { rules, faults, faults_max }
    }

    fn is_undisturbed(&self, state: &State) -> bool {
        state.faults_left == self.faults_max
    }
}
