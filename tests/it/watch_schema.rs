use orbhook_tests::{Database, Session};

const USERS: &str = "create schema app;
    create table app.users (id int primary key, email varchar(75), first_name varchar(30), phone text, password text, notes text);
    select orbhook_watch('users', 'app.users');
    insert into app.users values (1, 'a@b.c', 'Ada', '5', 'x')";

#[tokio::test]
async fn a_columns_type_can_change_as_django_and_rails_do_it() {
    let (_database, session) = watched().await;
    for statement in [
        r#"ALTER TABLE "app"."users" ALTER COLUMN "email" TYPE varchar(254)"#,
        r#"ALTER TABLE "app"."users" ALTER COLUMN "first_name" TYPE text USING "first_name"::text"#,
        r#"ALTER TABLE "app"."users" ALTER COLUMN "phone" TYPE character varying, ALTER COLUMN "phone" SET DEFAULT ''"#,
        r#"ALTER TABLE "app"."users" ALTER COLUMN "id" SET DATA TYPE bigint"#,
        r#"DO $$ BEGIN EXECUTE 'alter table app.users alter email type text'; END $$"#,
        "create function migrate() returns void language plpgsql as 'begin alter table app.users alter email type varchar; end'; select migrate()",
        "create function \"Migrate it\"() returns void language sql as 'alter table app.users alter email type varchar(300)'; select \"Migrate it\"()",
        "do $$ begin perform \"Migrate it\"(); end $$",
    ] {
        session.execute(statement).await;
        assert!(guarded(&session).await, "the WHEN clause is back after: {statement}");
        session.execute("delete from orbhook.events; update app.users set email = email || 'x', notes = 'n'; update app.users set notes = 'm'").await;
        assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"], "{statement}");
    }
}

#[tokio::test]
async fn a_renamed_column_is_followed() {
    let (_database, session) = watched().await;
    session
        .execute(
            "alter table app.users rename column email to mail_address; alter table app.users rename to people; alter schema app rename to crm;
             delete from orbhook.events; update crm.people set mail_address = 'new@b.c'",
        )
        .await;
    assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"]);
    let email: String = session.one("select payload ->> 'email' from orbhook.events", &[]).await;
    assert_eq!(email, "new@b.c");
}

#[tokio::test]
async fn a_dropped_column_is_left_out_and_the_watch_says_so() {
    for cascade in ["", " cascade"] {
        let (_database, session) = watched().await;
        session
            .execute(&format!("alter table app.users drop column phone{cascade}; delete from orbhook.events"))
            .await;
        session.execute("update app.users set email = 'new@b.c'; update app.users set password = 'y'; insert into app.users (id) values (2)").await;
        assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED", "USER_PASSWORD_CHANGED", "USER_CREATED"]);
        let broken: Vec<String> = session.one("select broken from orbhook.watches", &[]).await;
        assert_eq!(broken, ["phone"]);
        session.execute("alter table app.users add phone text; select orbhook_watch('users', 'app.users'); delete from orbhook.events; update app.users set phone = '6' where id = 1").await;
        assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"]);
        assert!(session.one::<bool>("select broken is null from orbhook.watches", &[]).await);
    }
}

#[tokio::test]
async fn a_column_can_be_dropped_by_a_function_in_sql() {
    let (_database, session) = watched().await;
    session
        .execute("create function drop_it() returns void language sql as 'alter table app.users drop column phone'; select drop_it()")
        .await;
    assert_eq!(session.one::<Vec<String>>("select broken from orbhook.watches", &[]).await, ["phone"]);
    assert!(guarded(&session).await);
}

#[tokio::test]
async fn what_a_before_trigger_changes_is_seen_whenever_it_came() {
    const TRIGGER: &str = "
        create function app.derive() returns trigger language plpgsql as $$ begin new.email := new.notes || '@x'; return new; end $$;
        create trigger derive before update on app.users for each row execute function app.derive()";
    const CHANGE: &str = "delete from orbhook.events; update app.users set notes = 'n'";
    let (_database, session) = watched().await;
    session.execute(CHANGE).await;
    assert_eq!(events(&session).await, [""; 0]);
    session.execute(&format!("{TRIGGER}; {CHANGE}")).await;
    assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"]);
    session.execute("select orbhook_watch('users', 'app.users'); update app.users set notes = 'm'").await;
    assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"; 2]);
    assert!(guarded(&session).await);
    // Also where triggers are switched off meanwhile.
    session
        .execute(
            "drop trigger derive on app.users; select orbhook_watch('users', 'app.users');
             set session_replication_role = replica;
             create trigger derive before update on app.users for each row execute function app.derive();
             reset session_replication_role; delete from orbhook.events; update app.users set notes = 'o'",
        )
        .await;
    assert_eq!(events(&session).await, ["USER_PROFILE_UPDATED"]);
}

