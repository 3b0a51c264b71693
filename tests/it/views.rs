use orbhook_tests::{Claimer, DEADLINE, Database, generic, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::golden::golden;

const ENDPOINT: &str = "http://127.0.0.1:9/hook";

#[tokio::test]
async fn a_line_of_the_log_says_what_came_of_a_delivery_and_what_it_waits_for() {
    let (database, webhook, claimer) = set_up(json!({"name": "Team", "retryDelay": 600})).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    assert_eq!(
        line(&database, event).await,
        ["USER_CREATED", "Team", "pending", "0", "", "now, when its turn comes"]
    );

    let claimed = claimer.claim(&database, 1).await.remove(0);
    assert_eq!(line(&database, event).await[3..], ["1", "", "under way"]);

    claimer.answer(&database, &claimed, 500, json!({})).await;
    let waits = line(&database, event).await;
    assert!(waits[4].contains("500"), "{waits:?}");
    assert!(waits[5].starts_with("in 00:1"), "ten minutes and jitter: {waits:?}");

    database.execute(&format!("select orbhook_pause('{webhook}')")).await;
    assert_eq!(line(&database, event).await[5], "when the webhook is resumed");
    database.execute(&format!("select orbhook_update_webhook('{webhook}', '{{\"active\": false}}')")).await;
    assert_eq!(line(&database, event).await[5], "when the webhook is active again");
    let on = format!(
        "select orbhook_update_webhook('{webhook}', '{{\"active\": true}}'), orbhook_resume('{webhook}')"
    );
    database.execute(&on).await;

    database.execute("update orbhook.deliveries_open set due_at = clock_timestamp()").await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 200, json!({})).await;
    assert_eq!(line(&database, event).await[2..], ["delivered", "2", "answered 200", ""]);
}

#[tokio::test]
async fn the_backlog_says_how_much_waits_and_what_holds_it_up() {
    let (database, webhook, claimer) = set_up(json!({"maxInFlight": 2})).await;
    assert!(database.rows("select from orbhook.backlog", &[]).await.is_empty(), "nothing pending, no row");
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 5)").await;
    database
        .execute("select orbhook_emit('USER_CREATED', '{}', deliver_at => now() + interval '1 hour')")
        .await;
    let claimed = claimer.claim(&database, 10).await;
    let counts = "select array[pending, waiting, in_flight, scheduled] from orbhook.backlog";
    assert_eq!(database.one::<Vec<i64>>(counts, &[]).await, [6, 3, 2, 1]);
    let held_by = "select held_by from orbhook.backlog";
    assert_eq!(
        database.one::<String>(held_by, &[]).await,
        "2 requests are under way, as many as maxInFlight allows"
    );

    for claimed in &claimed {
        claimer.answer(&database, claimed, 200, json!({})).await;
    }
    assert_eq!(database.one::<Option<String>>(held_by, &[]).await, None, "it flows");
    let waited = "select oldest_waiting between interval '0' and interval '1 minute' from orbhook.backlog";
    assert!(database.one::<bool>(waited, &[]).await);

    database.execute(&format!("select orbhook.deregister('{}')", claimer.id)).await;
    assert!(database.one::<String>(held_by, &[]).await.starts_with("no sidecar is running"));
    database.execute(&format!("select orbhook_pause('{webhook}')")).await;
    assert_eq!(database.one::<String>(held_by, &[]).await, "paused; orbhook_resume(id) sends them");
    database.execute(&format!("delete from orbhook.webhooks where id = '{webhook}'")).await;
    assert!(database.one::<String>(held_by, &[]).await.starts_with("the webhook was deleted"));
}

