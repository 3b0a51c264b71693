use orbhook_tests::Database;
use serde_json::{Value, json};

/// What is done to a table of each kind, and the events that must come of it.
const KINDS: &[(&str, &str, &str, &[&str])] = &[
    (
        "a partition that rows are written straight into",
        "create table t (id int, region text, email text, primary key (id, region)) partition by list (region);
         create table t_eu partition of t for values in ('eu'); create table t_us (email text, dropped int, region text not null, id int not null);
         alter table t_us drop column dropped; alter table t attach partition t_us for values in ('us')",
        "insert into t_us (id, region, email) values (1, 'us', 'a'); update t set email = 'b'; delete from t_us",
        &["USER_CREATED", "USER_PROFILE_UPDATED", "USER_DELETED"],
    ),
    (
        "a row that moves between partitions, which is one update",
        "create table t (id int, region text, email text, primary key (id, region)) partition by list (region);
         create table t_eu partition of t for values in ('eu'); create table t_us (email text, region text not null, id int not null);
         alter table t attach partition t_us for values in ('us')",
        "insert into t values (1, 'eu', 'a'), (2, 'eu', 'c'); update t set region = 'us', email = 'b' where id = 1; update t set region = 'us' where id = 2",
        &["USER_CREATED", "USER_CREATED", "USER_PROFILE_UPDATED", "USER_PROFILE_UPDATED"],
    ),
    (
        "a partition attached later",
        "create table t (id int, email text) partition by range (id)",
        "create table t_1 partition of t for values from (0) to (10); insert into t_1 values (1, 'a'); insert into t values (2, 'b')",
        &["USER_CREATED", "USER_CREATED"],
    ),
    (
        "a table and one that inherits from it",
        "create table t (id int primary key, email text); create table t_child (extra text) inherits (t)",
        "insert into t values (1, 'a'); insert into t_child values (2, 'b', 'c'); update t set email = 'z'",
        &["USER_CREATED", "USER_CREATED", "USER_PROFILE_UPDATED", "USER_PROFILE_UPDATED"],
    ),
    (
        "generated and identity columns",
        "create table t (id int generated always as identity primary key, first_name text, email text generated always as (lower(first_name) || '@x') stored)",
        "insert into t (first_name) values ('Ada'); update t set first_name = 'Bea'",
        &["USER_CREATED", "USER_PROFILE_UPDATED"],
    ),
    (
        "a composite key",
        "create table t (tenant int, nr text, email text, primary key (tenant, nr))",
        "insert into t values (1, 'a', 'b'); update t set email = 'c'; delete from t",
        &["USER_CREATED", "USER_PROFILE_UPDATED", "USER_DELETED"],
    ),
    (
        "a uuid key and no other usual column",
        "create table t (uuid uuid primary key default gen_random_uuid(), x int)",
        "insert into t (x) values (1); update t set x = 2; delete from t",
        &["USER_CREATED", "USER_DELETED"],
    ),
    (
        "quoted and unicode identifiers",
        "create schema \"Größe \"\"x\"\"\"; create table \"Größe \"\"x\"\"\".\"Täble\" (id int primary key, email text, \"Sta\"\"tus\" text);
         create view t_is_elsewhere as select 1",
        "insert into \"Größe \"\"x\"\"\".\"Täble\" values (1, 'a', 'b'); update \"Größe \"\"x\"\"\".\"Täble\" set email = 'c', \"Sta\"\"tus\" = 'd'",
        &["USER_CREATED", "USER_PROFILE_UPDATED"],
    ),
    (
        "columns dropped earlier",
        "create table t (a int, id int, b text, email text, c text, phone text); alter table t drop column a, drop column b, drop column c",
        "insert into t values (1, 'a', '5'); update t set phone = '6'",
        &["USER_CREATED", "USER_PROFILE_UPDATED"],
    ),
    (
        "a domain, an enum and citext",
        "create extension citext; create domain mail as citext check (value <> ''); create type state as enum ('active', 'deleted');
         create table t (id int primary key, email mail, username citext, status state)",
        "insert into t values (1, 'A', 'b', 'active'); update t set email = 'a'; update t set status = 'deleted'",
        &["USER_CREATED", "USER_PROFILE_UPDATED", "USER_DELETED"],
    ),
    (
        "COPY",
        "create table t (id int primary key, email text)",
        "copy t from program 'seq 1 3 | sed s/$/,x/' with (format csv)",
        &["USER_CREATED", "USER_CREATED", "USER_CREATED"],
    ),
    (
        "COPY into a partitioned table and straight into a partition",
        "create table t (id int, region text, email text, primary key (id, region)) partition by list (region);
         create table t_eu partition of t for values in ('eu'); create table t_us (email text, region text not null, id int not null);
         alter table t attach partition t_us for values in ('us')",
        "copy t (id, region) from program 'printf 1,eu\\\\n2,us\\\\n' with (format csv);
         copy t_us (id, region) from program 'printf 3,us\\\\n4,us\\\\n' with (format csv)",
        &["USER_CREATED", "USER_CREATED", "USER_CREATED", "USER_CREATED"],
    ),
    (
        "a partition of a partition",
        "create table t (id int, email text) partition by range (id);
         create table t_1 partition of t for values from (0) to (100) partition by range (id);
         create table t_11 partition of t_1 for values from (0) to (10); create table t_12 partition of t_1 for values from (10) to (20)",
        "insert into t values (1, 'a'); insert into t_11 values (2, 'b'); update t set id = 12, email = 'z' where id = 2; update t set email = 'c'; delete from t",
        &["USER_CREATED", "USER_CREATED", "USER_PROFILE_UPDATED", "USER_PROFILE_UPDATED", "USER_PROFILE_UPDATED", "USER_DELETED", "USER_DELETED"],
    ),
    (
        "statements of several rows",
        "create table t (id int primary key, email text, notes text)",
        "insert into t select i, 'a' from generate_series(1, 3) i; update t set email = 'b' where id < 3; update t set notes = 'c'; delete from t where id > 1",
        &["USER_CREATED", "USER_CREATED", "USER_CREATED", "USER_PROFILE_UPDATED", "USER_PROFILE_UPDATED", "USER_DELETED", "USER_DELETED"],
    ),
    (
        "a text key and MERGE, which inserts, updates and deletes",
        "create table t (id text primary key, email text); insert into t values ('b', 'b'), ('c', 'c')",
        "merge into t using (values ('a'), ('b'), ('c')) v (id) on v.id = t.id
         when matched and v.id = 'c' then delete when matched then update set email = 'new' when not matched then insert values (v.id, 'a')",
        &["USER_CREATED", "USER_PROFILE_UPDATED", "USER_DELETED"],
    ),
    (
        "rows that a WITH writes, and a foreign key's cascade",
        "create table r (id int primary key); insert into r values (1);
         create table t (id int primary key, email text, r int references r on delete cascade on update cascade)",
        "with new as (insert into t values (1, 'a', 1), (2, 'b', 1) returning id) select count(*) from new; update r set id = 2; delete from r",
        &["USER_CREATED", "USER_CREATED", "USER_DELETED", "USER_DELETED"],
    ),
    (
        "TRUNCATE, which brings no events",
        "create table t (id int primary key)",
        "insert into t values (1); truncate t",
        &["USER_CREATED"],
    ),
    (
        "a row written by a BEFORE trigger and a deferred foreign key",
        "create table r (id int primary key); create table t (id int primary key, email text, r int references r deferrable initially deferred);
         create function lower_email() returns trigger language plpgsql as $$ begin new.email := lower(new.email); return new; end $$;
         create trigger a before insert or update on t for each row execute function lower_email()",
        "insert into t values (1, 'A', null); update t set email = 'A'; update t set email = 'B'",
        &["USER_CREATED", "USER_PROFILE_UPDATED"],
    ),
];

