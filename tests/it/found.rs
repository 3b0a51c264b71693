//! What the crash campaign found.

use orbhook_tests::{Claimer, Cluster, DEADLINE, Database, answered, generic, wait_until};
use serde_json::json;

#[tokio::test]
async fn a_late_result_says_when_its_attempt_began() {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
    database.emit("USER_LOGIN", json!({})).await;
    let (stopped, fresh) = (Claimer::register(&database).await, Claimer::register(&database).await);
    let late = stopped.claim(&database, 1).await.remove(0);
    // As long ago as a lease lasts.
    database.execute("update orbhook.deliveries_open set lease_until = clock_timestamp()").await;
    assert_eq!(fresh.claim(&database, 1).await.len(), 1);

    // It was claimed a lease ago, and sent only now.
    stopped.answer(&database, &late, 200, json!({})).await;
    let began = "select clock_timestamp() - started_at < interval '20 seconds' from orbhook.attempts where number = 1";
    assert!(database.one::<bool>(began, &[]).await);
}

#[tokio::test]
async fn a_failure_that_is_reported_twice_counts_once() {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
    database.emit("USER_LOGIN", json!({})).await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    assert!(claimer.answer(&database, &claimed, 500, json!({})).await.is_some());
    // The connection broke after the commit, so the sidecar does not know.
    assert_eq!(claimer.answer(&database, &claimed, 500, json!({})).await, None);
    let count = "select failures || ' ' || (select count(*) from orbhook.attempts) from orbhook.deliveries";
    assert_eq!(database.one::<String>(count, &[]).await, "1 1");
}

/// Two that did would wait for each other.
#[tokio::test]
async fn a_settle_updates_no_webhook_that_it_did_not_lock_at_the_beginning() {
    let database = Database::new().await;
    let fails = database.create_webhook(generic("http://127.0.0.1:9/fails")).await;
    let succeeds = database.create_webhook(generic("http://127.0.0.1:9/succeeds")).await;
    database.emit("USER_LOGIN", json!({})).await;
    let claimer = Claimer::register(&database).await;
    let results: Vec<_> = claimer
        .claim(&database, 2)
        .await
        .iter()
        .map(|claimed| answered(claimed, if claimed.webhook == fails { 500 } else { 200 }, json!({})))
        .collect();

    let first = database.connect().await;
    first.execute("begin").await;
    first.rows("select from orbhook.webhook_state where webhook_id = $1 for update", &[&fails]).await;
    let settler = database.connect().await;
    let settles = tokio::spawn(async move {
        let sql = "select status from orbhook.settle($1, $2)";
        settler.rows(sql, &[&claimer.id, &serde_json::Value::from(results)]).await
    });
    wait_until("settle to wait for the webhook that fails", DEADLINE, async || {
        let sql = "select exists (select from pg_locks l join pg_stat_activity a using (pid) \
                   where not l.granted and a.datname = current_database() and a.query like '%orbhook.settle%')";
        database.one::<bool>(sql, &[]).await.then_some(())
    })
    .await;

    // Meanwhile the other one begins to fail, and somebody holds it.
    let other = database.connect().await;
    other.execute("begin").await;
    let fail = "update orbhook.webhook_state set failing_since = now() where webhook_id = $1 returning 1";
    database.one::<i32>(fail, &[&succeeds]).await;
    other.rows("select from orbhook.webhook_state where webhook_id = $1 for update", &[&succeeds]).await;
    first.execute("commit").await;
    assert_eq!(settles.await.unwrap().len(), 1, "it ends although the other one is still held");
    other.execute("rollback").await;
}

/// Whoever notifies waits for the one before, until that one is durable everywhere.
#[tokio::test]
async fn a_commit_that_rings_outlasts_the_applications_lock_timeout() {
    let cluster = Cluster::start(&[]);
    let database = Database::on(&cluster).await;
    database.create_webhook(generic("http://127.0.0.1:9/hook")).await;
    let (asleep, before, emitter) =
        (database.connect().await, database.connect().await, database.connect().await);
    asleep.execute("select pg_advisory_lock(1869767272, 0)").await;
    emitter.execute("set lock_timeout = '50ms'; set synchronous_commit = local").await;

    let waiting = cluster.commits_wait_for("nobody");
    let (over, is_over) = tokio::sync::watch::channel(false);
    let before = tokio::spawn(async move {
        // The server takes the setting in when it gets to it.
        while !*is_over.borrow() {
            before.execute("notify something").await;
        }
    });
    wait_until("a notification whose commit waits for its standby", DEADLINE, async || {
        let waits = "select exists (select from pg_stat_activity where query = 'notify something' and wait_event = 'SyncRep')";
        database.one::<bool>(waits, &[]).await.then_some(())
    })
    .await;
    let emitted =
        tokio::spawn(async move { emitter.execute("select orbhook_emit('USER_LOGIN', '{}')").await });
    wait_until("the emitter's commit to have waited longer than its lock_timeout", DEADLINE, async || {
        let waits = "select exists (select from pg_stat_activity where query ~ '^select orbhook_emit' and wait_event_type = 'Lock'
                                    and clock_timestamp() - query_start > interval '200 milliseconds')";
        database.one::<bool>(waits, &[]).await.then_some(())
    })
    .await;
    over.send_replace(true);
    drop(waiting);
    emitted.await.expect("the emitter's commit succeeds");
    before.await.expect("so does the other's");
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 1);
}
