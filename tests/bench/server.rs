//! The server that is measured: as durable as one in production, which the tests' clusters are not.

use std::fs;
use std::sync::Arc;

use orbhook_tests::{Cluster, Database};

/// Every guarantee is on. Memory and log are sized so that one measurement does not pay for the checkpoint of another.
const SETTINGS: [(&str, &str); 9] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "16GB"),
    ("min_wal_size", "2GB"),
    ("wal_buffers", "16MB"),
    ("checkpoint_timeout", "30min"),
    ("shared_preload_libraries", "pg_stat_statements"),
];

/// A cluster to be measured.
pub(crate) fn start() -> Arc<Cluster> {
    Cluster::start(&SETTINGS)
}

/// Writes the log once around, so that what is measured writes into files that exist, as it does on a server that has run for
/// a while. Making new ones costs most where most is written.
pub(crate) async fn run_in(database: &Database) {
    let fill = "select count(pg_logical_emit_message(false, 'bench', repeat('x', 1000000))) from generate_series(1, 2500)";
    database.one::<i64>(fill, &[]).await;
    database.execute("checkpoint").await;
}

/// Seconds of processor time that all processes of the server have used so far, those that have ended included.
pub(crate) fn cpu_seconds(cluster: &Cluster) -> f64 {
    let postmaster = cluster.postmaster_pid();
    let children: f64 = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(process_times)
        .filter(|times| times.parent == postmaster)
        .map(|times| times.own)
        .sum();
    let postmaster = process_times(postmaster).expect("the server runs");
    children + postmaster.own + postmaster.ended_children
}

/// Seconds of processor time that one process has used so far.
pub(crate) fn process_cpu_seconds(pid: u32) -> f64 {
    process_times(pid).expect("the process runs").own
}

struct Times {
    parent: u32,
    own: f64,
    ended_children: f64,
}

/// See proc(5), /proc/[pid]/stat.
fn process_times(pid: u32) -> Option<Times> {
    /// What sysconf(_SC_CLK_TCK) has been on Linux since 2.6.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds =
        |field: usize| -> Option<f64> { Some(fields.get(field)?.parse::<f64>().ok()? / TICKS_PER_SECOND) };
    Some(Times {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        ended_children: seconds(13)? + seconds(14)?,
    })
}
