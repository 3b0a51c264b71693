pub(crate) const EMITTERS: usize = 2;
pub(crate) const SIDECARS: usize = 2;

/// Everything at one moment. Emitter `n` makes delivery `n`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub emitters: [Emitter; EMITTERS],
    pub deliveries: [Delivery; EMITTERS],
    pub sidecars: [Sidecar; SIDECARS],
    pub faults_left: u8,
    /// A result was taken from somebody who no longer had the delivery.
    pub was_usurped: bool,
    /// Something was dialled although its lease had run down.
    pub was_dialled_late: bool,
}

/// An application's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Emitter {
    /// `orbhook_emit` was called: armed.
    Open,
    /// Committing; the doorbell lock was granted, nobody sleeps.
    Holding,
    /// Committing; the lock was refused, a NOTIFY goes with the commit.
    Ringing,
    /// Committing without lock and without NOTIFY: only where a rule is broken.
    Silent,
    /// The commit is visible; the lock is still held.
    VisibleHolding,
    /// The commit is visible; listeners are not signalled yet.
    VisibleRinging,
    Prepared,
    Ended,
}

/// A row of `orbhook.deliveries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delivery {
    /// Others see it: the emitter has committed.
    pub is_visible: bool,
    /// A crash of the server keeps it.
    pub is_durable: bool,
    /// Its transaction was rolled back, or a crash of the server has undone it.
    pub was_undone: bool,
    pub lease: Lease,
    /// How often it was settled as delivered, up to two.
    pub settled: u8,
    /// How often a request began, up to two.
    pub sent: u8,
}

/// Columns `claimed_by` and `lease_until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lease {
    Free,
    /// Of a registered sidecar.
    Of(u8),
    /// Of an id whose lock is free; nobody has looked yet.
    Orphaned,
}

/// A sidecar process, with its LISTEN session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sidecar {
    pub phase: Phase,
    /// Its session holds the doorbell lock, exclusively.
    pub holds_doorbell: bool,
    /// A notification lies in its socket.
    pub is_notified: bool,
    /// Severed, and somebody has looked: `orbhook.claim` gives its id nothing any more.
    pub is_known_dead: bool,
    /// What it has of each delivery.
    pub tickets: [Option<Ticket>; EMITTERS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Down,
    /// Its session is gone on the server, and it has yet to notice.
    Severed,
    /// Claims until nothing is left.
    Awake,
    /// Nothing was left: asks for the doorbell lock.
    Drowsy,
    /// Within `orbhook.doze`, which says `dozing` or `listening`; about to look.
    Looking,
    /// The same, and it says `refused`: emitters are committing.
    LookingRefused,
    Asleep,
}

/// A claimed delivery in the hands of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// Its attempt number is still the row's: nobody has claimed the delivery since. Only this is ever asked of the number,
    /// which therefore is not in the model.
    pub is_latest: bool,
    pub stage: Stage,
    /// By the sidecar's own clock too little of the lease is left to dial.
    pub has_run_down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Claimed,
    Dialled,
    Taken,
    Refused,
    /// Not dialled; to be given back.
    Released,
}

impl State {
    pub(crate) fn new(faults: u8) -> State {
        let delivery = Delivery {
            is_visible: false,
            is_durable: false,
            was_undone: false,
            lease: Lease::Free,
            settled: 0,
            sent: 0,
        };
        State {
            emitters: [Emitter::Open; EMITTERS],
            deliveries: [delivery; EMITTERS],
            sidecars: [Sidecar::DOWN; SIDECARS],
            faults_left: faults,
            was_usurped: false,
            was_dialled_late: false,
        }
    }

    /// Everything committed is delivered, and nobody is about to commit more.
    pub fn is_drained(&self) -> bool {
        self.emitters.iter().all(|emitter| *emitter == Emitter::Ended)
            && self.deliveries.iter().all(|delivery| delivery.was_undone || delivery.settled > 0)
    }

