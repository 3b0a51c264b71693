//! A connection that lasts: whoever uses it sees one that works, however often the server goes away.

use std::time::Duration;

use crate::{
    backoff::Backoff,
    db::{Connector, Db},
    error::DatabaseError,
    metrics::Metrics,
};

/// First and longest wait between two tries to connect: back within 5 s of the server, without hammering it.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LAST: Duration = Duration::from_secs(1);

/// One lasting connection: made when first needed, made again when lost, as often as it takes.
pub(crate) struct Link {
    /// For the log: what the connection is for.
    purpose: &'static str,
    connector: Connector,
    metrics: Metrics,
    db: Option<Db>,
    backoff: Backoff,
    /// The last failed statement that was said, so that it is said once.
    said: Option<DatabaseError>,
}

impl Link {
    pub(crate) fn new(purpose: &'static str, connector: Connector, metrics: Metrics) -> Link {
        Link { purpose, connector, metrics, db: None, backoff: reconnect_backoff(), said: None }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.db.as_ref().is_some_and(Db::is_open)
    }

    /// The connection; waits for as long as there is none.
    pub(crate) async fn connected(&mut self) -> &Db {
        // One that was closed while nobody used it is replaced at once, not after a statement has failed on it.
        let db = match self.db.take().filter(Db::is_open) {
            Some(db) => db,
            None => self.connect().await,
        };
        self.db.insert(db)
    }

    async fn connect(&mut self) -> Db {
        loop {
            match self.connector.connect().await {
                Ok((db, _)) => return db,
                Err(error) => {
                    self.say(error);
                    tokio::time::sleep(self.backoff.next(rand::random())).await;
                }
            }
        }
    }

    /// The connection served: the next trouble starts a new count. `took`: the statement.
    pub(crate) fn worked(&mut self, took: Duration) {
        self.metrics.statement(self.purpose, took);
        self.backoff.reset();
        self.said = None;
        self.connector.outage.end();
    }

    /// A statement failed: drops the connection if the error says it is gone, and waits before the next try.
    pub(crate) async fn failed(&mut self, error: DatabaseError) {
        if error.ends_connection() {
            self.db = None;
        }
        self.say(error);
        tokio::time::sleep(self.backoff.next(rand::random())).await;
    }

    pub(crate) async fn close(mut self) {
        if let Some(db) = self.db.take() {
            db.close().await;
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn say(&mut self, error: DatabaseError) {
        self.metrics.database_error(self.purpose);
        let is_news = match error.ends_connection() {
            true => self.connector.outage.is_news(&error),
            false => self.said.as_ref() != Some(&error),
        };
        if is_news {
            tracing::warn!(purpose = self.purpose, %error, hint = error.hint(), "trouble with the database; trying again");
        }
        if !error.ends_connection() {
            self.said = Some(error);
        }
    }
}

pub(crate) fn reconnect_backoff() -> Backoff {
    Backoff::new(RECONNECT_FIRST, RECONNECT_LAST)
}
