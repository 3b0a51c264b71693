//! Two servers, of which one follows the other: made, promoted, killed, made again.

use std::fs;
use std::sync::Arc;

use super::{Cluster, DEADLINE, signal, wait_until};

impl Cluster {
    /// Starts a server that follows `primary`, with the primary's settings.
    pub fn standby_of(primary: &Cluster) -> Arc<Cluster> {
        let mut standby = Cluster::unmade();
        standby.password.clone_from(&primary.password);
        standby.copy(primary);
        standby.signal_standby();
        standby.start_on_a_free_port_with(&standby_settings(primary));
        Arc::new(standby)
    }

    /// A base backup of `primary` as it is now, to be restored later.
    pub fn back_up(primary: &Cluster) -> Backup {
        let mut copy = Cluster::unmade();
        copy.password.clone_from(&primary.password);
        copy.copy(primary);
        Backup(copy)
    }

    /// Throws this stopped server's data away and lets it follow `primary`, at its old place and port.
    pub async fn follow(&self, primary: &Cluster) {
        fs::remove_dir_all(self.data()).expect("the old data goes");
        self.copy(primary);
        self.signal_standby();
        self.write_port_file(&standby_settings(primary));
        self.revive().await;
    }

    /// Makes the standby a primary; returns when it takes writes.
    pub fn promote(&self) {
        self.must("pg_ctl", &["promote", "--wait", "--silent", "--pgdata", &self.data()]);
    }

    /// `kill -9` of the server's first process; returns when all of its processes are gone.
    pub async fn kill_postmaster(&self) {
        let postmaster = self.postmaster_pid();
        let processes = children(postmaster);
        self.lives.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        signal(postmaster, "KILL");
        wait_until("the server's processes to be gone", DEADLINE, async || {
            processes.iter().chain([&postmaster]).all(|pid| has_ended(*pid)).then_some(())
        })
        .await;
        // A dead process that nobody has waited for still has its id, and the next server takes it for a living one. What
        // else belongs to the old one it recognises by its shared memory.
        for file in ["data/postmaster.pid", &format!(".s.PGSQL.{}.lock", self.port)] {
            drop(fs::remove_file(self.directory.join(file)));
        }
    }

    /// Starts a server that was killed: a process of the old one's may still be on its way out.
    pub async fn revive(&self) {
        wait_until("the server to start again", DEADLINE, async || {
            let arguments =
                ["start", "--wait", "--silent", "--pgdata", &self.data(), "--log", &self.log_path()];
            self.run("pg_ctl", &arguments).status.success().then_some(())
        })
        .await;
    }

    /// Host and port for a connection string of keys and values.
    pub fn socket(&self) -> (String, u16) {
        (self.directory.display().to_string(), self.port)
    }

    /// Changes settings that a reload is enough for.
    pub fn reload_with(&self, settings: &[(&str, &str)]) {
        let lines: Vec<String> =
            settings.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        self.write_port_file(&lines.concat());
        self.must("pg_ctl", &["reload", "--silent", "--pgdata", &self.data()]);
    }

    /// Commits wait for this standby (one that does not exist: for ever) until what is returned goes. It must go before the
    /// test tidies up, which would wait as well.
    pub fn commits_wait_for(&self, standby: &str) -> Synchronous<'_> {
        self.reload_with(&[("synchronous_standby_names", standby)]);
        Synchronous(self)
    }

    /// Stops the standby's walreceiver where it is, as on a machine that stands still, until what is returned goes.
    pub fn freeze(&self) -> Frozen {
        let is_receiver = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.windows(11).any(|part| part == b"walreceiver"))
        };
        let receiver =
            children(self.postmaster_pid()).into_iter().find(is_receiver).expect("it follows a primary");
        signal(receiver, "STOP");
        Frozen(receiver)
    }

    fn copy(&self, primary: &Cluster) {
        let (host, port) = primary.socket();
        let source = format!("host={host} port={port} user=postgres");
        let arguments = ["--pgdata", &self.data(), "--dbname", &source, "--checkpoint=fast", "--no-sync"];
        self.must("pg_basebackup", &arguments);
    }

    fn signal_standby(&self) {
        let signal_file = self.directory.join("data/standby.signal");
        fs::File::create(&signal_file).expect("standby.signal");
        self.hand_over(&signal_file);
    }
}

/// A base backup that no server runs on.
pub struct Backup(Cluster);

impl Backup {
    /// Starts a server on it, with the primary's settings.
    pub fn restore(mut self) -> Arc<Cluster> {
        self.0.start_on_a_free_port_with("");
        Arc::new(self.0)
    }
}

/// Commits wait for a standby.
pub struct Synchronous<'a>(&'a Cluster);

impl Drop for Synchronous<'_> {
    fn drop(&mut self) {
        self.0.reload_with(&[]);
    }
}

/// A process that stands still.
pub struct Frozen(u32);

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn standby_settings(primary: &Cluster) -> String {
    let (host, port) = primary.socket();
    format!("primary_conninfo = 'host={host} port={port} user=postgres application_name=standby'\n")
}

fn children(parent: u32) -> Vec<u32> {
    let threads = format!("/proc/{parent}/task/{parent}/children");
    let listed = fs::read_to_string(threads).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Gone, or dead and not yet fetched by its parent.
fn has_ended(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}
