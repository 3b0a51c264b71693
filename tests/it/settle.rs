use orbhook_tests::{Claimed, Claimer, Database, answered, generic};
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn retries_follow_the_schedule_whose_last_value_repeats_and_then_the_delivery_fails() {
    let (database, claimer) = with(json!({"maxRetries": 4, "retryDelay": [30, 120, 300]})).await;
    database.emit("USER_CREATED", json!({})).await;
    for (failures, scheduled) in [(1, 30.0), (2, 120.0), (3, 300.0), (4, 300.0)] {
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, 500, json!({})).await;
        let (counted, wait) = waiting(&database).await;
        assert_eq!(counted, failures);
        assert!((scheduled - 1.0..=scheduled * 1.1).contains(&wait), "{wait} for {scheduled}");
        make_due(&database).await;
    }
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    assert_eq!(status(&database).await, "failed");
    assert_eq!(
        database.one::<i64>("select count(*) from orbhook.attempts", &[]).await,
        5,
        "one try and four retries"
    );
}

#[tokio::test]
async fn one_number_is_the_wait_before_every_retry() {
    let (database, claimer) = with(json!({"retryDelay": 60})).await;
    database.emit("USER_CREATED", json!({})).await;
    for _ in 0..3 {
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, 502, json!({})).await;
        let (_, wait) = waiting(&database).await;
        assert!((59.0..=66.0).contains(&wait), "{wait}");
        make_due(&database).await;
    }
}

#[tokio::test]
async fn retry_after_makes_a_retry_later_and_never_sooner_or_past_a_day() {
    for (value, expected) in [
        ("600", 600.0),
        ("1", 30.0),
        ("-5", 30.0),
        ("1e300", 30.0),
        ("NaN", 30.0),
        ("99999999999999999", 86_400.0),
    ] {
        let (database, claimer) = with(json!({"retryDelay": 30})).await;
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, 503, json!({"retry-after": value})).await;
        let (_, wait) = waiting(&database).await;
        let latest = if expected > 30.0 { expected } else { 33.0 };
        assert!((expected - 1.0..=latest).contains(&wait), "Retry-After {value}: {wait} s");
    }
}

#[tokio::test]
async fn a_429_pauses_the_webhook_and_uses_up_no_retry_until_the_delivery_is_a_day_old() {
    let (database, claimer) = with(json!({"maxRetries": 0, "retryDelay": 1})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    database.emit("USER_CREATED", json!({})).await;
    claimer.answer(&database, &claimed, 429, json!({"retry-after": "120"})).await;
    assert_eq!(waiting(&database).await.0, 0);
    assert!(claimer.claim(&database, 10).await.is_empty(), "the other delivery waits as well");
    let pause: f64 = database
        .one(
            "select extract(epoch from paused_until - clock_timestamp())::float8 from orbhook.webhook_state",
            &[],
        )
        .await;
    assert!((118.0..=120.0).contains(&pause), "{pause}");

    make_due(&database).await;
    database
        .execute("update orbhook.deliveries_open set first_due_at = clock_timestamp() - interval '25 hours'")
        .await;
    for claimed in claimer.claim(&database, 10).await {
        claimer.answer(&database, &claimed, 429, json!({})).await;
    }
    assert_eq!(status(&database).await, "failed");
}

#[tokio::test]
async fn a_pause_lasts_as_long_as_the_receiver_asked_whatever_the_schedule_says() {
    for (value, pause) in [
        (json!("2"), 2.0),
        (json!("0"), 0.0),
        (json!("soon"), 0.0),
        (json!("-5"), 0.0),
        (json!("9999999"), 86_400.0),
    ] {
        let (database, claimer) = with(json!({"retryDelay": 3600})).await;
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, 429, json!({"retry-after": value})).await;
        let paused: f64 = database
            .one(
                "select extract(epoch from greatest(paused_until, clock_timestamp()) - clock_timestamp())::float8 from orbhook.webhook_state",
                &[],
            )
            .await;
        assert!((pause - 1.0..=pause + 0.001).contains(&paused), "Retry-After {value}: paused {paused} s");
        assert!(waiting(&database).await.1 > 3_598.0, "the delivery itself waits as its schedule says");
    }
}

#[tokio::test]
async fn a_429_costs_what_was_retried_by_hand_no_retry_however_old_it_is() {
    let (database, claimer) = with(json!({"maxRetries": 0})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    assert_eq!(status(&database).await, "failed");
    database.execute("update orbhook.deliveries set created_at = created_at - interval '2 days'").await;
    assert!(database.one::<bool>("select orbhook_retry(id) from orbhook.deliveries", &[]).await);
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 429, json!({})).await;
    assert_eq!((status(&database).await.as_str(), waiting(&database).await.0), ("pending", 0));
}

