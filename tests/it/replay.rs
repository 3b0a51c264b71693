use orbhook_tests::{Claimer, DEADLINE, Database, generic, wait_until};
use serde_json::json;
use uuid::Uuid;

#[tokio::test]
async fn the_failed_of_a_span_are_queued_again_with_their_ids_and_a_fresh_budget() {
    let (database, claimer, webhook) = with_finished(&[200, 500, 200, 500]).await;
    let failed = ids(&database, "status = 'failed'").await;
    replay(&database, webhook, "failed").await;
    apply(&database, &claimer).await;
    assert_eq!(ids(&database, "status = 'pending' and failures = 0 and attempts = 1").await, failed);
    let row = database
        .rows("select examined, queued, done_percent::float8 from orbhook.replay_progress", &[])
        .await
        .remove(0);
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, f64>(2)), (4, 2, 100.0));

    for claimed in claimer.claim(&database, 10).await {
        assert_eq!(claimed.attempt, 2);
        claimer.answer(&database, &claimed, 200, json!({})).await;
    }
    assert_eq!(ids(&database, "status = 'delivered'").await.len(), 4);
    let attempts = "select count(*) from orbhook.attempts";
    assert_eq!(database.one::<i64>(attempts, &[]).await, 6, "the history stays");
}

#[tokio::test]
async fn all_means_all_and_a_jsonpath_chooses_by_payload() {
    let (database, claimer, webhook) = with_finished(&[200, 500, 200]).await;
    replay(&database, webhook, "$.n >= 1").await;
    apply(&database, &claimer).await;
    assert_eq!(ids(&database, "status = 'pending'").await.len(), 2);
    for claimed in claimer.claim(&database, 10).await {
        claimer.answer(&database, &claimed, 200, json!({})).await;
    }
    replay(&database, webhook, "all").await;
    apply(&database, &claimer).await;
    assert_eq!(ids(&database, "status = 'pending'").await.len(), 3);
}

#[tokio::test]
async fn another_webhook_another_time_and_tests_are_left_alone() {
    let (database, claimer, webhook) = with_finished(&[500]).await;
    let other = database.create_webhook(generic("http://127.0.0.1:9/other")).await;
    let test: Uuid = database.one("select orbhook_test_webhook($1)", &[&webhook]).await;
    for claimed in claimer.claim(&database, 10).await {
        claimer.answer(&database, &claimed, 500, json!({})).await;
    }
    replay(&database, other, "all").await;
    database
        .execute(&format!(
            "select orbhook_replay('{webhook}', now() - interval '2 days', now() - interval '1 day', 'all')"
        ))
        .await;
    apply(&database, &claimer).await;
    assert!(ids(&database, "status = 'pending'").await.is_empty());
    replay(&database, webhook, "all").await;
    apply(&database, &claimer).await;
    let queued = ids(&database, "status = 'pending'").await;
    assert!(queued.len() == 1 && queued[0] != test, "{queued:?}");
}

#[tokio::test]
async fn a_wrong_span_or_path_is_refused() {
    let (database, _, webhook) = with_finished(&[]).await;
    for arguments in [
        "now(), now()",
        "null",
        "'-infinity'",
        "now() - interval '1 day', now(), '$.'",
        "now() - interval '1 day', now(), null",
    ] {
        let refusal = database.refusal(&format!("select orbhook_replay('{webhook}', {arguments})")).await;
        assert_eq!(refusal.sqlstate, "22023", "{arguments}: {refusal:?}");
    }
}

/// A webhook with one delivery for each status, settled; each payload has its place as n.
async fn with_finished(statuses: &[u16]) -> (Database, Claimer, Uuid) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["maxRetries"] = json!(0);
    let webhook = database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    for (n, status) in statuses.iter().enumerate() {
        database.emit("USER_CREATED", json!({"n": n})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, *status, json!({})).await;
    }
    (database, claimer, webhook)
}

async fn replay(database: &Database, webhook: Uuid, only: &str) {
    database
        .one::<Uuid>(
            "select orbhook_replay($1, now() - interval '1 day', \"only\" => $2)",
            &[&webhook, &only],
        )
        .await;
}

/// Lets a sidecar look until no replay is left.
async fn apply(database: &Database, claimer: &Claimer) {
    wait_until("the replays to end", DEADLINE, async || {
        database.rows("select orbhook.look($1)", &[&claimer.id]).await;
        let left = "select exists (select from orbhook.replays where finished_at is null)";
        (!database.one::<bool>(left, &[]).await).then_some(())
    })
    .await;
}

async fn ids(database: &Database, condition: &str) -> Vec<Uuid> {
    let rows =
        database.rows(&format!("select id from orbhook.deliveries where {condition} order by id"), &[]).await;
    rows.iter().map(|row| row.get(0)).collect()
}
