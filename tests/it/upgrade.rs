use std::collections::BTreeSet;
use std::process::Command;

use orbhook_tests::{
    Answer, Claimer, DEADLINE, Database, Receiver, Sidecar, SidecarProcess, generic, wait_until,
};
use serde_json::json;

/// The versions with a way to this one, oldest first.
const RELEASED: &[&str] = &["0.1.0"];
const THIS: &str = env!("CARGO_PKG_VERSION");

/// Everything that belongs to the extension, or to its schema, and all that can be said of it: one line each.
const DEFINITIONS: &str = "
    with member as (
        select d.classid, d.objid from pg_depend d join pg_extension e on e.oid = d.refobjid
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' and e.extname = 'orbhook'
    ), relation as (
        select c.* from pg_class c where c.relnamespace = 'orbhook'::regnamespace
    )
    select 'member ' || pg_describe_object(m.classid, m.objid, 0) from member m
    union all
    select 'function ' || p.oid::regprocedure || ' of ' || p.proowner::regrole || ' ' || pg_get_functiondef(p.oid) || ' says '
           || coalesce(obj_description(p.oid, 'pg_proc'), '') || ' rights ' || coalesce((select string_agg(a::text, ' ' order by a::text) from unnest(p.proacl) a), '')
    from pg_proc p join member m on m.classid = 'pg_proc'::regclass and m.objid = p.oid
    union all
    select 'relation ' || r.relname || ' ' || concat(r.relkind, r.relpersistence, r.relreplident) || ' of ' || r.relowner::regrole || ' '
           || coalesce(r.reloptions::text, '') || ' says ' || coalesce(obj_description(r.oid, 'pg_class'), '')
           || ' rights ' || coalesce((select string_agg(a::text, ' ' order by a::text) from unnest(r.relacl) a), '')
           || coalesce(' as ' || case when r.relkind = 'v' then pg_get_viewdef(r.oid) end, '')
           || coalesce(' bound ' || pg_get_expr(r.relpartbound, r.oid), '')
    from relation r where r.relkind <> 'i' and r.relkind <> 'I'
    union all
    select 'column ' || r.relname || '.' || a.attname || ' ' || a.attnum || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || concat(a.attnotnull, a.attgenerated, a.attstorage) || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
           || ' says ' || coalesce(col_description(r.oid, a.attnum), '')
           || ' rights ' || coalesce((select string_agg(x::text, ' ' order by x::text) from unnest(a.attacl) x), '')
    from relation r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
    where r.relkind in ('r', 'p', 'v', 'c')
    union all
    select 'constraint ' || r.relname || '.' || c.conname || ' ' || pg_get_constraintdef(c.oid) || c.convalidated::text
    from relation r join pg_constraint c on c.conrelid = r.oid
    union all
    select 'index ' || concat(pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisprimary) from relation r join pg_index i on i.indrelid = r.oid
    union all
    select 'trigger ' || concat(pg_get_triggerdef(t.oid), t.tgenabled) from relation r join pg_trigger t on t.tgrelid = r.oid where not t.tgisinternal
    union all
    select 'event trigger ' || concat(t.evtname, t.evtevent, t.evtenabled, t.evtfoid::regproc, t.evttags)
    from pg_event_trigger t join member m on m.classid = 'pg_event_trigger'::regclass and m.objid = t.oid
    union all
    select 'type ' || t.typname || ' of ' || t.typowner::regrole || ' rights ' || coalesce(t.typacl::text, '') || ' says ' || coalesce(obj_description(t.oid, 'pg_type'), '')
    from pg_type t join member m on m.classid = 'pg_type'::regclass and m.objid = t.oid
    union all
    select 'schema of ' || n.nspowner::regrole || ' rights ' || coalesce(n.nspacl::text, '') || ' says ' || coalesce(obj_description(n.oid, 'pg_namespace'), '')
    from pg_namespace n where n.nspname = 'orbhook'
    union all
    select 'dumped ' || c.relname || ' ' || x.condition
    from pg_extension e, unnest(e.extconfig, e.extcondition) as x (relation, condition) join pg_class c on c.oid = x.relation
    where e.extname = 'orbhook'";

