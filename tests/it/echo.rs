use std::time::Duration;

use orbhook_tests::{Answer, Database, Receiver, SidecarProcess, generic, wait_until};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);

const PATH: &str = "/services/T0CANARY0/B0CANARY0/pathcanarypathcanary";
const KEY: &str = "keycanary-0123456789";

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_repeats_the_request_puts_no_secret_into_records_views_or_logs() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let url = receiver.url(PATH);
    let echo = format!("no route for POST {PATH}; headers: Authorization: Bearer {KEY}; url {url}");
    receiver.answer(PATH, Answer::status(302).header("location", &url).body(echo));
    let mut config = generic(&url);
    config["headers"] = json!({"X-Key": KEY});
    config["maxRetries"] = json!(0);
    database.create_webhook(config).await;
    let mut operator = generic(&receiver.url("/operator"));
    operator["subscribedEvents"] = json!(["DELIVERY_FAILED"]);
    database.create_webhook(operator).await;
    let sidecar = SidecarProcess::start(&database, &["--log-level", "trace"]).await;
    database.emit("USER_CREATED", json!({})).await;
    wait_until("the report to arrive", DEADLINE, async || {
        receiver.so_far().iter().any(|request| request.path == "/operator").then_some(())
    })
    .await;

    let mut read = Vec::new();
    for relation in
        ["attempts", "deliveries", "delivery_log", "dead_letters", "webhook_health", "webhooks", "events"]
    {
        let rows = format!("select coalesce(string_agg(r::text, ' '), '') from orbhook.{relation} r");
        read.push((relation.to_owned(), database.one::<String>(&rows, &[]).await));
    }
    assert!(read[0].1.contains("no route for POST ***"), "the rest of the answer is there: {}", read[0].1);
    let report = receiver.so_far().into_iter().find(|request| request.path == "/operator").unwrap();
    read.push(("the report".to_owned(), String::from_utf8_lossy(&report.body).into_owned()));
    read.push(("the sidecar's log".to_owned(), sidecar.log()));
    read.push(("the server's log".to_owned(), database.cluster().log()));
    for (place, text) in read {
        for canary in ["pathcanary", "keycanary"] {
            assert!(!text.contains(canary), "{canary} is in {place}: {text}");
        }
    }
}
