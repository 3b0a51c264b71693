//! The database side: one server, or two of which one follows the other; the webhooks; and what can happen to servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orbhook_tests::{Cluster, DEADLINE, ShutdownMode, TEMPLATE, pause, wait_until};
use serde_json::json;
use tokio::task::block_in_place;
use tokio_postgres::{Client, Error, NoTls};
use uuid::Uuid;

/// For the paced webhook; for two webhooks at once; for the first alone.
pub(crate) const EVENT_TYPES: [&str; 3] = ["DEVICE_CONNECTED", "USER_LOGIN", "PAYMENT_RECEIVED"];

/// Short, so that a sidecar can be stopped for longer than a lease (10 s more); long enough for a busy machine.
pub(crate) const TIMEOUT_SECONDS: u64 = 3;
pub(crate) const LEASE: Duration = Duration::from_secs(TIMEOUT_SECONDS + 10);

const DATABASE: &str = "campaign";
const EMITTER: &str = "campaign_emitter";
const SENDER: &str = "campaign_sender";

/// wal_writer_delay: what is committed with synchronous_commit = off stays in memory, so that a crash takes it back.
/// deadlock_timeout: whoever waits for a lock for longer is in the log, and emitters never do.
const SETTINGS: [(&str, &str); 8] = [
    ("deadlock_timeout", "20ms"),
    ("log_lock_waits", "on"),
    ("wal_writer_delay", "10s"),
    ("wal_writer_flush_after", "1GB"),
    ("checkpoint_timeout", "30s"),
    ("wal_keep_size", "256MB"),
    ("wal_retrieve_retry_interval", "200ms"),
    ("log_min_messages", "warning"),
];

/// How applications commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commits {
    /// Some durable, some with synchronous_commit = off, some in two phases.
    Mixed,
    /// All with synchronous_commit = off, and so does everything else in this database that does not ask for more.
    Early,
    Durable,
}

/// Where the webhooks go and how they are to be treated.
pub(crate) struct Webhook {
    pub(crate) id: Uuid,
    pub(crate) event_types: &'static [&'static str],
    /// Requests per second.
    pub(crate) rate_limit: Option<u32>,
}

pub(crate) struct Stage {
    sites: Vec<Arc<Cluster>>,
    primary: AtomicUsize,
    /// The other site has everything that is acknowledged.
    is_covered: AtomicBool,
}

impl Stage {
    pub(crate) async fn build(with_standby: bool, commits: Commits) -> Stage {
        let first = block_in_place(|| Cluster::start(&SETTINGS));
        let mut stage =
            Stage { sites: vec![first], primary: AtomicUsize::new(0), is_covered: AtomicBool::new(false) };
        let admin = stage.primary().connect("postgres").await;
        let create = format!("create database {DATABASE} template {TEMPLATE}");
        admin.batch_execute(&create).await.expect("a database from the template");
        for (role, kind) in [(EMITTER, "emitter"), (SENDER, "sender")] {
            let grant = format!("create role {role} login; select orbhook_grant('{role}', '{kind}')");
            stage.run(&grant).await;
        }
        if commits == Commits::Early {
            stage.run(&format!("alter database {DATABASE} set synchronous_commit = off")).await;
        }
        if with_standby {
            let standby = block_in_place(|| Cluster::standby_of(stage.primary()));
            stage.sites.push(standby);
            stage.cover().await;
        }
        stage
    }

    /// The webhooks' signing secrets.
    pub(crate) fn secrets() -> Vec<String> {
        (1..=3).map(|number: u8| format!("whsec_{}", STANDARD.encode([number; 32]))).collect()
    }