/// Rows that come with the extension.
const CONTENTS: &[&str] = &[
    "select t::text from orbhook.event_types t where t.built_in",
    "select r::text from orbhook.retention r",
    "select p::text from orbhook.periods p where p.starts_on = '1970-01-01'",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_database_equals_a_fresh_one() {
    for released in RELEASED {
        let (fresh, upgraded) = (Database::new().await, of_version(released).await);
        upgraded.execute("alter extension orbhook update").await;
        assert_equal(&fresh, &upgraded, released).await;
    }
}

/// With webhooks, a watch, roles, history in this week's partitions, and work that waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_database_that_was_lived_in_equals_a_fresh_one_and_goes_on() {
    for released in RELEASED {
        let receiver = Receiver::start().await;
        let (fresh, upgraded) = (Database::new().await, of_version(released).await);
        for database in [&fresh, &upgraded] {
            // The same names for both, so that rights can be compared.
            for kind in ["emitter", "sender", "reader", "reader_payload", "admin"] {
                let role = format!("upgrade_{kind}");
                let create = format!(
                    "do $$ begin create role {role}; exception when duplicate_object then null; end $$; select orbhook_grant('{role}', '{kind}')"
                );
                database.execute(&create).await;
            }
            database.create_webhook(generic(&receiver.url("/hook"))).await;
            database
                .execute(
                    "create schema app; create table app.users (id bigint primary key, email text);
                     select orbhook_watch('users', 'app.users')",
                )
                .await;
            let sidecar = Sidecar::start(database).await;
            let before = receiver.count();
            receiver.answer_next("/hook", [Answer::status(500)]);
            database.execute("insert into app.users values (1, 'a@example.com'), (2, 'b@example.com')").await;
            receiver.requests(before + 2).await;
            wait_until("one delivered, one waiting", DEADLINE, async || {
                let sql = "select count(*) = 1 from orbhook.deliveries where status = 'delivered' and period > '1970-01-01'";
                database.one::<bool>(sql, &[]).await.then_some(())
            })
            .await;
            sidecar.stop().await.unwrap();
        }
        upgraded.execute("alter extension orbhook update").await;
        // What a sidecar makes as it goes: of a version each.
        for database in [&fresh, &upgraded] {
            database.execute("truncate orbhook.events").await;
        }
        assert_equal(&fresh, &upgraded, released).await;
        assert_eq!(
            upgraded
                .one::<i64>("select count(*) from orbhook.deliveries where status = 'pending'", &[])
                .await,
            1
        );
        let before = receiver.count();
        let _sidecar = Sidecar::start(&upgraded).await;
        upgraded.execute("insert into app.users values (3, 'c@example.com')").await;
        receiver.requests(before + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_library_and_a_new_sidecar_work_with_the_previous_schema() {
    let (database, receiver) = (of_version(RELEASED[RELEASED.len() - 1]).await, Receiver::start().await);
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    database
        .execute("create schema app; create table app.users (id bigint primary key, email text); select orbhook_watch('users', 'app.users')")
        .await;
    let sidecar = SidecarProcess::start(&database, &[]).await;
    sidecar.logged("registered").await;
    database.execute("insert into app.users values (1, 'a@example.com')").await;
    database.emit("USER_ACTION", json!({"n": 1})).await;
    receiver.requests(2).await;
    wait_until("both to be settled", DEADLINE, async || {
        let settled = "select count(*) = 2 from orbhook.deliveries where status = 'delivered'";
        database.one::<bool>(settled, &[]).await.then_some(())
    })
    .await;
    sidecar.logged("run ALTER EXTENSION orbhook UPDATE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_library_lacks_a_function_of_the_schema_is_given_up_for_a_new_one() {
    let (database, receiver) = (Database::new().await, Receiver::start().await);
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    database.emit("USER_ACTION", json!({"n": 1})).await;
    receiver.requests(1).await;

    let rename = async |from: &str, to: &str| {
        database.execute(&format!("alter function orbhook.{from}() rename to {to}")).await;
    };
    let claiming = "select coalesce(max(pid), 0) from pg_stat_activity
                    where datname = current_database() and query like '%orbhook.claim(%' and pid <> pg_backend_pid()";
    let before: i32 = database.one(claiming, &[]).await;
    assert_ne!(before, 0);
    rename("_begin_claim", "_gone").await;
    database.emit("USER_ACTION", json!({"n": 2})).await;
    wait_until("another session", DEADLINE, async || {
        let now: i32 = database.one(claiming, &[]).await;
        (now != 0 && now != before).then_some(())
    })
    .await;
    rename("_gone", "_begin_claim").await;
    receiver.requests(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_under_load_loses_nothing_and_lets_nobody_wait() {
    const EVENTS: i64 = 400;
    let (database, receiver) = (of_version(RELEASED[0]).await, Receiver::start().await);
    let mut config = generic(&receiver.url("/hook"));
    config["rateLimit"] = json!(null);
    database.create_webhook(config).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    let emitters = async {
        let session = database.connect().await;
        // Whoever waits longer fails.
        session.execute("set lock_timeout = '500ms'").await;
        for number in 0..EVENTS {
            session.execute(&format!("select orbhook_emit('USER_ACTION', '{{\"n\": {number}}}')")).await;
        }
    };
    let update = async {
        receiver.requests(50).await;
        let session = database.connect().await;
        session.execute("set lock_timeout = '1s'").await;
        session.execute("alter extension orbhook update").await;
    };
    tokio::join!(emitters, update);
    wait_until("every event to arrive", DEADLINE, async || {
        let arrived: BTreeSet<i64> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
        (arrived == (0..EVENTS).collect()).then_some(())
    })
    .await;
    let version = "select extversion from pg_extension where extname = 'orbhook'";
    assert_eq!(database.one::<String>(version, &[]).await, THIS);
    assert_eq!(receiver.count(), usize::try_from(EVENTS).unwrap(), "each once");
}

/// In a transaction that stays open, everything the update has locked is locked for as long as can be.
#[tokio::test]
async fn while_an_update_is_not_committed_yet_others_emit_claim_and_settle() {
    let database = of_version(RELEASED[0]).await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    let claimer = Claimer::register(&database).await;
    let session = database.connect().await;
    session.execute("set lock_timeout = '1ms'").await;
    let update = database.connect().await;
    update.execute("begin").await;
    update.execute("alter extension orbhook update").await;
    session.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    let claimed = claimer.claim(&database, 10).await;
    assert_eq!(claimed.len(), 1);
    claimer.answer(&database, &claimed[0], 200, json!({})).await;
    update.execute("commit").await;
    let settled = "select count(*) from orbhook.deliveries where status = 'delivered'";
    assert_eq!(database.one::<i64>(settled, &[]).await, 1);
}

/// Whoever has emitted with a key holds what the update has to lock, until the end of the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_waits_for_a_long_transaction_lets_everybody_else_emit_claim_and_settle() {
    let database = of_version(RELEASED[0]).await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    let claimer = Claimer::register(&database).await;
    let (long, update) = (database.connect().await, database.connect().await);
    long.execute("begin; select orbhook_emit('USER_ACTION', '{}', 'long')").await;
    let updated = tokio::spawn(async move { update.execute("alter extension orbhook update").await });
    let tries = "select count(*) > 0 from pg_stat_activity
                 where datname = current_database() and query like 'alter extension%' and wait_event = 'PgSleep'";
    wait_until("the update to have tried", DEADLINE, async || {
        database.one::<bool>(tries, &[]).await.then_some(())
    })
    .await;

    let session = database.connect().await;
    session.execute("set lock_timeout = '500ms'").await;
    for number in 0..10 {
        session.execute(&format!("select orbhook_emit('USER_ACTION', '{{}}', 'short {number}')")).await;
        let claimed = claimer.claim(&database, 10).await;
        assert_eq!(claimed.len(), 1);
        claimer.answer(&database, &claimed[0], 200, json!({})).await;
    }
    assert!(!updated.is_finished());
    long.execute("commit").await;
    updated.await.unwrap();
    assert_eq!(claimer.claim(&database, 10).await.len(), 1, "that of the long transaction");
}

/// What is installed somewhere must never be made differently from what is in its file.
#[test]
fn released_scripts_are_what_they_were() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../sql");
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "released.sha256"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let listed = std::fs::read_to_string(format!("{directory}/released.sha256")).unwrap();
    for released in RELEASED {
        assert!(listed.contains(&format!("orbhook--{released}.sql")), "{released} is not frozen");
    }
    let to_this = format!("--{THIS}.sql");
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("orbhook--") && !name.ends_with(&to_this) {
            assert!(listed.contains(&name), "{name} is not frozen: add it to sql/released.sha256");
        }
    }
}

async fn of_version(version: &str) -> Database {
    let database = Database::new().await;
    database.execute(&format!("drop extension orbhook; create extension orbhook version '{version}'")).await;
    database
}

async fn assert_equal(fresh: &Database, upgraded: &Database, released: &str) {
    // The weeks that a sidecar makes.
    for database in [fresh, upgraded] {
        while database.one::<bool>("select orbhook.tend()", &[]).await {}
    }
    for query in [DEFINITIONS].iter().chain(CONTENTS) {
        let (expected, found) = (lines(fresh, query).await, lines(upgraded, query).await);
        assert!(!expected.is_empty(), "{query}");
        let missing: Vec<&String> = expected.difference(&found).collect();
        let surplus: Vec<&String> = found.difference(&expected).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "from {released}: missing {missing:#?}, surplus {surplus:#?}"
        );
    }
}

async fn lines(database: &Database, query: &str) -> BTreeSet<String> {
    // Roles that a test's sidecar makes for itself.
    let own_roles = format!("{}_", database.name());
    let text = |line: String| line.replace(&own_roles, "its_");
    database.rows(query, &[]).await.iter().map(|row| text(row.get(0))).collect()
}
