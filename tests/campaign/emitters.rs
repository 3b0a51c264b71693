//! Applications: transactions that emit, in every way an application can, and write down what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orbhook_tests::pause;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::ledger::{Fate, Ledger, Token};
use crate::stage::{Commits, EVENT_TYPES, Stage};

/// Share of transactions that do not commit.
const ROLLBACK_PERCENT: u32 = 20;
/// Share of those emitters that use two-phase commit at all.
const TWO_PHASE_PERCENT: u32 = 30;
const SAVEPOINT_PERCENT: u32 = 25;
/// Share of transactions that stay open between emit and commit, so that others overtake them.
const LINGER_PERCENT: u32 = 15;
const LINGER_MS_MAX: u64 = 300;
/// Between two transactions of one emitter, at most.
const THINK_MS_MAX: u64 = 120;
const RECONNECT: Duration = Duration::from_millis(60);
const PADDING_BYTES_MAX: usize = 600;

const PRELOAD_AT_ONCE: usize = 10_000;
/// Their tokens, which no emitter uses.
const PRELOADED: Token = 1 << 50;

/// Sessions that never wait for a lock: orbhook promises that emitting waits for nobody.
const SESSION: &str = "set lock_timeout = '50ms'; set idle_in_transaction_session_timeout = 0";

/// Their remote control.
#[derive(Default)]
pub(crate) struct Signals {
    /// More is pending than is good for the machine.
    pub(crate) hold: AtomicBool,
    pub(crate) stop: AtomicBool,
}

/// Starts `count` emitters; the set ends after `stop`, once every transaction has been resolved.
pub(crate) fn start(
    count: u32,
    seed: u64,
    stage: &Arc<Stage>,
    ledger: &Arc<Ledger>,
    signals: &Arc<Signals>,
    commits: Commits,
) -> JoinSet<()> {
    let mut emitters = JoinSet::new();
    for number in 0..count {
        let emitter = Emitter {
            number,
            two_phase: commits == Commits::Mixed && number % 4 == 2,
            early: commits == Commits::Early || (commits == Commits::Mixed && number % 4 == 1),
            emitted: 0,
            random: StdRng::seed_from_u64(seed ^ (u64::from(number) << 32)),
            stage: Arc::clone(stage),
            ledger: Arc::clone(ledger),
            signals: Arc::clone(signals),
        };
        emitters.spawn(emitter.run());
    }
    emitters
}

/// Emits so many events in transactions of [`PRELOAD_AT_ONCE`].
pub(crate) async fn preload(count: u64, stage: &Stage, ledger: &Ledger) {
    let client = stage.connect_as(stage.emitter()).await.expect("a session");
    let event_type = EVENT_TYPES[2];
    let sql = "select count(orbhook_emit($1, jsonb_build_object('token', n))) from generate_series($2, $3) n";
    for first in (0..count).step_by(PRELOAD_AT_ONCE) {
        let last = (first + PRELOAD_AT_ONCE as u64).min(count) - 1;
        let tokens: Vec<Token> = (first..=last).map(|number| PRELOADED | number).collect();
        let events: Vec<(Token, &'static str)> = tokens.iter().map(|token| (*token, event_type)).collect();
        ledger.intend(&events);
        let bounds =
            [PRELOADED | first, PRELOADED | last].map(|token| i64::try_from(token).expect("it fits"));
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&event_type, Type::TEXT), (&bounds[0], Type::INT8), (&bounds[1], Type::INT8)];
        client.query_typed(sql, &parameters).await.expect("nothing is harmed yet");
        ledger.record(&tokens, Fate::Acked);
    }
}

struct Emitter {
    number: u32,
    two_phase: bool,
    /// Commits with synchronous_commit = off.
    early: bool,
    emitted: u64,
    random: StdRng,
    stage: Arc<Stage>,
    ledger: Arc<Ledger>,
    signals: Arc<Signals>,
}

