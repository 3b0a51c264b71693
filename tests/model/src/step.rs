use crate::Protocol;
use crate::rules::{Fault, Rules};
use crate::state::{Delivery, EMITTERS, Emitter, Lease, Phase, SIDECARS, Sidecar, Stage, State, Ticket};

/// What one process, or the server, does at once. The first number is the emitter or sidecar, the second the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// `ring` in doorbell.rs, at PRE_COMMIT: tries the doorbell lock shared; refused, it queues a NOTIFY.
    Ring(usize),
    /// Only with a broken rule: the shared lock goes before the commit is visible.
    LetGoEarly(usize),
    /// CommitTransaction, up to where others see it. Durable, or with `synchronous_commit = off` not yet.
    Commit {
        emitter: usize,
        is_durable: bool,
    },
    /// CommitTransaction, the rest: locks go, listeners are signalled.
    FinishCommit(usize),
    RollBack(usize),
    CommitPrepared(usize),
    RollBackPrepared(usize),

    /// `Session::begin` in wake.rs: LISTEN, `orbhook.register`, and a first claim.
    Start(usize),
    /// `keep_awake` in wake.rs notices a lost session and begins another; `on_registration` in worker.rs gives back what waits.
    Reconnect(usize),
    /// `orbhook.claim`, committed and its rows received. Empty: `Mode::Sleepy`.
    Claim(usize),
    /// First statement of `orbhook.doze`: tries the doorbell lock.
    TakeDoorbell(usize),
    /// `orbhook.look`, at the end of `orbhook.doze` or by itself.
    Look(usize),
    /// A notification is read: `wake_up` in wake.rs.
    Hear(usize),
    /// `orbhook.rouse`.
    Rouse(usize),
    /// The timer of idle.rs.
    Poll(usize),
    /// `deliver` in worker.rs: looks at the lease and dials, or lets go.
    Dial(usize, usize),
    /// The endpoint takes it.
    Answer(usize, usize),
    /// `orbhook.settle`, committed and heard of.
    Settle(usize, usize),
    /// Column `lease_until` is past.
    LeaseEnds(usize),

    /// A fault, and whom it meets.
    Fault(Fault, usize),
}

impl Step {
    /// Whether it is no fault: what must be enough to deliver everything.
    pub fn is_ordinary(&self) -> bool {
        !matches!(self, Step::Fault(..))
    }
}

/// All steps that can be taken now.
pub(crate) fn possible(model: &Protocol, state: &State, steps: &mut Vec<Step>) {
    for (n, emitter) in state.emitters.iter().enumerate() {
        emitter_steps(&model.rules, *emitter, n, steps);
    }
    for (n, sidecar) in state.sidecars.iter().enumerate() {
        sidecar_steps(&model.rules, sidecar, n, steps);
    }
    for (n, delivery) in state.deliveries.iter().enumerate() {
        if model.rules.leases_end && lease_can_end(state, delivery, n) {
            steps.push(Step::LeaseEnds(n));
        }
    }
    if state.faults_left > 0 {
        for fault in model.faults {
            let meets = |n: &usize| fault_can_meet(state, *fault, *n);
            steps.extend((0..SIDECARS).filter(meets).map(|n| Step::Fault(*fault, n)));
        }
    }
}

fn emitter_steps(rules: &Rules, emitter: Emitter, n: usize, steps: &mut Vec<Step>) {
    match emitter {
        Emitter::Open => steps.extend([Step::Ring(n), Step::RollBack(n)]),
        Emitter::Holding if !rules.holds_the_lock_until_visible => steps.push(Step::LetGoEarly(n)),
        Emitter::Holding | Emitter::Ringing | Emitter::Silent => {
            steps.extend([true, false].map(|is_durable| Step::Commit { emitter: n, is_durable }));
        }
        Emitter::VisibleHolding | Emitter::VisibleRinging => steps.push(Step::FinishCommit(n)),
        Emitter::Prepared => steps.extend([Step::CommitPrepared(n), Step::RollBackPrepared(n)]),
        Emitter::Ended => {}
    }
}

