//! `make demo`: one user's life as webhooks for Slack, GoHighLevel, Zapier and a generic receiver.
//! `make run` (`--stay`): the same instance, empty, until Ctrl-C.
#![allow(clippy::print_stdout, reason = "it is there to be read")]

mod receivers;
mod show;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use orbhook_tests::{Cluster, Database, Receiver, Request, SidecarProcess, verify_signature, wait_until};

use crate::receivers::{RECEIVERS, answer_as_they_do, configuration, secret_of};
use crate::show::{heading, note, show_request, show_sql};

/// Everything is on this machine: what has not arrived by then will not.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

struct Stage {
    database: Database,
    receiver: Receiver,
    sidecar: SidecarProcess,
}

#[tokio::main]
async fn main() -> ExitCode {
    let stay = std::env::args().any(|argument| argument == "--stay");
    let stage = set_up().await;
    let good = if stay { keep_running(&stage).await } else { play(&stage).await };
    let Stage { database, sidecar, .. } = stage;
    sidecar.terminate().await;
    drop(database);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn set_up() -> Stage {
    heading("A private PostgreSQL, three watched tables, four webhooks, the sidecar");
    let cluster = Cluster::start(&[]);
    let database = Database::named(&cluster, "demo").await;
    note(&format!("database   {}", database.one::<String>("select version()", &[]).await));
    database.execute(include_str!("tables.sql")).await;
    note("tables     app.users, app.subscriptions, app.payments (tests/demo/tables.sql)");

    let receiver = Receiver::start().await;
    for webhook in RECEIVERS {
        answer_as_they_do(&receiver, webhook);
        database.create_webhook(configuration(&receiver, webhook)).await;
        note(&format!("webhook    {:<11}  {}", webhook.provider, receiver.url(webhook.path)));
    }
    let sidecar = SidecarProcess::start(&database, &[]).await;
    wait_until("the sidecar to register", ARRIVES_WITHIN, async || {
        database.one::<bool>("select exists (select from orbhook.instances)", &[]).await.then_some(())
    })
    .await;
    note("sidecar    orbhook run, as a role that may call a few functions and read no table");
    Stage { database, receiver, sidecar }
}

/// Runs the statements of `life.sql`; true if every request came, with a good signature.
async fn play(stage: &Stage) -> bool {
    note("\n  Bodies are shown for reading: line breaks as such, keys without a value only counted.");
    let session = stage.database.connect_as("app").await;
    let mut arrivals = Arrivals::default();
    for statement in statements(include_str!("life.sql")) {
        heading("The application, as role app");
        show_sql(statement);
        session.execute(statement).await;
        let committed = Instant::now();
        let expected = arrivals.seen + RECEIVERS.len();
        if !arrivals.show_until(&stage.receiver, expected, Some(committed)).await {
            break;
        }
    }
    wait_for_settling(&stage.database).await;
    show_tables(&stage.database);
    arrivals.conclude(&stage.sidecar)
}

/// Shows what arrives until Ctrl-C.
async fn keep_running(stage: &Stage) -> bool {
    heading("Running until Ctrl-C");
    note("join it:");
    println!("\n    {}\n", stage.database.cluster().psql_command(stage.database.name()));
    note("and try:");
    println!();
    show_sql(statements(include_str!("life.sql"))[0]);
    let mut arrivals = Arrivals::default();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = async { loop { arrivals.show_until(&stage.receiver, arrivals.seen + 1, None).await; } } => {}
    }
    heading("Stopped");
    true
}

/// What has been shown, and how it went.
#[derive(Default)]
struct Arrivals {
    seen: usize,
    expected: usize,
    well_signed: usize,
    latencies: Vec<Duration>,
}

impl Arrivals {
    /// Shows requests as they come until there were `count` in all; false if they do not come in time. `committed` is
    /// when the server confirmed the statement that brings them.
    async fn show_until(&mut self, receiver: &Receiver, count: usize, committed: Option<Instant>) -> bool {
        self.expected = count;
        let started = Instant::now();
        while self.seen < count {
            let request = wait_until("the next request", ARRIVES_WITHIN * 2, async || {
                let arrived = receiver.so_far().into_iter().nth(self.seen);
                (arrived.is_some() || started.elapsed() > ARRIVES_WITHIN).then_some(arrived)
            });
            let Some(request) = request.await else { return false };
            self.seen += 1;
            let signature = self.check(&request);
            let latency = committed.map(|committed| request.at.saturating_duration_since(committed));
            self.latencies.extend(latency);
            show_request(&request, &signature, latency);
        }
        true
    }

    fn check(&mut self, request: &Request) -> Result<(), String> {
        let verified = verify_signature(&secret_of(&request.path), request);
        self.well_signed += usize::from(verified.is_ok());
        verified
    }

    /// The last line; true if all is well.
    fn conclude(mut self, sidecar: &SidecarProcess) -> bool {
        self.latencies.sort();
        let median = self.latencies.get(self.latencies.len() / 2).copied().unwrap_or_default();
        let all = statements(include_str!("life.sql")).len() * RECEIVERS.len();
        let good = self.seen == all && self.well_signed == all;
        if !good {
            heading("The sidecar's log");
            println!("{}", sidecar.log());
        }
        heading("Result");
        println!(
            "{}: {} of {all} requests arrived, {} correctly signed; median {:.1} ms from commit to request",
            if good { "Good" } else { "NOT GOOD" },
            self.seen,
            self.well_signed,
            median.as_secs_f64() * 1000.0,
        );
        good
    }
}

/// The last results reach the tables a moment after the receiver has answered.
async fn wait_for_settling(database: &Database) {
    let started = Instant::now();
    wait_until("the results to be recorded", ARRIVES_WITHIN * 2, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        let settled = !database.one::<bool>(pending, &[]).await;
        (settled || started.elapsed() > ARRIVES_WITHIN).then_some(())
    })
    .await;
}

/// What `psql` shows for the same queries.
fn show_tables(database: &Database) {
    for query in statements(include_str!("look.sql")) {
        heading("An operator asks: did it go out?");
        show_sql(query);
        let output =
            database.cluster().run("psql", &["--no-psqlrc", "--dbname", database.name(), "--command", query]);
        println!("{}", String::from_utf8_lossy(&output.stdout).trim_end());
    }
}

fn statements(script: &str) -> Vec<&str> {
    let without_heading = script.split_once("\n\n").map_or(script, |(_, rest)| rest);
    without_heading.split_inclusive(';').map(str::trim).filter(|statement| !statement.is_empty()).collect()
}