#[tokio::test]
async fn an_update_that_names_no_column_of_interest_evaluates_nothing() {
    let (_database, session) = watched().await;
    let named = "select array_agg(a.attname::text order by a.attnum) from pg_trigger t
                 join pg_attribute a on a.attrelid = t.tgrelid and a.attnum = any (t.tgattr)
                 where t.tgname = 'orbhook_update' and t.tgqual is not null";
    let columns: Vec<String> = session.one(named, &[]).await;
    assert_eq!(columns, ["email", "first_name", "phone", "password"]);
}

#[tokio::test]
async fn an_alter_table_that_fails_leaves_the_watch_as_it_was() {
    let (_database, session) = watched().await;
    session.refusal("alter table app.users alter column email type int using 'x'::int").await;
    assert!(guarded(&session).await);
}

#[tokio::test]
async fn dropping_the_table_forgets_the_watch() {
    for statement in ["drop table app.users", "drop schema app cascade"] {
        let (_database, session) = watched().await;
        session.execute(statement).await;
        assert_eq!(session.one::<i64>("select count(*) from orbhook.watches", &[]).await, 0, "{statement}");
    }
}

#[tokio::test]
async fn other_tables_change_as_ever() {
    let (_database, session) = watched().await;
    session.execute("create table other (a int, b text); alter table other alter a type bigint, drop column b; drop table other").await;
    assert!(guarded(&session).await);
}

#[tokio::test]
async fn dropping_the_extension_lists_the_tables_and_cascade_leaves_them_working() {
    let (_database, session) = watched().await;
    let error = session.batch_execute("drop extension orbhook").await.unwrap_err();
    let detail = error.as_db_error().unwrap().detail().unwrap_or_default().to_owned();
    assert!(detail.contains("app.users"), "{detail}");
    session.execute("drop extension orbhook cascade; insert into app.users (id) values (2); update app.users set email = 'x'; delete from app.users").await;
    assert_eq!(
        session
            .one::<i64>("select count(*) from pg_trigger where tgrelid = 'app.users'::regclass", &[])
            .await,
        0
    );
}

#[tokio::test]
async fn a_trigger_without_its_watch_emits_nothing_counts_and_does_not_fail() {
    let (_database, session) = watched().await;
    session.execute("delete from orbhook.watches").await;
    let other = _database.connect().await;
    other.execute("delete from orbhook.events; insert into app.users (id) values (2); update app.users set email = 'x'; delete from app.users").await;
    assert_eq!(events(&other).await, [""; 0]);
    assert!(other.one::<i64>("select sum(lost)::bigint from orbhook.watch_losses", &[]).await >= 1);
}

#[tokio::test]
async fn a_dump_takes_watches_and_triggers_along() {
    let (database, session) = watched().await;
    session.execute("alter table app.users drop column notes").await;
    let copy = format!("{}_copy", database.name());
    let cluster = database.cluster();
    let dump = cluster.run("pg_dump", &["--dbname", database.name()]);
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    session.execute(&format!("create database {copy} template template0 encoding 'UTF8'")).await;
    let restored = cluster.connect(&copy).await;
    // psql's own commands (\restrict, COPY data) are its own business: it is what reads dumps.
    let file = std::env::temp_dir().join(format!("{copy}.sql"));
    std::fs::write(&file, &dump.stdout).unwrap();
    let output = cluster.run(
        "psql",
        &[
            "--no-psqlrc",
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            "--dbname",
            &copy,
            "--file",
            file.to_str().unwrap(),
        ],
    );
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let count = "select count(*) from orbhook.events";
    let before: i64 = restored.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(before, 1, "restoring rows emits nothing");
    restored
        .batch_execute("insert into app.users (id) values (2); update app.users set email = 'n' where id = 1; alter table app.users rename email to mail; update app.users set mail = 'm' where id = 1")
        .await
        .unwrap();
    let after: i64 = restored.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(after, 4);
    drop(restored);
    session.execute(&format!("drop database {copy} with (force)")).await;
}

async fn watched() -> (Database, Session) {
    let database = Database::new().await;
    database.execute(USERS).await;
    let session = database.connect().await;
    (database, session)
}

/// Whether the UPDATE trigger has its WHEN clause.
async fn guarded(session: &Session) -> bool {
    session
        .one(
            "select exists (select from pg_trigger where tgname = 'orbhook_update' and tgqual is not null
                            and tgrelid = (select target from orbhook.watches))",
            &[],
        )
        .await
}

async fn events(session: &Session) -> Vec<String> {
    let rows = session.rows("select event_type from orbhook.events order by id", &[]).await;
    rows.iter().map(|row| row.get(0)).collect()
}
