//! What was done to whom and when: the excuses that the checker accepts.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use crate::clock::{Clock, Micros};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    SidecarKilled,
    /// SIGSTOP for less than a lease.
    SidecarStopped,
    /// SIGSTOP for longer than a lease.
    SidecarStoppedPastLease,
    /// SIGTERM: no excuse for anything.
    SidecarTerminated,
    SidecarAborted,
    SessionTerminated,
    AllSessionsTerminated,
    BackendKilled,
    PostmasterKilled,
    ServerRestarted,
    Promoted,
    /// What was acknowledged in its time is lost by the database itself.
    PromotedLagging,
}

impl Kind {
    /// It leaves no sidecar its registration.
    fn hits_all(self) -> bool {
        matches!(
            self,
            Kind::BackendKilled
                | Kind::PostmasterKilled
                | Kind::ServerRestarted
                | Kind::Promoted
                | Kind::PromotedLagging
        )
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) from: Micros,
    pub(crate) to: Micros,
    /// Names of processes.
    pub(crate) processes: Vec<String>,
    /// Registrations that lost their session.
    pub(crate) registrations: Vec<Uuid>,
}

/// All faults so far.
pub(crate) struct Faults {
    clock: Clock,
    book: Mutex<(Vec<Fault>, File)>,
}

impl Faults {
    pub(crate) fn create(directory: &Path, clock: Clock) -> Faults {
        let file = File::create(directory.join("faults")).expect("the faults' file");
        Faults { clock, book: Mutex::new((Vec::new(), file)) }
    }

    /// Written when it begins, and not only when it is over: what it excuses may happen at once. Ends it with [`Faults::end`].
    pub(crate) fn begin(&self, kind: Kind, processes: Vec<String>, registrations: Vec<Uuid>) -> usize {
        let from = self.clock.now();
        let mut book = self.book();
        let line = format!("{from} {kind:?} {processes:?} {registrations:?}\n");
        book.1.write_all(line.as_bytes()).expect("the faults are written");
        book.0.push(Fault { kind, from, to: Micros::MAX, processes, registrations });
        book.0.len() - 1
    }

    pub(crate) fn end(&self, fault: usize) {
        let to = self.clock.now();
        let mut book = self.book();
        book.1.write_all(format!("{to} end of {fault}\n").as_bytes()).expect("the faults are written");
        book.0[fault].to = to;
    }

    pub(crate) fn instant(&self, kind: Kind, process: &str) {
        self.instant_at(self.clock.now(), kind, process);
    }

    /// What was noticed only afterwards, at the time when it happened.
    pub(crate) fn instant_at(&self, at: Micros, kind: Kind, process: &str) {
        let mut book = self.book();
        book.1.write_all(format!("{at} {kind:?} {process}\n").as_bytes()).expect("the faults are written");
        let processes = vec![process.to_owned()];
        book.0.push(Fault { kind, from: at, to: at, processes, registrations: Vec::new() });
    }

    /// Who lost a session, which is known only afterwards.
    pub(crate) fn blame(&self, fault: usize, registrations: Vec<Uuid>) {
        self.book().0[fault].registrations = registrations;
    }

    pub(crate) fn count(&self) -> usize {
        self.book().0.len()
    }

    pub(crate) fn all(&self) -> Vec<Fault> {
        self.book().0.clone()
    }

    fn book(&self) -> MutexGuard<'_, (Vec<Fault>, File)> {
        self.book.lock().expect("nobody panics with it")
    }
}

/// Finds excuses quickly.
pub(crate) struct Excuses {
    all: Vec<Fault>,
    by_process: HashMap<String, Vec<Fault>>,
    by_registration: HashMap<Uuid, Vec<Fault>>,
    terminated: HashMap<String, Micros>,
}

impl Excuses {
    pub(crate) fn of(faults: &[Fault]) -> Excuses {
        let mut excuses = Excuses {
            all: Vec::new(),
            by_process: HashMap::new(),
            by_registration: HashMap::new(),
            terminated: HashMap::new(),
        };
        for fault in faults {
            if fault.kind == Kind::SidecarTerminated {
                for process in &fault.processes {
                    excuses.terminated.insert(process.clone(), fault.from);
                }
                continue;
            }
            if fault.kind.hits_all() {
                excuses.all.push(fault.clone());
            }
            for process in &fault.processes {
                excuses.by_process.entry(process.clone()).or_default().push(fault.clone());
            }
            for registration in &fault.registrations {
                excuses.by_registration.entry(*registration).or_default().push(fault.clone());
            }
        }
        excuses
    }

    /// A fault between the two times that hit this process, this registration, or everybody.
    pub(crate) fn find(&self, process: &str, registration: Uuid, from: Micros, to: Micros) -> Option<Kind> {
        let of_process = self.by_process.get(process).into_iter().flatten();
        let of_registration = self.by_registration.get(&registration).into_iter().flatten();
        let overlaps = |fault: &&Fault| fault.from <= to && fault.to >= from;
        of_process.chain(of_registration).chain(&self.all).find(overlaps).map(|fault| fault.kind)
    }

    /// Why this process may not have reported between the two times: it was ended or stopped, or it was asked to end while
    /// the server was away.
    pub(crate) fn find_silence(
        &self,
        process: &str,
        registration: Uuid,
        from: Micros,
        to: Micros,
    ) -> Option<Kind> {
        let of_process = self.by_process.get(process).into_iter().flatten();
        let silenced =
            of_process.filter(|fault| fault.from <= to && fault.to >= from).map(|fault| fault.kind);
        let terminated = self.terminated.get(process).is_some_and(|at| (from..=to).contains(at));
        silenced.chain(terminated.then(|| self.find(process, registration, from, to)).flatten()).next()
    }
}

/// How many of each kind.
pub(crate) fn count(faults: &[Fault]) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for fault in faults {
        *counts.entry(fault.kind).or_default() += 1;
    }
    counts
}