fn sidecar_steps(rules: &Rules, sidecar: &Sidecar, n: usize, steps: &mut Vec<Step>) {
    match sidecar.phase {
        Phase::Down => steps.push(Step::Start(n)),
        Phase::Severed => {
            steps.push(Step::Reconnect(n));
            // Claims go by a connection of their own, and the id may not be known to be dead.
            if !sidecar.is_known_dead {
                steps.push(Step::Claim(n));
            }
        }
        Phase::Awake => steps.push(Step::Claim(n)),
        Phase::Drowsy => steps.push(Step::TakeDoorbell(n)),
        Phase::Looking | Phase::LookingRefused => steps.push(Step::Look(n)),
        Phase::Asleep if rules.polls => steps.push(Step::Poll(n)),
        Phase::Asleep => {}
    }
    if sidecar.phase == Phase::Awake && sidecar.holds_doorbell {
        steps.push(Step::Rouse(n));
    }
    if sidecar.is_notified && matches!(sidecar.phase, Phase::Awake | Phase::Drowsy | Phase::Asleep) {
        steps.push(Step::Hear(n));
    }
    for (d, ticket) in sidecar.tickets.iter().enumerate() {
        match ticket.map(|ticket| ticket.stage) {
            None => {}
            Some(Stage::Claimed) => steps.push(Step::Dial(n, d)),
            Some(Stage::Dialled) => steps.push(Step::Answer(n, d)),
            Some(Stage::Taken | Stage::Refused | Stage::Released) => steps.push(Step::Settle(n, d)),
        }
    }
}

/// A lease is longer than a request and what follows it, so it ends only on somebody who was held up, or is gone, or never got it.
fn lease_can_end(state: &State, delivery: &Delivery, n: usize) -> bool {
    let is_current = |ticket: &Ticket| ticket.is_latest && !ticket.has_run_down;
    delivery.is_open()
        && delivery.lease != Lease::Free
        && !state.sidecars.iter().any(|sidecar| sidecar.tickets[n].as_ref().is_some_and(is_current))
}

fn fault_can_meet(state: &State, fault: Fault, n: usize) -> bool {
    let sidecar = &state.sidecars[n];
    let stages = || sidecar.tickets.iter().flatten().map(|ticket| ticket.stage);
    match fault {
        Fault::SidecarKilled => sidecar.phase != Phase::Down,
        // What is in flight is waited for first.
        Fault::SidecarStopped => {
            sidecar.has_session() && stages().all(|stage| matches!(stage, Stage::Claimed | Stage::Released))
        }
        Fault::SessionLost => sidecar.has_session(),
        Fault::NotificationLost => sidecar.is_notified,
        Fault::ServerCrashed => n == 0,
        Fault::HeldUp => sidecar.tickets.iter().flatten().any(|ticket| !ticket.has_run_down),
        Fault::Refused => stages().any(|stage| stage == Stage::Dialled),
        Fault::ClaimAnswerLost => {
            sidecar.phase == Phase::Awake && state.deliveries.iter().any(Delivery::is_due)
        }
        Fault::SettleAnswerLost => {
            stages().any(|stage| matches!(stage, Stage::Taken | Stage::Refused | Stage::Released))
        }
        Fault::Prepared => state.emitters[n] == Emitter::Open,
    }
}

pub(crate) fn take(rules: &Rules, state: &mut State, step: Step) {
    match step {
        Step::Ring(n) => state.emitters[n] = ring(rules, state),
        Step::LetGoEarly(n) => state.emitters[n] = Emitter::Silent,
        Step::Commit { emitter, is_durable } => commit(state, emitter, is_durable),
        Step::FinishCommit(n) => finish_commit(state, n),
        Step::RollBack(n) | Step::RollBackPrepared(n) => roll_back(state, n),
        Step::CommitPrepared(n) => {
            state.emitters[n] = Emitter::Silent;
            commit(state, n, true);
        }
        Step::Start(n) | Step::Reconnect(n) => begin_session(&mut state.sidecars[n]),
        Step::Claim(n) => {
            let found = claim(rules, state, n, true);
            let sidecar = &mut state.sidecars[n];
            if !found && sidecar.phase == Phase::Awake {
                sidecar.phase = Phase::Drowsy;
            }
        }
        Step::TakeDoorbell(n) => take_doorbell(rules, state, n),
        Step::Look(n) => look(rules, state, n),
        Step::Hear(n) => {
            state.sidecars[n].is_notified = false;
            state.sidecars[n].phase = Phase::Awake;
        }
        Step::Rouse(n) => state.sidecars[n].holds_doorbell = false,
        Step::Poll(n) => state.sidecars[n].phase = Phase::Drowsy,
        Step::Dial(n, d) => dial(rules, state, n, d),
        Step::Answer(n, d) => set_stage(&mut state.sidecars[n], d, Stage::Taken),
        Step::Settle(n, d) => {
            settle(rules, state, n, d);
            state.sidecars[n].tickets[d] = None;
            // `on_report` in worker.rs: there may be more to claim now.
            if state.sidecars[n].phase == Phase::Asleep {
                state.sidecars[n].phase = Phase::Awake;
            }
        }
        Step::LeaseEnds(d) => state.deliveries[d].lease = Lease::Free,
        Step::Fault(fault, n) => {
            state.faults_left -= 1;
            suffer(rules, state, fault, n);
        }
    }
}

