//! From commit to request, on a system that is not saturated.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orbhook_tests::{Database, SidecarProcess, generic, wait_until};
use serde_json::{Value, json};

use crate::figures::{Figures, Goal, note};
use crate::pgbench::Pgbench;
use crate::server;
use crate::sink::Sink;

const DURATION: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(60);

/// So that a commit that waits for the disk does not hold up the next event.
const CLIENTS: usize = 8;

/// One event in a transaction of its own, which can be told apart at the receiver.
const EMIT: &str = r"\set n :n + 1
select orbhook_emit('USER_ACTION', jsonb_build_object('client', :client_id::int, 'n', :n::int));
";

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    for per_second in [10, 200, 1_000] {
        let latencies = latencies(per_second).await;
        let goal = |most| (per_second == 200).then_some(Goal::AtMost(most));
        for (name, part, goal) in
            [("p50", 0.50, goal(3.0)), ("p99", 0.99, goal(15.0)), ("longest", 1.0, None)]
        {
            let name = format!("commit to request at {per_second} events per second, {name}");
            figures.measure(name, "ms", percentile(&latencies.from_commit, part), goal);
        }
        note(
            &mut figures,
            format!(
                "at {per_second} events per second, from the beginning of the emit's statement: p50, p99"
            ),
            format!(
                "{:.1} ms, {:.1} ms, of {} events",
                percentile(&latencies.from_statement, 0.50),
                percentile(&latencies.from_statement, 0.99),
                latencies.from_statement.len()
            ),
        );
    }
    figures
}

/// In milliseconds, sorted.
struct Latencies {
    /// From when the emitter was told that its transaction is committed. A request that was quicker counts as 0.
    from_commit: Vec<f64>,
    /// From when the emitter sent its statement, so that the emit and its wait for the disk are in it.
    from_statement: Vec<f64>,
}

async fn latencies(per_second: u32) -> Latencies {
    let cluster = server::start();
    let database = Database::on(&cluster).await;
    let sink = Sink::keeping_bodies();
    let mut config = generic(&sink.url("/hook"));
    // The default of 10 at once, until their results are written, is less than 1,000 a second.
    config["maxInFlight"] = json!(100);
    database.create_webhook(config).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    // Connected, and asleep again.
    database.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    wait_until("the first delivery", DEADLINE, async || (sink.count() > 0).then_some(())).await;
    sink.take_bodies();

    let (rate, prefix) = (per_second.to_string(), "commits");
    let arguments = ["--rate", &rate, "--define=n=0", "--log", "--log-prefix", prefix];
    Pgbench {
        database: &database,
        script: EMIT,
        clients: CLIENTS,
        duration: DURATION,
        arguments: &arguments,
    }
    .run();
    let transactions = committed(&cluster.directory().join(prefix).display().to_string());
    assert!(!transactions.is_empty(), "pgbench wrote no log");
    let mut arrived = HashMap::new();
    wait_until("every event to arrive", DEADLINE, async || {
        arrived.extend(sink.take_bodies().iter().filter_map(|(at, body)| Some((event(body)?, unix_ms(*at)))));
        (arrived.len() >= transactions.len()).then_some(())
    })
    .await;

    let mut latencies = Latencies { from_commit: Vec::new(), from_statement: Vec::new() };
    for transaction in transactions {
        let arrived = arrived[&transaction.event];
        latencies.from_commit.push((arrived - transaction.committed_ms).max(0.0));
        latencies.from_statement.push(arrived - transaction.begun_ms);
    }
    latencies.from_commit.sort_by(f64::total_cmp);
    latencies.from_statement.sort_by(f64::total_cmp);
    latencies
}

/// Client and number.
type EventName = (u64, u64);

struct Transaction {
    event: EventName,
    begun_ms: f64,
    committed_ms: f64,
}

/// Reads the logs of all threads: client, transaction, its duration in µs, script, end in s and µs, lag behind the schedule in µs.
fn committed(prefix: &str) -> Vec<Transaction> {
    let path = std::path::Path::new(prefix);
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut transactions = Vec::new();
    for file in fs::read_dir(path.parent().unwrap()).expect("the cluster's directory").flatten() {
        if !file.file_name().to_string_lossy().starts_with(name) {
            continue;
        }
        for line in fs::read_to_string(file.path()).expect("a log of pgbench").lines() {
            let fields: Vec<f64> = line.split(' ').map(|field| field.parse().expect("a number")).collect();
            let [client, number, took_us, _, seconds, us, lag_us] = fields[..] else {
                panic!("unexpected: {line}")
            };
            let committed_ms = seconds * 1e3 + us / 1e3;
            // Counted from 0 there, and from 1 by the script.
            let event = (client as u64, number as u64);
            transactions.push(Transaction {
                event,
                begun_ms: committed_ms - (took_us - lag_us) / 1e3,
                committed_ms,
            });
        }
    }
    transactions
}

fn event(body: &[u8]) -> Option<EventName> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let data = &body["data"];
    Some((data["client"].as_u64()?, data["n"].as_u64()?))
}

fn unix_ms(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e3
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = ((sorted.len() - 1) as f64 * part) as usize;
    sorted[place]
}
