use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use orbhook_tests::{Answer, DEADLINE, Database, Receiver, SidecarProcess, generic, wait_until};
use prometheus_parse::{Sample, Scrape, Value as Metric};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CANARY: &str = "canary-4711";

#[tokio::test]
async fn metrics_say_what_was_sent_what_came_of_it_and_what_waits() {
    let test = Test::start().await;
    test.database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 5)").await;
    test.receiver.requests(10).await;
    let scrape = wait_until("the results to be settled", DEADLINE, async || {
        let scrape = test.scrape().await;
        (one(&scrape, "orbhook_attempts_total", &[("verdict", "failed")]) == Some(5.0)
            && one(&scrape, "orbhook_attempts_total", &[("verdict", "delivered")]) == Some(5.0)
            // Asked of the database just before the counters are read.
            && one(&scrape, "orbhook_webhooks", &[("state", "failing")]) == Some(1.0)
            && one(&scrape, "orbhook_pending_deliveries", &[]) == Some(5.0))
        .then_some(scrape)
    })
    .await;
    for (name, labels, value) in [
        ("orbhook_requests_total", ("outcome", "2xx"), 5.0),
        ("orbhook_requests_total", ("outcome", "4xx"), 5.0),
        ("orbhook_requests_total", ("outcome", "timeout_body"), 0.0),
        ("orbhook_attempts_total", ("verdict", "retry"), 0.0),
        ("orbhook_webhooks", ("state", "ok"), 1.0),
        ("orbhook_webhooks", ("state", "failing"), 1.0),
        ("orbhook_webhooks", ("state", "paused"), 1.0),
        ("orbhook_webhook_pending_deliveries", ("webhook", "waits"), 5.0),
    ] {
        assert_eq!(one(&scrape, name, &[labels]), Some(value), "{name} {labels:?}");
    }
    for (name, value) in [
        ("orbhook_deliveries_claimed_total", 10.0),
        ("orbhook_deliveries_released_total", 0.0),
        ("orbhook_requests_in_flight", 0.0),
        ("orbhook_pending_deliveries", 5.0),
        ("orbhook_sidecars", 1.0),
        ("orbhook_ready", 1.0),
        ("orbhook_database_up", 1.0),
        ("orbhook_request_duration_seconds_count", 10.0),
        ("orbhook_build_info", 1.0),
    ] {
        assert_eq!(one(&scrape, name, &[]), Some(value), "{name}");
    }
    let waiting =
        |webhook: &str| one(&scrape, "orbhook_webhook_oldest_waiting_seconds", &[("webhook", webhook)]);
    assert_eq!(waiting("waits"), Some(0.0), "paused: nobody waits for it");
}

#[tokio::test]
async fn metrics_hold_no_secret_and_as_many_labels_as_was_said() {
    let test = Test::start().await;
    let many = format!(
        "select orbhook_create_webhook(jsonb_build_object('name', 'many ' || n, 'providerType', 'GENERIC', 'active', true,
             'endpoint', 'http://127.0.0.1:9/{CANARY}', 'subscribedEvents', jsonb_build_array('USER_LOGIN')))
         from generate_series(1, 150) n; update orbhook.webhooks set paused = true where name like 'many%';
         select orbhook_emit('USER_LOGIN', '{{\"email\": \"{CANARY}\"}}')"
    );
    test.database.execute(&many).await;
    let text = test.get().await;
    assert!(!text.contains(CANARY), "{text}");
    let scrape = parse(&text);
    let listed = scrape.samples.iter().filter(|sample| sample.metric == "orbhook_webhook_pending_deliveries");
    assert_eq!(listed.count(), 100);
    let names: BTreeSet<&str> =
        scrape.samples.iter().flat_map(|sample| sample.labels.keys()).map(String::as_str).collect();
    let known =
        ["connection", "outcome", "state", "statement", "verdict", "version", "webhook", "webhook_id"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}

