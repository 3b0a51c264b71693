//! Connections to PostgreSQL: how they are made, what every session is set to, and what their errors mean.
//!
//! Statements are unnamed (`query_typed`), so that a transaction pooler may stand between. Each has a deadline on this side:
//! a server that does not answer must not hold up the sidecar.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, NoTls, Notification, Row, SimpleQueryMessage,
    config::{Host, SslMode},
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{config::Database, error::DatabaseError, outage::Outage, tls};

/// A statement that took longer is given up, and its connection with it: whether it took effect is unknown.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(10);

/// One host: TCP, TLS, authentication and the session's settings.
const CONNECT_DEADLINE: Duration = Duration::from_secs(8);
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A dead peer is noticed after 5 s + 2 × 3 s of silence, unacknowledged data after 10 s. The default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Notifications that wait to be read. They carry nothing, so the excess is dropped.
const NOTIFICATIONS_MAX: usize = 256;

const CANCEL_DEADLINE: Duration = Duration::from_secs(2);
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Run once in every session, because roles and databases can be given other defaults.
///
/// `pg_settings` is joined so that a setting this server does not have is left out. The server's own keepalives make a
/// half-open link free its locks: a backend that waits for a dead client would hold the doorbell for two hours.
const SESSION: &str = "\
SELECT pg_catalog.set_config(s.name, v.setting, false)
FROM (VALUES
    ('application_name', 'orbhook'),
    ('client_encoding', 'UTF8'),
    ('client_min_messages', 'warning'),
    ('default_transaction_deferrable', 'off'),
    ('default_transaction_isolation', 'read committed'),
    ('default_transaction_read_only', 'off'),
    ('idle_in_transaction_session_timeout', '0'),
    ('idle_session_timeout', '0'),
    ('jit', 'off'),
    ('lock_timeout', '0'),
    ('search_path', 'pg_catalog'),
    ('statement_timeout', '30s'),
    ('tcp_keepalives_count', '3'),
    ('tcp_keepalives_idle', '5'),
    ('tcp_keepalives_interval', '2'),
    ('tcp_user_timeout', '10s'),
    ('transaction_timeout', '0')
) AS v (name, setting)
JOIN pg_catalog.pg_settings AS s ON s.name OPERATOR(pg_catalog.=) v.name;
SELECT pg_catalog.pg_is_in_recovery()";

/// Makes connections to the primary among the configured servers.
#[derive(Clone)]
pub(crate) struct Connector {
    servers: Arc<[Server]>,
    tls: MakeRustlsConnect,
    pub(crate) outage: Outage,
}

#[derive(Debug)]
struct Server {
    /// For messages: host and port.
    label: String,
    config: tokio_postgres::Config,
    is_socket: bool,
}

impl Connector {
    pub(crate) fn new(database: &Database) -> Result<Connector, tls::CertificateError> {
        let verified = database.ca_file.is_some() || database.config.get_ssl_mode() == SslMode::Require;
        let tls = match verified {
            true => tls::database(database.ca_file.as_deref())?,
            false => tls::opportunistic()?,
        };
        let servers = split_servers(&database.config);
        Ok(Connector { servers: servers.into(), tls: MakeRustlsConnect::new(tls), outage: Outage::default() })
    }

    /// Tries the servers in turn until one is a primary.
    ///
    /// Errors: why the last one would not do; a standby says more than one that is down, so it is told first.
    pub(crate) async fn connect(&self) -> Result<(Db, Notifications), DatabaseError> {
        let mut worst: Option<DatabaseError> = None;
        for server in self.servers.iter() {
            let connected = timeout(CONNECT_DEADLINE, self.connect_to(server)).await;
            let error = match connected {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => DatabaseError::CannotConnect {
                    server: server.label.clone(),
                    reason: format!("no answer within {} s", CONNECT_DEADLINE.as_secs()),
                },
            };
            if !matches!(worst, Some(DatabaseError::Standby { .. })) {
                worst = Some(error);
            }
        }
        Err(worst.unwrap_or_else(|| DatabaseError::CannotConnect {
            server: "nowhere".to_owned(),
            reason: "the database URL names no host".to_owned(),
        }))
    }

    async fn connect_to(&self, server: &Server) -> Result<(Db, Notifications), DatabaseError> {
        let failed = |error: tokio_postgres::Error| DatabaseError::from_connect(&error, &server.label);
        let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
        let (client, driver) = if server.is_socket {
            let (client, connection) = server.config.connect(NoTls).await.map_err(failed)?;
            (client, Driver(tokio::spawn(drive(connection, sender))))
        } else {
            let (client, connection) = server.config.connect(self.tls.clone()).await.map_err(failed)?;
            (client, Driver(tokio::spawn(drive(connection, sender))))
        };
        let cancel = client.cancel_token();
        let db = Db {
            client,
            driver,
            cancel,
            tls: (!server.is_socket).then(|| self.tls.clone()),
            server: server.label.clone(),
        };
        let answers = db.client.simple_query(SESSION).await.map_err(failed)?;
        let recovering = answers.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(|value| value == "t"),
            _ => None,
        });
        if recovering == Some(true) {
            return Err(DatabaseError::Standby { server: server.label.clone() });
        }
        Ok((db, notifications))
    }
}

/// What arrives on a connection that listens. Ends when the connection does.
pub(crate) type Notifications = mpsc::Receiver<Notification>;

async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    notifications: mpsc::Sender<Notification>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(notification))) => {
                // Full: enough are waiting to wake whoever reads.
                let _ = notifications.try_send(notification);
            }
            Some(Ok(_)) => {}
            // Whoever is waiting for an answer gets the error.
            Some(Err(_)) | None => return,
        }
    }
}

