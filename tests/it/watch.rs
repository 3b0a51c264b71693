use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use orbhook_tests::Database;
use serde_json::{Value, json};
use tokio_postgres::AsyncMessage;

const USERS: &str = "create table users (id int primary key, email text, username text, password_hash text, phone text, api_token text)";

#[tokio::test]
async fn it_says_what_will_be_emitted_and_what_was_not_found() {
    let database = Database::new().await;
    database.execute(USERS).await;
    let rows = database
        .rows("select event_type, fires_when, columns from orbhook_watch('users', 'users')", &[])
        .await;
    let emitted: Vec<(Option<String>, Vec<String>)> =
        rows.iter().map(|row| (row.get(0), row.get(2))).collect();
    let of = |event: &str| {
        emitted.iter().find(|(name, _)| name.as_deref() == Some(event)).map(|(_, columns)| columns.clone())
    };
    assert_eq!(of("USER_PASSWORD_CHANGED"), Some(vec!["password_hash".to_owned()]));
    assert_eq!(of("USER_PROFILE_UPDATED"), Some(["email", "phone", "username"].map(str::to_owned).to_vec()));
    assert_eq!(of("USER_LOGIN"), None);
    let missing: Vec<String> =
        rows.iter().filter(|row| row.get::<_, Option<String>>(0).is_none()).map(|row| row.get(1)).collect();
    assert!(
        missing.iter().any(|line| line.contains("USER_LOGIN") && line.contains("last_sign_in_at")),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_mapping_names_columns_signals_words_and_what_is_never_sent() {
    let database = Database::new().await;
    database
        .execute(
            "create table konten (nr int primary key, adresse text, zuletzt timestamptz, zustand text, firma text, phone text);
             select orbhook_watch('users', 'konten', '{
                 \"payload\": {\"userId\": \"nr\", \"email\": \"adresse\", \"profile.companyName\": \"firma\"},
                 \"signals\": {\"login\": \"zuletzt\", \"status\": \"zustand\"},
                 \"status\": {\"weg\": \"USER_DELETED\"}, \"never\": [\"phone\"]}');
             insert into konten values (1, 'a@b.c', null, 'da', 'Acme', '555');
             update konten set zuletzt = now();
             update konten set phone = '556';
             update konten set zustand = 'WEG'",
        )
        .await;
    let events = events(&database).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["USER_CREATED", "USER_LOGIN", "USER_DELETED"]);
    let (_, created) = &events[0];
    assert_eq!(created["email"], "a@b.c");
    assert_eq!(created["profile"], json!({"companyName": "Acme"}));
    assert!(!created.to_string().contains("555"), "{created}");
}

#[tokio::test]
async fn a_mapping_with_a_mistake_is_refused_with_a_hint() {
    let database = Database::new().await;
    database.execute(USERS).await;
    for (mapping, says) in [
        (r#"{"payload": {"email": "emial"}}"#, "emial"),
        (r#"{"payload": {"token": "api_token"}}"#, "never sent"),
        (r#"{"payload": {"pw": "password_hash"}}"#, "never sent"),
        (r#"{"signals": {"logins": "phone"}}"#, "logins"),
        (r#"{"status": {"x": "PAYMENT_RECEIVED"}}"#, "PAYMENT_RECEIVED"),
        (r#"{"paylod": {}}"#, "paylod"),
        (r#"{"payload": {"a..b": "phone"}}"#, "path"),
        (r#"{"payload_function": "public.nothing"}"#, "public.nothing"),
        ("[]", "mapping"),
    ] {
        let refusal = database.refusal(&format!("select orbhook_watch('users', 'users', '{mapping}')")).await;
        assert_eq!(refusal.sqlstate, "22023", "{mapping}: {refusal:?}");
        assert!(refusal.message.contains(says), "{mapping}: {refusal:?}");
    }
    let refusal = database.refusal("select orbhook_watch('user', 'users')").await;
    assert!(refusal.message.contains("subscriptions"), "{refusal:?}");
    let triggers = "select count(*) from pg_trigger where tgrelid = 'users'::regclass";
    assert_eq!(database.one::<i64>(triggers, &[]).await, 0);
}

/// What no row holds, a trigger cannot read.
#[tokio::test]
async fn a_virtual_generated_column_counts_as_none() {
    let database = Database::new().await;
    let users = "create table t (id int primary key, email text, first_name text generated always as ('x' || email) virtual)";
    if database.one::<i32>("select current_setting('server_version_num')::int", &[]).await < 180_000 {
        assert_eq!(
            database.refusal(users).await.sqlstate,
            "42601",
            "there are such columns, and nothing was tried"
        );
        return;
    }
    database.execute(users).await;
    let mapping = r#"{"payload": {"firstName": "first_name"}}"#;
    let refusal = database.refusal(&format!("select orbhook_watch('users', 't', '{mapping}')")).await;
    assert!(refusal.message.contains("no column \"first_name\""), "{refusal:?}");
    database.execute("select orbhook_watch('users', 't'); insert into t values (1, 'a@b.c')").await;
    let (_, created) = events(&database).await.pop().expect("an event");
    assert_eq!((&created["email"], &created["firstName"]), (&json!("a@b.c"), &Value::Null));
}

#[tokio::test]
async fn only_the_owner_can_watch_and_unwatch() {
    let database = Database::new().await;
    let admin = database.role("admin").await;
    let owner = database.role("").await;
    database
        .execute(&format!("{USERS}; alter table users owner to {owner}; grant all on users to {admin}"))
        .await;
    let session = database.connect_as(&admin).await;
    for call in ["orbhook_watch('users', 'users')", "orbhook_unwatch('users')"] {
        assert_eq!(session.refusal(&format!("select {call}")).await.sqlstate, "42501", "{call}");
    }
    database.execute(&format!("alter table users owner to {admin}")).await;
    session.execute("select orbhook_watch('users', 'users'); select orbhook_unwatch('users')").await;
}

#[tokio::test]
async fn a_column_its_owner_cannot_read_is_never_sent() {
    let database = Database::new().await;
    let owner = database.role("admin").await;
    database
        .execute(&format!(
            "{USERS}; alter table users owner to {owner};
             revoke select on users from {owner}; grant select (id, username, phone) on users to {owner}"
        ))
        .await;
    let session = database.connect_as(&owner).await;
    let mapped = session
        .refusal("select orbhook_watch('users', 'users', '{\"payload\": {\"contact.mail\": \"email\"}}')")
        .await;
    assert_eq!(mapped.sqlstate, "42501");
    assert!(mapped.message.contains("\"email\""), "{mapped:?}");

    session.execute("select orbhook_watch('users', 'users')").await;
    database
        .execute("insert into users (id, email, username) values (1, 'ada@example.com', 'ada'); update users set email = 'eve@example.com', phone = '1'")
        .await;
    let emitted = events(&database).await;
    let types: Vec<&str> = emitted.iter().map(|(event, _)| event.as_str()).collect();
    assert_eq!(types, ["USER_CREATED", "USER_PROFILE_UPDATED"]);
    for (event, payload) in emitted {
        assert_eq!(payload["username"], "ada", "{event}");
        assert!(!payload.to_string().contains("@example.com"), "{event}: {payload}");
    }
}

#[tokio::test]
async fn whoever_may_write_the_table_needs_no_further_right() {
    let database = Database::new().await;
    let writer = database.role("").await;
    database.execute(&format!("{USERS}; grant insert, update, delete, select on users to {writer}; select orbhook_watch('users', 'users')")).await;
    let session = database.connect_as(&writer).await;
    session
        .execute(
            "insert into users (id, email) values (1, 'a'); update users set email = 'b'; delete from users",
        )
        .await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 3);
    assert_eq!(session.refusal("select * from orbhook.events").await.sqlstate, "42501");
}

#[tokio::test]
async fn a_payload_function_runs_as_whoever_changes_the_table() {
    let database = Database::new().await;
    let writer = database.role("").await;
    database
        .execute(&format!(
            "{USERS}; grant insert on users to {writer};
             create function own_payload(u users) returns jsonb language sql as
                 $$ select case when u.id < 100 then jsonb_build_object('by', current_user, 'mail', u.email) end $$;
             revoke all on function own_payload(users) from public;
             select orbhook_watch('users', 'users', '{{\"payload_function\": \"public.own_payload\"}}')"
        ))
        .await;
    let session = database.connect_as(&writer).await;
    session.execute("insert into users (id, email) values (1, 'a@b.c')").await;
    session.execute("insert into users (id, email) values (2, 'd'), (3, 'e')").await;
    session.execute("insert into users (id, email) values (100, 'silent')").await;
    let events = events(&database).await;
    assert_eq!(events.len(), 3, "{events:?}");
    let (_, payload) = &events[0];
    assert_eq!((&payload["by"], &payload["mail"]), (&json!(writer), &json!("a@b.c")));
    assert_eq!(payload["eventType"], "USER_CREATED");
}

#[tokio::test]
async fn an_unwatched_table_is_as_it_was() {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users'); select orbhook_unwatch('users'); insert into users (id) values (1)")).await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 0);
    assert_eq!(
        database.one::<i64>("select count(*) from pg_trigger where tgrelid = 'users'::regclass", &[]).await,
        0
    );
}

#[tokio::test]
async fn a_rollback_takes_the_events_along() {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users')")).await;
    database.execute("begin; insert into users (id) values (1); rollback").await;
    database.execute("begin; savepoint s; insert into users (id) values (1); rollback to s; commit").await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 0);
}

#[tokio::test]
async fn one_transaction_can_be_kept_silent() {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users')")).await;
    let session = database.connect().await;
    session.execute("begin; set local orbhook.emit = 'off'; insert into users (id) values (1); update users set phone = '1'; commit").await;
    session
        .execute(
            "begin; set local session_replication_role = replica; insert into users (id) values (2); commit",
        )
        .await;
    session.execute("insert into users (id) values (3)").await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 1);
    let writer = database.role("emitter").await;
    let other = database.connect_as(&writer).await;
    other.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    assert_eq!(other.refusal("set orbhook.emit = 'off'").await.sqlstate, "42501");
    session.execute(&format!("grant set on parameter orbhook.emit to {writer}")).await;
    other.execute("set orbhook.emit = 'off'").await;
    session.execute(&format!("revoke set on parameter orbhook.emit from {writer}")).await;
}

#[tokio::test]
async fn a_failing_emit_fails_the_statement_or_is_counted() {
    let database = Database::new().await;
    database
        .execute(&format!(
            "{USERS}; select orbhook_watch('users', 'users');
             alter table orbhook.events add constraint broken check (payload ->> 'email' <> 'bad') not valid"
        ))
        .await;
    let session = database.connect().await;
    assert_eq!(session.refusal("insert into users (id, email) values (1, 'bad')").await.sqlstate, "23514");
    session
        .execute("set orbhook.on_emit_error = warning; insert into users (id, email) values (1, 'bad')")
        .await;
    assert_eq!(session.one::<i64>("select count(*) from users", &[]).await, 1);
    assert_eq!(session.one::<i64>("select count(*) from orbhook.events", &[]).await, 0);
    let lost = "select sum(lost)::bigint from orbhook.watch_losses where target = 'users'::regclass and reason like '%broken%'";
    assert_eq!(session.one::<i64>(lost, &[]).await, 1);
}

#[tokio::test]
async fn filters_decide_for_each_row_of_a_statement() {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users')")).await;
    for (name, filter, active) in
        [("all", None, true), ("odd", Some("$.profile.phone == \"1\""), true), ("off", None, false)]
    {
        let config = json!({"name": name, "providerType": "GENERIC", "endpoint": "https://example.com/x",
                            "subscribedEvents": ["USER_*"], "filter": filter, "active": active});
        let mut config = config;
        if filter.is_none() {
            config.as_object_mut().unwrap().remove("filter");
        }
        database.create_webhook(config).await;
    }
    database.execute("insert into users (id, phone) select i, i % 2 from generate_series(1, 2500) i").await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 2500);
    let per_webhook = "select array_agg(n order by name) from (
        select w.name, count(*) as n from orbhook.deliveries d join orbhook.webhooks w on w.id = d.webhook_id group by w.name) x";
    assert_eq!(database.one::<Vec<i64>>(per_webhook, &[]).await, [2500, 1250]);
    let skipped = "select count(*) from orbhook.events where jsonb_array_length(skipped) = 2";
    assert_eq!(database.one::<i64>(skipped, &[]).await, 1250);
}

#[tokio::test]
async fn a_statement_of_many_rows_wakes_a_sleeping_sidecar_once() {
    let database = Database::new().await;
    database.execute(&format!("{USERS}; select orbhook_watch('users', 'users')")).await;
    database.create_webhook(orbhook_tests::generic("https://example.com/x")).await;
    let (client, mut connection) =
        tokio_postgres::connect(&database.url("postgres"), tokio_postgres::NoTls).await.unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let woken = Arc::clone(&woken);
        async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    woken.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    // What a sidecar does before it sleeps; the number is in sql/50_sidecars.sql.
    client.batch_execute("listen orbhook; select pg_advisory_lock(1869767272, 0)").await.unwrap();
    database.execute("copy users (id) from program 'seq 1 10000'").await;
    // What was sent arrives before the answer to this.
    client.batch_execute("select 1").await.unwrap();
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 10_000);
}

async fn events(database: &Database) -> Vec<(String, Value)> {
    let rows = database.rows("select event_type, payload from orbhook.events order by id", &[]).await;
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
