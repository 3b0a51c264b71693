use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::{env, fs, process};

use tokio_postgres::{Client, NoTls};

use crate::wait::{DEADLINE, wait_until};

mod clock;
mod disk;
mod standby;

pub use clock::Clock;

/// The database that every test's database is copied from. It has the extension.
pub const TEMPLATE: &str = "orbhook_template";

/// Tries before giving up on finding a free port: between finding it and the server's taking it, another may come.
const PORT_TRIES_MAX: usize = 5;

/// Settings of every private cluster. A crash of the machine may lose it all, so nothing is flushed; a crash of the
/// server's processes loses nothing all the same, since the kernel has the pages.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("max_connections", "200"),
    ("max_prepared_transactions", "20"),
    ("max_wal_senders", "4"),
    ("timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
    ("orbhook.allow_networks", "127.0.0.0/8,::1/128"),
];

/// A PostgreSQL server of the tests' own, from the private prefix that `make prefix` builds.
///
/// It listens on a Unix socket that only its owner reaches (no password) and on a free port of the loopback address
/// (password: the server could otherwise be taken over by any user of the machine). It ends with this process, however
/// that ends: a guard outside waits for it.
pub struct Cluster {
    directory: PathBuf,
    bin: PathBuf,
    owner: Option<Owner>,
    port: u16,
    /// For the server's programs, beside the usual.
    environment: Vec<(&'static str, String)>,
    password: String,
    /// How often it was stopped or crashed: sessions of an earlier life are dead, even if they have yet to notice.
    lives: AtomicU32,
    guard: Mutex<Child>,
    /// Held as long as the cluster is in use; a later run takes away directories whose lock is free.
    _in_use: File,
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Sessions are ended, everything is written.
    Fast,
    /// As in a crash: recovery at the next start.
    Immediate,
}

/// Whom server processes run as when root runs the tests: PostgreSQL refuses root.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

impl Cluster {
    /// The cluster of this test process, started when first asked for.
    pub fn shared() -> Arc<Cluster> {
        static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Cluster::start(&[])))
    }

    /// Starts a cluster with further settings, for tests that crash it or need it to themselves.
    pub fn start(settings: &[(&str, &str)]) -> Arc<Cluster> {
        let mut cluster = Cluster::unmade();
        cluster.initialise(settings);
        cluster.start_on_a_free_port_with("");
        cluster.create_template();
        Arc::new(cluster)
    }

    /// A directory and a guard, and no server yet.
    fn unmade() -> Cluster {
        let prefix = prefix();
        let owner = owner();
        let (directory, in_use) = create_directory(&prefix, owner);
        let major = env::var("PG").unwrap_or_else(|_| "15".to_owned());
        Cluster {
            bin: prefix.join("usr/lib/postgresql").join(major).join("bin"),
            guard: Mutex::new(spawn_guard(&directory, Stdio::piped())),
            password: format!("{:032x}", rand::random::<u128>()),
            port: 0,
            environment: Vec::new(),
            lives: AtomicU32::new(1),
            owner,
            directory,
            _in_use: in_use,
        }
    }

    /// Stops the server; sessions end as `mode` says.
    pub fn stop(&self, mode: ShutdownMode) {
        let mode = match mode {
            ShutdownMode::Fast => "fast",
            ShutdownMode::Immediate => "immediate",
        };
        self.lives.fetch_add(1, Ordering::Relaxed);
        self.must("pg_ctl", &["stop", "--wait", "--silent", "--mode", mode, "--pgdata", &self.data()]);
    }

    /// Starts the stopped server again, on the same port.
    pub fn resume(&self) {
        let log = self.log_path();
        let output =
            self.run("pg_ctl", &["start", "--wait", "--silent", "--pgdata", &self.data(), "--log", &log]);
        assert!(output.status.success(), "the server does not start: {}", self.log());
    }

    /// Stops and starts.
    pub fn restart(&self, mode: ShutdownMode) {
        self.stop(mode);
        self.resume();
    }

    /// Restarts the server as a standby: read-only, in recovery, with no primary to follow.
    pub fn become_standby(&self) {
        self.stop(ShutdownMode::Fast);
        let path = self.directory.join("data/standby.signal");
        File::create(&path).expect("standby.signal");
        self.hand_over(&path);
        self.resume();
    }

    /// `kill -9` of one server process. PostgreSQL then ends all sessions and recovers; this returns when it has.
    pub async fn kill_backend(&self, pid: i32) {
        let witness = self.connect("postgres").await;
        self.lives.fetch_add(1, Ordering::Relaxed);
        signal(u32::try_from(pid).expect("a process id is positive"), "KILL");
        // Until the server has noticed, it works as if nothing had happened.
        wait_until("the server to end all sessions", DEADLINE, async || witness.is_closed().then_some(()))
            .await;
        wait_until("the server to recover", DEADLINE, async || {
            self.connect_as("postgres", "postgres").await.ok()?.simple_query("select 1").await.ok()
        })
        .await;
    }

    /// A session as superuser. It must be used in the runtime that made it.
    pub async fn connect(&self, database: &str) -> Client {
        self.connect_as(database, "postgres").await.expect("a session in the private cluster")
    }

    /// A session as any role. Over the socket no role needs a password.
    pub async fn connect_as(&self, database: &str, role: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&self.directory)
            .port(self.port)
            .user(role)
            .dbname(database)
            .application_name("tests")
            .connect(NoTls)
            .await?;
        // Its error is reported by whoever uses the client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Connection URL over the Unix socket.
    pub fn url(&self, database: &str, role: &str) -> String {
        let socket = self.directory.display().to_string().replace('/', "%2F");
        format!("postgresql://{role}@{socket}:{}/{database}", self.port)
    }

    /// Connection URL over TCP, as superuser.
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgresql://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Where it listens on the loopback address.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The shell command with which a person joins.
    pub fn psql_command(&self, database: &str) -> String {
        format!(
            "{} 'host={} port={} user=postgres dbname={database}'",
            self.bin.join("psql").display(),
            self.directory.display(),
            self.port
        )
    }

    /// Runs one of the server's programs (`pg_dump`, `psql`, …) as the server's user, against this cluster.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.bin.join(program));
        command
            .args(arguments)
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC"), ("PGUSER", "postgres")])
            .env("PGHOST", &self.directory)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        // Before it has a port, the cluster is being made, and initdb takes 0 amiss.
        if self.port != 0 {
            command.env("PGPORT", self.port.to_string());
        }
        if let Some(Owner { user, group }) = self.owner {
            command.uid(user).gid(group);
        }
        // A server started here keeps standard output open; read through a file, its end needs no waiting for.
        let output_path = self.directory.join(format!("output-{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        let output_file = File::create(&output_path).expect("a file for the program's output");
        let error_file = output_file.try_clone().expect("a second handle");
        let status = command.stdout(output_file).stderr(error_file).status().unwrap_or_else(|error| {
            panic!("{} cannot be run ({error}): run `make prefix`", self.bin.display())
        });
        let stdout = fs::read(&output_path).expect("the program's output");
        fs::remove_file(&output_path).expect("the output file is removed");
        Output { status, stdout, stderr: Vec::new() }
    }

    /// A directory that the server's user can read: where [`Cluster::run`] runs programs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The server's first process, parent of all others.
    pub fn postmaster_pid(&self) -> u32 {
        let file = fs::read_to_string(self.directory.join("data/postmaster.pid")).expect("the server runs");
        file.lines().next().and_then(|pid| pid.parse().ok()).expect("it begins with the process id")
    }

    /// The server's files.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// User and group of its processes, where they are not this process's own.
    pub(crate) fn owner_ids(&self) -> Option<(u32, u32)> {
        self.owner.map(|Owner { user, group }| (user, group))
    }

    pub(crate) fn life(&self) -> u32 {
        self.lives.load(Ordering::Relaxed)
    }

    /// The guard ends this process when the tests are gone.
    pub fn end_with_us(&self, pid: u32) {
        let mut guard = self.guard.lock().expect("nobody panics with it");
        let pipe = guard.stdin.as_mut().expect("the guard's pipe is open");
        writeln!(pipe, "{pid}").expect("the guard listens");
    }

    fn initialise(&self, settings: &[(&str, &str)]) {
        let password_file = self.directory.join("password");
        fs::write(&password_file, &self.password).expect("the password file");
        self.hand_over(&password_file);
        self.must(
            "initdb",
            &[
                "--pgdata",
                &self.data(),
                "--username=postgres",
                "--pwfile",
                &password_file.display().to_string(),
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
            ],
        );
        let mut lines = String::new();
        for (name, value) in SETTINGS.iter().chain(settings) {
            lines.push_str(&format!("{name} = '{value}'\n"));
        }
        lines.push_str("listen_addresses = '127.0.0.1'\ninclude_if_exists = 'port.conf'\n");
        let path = self.directory.join("data/postgresql.conf");
        let mut file = File::options().append(true).open(path).expect("postgresql.conf");
        file.write_all(lines.as_bytes()).expect("the settings are written");
    }

    /// With `settings` in the form of postgresql.conf, which are this server's own: a copy of its data has others.
    fn start_on_a_free_port_with(&mut self, settings: &str) {
        let log = self.log_path();
        for _ in 0..PORT_TRIES_MAX {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            self.port = listener.local_addr().expect("its address").port();
            drop(listener);
            self.write_port_file(settings);
            let start = ["start", "--wait", "--silent", "--pgdata", &self.data(), "--log", &log];
            if self.run("pg_ctl", &start).status.success() {
                return;
            }
        }
        panic!("the server does not start: {}", self.log());
    }

    fn write_port_file(&self, settings: &str) {
        let path = self.directory.join("data/port.conf");
        let (port, directory) = (self.port, self.directory.display());
        fs::write(&path, format!("port = {port}\nunix_socket_directories = '{directory}'\n{settings}"))
            .expect("port.conf");
        self.hand_over(&path);
    }

    fn create_template(&self) {
        let create = format!("create database {TEMPLATE} is_template true allow_connections true");
        self.must("psql", &["--no-psqlrc", "--quiet", "--dbname", "postgres", "--command", &create]);
        let output = self.run(
            "psql",
            &["--no-psqlrc", "--quiet", "--dbname", TEMPLATE, "--command", "create extension orbhook"],
        );
        assert!(
            output.status.success(),
            "CREATE EXTENSION orbhook fails in the private PostgreSQL (`make extension` installs it there): {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    fn must(&self, program: &str, arguments: &[&str]) {
        let output = self.run(program, arguments);
        assert!(output.status.success(), "{program} fails: {}", String::from_utf8_lossy(&output.stdout));
    }

    fn hand_over(&self, path: &Path) {
        if let Some(Owner { user, group }) = self.owner {
            chown(path, Some(user), Some(group)).expect("root may give files away");
        }
    }

    fn data(&self) -> String {
        self.directory.join("data").display().to_string()
    }

    fn log_path(&self) -> String {
        self.directory.join("log").display().to_string()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut guard = self.guard.lock().expect("nobody panics with it");
        drop(guard.stdin.take());
        // The guard ends the server and takes the directory away; a failure there is of no interest to a test.
        let _ = guard.wait();
    }
}

/// Sends a signal by name (`KILL`, `TERM`, `STOP`, `CONT`).
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "process {pid} takes no signal {name}: it is gone");
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