#[tokio::test]
async fn every_kind_of_table_emits() {
    for (kind, create, change, expected) in KINDS {
        let database = Database::new().await;
        database.execute(create).await;
        let table = if create.contains("Täble") { "\"Größe \"\"x\"\"\".\"Täble\"" } else { "t" };
        database.execute(&format!("select orbhook_watch('users', '{table}')")).await;
        database.execute(change).await;
        let events = events(&database).await;
        let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        let mut expected = expected.to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{kind}: {events:?}");
    }
}

#[tokio::test]
async fn every_type_has_its_json() {
    let database = Database::new().await;
    database
        .execute(
            "create type pair as (a int, b text);
             create table t (id int primary key, n numeric, f float8, m money, t timestamp, tz timestamptz, d date, inf timestamptz, nan numeric,
                             a text[], aa int[], c pair, j jsonb, b bytea, i interval, r int4range, x xml, ip inet, big bigint, bool boolean, nothing text);
             select orbhook_watch('users', 't', '{\"payload\": {\"n\": \"n\", \"f\": \"f\", \"m\": \"m\", \"t\": \"t\", \"tz\": \"tz\", \"d\": \"d\", \"inf\": \"inf\",
                 \"nan\": \"nan\", \"a\": \"a\", \"aa\": \"aa\", \"c\": \"c\", \"j\": \"j\", \"b\": \"b\", \"i\": \"i\", \"r\": \"r\", \"x\": \"x\", \"ip\": \"ip\",
                 \"big\": \"big\", \"bool\": \"bool\", \"nothing\": \"nothing\"}}');
             insert into t values (1, 1234567890123456789012345678901234567890.5, 0.1, 1234.5, '2026-01-02 03:04:05.6', '2026-01-02 03:04:05+01', '2026-01-02',
                 'infinity', 'NaN', '{a,\"b \\\"c\\\"\",null}', '{{1,2},{3,4}}', row(1, 'x'), '{\"k\": [1, 2.50]}', '\\xdead', '1 day', '[1,5)', '<a/>', '10.0.0.1/8',
                 9223372036854775807, true, null);
             update t set x = '<b/>', j = '{}'",
        )
        .await;
    let text: String =
        database.one("select payload::text from orbhook.events where event_type = 'USER_CREATED'", &[]).await;
    for part in [
        r#""n": 1234567890123456789012345678901234567890.5"#,
        r#""f": 0.1"#,
        r#""m": 1234.50"#,
        r#""t": "2026-01-02T03:04:05.6""#,
        r#""tz": "2026-01-02T02:04:05Z""#,
        r#""d": "2026-01-02""#,
        r#""inf": "infinity""#,
        r#""nan": "NaN""#,
        r#""a": ["a", "b \"c\"", null]"#,
        r#""aa": [[1, 2], [3, 4]]"#,
        r#""c": {"a": 1, "b": "x"}"#,
        r#""j": {"k": [1, 2.50]}"#,
        r#""b": "\\xdead""#,
        r#""i": "1 day""#,
        r#""r": "[1,5)""#,
        r#""ip": "10.0.0.1/8""#,
        r#""big": 9223372036854775807"#,
        r#""bool": true"#,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("nothing"), "{text}");
    assert_eq!(events(&database).await.len(), 2, "the update of xml and json is seen");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_with_the_reason() {
    let database = Database::new().await;
    database
        .execute(
            "create table t (id int primary key, email text); create view v as select * from t;
             create function nothing() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger instead_of instead of insert on v for each row execute function nothing();
             create materialized view m as select * from t; create sequence s;
             create table p (id int) partition by range (id); create table p_1 partition of p default;
             create temporary table temporary_t (id int)",
        )
        .await;
    for (relation, why) in [
        ("v", "view"),
        ("m", "materialized"),
        ("s", "relation"),
        ("p_1", "partition"),
        ("temporary_t", "temporary"),
        ("orbhook.events", "orbhook"),
        ("pg_class", "system"),
    ] {
        let refusal = database.refusal(&format!("select orbhook_watch('users', '{relation}')")).await;
        assert_eq!(refusal.sqlstate, "42809", "{relation}: {refusal:?}");
        assert!(refusal.message.contains(why) && !refusal.hint.is_empty(), "{relation}: {refusal:?}");
    }
}

#[tokio::test]
async fn djangos_users_speak_without_a_mapping() {
    let database = Database::new().await;
    database.execute(include_str!("schemas/django_auth_user.sql")).await;
    database.execute("select orbhook_watch('users', 'auth_user')").await;
    // What create_user, login, set_password and save() of a form send.
    database
        .execute(
            r#"INSERT INTO "auth_user" ("password", "last_login", "is_superuser", "username", "first_name", "last_name", "email", "is_staff", "is_active", "date_joined")
               VALUES ('pbkdf2_sha256$1', NULL, false, 'ada', 'Ada', '', 'ada@example.com', false, true, now()) RETURNING "auth_user"."id";
               UPDATE "auth_user" SET "last_login" = now() WHERE "auth_user"."id" = 1;
               UPDATE "auth_user" SET "password" = 'pbkdf2_sha256$2', "last_login" = "last_login", "is_superuser" = false, "username" = 'ada', "first_name" = 'Ada', "last_name" = '', "email" = 'ada@example.com', "is_staff" = false, "is_active" = true WHERE "auth_user"."id" = 1;
               UPDATE "auth_user" SET "is_staff" = true WHERE "auth_user"."id" = 1;
               UPDATE "auth_user" SET "last_name" = 'Lovelace', "is_active" = false WHERE "auth_user"."id" = 1;
               DELETE FROM "auth_user" WHERE "auth_user"."id" IN (1)"#,
        )
        .await;
    let events = events(&database).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["USER_CREATED", "USER_LOGIN", "USER_PASSWORD_CHANGED", "USER_PROFILE_UPDATED", "USER_DELETED"]
    );
    assert_eq!(
        events[3].1["changes"],
        json!({"lastName": {"old": "", "new": "Lovelace"}, "active": {"old": true, "new": false}})
    );
    assert!(
        events.iter().all(|(_, payload)| payload["userId"] == 1 && payload["email"] == "ada@example.com")
    );
    assert!(!format!("{events:?}").contains("pbkdf2"));
}

#[tokio::test]
async fn devises_users_speak_without_a_mapping() {
    let database = Database::new().await;
    database.execute(include_str!("schemas/devise_users.sql")).await;
    database.execute("select orbhook_watch('users', 'users')").await;
    // What registration, confirmation, sign-in, a changed name, a reset request and the reset send.
    database
        .execute(
            r#"INSERT INTO "users" ("email", "encrypted_password", "confirmation_token", "confirmation_sent_at", "created_at", "updated_at") VALUES ('ada@example.com', '$2a$12$one', 'abc', now(), now(), now()) RETURNING "id";
               UPDATE "users" SET "confirmed_at" = '2026-01-02 03:04:05', "updated_at" = now() WHERE "users"."id" = 1;
               UPDATE "users" SET "sign_in_count" = 1, "current_sign_in_at" = '2026-01-03 03:04:05', "last_sign_in_at" = '2026-01-03 03:04:05', "current_sign_in_ip" = '10.0.0.1', "last_sign_in_ip" = '10.0.0.1', "updated_at" = now() WHERE "users"."id" = 1;
               UPDATE "users" SET "first_name" = 'Ada', "updated_at" = now() WHERE "users"."id" = 1;
               UPDATE "users" SET "reset_password_token" = 'def', "reset_password_sent_at" = now(), "updated_at" = now() WHERE "users"."id" = 1;
               UPDATE "users" SET "encrypted_password" = '$2a$12$two', "reset_password_token" = NULL, "reset_password_sent_at" = NULL, "updated_at" = now() WHERE "users"."id" = 1"#,
        )
        .await;
    let events = events(&database).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "USER_CREATED",
            "USER_EMAIL_VERIFIED",
            "USER_LOGIN",
            "USER_PROFILE_UPDATED",
            "USER_PASSWORD_CHANGED"
        ]
    );
    assert_eq!(events[2].1["ipAddress"], "10.0.0.1");
    let all = format!("{events:?}");
    assert!(!all.contains("$2a$") && !all.contains("abc") && !all.contains("def"), "{all}");
}