#[tokio::test]
async fn a_410_to_a_request_from_before_the_webhook_was_changed_does_not_switch_it_off() {
    let (database, claimer) = with(json!({})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    let moved = r#"select orbhook_update_webhook(id, '{"endpoint": "http://127.0.0.1:9/moved"}') from orbhook.webhooks"#;
    database.execute(moved).await;
    let mut result = answered(&claimed, 410, json!({}));
    result["started_ago_ms"] = json!(10_000);
    claimer.settle(&database, json!([result])).await;
    assert!(database.one::<bool>("select active from orbhook.webhooks", &[]).await);
    assert_eq!(status(&database).await, "pending", "the new endpoint gets its chance");
}

#[tokio::test]
async fn classes_of_answers_are_kept_apart() {
    for (answer, body, class) in [
        (302, "", "http_3xx"),
        (404, "", "http_4xx"),
        (502, "", "http_5xx"),
        (429, "", "rate_limited"),
        (200, "invalid_payload", "http_2xx"),
    ] {
        let (database, claimer) = with(json!({"providerType": "SLACK"})).await;
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        let mut result = answered(&claimed, answer, json!({}));
        result["body"] = json!(body);
        claimer.settle(&database, json!([result])).await;
        assert_eq!(database.one::<String>("select error_class from orbhook.attempts", &[]).await, class);
    }
}

#[tokio::test]
async fn jitter_spreads_retries_over_ten_percent() {
    let (database, claimer) = with(json!({"retryDelay": 1000, "maxInFlight": 100, "rateLimit": null})).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 100)").await;
    let failed: Vec<Value> =
        claimer.claim(&database, 100).await.iter().map(|claimed| answered(claimed, 500, json!({}))).collect();
    claimer.settle(&database, json!(failed)).await;
    let spread = "select min(w)::float8, max(w)::float8, count(distinct w) from (
                      select extract(epoch from due_at - max(started_at) over ()) as w
                      from orbhook.deliveries d join orbhook.attempts a on a.delivery_id = d.id) x";
    let row = database.rows(spread, &[]).await.remove(0);
    let (least, most): (f64, f64) = (row.get(0), row.get(1));
    assert!((1000.0..1020.0).contains(&least) && (1080.0..=1100.0).contains(&most), "{least} to {most}");
    assert!(row.get::<_, i64>(2) > 90);
}

#[tokio::test]
async fn the_wait_is_never_under_the_schedule_nor_past_its_bound_and_never_an_error() {
    let database = Database::new().await;
    let wrong = "
        with cases as materialized (
            select n, (array['0', '1e-400', '0.0004', '604800', '30', '[30,120,300]', '[604800]', '[0,1e-400,1]',
                             (random() * 604800)::numeric::text])[1 + n % 9]::jsonb as schedule,
                   (random() * 40)::integer as failures,
                   (array[null, 0, -5, 1e300, 'NaN', '-Infinity', 'Infinity', 86400, random() * 1e6]::float8[])[1 + (n / 9) % 9] as asked,
                   random() as jitter
            from generate_series(1, 20000) n
        ), waits as (
            select c.*, orbhook._retry_delay_seconds(c.schedule, c.failures) as scheduled from cases c
        )
        select count(*) filter (where not coalesce(
                   wait >= scheduled and wait <= greatest(scheduled * 1.1, 86400) and pause between 0 and 86400, false))
        from (select w.*, orbhook._retry_after_seconds(w.scheduled, w.asked, w.jitter) as wait,
                     orbhook._pause_seconds(w.scheduled, w.asked) as pause from waits w) x";
    assert_eq!(database.one::<i64>(wrong, &[]).await, 0);
}

#[tokio::test]
async fn a_410_switches_the_webhook_off_with_a_reason_and_keeps_what_is_queued() {
    let (database, claimer) = with(json!({})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    database.emit("USER_CREATED", json!({})).await;
    claimer.answer(&database, &claimed, 410, json!({})).await;
    let row = database.rows("select active, inactive_reason from orbhook.webhooks", &[]).await.remove(0);
    assert!(!row.get::<_, bool>(0));
    assert!(row.get::<_, String>(1).contains("410"), "{row:?}");
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 1);
    assert!(claimer.claim(&database, 10).await.is_empty());
    database.execute("select orbhook_update_webhook(id, '{\"active\": true}') from orbhook.webhooks").await;
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
    assert!(database.one::<bool>("select inactive_reason is null from orbhook.webhooks", &[]).await);
}

#[tokio::test]
async fn a_success_ends_a_row_of_failures() {
    let (database, claimer) = with(json!({})).await;
    let state = "select consecutive_failures, failing_since is null from orbhook.webhook_state";
    for (answer, failures, well) in [(500, 1, false), (500, 2, false), (200, 0, true), (200, 0, true)] {
        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 1).await.remove(0);
        claimer.answer(&database, &claimed, answer, json!({})).await;
        let row = database.rows(state, &[]).await.remove(0);
        assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (failures, well));
    }
}

