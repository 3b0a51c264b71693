//! `orbhook top`: what flows, per webhook, live. It asks `orbhook.top`, which every reader may call.
//!
//! On a terminal it draws over and over until told to stop; anywhere else it prints one snapshot.

mod screen;

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    arguments::TopArguments,
    db::{Connector, Db},
    error::{DatabaseError, Error},
};
use screen::{Action, Flow, Screen, Snapshot};

/// Webhooks shown; the busiest of them come first.
const WEBHOOKS_MAX: i32 = 500;

/// A look that took long is not repeated at once: it leaves the database alone nine tenths of the time.
const REST_PER_LOOK: u32 = 9;

/// Columns of a snapshot that is printed into a pipe.
const SNAPSHOT_WIDTH: u16 = 200;

/// How often the keyboard's thread looks whether anybody still wants its keys.
const KEY_POLL: Duration = Duration::from_millis(200);
const KEYS_MAX: usize = 64;

const TOP: &str = "\
SELECT webhook, state, reason, sent, failed, p50_ms, p99_ms, in_flight, pending, oldest_waiting_seconds
FROM orbhook.top($1, $2)";

const UNDEFINED_SCHEMA: &str = "3F000";
const UNDEFINED_FUNCTION: &str = "42883";

/// Shows what flows until `shutdown` or a key that ends it; not on a terminal: prints it once.
///
/// Errors: no connection at the start, no such function or no right to call it, a terminal that cannot be used. Trouble with the
/// database later on is shown and waited out.
pub async fn top(arguments: TopArguments, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let connector = Connector::new(&arguments.database.parse()?)?;
    let mut source = Source { connector, db: None, window_seconds: arguments.window_seconds };
    let snapshot = source.look().await?;
    let mut screen = Screen::new(source.window_seconds, snapshot);
    if !std::io::stdout().is_terminal() {
        // Nobody may be reading any more.
        let _ = std::io::stdout().write_all(screen.draw_text(SNAPSHOT_WIDTH).as_bytes());
        return Ok(());
    }
    let terminal = ratatui::try_init().map_err(|error| Error::Terminal(error.to_string()))?;
    let interval = Duration::from_secs(arguments.interval_seconds);
    let shown = show(terminal, &mut screen, source, interval, shutdown).await;
    ratatui::restore();
    shown.map_err(|error| Error::Terminal(error.to_string()))
}

async fn show(
    mut terminal: ratatui::DefaultTerminal,
    screen: &mut Screen,
    source: Source,
    interval: Duration,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let mut keys = read_keys();
    let mut looks = look_again(source, interval);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if screen.on_key(key) == Action::Quit {
                        return Ok(());
                    }
                }
                // Resized: drawn anew.
                Some(_) => {}
                None => return Err(std::io::Error::other("the keyboard cannot be read")),
            },
            Some(looked) = looks.recv() => match looked {
                Ok(snapshot) => screen.take_in(snapshot),
                Err(error) => screen.trouble(error.to_string()),
            },
        }
    }
}

/// Looks by a task of their own: a key must not cut a statement off.
fn look_again(mut source: Source, interval: Duration) -> mpsc::Receiver<Result<Snapshot, Error>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut rest = interval;
        while !sender.is_closed() {
            sleep(rest).await;
            let began = Instant::now();
            let looked = source.look().await;
            rest = interval.max(began.elapsed() * REST_PER_LOOK);
            if sender.send(looked).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Keys and resizes, read by a thread: a terminal has no asynchronous reads.
fn read_keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(event) => drop(sender.blocking_send(event)),
                    Err(_) => return,
                },
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Where snapshots come from.
struct Source {
    connector: Connector,
    db: Option<Db>,
    window_seconds: i32,
}

impl Source {
    async fn look(&mut self) -> Result<Snapshot, Error> {
        let db = match self.db.take().filter(Db::is_open) {
            Some(db) => db,
            None => self.connector.connect().await?.0,
        };
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.window_seconds, Type::INT4), (&WEBHOOKS_MAX, Type::INT4)];
        let rows = db.query(TOP, &parameters).await.map_err(explain)?;
        self.db = Some(db);
        let flows = rows.iter().map(read_flow).collect::<Result<Vec<_>, _>>();
        let mut flows = flows
            .map_err(|error| DatabaseError::Unexpected { reason: format!("orbhook.top: {error}") })?
            .into_iter();
        let total = flows
            .next()
            .ok_or_else(|| DatabaseError::Unexpected { reason: "orbhook.top returned no row".to_owned() })?;
        Ok(Snapshot { total, webhooks: flows.collect() })
    }
}

fn explain(error: DatabaseError) -> Error {
    match error {
        DatabaseError::Statement { code, .. } if code == UNDEFINED_SCHEMA || code == UNDEFINED_FUNCTION => {
            Error::NothingToShow
        }
        DatabaseError::NoPrivilege { .. } => Error::NoReader,
        other => Error::Database(other),
    }
}

fn read_flow(row: &Row) -> Result<Flow, tokio_postgres::Error> {
    Ok(Flow {
        webhook: row.try_get::<_, Option<String>>(0)?.unwrap_or_default(),
        state: row.try_get(1)?,
        reason: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
        sent: row.try_get(3)?,
        failed: row.try_get(4)?,
        p50_ms: row.try_get(5)?,
        p99_ms: row.try_get(6)?,
        in_flight: row.try_get(7)?,
        pending: row.try_get(8)?,
        oldest_waiting_seconds: row.try_get(9)?,
    })
}
