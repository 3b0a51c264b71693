use orbhook_tests::Database;
use serde_json::{Value, json};

/// Tables with the usual column names.
const TABLES: &str = "
    create schema app;
    create table app.resellers (id int primary key, name text, level text, credit numeric(12, 2), is_active boolean, deleted_at timestamptz);
    create table app.users (
        id bigint primary key, email text, username text, first_name text, last_name text, country text, phone text,
        password_hash text, api_token text, email_verified_at timestamptz, last_login_at timestamptz, login_count int default 0,
        is_active boolean default true, deleted_at timestamptz, two_factor_enabled boolean default false,
        reseller_id int references app.resellers, notes text);
    create table app.subscriptions (
        id bigint primary key, user_id bigint references app.users on delete cascade, group_name text, status text,
        expires_at timestamptz, is_trial boolean default false, canceled_at timestamptz, auto_renew boolean, price numeric);
    create index on app.subscriptions (user_id);
    create table app.payments (
        id bigint primary key, user_id bigint references app.users on delete cascade, amount numeric, currency text,
        status text, refunded_at timestamptz);
    create table app.devices (
        id uuid primary key default gen_random_uuid(), user_id bigint references app.users on delete cascade, name text, is_connected boolean default false);
    select orbhook_watch('users', 'app.users');
    select orbhook_watch('subscriptions', 'app.subscriptions');
    select orbhook_watch('payments', 'app.payments');
    select orbhook_watch('devices', 'app.devices');
    select orbhook_watch('resellers', 'app.resellers');
    insert into app.resellers values (7, 'Acme', 'OWNER', 600);
    insert into app.users (id, email, username, first_name, password_hash, api_token, reseller_id)
    values (1, 'ada@example.com', 'ada', 'Ada', 'hash-one', 'token-one', 7);
    insert into app.subscriptions (id, user_id, group_name, expires_at, price) values (1, 1, '3 Month', '2100-01-01', 30);
    insert into app.payments (id, user_id, amount, currency, status) values (1, 1, 9.90, 'USD', 'pending');
    insert into app.devices (user_id, name) values (1, 'laptop');";

