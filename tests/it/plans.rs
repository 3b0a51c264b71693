//! Plans are made once for each session, often while the queue is empty, and must serve a long one.

use orbhook_tests::{Claimer, Database, answered, generic};
use serde_json::json;

const QUEUED: i64 = 30_000;

#[tokio::test]
async fn plans_made_while_the_queue_was_empty_read_no_more_of_a_long_one() {
    let database = Database::new().await;
    // Nobody corrects what the planner believes of the table.
    database.execute("alter table orbhook.deliveries_open set (autovacuum_enabled = off)").await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["maxInFlight"] = json!(100);
    database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    let step = async |step: &str| {
        let before = rows_read(&database).await;
        match step {
            "look" => drop(database.rows("select orbhook.look($1)", &[&claimer.id]).await),
            "cancel" => drop(
                database
                    .rows(
                        "select orbhook_cancel(id) from (select id from orbhook.deliveries_open limit 1) d",
                        &[],
                    )
                    .await,
            ),
            _ => {
                let claimed = claimer.claim(&database, 20).await;
                let results = claimed.iter().enumerate().map(|(place, claimed)| {
                    answered(claimed, if place % 2 == 0 { 200 } else { 500 }, json!({}))
                });
                claimer.settle(&database, json!(results.collect::<Vec<_>>())).await;
            }
        }
        rows_read(&database).await - before
    };
    database.emit("USER_CREATED", json!({})).await;
    for _ in 0..8 {
        for name in ["look", "claim and settle", "cancel"] {
            step(name).await;
        }
    }
    database
        .execute(&format!("select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {QUEUED})"))
        .await;

    for name in ["look", "claim and settle", "cancel"] {
        let read = step(name).await;
        assert!(read < 1_000, "{name} read {read} rows of a queue of {QUEUED}");
    }
}

/// Rows of pending deliveries that anybody has read so far, by scan or by index.
async fn rows_read(database: &Database) -> i64 {
    database.rows("select pg_stat_force_next_flush()", &[]).await;
    let read =
        "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'deliveries_open'";
    database.one(read, &[]).await
}
