//! Knows when to look for work: LISTEN, a timer, and the doorbell.
//!
//! The doorbell is an advisory lock that an idle sidecar holds (in SQL: `doze` and `rouse`). A transaction that makes a delivery
//! due sends a NOTIFY only while somebody holds it. So the order matters: take the lock, look once more, only then sleep. What
//! committed before the lock was taken is seen by that look; what commits after it rings.
//!
//! All of it is a hint. The worker claims by itself when this connection has been silent for longer than a poll.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    campaign::{self, Bug},
    check,
    config::Config,
    db::{Connector, Db, Notifications},
    error::DatabaseError,
    idle::Idle,
    link::reconnect_backoff,
    metrics::Metrics,
};

const CHANNEL: &str = "orbhook";

/// How long a notification of our own may take to come back before the connection counts as unable to listen.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection counts as dead after this: with the second between two looks, a half-open link is noticed within 6 s.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// A session that lasted this long worked; one that did not must not be made again without a pause.
const SETTLED_IN: Duration = Duration::from_secs(5);

/// Ids tried before giving up on a registration. Random 128-bit ids do not collide; their 32-bit lock keys can.
const REGISTER_TRIES: usize = 5;

/// What the worker wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Busy: nobody needs to ring.
    Awake,
    /// Nothing left to claim; sleep until something happens. `found`: there was work since the last time.
    Sleepy { found: bool },
    /// Deregister and end.
    Stop,
}

/// What the worker is told. Registrations go by the watch channel beside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There may be something to claim.
    Work,
    /// The connection is alive; no need to poll.
    Beat,
}

/// What this sidecar says about itself when it registers.
pub(crate) struct Identity {
    name: String,
    environment: String,
    key_ids: Vec<String>,
}

impl Identity {
    pub(crate) fn of(config: &Config) -> Identity {
        Identity {
            name: config.name.clone(),
            environment: config.environment.clone(),
            key_ids: config.key_ids(),
        }
    }
}

/// The channels between this task and the worker.
pub(crate) struct Channels {
    pub(crate) mode: watch::Receiver<Mode>,
    pub(crate) events: mpsc::Sender<Event>,
    /// The id that claims are made under; None while there is none.
    pub(crate) registration: watch::Sender<Option<Uuid>>,
}

/// Keeps a connection and a registration until told to stop.
pub(crate) async fn keep_awake(
    connector: Connector,
    identity: Identity,
    poll: Duration,
    metrics: Metrics,
    mut channels: Channels,
) {
    let mut backoff = reconnect_backoff();
    let mut said: Option<DatabaseError> = None;
    while *channels.mode.borrow() != Mode::Stop {
        let attempt = Session::begin(&connector, &identity, poll);
        let error = match begin_unless_stopped(attempt, &mut channels.mode).await {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(mut session)) => {
                let began = Instant::now();
                channels.registration.send_replace(Some(session.sidecar));
                let ended = session.run(&mut channels).await;
                channels.registration.send_replace(None);
                if began.elapsed() >= SETTLED_IN {
                    backoff.reset();
                    said = None;
                }
                match ended {
                    Ok(()) => return session.end().await,
                    Err(error) => error,
                }
            }
        };
        metrics.database_error("wake");
        let is_news = match error.ends_connection() {
            true => connector.outage.is_news(&error),
            false => said.as_ref() != Some(&error),
        };
        if is_news {
            tracing::warn!(%error, hint = error.hint(), "not ready to deliver; trying again");
        } else {
            tracing::debug!(%error, "still not ready to deliver");
        }
        if !error.ends_connection() {
            said = Some(error);
        }
        tokio::time::sleep(backoff.next(rand::random())).await;
    }
}

async fn begin_unless_stopped<T>(
    begin: impl Future<Output = T>,
    mode: &mut watch::Receiver<Mode>,
) -> Option<T> {
    tokio::select! {
        begun = begin => Some(begun),
        // An error means that the worker is gone, which is the same.
        _ = mode.wait_for(|mode| *mode == Mode::Stop) => None,
    }
}

