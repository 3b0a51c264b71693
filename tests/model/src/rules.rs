/// What the design rests on. Each can be broken, to see that something then goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `orbhook.doze` looks for work once more after it has taken the doorbell lock.
    pub looks_after_taking_the_lock: bool,
    /// The doorbell's shared lock lasts until the commit is visible (doorbell.rs).
    pub holds_the_lock_until_visible: bool,
    /// A commit that is refused the lock sends a NOTIFY (doorbell.rs).
    pub rings_when_refused: bool,
    /// An idle sidecar looks once a second whatever it heard (idle.rs).
    pub polls: bool,
    /// `orbhook.settle` takes a result only for the latest attempt.
    pub fences: bool,
    /// `orbhook.claim` leaves alone what another sidecar has a lease on.
    pub respects_leases: bool,
    /// Leases end.
    pub leases_end: bool,
    /// The worker looks at the lease immediately before it dials (`may_dial` in worker.rs).
    pub checks_the_lease_before_dialling: bool,
    /// `orbhook.claim` commits with `synchronous_commit = on`, whatever its session says.
    pub claims_durably: bool,
    /// A sidecar that is gone is recognised by its lock (`orbhook._mark_dead`). Off behind a transaction pooler, where leases alone
    /// bring deliveries back: slower, and as safe.
    pub has_session_locks: bool,
}

impl Rules {
    /// As orbhook is.
    pub const KEPT: Rules = Rules {
        looks_after_taking_the_lock: true,
        holds_the_lock_until_visible: true,
        rings_when_refused: true,
        polls: true,
        fences: true,
        respects_leases: true,
        leases_end: true,
        checks_the_lease_before_dialling: true,
        claims_durably: true,
        has_session_locks: true,
    };
}

/// What may go wrong, at any step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `kill -9` of a sidecar.
    SidecarKilled,
    /// SIGTERM: it gives back what it has not dialled and lets go of its locks.
    SidecarStopped,
    /// Its LISTEN session ends on the server; the process learns of it later.
    SessionLost,
    /// Notifications on their way to one sidecar are lost.
    NotificationLost,
    /// The server crashes and recovers.
    ServerCrashed,
    /// SIGSTOP, or a machine that stands still: a lease runs down in a process that holds it.
    HeldUp,
    /// The endpoint answers 500.
    Refused,
    /// `orbhook.claim` is committed, and its rows never arrive.
    ClaimAnswerLost,
    /// `orbhook.settle` is committed, and the sidecar does not hear of it.
    SettleAnswerLost,
    /// PREPARE TRANSACTION: the commit rings nobody.
    Prepared,
}

impl Fault {
    pub const ALL: &[Fault] = &[
        Fault::SidecarKilled,
        Fault::SidecarStopped,
        Fault::SessionLost,
        Fault::NotificationLost,
        Fault::ServerCrashed,
        Fault::HeldUp,
        Fault::Refused,
        Fault::ClaimAnswerLost,
        Fault::SettleAnswerLost,
        Fault::Prepared,
    ];
}
