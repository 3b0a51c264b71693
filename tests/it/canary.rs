use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use orbhook_tests::{
    Answer, Canaries, Cluster, Database, KeyFile, Receiver, generic, orbhook_command, verify_signature,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_postgres::{AsyncMessage, NoTls};
use uuid::Uuid;

/// Everything a server can be told to write down.
const TALKATIVE: [(&str, &str); 9] = [
    ("log_statement", "all"),
    ("log_min_duration_statement", "0"),
    ("log_connections", "on"),
    ("shared_preload_libraries", "pg_stat_statements,auto_explain"),
    ("pg_stat_statements.track", "all"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_nested_statements", "on"),
    ("auto_explain.log_triggers", "on"),
];

const TOKEN: &str = "canary-admin-token-0d6f7a";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_came_sealed_is_in_no_sink_however_talkative_the_server_is() {
    let verbose = [("auto_explain.log_verbose", "on"), ("log_parameter_max_length", "-1")];
    let settings: Vec<_> = TALKATIVE.into_iter().chain(verbose).collect();
    let found = search(&settings, Way::SealedByTheClient).await;
    assert!(found.iter().all(|(_, hits)| hits.is_empty()), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_came_as_a_bind_parameter_is_in_no_sink_unless_parameters_are_logged() {
    // The last one since PostgreSQL 16; 15 has no such setting, and says so.
    let quiet = [
        ("auto_explain.log_verbose", "off"),
        ("log_parameter_max_length", "0"),
        ("auto_explain.log_parameter_max_length", "0"),
    ];
    let settings: Vec<_> = TALKATIVE.into_iter().chain(quiet).collect();
    let found = search(&settings, Way::BindParameters).await;
    assert!(found.iter().all(|(_, hits)| hits.is_empty()), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_and_with_parameters_logged_the_same_search_finds_them() {
    let verbose = [("auto_explain.log_verbose", "on"), ("log_parameter_max_length", "-1")];
    let settings: Vec<_> = TALKATIVE.into_iter().chain(verbose).collect();
    let found = search(&settings, Way::Plain).await;
    for sink in
        ["the server's log", "pg_dump", "the server's files, WAL among them", "every row, as superuser"]
    {
        let hits = &found.iter().find(|(name, _)| *name == sink).unwrap().1;
        assert!(hits.len() >= 3, "{sink}: a search that finds nothing here proves nothing: {hits:?}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    BindParameters,
    SealedByTheClient,
}

/// Secrets of every kind go in, deliveries go out, fail, are retried, previewed, explained; then all sinks are searched.
#[allow(clippy::print_stdout, reason = "the figures")]
async fn search(settings: &[(&str, &str)], way: Way) -> Vec<(&'static str, Vec<String>)> {
    let cluster = Cluster::start(settings);
    let database = Database::on(&cluster).await;
    database.execute("create extension pg_stat_statements").await;
    let notified = listen(&database).await;
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    let signing_bytes = *b"canary signing key 7c1f9e0b4d2a8";
    let signing = format!("whsec_{}", BASE64_STANDARD.encode(signing_bytes));
    let (path, header, api_key) =
        ("canary-path-91c2e7f04ab8", "canary-header-5b0e77c9d1", "canary-api-key-3e8d1fa6");
    receiver.answer_next(&format!("/{path}"), [Answer::status(503), Answer::status(200)]);
    if way != Way::Plain {
        database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    }

    // Two webhooks, since no provider takes every kind of secret.
    let mut config = generic(&receiver.url(&format!("/{path}")));
    config["retryDelay"] = json!(0);
    let mut zapier = generic(&receiver.url(&format!("/{path}/zapier")));
    zapier["providerType"] = json!("ZAPIER");
    let secrets = json!({"signingSecret": signing, "headers": {"X-Key": header}});
    let zapier_secrets = json!({"providerSpecificConfig": {"api_key": api_key}});
    let (webhook, other) = match way {
        Way::SealedByTheClient => {
            let placeholder = receiver.url("/placeholder");
            let (mut first, mut second) = (config.clone(), zapier.clone());
            first["endpoint"] = json!(placeholder);
            second["endpoint"] = json!(placeholder);
            second["providerSpecificConfig"] = json!({"api_key": "placeholder"});
            let ids = (database.create_webhook(first).await, database.create_webhook(second).await);
            let url = database.url(&database.role("admin").await);
            let seal = |webhook: Uuid, name: &'static str, value: String| {
                let url = url.clone();
                async move { seal(&url, webhook, name, &value).await }
            };
            let sealed = json!({
                "endpoint": seal(ids.0, "endpoint", text(&config["endpoint"])).await,
                "signingSecret": seal(ids.0, "signingSecret", signing.clone()).await,
                "headers": {"X-Key": seal(ids.0, "header.X-Key", header.to_owned()).await},
            });
            // As a literal, which every log shows.
            database.execute(&format!("select orbhook_update_webhook('{}', '{sealed}')", ids.0)).await;
            let sealed = json!({
                "endpoint": seal(ids.1, "endpoint", text(&zapier["endpoint"])).await,
                "providerSpecificConfig": {"api_key": seal(ids.1, "api_key", api_key.to_owned()).await},
            });
            database.execute(&format!("select orbhook_update_webhook('{}', '{sealed}')", ids.1)).await;
            ids
        }
        Way::Plain | Way::BindParameters => {
            merge(&mut config, &secrets);
            merge(&mut zapier, &zapier_secrets);
            let ids = (database.create_webhook(config.clone()).await, database.create_webhook(zapier).await);
            database.rows("select orbhook_update_webhook($1, $2)", &[&ids.0, &secrets]).await;
            ids
        }
    };

    let password = password(&database);
    let sidecar = Talkative::start(&database, (way != Way::Plain).then_some(&key)).await;
    for event_type in ["USER_CREATED", "USER_LOGIN"] {
        database.emit(event_type, json!({"email": "a@example.com"})).await;
    }
    let requests = receiver.requests(5).await;
    let first = requests.iter().find(|request| request.path == format!("/{path}")).expect("it arrives");
    verify_signature(&signing, first).unwrap();
    assert_eq!(first.header("x-key"), Some(header));

    let rotated: String = database.one("select orbhook_rotate_secret($1)", &[&webhook]).await;
    database.emit("USER_LOGOUT", json!({})).await;
    let requests = receiver.requests(7).await;
    let last = requests.iter().rev().find(|request| request.path == format!("/{path}")).expect("it arrives");
    verify_signature(&rotated, last).unwrap();
    let mut errors = String::new();
    for sql in [
        format!("select orbhook_preview('{webhook}', 'USER_CREATED', '[]')"),
        format!("select orbhook_update_webhook('{webhook}', '{{\"maxRetries\": -1}}')"),
        format!("update orbhook.webhooks set endpoint_host = 'a/b' where id = '{other}'"),
        format!("update orbhook.webhook_secrets set name = 'nothing' where webhook_id = '{webhook}'"),
        format!("update orbhook.webhook_secrets set webhook_id = '{other}' where webhook_id = '{webhook}'"),
    ] {
        errors.push_str(&format!("{:?}", database.connect().await.batch_execute(&sql).await.unwrap_err()));
    }
    database.rows("select * from orbhook_explain('USER_CREATED', '{}')", &[]).await;
    database.rows("select * from orbhook_preview($1, 'USER_CREATED', '{}')", &[&webhook]).await;

    let mut values: Vec<(&str, &[u8])> = vec![
        ("the endpoint's path", path.as_bytes()),
        ("the signing secret", &signing.as_bytes()["whsec_".len()..]),
        ("the signing key's bytes", &signing_bytes),
        ("the header", header.as_bytes()),
        ("the provider's key", api_key.as_bytes()),
        ("the secret made by a rotation", &rotated.as_bytes()["whsec_".len()..]),
        ("the database's password", password.as_bytes()),
        ("the admin token", TOKEN.as_bytes()),
    ];
    let private = fs::read_to_string(key.path()).unwrap();
    let private = private.trim().rsplit(':').next().unwrap();
    values.push(("the private key", private.as_bytes()));
    let canaries = Canaries::new(&values);

    let mut found: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut look = |sink, content: &str| found.push((sink, canaries.find(content.as_bytes())));
    look("NOTIFY payloads", &notified.lock().unwrap().join("\n"));
    look("error messages", &errors);
    look("pg_stat_statements", &rows(&database, "select query from pg_stat_statements").await);
    look("pg_stat_activity", &rows(&database, "select a::text from pg_stat_activity a").await);
    look("every row, as superuser", &everything(&database, None).await);
    let reader = database.role("reader_payload").await;
    look("every view and table of a reader", &everything(&database, Some(&reader)).await);
    let attempts =
        "select a::text from orbhook.attempts a union all select l::text from orbhook.delivery_log l";
    look("attempts and the delivery log", &rows(&database, attempts).await);
    look("the sidecar's command line", &sidecar.proc("cmdline"));
    look("the sidecar's environment", &sidecar.proc("environ"));
    for (sink, request) in [
        ("/healthz", "GET /healthz"),
        ("/readyz", "GET /readyz"),
        ("/metrics", "GET /metrics"),
        ("GraphQL errors", "POST /graphql"),
    ] {
        look(sink, &sidecar.ask(request, webhook).await);
    }
    let dump = cluster.run("pg_dump", &["--dbname", database.name()]);
    assert!(dump.status.success());
    look("pg_dump", &String::from_utf8_lossy(&dump.stdout));
    look("the sidecar's log at trace", &sidecar.stop().await);
    look("the server's log", &cluster.log());
    database.execute("checkpoint").await;
    let (in_files, bytes) = canaries.find_in_files(&cluster.data_directory());
    found.push(("the server's files, WAL among them", in_files));
    println!(
        "{} sinks, {} forms of {} canaries, {bytes} bytes of files",
        found.len(),
        canaries.forms(),
        values.len()
    );
    found
}

/// The sidecar, told to log all it can, with its database and its token in files.
struct Talkative {
    child: Child,
    log: PathBuf,
    files: [PathBuf; 2],
    admin: String,
}

impl Talkative {
    async fn start(database: &Database, key: Option<&KeyFile>) -> Talkative {
        let base = std::env::temp_dir().join(format!("orbhook-canary-{:016x}", rand::random::<u64>()));
        let file = |suffix: &str| base.with_extension(suffix);
        let files = [file("url"), file("token")];
        fs::write(&files[0], database.cluster().tcp_url(database.name())).unwrap();
        fs::write(&files[1], TOKEN).unwrap();
        let log = file("log");
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let mut command: Command = orbhook_command("");
        command.env_remove("DATABASE_URL").args(["run", "--log-level", "trace", "--admin-listen", &admin]);
        command.arg("--database-url-file").arg(&files[0]).arg("--admin-token-file").arg(&files[1]);
        if let Some(key) = key {
            command.arg("--key-file").arg(key.path());
        }
        let output = File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output).kill_on_drop(true);
        Talkative { child: command.spawn().unwrap(), log, files, admin }
    }

    fn proc(&self, what: &str) -> String {
        let pid = self.child.id().unwrap();
        let content = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{what}")).unwrap()).into_owned();
        assert!(!content.is_empty());
        content
    }

    async fn ask(&self, request: &str, webhook: Uuid) -> String {
        let body = format!(
            "{{\"query\": \"mutation {{ testWebhookConfiguration(id: \\\"{webhook}\\\") nothing }}\"}}"
        );
        let wire = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.admin,
            body.len()
        );
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        stream.write_all(wire.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        answer
    }

    async fn stop(mut self) -> String {
        self.child.kill().await.unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(log.contains("orbhook starts"), "{log}");
        log
    }
}

impl Drop for Talkative {
    fn drop(&mut self) {
        for file in self.files.iter().chain([&self.log]) {
            let _ = fs::remove_file(file);
        }
    }
}

/// Everything that is notified in the database from now on.
async fn listen(database: &Database) -> Arc<Mutex<Vec<String>>> {
    let (client, mut connection) = tokio_postgres::connect(&database.url("postgres"), NoTls).await.unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                hearing.lock().unwrap().push(format!("{notification:?}"));
            }
        }
    });
    client.batch_execute("listen orbhook").await.unwrap();
    // As long as the test, on its own task.
    tokio::spawn(async move {
        let _client = client;
        std::future::pending::<()>().await;
    });
    heard
}

/// Each row of all that a role may read in schema orbhook, as text.
async fn everything(database: &Database, role: Option<&str>) -> String {
    let session = match role {
        Some(role) => database.connect_as(role).await,
        None => database.connect().await,
    };
    let relations = session
        .rows(
            "select format('select concat_ws('' '', %s) from %s as x', string_agg(format('to_jsonb(x.%I)', a.attname), ', '), c.oid::regclass)
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             where c.relnamespace = 'orbhook'::regnamespace and c.relkind in ('r', 'p', 'v')
               and has_column_privilege(c.oid, a.attnum, 'select')
             group by c.oid",
            &[],
        )
        .await;
    assert!(relations.len() > 10, "{role:?} reads {}", relations.len());
    let mut all = String::new();
    for relation in relations {
        for row in session.rows(relation.get::<_, &str>(0), &[]).await {
            all.push_str(&row.get::<_, Option<String>>(0).unwrap_or_default());
        }
    }
    all
}

async fn rows(database: &Database, query: &str) -> String {
    let rows = database.rows(query, &[]).await;
    assert!(!rows.is_empty(), "{query}");
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default() + "\n").collect()
}

async fn seal(url: &str, webhook: Uuid, name: &str, value: &str) -> String {
    let mut child = orbhook_command(url)
        .args(["seal", "--webhook", &webhook.to_string(), "--secret", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(value.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn password(database: &Database) -> String {
    let url = database.cluster().tcp_url(database.name());
    url.split_once("postgres:").unwrap().1.split_once('@').unwrap().0.to_owned()
}

fn merge(config: &mut Value, more: &Value) {
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
