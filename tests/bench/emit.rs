//! What an application's commit pays: inserts into a watched table, and calls of `orbhook_emit`, against the bare insert.

use std::sync::Arc;
use std::time::Duration;

use orbhook_tests::{Cluster, Database, generic};
use serde_json::{Value, json};

use crate::figures::{Figures, Goal};
use crate::pgbench::Pgbench;
use crate::server;

const DURATION: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
const WEBHOOKS_MANY: usize = 10_000;

/// Concurrent writers, and what a watched insert is to reach of the bare one.
const WRITERS: [(usize, f64); 3] = [(1, 0.65), (16, 0.55), (64, 0.50)];

/// The same table once bare, once watched, and one for each of the other ways to record an event.
const TABLES: &str = "
    create table bare (
        id bigint generated always as identity primary key, email text, username text, first_name text, last_name text,
        country text, phone text, password_hash text, email_verified_at timestamptz, last_login_at timestamptz,
        is_active boolean not null default true, created_at timestamptz not null default now(), notes text);
    create table watched (like bare including all);
    create table by_hand (like bare including all);
    create table by_call (like bare including all);
    create table notified (like bare including all);
    select count(*) from orbhook_watch('users', 'watched');
    select count(*) from orbhook_watch('users', 'notified')";

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let database = prepared(&cluster, &[]).await;
    server::run_in(&database).await;
    for (writers, goal) in WRITERS {
        let (mut watch, mut by_hand, mut call, mut notify) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let rate = |script: &str| rate(&database, script, writers);
            let (bare, watched) = (rate(&insert("bare")), rate(&insert("watched")));
            watch.push((bare, watched));
            by_hand.push((rate(&three_rows()), watched));
            call.push((bare, rate(&calling())));
            notify.push((rate(&notifying()), watched));
        }
        let of = |what: &str| format!("{writers} writers: {what}");
        figures.compare(
            of("insert with a watch and one webhook ÷ bare insert"),
            "per second",
            &watch,
            Goal::AtLeast(goal),
        );
        figures.compare(
            of("the same ÷ one prepared statement that writes the three rows"),
            "per second",
            &by_hand,
            Goal::AtLeast(0.90),
        );
        figures.compare(
            of("the same ÷ the same with NOTIFY in every transaction"),
            "per second",
            &notify,
            (writers == 64).then_some(Goal::AtLeast(3.0)),
        );
        figures.compare(of("insert that calls orbhook_emit ÷ bare insert"), "per second", &call, None);
    }
    let others: Vec<Value> = (1..WEBHOOKS_MANY).map(|_| subscribed("PAYMENT_RECEIVED")).collect();
    let crowded = prepared(&cluster, &others).await;
    let rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| (rate(&database, &insert("watched"), 16), rate(&crowded, &insert("watched"), 16)))
        .collect();
    figures.compare(
        "16 writers: insert with 10,000 webhooks of which one matches ÷ with one webhook",
        "per second",
        &rounds,
        Goal::AtLeast(0.90),
    );
    figures
}

/// A database with the tables, the webhook that gets the events, and others.
async fn prepared(cluster: &Arc<Cluster>, others: &[Value]) -> Database {
    let database = Database::on(cluster).await;
    database.execute(TABLES).await;
    database.create_webhook(subscribed("USER_CREATED")).await;
    let create = "select count(orbhook_create_webhook(c.value)) from jsonb_array_elements($1) c";
    database.one::<i64>(create, &[&Value::from(others)]).await;
    database.execute("vacuum analyze orbhook.subscriptions").await;
    database.execute("checkpoint").await;
    database
}

fn subscribed(event_type: &str) -> Value {
    let mut config = generic("https://example.com/x");
    config["subscribedEvents"] = json!([event_type]);
    config
}

fn rate(database: &Database, script: &str, clients: usize) -> f64 {
    Pgbench { database, script, clients, duration: DURATION, arguments: &[] }.run()
}

fn insert(table: &str) -> String {
    format!("{};\n", row_into(table))
}

fn row_into(table: &str) -> String {
    format!(
        "insert into {table} (email, username, first_name, last_name, country, phone, password_hash) \
         values ('ada@example.com', 'ada', 'Ada', 'Lovelace', 'GB', '+441234567', 'x')"
    )
}

/// What the trigger writes, written by a client that knows everything beforehand.
fn three_rows() -> String {
    format!(
        "with row as ({} returning id), \
              event as (insert into orbhook.events (id, event_type, payload, occurred_at, created_at) \
                        select orbhook._new_id(), 'USER_CREATED', \
                               '{{\"email\": \"ada@example.com\", \"active\": true, \"userId\": 1000000, \"profile\": {{\"phone\": \"+441234567\", \
                                  \"country\": \"GB\", \"lastName\": \"Lovelace\", \"firstName\": \"Ada\"}}, \"username\": \"ada\", \
                                  \"eventType\": \"USER_CREATED\", \"timestamp\": \"2026-01-02T03:04:05.678901Z\"}}', \
                               clock_timestamp(), clock_timestamp() from row returning id) \
         insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, created_at) \
         select orbhook._new_id(), event.id, '01890000-0000-7000-8000-000000000000', clock_timestamp(), clock_timestamp() from event;\n",
        row_into("by_hand")
    )
}

fn calling() -> String {
    format!(
        "with row as ({} returning id) \
         select orbhook_emit('USER_CREATED', jsonb_build_object('userId', id, 'email', 'ada@example.com', 'username', 'ada', 'active', true, \
             'profile', '{{\"phone\": \"+441234567\", \"country\": \"GB\", \"lastName\": \"Lovelace\", \"firstName\": \"Ada\"}}'::jsonb)) from row;\n",
        row_into("by_call")
    )
}

/// The same work, and a notification of its own in each transaction.
fn notifying() -> String {
    format!("with row as ({} returning id) select pg_notify('naive', '') from row;\n", row_into("notified"))
}
