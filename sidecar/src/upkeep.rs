//! What no delivery waits for, on a connection of its own: `orbhook.tend` every few seconds, and the gauges for `/metrics`. The
//! connection is there only while there is something to do: between two calls, a sidecar holds three.
//!
//! Trouble with the connection is not logged here: those that deliveries go by have the same trouble and say so.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::{
    db::{Connector, Db},
    error::DatabaseError,
    metrics::Metrics,
};

/// Between two calls of `orbhook.tend` when there is nothing more to do. Some steps become due each minute.
const TEND_INTERVAL: Duration = Duration::from_secs(10);
/// Between two steps when there is: a long upkeep leaves the machine to others half of the time or more.
const STEP_PAUSE: Duration = Duration::from_millis(100);
/// One step. The session's statement_timeout ends it as well.
const TEND_DEADLINE: Duration = Duration::from_secs(30);

/// Whoever scrapes waits for ten seconds by default.
const GAUGES_DEADLINE: Duration = Duration::from_secs(5);

const PURPOSE: &str = "upkeep";

/// One connection at a time, for as long as there is work for it.
pub(crate) struct Upkeep {
    connector: Connector,
    metrics: Metrics,
    db: Mutex<Option<Db>>,
}

/// A row of `orbhook.gauges`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GaugeRow {
    pub(crate) gauge: String,
    pub(crate) webhook_id: Option<Uuid>,
    pub(crate) webhook: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) value: f64,
}

impl Upkeep {
    pub(crate) fn new(connector: Connector, metrics: Metrics) -> Upkeep {
        Upkeep { connector, metrics, db: Mutex::new(None) }
    }

    /// Calls `orbhook.tend` for ever.
    pub(crate) async fn tend(&self) -> std::convert::Infallible {
        let mut said: Option<DatabaseError> = None;
        loop {
            let began = Instant::now();
            let pause = match self.query(TEND_DEADLINE, "SELECT orbhook.tend()", &[]).await {
                Ok(rows) => {
                    said = None;
                    self.metrics.statement("tend", began.elapsed());
                    let has_more = rows.first().and_then(|row| row.try_get::<_, bool>(0).ok()) == Some(true);
                    if !has_more {
                        self.hang_up().await;
                    }
                    if has_more { STEP_PAUSE.max(began.elapsed()) } else { TEND_INTERVAL }
                }
                Err(error) => {
                    if !error.ends_connection() && said.as_ref() != Some(&error) {
                        tracing::warn!(purpose = PURPOSE, %error, hint = error.hint(),
                            "upkeep failed; deliveries go on, webhook_health falls behind; trying again");
                        said = Some(error);
                    }
                    TEND_INTERVAL
                }
            };
            sleep(pause).await;
        }
    }

    /// How the database stands; `None`: it did not say so in time.
    pub(crate) async fn gauges(&self, webhooks_max: i32) -> Option<Vec<GaugeRow>> {
        let sql = "SELECT gauge, webhook_id, webhook, state, value FROM orbhook.gauges($1)";
        let began = Instant::now();
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&webhooks_max, Type::INT4)];
        let asked = self.query(GAUGES_DEADLINE, sql, &parameters);
        let rows = timeout(GAUGES_DEADLINE, asked).await.ok()?.ok()?;
        self.hang_up().await;
        self.metrics.statement("gauges", began.elapsed());
        rows.iter().map(read_gauge).collect::<Result<_, _>>().ok()
    }

    async fn hang_up(&self) {
        if let Some(db) = self.db.lock().await.take() {
            db.close().await;
        }
    }

    async fn query(
        &self,
        deadline: Duration,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DatabaseError> {
        let mut db = self.db.lock().await;
        let outcome = query_on(&mut db, &self.connector, deadline, sql, parameters).await;
        if let Err(error) = &outcome {
            self.metrics.database_error(PURPOSE);
            if error.ends_connection() {
                *db = None;
            }
        }
        outcome
    }
}

async fn query_on(
    db: &mut Option<Db>,
    connector: &Connector,
    deadline: Duration,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<Row>, DatabaseError> {
    // Taken out while it is in use: whoever gives up waiting in the middle of a statement leaves no half-used connection.
    let usable = match db.take().filter(Db::is_open) {
        Some(usable) => usable,
        None => connector.connect().await?.0,
    };
    let rows = usable.query_within(deadline, sql, parameters).await;
    *db = Some(usable);
    rows
}

fn read_gauge(row: &Row) -> Result<GaugeRow, tokio_postgres::Error> {
    Ok(GaugeRow {
        gauge: row.try_get(0)?,
        webhook_id: row.try_get(1)?,
        webhook: row.try_get(2)?,
        state: row.try_get(3)?,
        value: row.try_get(4)?,
    })
}