/// A registered connection.
struct Session {
    db: Db,
    notifications: Notifications,
    sidecar: Uuid,
    /// Notifications and session locks work here: it is no transaction pooler.
    listens: bool,
    poll: Duration,
}

impl Session {
    async fn begin(
        connector: &Connector,
        identity: &Identity,
        poll: Duration,
    ) -> Result<Session, DatabaseError> {
        let (db, mut notifications) = connector.connect().await?;
        let findings = check::examine(&db, &identity.environment, &identity.key_ids).await?;
        findings.refuse_silenced()?;
        findings.warn();
        let listens = self_check(connector, &db, &mut notifications).await?;
        if !listens {
            tracing::warn!(
                poll_ms = u64::try_from(poll.as_millis()).unwrap_or(u64::MAX),
                "notifications do not come back on this connection (a transaction pooler?); polling instead, without session locks"
            );
        }
        let sidecar = register(&db, identity, listens).await?;
        connector.outage.end();
        tracing::info!(%sidecar, listens, "registered");
        Ok(Session { db, notifications, sidecar, listens, poll })
    }

    /// Until told to stop (Ok) or the connection fails (Err).
    async fn run(&mut self, channels: &mut Channels) -> Result<(), DatabaseError> {
        let mut idle = Idle::new(Instant::now(), self.poll);
        // The first mode was meant for a connection that is gone.
        channels.mode.mark_changed();
        tell(&channels.events, Event::Work);
        loop {
            tokio::select! {
                biased;
                changed = channels.mode.changed() => {
                    let mode = match changed {
                        Ok(()) => *channels.mode.borrow_and_update(),
                        Err(_) => Mode::Stop,
                    };
                    match mode {
                        Mode::Awake => {
                            idle.stay_up(Instant::now());
                            self.rouse_if(&mut idle).await?;
                        }
                        Mode::Sleepy { found } => idle.may_sleep(Instant::now(), found),
                        Mode::Stop => return Ok(()),
                    }
                }
                notification = self.notifications.recv() => {
                    let Some(notification) = notification else {
                        return Err(DatabaseError::Lost { reason: "the connection was closed".to_owned() });
                    };
                    // Other payloads are other sidecars' self-checks.
                    if notification.payload().is_empty() {
                        self.drain_notifications();
                        self.wake_up(&mut idle, &channels.events).await?;
                    }
                }
                () = sleep_until(idle.next_at()), if !campaign::has(Bug::NoPoll) => {
                    if idle.is_due(Instant::now()) || self.ask(&mut idle).await? {
                        self.wake_up(&mut idle, &channels.events).await?;
                    }
                    tell(&channels.events, Event::Beat);
                }
            }
        }
    }

    async fn end(self) {
        if let Err(error) =
            self.db.query("SELECT orbhook.deregister($1)", &[(&self.sidecar, Type::UUID)]).await
        {
            tracing::warn!(%error, "could not deregister; the database notices by itself");
        }
        self.db.close().await;
    }

    /// The worker first: it claims on its own connection while this one lets go of the lock.
    async fn wake_up(&self, idle: &mut Idle, events: &mpsc::Sender<Event>) -> Result<(), DatabaseError> {
        tell(events, Event::Work);
        idle.stay_up(Instant::now());
        self.rouse_if(idle).await
    }

    async fn rouse_if(&self, idle: &mut Idle) -> Result<(), DatabaseError> {
        if idle.dozing {
            self.db.query_within(LOOK_DEADLINE, "SELECT orbhook.rouse()", &[]).await?;
            idle.dozing = false;
        }
        Ok(())
    }

    /// Asks whether there is work, taking the doorbell first if it is time to sleep. True: claim now.
    async fn ask(&self, idle: &mut Idle) -> Result<bool, DatabaseError> {
        if self.listens && idle.sleepy && !idle.dozing {
            let (state, wait) = self.doze().await?;
            idle.dozing = state == Doze::Dozing;
            return Ok(idle.answer(Instant::now(), wait, state == Doze::Refused));
        }
        let wait = self.look().await?;
        Ok(idle.answer(Instant::now(), wait, false))
    }

