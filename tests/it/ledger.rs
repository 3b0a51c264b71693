use orbhook_tests::{Database, Session, generic};
use serde_json::json;

const USERS: &str = "create table users (id int primary key, email text)";

/// What is written past the executor is what an INSERT would have written.
#[tokio::test]
async fn rows_and_indexes_are_whole() {
    let (database, session) = watched().await;
    database.create_webhook(generic("https://example.com/x")).await;
    for statements in [
        "create extension amcheck",
        "insert into users values (1, 'one')",
        "insert into users select i, i || '@example.com' from generate_series(2, 5000) i",
        "begin; insert into users values (6001, 'gone'); rollback",
        "begin; savepoint s; insert into users values (6002, 'gone'); rollback to s; insert into users values (6003, 'kept'); commit",
        "select orbhook_emit('USER_ACTION', '{}')",
    ] {
        session.execute(statements).await;
    }
    assert_eq!(session.one::<i64>("select count(*) from orbhook.events", &[]).await, 5002);
    assert_eq!(session.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 5002);
    // Every row is in every index, and nothing else.
    session
        .execute(
            "select bt_index_parent_check(i.indexrelid, true) from pg_index i
             where i.indrelid = 'orbhook.deliveries_open'::regclass or i.indrelid in (select e.tableoid from orbhook.events e)",
        )
        .await;
    // What nobody wrote has its default.
    let defaults = "select bool_and(status = 'pending' and attempts = 0 and failures = 0 and outcome_attempt = 0 and not is_test
                        and lease_until is null and claimed_by is null and finished_at is null and period is null
                        and due_at between created_at and clock_timestamp()) from orbhook.deliveries";
    assert!(session.one::<bool>(defaults, &[]).await);
    let tests = "select count(*) from orbhook.deliveries_open where is_test";
    session.execute("set enable_seqscan = off").await;
    assert_eq!(session.one::<i64>(tests, &[]).await, 0, "the index of tests has none of them");
}

#[tokio::test]
async fn a_payload_that_is_stored_elsewhere_comes_back_whole() {
    let (database, session) = watched().await;
    // 200 kB that hardly compress, in one row and in a statement of several, and taken from a table that has it toasted.
    session
        .execute(
            "create table large as select jsonb_build_object('text', string_agg(md5(i::text), '')) as payload from generate_series(1, 6000) i;
             select orbhook_emit('USER_ACTION', payload) from large;
             insert into users select i, (select payload ->> 'text' from large) from generate_series(1, 3) i",
        )
        .await;
    let whole = "select count(*) from orbhook.events e, large l
                 where l.payload ->> 'text' in (e.payload ->> 'text', e.payload ->> 'email')";
    assert_eq!(database.one::<i64>(whole, &[]).await, 4);
}

#[tokio::test]
async fn what_a_dba_adds_to_the_tables_is_respected() {
    let (database, session) = watched().await;
    database.create_webhook(generic("https://example.com/x")).await;
    // Each session has emitted before, and finds out by itself.
    session.execute("insert into users values (1, 'a')").await;
    let admin = database.connect().await;

    admin.execute("create index by_payload on orbhook.events using gin (payload)").await;
    session.execute("insert into users values (2, 'b'); insert into users values (3, 'c'), (4, 'd')").await;
    admin.execute("set enable_seqscan = off").await;
    let by_payload = "select count(*) from orbhook.events where payload @> '{\"email\": \"c\"}'";
    assert_eq!(admin.one::<i64>(by_payload, &[]).await, 1, "found by the index");

    admin
        .execute(
            "create index late on orbhook.deliveries_open (created_at) where due_at > '2100-01-01 00:00+00';
             select orbhook_emit('USER_ACTION', '{}', deliver_at => '2100-01-02')",
        )
        .await;
    let late = "select count(*) from orbhook.deliveries_open where due_at > '2100-01-01 00:00+00' and created_at > '2020-01-01'";
    assert_eq!(admin.one::<i64>(late, &[]).await, 1, "found by the partial index");

    admin.execute("alter table orbhook.events add column tenant text not null default 'acme'").await;
    session.execute("insert into users values (5, 'e')").await;
    let filled = "select count(*) from orbhook.events where tenant = 'acme' and payload ->> 'email' = 'e'";
    assert_eq!(admin.one::<i64>(filled, &[]).await, 1);

    admin
        .execute(
            "create table seen (id uuid); create function see() returns trigger language plpgsql as
                 $$ begin insert into seen values (new.id); return null; end $$;
             create trigger see after insert on orbhook.events for each row execute function see()",
        )
        .await;
    session.execute("insert into users values (6, 'f')").await;
    assert_eq!(admin.one::<i64>("select count(*) from seen", &[]).await, 1);

    admin
        .execute("drop trigger see on orbhook.events; alter table orbhook.deliveries add constraint few check (attempts > 0) not valid")
        .await;
    assert_eq!(session.refusal("insert into users values (7, 'g')").await.sqlstate, "23514");
    admin.execute("alter table orbhook.deliveries drop constraint few").await;
    session.execute("insert into users values (7, 'g')").await;
    assert_eq!(admin.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 8);
}

