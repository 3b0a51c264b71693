//! Claiming and settling by hand: what a sidecar does, one step at a time.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::database::Database;

/// A sidecar played by the test.
pub struct Claimer {
    pub id: Uuid,
}

/// One claimed delivery.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub delivery: Uuid,
    pub attempt: i32,
    pub webhook: Uuid,
    pub event_type: String,
    pub body: String,
    /// JSON object of name to value.
    pub secrets: Value,
    /// Milliseconds.
    pub lease_ms: i32,
    /// Milliseconds; 0 as well when the webhook has no limit.
    pub send_after_ms: i32,
}

impl Claimer {
    /// Registered without a lock: it dies only by its leases.
    pub async fn register(database: &Database) -> Claimer {
        let id = Uuid::new_v4();
        assert!(database.one::<bool>("select orbhook.register($1, 'by hand', '0', false)", &[&id]).await);
        Claimer { id }
    }

    /// Claims up to `batch` deliveries.
    pub async fn claim(&self, database: &Database, batch: i32) -> Vec<Claimed> {
        self.claim_after(database, batch, None).await
    }

    /// Claims up to `batch` deliveries, beginning with the webhook behind `after`.
    pub async fn claim_after(&self, database: &Database, batch: i32, after: Option<Uuid>) -> Vec<Claimed> {
        let rows =
            database.rows("select * from orbhook.claim($1, $2, $3)", &[&self.id, &batch, &after]).await;
        rows.iter()
            .map(|row| Claimed {
                delivery: row.get("delivery_id"),
                attempt: row.get("attempt"),
                webhook: row.get("webhook_id"),
                event_type: row.get("event_type"),
                body: row.get("body"),
                secrets: serde_json::from_str(row.get("secrets")).expect("secrets are a JSON object"),
                lease_ms: row.get("lease_ms"),
                send_after_ms: row.get::<_, Option<i32>>("send_after_ms").unwrap_or(0),
            })
            .collect()
    }

    /// Reports an answer; returns the status that `orbhook.settle` logs, if it logs any, and whether it was late.
    pub async fn answer(
        &self,
        database: &Database,
        claimed: &Claimed,
        status: u16,
        headers: Value,
    ) -> Option<(String, bool)> {
        self.settle(database, json!([answered(claimed, status, headers)])).await.pop()
    }

    /// Reports results as they stand; returns status and lateness of each that is worth a line in the log.
    pub async fn settle(&self, database: &Database, results: Value) -> Vec<(String, bool)> {
        let rows =
            database.rows("select status, late from orbhook.settle($1, $2)", &[&self.id, &results]).await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// A result with an answer, as a sidecar reports it.
pub fn answered(claimed: &Claimed, status: u16, headers: Value) -> Value {
    json!({
        "delivery": claimed.delivery.to_string(), "attempt": claimed.attempt, "outcome": "answered",
        "started_ago_ms": 0, "duration_ms": 12, "first_byte_ms": 11, "address": "127.0.0.1:80",
        "status": status, "headers": headers, "body": "", "body_cut": false,
    })
}