fn ring(rules: &Rules, state: &State) -> Emitter {
    let somebody_sleeps = state.sidecars.iter().any(|sidecar| sidecar.holds_doorbell);
    match (somebody_sleeps, rules.rings_when_refused) {
        (false, _) => Emitter::Holding,
        (true, true) => Emitter::Ringing,
        (true, false) => Emitter::Silent,
    }
}

fn commit(state: &mut State, n: usize, is_durable: bool) {
    state.deliveries[n].is_visible = true;
    state.deliveries[n].is_durable = is_durable;
    state.emitters[n] = match state.emitters[n] {
        Emitter::Holding => Emitter::VisibleHolding,
        Emitter::Ringing => Emitter::VisibleRinging,
        _ => Emitter::Ended,
    };
}

fn finish_commit(state: &mut State, n: usize) {
    if state.emitters[n] == Emitter::VisibleRinging {
        for sidecar in state.sidecars.iter_mut().filter(|sidecar| sidecar.has_session()) {
            sidecar.is_notified = true;
        }
    }
    state.emitters[n] = Emitter::Ended;
}

fn roll_back(state: &mut State, n: usize) {
    state.emitters[n] = Emitter::Ended;
    state.deliveries[n].was_undone = true;
}

fn begin_session(sidecar: &mut Sidecar) {
    let mut tickets = sidecar.tickets;
    for ticket in tickets.iter_mut().flatten().filter(|ticket| ticket.stage == Stage::Claimed) {
        ticket.stage = Stage::Released;
    }
    *sidecar = Sidecar { phase: Phase::Awake, tickets, ..Sidecar::DOWN };
}

/// False: nothing was due. A sidecar that still has an old ticket for a delivery is not given it again: one slot each keeps
/// the model small, and two sidecars show the same.
fn claim(rules: &Rules, state: &mut State, n: usize, arrives: bool) -> bool {
    let lease = match state.sidecars[n].has_session() {
        true => lease_of(n),
        // Its id's lock is free already.
        false => Lease::Orphaned,
    };
    let mut found = false;
    for (d, delivery) in state.deliveries.iter_mut().enumerate() {
        let is_due = delivery.is_due() || (delivery.is_open() && !rules.respects_leases);
        if !is_due || state.sidecars[n].tickets[d].is_some() {
            continue;
        }
        found = true;
        delivery.lease = lease;
        delivery.is_durable |= rules.claims_durably;
        // attempts = attempts + 1
        for ticket in state.sidecars.iter_mut().filter_map(|sidecar| sidecar.tickets[d].as_mut()) {
            ticket.is_latest = false;
        }
        if arrives {
            state.sidecars[n].tickets[d] =
                Some(Ticket { is_latest: true, stage: Stage::Claimed, has_run_down: false });
        }
    }
    found
}

fn take_doorbell(rules: &Rules, state: &mut State, n: usize) {
    let is_shared =
        state.emitters.iter().any(|emitter| matches!(emitter, Emitter::Holding | Emitter::VisibleHolding));
    let is_taken = state.sidecars.iter().any(|sidecar| sidecar.holds_doorbell);
    let sidecar = &mut state.sidecars[n];
    let mut was_refused = false;
    if rules.has_session_locks && !is_taken {
        was_refused = is_shared;
        sidecar.holds_doorbell = !is_shared;
    }
    sidecar.phase = match (rules.looks_after_taking_the_lock, was_refused) {
        (true, false) => Phase::Looking,
        (true, true) => Phase::LookingRefused,
        (false, true) => Phase::Drowsy,
        (false, false) => Phase::Asleep,
    };
}

fn look(rules: &Rules, state: &mut State, n: usize) {
    if rules.has_session_locks {
        // orbhook._mark_dead
        for delivery in state.deliveries.iter_mut().filter(|delivery| delivery.lease == Lease::Orphaned) {
            delivery.lease = Lease::Free;
        }
        for sidecar in state.sidecars.iter_mut().filter(|sidecar| sidecar.phase == Phase::Severed) {
            sidecar.is_known_dead = true;
        }
    }
    let has_work = state.deliveries.iter().any(Delivery::is_due);
    let sidecar = &mut state.sidecars[n];
    sidecar.phase = match (has_work, sidecar.phase) {
        (true, _) => Phase::Awake,
        (false, Phase::LookingRefused) => Phase::Drowsy,
        (false, _) => Phase::Asleep,
    };
}

