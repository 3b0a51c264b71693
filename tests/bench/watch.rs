//! What a watch costs beyond single inserts: updates that concern nobody, and COPY of a million rows.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orbhook_tests::{Database, generic};

use crate::figures::{Figures, Goal};
use crate::pgbench::Pgbench;
use crate::server;

const DURATION: Duration = Duration::from_secs(2);
const UPDATE_ROUNDS: usize = 5;
const COPY_ROUNDS: usize = 1;
const ROWS: u32 = 1_000_000;

/// Rows of each table that is updated: enough that writers hardly meet on one.
const UPDATED_ROWS: u32 = 100_000;

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let database = Database::on(&cluster).await;
    updates(&mut figures, &database).await;
    let file = users(&cluster.directory().join("users.csv"));
    copies(&mut figures, &database, &file).await;
    fs::remove_file(file).expect("the file just written");
    figures
}

async fn updates(figures: &mut Figures, database: &Database) {
    database
        .execute(&format!(
            "create table bare (
                 id bigint primary key, email text, username text, first_name text, last_name text, country text, phone text,
                 password_hash text, email_verified_at timestamptz, last_login_at timestamptz, is_active boolean default true, notes text)
                 with (fillfactor = 70);
             create table watched (like bare including all) with (fillfactor = 70);
             insert into bare (id, email, username, first_name, last_name) select i, i || '@example.com', 'user' || i, 'Ada', 'Lovelace' from generate_series(1, {UPDATED_ROWS}) i;
             insert into watched select * from bare;
             select count(*) from orbhook_watch('users', 'watched')"
        ))
        .await;
    database.execute("vacuum analyze bare").await;
    database.execute("vacuum analyze watched").await;
    for writers in [1, 16] {
        let rate = |table: &str| {
            let script = format!(
                "\\set id random(1, {UPDATED_ROWS})\nupdate {table} set notes = 'seen by ' || :client_id where id = :id;\n"
            );
            Pgbench { database, script: &script, clients: writers, duration: DURATION, arguments: &[] }.run()
        };
        let rounds: Vec<(f64, f64)> = (0..UPDATE_ROUNDS).map(|_| (rate("bare"), rate("watched"))).collect();
        figures.compare(
            format!("{writers} writers: UPDATE of an unrelated column with a watch ÷ without"),
            "per second",
            &rounds,
            Goal::AtLeast(0.95),
        );
    }
}

async fn copies(figures: &mut Figures, database: &Database, file: &str) {
    const COLUMNS: &str = "id bigint primary key, email text, username text, first_name text, last_name text, country text, phone text, password_hash text";
    database
        .execute(&format!(
            "create table copied_bare ({COLUMNS}); create table copied ({COLUMNS});
             create table parts_bare ({COLUMNS}) partition by range (id);
             create table parts ({COLUMNS}) partition by range (id);
             select count(*) from orbhook_watch('users', 'copied');
             select count(*) from orbhook_watch('users', 'parts')"
        ))
        .await;
    for table in ["parts_bare", "parts"] {
        for part in 0..4 {
            let (from, to) = (part * ROWS / 4, (part + 1) * ROWS / 4 + part / 3);
            database
                .execute(&format!(
                    "create table {table}_{part} partition of {table} for values from ({from}) to ({to})"
                ))
                .await;
        }
    }
    let (mut none, mut one, mut parts, mut memory_bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut config = generic("https://example.com/x");
    config["subscribedEvents"] = serde_json::json!(["USER_CREATED"]);
    config["active"] = serde_json::json!(true);
    let webhook = database.create_webhook(config).await;
    for _ in 0..COPY_ROUNDS {
        let (bare, _) = copy(database, "copied_bare", file).await;
        let subscribe = |event_type: &str| {
            format!(
                "update orbhook.webhooks set subscribed_events = '{{{event_type}}}' where id = '{webhook}'"
            )
        };
        database.execute(&subscribe("PAYMENT_RECEIVED")).await;
        let (took, used) = copy(database, "copied", file).await;
        none.push((bare, took));
        memory_bytes = used.max(memory_bytes);
        database.execute(&subscribe("USER_CREATED")).await;
        let (took, used) = copy(database, "copied", file).await;
        one.push((bare, took));
        memory_bytes = used.max(memory_bytes);
        let (bare, _) = copy(database, "parts_bare", file).await;
        let (took, _) = copy(database, "parts", file).await;
        parts.push((bare, took));
    }
    let name = |what: &str| format!("COPY of {ROWS} users with a watch, {what} ÷ bare COPY");
    figures.compare(name("no webhook"), "seconds", &none, Goal::AtMost(5.0));
    figures.compare(name("one webhook"), "seconds", &one, Goal::AtMost(8.0));
    figures.compare(name("one webhook, into a partitioned table"), "seconds", &parts, None);
    figures.measure(
        "backend's own memory at its peak in a COPY into a watched table",
        "MiB",
        f64::from(u32::try_from(memory_bytes / 1024).unwrap()) / 1024.0,
        Goal::AtMost(300.0),
    );
}

/// Seconds a COPY into the empty table takes, and the largest amount of memory its backend had to itself meanwhile.
async fn copy(database: &Database, table: &str, file: &str) -> (f64, u64) {
    database.execute(&format!("truncate {table}, orbhook.events, orbhook.deliveries_open")).await;
    database.execute("checkpoint").await;
    let session = database.connect().await;
    let pid: i32 = session.one("select pg_backend_pid()", &[]).await;
    let (done, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sampler = std::thread::spawn({
        let (done, peak) = (Arc::clone(&done), Arc::clone(&peak));
        move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(own_memory_bytes(pid), Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
    });
    let begun = Instant::now();
    session.execute(&format!("copy {table} from '{file}' with (format csv)")).await;
    let took = begun.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    sampler.join().expect("the sampler");
    let rows: i64 = session.one(&format!("select count(*) from {table}"), &[]).await;
    assert_eq!(rows, i64::from(ROWS));
    (took, peak.load(Ordering::Relaxed))
}

/// What is the process's alone: without shared buffers.
fn own_memory_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

fn users(path: &Path) -> String {
    let mut text = String::new();
    for id in 0..ROWS {
        let _ = writeln!(
            text,
            "{id},user{id}@example.com,user{id},First{},Last{},GB,+44{id:09},hash{id}",
            id % 1_000,
            id % 5_000
        );
    }
    fs::write(path, text).expect("users.csv");
    path.display().to_string()
}
