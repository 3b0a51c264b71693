//! What a sidecar moves: a queue is drained, and the bare pump posts the same bodies.

use std::sync::Arc;

use orbhook_tests::Cluster;

use crate::drain::{Load, Queue, USUAL};
use crate::figures::{Figures, Goal};
use crate::pump::pump;
use crate::server;

/// As many as a sidecar has slots.
const CONCURRENCY: usize = 512;

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let mut rounds = Vec::new();
    let mut generic = Vec::new();
    for _ in 0..3 {
        let round = against_pump(&cluster, USUAL, 1).await;
        rounds.push(round);
        generic.push(round.1);
    }
    figures.compare("drain, 1 kB GENERIC ÷ bare pump", "per second", &rounds, Goal::AtLeast(0.40));
    for sidecars in [2, 4] {
        let round = against_pump(&cluster, USUAL, sidecars).await;
        let name = format!("drain, 1 kB GENERIC, {sidecars} sidecars ÷ bare pump");
        figures.compare(name, "per second", &[round], None);
    }
    let large = Load { body_bytes: 20_000, deliveries: 40_000, ..USUAL };
    figures.compare(
        "drain, 20 kB GENERIC ÷ bare pump",
        "per second",
        &[against_pump(&cluster, large, 1).await],
        None,
    );
    let slack = Load { provider: "SLACK", ..USUAL };
    let mut rounds = Vec::new();
    for generic in generic {
        let queue = Queue::fill(&cluster, slack).await;
        rounds.push((generic, queue.drain(1).await));
    }
    figures.compare("drain, Slack ÷ GENERIC", "per second", &rounds, Goal::AtLeast(0.70));
    figures
}

async fn against_pump(cluster: &Arc<Cluster>, load: Load, sidecars: usize) -> (f64, f64) {
    let queue = Queue::fill(cluster, load).await;
    let body = queue.body().await;
    let bare = pump(&queue.sink.url("/"), &body, load.deliveries, CONCURRENCY).await;
    (bare, queue.drain(sidecars).await)
}
