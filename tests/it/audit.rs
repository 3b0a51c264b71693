use orbhook_tests::{Claimer, Database, generic};
use serde_json::json;

const ENDPOINT: &str = "http://127.0.0.1:9/hook";
const AUDIT: &str = "select violation from orbhook_audit(now() - interval '1 day') order by violation";

#[tokio::test]
async fn a_healthy_system_has_no_violations() {
    let database = healthy().await;
    let seen = "select array_agg(distinct status order by status) from orbhook.deliveries";
    assert_eq!(database.one::<Vec<String>>(seen, &[]).await, ["cancelled", "delivered", "failed", "pending"]);
    assert_eq!(violations(&database).await, [""; 0]);
}

/// Each way to damage a healthy ledger, and what the audit says of it.
const DAMAGES: &[(&str, &str)] = &[
    ("delete from orbhook.deliveries d where d.status = 'delivered'", "event without its delivery"),
    ("delete from orbhook.deliveries d where d.status = 'delivered'", "attempt without delivery"),
    (
        "insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at)
         select gen_random_uuid(), event_id, webhook_id, now() from orbhook.deliveries where status = 'delivered' and not is_test limit 1;
         update orbhook.deliveries_open o set id = orbhook._new_id() where o.attempts = 0",
        "event delivered twice to one webhook",
    ),
    (
        "insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at)
         select id, event_id, webhook_id, now() from orbhook.deliveries where status = 'failed' limit 1",
        "delivery both pending and finished",
    ),
    (
        "update orbhook.deliveries_open set due_at = now() - interval '2 minutes', lease_until = now() - interval '2 minutes';
         update orbhook.attempts set started_at = started_at - interval '2 minutes';
         update orbhook.webhook_state set next_send_at = '-infinity'",
        "delivery past its deadline",
    ),
    ("update orbhook.attempts set webhook_id = gen_random_uuid() where error_class is null", "attempt that does not fit its delivery"),
    ("update orbhook.attempts set number = 99 where error_class is null", "attempt that does not fit its delivery"),
    ("delete from orbhook.attempts where error_class is null", "delivered without an answer"),
    ("delete from orbhook.webhook_state", "webhook without state"),
    ("insert into orbhook.webhook_state (webhook_id) values (gen_random_uuid())", "state without webhook"),
    ("delete from orbhook.webhook_secrets where name = 'endpoint'", "webhook without endpoint"),
    ("delete from orbhook.subscriptions where webhook_id = (select id from orbhook.webhooks order by id limit 1)", "subscription differs from its webhook"),
    ("update orbhook.subscriptions set active = not active", "subscription differs from its webhook"),
    ("update orbhook.subscriptions set filter = '$.other'", "subscription differs from its webhook"),
    ("insert into orbhook.subscriptions values ('USER_*', (select id from orbhook.webhooks order by id limit 1), true)", "subscription differs from its webhook"),
];

#[tokio::test]
async fn every_damage_to_the_ledger_is_reported() {
    let database = healthy().await;
    let session = database.connect().await;
    for (damage, violation) in DAMAGES {
        session.execute(&format!("begin; {damage}")).await;
        let found: Vec<String> = session.rows(AUDIT, &[]).await.iter().map(|row| row.get(0)).collect();
        assert!(
            found.iter().any(|found| found == violation),
            "{damage}\nshould be: {violation}\nis: {found:?}"
        );
        session.execute("rollback").await;
    }
    assert_eq!(violations(&database).await, [""; 0], "and all of it was undone");
}

