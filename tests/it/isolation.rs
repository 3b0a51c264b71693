use std::time::Duration;

use orbhook_tests::{Answer, Database, Gate, Receiver, Sidecar, generic, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

/// Under the timeout of those that never answer, so that they are stuck when the healthy ones are done.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(28);

#[tokio::test(flavor = "multi_thread")]
async fn healthy_webhooks_are_served_while_bad_ones_are_stuck() {
    const HEALTHY: usize = 10;
    const EVENTS: usize = 20;
    const QUEUED: i64 = 10_000;

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let gate = Gate::new();
    receiver.answer("/silent", Answer::hang());
    receiver.answer("/slow", Answer::status(200).held_by(&gate));
    receiver.answer("/broken", Answer::status(500));
    receiver.answer("/queued", Answer::status(200).after(Duration::from_millis(100)));
    let mut bad = Vec::new();
    for path in ["/silent", "/slow", "/broken", "/queued"] {
        let mut config = subscribed(&receiver.url(path), "USER_ACTION");
        config["timeoutSeconds"] = json!(30);
        bad.push(database.create_webhook(config).await);
    }
    for number in 0..HEALTHY {
        let path = format!("/healthy/{number}");
        database.create_webhook(subscribed(&receiver.url(&path), "PAYMENT_RECEIVED")).await;
    }
    database
        .execute(&format!("select orbhook_emit('USER_ACTION', '{{}}') from generate_series(1, {QUEUED})"))
        .await;
    // Fewer slots than there are requests waiting, more than the four may take: 10 each.
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = 64).await;
    wait_until("the bad ones to have all they may", HEALTHY_DEADLINE, async || {
        let full = count(&receiver, "/silent") == 10 && count(&receiver, "/slow") == 10;
        (full && count(&receiver, "/broken") > 0 && count(&receiver, "/queued") > 0).then_some(())
    })
    .await;

    for _ in 0..EVENTS {
        database.emit("PAYMENT_RECEIVED", json!({})).await;
    }
    wait_until("every healthy delivery", HEALTHY_DEADLINE, async || {
        (count(&receiver, "/healthy/") == HEALTHY * EVENTS).then_some(())
    })
    .await;

    assert_eq!((count(&receiver, "/silent"), count(&receiver, "/slow")), (10, 10), "they are still stuck");
    assert_eq!(ended(&database, bad[0]).await + ended(&database, bad[1]).await, 0, "none has timed out");
    assert!(pending(&database, bad[3]).await > QUEUED / 2, "the long queue is still long");
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_never_answer_do_not_take_every_slot() {
    const HANGING: usize = 20;

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    receiver.answer("/silent", Answer::hang());
    for number in 0..HANGING {
        let mut config = subscribed(&receiver.url("/silent"), "USER_ACTION");
        // One of them would take every slot by itself.
        config["maxInFlight"] = json!(if number == 0 { 1_000 } else { 10 });
        config["rateLimit"] = json!(null);
        config["timeoutSeconds"] = json!(30);
        database.create_webhook(config).await;
    }
    database.create_webhook(subscribed(&receiver.url("/healthy/"), "PAYMENT_RECEIVED")).await;
    database.execute("select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 200)").await;
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = 64).await;
    wait_until("the silent ones to have their share", HEALTHY_DEADLINE, async || {
        (count(&receiver, "/silent") >= 2 * HANGING).then_some(())
    })
    .await;

    for _ in 0..20 {
        database.emit("PAYMENT_RECEIVED", json!({})).await;
    }
    wait_until("every healthy delivery", HEALTHY_DEADLINE, async || {
        (count(&receiver, "/healthy/") == 20).then_some(())
    })
    .await;
    let ended = "select count(*) from orbhook.attempts where status_code is null";
    assert_eq!(database.one::<i64>(ended, &[]).await, 0, "no silent one has timed out meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_over_its_pace_holds_no_slot() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut paced = subscribed(&receiver.url("/paced"), "USER_ACTION");
    paced["rateLimit"] = json!(1);
    paced["maxInFlight"] = json!(100);
    let paced = database.create_webhook(paced).await;
    database.create_webhook(subscribed(&receiver.url("/healthy/"), "PAYMENT_RECEIVED")).await;
    database.execute("select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 100)").await;
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = 1).await;
    receiver.requests(1).await;

    database.execute("select orbhook_emit('PAYMENT_RECEIVED', '{}') from generate_series(1, 50)").await;
    wait_until("the healthy webhook through the only slot", HEALTHY_DEADLINE, async || {
        (count(&receiver, "/healthy/") == 50).then_some(())
    })
    .await;
    assert!(pending(&database, paced).await > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_webhook_holds_no_slot() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    receiver.answer("/paused", Answer::status(429).header("retry-after", "600"));
    let paused = database.create_webhook(subscribed(&receiver.url("/paused"), "USER_ACTION")).await;
    database.create_webhook(subscribed(&receiver.url("/healthy/"), "PAYMENT_RECEIVED")).await;
    database.emit("USER_ACTION", json!({})).await;
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = 1).await;
    wait_until("the webhook to be paused", HEALTHY_DEADLINE, async || {
        let until =
            "select paused_until > clock_timestamp() from orbhook.webhook_state where webhook_id = $1";
        database.one::<bool>(until, &[&paused]).await.then_some(())
    })
    .await;

    database.execute("select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 50)").await;
    database.execute("select orbhook_emit('PAYMENT_RECEIVED', '{}') from generate_series(1, 50)").await;
    wait_until("the healthy webhook through the only slot", HEALTHY_DEADLINE, async || {
        (count(&receiver, "/healthy/") == 50).then_some(())
    })
    .await;
    assert_eq!(count(&receiver, "/paused"), 1);
    assert_eq!(pending(&database, paused).await, 51);
}

fn subscribed(endpoint: &str, event_type: &str) -> Value {
    let mut config = generic(endpoint);
    config["subscribedEvents"] = json!([event_type]);
    config
}

/// Requests whose path begins so.
fn count(receiver: &Receiver, prefix: &str) -> usize {
    receiver.so_far().iter().filter(|request| request.path.starts_with(prefix)).count()
}

async fn ended(database: &Database, webhook: Uuid) -> i64 {
    database.one("select count(*) from orbhook.attempts where webhook_id = $1", &[&webhook]).await
}

async fn pending(database: &Database, webhook: Uuid) -> i64 {
    database.one("select count(*) from orbhook.deliveries_open where webhook_id = $1", &[&webhook]).await
}