#[tokio::test]
async fn health_counts_requests_and_measures_answers_of_the_hour_and_the_day() {
    let (database, _, claimer) = set_up(json!({"maxInFlight": 200})).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 100)").await;
    let claimed = claimer.claim(&database, 200).await;
    let results: Vec<Value> = (1..=100)
        .zip(&claimed)
        .map(|(duration, claimed)| {
            json!({"delivery": claimed.delivery.to_string(), "attempt": 1, "outcome": "answered",
                   "started_ago_ms": 0, "duration_ms": duration, "status": if duration <= 90 { 200 } else { 400 }})
        })
        .collect();
    claimer.settle(&database, json!(results)).await;
    // Half of them were sent two hours ago, ten two days ago.
    database
        .execute(
            "update orbhook.attempts set started_at = started_at - case when duration_ms <= 10 then interval '2 days'
                                                                        else interval '2 hours' end
             where duration_ms <= 50",
        )
        .await;
    let row = database
        .rows(
            "select sent_hour, failed_hour, success_hour_percent::float8, p50_hour_ms, p99_hour_ms,
                    sent_day, failed_day, success_day_percent::float8, p50_day_ms, p99_day_ms from orbhook.webhook_health",
            &[],
        )
        .await
        .remove(0);
    let count = |column: usize| row.get::<_, i64>(column);
    assert_eq!((count(0), count(1), count(5), count(6)), (50, 10, 90, 10));
    assert_eq!((row.get::<_, f64>(2), row.get::<_, f64>(7)), (80.0, 88.89));
    let times: Vec<i32> = [3, 4, 8, 9].iter().map(|column| row.get(*column)).collect();
    assert_eq!(times, [75, 100, 55, 100]);
}

#[tokio::test]
async fn health_names_the_state_of_a_webhook_and_the_reason() {
    let (database, webhook, claimer) = set_up(json!({"maxRetries": 0})).await;
    let state = async || {
        let row = database.rows("select state, reason from orbhook.webhook_health", &[]).await.remove(0);
        (row.get::<_, String>(0), row.get::<_, Option<String>>(1).unwrap_or_default())
    };
    assert_eq!(state().await, ("ok".to_owned(), String::new()));

    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    let (name, reason) = state().await;
    assert_eq!(name, "failing");
    assert!(reason.starts_with("1 failed attempts since"), "{reason}");

    database.emit("USER_CREATED", json!({})).await;
    database.execute("update orbhook.deliveries_open set due_at = due_at - interval '2 minutes'").await;
    let (name, reason) = state().await;
    assert_eq!(
        (name.as_str(), reason.as_str()),
        ("stuck", "deliveries are due and nobody claims them: look at orbhook.sidecars")
    );

    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 429, json!({"retry-after": "300"})).await;
    let (name, reason) = state().await;
    assert_eq!(name, "quiet");
    assert!(reason.starts_with("the receiver asked for quiet for another 00:0"), "{reason}");

    database.execute(&format!("select orbhook_pause('{webhook}')")).await;
    assert_eq!(state().await, ("paused".to_owned(), "paused by hand; orbhook_resume(id)".to_owned()));

    database.execute("update orbhook.webhooks set active = false, inactive_reason = 'answered 410'").await;
    assert_eq!(state().await, ("inactive".to_owned(), "answered 410".to_owned()));
}

#[tokio::test]
async fn dead_letters_are_what_was_given_up_and_nothing_else() {
    let (database, webhook, claimer) = set_up(json!({"maxRetries": 0, "maxInFlight": 10})).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 4)").await;
    let claimed = claimer.claim(&database, 10).await;
    claimer.answer(&database, &claimed[0], 500, json!({})).await;
    claimer.answer(&database, &claimed[1], 200, json!({})).await;
    database.execute(&format!("select orbhook_cancel('{}')", claimed[2].delivery)).await;
    let rows = database
        .rows("select delivery_id, webhook_id, event_type, last_error from orbhook.dead_letters", &[])
        .await;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].get::<_, Uuid>(0), rows[0].get::<_, Uuid>(1)), (claimed[0].delivery, webhook));
    assert_eq!(rows[0].get::<_, String>(2), "USER_CREATED");
    assert!(rows[0].get::<_, String>(3).contains("500"));

    database.execute(&format!("select orbhook_retry('{}')", claimed[0].delivery)).await;
    assert!(database.rows("select from orbhook.dead_letters", &[]).await.is_empty(), "it is tried again");
}

