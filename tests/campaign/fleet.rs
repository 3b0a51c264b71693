//! The sidecars: processes in slots, each replaced when it has ended, however it ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orbhook_tests::pause;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::clock::{Clock, Micros};
use crate::faults::{Faults, Kind};
use crate::stage::{Stage, send_signal};

/// How long the last ones may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(40);
const HEARS_LOOK: Duration = Duration::from_millis(5);
/// Between an end and the next start, at most.
const REPLACE_MS_MAX: u64 = 400;

/// Points at which a new process may be told to die or to stop.
pub(crate) const POINTS: &[&str] = &["after_claim", "after_send", "before_settle", "after_settle"];

/// How new processes are started.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) sidecars: u32,
    /// Decides who is told what.
    pub(crate) seed: u64,
    pub(crate) points: &'static [&'static str],
    /// Share that is told to abort at a point, in percent.
    pub(crate) abort_percent: u32,
    /// Share that is told to stop at a point until the nemesis lets it go on, in percent.
    pub(crate) stop_percent: u32,
    pub(crate) bug: Option<&'static str>,
}

pub(crate) struct Fleet {
    stage: Arc<Stage>,
    faults: Arc<Faults>,
    directory: PathBuf,
    clock: Clock,
    orders: Orders,
    slots: Vec<Slot>,
    is_stopping: AtomicBool,
    /// What ended by itself in a way it should not have.
    surprises: Mutex<Vec<String>>,
    memory_bytes_max: AtomicU64,
    started: AtomicU32,
}

#[derive(Default)]
struct Slot {
    running: Mutex<Option<Running>>,
    /// Somebody has it stopped.
    is_frozen: AtomicBool,
    /// It was asked to end. A second time would cut off what is in flight.
    is_leaving: AtomicBool,
}

#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// What it calls itself in the database.
    pub(crate) name: String,
    /// It stops by itself at a point.
    pub(crate) stops: bool,
}

impl Fleet {
    /// Starts the sidecars and those who replace them; the set ends after [`Fleet::stop`].
    pub(crate) fn start(
        stage: &Arc<Stage>,
        faults: &Arc<Faults>,
        directory: &Path,
        clock: Clock,
        orders: Orders,
    ) -> (Arc<Fleet>, JoinSet<()>) {
        let slots = (0..orders.sidecars).map(|_| Slot::default()).collect();
        let fleet = Arc::new(Fleet {
            stage: Arc::clone(stage),
            faults: Arc::clone(faults),
            directory: directory.to_owned(),
            clock,
            orders,
            slots,
            is_stopping: AtomicBool::new(false),
            surprises: Mutex::default(),
            memory_bytes_max: AtomicU64::new(0),
            started: AtomicU32::new(0),
        });
        let mut keepers = JoinSet::new();
        for slot in 0..fleet.slots.len() {
            keepers.spawn(Arc::clone(&fleet).keep(slot));
        }
        (fleet, keepers)
    }

    pub(crate) fn size(&self) -> usize {
        self.slots.len()
    }

    /// The process in a slot, unless it is stopped or leaving.
    pub(crate) fn running(&self, slot: usize) -> Option<Running> {
        let slot = &self.slots[slot];
        if slot.is_frozen.load(Ordering::Relaxed) || slot.is_leaving.load(Ordering::Relaxed) {
            return None;
        }
        slot.running.lock().expect("nobody panics with it").clone()
    }

    /// SIGTERM, once.
    pub(crate) fn terminate(&self, slot: usize) {
        let Some(running) = self.running(slot) else { return };
        self.slots[slot].is_leaving.store(true, Ordering::Relaxed);
        self.faults.instant(Kind::SidecarTerminated, &running.name);
        send_signal(running.pid, "TERM");
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, slot: usize) {
        let Some(running) = self.running(slot) else { return };
        // In the book first: what it excuses may happen at once.
        self.faults.instant(Kind::SidecarKilled, &running.name);
        send_signal(running.pid, "KILL");
    }

    /// SIGSTOP for so long.
    pub(crate) async fn freeze(self: Arc<Fleet>, slot: usize, kind: Kind, duration: Duration) {
        let Some(running) = self.running(slot) else { return };
        self.slots[slot].is_frozen.store(true, Ordering::Relaxed);
        let fault = self.faults.begin(kind, vec![running.name], Vec::new());
        if send_signal(running.pid, "STOP") {
            pause(duration).await;
            send_signal(running.pid, "CONT");
        }
        self.faults.end(fault);
        self.slots[slot].is_frozen.store(false, Ordering::Relaxed);
    }

