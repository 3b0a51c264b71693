use std::path::PathBuf;
use std::sync::Arc;

use orbhook_tests::{
    Answer, Cluster, DEADLINE, Database, KeyFile, Receiver, Sidecar, SidecarProcess, generic,
    verify_signature, wait_until,
};
use serde_json::json;
use tokio_postgres::Client;

const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const TABLES: &str = "create schema app;
    create table app.users (id bigint primary key, email text, status text, gone text, phone text);
    create table app.notes (id bigint primary key, body text);
    alter table app.users drop column gone;
    insert into app.users select n, n || '@example.com', 'active' from generate_series(1, 100) n;
    insert into app.notes select n, 'note' from generate_series(1, 100) n;
    select from orbhook_watch('users', 'app.users');
    alter table app.users enable always trigger orbhook_insert";

/// All that a dump takes along. Registrations (instances) stay behind, and so does how webhooks were doing (webhook_state).
const TRAVELS: &[(&str, &str)] = &[
    ("webhooks", "select w::text from orbhook.webhooks w"),
    ("secrets", "select s::text from orbhook.webhook_secrets s"),
    ("keys", "select k::text from orbhook.sealing_keys k"),
    ("environment", "select e::text from orbhook.environment e"),
    ("event types", "select t::text from orbhook.event_types t"),
    ("events", "select e::text from orbhook.events e"),
    ("idempotency keys", "select k::text from orbhook.event_keys k"),
    ("deliveries", "select tableoid::regclass || d::text from orbhook.deliveries d"),
    ("attempts", "select tableoid::regclass || a::text from orbhook.attempts a"),
    ("periods", "select p::text from orbhook.periods p"),
    ("retention", "select r::text from orbhook.retention r"),
    ("what is gone", "select t::text from orbhook.thinned t"),
    ("replays", "select r::text from orbhook.replays r"),
    ("watches", "select target || source || mapping || resolved || coalesce(broken::text, '') from orbhook.watches"),
    ("timers", "select t::text from orbhook.watch_timers t"),
    ("losses", "select l::text from orbhook.watch_losses l"),
    ("grants", "select g::text from orbhook.grants g"),
    ("subscriptions", "select s::text from orbhook.subscriptions s"),
    ("states", "select webhook_id::text from orbhook.webhook_state"),
    ("triggers", "select pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'app.users'::regclass"),
    ("partitions", "select inhrelid::regclass || ' of ' || inhparent::regclass || pg_get_expr(c.relpartbound, c.oid)
                    from pg_inherits join pg_class c on c.oid = inhrelid where c.relnamespace = 'orbhook'::regnamespace"),
    ("rights", "select p.oid::regprocedure || coalesce(p.proacl::text, '') from pg_proc p
                where p.pronamespace = 'orbhook'::regnamespace or p.proname like 'orbhook\\_%'"),
    ("users", "select u::text from app.users u"),
];

/// How a dump is made and brought back.
#[derive(Clone, Copy, Debug)]
enum Format {
    Plain,
    Custom,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restored_into_a_new_server_differs_in_nothing_and_stays_silent_until_it_is_taken_over() {
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    let source = lived_in(&receiver, &key).await;
    let sent = receiver.count();
    for format in [Format::Plain, Format::Custom] {
        let target = Cluster::start(&[]);
        let roles: String = source
            .one("select string_agg(format('create role %I login', rolname), '; ') from pg_roles where starts_with(rolname, current_database())", &[])
            .await;
        target.connect("postgres").await.batch_execute(&roles).await.unwrap();
        let copy = restore(&source, &target, format, &[]).await;
        let original = source.connect().await;
        let mut differences = Vec::new();
        for (what, query) in TRAVELS {
            let (was, is) = (lines(&original, query).await, lines(&copy, query).await);
            assert!(!was.is_empty(), "there are no {what}, so nothing is shown about them");
            differences
                .extend(was.iter().filter(|line| !is.contains(line)).map(|line| format!("{what} -{line}")));
            differences
                .extend(is.iter().filter(|line| !was.contains(line)).map(|line| format!("{what} +{line}")));
            assert_eq!(was.len(), is.len(), "{what}");
        }
        assert!(differences.is_empty(), "{format:?}: {differences:#?}");
        let (was, is) = (schema(source.cluster(), source.name()), schema(&target, "restored"));
        assert_eq!(was, is, "{format:?}: the schema differs");

        let database = Database::existing(&target, "restored");
        let sidecar = SidecarProcess::start(&database, &["--key-file", key.argument()]).await;
        sidecar.logged("nothing is sent from here").await;
        assert_eq!(receiver.count(), sent, "{format:?}: sent by a copy");
        drop(sidecar);
    }

    // What was pending goes out, signed, and the watch goes on.
    let target = Cluster::start(&[]);
    let _copy = restore(&source, &target, Format::Custom, &["--no-privileges"]).await;
    let database = Database::existing(&target, "restored");
    database.one::<i64>("select orbhook_takeover('default', 'send')", &[]).await;
    let _sidecar = Sidecar::start_with(&database, |config| config.keys = key.ring()).await;
    for request in receiver.requests(sent + 2).await.iter().skip(sent) {
        verify_signature(SIGNING, request).unwrap();
    }
    database.execute("insert into app.users (id, email) values (1000, 'new@example.com')").await;
    receiver.requests(sent + 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_its_data_works() {
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    let source = lived_in(&receiver, &key).await;
    let sent = receiver.count();
    let target = Cluster::start(&[]);
    let _copy = restore(&source, &target, Format::Plain, &["--schema-only", "--no-privileges"]).await;
    let database = Database::existing(&target, "restored");
    assert_eq!(database.one::<i64>("select count(*) from orbhook.webhooks", &[]).await, 0);
    // The triggers are there and their watch is not: rows are written, and the loss is counted.
    database.execute("insert into app.users (id) values (1)").await;
    assert!(database.one::<i64>("select count(*) from orbhook.watch_losses", &[]).await >= 1);
    database.execute("select from orbhook_watch('users', 'app.users')").await;
    database.create_webhook(generic(&receiver.url("/fresh"))).await;
    let _sidecar = Sidecar::start(&database).await;
    database.execute("insert into app.users (id) values (2)").await;
    assert_eq!(receiver.requests(sent + 1).await[sent].path, "/fresh");
    wait_until("its result in this week's partition", DEADLINE, async || {
        let kept = "select exists (select from orbhook.deliveries where status = 'delivered')";
        database.one::<bool>(kept, &[]).await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_watched_tables_can_be_brought_back_by_themselves() {
    let (receiver, key) = (Receiver::start().await, KeyFile::new());
    let source = lived_in(&receiver, &key).await;
    let target = Cluster::start(&[]);
    let copy = restore(&source, &target, Format::Custom, &["--no-privileges"]).await;
    let count = "select count(*) from orbhook.events";
    let events: i64 = copy.query_one(count, &[]).await.unwrap().get(0);
    let rows = source.cluster().run(
        "pg_dump",
        &[
            "--data-only",
            "--table",
            "app.users",
            "--format",
            "custom",
            "--file",
            &file("rows"),
            "--dbname",
            source.name(),
        ],
    );
    assert!(rows.status.success(), "{}", String::from_utf8_lossy(&rows.stdout));
    let bring_back = |extra: &'static str| {
        let output = target.run("pg_restore", &["--dbname", "restored", "--data-only", extra, &file("rows")]);
        assert!(output.status.success(), "{extra}: {}", String::from_utf8_lossy(&output.stdout));
    };

    // Silently, as a restore should be; then as any COPY, which speaks; then before the watch's row is back.
    copy.batch_execute("set orbhook.emit = off; delete from app.users; reset orbhook.emit").await.unwrap();
    bring_back("--disable-triggers");
    assert_eq!(copy.query_one(count, &[]).await.unwrap().get::<_, i64>(0), events);
    copy.batch_execute("set orbhook.emit = off; delete from app.users; reset orbhook.emit").await.unwrap();
    bring_back("--single-transaction");
    assert_eq!(copy.query_one(count, &[]).await.unwrap().get::<_, i64>(0), events + 101);
    copy.batch_execute(
        "set session_replication_role = replica; delete from orbhook.watches; delete from app.users",
    )
    .await
    .unwrap();
    bring_back("--single-transaction");
    assert_eq!(copy.query_one("select count(*) from app.users", &[]).await.unwrap().get::<_, i64>(0), 101);
    assert_eq!(copy.query_one(count, &[]).await.unwrap().get::<_, i64>(0), events + 101);
    std::fs::remove_file(file("rows")).unwrap();
}

/// A database in which everything has happened.
async fn lived_in(receiver: &Receiver, key: &KeyFile) -> Database {
    let database = Database::new().await;
    database.one::<String>("select orbhook_install_key($1)", &[&key.public()]).await;
    database
        .execute("insert into orbhook.event_types (name, category) values ('ORDER_SHIPPED', 'Order')")
        .await;
    for kind in ["emitter", "reader", "admin"] {
        database.role(kind).await;
    }
    let mut config = generic(&receiver.url("/"));
    config["signingSecret"] = json!(SIGNING);
    config["headers"] = json!({"X-Key": "value"});
    config["maxRetries"] = json!(0);
    let webhook = database.create_webhook(config.clone()).await;
    config["subscribedEvents"] = json!(["USER_*"]);
    config["filter"] = json!("$.n > 5");
    config["active"] = json!(false);
    database.create_webhook(config).await;
    database.execute(TABLES).await;
    receiver.answer_next("/", [Answer::status(200), Answer::status(400)]);
    {
        let _sidecar = Sidecar::start_with(&database, |config| config.keys = key.ring()).await;
        database.execute("insert into app.users (id, email) values (500, 'a@example.com')").await;
        receiver.requests(1).await;
        database.rows("select orbhook_emit('ORDER_SHIPPED', '{\"n\": 1}', 'order-1')", &[]).await;
        database.execute("update app.users set email = 'b@example.com' where id = 500").await;
        receiver.requests(3).await;
        wait_until("everything to be settled", DEADLINE, async || {
            let done = "select not exists (select from orbhook.deliveries_open)";
            database.one::<bool>(done, &[]).await.then_some(())
        })
        .await;
        database.rows("select orbhook_replay($1, '2020-01-01', '2020-01-02')", &[&webhook]).await;
        wait_until("the replay to end", DEADLINE, async || {
            let done = "select not exists (select from orbhook.replays where finished_at is null)";
            database.one::<bool>(done, &[]).await.then_some(())
        })
        .await;
    }
    // Written by hand: settings, a loss, and the end of a subscription still to come.
    database
        .execute(
            "update orbhook.retention set failed_days = 120;
             insert into orbhook.thinned values ('events_2020_01_06', 'nothing', '2020-01-13 00:00:00+00');
             insert into orbhook.watch_losses (target, lost, reason) values ('app.users', 1, 'shown');
             insert into orbhook.watch_timers (target, row_key, event_type, at)
             values ('app.users', '[\"1\"]', 'SUBSCRIPTION_EXPIRED', '2100-01-01')",
        )
        .await;
    database.emit("PAYMENT_RECEIVED", json!({"n": 2})).await;
    database
        .rows(
            "select orbhook_emit('PAYMENT_FAILED', '{}', null, clock_timestamp() + interval '1 second')",
            &[],
        )
        .await;
    database
}

async fn restore(source: &Database, target: &Arc<Cluster>, format: Format, extra: &[&str]) -> Client {
    let path = file("dump");
    let mut dump = vec!["--dbname", source.name(), "--file", &path];
    dump.extend(extra);
    let client = target.connect("postgres").await;
    client.batch_execute("create database restored template template0 encoding 'UTF8'").await.unwrap();
    let output = match format {
        Format::Plain => {
            run(source.cluster(), "pg_dump", &dump);
            target.run(
                "psql",
                &[
                    "--no-psqlrc",
                    "--quiet",
                    "--set",
                    "ON_ERROR_STOP=1",
                    "--dbname",
                    "restored",
                    "--file",
                    &path,
                ],
            )
        }
        Format::Custom => {
            dump.extend(["--format", "custom"]);
            run(source.cluster(), "pg_dump", &dump);
            target.run("pg_restore", &["--exit-on-error", "--dbname", "restored", &path])
        }
    };
    assert!(output.status.success(), "{format:?}: {}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(&path).unwrap();
    target.connect("restored").await
}

fn run(cluster: &Cluster, program: &str, arguments: &[&str]) {
    let output = cluster.run(program, arguments);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
}

/// The whole schema as SQL, without the line that names a random session key.
fn schema(cluster: &Cluster, database: &str) -> Vec<String> {
    let output = cluster.run("pg_dump", &["--schema-only", "--dbname", database]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| !line.contains("restrict ")).map(str::to_owned).collect()
}

async fn lines(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.unwrap_or_else(|error| panic!("{error:?}\nin: {query}"));
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect()
}

/// Where the server's own user may write.
fn file(name: &str) -> String {
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let path: PathBuf = std::env::temp_dir().join(format!("orbhook-{name}-{}-{thread}", std::process::id()));
    path.to_str().unwrap().to_owned()
}
