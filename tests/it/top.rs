use orbhook_tests::{Claimer, Database, generic, orbhook_command};
use serde_json::json;

/// Exit codes, as `orbhook top --help` lists them.
const CANNOT_CONNECT: i32 = 10;
const EXTENSION_MISSING: i32 = 11;
const PRIVILEGE_MISSING: i32 = 13;

#[tokio::test]
async fn in_a_pipe_a_reader_gets_one_snapshot() {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/canary");
    config["name"] = json!("Team channel");
    config["retryDelay"] = json!(600);
    database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 4)").await;
    let claimed = claimer.claim(&database, 3).await;
    claimer.answer(&database, &claimed[0], 200, json!({})).await;
    claimer.answer(&database, &claimed[1], 500, json!({})).await;

    let (code, says) = top(&database, "reader").await;
    assert_eq!(code, 0, "{says}");
    assert!(says.starts_with("orbhook top  1 sidecar: by hand\n"), "{says}");
    assert!(
        says.contains(
            "0.07 requests/s, 50.0 % failed, p50 12 ms, p99 12 ms over 30 s; 1 in flight, 3 pending"
        ),
        "{says}"
    );
    let line = says.lines().find(|line| line.starts_with("Team channel")).unwrap();
    let words: Vec<&str> = line.split_whitespace().take(14).collect();
    assert_eq!(words.join(" "), "Team channel failing 0.07 50.0 % 12 ms 12 ms 1 3 0 s", "{says}");
    assert!(!says.contains("canary"), "{says}");
}

#[tokio::test]
async fn without_a_sidecar_it_says_how_to_start_one() {
    let database = Database::new().await;
    let (code, says) = top(&database, "reader").await;
    assert_eq!(code, 0, "{says}");
    assert!(says.contains("no sidecar is running; start one with: orbhook run"), "{says}");
    assert!(says.contains("0 requests/s, - failed, p50 -"), "{says}");
}

#[tokio::test]
async fn who_may_not_look_is_told_whom_to_ask() {
    let database = Database::new().await;
    let (code, says) = top(&database, "sender").await;
    assert_eq!(code, PRIVILEGE_MISSING, "{says}");
    assert!(says.contains("orbhook_grant('<role>', 'reader')"), "{says}");
    database.execute("drop extension orbhook cascade").await;
    let (code, says) = top(&database, "").await;
    assert_eq!(code, EXTENSION_MISSING, "{says}");
    assert!(says.contains("CREATE EXTENSION orbhook"), "{says}");
    let (code, says) = run("postgres://u:canary-4711@127.0.0.1:9/shop").await;
    assert_eq!(code, CANNOT_CONNECT, "{says}");
    assert!(!says.contains("canary-4711"), "{says}");
}

#[tokio::test]
async fn what_is_asked_for_out_of_range_is_refused() {
    let database = Database::new().await;
    for arguments in ["0, 10", "3601, 10", "30, 0", "30, 1001", "null, 10", "30, null"] {
        let refusal = database.refusal(&format!("select orbhook.top({arguments})")).await;
        assert_eq!(refusal.sqlstate, "22023", "{arguments}: {refusal:?}");
        assert!(refusal.hint.contains("orbhook.top(30, 500)"), "{refusal:?}");
    }
}

async fn top(database: &Database, kind: &str) -> (i32, String) {
    run(&database.url(&database.role(kind).await)).await
}

async fn run(url: &str) -> (i32, String) {
    let output = orbhook_command(url).arg("top").output().await.unwrap();
    let says = [output.stdout, output.stderr].map(|stream| String::from_utf8(stream).unwrap()).concat();
    (output.status.code().unwrap(), says)
}