/// The transaction's session is gone, or is to be given up.
struct Gone;

impl Emitter {
    async fn run(mut self) {
        while !self.signals.stop.load(Ordering::Relaxed) {
            let Some(client) = self.connect().await else {
                pause(RECONNECT).await;
                continue;
            };
            while !self.signals.stop.load(Ordering::Relaxed) {
                let think = Duration::from_millis(self.random.random_range(0..THINK_MS_MAX));
                pause(think).await;
                if self.signals.hold.load(Ordering::Relaxed) {
                    continue;
                }
                if self.transact(&client).await.is_err() {
                    break;
                }
            }
        }
    }

    async fn connect(&self) -> Option<Client> {
        let client = self.stage.connect_as(self.stage.emitter()).await.ok()?;
        client.batch_execute(SESSION).await.ok()?;
        if self.early {
            client.batch_execute("set synchronous_commit = off").await.ok()?;
        }
        Some(client)
    }

    async fn transact(&mut self, client: &Client) -> Result<(), Gone> {
        let events = self.next_events();
        self.ledger.intend(&events);
        let tokens: Vec<Token> = events.iter().map(|(token, _)| *token).collect();
        // Until a commit is sent, whatever goes wrong is a rollback.
        let kept = match self.emit_all(client, &events).await {
            Ok(kept) => kept,
            Err(error) => {
                self.note_refusal(&error);
                self.ledger.record(&tokens, Fate::RolledBack);
                return self.roll_back(client).await;
            }
        };
        let taken_back: Vec<Token> = tokens.iter().copied().filter(|token| !kept.contains(token)).collect();
        self.ledger.record(&taken_back, Fate::RolledBack);

        let commits = self.random.random_range(0..100) >= ROLLBACK_PERCENT;
        if self.two_phase && self.random.random_range(0..100) < TWO_PHASE_PERCENT {
            return self.end_in_two_phases(client, &kept, commits).await;
        }
        if !commits {
            let rolled_back = self.end_without_commit(client).await;
            self.ledger.record(&kept, Fate::RolledBack);
            return rolled_back;
        }
        match client.batch_execute("commit").await {
            Ok(()) => {
                self.ledger.record(&kept, if self.early { Fate::AckedEarly } else { Fate::Acked });
                Ok(())
            }
            Err(error) => {
                // The server's refusal is a rollback; its silence, or its end, may be either.
                let is_refusal = error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57P"));
                self.note_refusal(&error);
                self.ledger.record(&kept, if is_refusal { Fate::RolledBack } else { Fate::Ambiguous });
                Err(Gone)
            }
        }
    }

    /// One to four events, of which a tenth is for the paced webhook.
    fn next_events(&mut self) -> Vec<(Token, &'static str)> {
        let count = self.random.random_range(1..=4_u32).min(self.random.random_range(1..=4));
        (0..count)
            .map(|_| {
                self.emitted += 1;
                let event_type = match self.random.random_range(0..10) {
                    0 => EVENT_TYPES[0],
                    1..5 => EVENT_TYPES[1],
                    _ => EVENT_TYPES[2],
                };
                ((u64::from(self.number) << 40) | self.emitted, event_type)
            })
            .collect()
    }

