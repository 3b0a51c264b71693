use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use orbhook_sidecar::Config;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::cluster::signal;
use crate::database::Database;
use crate::wait::{DEADLINE, wait_until};

/// The receivers of all tests listen there.
const ALLOWED_NETWORKS: &str = "127.0.0.0/8,::1/128";

/// The sidecar within this process. It ends with this value, at once and without tidying up; see [`Sidecar::stop`].
pub struct Sidecar {
    shutdown: oneshot::Sender<()>,
    running: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<Result<(), orbhook_sidecar::Error>>);

/// The sidecar as a process of its own, to be killed. It is killed with this value at the latest.
pub struct SidecarProcess {
    child: Child,
    log: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Sidecar {
    /// Runs the sidecar as a role that `orbhook_grant(role, 'sender')` was called for.
    pub async fn start(database: &Database) -> Sidecar {
        Sidecar::start_with(database, |_| {}).await
    }

    /// Runs it with other settings.
    pub async fn start_with(database: &Database, change: impl FnOnce(&mut Config)) -> Sidecar {
        let url = database.url(&database.role("sender").await);
        let mut config = Config::for_database(&url).expect("the URL of a private cluster");
        config.allow_networks =
            orbhook_address::parse_networks(ALLOWED_NETWORKS).expect("they are well-formed");
        change(&mut config);
        let (shutdown, stopped) = oneshot::channel();
        let stopped = async {
            // A sender that is gone without a word is a test that has ended.
            let _ = stopped.await;
        };
        Sidecar { shutdown, running: AbortOnDrop(tokio::spawn(orbhook_sidecar::run(config, stopped))) }
    }

    /// Asks it to stop, as SIGTERM does, and waits until it has.
    pub async fn stop(mut self) -> Result<(), orbhook_sidecar::Error> {
        let _ = self.shutdown.send(());
        match tokio::time::timeout(DEADLINE, &mut self.running.0).await {
            Ok(ended) => ended.expect("it does not panic"),
            Err(_) => panic!("it has not stopped after {DEADLINE:?}"),
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SidecarProcess {
    /// Starts `orbhook run` with further arguments, as a role that `orbhook_grant(role, 'sender')` was called for.
    pub async fn start(database: &Database, arguments: &[&str]) -> SidecarProcess {
        let url = database.url(&database.role("sender").await);
        SidecarProcess::start_at(database, &url, arguments)
    }

    /// The same, by another way to the database.
    pub fn start_at(database: &Database, url: &str, arguments: &[&str]) -> SidecarProcess {
        let mut child = orbhook_command(url)
            .arg("run")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run ({error})", binary().display()));
        let log = Log::default();
        log.take_from(child.stdout.take());
        log.take_from(child.stderr.take());
        let sidecar = SidecarProcess { child, log };
        database.cluster().end_with_us(sidecar.pid());
        sidecar
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it is killed");
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    pub async fn terminate(mut self) -> ExitStatus {
        self.send_signal("TERM");
        match tokio::time::timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.expect("its exit status"),
            Err(_) => panic!("it has not stopped after {DEADLINE:?}:\n{}", self.log()),
        }
    }

    /// Freezes it, as a machine that is suspended.
    pub fn freeze(&self) {
        self.send_signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.send_signal("CONT");
    }

    pub fn send_signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Memory it holds (its resident set), in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most it has held since [`SidecarProcess::forget_memory_peak`].
    pub fn memory_peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Lets the peak begin anew, from what it holds now.
    pub fn forget_memory_peak(&self) {
        // 5: see clear_refs in proc(5).
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("the process is ours");
    }

    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel counts it");
        let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
        kilobytes * 1024
    }

    /// What it has printed so far, both streams.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until it has printed this.
    pub async fn logged(&self, text: &str) {
        wait_until(&format!("{text:?} in the sidecar's log"), DEADLINE, async || {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until it has printed this so many times.
    pub async fn logged_times(&self, text: &str, times: usize) {
        wait_until(&format!("{text:?}, {times} times, in the sidecar's log"), DEADLINE, async || {
            (self.log().matches(text).count() >= times).then_some(())
        })
        .await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.expect("its exit status"),
            Err(_) => panic!("it has not ended after {DEADLINE:?}:\n{}", self.log()),
        }
    }
}

/// The binary `orbhook` with the settings that every test needs; to be given a subcommand.
pub fn orbhook_command(database_url: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .env("DATABASE_URL", database_url)
        .env("ORBHOOK_ALLOW_NETWORK", "127.0.0.0/8,::1/128")
        .stdin(Stdio::null());
    command
}

/// `orbhook`, built into the directory that this test binary was built into.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("ORBHOOK_BINARY") {
        return path.into();
    }
    let this = std::env::current_exe().expect("the path of this program");
    let directory = this.ancestors().find(|directory| directory.join("orbhook").is_file());
    match directory {
        Some(directory) => directory.join("orbhook"),
        None => panic!("orbhook is not built beside {}: run `make test`", this.display()),
    }
}

impl Log {
    fn take_from(&self, stream: Option<impl AsyncRead + Unpin + Send + 'static>) {
        let log = self.clone();
        let mut lines = BufReader::new(stream.expect("the stream is piped")).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut text = log.0.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = writeln!(text, "{line}");
            }
        });
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