    /// The three webhooks, at these endpoints.
    pub(crate) async fn create_webhooks(&self, urls: &[String], retry_delay_seconds: f64) -> Vec<Webhook> {
        let kinds: [(&'static [&'static str], Option<u32>, u32); 3] =
            [(&EVENT_TYPES, None, 100), (&EVENT_TYPES[..1], Some(30), 20), (&EVENT_TYPES[1..2], None, 20)];
        let client = self.connect().await.expect("a session");
        let mut webhooks = Vec::new();
        for ((url, secret), (event_types, rate_limit, max_in_flight)) in
            urls.iter().zip(Stage::secrets()).zip(kinds)
        {
            let config = json!({
                "name": url, "providerType": "GENERIC", "endpoint": url,
                "subscribedEvents": event_types, "rateLimit": rate_limit, "maxInFlight": max_in_flight,
                "timeoutSeconds": TIMEOUT_SECONDS, "maxRetries": 100, "retryDelay": retry_delay_seconds,
                "signingSecret": secret,
            });
            let created = client.query_one("select orbhook_create_webhook($1)", &[&config]).await;
            let id = created.expect("a webhook").get(0);
            webhooks.push(Webhook { id, event_types, rate_limit });
        }
        webhooks
    }

    pub(crate) fn emitter(&self) -> &'static str {
        EMITTER
    }

    pub(crate) fn is_replicated(&self) -> bool {
        self.sites.len() > 1
    }

    /// A promotion now would lose nothing that was acknowledged.
    pub(crate) fn is_covered(&self) -> bool {
        self.is_covered.load(Ordering::Relaxed)
    }

    /// For `orbhook run`: all sites, in the form of keys and values.
    pub(crate) fn sidecar_url(&self) -> String {
        let sockets: Vec<(String, u16)> = self.sites.iter().map(|site| site.socket()).collect();
        let hosts: Vec<&str> = sockets.iter().map(|(host, _)| host.as_str()).collect();
        let ports: Vec<String> = sockets.iter().map(|(_, port)| port.to_string()).collect();
        format!("host={} port={} user={SENDER} dbname={DATABASE}", hosts.join(","), ports.join(","))
    }

    pub(crate) fn primary(&self) -> &Arc<Cluster> {
        &self.sites[self.primary.load(Ordering::Relaxed)]
    }

    fn other(&self) -> &Arc<Cluster> {
        &self.sites[1 - self.primary.load(Ordering::Relaxed)]
    }

    /// A session as superuser, on the site that is the primary.
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        self.connect_as("postgres").await
    }

    pub(crate) async fn connect_as(&self, role: &str) -> Result<Client, Error> {
        let (host, port) = self.primary().socket();
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(host)
            .port(port)
            .user(role)
            .dbname(DATABASE)
            .application_name("campaign")
            .connect(NoTls)
            .await?;
        // Whoever uses the client gets its error.
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn run(&self, sql: &str) {
        let client = self.connect().await.expect("a session");
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
    }

    /// Once the primary answers.
    pub(crate) async fn ready(&self) {
        wait_until("the primary to answer", 3 * DEADLINE, async || {
            self.connect().await.ok()?.simple_query("select 1").await.ok()
        })
        .await;
    }

    pub(crate) async fn restart_immediately(&self) {
        block_in_place(|| self.primary().restart(ShutdownMode::Immediate));
        self.ready().await;
    }

    pub(crate) async fn kill_postmaster(&self) {
        self.primary().kill_postmaster().await;
        self.primary().revive().await;
        self.ready().await;
    }

    /// `kill -9` of one session's process, which makes the server end all of them and recover. False: there was none.
    pub(crate) async fn kill_backend(&self, which: u64) -> bool {
        let Ok(witness) = self.connect().await else { return false };
        let sql = "select pid from pg_stat_activity where backend_type = 'client backend' \
                   and pid <> pg_backend_pid() order by pid";
        let Ok(rows) = witness.query(sql, &[]).await else { return false };
        if rows.is_empty() {
            return false;
        }
        let pid: i32 = rows[usize::try_from(which).unwrap_or(0) % rows.len()].get(0);
        send_signal(u32::try_from(pid).expect("a process id is positive"), "KILL");
        // Until the server has noticed, it works as if nothing had happened.
        let noticed = async {
            while !witness.is_closed() {
                pause(Duration::from_millis(5)).await;
            }
        };
        // A session that had ended by itself leaves nothing to notice.
        drop(tokio::time::timeout(Duration::from_secs(3), noticed).await);
        self.ready().await;
        true
    }

    /// The primary dies and the standby takes over; then the old primary is made anew and follows.
    ///
    /// `when_promoted` runs in between, when the new primary takes writes and nothing follows it yet.
    pub(crate) async fn fail_over(&self, mut when_promoted: impl FnMut()) {
        self.is_covered.store(false, Ordering::Relaxed);
        self.primary().kill_postmaster().await;
        block_in_place(|| {
            self.other().promote();
            // It has nobody to wait for.
            self.other().reload_with(&[]);
        });
        self.primary.store(1 - self.primary.load(Ordering::Relaxed), Ordering::Relaxed);
        self.ready().await;
        when_promoted();
        self.other().follow(self.primary()).await;
        self.cover().await;
    }

    /// From now on nothing that is acknowledged reaches the standby.
    pub(crate) async fn cut_standby_off(&self) {
        self.is_covered.store(false, Ordering::Relaxed);
        block_in_place(|| {
            self.primary().reload_with(&[]);
            self.other().reload_with(&[]);
        });
    }

    /// From now on nothing is acknowledged that the standby does not have.
    async fn cover(&self) {
        let caught_up = async || {
            let sql = "select exists (select from pg_stat_replication where state = 'streaming' \
                       and flush_lsn >= pg_current_wal_flush_lsn())";
            let client = self.connect().await.ok()?;
            client.query_one(sql, &[]).await.ok()?.get::<_, bool>(0).then_some(())
        };
        wait_until("the standby to catch up", 6 * DEADLINE, caught_up).await;
        block_in_place(|| self.primary().reload_with(&[("synchronous_standby_names", "*")]));
        // Sessions read the setting at their next statement; then one more round trip of the log.
        let is_synchronous = async || {
            let sql = "select current_setting('synchronous_standby_names') = '*' \
                       and exists (select from pg_stat_replication where sync_state = 'sync')";
            let client = self.connect().await.ok()?;
            client.query_one(sql, &[]).await.ok()?.get::<_, bool>(0).then_some(())
        };
        wait_until("commits to wait for the standby", DEADLINE, is_synchronous).await;
        pause(Duration::from_millis(500)).await;
        wait_until("the standby to catch up", 6 * DEADLINE, caught_up).await;
        self.is_covered.store(true, Ordering::Relaxed);
    }

    /// Ends sessions of sidecars: all, or one. Returns the registrations whose session it was.
    pub(crate) async fn terminate_sidecar_sessions(&self, which: Option<u64>) -> Vec<Uuid> {
        let Ok(client) = self.connect().await else { return Vec::new() };
        let Ok(mut listed) = SidecarSessions::list(&client).await else { return Vec::new() };
        if let Some(which) = which
            && !listed.sessions.is_empty()
        {
            let chosen = usize::try_from(which).unwrap_or(0) % listed.sessions.len();
            listed.sessions = listed.sessions.drain(chosen..=chosen).collect();
        }
        listed.terminate(&client).await
    }

    /// pg_amcheck over the whole database, indexes against their tables. Empty: nothing found.
    pub(crate) fn amcheck(&self) -> String {
        let arguments = ["--database", DATABASE, "--heapallindexed", "--install-missing"];
        let checked = block_in_place(|| self.primary().run("pg_amcheck", &arguments));
        match checked.status.success() {
            true => String::new(),
            false => String::from_utf8_lossy(&checked.stdout).lines().take(5).collect(),
        }
    }

    /// At any time, on any server.
    pub(crate) fn had_deadlocks(&self) -> bool {
        self.sites.iter().any(|site| site.log().contains("deadlock detected"))
    }

    /// Adds the servers' logs to the others.
    pub(crate) fn keep_logs(&self, directory: &Path) {
        for (number, site) in self.sites.iter().enumerate() {
            drop(std::fs::write(directory.join(format!("server-{number}.log")), site.log()));
        }
    }

    /// Where the campaign leaves its logs.
    pub(crate) fn new_directory(seed: u64) -> PathBuf {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("orbhook-campaign-{seed}-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory for the logs");
        directory
    }
}