/// One change each, on the tables as they are after `TABLES`, and the events it brings.
const CHANGES: &[(&str, &[&str])] = &[
    // users
    ("insert into app.users (id, email) values (2, 'b@example.com')", &["USER_CREATED"]),
    ("insert into app.users (id, email) values (2, 'b'), (3, 'c')", &["USER_CREATED", "USER_CREATED"]),
    ("insert into app.users (id, deleted_at) values (2, now())", &[]),
    ("insert into app.users (id, email) values (1, 'x') on conflict do nothing", &[]),
    (
        "insert into app.users (id) values (1) on conflict (id) do update set phone = '1'",
        &["USER_PROFILE_UPDATED"],
    ),
    ("update app.users set deleted_at = now()", &["USER_DELETED"]),
    ("update app.users set deleted_at = now(), email = 'gone'", &["USER_DELETED"]),
    (
        "update app.users set deleted_at = now(); update app.users set email = 'gone'; delete from app.users",
        &["USER_DELETED", "DEVICE_REMOVED"],
    ),
    ("update app.users set password_hash = 'hash-two'", &["USER_PASSWORD_CHANGED"]),
    ("update app.users set email_verified_at = now()", &["USER_EMAIL_VERIFIED"]),
    (
        "update app.users set email_verified_at = now(); update app.users set email_verified_at = now() + interval '1 s'",
        &["USER_EMAIL_VERIFIED"],
    ),
    ("update app.users set last_login_at = now(), login_count = login_count + 1", &["USER_LOGIN"]),
    (
        "update app.users set last_login_at = now(); update app.users set last_login_at = last_login_at - interval '1 day'",
        &["USER_LOGIN"],
    ),
    ("update app.users set first_name = 'Augusta', country = 'GB'", &["USER_PROFILE_UPDATED"]),
    ("update app.users set is_active = false", &["USER_PROFILE_UPDATED"]),
    ("update app.users set two_factor_enabled = true", &["SECURITY_2FA_ENABLED"]),
    (
        "update app.users set two_factor_enabled = true; update app.users set two_factor_enabled = null",
        &["SECURITY_2FA_ENABLED", "SECURITY_2FA_DISABLED"],
    ),
    ("update app.users set notes = 'x', login_count = 5, api_token = 'token-two'", &[]),
    ("update app.users set email = email, password_hash = password_hash", &[]),
    (
        "update app.users set password_hash = 'z', email = 'new@example.com', last_login_at = now()",
        &["USER_PASSWORD_CHANGED", "USER_PROFILE_UPDATED", "USER_LOGIN"],
    ),
    // subscriptions
    ("insert into app.subscriptions (id, user_id) values (2, 1)", &["SUBSCRIPTION_CREATED"]),
    (
        "insert into app.subscriptions (id, user_id, is_trial) values (2, 1, true)",
        &["SUBSCRIPTION_CREATED", "SUBSCRIPTION_TRIAL_STARTED"],
    ),
    ("update app.subscriptions set expires_at = '2101-01-01'", &["SUBSCRIPTION_RENEWED"]),
    ("update app.subscriptions set expires_at = '2099-01-01'", &[]),
    ("update app.subscriptions set canceled_at = now()", &["SUBSCRIPTION_CANCELLED"]),
    (
        "update app.subscriptions set canceled_at = now(); update app.subscriptions set status = 'canceled'",
        &["SUBSCRIPTION_CANCELLED"],
    ),
    ("update app.subscriptions set status = 'expired'", &["SUBSCRIPTION_EXPIRED"]),
    ("update app.subscriptions set is_trial = true", &["SUBSCRIPTION_TRIAL_STARTED"]),
    (
        "update app.subscriptions set is_trial = true; update app.subscriptions set is_trial = false",
        &["SUBSCRIPTION_TRIAL_STARTED", "SUBSCRIPTION_TRIAL_ENDED"],
    ),
    ("update app.subscriptions set group_name = '6 Month', price = 50", &["SUBSCRIPTION_UPGRADED"]),
    ("update app.subscriptions set group_name = '1 Month', price = 12", &["SUBSCRIPTION_DOWNGRADED"]),
    ("update app.subscriptions set price = 31", &[]),
    ("update app.subscriptions set auto_renew = true", &[]),
    ("delete from app.subscriptions", &[]),
    // payments
    ("insert into app.payments (id, user_id, status) values (2, 1, 'paid')", &["PAYMENT_RECEIVED"]),
    ("insert into app.payments (id, user_id, status) values (2, 1, 'Failed')", &["PAYMENT_FAILED"]),
    ("insert into app.payments (id, user_id, status) values (2, 1, 'pending')", &["PAYMENT_PENDING"]),
    ("insert into app.payments (id, user_id, status) values (2, 1, 'void')", &[]),
    ("update app.payments set status = 'succeeded'", &["PAYMENT_RECEIVED"]),
    (
        "update app.payments set status = 'succeeded'; update app.payments set status = 'paid', amount = 1",
        &["PAYMENT_RECEIVED"],
    ),
    ("update app.payments set status = 'failed'", &["PAYMENT_FAILED"]),
    (
        "update app.payments set status = 'refunded'; update app.payments set refunded_at = now()",
        &["PAYMENT_REFUNDED"],
    ),
    ("update app.payments set refunded_at = now()", &["PAYMENT_REFUNDED"]),
    ("update app.payments set amount = 1", &[]),
    // devices
    ("insert into app.devices (user_id) values (1)", &["DEVICE_ADDED"]),
    (
        "insert into app.devices (user_id, is_connected) values (1, true)",
        &["DEVICE_ADDED", "DEVICE_CONNECTED"],
    ),
    ("update app.devices set is_connected = true", &["DEVICE_CONNECTED"]),
    (
        "update app.devices set is_connected = true; update app.devices set is_connected = false",
        &["DEVICE_CONNECTED", "DEVICE_DISCONNECTED"],
    ),
    ("delete from app.devices", &["DEVICE_REMOVED"]),
    // resellers
    ("insert into app.resellers (id, name) values (8, 'B')", &["RESELLER_CREATED"]),
    ("update app.resellers set level = 'GOLD'", &["RESELLER_UPDATED"]),
    ("update app.resellers set credit = credit + 100", &["RESELLER_CREDIT_ADDED"]),
    ("update app.resellers set credit = credit - 0.01", &["RESELLER_CREDIT_DEDUCTED"]),
    ("update app.resellers set deleted_at = now()", &["RESELLER_DELETED"]),
    // cascades, and MERGE
    ("delete from app.users", &["USER_DELETED", "DEVICE_REMOVED"]),
    (
        "merge into app.users u using (values (1), (2)) v (id) on u.id = v.id
      when matched then update set phone = '5' when not matched then insert (id) values (v.id)",
        &["USER_CREATED", "USER_PROFILE_UPDATED"],
    ),
];