#[tokio::test]
async fn sidecars_are_listed_with_what_they_have_in_flight_and_how_they_ended() {
    let (database, _, pooled) = set_up(json!({})).await;
    let session = database.connect().await;
    let id = Uuid::new_v4();
    session.one::<bool>("select orbhook.register($1, 'one', '1.2.3', true)", &[&id]).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 3)").await;
    session.rows("select from orbhook.claim($1, 3, null)", &[&id]).await;
    let of = async |id: Uuid| {
        let sql = "select state, sidecar, version, in_flight from orbhook.sidecars where sidecar_id = $1";
        let row = database.rows(sql, &[&id]).await.remove(0);
        (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, String>(2), row.get::<_, i64>(3))
    };
    assert_eq!(of(id).await, ("running".to_owned(), "one".to_owned(), "1.2.3".to_owned(), 3));
    assert_eq!(of(pooled.id).await.0, "assumed");

    drop(session);
    wait_until("the lock to be free", DEADLINE, async || (of(id).await.0 == "gone").then_some(())).await;
    database.execute(&format!("select orbhook.look('{}')", pooled.id)).await;
    assert_eq!((of(id).await.0, of(id).await.3), ("dead".to_owned(), 0));
    database.execute(&format!("select orbhook.deregister('{}')", pooled.id)).await;
    assert_eq!(of(pooled.id).await.0, "stopped");
}

#[tokio::test]
async fn a_trace_tells_the_whole_story_of_an_event_in_the_order_of_time() {
    let (database, first, claimer) = set_up(json!({"name": "first", "retryDelay": 0})).await;
    let mut config = generic(ENDPOINT);
    config["name"] = json!("picky");
    config["filter"] = json!("$.amount > 100");
    database.create_webhook(config).await;
    let event = database.emit("PAYMENT_RECEIVED", json!({"amount": 5})).await;
    let trace = async || {
        let rows = database
            .rows("select what, webhook, attempt, detail, at from orbhook.event_trace($1)", &[&event])
            .await;
        let times: Vec<std::time::SystemTime> = rows.iter().map(|row| row.get(4)).collect();
        assert!(times.is_sorted(), "in the order of time: {rows:?}");
        rows.iter()
            .map(|row| {
                let or_none = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default();
                format!("{} {} {:?} {}", or_none(0), or_none(1), row.get::<_, Option<i32>>(2), or_none(3))
            })
            .collect::<Vec<_>>()
    };
    let told = trace().await;
    assert!(told[0].starts_with("emitted  None PAYMENT_RECEIVED, which happened at 20"), "{told:?}");
    assert_eq!(told[1..], ["skipped picky None filtered", "queued first None ", "due first Some(1) "]);

    let claimed = claimer.claim(&database, 1).await.remove(0);
    assert_eq!(trace().await[3], "under way first Some(1) at by hand");
    played_request_takes_its_time().await;
    claimer.answer(&database, &claimed, 503, json!({})).await;
    let claimed =
        wait_until("the retry to be due", DEADLINE, async || claimer.claim(&database, 1).await.pop()).await;
    played_request_takes_its_time().await;
    claimer.answer(&database, &claimed, 200, json!({})).await;
    let told = trace().await;
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(told[3].starts_with("attempt failed first Some(1)") && told[3].contains("503"), "{told:?}");
    assert_eq!(told[4], "answered first Some(2) answered 200, after 12 ms, sent by by hand");
    assert_eq!(told[5], "delivered first None answered 200");

    database.execute(&format!("select orbhook_delete_webhook('{first}')")).await;
    assert_eq!(trace().await.len(), 6, "history outlives the webhook");
}