/// The sessions of sidecars at one moment.
struct SidecarSessions {
    /// Process id, and the registration whose lock it holds.
    sessions: Vec<(i32, Option<Uuid>)>,
    /// All registrations there were.
    registrations: Vec<Uuid>,
}

impl SidecarSessions {
    async fn list(client: &Client) -> Result<SidecarSessions, Error> {
        // First, so that nobody is among these whom the sessions do not tell of.
        let registrations = client.query("select id from orbhook.instances", &[]).await?;
        // A registration's advisory lock says which session is whose.
        let sql = "select a.pid, i.id from pg_stat_activity a \
                   left join pg_locks l on l.pid = a.pid and l.locktype = 'advisory' and l.classid = 1869767273 \
                   left join orbhook.instances i on i.died_at is null and i.stopped_at is null \
                        and orbhook._sidecar_key(i.id) = l.objid::bigint::bit(32)::integer \
                   where a.application_name = 'orbhook' order by a.pid";
        let sessions = client.query(sql, &[]).await?;
        Ok(SidecarSessions {
            sessions: sessions.iter().map(|row| (row.get(0), row.get(1))).collect(),
            registrations: registrations.iter().map(|row| row.get(0)).collect(),
        })
    }

    /// Waits until they are gone. Returns the registrations whose session it was.
    async fn terminate(self, client: &Client) -> Vec<Uuid> {
        for (pid, _) in &self.sessions {
            drop(client.execute("select pg_terminate_backend($1, 5000)", &[pid]).await);
        }
        let mut registrations: Vec<Uuid> = self.sessions.iter().filter_map(|(_, id)| *id).collect();
        // A session that belonged to nobody may have registered since.
        let sql = "select id from orbhook.instances where id <> all ($1) and stopped_at is null and has_lock \
                   and not exists (select from pg_locks where locktype = 'advisory' and classid = 1869767273 \
                        and objid::bigint::bit(32)::integer = orbhook._sidecar_key(id))";
        if self.sessions.iter().any(|(_, id)| id.is_none())
            && let Ok(rows) = client.query(sql, &[&self.registrations]).await
        {
            registrations.extend(rows.iter().map(|row| row.get::<_, Uuid>(0)));
        }
        registrations.sort_unstable();
        registrations.dedup();
        registrations
    }
}

