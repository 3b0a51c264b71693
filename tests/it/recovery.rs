//! A receiver that was gone is not run over when it comes back.

use std::time::Duration;

use orbhook_tests::{
    Answer, Claimer, Database, Receiver, Sidecar, answered, generic, most_within, wait_until,
};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_gets_no_more_at_once_than_it_ever_would() {
    const WEBHOOKS: usize = 20;
    const EVENTS: usize = 15;
    const IN_FLIGHT_MAX: usize = 2;
    const CONCURRENCY: usize = 24;
    /// An answer takes this long, so requests that arrive within such a span are in flight together.
    const HELD: Duration = Duration::from_millis(60);

    let database = Database::new().await;
    let gone = Receiver::start().await;
    let port = gone.address().port();
    for number in 0..WEBHOOKS {
        let mut config = generic(&gone.url(&format!("/{number}")));
        config["maxInFlight"] = json!(IN_FLIGHT_MAX);
        config["retryDelay"] = json!(3);
        config["maxRetries"] = json!(100);
        database.create_webhook(config).await;
    }
    drop(gone);
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = CONCURRENCY).await;
    database
        .execute(&format!("select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {EVENTS})"))
        .await;
    wait_until("every delivery to have failed", DEADLINE, async || {
        let failed = "select count(*) = count(*) filter (where failures > 0) from orbhook.deliveries_open";
        database.one::<bool>(failed, &[]).await.then_some(())
    })
    .await;
    let refused =
        "select count(*) from orbhook.attempts where error_class is distinct from 'connection_refused'";
    assert_eq!(database.one::<i64>(refused, &[]).await, 0);

    let back = Receiver::start_at(port).await;
    for number in 0..WEBHOOKS {
        back.answer(&format!("/{number}"), Answer::status(200).after(HELD));
    }
    let requests = back.requests_within(WEBHOOKS * EVENTS, DEADLINE).await;
    wait_until("everything to be delivered", DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status <> 'delivered')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
    assert_eq!(back.count(), WEBHOOKS * EVENTS, "each once");
    let at_once = most_within(&requests, HELD);
    assert!(at_once <= CONCURRENCY, "{at_once} at once");
    for number in 0..WEBHOOKS {
        let path = format!("/{number}");
        let of_one: Vec<_> = requests.iter().filter(|request| request.path == path).cloned().collect();
        let at_once = most_within(&of_one, HELD);
        assert!(at_once <= IN_FLIGHT_MAX, "{path}: {at_once} at once");
    }
}

#[tokio::test]
async fn what_failed_in_one_moment_is_tried_again_spread_over_a_tenth_of_the_wait() {
    const DELIVERIES: i32 = 300;
    const WAIT_SECONDS: f64 = 1_000.0;

    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["retryDelay"] = json!(WAIT_SECONDS);
    config["maxInFlight"] = json!(1_000);
    database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    database
        .execute(&format!(
            "select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {DELIVERIES})"
        ))
        .await;
    let mut claimed = Vec::new();
    loop {
        let more = claimer.claim(&database, DELIVERIES).await;
        if more.is_empty() {
            break;
        }
        claimed.extend(more);
    }
    let results: Vec<_> = claimed.iter().map(|claimed| answered(claimed, 500, json!({}))).collect();
    claimer.settle(&database, json!(results)).await;

    let select = "select extract(epoch from due_at - min(due_at) over ())::float8 from orbhook.deliveries_open order by 1";
    let later: Vec<f64> = database.rows(select, &[]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(later.len(), claimed.len());
    let width = WAIT_SECONDS / 10.0;
    assert!(later.iter().all(|later| *later <= width), "{later:?}");
    // Evenly: each tenth of the span holds some 30 of 300. None holds twice that, but once in millions of runs.
    for tenth in 0..10 {
        let (from, to) = (width / 10.0 * f64::from(tenth), width / 10.0 * f64::from(tenth + 1));
        let within = later.iter().filter(|later| (from..to).contains(*later)).count();
        assert!((5..=60).contains(&within), "{within} between {from} s and {to} s");
    }
}
