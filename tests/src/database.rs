use std::net::SocketAddr;
use std::ops::Deref;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::cluster::{Cluster, TEMPLATE};
use crate::wait::{DEADLINE, wait_until};

/// A database of the test's own, with the extension in it; dropped with this value.
///
/// Its methods run as superuser on one session, which is opened anew if the server was restarted. For anything with a
/// transaction that outlives a call, take a session with [`Database::connect`].
pub struct Database {
    cluster: Arc<Cluster>,
    name: String,
    /// With the life of the cluster that it belongs to.
    session: Mutex<Option<(u32, Arc<Session>)>>,
}

/// A connection, with queries as short as they read.
pub struct Session(Client);

/// An error of the server's, as a test looks at it.
#[derive(Debug)]
pub struct Refusal {
    /// Five characters, such as `22023`.
    pub sqlstate: String,
    pub message: String,
    /// Empty if there was none.
    pub hint: String,
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Database {
    /// A database in the cluster that all tests of this process share.
    pub async fn new() -> Database {
        Database::on(&Cluster::shared()).await
    }

    /// A database in a certain cluster.
    pub async fn on(cluster: &Arc<Cluster>) -> Database {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        Database::named(cluster, &name).await
    }

    /// A database of a certain name, a plain identifier.
    pub async fn named(cluster: &Arc<Cluster>, name: &str) -> Database {
        let create = format!("create database {name} template {TEMPLATE}");
        cluster.connect("postgres").await.batch_execute(&create).await.expect("a database from the template");
        Database { cluster: Arc::clone(cluster), name: name.to_owned(), session: Mutex::new(None) }
    }

    /// A copy of another test's database, rows and all. Its own sessions are ended first.
    pub async fn copy(original: &Database, name: &str) -> Database {
        let client = original.cluster.connect("postgres").await;
        // A copy is refused while anybody is connected to what it is made of.
        let end = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}' and pid <> pg_backend_pid()",
            original.name
        );
        let create = format!("create database {name} template {}", original.name);
        wait_until("the original to be without sessions", DEADLINE, async || {
            client.batch_execute(&end).await.expect("sessions are ended");
            client.batch_execute(&create).await.ok()
        })
        .await;
        Database { cluster: Arc::clone(&original.cluster), name: name.to_owned(), session: Mutex::new(None) }
    }

    /// One that the test has made by other means.
    pub fn existing(cluster: &Arc<Cluster>, name: &str) -> Database {
        Database { cluster: Arc::clone(cluster), name: name.to_owned(), session: Mutex::new(None) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Connection URL over the Unix socket.
    pub fn url(&self, role: &str) -> String {
        self.cluster.url(&self.name, role)
    }

    /// Connection URL over TCP for the role that [`Database::role`] made, at the server's address or another that leads to it.
    pub async fn tcp_url(&self, role: &str, address: SocketAddr) -> String {
        const PASSWORD: &str = "for-the-loopback-address-only";
        self.execute(&format!("alter role {role} password '{PASSWORD}'")).await;
        format!("postgresql://{role}:{PASSWORD}@{address}/{}", self.name)
    }

    /// A session as superuser.
    pub async fn connect(&self) -> Session {
        Session(self.cluster.connect(&self.name).await)
    }

    /// A session as the role that [`Database::role`] made.
    pub async fn connect_as(&self, role: &str) -> Session {
        Session(self.cluster.connect_as(&self.name, role).await.expect("a session as the role"))
    }

    /// A login role with `orbhook_grant(role, kind)`; `""` grants nothing. Asked again it returns the same role.
    pub async fn role(&self, kind: &str) -> String {
        let role = format!("{}_{}", self.name, if kind.is_empty() { "nobody" } else { kind });
        let exists =
            self.one::<bool>("select exists (select from pg_roles where rolname = $1)", &[&role]).await;
        if !exists {
            self.execute(&format!("create role {role} login")).await;
        }
        if !kind.is_empty() {
            self.execute(&format!("select orbhook_grant('{role}', '{kind}')")).await;
        }
        role
    }

    /// Makes a webhook from the product document's configuration object.
    pub async fn create_webhook(&self, config: Value) -> Uuid {
        self.one("select orbhook_create_webhook($1)", &[&config]).await
    }

    /// Emits one event in a transaction of its own; returns the event's id.
    pub async fn emit(&self, event_type: &str, payload: Value) -> Uuid {
        self.one("select orbhook_emit($1, $2)", &[&event_type, &payload]).await
    }

    /// Runs statements without results.
    pub async fn execute(&self, sql: &str) {
        self.session().await.execute(sql).await;
    }

    /// The single value of a query's single row.
    pub async fn one<T: for<'a> FromSql<'a>>(&self, sql: &str, parameters: Parameters<'_>) -> T {
        self.session().await.one(sql, parameters).await
    }

    /// All rows of a query.
    pub async fn rows(&self, sql: &str, parameters: Parameters<'_>) -> Vec<Row> {
        self.session().await.rows(sql, parameters).await
    }

    /// The error that statements must end with.
    pub async fn refusal(&self, sql: &str) -> Refusal {
        self.session().await.refusal(sql).await
    }

    async fn session(&self) -> Arc<Session> {
        let mut session = self.session.lock().await;
        let life = self.cluster.life();
        match session.as_ref().filter(|(of, session)| *of == life && !session.is_closed()) {
            Some((_, session)) => Arc::clone(session),
            None => Arc::clone(&session.insert((life, Arc::new(self.connect().await))).1),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let cluster = Arc::clone(&self.cluster);
        let drop_all = format!("drop database if exists {} with (force)", self.name);
        let list_roles =
            format!("select rolname::text from pg_roles where starts_with(rolname, '{}_')", self.name);
        // The test's runtime may be gone or in the middle of a panic: this happens in one of its own. What cannot be
        // dropped goes with the cluster.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = cluster.connect("postgres").await;
                client.batch_execute(&drop_all).await?;
                for row in client.query(&list_roles, &[]).await? {
                    client.batch_execute(&format!("drop role {}", row.get::<_, String>(0))).await?;
                }
                Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
        let _ = dropped.join();
    }
}

impl Session {
    /// Runs statements without results.
    pub async fn execute(&self, sql: &str) {
        if let Err(error) = self.batch_execute(sql).await {
            panic!("{error:?}\nin: {sql}");
        }
    }

    /// The single value of a query's single row.
    pub async fn one<T: for<'a> FromSql<'a>>(&self, sql: &str, parameters: Parameters<'_>) -> T {
        match self.query_one(sql, parameters).await {
            Ok(row) => row.get(0),
            Err(error) => panic!("{error:?}\nin: {sql}"),
        }
    }

    /// All rows of a query.
    pub async fn rows(&self, sql: &str, parameters: Parameters<'_>) -> Vec<Row> {
        match self.query(sql, parameters).await {
            Ok(rows) => rows,
            Err(error) => panic!("{error:?}\nin: {sql}"),
        }
    }

    /// The error that statements must end with.
    pub async fn refusal(&self, sql: &str) -> Refusal {
        match self.batch_execute(sql).await {
            Ok(()) => panic!("accepted: {sql}"),
            Err(error) => match error.as_db_error() {
                Some(error) => Refusal::from(error),
                None => panic!("the server did not refuse, it went away: {error:?}\nin: {sql}"),
            },
        }
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Refusal {
        Refusal {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }
}

/// Configuration of a webhook that gets every event, without a rate limit.
pub fn generic(endpoint: &str) -> Value {
    json!({
        "name": "test",
        "providerType": "GENERIC",
        "endpoint": endpoint,
        "subscribedEvents": ["*"],
        "rateLimit": null,
    })
}