    /// There is work, nothing is on its way that would wake anybody, and everybody who runs is asleep.
    pub(crate) fn has_overslept(&self) -> bool {
        let is_quiet = |emitter: &Emitter| {
            matches!(emitter, Emitter::Open | Emitter::Prepared | Emitter::Silent | Emitter::Ended)
        };
        let mut running = self.sidecars.iter().filter(|sidecar| sidecar.phase != Phase::Down).peekable();
        running.peek().is_some()
            && running.all(|sidecar| sidecar.phase == Phase::Asleep && !sidecar.is_notified)
            && self.emitters.iter().all(is_quiet)
            && self.deliveries.iter().any(Delivery::is_due)
    }
}

/// States that behave alike are made one, so that there are fewer to visit.
impl State {
    /// Forgets what no step and no property asks for any more, and puts sidecars and emitters in order: which of two is called
    /// the first changes nothing.
    pub(crate) fn normalise(&mut self, is_undisturbed: bool) {
        for (d, delivery) in self.deliveries.iter_mut().enumerate() {
            if !is_undisturbed {
                delivery.sent = delivery.sent.min(1);
            }
            if !delivery.is_open() {
                delivery.lease = Lease::Free;
                for ticket in self.sidecars.iter_mut().filter_map(|sidecar| sidecar.tickets[d].as_mut()) {
                    ticket.is_latest = false;
                }
            }
        }
        let same = self.clone();
        let other = same.with_emitters_swapped();
        for state in [same.with_sidecars_swapped(), other.with_sidecars_swapped(), other] {
            if state < *self {
                *self = state;
            }
        }
    }

    fn with_emitters_swapped(&self) -> State {
        let mut state = self.clone();
        state.emitters.swap(0, 1);
        state.deliveries.swap(0, 1);
        for sidecar in &mut state.sidecars {
            sidecar.tickets.swap(0, 1);
        }
        state
    }

    fn with_sidecars_swapped(&self) -> State {
        let mut state = self.clone();
        state.sidecars.swap(0, 1);
        for delivery in &mut state.deliveries {
            if let Lease::Of(sidecar) = &mut delivery.lease {
                *sidecar = 1 - *sidecar;
            }
        }
        state
    }
}

/// A state in 64 bits, so that millions fit into memory.
impl State {
    pub(crate) fn packed(&self) -> u64 {
        let mut bits = Bits(0);
        for emitter in self.emitters {
            bits.push(3, emitter as u64);
        }
        for delivery in self.deliveries {
            bits.push_flags([delivery.is_visible, delivery.is_durable, delivery.was_undone]);
            bits.push(
                2,
                match delivery.lease {
                    Lease::Free => 0,
                    Lease::Orphaned => 1,
                    Lease::Of(sidecar) => 2 + u64::from(sidecar),
                },
            );
            bits.push(2, u64::from(delivery.settled));
            bits.push(2, u64::from(delivery.sent));
        }
        for sidecar in self.sidecars {
            bits.push(3, sidecar.phase as u64);
            bits.push_flags([sidecar.holds_doorbell, sidecar.is_notified, sidecar.is_known_dead]);
            for ticket in sidecar.tickets {
                bits.push(3, ticket.map_or(0, |ticket| 1 + ticket.stage as u64));
                bits.push_flags(ticket.map_or([false; 2], |ticket| [ticket.is_latest, ticket.has_run_down]));
            }
        }
        bits.push(3, u64::from(self.faults_left));
        bits.push_flags([self.was_usurped, self.was_dialled_late]);
        bits.0
    }
}

struct Bits(u64);

impl Bits {
    fn push(&mut self, width: u32, value: u64) {
        debug_assert!(value < 1 << width, "{value} in {width} bits");
        self.0 = (self.0 << width) | value;
    }

    fn push_flags<const N: usize>(&mut self, flags: [bool; N]) {
        for flag in flags {
            self.push(1, u64::from(flag));
        }
    }
}

impl Delivery {
    pub(crate) fn is_open(&self) -> bool {
        self.is_visible && !self.was_undone && self.settled == 0
    }

    /// A claim would take it.
    pub(crate) fn is_due(&self) -> bool {
        self.is_open() && self.lease == Lease::Free
    }
}

impl Sidecar {
    pub(crate) const DOWN: Sidecar = Sidecar {
        phase: Phase::Down,
        holds_doorbell: false,
        is_notified: false,
        is_known_dead: false,
        tickets: [None; EMITTERS],
    };

    pub(crate) fn has_session(&self) -> bool {
        !matches!(self.phase, Phase::Down | Phase::Severed)
    }
}
