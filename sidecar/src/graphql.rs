//! The GraphQL schema: the product document's `testWebhookConfiguration`, and the version. Everything else is read with SQL.

use std::{sync::Arc, time::Duration};

use async_graphql::{Context, EmptySubscription, ID, Object};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    db::{Connector, Db},
    error::DatabaseError,
};

pub(crate) type Schema = async_graphql::Schema<Query, Mutation, EmptySubscription>;

/// Introspection by ordinary clients is 13 levels deep; nothing else here has more than two.
const DEPTH_MAX: usize = 20;
const COMPLEXITY_MAX: usize = 500;

/// Tests under way at once. Each has a database connection of its own.
const TESTS_MAX: usize = 4;

/// Between two questions whether a test is over.
const RESULT_INTERVAL: Duration = Duration::from_millis(100);

/// Longest wait for a test, whatever the database says: the longest timeout (30 s), 5 s, and some.
const TEST_WAIT_MAX: Duration = Duration::from_secs(40);

/// SQLSTATE invalid_parameter_value: what the extension raises when it is asked for something that makes no sense.
const INVALID_PARAMETER_VALUE: &str = "22023";

pub(crate) fn build_schema(connector: Connector) -> Schema {
    Schema::build(Query, Mutation, EmptySubscription)
        .data(Tester { connector, running: Arc::new(Semaphore::new(TESTS_MAX)) })
        .limit_depth(DEPTH_MAX)
        .limit_complexity(COMPLEXITY_MAX)
        .finish()
}

pub(crate) struct Query;

#[Object]
impl Query {
    /// The sidecar's version.
    async fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

pub(crate) struct Mutation;

#[Object]
impl Mutation {
    /// Sends a test event to one webhook and waits for its answer. True when it was delivered; otherwise an error that says
    /// what the endpoint answered. A test is never retried.
    async fn test_webhook_configuration(&self, context: &Context<'_>, id: ID) -> Result<bool, TestFailed> {
        let webhook = Uuid::parse_str(&id).map_err(|_| TestFailed::Id)?;
        let tester = context.data::<Tester>().map_err(|_| TestFailed::Unavailable)?;
        tester.test(webhook).await.map(|()| true)
    }
}

/// Why a test did not succeed, in the words the client sees.
#[derive(Debug, Clone, thiserror::Error)]
enum TestFailed {
    #[error("id must be the UUID of a webhook")]
    Id,
    #[error("there are {TESTS_MAX} tests under way; try again when they are over")]
    Busy,
    #[error("{0}")]
    Refused(String),
    #[error("the database cannot be asked at the moment; see the sidecar's log")]
    Unavailable,
    #[error("no sidecar has sent the test within {0} s; is orbhook run connected to this database?")]
    Unsent(u64),
    /// The delivery's own last error, which names status or cause.
    #[error("{0}")]
    Undelivered(String),
}

struct Tester {
    connector: Connector,
    running: Arc<Semaphore>,
}

impl Tester {
    async fn test(&self, webhook: Uuid) -> Result<(), TestFailed> {
        let _permit = self.running.try_acquire().map_err(|_| TestFailed::Busy)?;
        let (db, _) = self.connector.connect().await.map_err(unavailable)?;
        let result = run_test(&db, webhook).await;
        db.close().await;
        result
    }
}

async fn run_test(db: &Db, webhook: Uuid) -> Result<(), TestFailed> {
    let rows = db
        .query("SELECT orbhook.start_test($1)", &[(&webhook, Type::UUID)])
        .await
        .map_err(refused_or_unavailable)?;
    let delivery: Uuid = rows.first().and_then(|row| row.try_get(0).ok()).ok_or(TestFailed::Unavailable)?;
    let began = Instant::now();
    loop {
        let result = ask(db, delivery).await?;
        if result.finished {
            return result.judge();
        }
        let wait = Duration::from_secs(result.wait_seconds).min(TEST_WAIT_MAX);
        if began.elapsed() > wait {
            return Err(TestFailed::Unsent(wait.as_secs()));
        }
        sleep(RESULT_INTERVAL).await;
    }
}

struct TestResult {
    finished: bool,
    delivered: bool,
    status_code: Option<i32>,
    error: Option<String>,
    wait_seconds: u64,
}

impl TestResult {
    fn judge(self) -> Result<(), TestFailed> {
        if self.delivered {
            return Ok(());
        }
        let reason = self.error.unwrap_or_else(|| match self.status_code {
            Some(status) => format!("the endpoint answered {status}"),
            None => "the endpoint did not answer".to_owned(),
        });
        Err(TestFailed::Undelivered(reason))
    }
}

async fn ask(db: &Db, delivery: Uuid) -> Result<TestResult, TestFailed> {
    let sql = "SELECT finished, delivered, status_code, error, wait_seconds FROM orbhook.test_result($1)";
    let rows = db.query(sql, &[(&delivery, Type::UUID)]).await.map_err(refused_or_unavailable)?;
    let row = rows.first().ok_or(TestFailed::Unavailable)?;
    let read = || -> Result<TestResult, tokio_postgres::Error> {
        Ok(TestResult {
            // Null: not known yet.
            finished: row.try_get::<_, Option<bool>>(0)?.unwrap_or(false),
            delivered: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
            status_code: row.try_get(2)?,
            error: row.try_get(3)?,
            wait_seconds: row.try_get::<_, Option<i32>>(4)?.map_or(0, |s| u64::try_from(s).unwrap_or(0)),
        })
    };
    read().map_err(|_| TestFailed::Unavailable)
}

/// What the extension refuses with 22023 is meant for the caller; anything else only for the log.
fn refused_or_unavailable(error: DatabaseError) -> TestFailed {
    match error {
        DatabaseError::Statement { code, message } if code == INVALID_PARAMETER_VALUE => {
            TestFailed::Refused(message)
        }
        other => unavailable(other),
    }
}

fn unavailable(error: DatabaseError) -> TestFailed {
    tracing::warn!(%error, hint = error.hint(), "a test call could not be made");
    TestFailed::Unavailable
}