fn dial(rules: &Rules, state: &mut State, n: usize, d: usize) {
    let Some(ticket) = &mut state.sidecars[n].tickets[d] else { return };
    if rules.checks_the_lease_before_dialling && ticket.has_run_down {
        ticket.stage = Stage::Released;
        return;
    }
    ticket.stage = Stage::Dialled;
    state.was_dialled_late |= ticket.has_run_down;
    state.deliveries[d].sent = (state.deliveries[d].sent + 1).min(2);
}

fn settle(rules: &Rules, state: &mut State, n: usize, d: usize) {
    let Some(ticket) = state.sidecars[n].tickets[d] else { return };
    let delivery = &mut state.deliveries[d];
    if !delivery.is_open() || (rules.fences && !ticket.is_latest) {
        return;
    }
    state.was_usurped |= !ticket.is_latest;
    delivery.lease = Lease::Free;
    if ticket.stage == Stage::Taken {
        delivery.settled = (delivery.settled + 1).min(2);
    }
}

fn set_stage(sidecar: &mut Sidecar, d: usize, stage: Stage) {
    if let Some(ticket) = &mut sidecar.tickets[d] {
        ticket.stage = stage;
    }
}

fn suffer(rules: &Rules, state: &mut State, fault: Fault, n: usize) {
    match fault {
        Fault::SidecarKilled => {
            orphan(state, n);
            state.sidecars[n] = Sidecar::DOWN;
        }
        Fault::SidecarStopped => {
            for d in 0..EMITTERS {
                set_stage(&mut state.sidecars[n], d, Stage::Released);
                settle(rules, state, n, d);
            }
            state.sidecars[n] = Sidecar::DOWN;
        }
        Fault::SessionLost => sever(state, n),
        Fault::NotificationLost => state.sidecars[n].is_notified = false,
        Fault::ServerCrashed => crash(state),
        Fault::HeldUp => {
            for ticket in state.sidecars[n].tickets.iter_mut().flatten() {
                ticket.has_run_down = true;
            }
        }
        Fault::Refused => {
            if let Some(d) = first(&state.sidecars[n], |stage| stage == Stage::Dialled) {
                set_stage(&mut state.sidecars[n], d, Stage::Refused);
            }
        }
        Fault::ClaimAnswerLost => {
            claim(rules, state, n, false);
        }
        Fault::SettleAnswerLost => {
            let is_over = |stage| matches!(stage, Stage::Taken | Stage::Refused | Stage::Released);
            if let Some(d) = first(&state.sidecars[n], is_over) {
                settle(rules, state, n, d);
            }
        }
        Fault::Prepared => state.emitters[n] = Emitter::Prepared,
    }
}

fn first(sidecar: &Sidecar, matches: impl Fn(Stage) -> bool) -> Option<usize> {
    sidecar.tickets.iter().position(|ticket| ticket.is_some_and(|ticket| matches(ticket.stage)))
}

fn orphan(state: &mut State, n: usize) {
    for delivery in &mut state.deliveries {
        if delivery.lease == lease_of(n) {
            delivery.lease = Lease::Orphaned;
        }
    }
}

fn lease_of(n: usize) -> Lease {
    Lease::Of(u8::try_from(n).unwrap_or(u8::MAX))
}

fn sever(state: &mut State, n: usize) {
    orphan(state, n);
    let tickets = state.sidecars[n].tickets;
    state.sidecars[n] = Sidecar { phase: Phase::Severed, tickets, ..Sidecar::DOWN };
}

fn crash(state: &mut State) {
    for n in 0..SIDECARS {
        if state.sidecars[n].has_session() {
            sever(state, n);
        }
    }
    for n in 0..EMITTERS {
        match state.emitters[n] {
            Emitter::Open | Emitter::Holding | Emitter::Ringing | Emitter::Silent => roll_back(state, n),
            Emitter::VisibleHolding | Emitter::VisibleRinging => state.emitters[n] = Emitter::Ended,
            Emitter::Prepared | Emitter::Ended => {}
        }
        let delivery = &mut state.deliveries[n];
        delivery.was_undone |= delivery.is_visible && !delivery.is_durable;
    }
}