#[tokio::test]
async fn each_change_brings_exactly_its_events() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let session = database.connect().await;
    for (change, expected) in CHANGES {
        session.execute("begin; delete from orbhook.events").await;
        session.execute(change).await;
        let rows = session.rows("select event_type from orbhook.events order by event_type", &[]).await;
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let emitted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(emitted, expected, "{change}");
        session.execute("rollback").await;
    }
}

#[tokio::test]
async fn a_profile_update_tells_the_old_and_the_new_values() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let payload =
        event_of(&database, "update app.users set first_name = null, country = 'GB'", "USER_PROFILE_UPDATED")
            .await;
    assert_eq!(
        payload["changes"],
        json!({"firstName": {"old": "Ada", "new": null}, "country": {"old": null, "new": "GB"}})
    );
    assert_eq!(payload["profile"], json!({"country": "GB"}));
}

#[tokio::test]
async fn a_user_event_carries_the_current_subscription_and_the_reseller() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let payload =
        event_of(&database, "update app.users set last_login_at = '2026-01-02 03:04:05Z'", "USER_LOGIN")
            .await;
    assert_eq!(payload["userId"], 1);
    assert_eq!(payload["loggedInAt"], "2026-01-02T03:04:05Z");
    assert_eq!(payload["subscription"]["groupName"], "3 Month");
    assert_eq!(payload["reseller"]["level"], "OWNER");
    assert_eq!(payload["reseller"]["credit"].to_string(), "600.0", "as a number: {payload}");
}

#[tokio::test]
async fn subscription_payment_and_device_events_carry_their_user() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    for (change, event) in [
        ("update app.subscriptions set canceled_at = now()", "SUBSCRIPTION_CANCELLED"),
        ("update app.payments set status = 'paid'", "PAYMENT_RECEIVED"),
        ("update app.devices set is_connected = true", "DEVICE_CONNECTED"),
    ] {
        let payload = event_of(&database, change, event).await;
        assert_eq!(payload["userId"], 1, "{payload}");
        assert_eq!(payload["email"], "ada@example.com", "{payload}");
        assert_eq!(payload["profile"]["firstName"], "Ada", "{payload}");
        let body: Value = database.one("select orbhook_render('GOHIGHLEVEL', $1)", &[&payload]).await;
        assert_eq!(body["contact"]["email"], "ada@example.com", "{body}");
    }
}

#[tokio::test]
async fn credit_events_say_how_much() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    let payload =
        event_of(&database, "update app.resellers set credit = credit - 0.01", "RESELLER_CREDIT_DEDUCTED")
            .await;
    assert_eq!(payload["reseller"]["creditAmount"].to_string(), "0.01");
    assert_eq!(payload["reseller"]["credit"].to_string(), "599.99");
}

#[tokio::test]
async fn passwords_and_tokens_are_in_no_payload() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    database.execute("update app.users set password_hash = 'hash-two', api_token = 'token-two', email = 'x'; delete from app.users").await;
    let leaks = "select count(*) from orbhook.events where payload::text ~ 'hash-|token-'";
    assert_eq!(database.one::<i64>(leaks, &[]).await, 0);
    assert!(database.one::<i64>("select count(*) from orbhook.events", &[]).await > 5);
}

