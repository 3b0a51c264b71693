//! What `/metrics` says of the database: how much waits, since when, and how webhooks and sidecars stand.
//!
//! Every sidecar of a database reports the same here. The labels that name a webhook are bounded: only the webhooks that have
//! waited longest are listed.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::upkeep::GaugeRow;

/// Webhooks listed one by one, those that have waited longest.
pub(crate) const WEBHOOKS_MAX: i32 = 100;

type Float = Gauge<f64, AtomicU64>;

/// How the database stood at the latest look.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    database_up: Gauge,
    /// NaN while the database does not answer.
    pending: Float,
    sidecars: Float,
    webhooks: Family<StateLabels, Float>,
    webhook_pending: Family<WebhookLabels, Float>,
    webhook_oldest_waiting: Family<WebhookLabels, Float>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WebhookLabels {
    webhook_id: String,
    webhook: String,
}

impl Gauges {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "database_up",
            "1 if the database answered when these metrics were read; if not, what only it knows is missing",
            self.database_up.clone(),
        );
        registry.register(
            "pending_deliveries",
            "Deliveries neither delivered nor given up, of all webhooks; counted up to 1000000",
            self.pending.clone(),
        );
        registry.register("sidecars", "Sidecars registered with the database", self.sidecars.clone());
        registry.register(
            "webhooks",
            "Webhooks by state: ok, failing (no success since the last failure), quiet (the receiver asked for it), paused, inactive",
            self.webhooks.clone(),
        );
        registry.register(
            "webhook_pending_deliveries",
            "Deliveries pending for one of the 100 webhooks that have waited longest; counted up to 10000",
            self.webhook_pending.clone(),
        );
        registry.register_with_unit(
            "webhook_oldest_waiting",
            "How long the oldest delivery that is not under way has been due, for one of the 100 webhooks that have waited longest",
            Unit::Seconds,
            self.webhook_oldest_waiting.clone(),
        );
    }

    /// Takes in what the database says; `None`: it does not answer, and nothing old is shown for it.
    pub(crate) fn set(&self, rows: Option<&[GaugeRow]>) {
        self.database_up.set(rows.is_some().into());
        self.pending.set(f64::NAN);
        self.sidecars.set(f64::NAN);
        self.webhooks.clear();
        self.webhook_pending.clear();
        self.webhook_oldest_waiting.clear();
        for row in rows.unwrap_or_default() {
            self.set_one(row);
        }
    }

    fn set_one(&self, row: &GaugeRow) {
        let of_webhook =
            || Some(WebhookLabels { webhook_id: row.webhook_id?.to_string(), webhook: row.webhook.clone()? });
        match row.gauge.as_str() {
            "pending" => {
                self.pending.set(row.value);
            }
            "sidecars" => {
                self.sidecars.set(row.value);
            }
            "webhooks" => {
                let Some(state) = row.state.clone() else { return };
                self.webhooks.get_or_create(&StateLabels { state }).set(row.value);
            }
            "webhook_pending" => {
                let Some(labels) = of_webhook() else { return };
                self.webhook_pending.get_or_create(&labels).set(row.value);
            }
            "webhook_oldest_waiting_seconds" => {
                let Some(labels) = of_webhook() else { return };
                self.webhook_oldest_waiting.get_or_create(&labels).set(row.value);
            }
            // A newer extension may say more.
            _ => {}
        }
    }
}