fn prefix() -> PathBuf {
    if let Some(prefix) = env::var_os("ORBHOOK_PREFIX") {
        return prefix.into();
    }
    // Run by plain `cargo test`: the script that makes the prefix knows where it is.
    let output =
        Command::new(setup_script("prefix.sh")).arg("where").output().expect("tests/setup/prefix.sh runs");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn setup_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("setup").join(name)
}

fn owner() -> Option<Owner> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let of = |user: &str| Some(Owner { user: id(&["-u", user])?, group: id(&["-g", user])? });
    Some(of("postgres").or_else(|| of("nobody")).expect("user postgres or nobody exists"))
}

/// A new directory, and first an end to what crashed runs have left. One process at a time, so that none is swept
/// between its creation and its lock.
fn create_directory(prefix: &Path, owner: Option<Owner>) -> (PathBuf, File) {
    let clusters = prefix.join("clusters");
    fs::create_dir_all(&clusters)
        .unwrap_or_else(|error| panic!("{} cannot be used ({error}): run `make prefix`", prefix.display()));
    let turn = File::create(prefix.join("clusters.lock")).expect("clusters.lock");
    turn.lock().expect("the lock on clusters.lock");

    for left in fs::read_dir(&clusters).expect("the list of clusters").flatten() {
        let lock = File::open(left.path().join("in-use"));
        if lock.is_ok_and(|lock| lock.try_lock().is_err()) {
            continue;
        }
        // Two things end abandoned clusters, this and their own guard. Either may find that the other was quicker.
        let _ = spawn_guard(&left.path(), Stdio::null()).wait();
    }

    let directory = clusters.join(format!("{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    fs::DirBuilder::new().mode(0o700).create(&directory).expect("a directory for the cluster");
    let in_use = File::create(directory.join("in-use")).expect("the lock file");
    in_use.lock().expect("the lock on a new file");
    if let Some(Owner { user, group }) = owner {
        chown(&directory, Some(user), Some(group)).expect("root may give directories away");
    }
    (directory, in_use)
}

/// In a process group of its own: Ctrl-C ends the tests, and then the guard has work to do.
fn spawn_guard(directory: &Path, stdin: Stdio) -> Child {
    Command::new(setup_script("guard.sh"))
        .arg(directory)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .expect("tests/setup/guard.sh runs")
}