    /// Begins, emits, lingers. Returns the tokens that the transaction still holds.
    async fn emit_all(
        &mut self,
        client: &Client,
        events: &[(Token, &'static str)],
    ) -> Result<Vec<Token>, Error> {
        client.batch_execute("begin").await?;
        let mut kept = Vec::new();
        for (token, event_type) in events {
            if self.random.random_range(0..100) >= SAVEPOINT_PERCENT {
                self.emit(client, *token, event_type).await?;
                kept.push(*token);
                continue;
            }
            client.batch_execute("savepoint here").await?;
            self.emit(client, *token, event_type).await?;
            match self.random.random_range(0..3) {
                0 => client.batch_execute("rollback to here").await?,
                1 => {
                    client.batch_execute("release here").await?;
                    kept.push(*token);
                }
                _ => {
                    // As after a statement that fails, or in an exception block; then once more.
                    drop(client.batch_execute("select 1/0").await);
                    client.batch_execute("rollback to here").await?;
                    self.emit(client, *token, event_type).await?;
                    kept.push(*token);
                }
            }
        }
        if self.random.random_range(0..100) < LINGER_PERCENT {
            pause(Duration::from_millis(self.random.random_range(0..LINGER_MS_MAX))).await;
        }
        Ok(kept)
    }

    async fn emit(&mut self, client: &Client, token: Token, event_type: &str) -> Result<(), Error> {
        let padding = "x".repeat(self.random.random_range(0..PADDING_BYTES_MAX));
        let payload = format!(r#"{{"token": {token}, "padding": "{padding}"}}"#);
        let sql = "select orbhook_emit($1, $2::text::jsonb)";
        client.query_typed(sql, &[(&event_type, Type::TEXT), (&payload, Type::TEXT)]).await?;
        Ok(())
    }

    async fn roll_back(&self, client: &Client) -> Result<(), Gone> {
        client.batch_execute("rollback").await.map_err(|_| Gone)
    }

    /// By a rollback, by a commit of a failed transaction, or by going away.
    async fn end_without_commit(&mut self, client: &Client) -> Result<(), Gone> {
        match self.random.random_range(0..10) {
            0..7 => self.roll_back(client).await,
            7..9 => {
                drop(client.batch_execute("select 1/0").await);
                client.batch_execute("commit").await.map_err(|_| Gone)
            }
            _ => Err(Gone),
        }
    }

    async fn end_in_two_phases(
        &mut self,
        client: &Client,
        tokens: &[Token],
        commits: bool,
    ) -> Result<(), Gone> {
        let Some(first) = tokens.first() else { return self.roll_back(client).await };
        let name = format!("campaign-{first}");
        let prepared = client.batch_execute(&format!("prepare transaction '{name}'")).await;
        let survives = prepared.is_ok();
        if !survives && !self.is_prepared(&name).await {
            self.ledger.record(tokens, Fate::RolledBack);
            return Err(Gone);
        }
        // A crash between the phases is what they are for.
        pause(Duration::from_millis(self.random.random_range(0..200))).await;
        let end = format!("{} prepared '{name}'", if commits { "commit" } else { "rollback" });
        let ended = survives && client.batch_execute(&end).await.is_ok();
        if !ended {
            self.end_prepared(&name, &end).await;
        }
        self.ledger.record(tokens, if commits { Fate::Acked } else { Fate::RolledBack });
        if ended { Ok(()) } else { Err(Gone) }
    }

    /// Until nothing of that name is prepared any more: nobody else ends it.
    async fn end_prepared(&self, name: &str, end: &str) {
        while self.is_prepared(name).await {
            if let Ok(client) = self.stage.connect_as(self.stage.emitter()).await {
                drop(client.batch_execute(end).await);
            }
        }
    }

    async fn is_prepared(&self, name: &str) -> bool {
        let sql = "select exists (select from pg_prepared_xacts where gid = $1)";
        loop {
            if let Ok(client) = self.stage.connect_as(self.stage.emitter()).await
                && let Ok(rows) = client.query_typed(sql, &[(&name, Type::TEXT)]).await
                && let Some(row) = rows.first()
            {
                return row.get(0);
            }
            pause(RECONNECT).await;
        }
    }

    /// Anything but the server's going away is worth a line: emitting is never refused and never waits.
    fn note_refusal(&self, error: &Error) {
        if let Some(db) = error.as_db_error()
            && !db.code().code().starts_with("57P")
            && !db.code().code().starts_with("25006")
        {
            self.ledger.refuse(format!("{} {}", db.code().code(), db.message()));
        }
    }
}