/// The task that reads and writes the socket. Dropped, it closes the socket at once: a connection that is given up must not
/// live on until a statement that never answers has answered.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session on the primary.
pub(crate) struct Db {
    client: Client,
    driver: Driver,
    cancel: CancelToken,
    tls: Option<MakeRustlsConnect>,
    server: String,
}

impl Db {
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DatabaseError> {
        self.query_within(STATEMENT_DEADLINE, sql, parameters).await
    }

    /// All rows of one statement, once it has completed and, being a transaction of its own, has been committed.
    pub(crate) async fn query_within(
        &self,
        deadline: Duration,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DatabaseError> {
        match timeout(deadline, self.client.query_typed(sql, parameters)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(DatabaseError::from_statement(&error, &self.server)),
            Err(_) => {
                self.cancel_in_background();
                Err(DatabaseError::Lost { reason: format!("no answer within {} s", deadline.as_secs()) })
            }
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    pub(crate) async fn listen(&self, channel: &'static str) -> Result<(), DatabaseError> {
        self.query(&format!("LISTEN {channel}"), &[]).await.map(drop)
    }

    /// Says goodbye, so that the server frees the session's locks now rather than when it notices.
    pub(crate) async fn close(self) {
        let Db { client, mut driver, .. } = self;
        drop(client);
        // Past the deadline the driver is dropped, and the socket with it.
        let _ = timeout(CLOSE_DEADLINE, &mut driver.0).await;
    }

    /// The statement nobody waits for any more may hold locks, or hang until a standby answers; each retry would add another.
    fn cancel_in_background(&self) {
        let (cancel, tls) = (self.cancel.clone(), self.tls.clone());
        tokio::spawn(async move {
            let cancelled = async {
                match tls {
                    Some(tls) => cancel.cancel_query(tls).await,
                    None => cancel.cancel_query(NoTls).await,
                }
            };
            if !matches!(timeout(CANCEL_DEADLINE, cancelled).await, Ok(Ok(()))) {
                tracing::debug!("a statement that was given up could not be cancelled");
            }
        });
    }
}

/// One configuration for each server. tokio-postgres would go through the list by itself, but it takes a role whose default is
/// read-only for a standby, and a standby for a primary unless told otherwise.
fn split_servers(all: &tokio_postgres::Config) -> Vec<Server> {
    let (hosts, addresses, ports) = (all.get_hosts(), all.get_hostaddrs(), all.get_ports());
    (0..hosts.len().max(addresses.len()))
        .map(|index| {
            let mut config = base_config(all);
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            config.port(port);
            let host = hosts.get(index);
            let address = addresses.get(index);
            if let Some(address) = address {
                config.hostaddr(*address);
            }
            let (label, is_socket) = match (host, address) {
                (Some(Host::Tcp(name)), _) => {
                    config.host(name);
                    (format!("{name}:{port}"), false)
                }
                (Some(Host::Unix(directory)), _) => {
                    config.host_path(directory);
                    config.ssl_mode(SslMode::Disable);
                    (format!("{}:{port}", directory.display()), true)
                }
                // TLS wants a name to verify; the address is all there is.
                (None, Some(address)) => {
                    config.host(address.to_string());
                    (format!("{address}:{port}"), false)
                }
                (None, None) => (format!("port {port}"), false),
            };
            Server { label, config, is_socket }
        })
        .collect()
}

fn base_config(all: &tokio_postgres::Config) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    if let Some(user) = all.get_user() {
        config.user(user);
    }
    if let Some(password) = all.get_password() {
        config.password(password);
    }
    if let Some(dbname) = all.get_dbname() {
        config.dbname(dbname);
    }
    if let Some(options) = all.get_options() {
        config.options(options);
    }
    config
        .ssl_mode(all.get_ssl_mode())
        .ssl_negotiation(all.get_ssl_negotiation())
        .channel_binding(all.get_channel_binding())
        .application_name("orbhook")
        .connect_timeout(TCP_CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .tcp_user_timeout(TCP_USER_TIMEOUT);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_of_a_list_is_tried_with_its_own_port_and_the_shared_rest() {
        let all = "postgres://u:p@a:1,b:2,[::1]:3/shop?target_session_attrs=read-write".parse().unwrap();
        let servers = split_servers(&all);
        let labels: Vec<_> = servers.iter().map(|server| server.label.as_str()).collect();
        assert_eq!(labels, ["a:1", "b:2", "::1:3"]);
        for server in &servers {
            assert_eq!(server.config.get_user(), Some("u"));
            assert_eq!(server.config.get_password(), Some(&b"p"[..]));
            assert_eq!(server.config.get_dbname(), Some("shop"));
            assert_eq!(server.config.get_hosts().len(), 1);
            assert_eq!(server.config.get_tcp_user_timeout(), Some(&TCP_USER_TIMEOUT));
        }
    }

    #[test]
    fn a_socket_directory_is_dialled_without_tls() {
        let servers =
            split_servers(&"host=/run/postgresql port=5433 user=u sslmode=require".parse().unwrap());
        assert!(servers[0].is_socket);
        assert_eq!(servers[0].config.get_ssl_mode(), SslMode::Disable);
        assert_eq!(servers[0].label, "/run/postgresql:5433");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_in_words() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let database = Database::parse(&format!("postgres://u:CANARY@127.0.0.1:{port}/shop"), None).unwrap();
        let error = Connector::new(&database).unwrap().connect().await.err().unwrap();
        assert!(
            matches!(&error, DatabaseError::CannotConnect { reason, .. } if reason.contains("refused")),
            "{error}"
        );
        assert!(!format!("{error:?}").contains("CANARY"));
    }
}
