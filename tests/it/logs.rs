use orbhook_tests::{Answer, Database, Receiver, SidecarProcess, generic};
use serde_json::{Value, json};

#[tokio::test]
async fn each_failed_attempt_and_each_failed_delivery_is_one_line_with_fields() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    receiver.answer("/canary-path", Answer::status(500));
    let mut config = generic(&receiver.url("/canary-path"));
    config["retryDelay"] = json!(0);
    config["maxRetries"] = json!(1);
    config["headers"] = json!({"X-Key": "canary-header"});
    let webhook = database.create_webhook(config).await;
    let sidecar = SidecarProcess::start(&database, &["--log-format", "json"]).await;
    database.emit("USER_CREATED", json!({"email": "canary-payload"})).await;
    sidecar.logged("delivery ended without success").await;

    let log = sidecar.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let delivery: String =
        database.one("select id::text from orbhook.deliveries where status = 'failed'", &[]).await;
    let about: Vec<&Value> = lines.iter().filter(|line| line.to_string().contains(&delivery)).collect();
    let said: Vec<(&str, i64, &str)> = about
        .iter()
        .map(|line| {
            assert_eq!(line["webhook"], webhook.to_string(), "{line}");
            assert!(line["reason"].as_str().unwrap().contains("500"), "{line}");
            (
                line["level"].as_str().unwrap(),
                line["attempt"].as_i64().unwrap(),
                line["status"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(said, [("INFO", 1, "pending"), ("WARN", 2, "failed")], "{log}");
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test]
async fn a_server_that_stays_away_is_said_once_and_not_by_each_connection_at_every_try() {
    // Nobody listens on port 9 of the loopback address.
    let url = "postgres://u:canary-4711@127.0.0.1:9/shop";
    let mut child = orbhook_tests::orbhook_command(url)
        .args(["run", "--log-format", "json"])
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().unwrap()));
    let mut warnings = 0;
    let watched = std::time::Instant::now();
    while watched.elapsed() < std::time::Duration::from_secs(5) {
        let wait = std::time::Duration::from_secs(5).saturating_sub(watched.elapsed());
        let Ok(Ok(Some(line))) = tokio::time::timeout(wait, lines.next_line()).await else { break };
        assert!(!line.contains("canary"), "{line}");
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["level"] == "WARN" {
            assert!(line["error"].as_str().unwrap().contains("127.0.0.1:9"), "{line}");
            assert!(line["hint"].as_str().unwrap().contains("DATABASE_URL"), "{line}");
            warnings += 1;
        }
    }
    assert_eq!(warnings, 1, "a dozen tries of two connections, and one line");
}
