use std::collections::BTreeSet;
use std::time::Duration;

use orbhook_tests::{Database, Receiver, Sidecar, SqlStorm, generic, wait_until};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

/// In `make hostile-sql` a million.
const STATEMENTS: u64 = 20_000;
const SEED: u64 = 1;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_cannot_be_sent_fails_with_its_reason_and_everything_else_arrives() {
    const EVENTS: i64 = 200;
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut slack = generic(&receiver.url("/slack"));
    slack["providerType"] = json!("SLACK");
    let mut zapier = generic(&receiver.url("/zapier"));
    zapier["providerType"] = json!("ZAPIER");
    for config in [&slack, &zapier, &generic(&receiver.url("/generic"))] {
        database.create_webhook(config.clone()).await;
    }
    let lost = database.create_webhook(generic(&receiver.url("/lost"))).await;
    database
        .execute(&format!(
            "delete from orbhook.webhook_secrets where webhook_id = '{lost}' and name = 'endpoint'"
        ))
        .await;
    let mut random = StdRng::seed_from_u64(SEED);
    let mut poisoned = BTreeSet::new();
    for number in 0..EVENTS {
        if random.random_bool(0.2) {
            poisoned.insert(number);
            // PostgreSQL takes such depths; parsers with a limit refuse them.
            let deep = format!("{}1{}", "{\"a\":".repeat(300), "}".repeat(300));
            database
                .execute(&format!(
                    "select orbhook_emit('USER_ACTION', '{{\"n\": {number}, \"deep\": {deep}}}')"
                ))
                .await;
        } else {
            database.emit("USER_ACTION", json!({"n": number})).await;
        }
    }
    let _sidecar = Sidecar::start(&database).await;
    wait_until("no delivery to be pending", Duration::from_secs(60), async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
    let failed = "select w.name, w.provider_type, (e.payload ->> 'n')::bigint, d.last_error, w.id = $1
                  from orbhook.deliveries d join orbhook.webhooks w on w.id = d.webhook_id join orbhook.events e on e.id = d.event_id
                  where d.status = 'failed' and not e.event_type in ('DELIVERY_FAILED', 'WEBHOOK_DISABLED')";
    let mut failures = BTreeSet::new();
    for row in database.rows(failed, &[&lost]).await {
        let reason: &str = row.get(3);
        assert!(reason.contains("nested") || reason.contains("no endpoint"), "{reason}");
        if !row.get::<_, bool>(4) {
            failures.insert((row.get::<_, String>(1), row.get::<_, i64>(2)));
        }
    }
    // GENERIC passes a payload on as it is, at any depth.
    let expected =
        poisoned.iter().flat_map(|number| [("SLACK".to_owned(), *number), ("ZAPIER".to_owned(), *number)]);
    assert_eq!(failures, expected.collect());
    let arrived = |path: &str| receiver.so_far().iter().filter(|request| request.path == path).count();
    let events = usize::try_from(EVENTS).unwrap();
    // Each failing webhook is reported to the others, as events of their own.
    assert!(arrived("/generic") >= events, "{}", arrived("/generic"));
    assert!(arrived("/slack") >= events - poisoned.len(), "{}", arrived("/slack"));
    assert_eq!(arrived("/lost"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_sql_gets_documented_errors_and_ends_no_backend() {
    let database = Database::new().await;
    SqlStorm::new(SEED).run(&database, STATEMENTS).await.check();
}
