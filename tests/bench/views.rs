//! What a person or a dashboard asks of 10,000,000 deliveries: how long each view takes, and that none reads the history of
//! deliveries from end to end.

use std::time::Instant;

use orbhook_tests::{Database, Session, generic};
use serde_json::json;

use crate::figures::{Figures, Goal, note};
use crate::server;

/// A million a day for ten days.
const DELIVERIES: i64 = 10_000_000;
const LOADED_AT_ONCE: i64 = 1_000_000;
const WEBHOOKS: i64 = 100;
/// Pending, over all webhooks.
const QUEUED: i64 = 100_000;

/// Each is timed so often; the median counts.
const ROUNDS: usize = 3;

/// Longer, and a dashboard that looks every few seconds would be a load of its own.
const DASHBOARD_SECONDS_MAX: f64 = 1.0;

/// What dashboards ask.
const DASHBOARD: [(&str, &str); 8] = [
    ("webhook_health", "select * from orbhook.webhook_health order by p99_hour_ms desc nulls last"),
    ("backlog", "select * from orbhook.backlog order by oldest_waiting desc nulls last"),
    ("sidecars", "select * from orbhook.sidecars"),
    ("dead_letters, latest 20", "select * from orbhook.dead_letters order by finished_at desc limit 20"),
    ("delivery_log, latest 20", "select * from orbhook.delivery_log order by delivery_id desc limit 20"),
    (
        "delivery_log of an event",
        "select * from orbhook.delivery_log where event_id = (select event_id from history limit 1)",
    ),
    ("top", "select * from orbhook.top(30, 500)"),
    ("gauges", "select * from orbhook.gauges(100)"),
];

pub(crate) async fn measure() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let database = Database::on(&cluster).await;
    let session = database.connect().await;
    fill(&database, &session).await;

    let live = seconds(&session, DASHBOARD[0].1).await;
    figures.measure("webhook_health, a day's attempts not counted yet", "seconds", live, None);
    let began = Instant::now();
    let mut steps = 1;
    while session.one::<bool>("select orbhook.tend()", &[]).await {
        steps += 1;
    }
    let a_step = began.elapsed().as_secs_f64() / f64::from(steps);
    figures.measure("counting one minute of attempts (700)", "seconds", a_step, None);
    session.execute("vacuum analyze").await;

    for (name, query) in DASHBOARD {
        let took = seconds(&session, query).await;
        figures.measure(name, "seconds", took, Goal::AtMost(DASHBOARD_SECONDS_MAX));
    }
    let whole = read_whole(&session).await;
    note(
        &mut figures,
        "histories of deliveries read from end to end by these",
        if whole.is_empty() { "none".to_owned() } else { whole.join(", ") },
    );

    // No sidecar runs, so what is queued is late.
    let audit = "select count(*) from orbhook_audit(now() - interval '1 day') where violation <> 'delivery past its deadline'";
    let began = Instant::now();
    let violations: i64 = session.one(audit, &[]).await;
    figures.measure(
        "orbhook_audit of a day (1,000,000 events)",
        "seconds",
        began.elapsed().as_secs_f64(),
        None,
    );
    note(&mut figures, "violations it found", violations.to_string());
    figures
}

/// Partitions of deliveries, other than the open one, that a plan of the above reads sequentially.
async fn read_whole(session: &Session) -> Vec<String> {
    let mut whole = Vec::new();
    for (name, query) in DASHBOARD {
        let plan = session.rows(&format!("explain (analyze, timing off) {query}"), &[]).await;
        for line in plan.iter().map(|row| row.get::<_, String>(0)) {
            if line.contains("Seq Scan on deliveries_2") && !line.contains("never executed") {
                whole.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    whole
}

async fn seconds(session: &Session, query: &str) -> f64 {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        session.rows(query, &[]).await;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Each webhook subscribes to a type of its own; one delivery in a thousand has failed. Ids hold the time, as orbhook's do.
async fn fill(database: &Database, session: &Session) {
    for number in 0..WEBHOOKS {
        session
            .execute(&format!(
                "insert into orbhook.event_types (name, category) values ('T{number}', 'bench')"
            ))
            .await;
        let mut config = generic("http://127.0.0.1:9/hook");
        config["subscribedEvents"] = json!([format!("T{number}")]);
        database.create_webhook(config).await;
    }
    session
        .execute("update orbhook.webhooks set created_at = now() - interval '30 days', updated_at = now() - interval '30 days'")
        .await;
    session.execute(PERIODS).await;
    for first in (0..DELIVERIES).step_by(usize::try_from(LOADED_AT_ONCE).unwrap()) {
        let began = Instant::now();
        let load = LOAD
            .replace("$first", &first.to_string())
            .replace("$last", &(first + LOADED_AT_ONCE - 1).to_string());
        session.execute(&load).await;
        println!("{} deliveries, {:.0} s", first + LOADED_AT_ONCE, began.elapsed().as_secs_f64());
    }
    session
        .execute(&format!(
            "select orbhook_emit('T' || n % {WEBHOOKS}, '{{}}') from generate_series(1, {QUEUED}) n"
        ))
        .await;
    session.execute("vacuum analyze").await;
}

/// Partitions for the weeks of ten days, as `_open_period` makes them.
const PERIODS: &str = "
    set timezone = 'UTC';
    set synchronous_commit = off;
    select orbhook._open_period(date_trunc('week', now())::date - 7 * n),
           orbhook._open_event_week(date_trunc('week', now())::date - 7 * n) from generate_series(0, 2) as n, generate_series(1, 2);
    create temporary table hooks as select id, row_number() over (order by id) - 1 as place from orbhook.webhooks;
    create temporary table began as select now() - interval '10 days' as at;
    create temporary table history (n bigint, at timestamptz, event_id uuid, id uuid, webhook_id uuid)";

const LOAD: &str = "
    truncate history;
    insert into history
    select n, t.at, (t.ms || '70008' || r.tail)::uuid, (t.ms || '70009' || r.tail)::uuid, h.id
    from generate_series($first, $last) as n
    cross join began b
    cross join lateral (select b.at + n * interval '86.4 milliseconds' as at) m
    cross join lateral (select m.at, lpad(to_hex((extract(epoch from m.at) * 1000)::bigint), 12, '0') as ms) t
    cross join lateral (select substr(md5(n::text), 1, 15) as tail) r
    join hooks h on h.place = n % 100;
    insert into orbhook.events (id, event_type, payload, occurred_at, created_at)
    select event_id, 'T' || n % 100, '{}', at, at from history;
    insert into orbhook.deliveries (id, event_id, webhook_id, status, attempts, outcome_attempt, created_at, finished_at,
                                    last_status_code, last_error, period)
    select id, event_id, webhook_id, case when n % 1000 = 0 then 'failed' else 'delivered' end, 1, 1, at, at + interval '20 milliseconds',
           case when n % 1000 = 0 then 500 else 200 end, case when n % 1000 = 0 then 'answered 500' end,
           date_trunc('week', at)::date
    from history;
    insert into orbhook.attempts (delivery_id, number, webhook_id, started_at, duration_ms, status_code, error_class, period)
    select id, 1, webhook_id, at, 5 + (n % 97) * (n % 13), case when n % 1000 = 0 then 500 else 200 end,
           case when n % 1000 = 0 then 'http' end, date_trunc('week', at)::date
    from history";