#[tokio::test]
async fn a_subscription_ends_by_the_clock_once() {
    let database = Database::new().await;
    database.execute(TABLES).await;
    database
        .execute(
            "delete from orbhook.events; update app.subscriptions set expires_at = now() - interval '1 s'",
        )
        .await;
    // What a sidecar calls at least once a second.
    for _ in 0..3 {
        database.execute("select orbhook.look(gen_random_uuid())").await;
    }
    database.execute("update app.subscriptions set status = 'expired'").await;
    let payload = only_event(&database, "SUBSCRIPTION_EXPIRED").await;
    assert_eq!(payload["email"], "ada@example.com", "{payload}");

    database.execute("delete from orbhook.events; update app.subscriptions set status = 'active', expires_at = '2100-01-01'").await;
    only_event(&database, "SUBSCRIPTION_RENEWED").await;
    database.execute("delete from orbhook.events; update app.subscriptions set status = 'expired'").await;
    database.execute("update orbhook.watch_timers set at = now() - interval '1 day'; select orbhook.look(gen_random_uuid())").await;
    only_event(&database, "SUBSCRIPTION_EXPIRED").await;
}

#[tokio::test]
async fn what_ends_after_the_watch_began_is_said_for_rows_that_were_there_before() {
    let database = Database::new().await;
    database
        .execute(
            "create table subs (id int primary key, user_id int, trial_ends_at timestamptz, expires_at timestamptz);
             insert into subs values (1, 1, '2100-01-01', '2100-02-01'), (2, 1, null, '2001-01-01'), (3, 1, null, 'infinity');
             select orbhook_watch('subscriptions', 'subs')",
        )
        .await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.watch_timers", &[]).await, 2);
    database
        .execute(
            "set session_replication_role = replica; update subs set trial_ends_at = '2026-01-01' where id = 1; reset session_replication_role;
             update orbhook.watch_timers set at = '2026-01-01' where event_type = 'SUBSCRIPTION_TRIAL_ENDED';
             select orbhook.look(gen_random_uuid())",
        )
        .await;
    only_event(&database, "SUBSCRIPTION_TRIAL_ENDED").await;
}

#[tokio::test]
async fn what_came_due_while_no_sidecar_ran_is_said_afterwards_in_order_and_once() {
    const SUBSCRIPTIONS: i32 = 250;
    let database = Database::new().await;
    database
        .execute(&format!(
            "create table subs (id int primary key, user_id int, trial_ends_at timestamptz, expires_at timestamptz);
             select orbhook_watch('subscriptions', 'subs');
             insert into subs select n, n, null, now() + interval '1 hour' from generate_series(1, {SUBSCRIPTIONS}) n;
             delete from orbhook.events;
             update orbhook.watch_timers t set at = now() - make_interval(mins => 1000 - substring(t.row_key from '[0-9]+')::int)"
        ))
        .await;
    database
        .execute("set session_replication_role = replica; update subs set expires_at = now() - make_interval(mins => 1000 - id); reset session_replication_role")
        .await;
    // A bounded step each time.
    for _ in 0..5 {
        database.execute("select orbhook.look(gen_random_uuid())").await;
    }
    let rows = database
        .rows(
            "select event_type, (payload -> 'subscription' ->> 'id')::int from orbhook.events order by id",
            &[],
        )
        .await;
    let said: Vec<i32> = rows.iter().map(|row| row.get(1)).collect();
    assert_eq!(said, (1..=SUBSCRIPTIONS).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.get::<_, String>(0) == "SUBSCRIPTION_EXPIRED"));
}

async fn event_of(database: &Database, change: &str, event: &str) -> Value {
    database.execute("delete from orbhook.events").await;
    database.execute(change).await;
    only_event(database, event).await
}

async fn only_event(database: &Database, event: &str) -> Value {
    let rows = database.rows("select event_type, payload from orbhook.events", &[]).await;
    let emitted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(emitted, [event]);
    rows[0].get(1)
}
