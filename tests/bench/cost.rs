//! What delivering costs: memory, processor time, log, and what an idle sidecar asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orbhook_tests::{Cluster, Database, SidecarProcess, generic, wait_until};

use crate::drain::{Load, Queue, USUAL};
use crate::figures::{Figures, Goal};
use crate::server;
use crate::sink::Sink;

const LARGE: Load = Load { deliveries: 1_000_000, ..USUAL };
const IDLE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    draining(&mut figures, &cluster).await;
    idle(&mut figures, &cluster).await;
    figures
}

async fn draining(figures: &mut Figures, cluster: &Arc<Cluster>) {
    let queue = Queue::fill(cluster, LARGE).await;
    let log_bytes = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
    let log_before: f64 = queue.database.one(log_bytes, &[]).await;
    let server_before = server::cpu_seconds(cluster);
    let (mut memory, mut sidecar_cpu, mut server_cpu) = (0, 0.0, 0.0);
    let rate = queue
        .drain_watched(1, |sidecars| {
            memory = sidecars[0].memory_peak_bytes();
            sidecar_cpu = server::process_cpu_seconds(sidecars[0].pid());
            server_cpu = server::cpu_seconds(cluster) - server_before;
        })
        .await;
    let log: f64 = queue.database.one::<f64>(log_bytes, &[]).await - log_before;

    let deliveries = f64::from(u32::try_from(LARGE.deliveries).unwrap());
    figures.measure(
        "sidecar's memory at its peak, draining 1,000,000",
        "MiB",
        f64::from(u32::try_from(memory / 1024).unwrap()) / 1024.0,
        Goal::AtMost(64.0),
    );
    figures.measure("that drain", "per second", rate, None);
    let per_10_000 = 10_000.0 / deliveries;
    figures.measure(
        "processor time of the sidecar for 10,000 deliveries",
        "s",
        sidecar_cpu * per_10_000,
        None,
    );
    figures.measure("processor time of PostgreSQL for 10,000 deliveries", "s", server_cpu * per_10_000, None);
    figures.measure("log written for a delivery", "bytes", log / deliveries, None);
}

async fn idle(figures: &mut Figures, cluster: &Arc<Cluster>) {
    let database = Database::on(cluster).await;
    database.execute("create extension pg_stat_statements").await;
    let sink = Sink::start();
    database.create_webhook(generic(&sink.url("/hook"))).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    // One delivery, so that it is seen to work; then it has nothing more to do.
    database.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    wait_until("the delivery", DEADLINE, async || (sink.count() > 0).then_some(())).await;

    let role = database.role("sender").await;
    let calls = "select coalesce(sum(calls), 0)::float8 from pg_stat_statements
                 where userid = $1::text::regrole and toplevel";
    let (before, began) = (database.one::<f64>(calls, &[&role]).await, Instant::now());
    wait_until("time to pass", IDLE * 2, async || (began.elapsed() >= IDLE).then_some(())).await;
    let statements = database.one::<f64>(calls, &[&role]).await - before;
    assert!(statements > 0.0, "nothing was counted: no poll, or the wrong role");
    let per_second = statements / began.elapsed().as_secs_f64();
    figures.measure(
        "statements of an idle sidecar, over a minute",
        "per second",
        per_second,
        Goal::AtMost(2.0),
    );

    let connections = "select count(*)::float8 from pg_stat_activity where usename = $1";
    let held = database.one::<f64>(connections, &[&role]).await;
    figures.measure("connections of an idle sidecar", "", held, Goal::AtMost(3.0));
}