    async fn doze(&self) -> Result<(Doze, Option<Duration>), DatabaseError> {
        let sql = "SELECT state, wait_ms FROM orbhook.doze($1)";
        let rows = self.db.query_within(LOOK_DEADLINE, sql, &[(&self.sidecar, Type::UUID)]).await?;
        let unexpected =
            || DatabaseError::Unexpected { reason: "orbhook.doze did not say whether it dozes".to_owned() };
        let row = rows.first().ok_or_else(unexpected)?;
        let state = match row.try_get::<_, String>(0).map_err(|_| unexpected())?.as_str() {
            "dozing" => Doze::Dozing,
            "listening" => Doze::Listening,
            "refused" => Doze::Refused,
            _ => return Err(unexpected()),
        };
        Ok((state, to_wait(row.try_get(1).map_err(|_| unexpected())?)))
    }

    async fn look(&self) -> Result<Option<Duration>, DatabaseError> {
        let rows = self
            .db
            .query_within(LOOK_DEADLINE, "SELECT orbhook.look($1)", &[(&self.sidecar, Type::UUID)])
            .await?;
        let wait = rows.first().and_then(|row| row.try_get::<_, Option<i32>>(0).ok()).ok_or_else(|| {
            DatabaseError::Unexpected { reason: "orbhook.look returned no milliseconds".to_owned() }
        })?;
        Ok(to_wait(wait))
    }

    fn drain_notifications(&mut self) {
        while self.notifications.try_recv().is_ok() {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doze {
    Dozing,
    Listening,
    Refused,
}

/// A full channel has enough in it to wake the worker.
fn tell(events: &mpsc::Sender<Event>, event: Event) {
    drop(events.try_send(event));
}

fn to_wait(ms: Option<i32>) -> Option<Duration> {
    ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

/// Do notifications arrive on this very connection?
///
/// The nonce is sent from another connection: behind a transaction pooler, a notification sent from this one could come back
/// through the server connection that the statement happens to be on, and prove nothing.
async fn self_check(
    connector: &Connector,
    db: &Db,
    notifications: &mut Notifications,
) -> Result<bool, DatabaseError> {
    if let Err(error) = db.listen(CHANNEL).await {
        // LISTEN can fail while everything else works (a full queue, or the CLOG trouble of minors before 15.15).
        if error.ends_connection() {
            return Err(error);
        }
        tracing::warn!(%error, "LISTEN failed");
        return Ok(false);
    }
    let nonce = Uuid::new_v4().to_string();
    let (other, _) = connector.connect().await?;
    let notified = other
        .query("SELECT pg_catalog.pg_notify($1, $2)", &[(&CHANNEL, Type::TEXT), (&nonce, Type::TEXT)])
        .await;
    other.close().await;
    if let Err(error) = notified {
        if error.ends_connection() {
            return Err(error);
        }
        tracing::warn!(%error, "NOTIFY failed");
        return Ok(false);
    }
    let came_back = async {
        while let Some(notification) = notifications.recv().await {
            if notification.payload() == nonce {
                return true;
            }
        }
        false
    };
    Ok(timeout(SELF_CHECK_TIMEOUT, came_back).await.unwrap_or(false))
}

async fn register(db: &Db, identity: &Identity, session: bool) -> Result<Uuid, DatabaseError> {
    let version = env!("CARGO_PKG_VERSION");
    for _ in 0..REGISTER_TRIES {
        let sidecar = Uuid::new_v4();
        let rows = db
            .query(
                "SELECT orbhook.register($1, $2, $3, $4, $5, $6)",
                &[
                    (&sidecar, Type::UUID),
                    (&identity.name, Type::TEXT),
                    (&version, Type::TEXT),
                    (&session, Type::BOOL),
                    (&identity.environment, Type::TEXT),
                    (&identity.key_ids, Type::TEXT_ARRAY),
                ],
            )
            .await?;
        if rows.first().and_then(|row| row.try_get(0).ok()) == Some(true) {
            return Ok(sidecar);
        }
    }
    Err(DatabaseError::Unexpected { reason: format!("{REGISTER_TRIES} random ids were all taken") })
}