#[tokio::test]
async fn a_name_with_quotes_and_backslashes_stays_one_label() {
    let test = Test::start().await;
    test.database
        .execute(r#"update orbhook.webhooks set name = 'said "so" \ here' where name = 'waits'"#)
        .await;
    test.database.execute("select orbhook_emit('USER_CREATED', '{}')").await;
    wait_until("the webhook to be listed", DEADLINE, async || {
        test.get().await.contains(r#"webhook="said \"so\" \\ here"} "#).then_some(())
    })
    .await;
}

#[tokio::test]
async fn names_follow_the_conventions_of_prometheus() {
    let test = Test::start().await;
    test.database.execute("select orbhook_emit('USER_CREATED', '{}')").await;
    let text = wait_until("every metric to be there", DEADLINE, async || {
        let text = test.get().await;
        text.contains("statement=\"settle\"").then_some(text)
    })
    .await;
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(types.len() >= 15, "{types:?}");
    for (name, kind) in &types {
        assert!(name.starts_with("orbhook_") || *name == "process_start_time_seconds", "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} says what it is");
        assert!(
            !["milliseconds", "_ms", "minutes", "percent"].iter().any(|unit| name.contains(unit)),
            "{name}: base units"
        );
        assert!(!name.ends_with("_total"), "OpenMetrics: the family {name} has no suffix, its counters do");
        assert!(["counter", "gauge", "histogram", "info"].contains(kind), "{name} {kind}");
        if *kind == "counter" {
            assert!(text.contains(&format!("\n{name}_total")), "{name}");
        }
        if *kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name}");
        }
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn every_metric_of_the_dashboard_and_of_the_alerts_is_exported() {
    let test = Test::start().await;
    test.database.execute("select orbhook_emit('USER_CREATED', '{}')").await;
    let exported = wait_until("every metric to be there", DEADLINE, async || {
        let scrape = test.scrape().await;
        let mut names: BTreeSet<String> = BTreeSet::new();
        for sample in &scrape.samples {
            names.insert(sample.metric.clone());
            if matches!(sample.value, Metric::Histogram(_)) {
                names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", sample.metric)));
            }
        }
        names.contains("orbhook_statement_duration_seconds_bucket").then_some(names)
    })
    .await;
    let mut asked = Vec::new();
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    collect(&dashboard, "expr", &mut asked);
    let of_dashboard = asked.len();
    assert!(of_dashboard >= 10, "{asked:?}");
    let alerts: Value = serde_saphyr::from_str(&read("alerts.yml")).unwrap();
    collect(&alerts, "expr", &mut asked);
    assert_eq!(asked.len() - of_dashboard, 3, "three alerts");
    for expression in &asked {
        let named = metrics_of(expression);
        assert!(!named.is_empty(), "{expression}");
        for name in named {
            assert!(exported.contains(&name), "{name} in {expression}\nexported: {exported:?}");
        }
    }
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        for key in ["summary", "description"] {
            assert!(rule["annotations"][key].as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
        assert!(rule["for"].is_string() && rule["labels"]["severity"].is_string(), "{rule}");
    }
}

/// Two webhooks that get everything but USER_LOGIN, one of which answers 400, and one that is paused.
struct Test {
    database: Database,
    receiver: Receiver,
    address: String,
    _sidecar: SidecarProcess,
}

impl Test {
    async fn start() -> Test {
        let database = Database::new().await;
        let receiver = Receiver::start().await;
        receiver.answer("/bad", Answer::status(400));
        for (name, path) in [("good", "/good"), ("bad", "/bad"), ("waits", "/paused")] {
            let mut config = generic(&receiver.url(path));
            config["name"] = json!(name);
            config["maxRetries"] = json!(0);
            config["subscribedEvents"] = json!(["USER_CREATED"]);
            config["signingSecret"] = json!("whsec_Y2FuYXJ5LTQ3MTFjYW5hcnktNDcxMWNhbmFyeS00NzEx");
            config["headers"] = json!({"X-Key": CANARY});
            database.create_webhook(config).await;
        }
        database.execute("update orbhook.webhooks set paused = true where name = 'waits'").await;
        let sidecar = SidecarProcess::start(&database, &["--admin-listen", "127.0.0.1:0"]).await;
        sidecar.logged("registered").await;
        let log = sidecar.log();
        let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
        Test { database, receiver, address: address.to_owned(), _sidecar: sidecar }
    }

    async fn get(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    }

    async fn scrape(&self) -> Scrape {
        parse(&self.get().await)
    }
}

fn parse(text: &str) -> Scrape {
    Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

/// The value of the one sample of that name with these labels among its own.
fn one(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &&Sample| {
        sample.metric == name && labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value))
    };
    let mut found = scrape.samples.iter().filter(fits);
    let value = match &found.next()?.value {
        Metric::Counter(value) | Metric::Gauge(value) | Metric::Untyped(value) => *value,
        Metric::Histogram(_) | Metric::Summary(_) => return None,
    };
    assert!(found.next().is_none(), "{name} {labels:?} is not alone");
    Some(value)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar").join(name)).unwrap()
}

/// Every string under that key, however deep.
fn collect(value: &Value, key: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                match value {
                    Value::String(text) if name == key => into.push(text.clone()),
                    other => collect(other, key, into),
                }
            }
        }
        Value::Array(array) => array.iter().for_each(|value| collect(value, key, into)),
        _ => {}
    }
}

fn metrics_of(expression: &str) -> BTreeSet<String> {
    expression
        .split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(|word| word.starts_with("orbhook_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}