    /// Asks all to stop, and waits for it. Whatever is still there then is killed and reported.
    pub(crate) async fn stop(&self, mut keepers: JoinSet<()>) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for slot in &self.slots {
            if let Some(running) = slot.running.lock().expect("nobody panics with it").clone() {
                send_signal(running.pid, "CONT");
                if !slot.is_leaving.swap(true, Ordering::Relaxed) {
                    send_signal(running.pid, "TERM");
                }
            }
        }
        let all_ended = async { while keepers.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, all_ended).await.is_err() {
            self.surprise("a sidecar did not stop when asked".to_owned());
            keepers.shutdown().await;
        }
    }

    pub(crate) fn surprises(&self) -> Vec<String> {
        self.surprises.lock().expect("nobody panics with it").clone()
    }

    /// The most that one of them held.
    pub(crate) fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max.load(Ordering::Relaxed)
    }

    pub(crate) fn started(&self) -> u32 {
        self.started.load(Ordering::Relaxed)
    }

    async fn keep(self: Arc<Fleet>, slot: usize) {
        for generation in 0_u64.. {
            if self.is_stopping.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("sidecar-{slot}-{generation}");
            let seed =
                self.orders.seed ^ (u64::try_from(slot).expect("it is small") << 48) ^ (generation << 32);
            let mut random = StdRng::seed_from_u64(seed);
            let (mut child, stops) = self.spawn(slot, &name, &mut random);
            let pid = child.id().expect("it was not waited for");
            self.stage.primary().end_with_us(pid);
            self.started.fetch_add(1, Ordering::Relaxed);
            // Asked to stop before its first line ran, it would end by the signal: on a busy machine that takes a while.
            while !hears_sigterm(pid) {
                pause(HEARS_LOOK).await;
            }
            let running = Running { pid, name: name.clone(), stops };
            self.slots[slot].is_leaving.store(false, Ordering::Relaxed);
            *self.slots[slot].running.lock().expect("nobody panics with it") = Some(running);
            // Asked to stop between the look above and the process's being known.
            if self.is_stopping.load(Ordering::Relaxed)
                && !self.slots[slot].is_leaving.swap(true, Ordering::Relaxed)
            {
                send_signal(pid, "TERM");
            }
            let status = self.wait(&mut child, pid).await;
            *self.slots[slot].running.lock().expect("nobody panics with it") = None;
            self.note_end(&name, status);
            pause(Duration::from_millis(random.random_range(0..REPLACE_MS_MAX))).await;
        }
    }

    fn spawn(&self, slot: usize, name: &str, random: &mut StdRng) -> (Child, bool) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("sidecar-{slot}.log")))
            .expect("a file for its log");
        let chance = random.random_range(0..100);
        let aborts = chance < self.orders.abort_percent;
        // The first never stops, so that somebody is there to take over.
        let stops = slot > 0 && !aborts && chance < self.orders.abort_percent + self.orders.stop_percent;
        let mut command = Command::new(binary("orbhook-campaign"));
        command
            .args(["run", "--name", name])
            .env("DATABASE_URL", self.stage.sidecar_url())
            .env("ORBHOOK_ALLOW_NETWORK", "127.0.0.0/8")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true);
        if aborts || stops {
            let points = self.orders.points;
            let point = points[random.random_range(0..points.len())];
            let action = if aborts { "abort" } else { "stop" };
            let pass = random.random_range(1..30);
            command
                .env("ORBHOOK_CAMPAIGN_POINT", format!("{point}:{action}:{pass}"))
                .env("ORBHOOK_CAMPAIGN_MOMENT", self.moment_file(name));
        }
        if let Some(bug) = self.orders.bug {
            command.env("ORBHOOK_CAMPAIGN_BUG", bug);
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("orbhook-campaign cannot be run: {error}"));
        (child, stops)
    }

    async fn wait(&self, child: &mut Child, pid: u32) -> ExitStatus {
        let mut look = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                status = child.wait() => return status.expect("its exit status"),
                _ = look.tick() => {
                    let bytes = memory_bytes(pid).unwrap_or(0);
                    self.memory_bytes_max.fetch_max(bytes, Ordering::Relaxed);
                }
            }
        }
    }

    fn note_end(&self, name: &str, status: ExitStatus) {
        use std::os::unix::process::ExitStatusExt as _;
        const ABORT: i32 = 6;
        const KILL: i32 = 9;
        match (status.code(), status.signal()) {
            // SIGKILL and SIGTERM are in the book already.
            (Some(0), _) | (_, Some(KILL)) => {}
            // Excused is only what it was told to do, and from when it did it: this may be noticed much later.
            (_, Some(ABORT)) => match take_moment(&self.moment_file(name), self.clock) {
                Some(at) => self.faults.instant_at(at, Kind::SidecarAborted, name),
                None => self.surprise(format!("{name} aborted at no point that was chosen")),
            },
            _ => self.surprise(format!("{name} ended with {status}")),
        }
    }

    fn moment_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.moment"))
    }

    fn surprise(&self, what: String) {
        self.surprises.lock().expect("nobody panics with it").push(what);
    }
}

/// What the process wrote when it ended itself.
fn take_moment(file: &Path, clock: Clock) -> Option<Micros> {
    let unix_us = fs::read_to_string(file).ok()?.parse().ok()?;
    drop(fs::remove_file(file));
    Some(clock.at_unix(unix_us))
}

/// A program that is built beside this one.
pub(crate) fn binary(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    this.with_file_name(name)
}

fn memory_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// A process is stopped.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// Whether it has a handler for SIGTERM, or needs none any more.
fn hears_sigterm(pid: u32) -> bool {
    const TERM: u32 = 15;
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let caught = u64::from_str_radix(field("SigCgt:"), 16).unwrap_or_default();
    caught & (1 << (TERM - 1)) != 0 || field("State:").starts_with('Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_lies_where_the_process_says_it_was_and_not_where_it_was_noticed() {
        let clock = Clock::start();
        let file = std::env::temp_dir().join(format!("orbhook-moment-{}", std::process::id()));
        let unix_us = 1_800_000_000_000_000;
        fs::write(&file, unix_us.to_string()).unwrap();
        assert_eq!(take_moment(&file, clock), Some(clock.at_unix(unix_us)));
        assert_eq!(take_moment(&file, clock), None, "one that was not told to");
    }
}