#[tokio::test]
async fn an_attempt_is_recorded_with_what_the_sidecar_saw() {
    let (database, claimer) = with(json!({})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    let mut result = answered(&claimed, 500, json!({"server": "x"}));
    result["body"] = json!("oh no");
    result["connect_ms"] = json!(3);
    claimer.settle(&database, json!([result])).await;
    let row = database
        .rows(
            "select number, sidecar, duration_ms, connect_ms, first_byte_ms, address, status_code, error_class,
                    response_headers, response_body, body_cut from orbhook.attempts",
            &[],
        )
        .await
        .remove(0);
    assert_eq!((row.get::<_, i32>(0), row.get::<_, Uuid>(1)), (1, claimer.id));
    assert_eq!((row.get::<_, i32>(2), row.get::<_, i32>(3), row.get::<_, i32>(4)), (12, 3, 11));
    assert_eq!(
        (row.get::<_, &str>(5), row.get::<_, i32>(6), row.get::<_, &str>(7)),
        ("127.0.0.1:80", 500, "http_5xx")
    );
    assert_eq!(
        (row.get::<_, Value>(8), row.get::<_, &str>(9), row.get::<_, bool>(10)),
        (json!({"server": "x"}), "oh no", false)
    );
}

#[tokio::test]
async fn a_batch_settles_each_of_its_results_by_itself() {
    let (database, claimer) = with(json!({"maxInFlight": 100})).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 6)").await;
    let claimed = claimer.claim(&database, 6).await;
    let statuses = [200, 500, 204, 404, 200, 503];
    let results: Vec<Value> =
        claimed.iter().zip(statuses).map(|(claimed, status)| answered(claimed, status, json!({}))).collect();
    let logged = claimer.settle(&database, json!(results)).await;
    assert_eq!(logged.len(), 3, "successes are not worth a line: {logged:?}");
    let counted =
        database.rows("select status, count(*) from orbhook.deliveries group by 1 order by 1", &[]).await;
    let counted: Vec<(String, i64)> = counted.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(counted, [("delivered".to_owned(), 3), ("pending".to_owned(), 3)]);
}

#[tokio::test]
async fn a_finished_delivery_can_be_sent_again_and_keeps_its_id_and_attempts() {
    let (database, claimer) = with(json!({"maxRetries": 0})).await;
    database.emit("USER_CREATED", json!({})).await;
    let first = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &first, 500, json!({})).await;
    assert_eq!(status(&database).await, "failed");
    assert!(database.one::<bool>("select orbhook_retry($1)", &[&first.delivery]).await);
    let again = claimer.claim(&database, 1).await.remove(0);
    assert_eq!((again.delivery, again.attempt), (first.delivery, 2));
    assert!(!database.one::<bool>("select orbhook_retry($1)", &[&first.delivery]).await, "under way");
    claimer.answer(&database, &again, 200, json!({})).await;
    assert_eq!(status(&database).await, "delivered");
    assert!(!database.one::<bool>("select orbhook_retry($1)", &[&Uuid::new_v4()]).await, "no such delivery");
}

#[tokio::test]
async fn a_cancelled_delivery_stays_cancelled_when_its_result_arrives() {
    let (database, claimer) = with(json!({})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    assert!(database.one::<bool>("select orbhook_cancel($1)", &[&claimed.delivery]).await);
    assert_eq!(
        claimer.answer(&database, &claimed, 200, json!({})).await,
        Some(("cancelled".to_owned(), true))
    );
    assert_eq!(status(&database).await, "cancelled");
    assert!(!database.one::<bool>("select orbhook_cancel($1)", &[&claimed.delivery]).await);
}

#[tokio::test]
async fn a_test_goes_out_although_the_webhook_is_paused_and_is_never_retried() {
    let (database, claimer) = with(json!({"subscribedEvents": ["PAYMENT_RECEIVED"]})).await;
    database.execute("select orbhook_pause(id) from orbhook.webhooks").await;
    let delivery: Uuid = database.one("select orbhook_test_webhook(id) from orbhook.webhooks", &[]).await;
    let claimed: Claimed = claimer.claim(&database, 10).await.remove(0);
    assert_eq!((claimed.delivery, claimed.event_type.as_str()), (delivery, "PAYMENT_RECEIVED"));
    let body: Value = serde_json::from_str(&claimed.body).unwrap();
    assert_eq!(body["test"], true);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    assert_eq!(status(&database).await, "failed");
}

async fn with(changes: Value) -> (Database, Claimer) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    (database, claimer)
}

/// Failures counted and seconds until the retry of the delivery that waits longest.
async fn waiting(database: &Database) -> (i32, f64) {
    let select = "select failures, extract(epoch from due_at - clock_timestamp())::float8
                  from orbhook.deliveries_open order by due_at desc limit 1";
    let row = database.rows(select, &[]).await.remove(0);
    (row.get(0), row.get(1))
}

async fn make_due(database: &Database) {
    database
        .execute(
            "update orbhook.deliveries_open set due_at = clock_timestamp();
             update orbhook.webhook_state set paused_until = '-infinity'",
        )
        .await;
}

async fn status(database: &Database) -> String {
    database.one("select status from orbhook.deliveries order by attempts desc limit 1", &[]).await
}