#[tokio::test]
async fn a_webhook_that_changed_within_the_hour_before_an_event_is_not_judged() {
    let database = Database::new().await;
    database.emit("USER_CREATED", json!({})).await;
    let webhook = database.create_webhook(generic(ENDPOINT)).await;
    assert_eq!(violations(&database).await, [""; 0], "it came after the event");
    database.emit("USER_CREATED", json!({})).await;
    database.execute("delete from orbhook.deliveries").await;
    assert_eq!(violations(&database).await, [""; 0], "its making may not have been committed yet");
    let age = "update orbhook.webhooks set created_at = created_at - interval '2 hours', updated_at = updated_at - interval '2 hours'";
    database.execute(age).await;
    assert_eq!(violations(&database).await, ["event without its delivery"; 2]);
    database
        .execute(&format!("update orbhook.webhooks set name = 'changed by hand' where id = '{webhook}'"))
        .await;
    assert_eq!(violations(&database).await, [""; 0], "a plain update counts as a change");
}

#[tokio::test]
async fn what_is_paused_off_or_asked_to_be_quiet_is_not_late() {
    let database = Database::new().await;
    let webhook = database.create_webhook(generic(ENDPOINT)).await;
    database.emit("USER_CREATED", json!({})).await;
    database.execute("update orbhook.deliveries_open set due_at = now() - interval '1 hour'").await;
    assert_eq!(violations(&database).await, ["delivery past its deadline"]);
    for excuse in [
        format!("select orbhook_pause('{webhook}')"),
        format!("select orbhook_update_webhook('{webhook}', '{{\"active\": false}}')"),
        "update orbhook.webhook_state set paused_until = now() + interval '1 minute'".to_owned(),
        "update orbhook.deliveries_open set lease_until = now() + interval '10 s', claimed_by = gen_random_uuid()".to_owned(),
    ] {
        let session = database.connect().await;
        session.execute(&format!("begin; {excuse}")).await;
        assert!(session.rows(AUDIT, &[]).await.is_empty(), "{excuse}");
        session.execute("rollback").await;
    }
}

#[tokio::test]
async fn an_audit_needs_to_know_since_when() {
    let refusal = Database::new().await.refusal("select orbhook_audit(null)").await;
    assert_eq!(refusal.sqlstate, "22023");
    assert!(refusal.hint.contains("interval '1 day'"), "{refusal:?}");
}

/// A ledger with everything in it: delivered, failed, cancelled, retried, pending, skipped, tests, an orphan, a replay.
async fn healthy() -> Database {
    let database = Database::new().await;
    let mut config = generic(ENDPOINT);
    config["maxRetries"] = json!(1);
    config["retryDelay"] = json!(0);
    config["subscribedEvents"] = json!(["*", "USER_*"]);
    let all = database.create_webhook(config.clone()).await;
    config["filter"] = json!("$.amount > 100");
    config["subscribedEvents"] = json!(["PAYMENT_*", "USER_CREATED"]);
    let large = database.create_webhook(config.clone()).await;
    config["active"] = json!(false);
    database.create_webhook(config).await;
    let age = "update orbhook.webhooks set created_at = now() - interval '2 hours', updated_at = now() - interval '2 hours'";
    database.execute(age).await;

    let claimer = Claimer::register(&database).await;
    for amount in [5, 500] {
        database.emit("PAYMENT_RECEIVED", json!({"amount": amount})).await;
    }
    let claimed = claimer.claim(&database, 10).await;
    assert_eq!(claimed.len(), 3);
    let failing = claimed.iter().find(|claimed| claimed.webhook == large).unwrap();
    for claimed in claimed.iter().filter(|claimed| claimed.delivery != failing.delivery) {
        claimer.answer(&database, claimed, 200, json!({})).await;
    }
    claimer.answer(&database, failing, 400, json!({})).await;
    database.execute(&format!("select orbhook_test_webhook('{all}')")).await;
    let test = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &test, 500, json!({})).await;
    database.emit("USER_LOGIN", json!({})).await;
    database.execute("select orbhook_cancel(id) from orbhook.deliveries_open").await;
    database.emit("USER_LOGOUT", json!({})).await;
    claimer.claim(&database, 10).await;
    database
        .execute("update orbhook.deliveries_open set lease_until = clock_timestamp() - interval '1 second'")
        .await;
    database
}

async fn violations(database: &Database) -> Vec<String> {
    database.rows(AUDIT, &[]).await.iter().map(|row| row.get(0)).collect()
}
