//! A queue to be drained, and how fast it is.

use std::sync::Arc;
use std::time::Duration;

use orbhook_tests::{Cluster, Database, SidecarProcess, generic, wait_until};
use serde_json::{Value, json};

use crate::pump::per_second;
use crate::sink::Sink;

pub(crate) const DEADLINE: Duration = Duration::from_secs(1_800);

/// Deliveries made in one statement: each is a transaction of its own, as large as one can be without delay to others.
const QUEUED_AT_ONCE: usize = 100_000;

/// Of each webhook: more than its share of the sidecar's slots, so that the sidecar decides how many are under way.
const MAX_IN_FLIGHT: usize = 100;

/// What is queued.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) provider: &'static str,
    pub(crate) webhooks: usize,
    /// In all; a multiple of `webhooks`.
    pub(crate) deliveries: usize,
    /// Of a GENERIC body, about.
    pub(crate) body_bytes: usize,
    /// Of each webhook, per second.
    pub(crate) rate_limit: Option<u32>,
}

pub(crate) const USUAL: Load =
    Load { provider: "GENERIC", webhooks: 20, deliveries: 100_000, body_bytes: 1_000, rate_limit: None };

/// A database with webhooks and what waits for them, and who receives it.
pub(crate) struct Queue {
    pub(crate) database: Database,
    pub(crate) sink: Sink,
    load: Load,
}

impl Queue {
    pub(crate) async fn fill(cluster: &Arc<Cluster>, load: Load) -> Queue {
        let queue = Queue::empty(cluster, load).await;
        queue.refill(load.deliveries).await;
        queue
    }

    pub(crate) async fn empty(cluster: &Arc<Cluster>, load: Load) -> Queue {
        let database = Database::on(cluster).await;
        let sink = Sink::start();
        let configs: Vec<Value> = (0..load.webhooks).map(|number| load.config(&sink, number)).collect();
        let create = "select count(orbhook_create_webhook(c.value)) from jsonb_array_elements($1) c";
        database.one::<i64>(create, &[&Value::Array(configs)]).await;
        Queue { database, sink, load }
    }

    /// Queues so many more.
    pub(crate) async fn refill(&self, deliveries: usize) {
        let mut events = deliveries / self.load.webhooks;
        while events > 0 {
            let step = events.min((QUEUED_AT_ONCE / self.load.webhooks).max(1));
            let emit = format!(
                "select count(orbhook_emit('USER_ACTION', {})) from generate_series(1, {step})",
                self.load.payload()
            );
            self.database.execute(&emit).await;
            events -= step;
        }
    }

    /// What a webhook of this queue is sent.
    pub(crate) async fn body(&self) -> String {
        let preview = format!(
            "select p.body from orbhook.webhooks w cross join lateral orbhook_preview(w.id, 'USER_ACTION', {}) p limit 1",
            self.load.payload()
        );
        self.database.one(&preview, &[]).await
    }

    /// Deliveries per second of so many sidecars, from the first request to the last result, after which the queue is empty.
    /// The sidecars stop at the end.
    pub(crate) async fn drain(&self, sidecars: usize) -> f64 {
        self.drain_watched(sidecars, |_| {}).await
    }

    /// The same; `at_end` sees the sidecars when the queue is empty.
    pub(crate) async fn drain_watched(&self, sidecars: usize, at_end: impl FnOnce(&[SidecarProcess])) -> f64 {
        let waiting: i64 = self.database.one("select count(*) from orbhook.deliveries_open", &[]).await;
        let waiting = usize::try_from(waiting).unwrap();
        self.sink.forget();
        let mut running = Vec::new();
        for _ in 0..sidecars {
            running.push(SidecarProcess::start(&self.database, &[]).await);
        }
        self.emptied(waiting).await;
        let rate = per_second(waiting, self.sink.first_at().expect("something was sent"));
        at_end(&running);
        for sidecar in running {
            sidecar.terminate().await;
        }
        rate
    }

    async fn emptied(&self, waiting: usize) {
        wait_until("all to arrive", DEADLINE, async || (self.sink.count() >= waiting).then_some(())).await;
        self.finished().await;
    }

    /// Waits until nothing is pending.
    pub(crate) async fn finished(&self) {
        wait_until("the queue to be empty", DEADLINE, async || {
            let left = "select exists (select from orbhook.deliveries_open)";
            (!self.database.one::<bool>(left, &[]).await).then_some(())
        })
        .await;
    }
}

impl Load {
    fn config(&self, sink: &Sink, number: usize) -> Value {
        let path = match self.provider {
            // Where a webhook of Slack's must point to.
            "SLACK" => format!("/services/T00000000/B00000000/{number:024}"),
            _ => format!("/{number}"),
        };
        let mut config = generic(&sink.url(&path));
        config["providerType"] = json!(self.provider);
        config["subscribedEvents"] = json!(["USER_ACTION"]);
        config["rateLimit"] = json!(self.rate_limit);
        config["maxInFlight"] = json!(MAX_IN_FLIGHT);
        config
    }

    /// An SQL expression.
    fn payload(&self) -> String {
        /// What a GENERIC body holds besides the note.
        const ENVELOPE_BYTES: usize = 200;
        let note = self.body_bytes.saturating_sub(ENVELOPE_BYTES);
        format!("jsonb_build_object('userId', 'usr_12345', 'note', repeat('x', {note}))")
    }
}
