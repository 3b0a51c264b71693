use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::{fs, process::Output};

use orbhook_tests::{
    DEADLINE, Database, KeyFile, Receiver, Sidecar, SidecarProcess, generic, orbhook_command,
    verify_signature, wait_until,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PLAIN: &str =
    "select count(*) from orbhook.webhook_secrets where key_id is null or value !~ '^sealed:v1:'";

#[tokio::test]
async fn installing_a_key_seals_what_is_there_and_then_nothing_is_stored_plain_by_anybody() {
    let database = Database::new().await;
    let key = KeyFile::new();
    let webhook = database.create_webhook(full("https://example.com/canary-path")).await;
    let stored = "select string_agg(value, ' ') from orbhook.webhook_secrets";
    let before: String = database.one(stored, &[]).await;
    assert!(
        before.contains("canary-path") && before.contains(SIGNING),
        "without a key they are plain: {before}"
    );
    assert_eq!(key_ids(&database, webhook).await, None);

    let installed: String = database.one("select orbhook_install_key($1)", &[&key.public()]).await;
    assert_eq!(installed, key.id());
    assert_eq!(key_ids(&database, webhook).await, Some(vec![key.id()]));

    let second = database.create_webhook(full("https://example.com/canary-path-2")).await;
    database.one::<String>("select orbhook_rotate_secret($1)", &[&second]).await;
    let changes =
        json!({"endpoint": "https://example.com/canary-path-3", "headers": {"X-Key": "canary header 2"}});
    database.rows("select orbhook_update_webhook($1, $2)", &[&second, &changes]).await;
    // An admin's own statements, triggers switched off or not.
    for sql in [
        "update orbhook.webhook_secrets set value = 'canary-direct' where name = 'apiKey'",
        "insert into orbhook.webhook_secrets (webhook_id, name, value)
         select id, 'header.X-Direct', 'canary-direct' from orbhook.webhooks",
        "begin; set local session_replication_role = replica;
         update orbhook.webhook_secrets set value = 'canary-replica' where name = 'header.X-Direct'; commit",
        "begin isolation level serializable; update orbhook.webhook_secrets set value = 'whsec_canary' where name = 'signing'; commit",
    ] {
        database.execute(sql).await;
        assert_eq!(database.one::<i64>(PLAIN, &[]).await, 0, "{sql}");
    }
    let after: String = database.one(stored, &[]).await;
    assert!(!after.contains("canary") && !after.contains(SIGNING), "{after}");
}

#[tokio::test]
async fn a_transaction_that_began_before_the_key_came_stores_nothing_plain_after_it() {
    let database = Database::new().await;
    let key = KeyFile::new();
    let webhook = database.create_webhook(full("https://example.com/")).await;
    let old = database.connect().await;
    old.execute("begin isolation level repeatable read; select count(*) from orbhook.webhooks").await;

    // One that is writing a secret is waited for, and its secret is sealed as well.
    let writing = database.connect().await;
    writing.execute("begin").await;
    let secret = "insert into orbhook.webhook_secrets (webhook_id, name, value) values ($1, 'header.X-A', 'canary') returning 1";
    writing.one::<i32>(secret, &[&webhook]).await;
    let installing = database.connect().await;
    let pid: i32 = installing.one("select pg_backend_pid()", &[]).await;
    let public = key.public();
    let (_, ()) = tokio::join!(
        async { installing.one::<String>("select orbhook_install_key($1)", &[&public]).await },
        async {
            wait_until("the installation to wait", DEADLINE, async || {
                let waits = "select exists (select from pg_locks where pid = $1 and not granted)";
                database.one::<bool>(waits, &[&pid]).await.then_some(())
            })
            .await;
            writing.execute("commit").await;
        }
    );
    assert_eq!(database.one::<i64>(PLAIN, &[]).await, 0);

    old.one::<Uuid>("select orbhook_create_webhook($1)", &[&full("https://example.com/")]).await;
    old.execute("commit").await;
    assert_eq!(database.one::<i64>(PLAIN, &[]).await, 0);

    let refused = old
        .refusal(&format!("begin isolation level repeatable read; select orbhook_install_key('{public}')"))
        .await;
    assert_eq!(refused.sqlstate, "25001", "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_sent_signed_with_its_keys_and_headers() {
    let database = Database::new().await;
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    let webhook = database.create_webhook(full(&receiver.url("/secret-path?token=x"))).await;
    let _sidecar = Sidecar::start_with(&database, |config| config.keys = key.ring()).await;

    database.emit("USER_CREATED", json!({"email": "a@example.com"})).await;
    let first = receiver.requests(1).await.remove(0);
    assert_eq!(first.path, "/secret-path?token=x");
    assert_eq!(first.header("x-key"), Some("canary header"));
    verify_signature(SIGNING, &first).unwrap();

    let next: String = database.one("select orbhook_rotate_secret($1)", &[&webhook]).await;
    database.emit("USER_CREATED", json!({})).await;
    let second = receiver.requests(2).await.remove(1);
    for secret in [SIGNING, next.as_str()] {
        verify_signature(secret, &second).unwrap();
    }

    // Nobody needs the plain text to show or explain what would be sent.
    let shown: Value = database
        .one("select to_jsonb(p) from orbhook_preview($1, 'USER_CREATED', '{}') p", &[&webhook])
        .await;
    assert_eq!(shown["headers"]["X-Key"], "********");
    let explained: String =
        database.one("select outcome from orbhook_explain('USER_CREATED', '{}')", &[]).await;
    assert_eq!(explained, "sent");
    let config: Value = database.one("select config from orbhook.webhook_configs", &[]).await;
    database.rows("select orbhook_update_webhook($1, $2)", &[&webhook, &config]).await;
    database.emit("USER_CREATED", json!({})).await;
    assert_eq!(
        receiver.requests(3).await[2].path,
        "/secret-path?token=x",
        "a masked configuration changes nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_key_nothing_is_sent_the_reason_is_shown_and_it_goes_out_once_the_key_is_there() {
    let database = Database::new().await;
    let (receiver, key, wrong) = (Receiver::start().await, KeyFile::new(), KeyFile::new());
    let plain_receiver = Receiver::start().await;
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    database.create_webhook(full(&receiver.url("/"))).await;
    let sender = database.role("sender").await;
    let event = database.emit("USER_CREATED", json!({})).await;

    for arguments in [vec![], vec!["--key-file", wrong.argument()]] {
        let sidecar = SidecarProcess::start(&database, &arguments).await;
        sidecar.logged("registered").await;
        sidecar.logged(&format!("sealed with key {}", key.id())).await;
        let waits = "select coalesce(next_try, '') from orbhook.delivery_log where event_id = $1";
        let next: String = database.one(waits, &[&event]).await;
        assert!(next.contains(&key.id()), "{next}");
        let held: Option<String> = database.one("select held_by from orbhook.backlog", &[]).await;
        assert!(held.as_deref().unwrap_or_default().contains("--key-file"), "{held:?}");
        // A webhook whose secrets are not sealed with that key is served meanwhile, so the sidecar has looked at both.
        let other = plain_webhook(&database, &plain_receiver).await;
        let before = plain_receiver.count();
        database.emit("USER_LOGIN", json!({})).await;
        plain_receiver.requests(before + 1).await;
        database.rows("select orbhook_delete_webhook($1)", &[&other]).await;
        assert_eq!(sidecar.terminate().await.code(), Some(0));
        let checked = check(&database.url(&sender), &arguments).await;
        assert_eq!(checked.status.code(), Some(16), "{}", text(&checked));
        assert!(text(&checked).contains("--key-file"), "{}", text(&checked));
    }
    assert_eq!(receiver.count(), 0);
    let attempts: i32 =
        database.one("select max(attempts) from orbhook.deliveries where event_id = $1", &[&event]).await;
    assert_eq!(attempts, 0, "no attempt and no retry was used up");

    let _sidecar = SidecarProcess::start(&database, &["--key-file", key.argument()]).await;
    for request in receiver.requests(2).await {
        verify_signature(SIGNING, &request).unwrap();
    }
    let checked = check(&database.url(&sender), &["--key-file", key.argument()]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_without_the_key_does_not_hinder_one_that_has_it() {
    let database = Database::new().await;
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    database.create_webhook(full(&receiver.url("/"))).await;
    let _without = Sidecar::start(&database).await;
    let _with = Sidecar::start_with(&database, |config| config.keys = key.ring()).await;
    for round in 1..=20 {
        database.emit("USER_CREATED", json!({})).await;
        receiver.requests(round).await;
    }
    let attempts: i32 = database.one("select max(attempts) from orbhook.deliveries", &[]).await;
    assert_eq!(attempts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_moved_to_another_webhook_or_name_opens_nothing_and_parks_until_it_is_set_anew() {
    let database = Database::new().await;
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    let mine = database.create_webhook(full(&receiver.url("/mine"))).await;
    let other = database.create_webhook(full(&receiver.url("/other"))).await;
    let swap = "update orbhook.webhook_secrets s
                set value = (select o.value from orbhook.webhook_secrets o where o.webhook_id = $2 and o.name = 'endpoint')
                where s.webhook_id = $1 and s.name = 'endpoint' returning 1";
    database.one::<i32>(swap, &[&mine, &other]).await;
    let sidecar = SidecarProcess::start(&database, &["--key-file", key.argument()]).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    assert_eq!(receiver.requests(1).await[0].path, "/other", "the other one is not affected");
    sidecar.logged("sealed for another webhook").await;
    let waits = "select status, failures, attempts, last_error,
                        (select next_try from orbhook.delivery_log l where l.delivery_id = d.id)
                 from orbhook.deliveries d where event_id = $1 and webhook_id = $2";
    let row = wait_until("the delivery to be parked", DEADLINE, async || {
        database
            .rows(waits, &[&event, &mine])
            .await
            .into_iter()
            .find(|row| row.get::<_, Option<String>>(3).is_some())
    })
    .await;
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1), row.get::<_, i32>(2)), ("pending", 0, 1));
    assert!(row.get::<_, &str>(3).contains("nothing was sent"), "{}", row.get::<_, &str>(3));
    assert!(row.get::<_, &str>(4).contains("orbhook_update_webhook"), "{}", row.get::<_, &str>(4));
    let parked = key_ids(&database, mine).await.unwrap();
    assert!(parked.contains(&"unreadable".to_owned()), "{parked:?}");

    // A test says it at once.
    let test: Uuid = database.one("select orbhook_test_webhook($1)", &[&mine]).await;
    wait_until("the test to fail", DEADLINE, async || {
        let failed = "select exists (select from orbhook.deliveries where id = $1 and status = 'failed' and last_error like 'nothing was sent%')";
        database.one::<bool>(failed, &[&test]).await.then_some(())
    })
    .await;

    let anew = json!({"endpoint": receiver.url("/anew")});
    database.rows("select orbhook_update_webhook($1, $2)", &[&mine, &anew]).await;
    assert_eq!(receiver.requests(2).await[1].path, "/anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_without_a_gap_and_it_is_said_who_still_uses_the_old_one() {
    let database = Database::new().await;
    let (receiver, old, new) = (Receiver::start().await, KeyFile::new(), KeyFile::new());
    database.one::<String>("select orbhook_install_key($1)", &[&old.public()]).await;
    let webhook = database.create_webhook(full(&receiver.url("/"))).await;
    database.one::<String>("select orbhook_rotate_secret($1)", &[&webhook]).await;

    let _sidecar = Sidecar::start_with(&database, |config| config.keys = old.ring_with(&new)).await;
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(1).await;
    database.one::<String>("select orbhook_install_key($1)", &[&new.public()]).await;
    assert_eq!(database.one::<i64>(PLAIN, &[]).await, 0);
    database.emit("USER_CREATED", json!({})).await;
    receiver.requests(2).await;

    let users = "select array_agg(name) from orbhook.webhooks where $1 = any (key_ids)";
    assert_eq!(database.one::<Option<Vec<String>>>(users, &[&old.id()]).await, Some(vec!["test".to_owned()]));
    let url = database.url(&database.role("sender").await);
    let short = reseal(&url, &[&new]).await;
    assert_eq!(short.status.code(), Some(16), "{}", text(&short));
    assert!(text(&short).contains(&old.id()), "{}", text(&short));
    let whole = reseal(&url, &[&new, &old]).await;
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole));
    assert_eq!(database.one::<Option<Vec<String>>>(users, &[&old.id()]).await, None);
    let keys = "select key_id, seals, webhooks from orbhook.keys order by installed_at";
    let keys: Vec<(String, bool, i64)> =
        database.rows(keys, &[]).await.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(keys, [(old.id(), false, 0), (new.id(), true, 1)]);

    let _only_new = Sidecar::start_with(&database, |config| config.keys = new.ring()).await;
    database.emit("USER_CREATED", json!({})).await;
    let request = receiver.requests(3).await.remove(2);
    verify_signature(SIGNING, &request).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_sealed_on_the_client_arrive_and_fit_their_own_webhook_alone() {
    let database = Database::new().await;
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    let webhook = database.create_webhook(generic(&receiver.url("/placeholder"))).await;
    let url = database.url(&database.role("admin").await);
    let endpoint = receiver.url("/sealed/path?x=1");
    let sealed = [
        ("endpoint", seal(&url, webhook, "endpoint", &endpoint, &[]).await),
        ("signingSecret", seal(&url, webhook, "signingSecret", SIGNING, &[]).await),
        (
            "header.X-Key",
            seal("", webhook, "header.X-Key", "canary header", &["--public-key", &key.public()]).await,
        ),
    ];
    let host = receiver.url("/");
    assert!(sealed[0].1.starts_with(&format!("{host}sealed:v1:")), "{}", sealed[0].1);
    let changes =
        json!({"endpoint": sealed[0].1, "signingSecret": sealed[1].1, "headers": {"X-Key": sealed[2].1}});
    database.rows("select orbhook_update_webhook($1, $2)", &[&webhook, &changes]).await;

    let _sidecar = Sidecar::start_with(&database, |config| config.keys = key.ring()).await;
    database.emit("USER_CREATED", json!({})).await;
    let request = receiver.requests(1).await.remove(0);
    assert_eq!(request.path, "/sealed/path?x=1");
    assert_eq!(request.header("x-key"), Some("canary header"));
    verify_signature(SIGNING, &request).unwrap();

    // Given to another webhook, it parks that one.
    let other = database.create_webhook(generic(&receiver.url("/other"))).await;
    database
        .rows("select orbhook_update_webhook($1, $2)", &[&other, &json!({"signingSecret": sealed[1].1})])
        .await;
    database.emit("USER_LOGIN", json!({})).await;
    wait_until("the other webhook to be parked", DEADLINE, async || {
        key_ids(&database, other).await?.contains(&"unreadable".to_owned()).then_some(())
    })
    .await;
    receiver.requests(2).await;
    assert!(receiver.so_far().iter().all(|request| request.path == "/sealed/path?x=1"));
}

#[tokio::test]
async fn what_is_no_key_or_not_sealed_with_one_that_is_installed_is_refused() {
    let database = Database::new().await;
    let (key, stranger) = (KeyFile::new(), KeyFile::new());
    let private = fs::read_to_string(key.path()).unwrap();
    let public = key.public();
    let cut = &public[..public.len() - 1];
    for (wrong, says) in
        [(private.trim(), "private"), (cut, "damaged"), ("whsec_AAAA", "not a key"), ("", "not a key")]
    {
        let refused = database.refusal(&format!("select orbhook_install_key('{wrong}')")).await;
        assert_eq!(refused.sqlstate, "22023", "{refused:?}");
        assert!(refused.message.contains(says), "{refused:?}");
        assert!(wrong.is_empty() || !format!("{refused:?}").contains(wrong), "{refused:?}");
    }
    assert_eq!(database.refusal("select orbhook_install_key(null)").await.sqlstate, "22023");

    database.one::<String>("select orbhook_install_key($1)", &[&public]).await;
    let webhook = database.create_webhook(generic("https://example.com/")).await;
    let sealed = seal("", webhook, "signingSecret", SIGNING, &["--public-key", &stranger.public()]).await;
    for (value, says) in
        [(sealed.as_str(), "not installed"), ("sealed:v1:zzz", "whole"), ("sealed:v1:", "whole")]
    {
        let refused = database
            .refusal(&format!(
                "select orbhook_update_webhook('{webhook}', '{{\"signingSecret\": \"{value}\"}}')"
            ))
            .await;
        assert_eq!(refused.sqlstate, "22023", "{refused:?}");
        assert!(refused.message.contains(says), "{refused:?}");
    }
    // The address of a sealed endpoint is checked all the same: scheme and host stay in clear.
    let session = database.connect().await;
    session.execute("set orbhook.allow_networks = ''").await;
    let endpoint =
        seal("", webhook, "endpoint", "http://169.254.169.254/x", &["--public-key", &public]).await;
    let refused = session
        .refusal(&format!("select orbhook_update_webhook('{webhook}', '{{\"endpoint\": \"{endpoint}\"}}')"))
        .await;
    assert_eq!(refused.sqlstate, "22023", "{refused:?}");
    assert!(refused.message.contains("169.254.169.254"), "{refused:?}");
}

#[tokio::test]
async fn a_private_key_is_written_once_for_its_owner_alone_and_refused_when_others_could_read_it() {
    let database = Database::new().await;
    let path = std::env::temp_dir().join(format!("orbhook-keygen-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let made = orbhook_command("").args(["keygen", file]).output().await.unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let public = String::from_utf8(made.stdout).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = orbhook_command("").args(["keygen", file]).output().await.unwrap();
    assert_eq!(again.status.code(), Some(2), "a key is never overwritten: {}", text(&again));

    database.one::<String>("select orbhook_install_key($1)", &[&public.trim()]).await;
    let url = database.url(&database.role("sender").await);
    assert_eq!(check(&url, &["--key-file", file]).await.status.code(), Some(0));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    for command in ["check", "run"] {
        let refused = orbhook_command(&url).args([command, "--key-file", file]).output().await.unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(text(&refused).contains("chmod 600"), "{}", text(&refused));
    }
    fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn without_a_key_everything_works_and_check_and_each_start_warn() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(full(&receiver.url("/"))).await;
    let checked = check(&database.url(&database.role("sender").await), &[]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert!(text(&checked).contains("WARNING  secrets are stored in plain"), "{}", text(&checked));
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("secrets are stored in plain").await;
    database.emit("USER_CREATED", json!({})).await;
    verify_signature(SIGNING, &receiver.requests(1).await[0]).unwrap();
}

/// A webhook with every kind of secret.
fn full(endpoint: &str) -> Value {
    let mut config = generic(endpoint);
    config["signingSecret"] = json!(SIGNING);
    config["headers"] = json!({"X-Key": "canary header"});
    config
}

/// One whose secrets are in plain although a key is installed, as a superuser can make it.
async fn plain_webhook(database: &Database, receiver: &Receiver) -> Uuid {
    let mut config = generic(&receiver.url("/plain"));
    config["subscribedEvents"] = json!(["USER_LOGIN"]);
    database.execute("alter table orbhook.webhook_secrets disable trigger seal_secret").await;
    let webhook = database.create_webhook(config).await;
    database.execute("alter table orbhook.webhook_secrets enable always trigger seal_secret").await;
    webhook
}

async fn key_ids(database: &Database, webhook: Uuid) -> Option<Vec<String>> {
    database.one("select key_ids from orbhook.webhooks where id = $1", &[&webhook]).await
}

async fn seal(url: &str, webhook: Uuid, secret: &str, value: &str, arguments: &[&str]) -> String {
    let mut child = orbhook_command(url)
        .args(["seal", "--webhook", &webhook.to_string(), "--secret", secret])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{value}\n").as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn reseal(url: &str, keys: &[&KeyFile]) -> Output {
    let files: Vec<&str> = keys.iter().map(|key| key.argument()).collect();
    orbhook_command(url).args(["reseal", "--key-file", &files.join(",")]).output().await.unwrap()
}

async fn check(url: &str, arguments: &[&str]) -> Output {
    orbhook_command(url).arg("check").args(arguments).output().await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
