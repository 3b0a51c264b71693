use std::time::Duration;

use orbhook_tests::{Database, Session, generic, wait_until};
use serde_json::json;
use uuid::Uuid;

const EMIT: &str = "select orbhook_emit('USER_ACTION', '{}')";

#[tokio::test]
async fn a_webhook_gets_every_event_emitted_after_it_was_made_and_none_after_it_is_gone() {
    let database = Database::new().await;
    let emitter = database.connect().await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 0);
    let webhook = database.create_webhook(generic("https://example.com/x")).await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 1);
    for (change, then) in [
        ("select orbhook_update_webhook('W', '{\"active\": false}')", 1),
        ("select orbhook_update_webhook('W', '{\"active\": true}')", 2),
        ("select orbhook_update_webhook('W', '{\"subscribedEvents\": [\"PAYMENT_*\"]}')", 2),
        ("select orbhook_update_webhook('W', '{\"subscribedEvents\": [\"USER_*\"]}')", 3),
        ("select orbhook_update_webhook('W', '{\"filter\": \"$.x > 1\"}')", 3),
        ("update orbhook.webhooks set filter = null", 4),
    ] {
        database.execute(&change.replace('W', &webhook.to_string())).await;
        emitter.execute(EMIT).await;
        assert_eq!(deliveries(&emitter).await, then, "{change}");
    }
    // Plain DML is seen as well, also where triggers are switched off.
    database
        .execute("set session_replication_role = replica; update orbhook.webhooks set active = false; reset session_replication_role")
        .await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 4);
    database.execute("update orbhook.webhooks set active = true").await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 5);
    database.execute(&format!("select orbhook_delete_webhook('{webhook}')")).await;
    let before = deliveries(&emitter).await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, before);
}

#[tokio::test]
async fn a_transaction_that_goes_on_sees_a_webhook_made_meanwhile() {
    let database = Database::new().await;
    let emitter = database.connect().await;
    emitter.execute(&format!("begin; {EMIT}")).await;
    database.create_webhook(generic("https://example.com/x")).await;
    emitter.execute(&format!("{EMIT}; commit")).await;
    assert_eq!(deliveries(&emitter).await, 1);
}

/// The statement's own snapshot is older than the webhook: what it reads must not be remembered.
#[tokio::test]
async fn a_statement_with_an_old_snapshot_leaves_nothing_wrong_behind() {
    let database = Database::new().await;
    let gate = database.connect().await;
    gate.execute("select pg_advisory_lock(1)").await;
    let emitter = database.connect().await;
    let waiting = emitter
        .execute("select orbhook_emit('USER_ACTION', '{}') from (select pg_advisory_lock(1) offset 0) w");
    let meanwhile = async {
        wait_until("the emit to wait", Duration::from_secs(10), async || {
            let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted and objid = 1)";
            gate.one::<bool>(waits, &[]).await.then_some(())
        })
        .await;
        database.create_webhook(generic("https://example.com/x")).await;
        gate.execute("select pg_advisory_unlock(1)").await;
    };
    tokio::join!(waiting, meanwhile);
    let before = deliveries(&emitter).await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, before + 1);
}

#[tokio::test]
async fn a_transaction_that_sees_the_past_teaches_the_session_nothing() {
    for level in ["repeatable read", "serializable"] {
        let database = Database::new().await;
        let emitter = database.connect().await;
        emitter
            .execute(&format!("begin isolation level {level}; select count(*) from orbhook.webhooks"))
            .await;
        database.create_webhook(generic("https://example.com/x")).await;
        emitter.execute(&format!("{EMIT}; commit")).await;
        let before = deliveries(&emitter).await;
        emitter.execute(EMIT).await;
        assert_eq!(deliveries(&emitter).await, before + 1, "{level}");
    }
}

#[tokio::test]
async fn a_webhook_of_this_transaction_counts_as_long_as_the_transaction_does() {
    let database = Database::new().await;
    let session = database.connect().await;
    session.execute(EMIT).await;
    let create = "select orbhook_create_webhook('{\"name\": \"n\", \"providerType\": \"GENERIC\", \"endpoint\": \"https://example.com/x\", \"subscribedEvents\": [\"*\"]}')";
    session.execute(&format!("begin; {create}; {EMIT}")).await;
    assert_eq!(deliveries(&session).await, 1);
    session.execute(&format!("savepoint s; {create}; {EMIT}")).await;
    assert_eq!(deliveries(&session).await, 3);
    session.execute(&format!("rollback to s; {EMIT}")).await;
    assert_eq!(deliveries(&session).await, 2);
    session.execute(&format!("rollback; {EMIT}")).await;
    assert_eq!(deliveries(&session).await, 0);
}

#[tokio::test]
async fn a_webhook_made_by_a_prepared_transaction_counts_once_it_is_committed() {
    let database = Database::new().await;
    let emitter = database.connect().await;
    emitter.execute(EMIT).await;
    let name = format!("webhook_{}", Uuid::now_v7().simple());
    let maker = database.connect().await;
    maker
        .execute(&format!(
            "begin; select orbhook_create_webhook('{{\"name\": \"n\", \"providerType\": \"GENERIC\", \"endpoint\": \"https://example.com/x\", \"subscribedEvents\": [\"*\"]}}');
             prepare transaction '{name}'"
        ))
        .await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 0);
    maker.execute(&format!("commit prepared '{name}'")).await;
    emitter.execute(EMIT).await;
    assert_eq!(deliveries(&emitter).await, 1);
}

#[tokio::test]
async fn an_event_type_is_known_as_long_as_it_is_registered() {
    let database = Database::new().await;
    let emitter = database.connect().await;
    let emit = "select orbhook_emit('TEA_BREWED', '{}')";
    assert_eq!(emitter.refusal(emit).await.sqlstate, "22023");
    database.execute("insert into orbhook.event_types values ('TEA_BREWED', 'Kitchen')").await;
    emitter.execute(emit).await;
    database.execute("delete from orbhook.event_types where name = 'TEA_BREWED'").await;
    assert_eq!(emitter.refusal(emit).await.sqlstate, "22023");
}

/// Emitters that never stop, and webhooks that come one after the other: from its first event on each gets all.
#[tokio::test]
async fn no_event_is_lost_to_a_webhook_that_comes_while_others_emit() {
    let database = Database::new().await;
    let mut emitters = Vec::new();
    for _ in 0..4 {
        let session = database.connect().await;
        emitters.push(tokio::spawn(async move {
            for _ in 0..300 {
                session.execute(EMIT).await;
            }
        }));
    }
    let mut made = Vec::new();
    let session = database.connect().await;
    for number in 0..20 {
        let webhook = database.create_webhook(generic(&format!("https://example.com/{number}"))).await;
        // Its creation is acknowledged: whatever is emitted from now on is for it as well.
        let since: Uuid =
            session.one("select orbhook_emit('USER_ACTION', $1)", &[&json!({"since": number})]).await;
        made.push((webhook, since));
    }
    for emitter in emitters {
        emitter.await.unwrap();
    }
    for (webhook, since) in made {
        let missed = "select count(*) from orbhook.events e
                      where e.created_at >= (select s.created_at from orbhook.events s where s.id = $2)
                        and not exists (select from orbhook.deliveries d where d.event_id = e.id and d.webhook_id = $1)";
        assert_eq!(session.one::<i64>(missed, &[&webhook, &since]).await, 0);
    }
}

async fn deliveries(session: &Session) -> i64 {
    session.one("select count(*) from orbhook.deliveries where status = 'pending'", &[]).await
}