#[tokio::test]
async fn an_event_goes_to_the_partition_of_its_time() {
    let (database, session) = watched().await;
    let admin = database.connect().await;
    let weeks = "do $$ declare v_week text; begin
                     for v_week in select w.name from orbhook._weeks() w where w.parent = 'events' loop
                         execute format('drop table orbhook.%I', v_week);
                     end loop;
                 end $$";
    admin.execute(weeks).await;
    session.execute("insert into users values (1, 'a')").await;
    // From now on; columns in another order.
    admin
        .execute(
            "do $$ declare v_from uuid := orbhook._new_id(); begin
                 create table orbhook.events_now (skipped jsonb, payload jsonb not null, gone int, id uuid not null primary key,
                     created_at timestamptz not null default clock_timestamp(), occurred_at timestamptz not null, event_type text not null,
                     constraint events_payload_is_object check (jsonb_typeof(payload) = 'object'));
                 alter table orbhook.events_now drop column gone;
                 execute format('alter table orbhook.events attach partition orbhook.events_now for values from (%L) to (%L)',
                                v_from, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
             end $$",
        )
        .await;
    session.execute("insert into users values (2, 'b'); insert into users values (3, 'c'), (4, 'd')").await;
    let now = "select array_agg(payload ->> 'email' order by payload ->> 'email') from orbhook.events_now";
    assert_eq!(admin.one::<Vec<String>>(now, &[]).await, ["b", "c", "d"]);
    admin.execute("alter table orbhook.events detach partition orbhook.events_now").await;
    session.execute("insert into users values (5, 'e')").await;
    let default = "select array_agg(payload ->> 'email' order by payload ->> 'email') from orbhook.events";
    assert_eq!(admin.one::<Vec<String>>(default, &[]).await, ["a", "e"]);
}

/// Sessions remember oids of tables; a new extension has others.
#[tokio::test]
async fn a_session_survives_that_the_extension_is_made_anew() {
    let (database, session) = watched().await;
    session.execute("insert into users values (1, 'a'); select orbhook_emit('USER_ACTION', '{}')").await;
    database
        .execute("drop extension orbhook cascade; create extension orbhook; select orbhook_watch('users', 'users')")
        .await;
    session.execute("insert into users values (2, 'b'); select orbhook_emit('USER_ACTION', '{}')").await;
    let events = "select array_agg(event_type order by id) from orbhook.events";
    assert_eq!(session.one::<Vec<String>>(events, &[]).await, ["USER_CREATED", "USER_ACTION"]);
}

#[tokio::test]
async fn what_the_webhooks_skip_is_written_down() {
    let (database, session) = watched().await;
    let mut config = generic("https://example.com/x");
    config["active"] = json!(false);
    let webhook = database.create_webhook(config).await;
    session.execute("insert into users values (1, 'a'); insert into users values (2, 'b'), (3, 'c')").await;
    let skipped = "select count(*) from orbhook.events
                   where skipped = jsonb_build_array(jsonb_build_object('webhook', $1::uuid, 'reason', 'inactive'))";
    assert_eq!(session.one::<i64>(skipped, &[&webhook]).await, 3);
}

async fn watched() -> (Database, Session) {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users')")).await;
    let session = database.connect().await;
    (database, session)
}