#[tokio::test]
async fn a_mirror_of_stripe_speaks_with_a_short_mapping() {
    let database = Database::new().await;
    database.execute(include_str!("schemas/stripe_mirror.sql")).await;
    database
        .execute(
            "select orbhook_watch('users', 'stripe.customers');
             select orbhook_watch('subscriptions', 'stripe.subscriptions', '{\"signals\": {\"trial_ends\": \"trial_end\"}, \"rank\": {\"price_basic\": 1, \"price_pro\": 2}}');
             select orbhook_watch('payments', 'stripe.charges', '{\"status\": {\"succeeded\": \"PAYMENT_RECEIVED\"}}');
             insert into stripe.customers values ('cus_1', 'ada@example.com', 'Ada');
             delete from orbhook.events;
             insert into stripe.subscriptions values ('sub_1', 'cus_1', 'trialing', 'price_basic', 900, 'usd', '2026-01-01', '2100-01-01', '2100-01-01');
             update stripe.subscriptions set status = 'active', current_period_end = '2100-02-01';
             update stripe.subscriptions set price_id = 'price_pro', unit_amount = 800;
             update stripe.subscriptions set current_period_end = '2100-03-01';
             update stripe.subscriptions set status = 'past_due';
             update stripe.subscriptions set status = 'canceled', canceled_at = now();
             insert into stripe.charges values ('ch_1', 'cus_1', 900, 'usd', 'pending');
             update stripe.charges set status = 'failed', failure_message = 'no funds';
             update stripe.charges set status = 'succeeded';
             update stripe.charges set refunded = true",
        )
        .await;
    let events = events(&database).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "SUBSCRIPTION_CREATED",
            "SUBSCRIPTION_TRIAL_STARTED",
            "SUBSCRIPTION_TRIAL_ENDED",
            "SUBSCRIPTION_UPGRADED",
            "SUBSCRIPTION_RENEWED",
            "SUBSCRIPTION_CANCELLED",
            "PAYMENT_PENDING",
            "PAYMENT_FAILED",
            "PAYMENT_RECEIVED",
            "PAYMENT_REFUNDED",
        ]
    );
    assert!(
        events
            .iter()
            .all(|(_, payload)| payload["email"] == "ada@example.com" && payload["userId"] == "cus_1"),
        "{events:?}"
    );
}

async fn events(database: &Database) -> Vec<(String, Value)> {
    let rows = database.rows("select event_type, payload from orbhook.events order by id", &[]).await;
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