/// Sends a signal by name; false if the process is gone.
pub(crate) fn send_signal(pid: u32, name: &str) -> bool {
    let status = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).output();
    status.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_registers_between_the_list_and_the_end_of_its_session_is_blamed_too() {
        let stage = Stage::build(false, Commits::Durable).await;
        let client = stage.connect().await.unwrap();
        let [before, since, after] = [sidecar(&stage).await, sidecar(&stage).await, sidecar(&stage).await];
        let before_id = register(&before).await;
        let mut listed = SidecarSessions::list(&client).await.unwrap();
        let pid: i32 = after.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        listed.sessions.retain(|(listed, _)| *listed != pid);
        let since_id = register(&since).await;
        register(&after).await;
        let mut expected = vec![before_id, since_id];
        expected.sort_unstable();
        assert_eq!(listed.terminate(&client).await, expected);
        after.simple_query("select").await.expect("it was not on the list");
    }

    async fn sidecar(stage: &Stage) -> Client {
        let client = stage.connect_as(SENDER).await.unwrap();
        client.batch_execute("set application_name = 'orbhook'").await.unwrap();
        client
    }

    async fn register(client: &Client) -> Uuid {
        let id = Uuid::new_v4();
        let sql = "select orbhook.register($1, 'a sidecar', '1', true)";
        assert!(client.query_one(sql, &[&id]).await.unwrap().get::<_, bool>(0));
        id
    }
}