/// An answer played by hand says that its request began 20 ms before: what came earlier must lie that far back.
async fn played_request_takes_its_time() {
    let begun = std::time::Instant::now();
    wait_until("the request's 20 ms to pass", DEADLINE, async || {
        (begun.elapsed() > std::time::Duration::from_millis(25)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_trace_of_an_event_that_does_not_exist_says_where_ids_come_from() {
    let database = Database::new().await;
    for id in ["null", "gen_random_uuid()"] {
        let refusal = database.refusal(&format!("select orbhook.event_trace({id})")).await;
        assert_eq!(refusal.sqlstate, "22023");
        assert!(refusal.hint.contains("orbhook_emit returned"), "{refusal:?}");
    }
}

#[tokio::test]
async fn names_types_and_order_of_the_columns_are_those_people_have_written_queries_for() {
    let database = Database::new().await;
    let rows = database.rows(COLUMNS, &[]).await;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    golden("columns.txt", &(lines.join("\n") + "\n"));
}

#[tokio::test]
async fn no_dashboard_reads_the_history_of_deliveries_from_end_to_end() {
    let (database, ..) = set_up(json!({})).await;
    let session = database.connect().await;
    session.execute(HISTORY).await;
    let open_week: String =
        session.one("select to_char(max(starts_on), 'YYYY_MM_DD') from orbhook.periods", &[]).await;
    for query in [
        "select * from orbhook.webhook_health",
        "select * from orbhook.backlog",
        "select * from orbhook.sidecars",
        "select * from orbhook.dead_letters order by finished_at desc limit 20",
        "select * from orbhook.dead_letters where finished_at > now() - interval '1 day'",
        "select * from orbhook.delivery_log order by delivery_id desc limit 20",
        "select * from orbhook.delivery_log where event_id = '00000000-0000-7000-8000-000000000000'",
        "select * from orbhook.delivery_log where delivery_id = '00000000-0000-7000-8000-000000000000'",
    ] {
        let plan = session.rows(&format!("explain {query}"), &[]).await;
        let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let whole = |line: &&String| {
            let history =
                line.contains("Seq Scan on deliveries_2") || line.contains("Seq Scan on attempts_2");
            history && !line.contains(&open_week)
        };
        let whole: Vec<&String> = plan.iter().filter(whole).collect();
        assert!(whole.is_empty(), "{query}: {whole:?}\n{}", plan.join("\n"));
    }
    let trace = "select count(*) from orbhook.event_trace((select event_id from orbhook.deliveries limit 1))";
    assert_eq!(session.one::<i64>(trace, &[]).await, 3, "queued, answered and delivered");
}

/// One line for each view and function: its columns in order, with their types.
const COLUMNS: &str = "
    select v.oid::regclass || ': ' || string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
    from pg_class v
    join pg_attribute a on a.attrelid = v.oid and a.attnum > 0
    where v.relnamespace = 'orbhook'::regnamespace and v.relkind = 'v'
    group by v.oid
    union all
    select p.oid::regprocedure || ': ' || pg_get_function_result(p.oid)
    from pg_proc p
    where p.proname in ('event_trace', 'top', 'orbhook_audit', 'orbhook_explain', 'orbhook_simulate')
    order by 1";

/// 120,000 deliveries finished 13 to 2 weeks ago, in a partition for each week as `_open_period` makes them; one in a
/// thousand has failed.
const HISTORY: &str = "
    select orbhook._open_period(date_trunc('week', now())::date - 7 * n) from generate_series(2, 13) as n;
    create temporary table history as
    select gen_random_uuid() as id, gen_random_uuid() as event_id, (select id from orbhook.webhooks) as webhook_id,
           case when n % 1000 = 0 then 'failed' else 'delivered' end as status,
           date_trunc('week', now()) - interval '13 weeks' + n * interval '60.48 seconds' as at
    from generate_series(0, 119999) as n;
    insert into orbhook.deliveries (id, event_id, webhook_id, status, attempts, outcome_attempt, created_at, finished_at, period)
    select id, event_id, webhook_id, status, 1, 1, at, at, date_trunc('week', at)::date from history;
    insert into orbhook.attempts (delivery_id, number, webhook_id, started_at, duration_ms, status_code, period)
    select id, 1, webhook_id, at, 20, 200, date_trunc('week', at)::date from history;
    analyze";

async fn line(database: &Database, event: Uuid) -> Vec<String> {
    let sql = "select event_type, webhook, status, attempts::text, last_answer, next_try
               from orbhook.delivery_log where event_id = $1";
    let row = database.rows(sql, &[&event]).await.remove(0);
    (0..row.len()).map(|column| row.get::<_, Option<String>>(column).unwrap_or_default()).collect()
}

async fn set_up(changes: Value) -> (Database, Uuid, Claimer) {
    let database = Database::new().await;
    let mut config = generic(ENDPOINT);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let webhook = database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    (database, webhook, claimer)
}
