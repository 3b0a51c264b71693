use orbhook_tests::{Claimer, Database, answered, generic};
use serde_json::json;
use uuid::Uuid;

const ENDPOINT: &str = "http://127.0.0.1:9/hook";

#[tokio::test]
async fn two_claims_never_get_the_same_delivery() {
    let (database, _) = with_events(20).await;
    let (one, other) = (Claimer::register(&database).await, Claimer::register(&database).await);
    let first = one.claim(&database, 7).await;
    let second = other.claim(&database, 100).await;
    assert_eq!((first.len(), second.len()), (7, 13));
    assert!(first.iter().all(|claimed| second.iter().all(|other| other.delivery != claimed.delivery)));
    assert!(one.claim(&database, 100).await.is_empty());
}

#[tokio::test]
async fn a_claim_leases_for_the_timeout_and_ten_seconds() {
    let (database, _) = with_events(1).await;
    let claimed = Claimer::register(&database).await.claim(&database, 1).await.remove(0);
    assert_eq!((claimed.attempt, claimed.lease_ms), (1, 25_000));
    assert_eq!(claimed.secrets["endpoint"], ENDPOINT);
    assert!(claimed.secrets["signing"].as_str().unwrap().starts_with("whsec_"));
}

#[tokio::test]
async fn a_late_result_from_an_expired_lease_changes_nothing_and_is_recorded() {
    let (database, _) = with_events(1).await;
    let (slow, fresh) = (Claimer::register(&database).await, Claimer::register(&database).await);
    let late = slow.claim(&database, 1).await.remove(0);
    expire_leases(&database).await;
    let current = fresh.claim(&database, 1).await.remove(0);
    assert_eq!((current.delivery, current.attempt), (late.delivery, 2));

    assert_eq!(slow.answer(&database, &late, 200, json!({})).await, Some(("pending".to_owned(), true)));
    let lease = "select status, attempts, claimed_by from orbhook.deliveries";
    let row = database.rows(lease, &[]).await.remove(0);
    assert_eq!(
        (row.get::<_, String>(0), row.get::<_, i32>(1), row.get::<_, Uuid>(2)),
        ("pending".to_owned(), 2, fresh.id)
    );

    fresh.answer(&database, &current, 500, json!({})).await;
    let attempts = "select number, late, status_code from orbhook.attempts order by number";
    let attempts: Vec<(i32, bool, i32)> =
        database.rows(attempts, &[]).await.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(attempts, [(1, true, 200), (2, false, 500)]);
    assert_eq!(slow.answer(&database, &late, 200, json!({})).await, None, "reported twice, recorded once");
}

#[tokio::test]
async fn a_lease_that_ran_out_leaves_an_attempt_with_unknown_outcome_that_costs_no_retry() {
    let (database, _) = with_events(1).await;
    let claimer = Claimer::register(&database).await;
    claimer.claim(&database, 1).await;
    expire_leases(&database).await;
    let second = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &second, 503, json!({})).await;
    let row = database.rows("select attempts, failures from orbhook.deliveries", &[]).await.remove(0);
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (2, 1));
    let unknown = "select error_class from orbhook.attempts where number = 1 and sidecar = $1";
    assert_eq!(database.one::<String>(unknown, &[&claimer.id]).await, "unknown");
}

#[tokio::test]
async fn twenty_unknown_outcomes_in_a_row_end_the_delivery() {
    let (database, _) = with_events(1).await;
    let claimer = Claimer::register(&database).await;
    for attempt in 1..=20 {
        assert_eq!(claimer.claim(&database, 1).await.remove(0).attempt, attempt);
        expire_leases(&database).await;
    }
    assert!(claimer.claim(&database, 1).await.is_empty());
    let row = database.rows("select status, last_error from orbhook.deliveries", &[]).await.remove(0);
    assert_eq!(row.get::<_, String>(0), "failed");
    assert!(row.get::<_, String>(1).starts_with("outcome unknown"));
}

#[tokio::test]
async fn what_a_dead_sidecar_had_is_free_at_once() {
    let (database, _) = with_events(3).await;
    let dying = database.connect().await;
    let id = Uuid::new_v4();
    assert!(dying.one::<bool>("select orbhook.register($1, 'dying', '0', true)", &[&id]).await);
    let survivor = Claimer::register(&database).await;
    assert_eq!(Claimer { id }.claim(&database, 10).await.len(), 3);

    assert_eq!(look(&database, &survivor).await, Some(24), "its leases run");
    drop(dying);
    orbhook_tests::wait_until("the survivor to notice", orbhook_tests::DEADLINE, async || {
        (look(&database, &survivor).await == Some(0)).then_some(())
    })
    .await;
    assert_eq!(survivor.claim(&database, 10).await.len(), 3);
}

#[tokio::test]
async fn an_id_that_is_taken_is_not_registered_again() {
    let database = Database::new().await;
    let id = Uuid::new_v4();
    let session = database.connect().await;
    let register = "select orbhook.register($1, 'one', '0', true)";
    assert!(session.one::<bool>(register, &[&id]).await);
    assert!(!database.one::<bool>(register, &[&id]).await);
}

#[tokio::test]
async fn every_webhook_has_its_turn_although_one_has_a_long_queue() {
    let database = Database::new().await;
    let long = webhook(&database, json!({"subscribedEvents": ["USER_LOGIN"], "maxInFlight": 1000})).await;
    let mut short = Vec::new();
    for _ in 0..3 {
        short.push(webhook(&database, json!({"subscribedEvents": ["USER_LOGOUT"]})).await);
    }
    database.execute("select orbhook_emit('USER_LOGIN', '{}') from generate_series(1, 2000)").await;
    database.execute("select orbhook_emit('USER_LOGOUT', '{}')").await;

    let claimed = Claimer::register(&database).await.claim(&database, 8).await;
    assert!(short.iter().all(|id| claimed.iter().any(|claimed| claimed.webhook == *id)), "{claimed:?}");
    assert!(claimed.iter().any(|claimed| claimed.webhook == long));
}

#[tokio::test]
async fn a_claim_goes_on_behind_the_webhook_where_the_last_one_stopped() {
    let database = Database::new().await;
    for _ in 0..6 {
        webhook(&database, json!({})).await;
    }
    database.execute("select orbhook_emit('USER_LOGIN', '{}') from generate_series(1, 100)").await;
    let claimer = Claimer::register(&database).await;
    let mut after = None;
    let mut served = Vec::new();
    for _ in 0..3 {
        let claimed = claimer.claim_after(&database, 2, after).await;
        after = claimed.last().map(|claimed| claimed.webhook);
        served.extend(claimed.into_iter().map(|claimed| claimed.webhook));
    }
    served.sort();
    served.dedup();
    assert_eq!(served.len(), 6, "three claims of two serve all six");
}

/// A claim that begins with those whose requests are all under way, as many as endpoints that hang at one provider.
#[tokio::test]
async fn webhooks_with_everything_under_way_do_not_hide_those_behind_them() {
    const HANGING: usize = 30;
    for (deliveries, cap) in [(1, 10), (2, 1)] {
        let database = Database::new().await;
        for _ in 0..HANGING {
            let mut config = generic("http://127.0.0.1:9/hook");
            config["subscribedEvents"] = json!(["USER_ACTION"]);
            config["maxInFlight"] = json!(cap);
            database.create_webhook(config).await;
        }
        let mut config = generic("http://127.0.0.1:9/hook");
        config["subscribedEvents"] = json!(["USER_CREATED"]);
        let last = database.create_webhook(config).await;
        let claimer = Claimer::register(&database).await;
        for _ in 0..deliveries {
            database.emit("USER_ACTION", json!({})).await;
        }
        assert_eq!(claimer.claim(&database, 200).await.len(), HANGING);

        database.emit("USER_CREATED", json!({})).await;
        let claimed = claimer.claim(&database, 10).await;
        let webhooks: Vec<Uuid> = claimed.iter().map(|claimed| claimed.webhook).collect();
        assert_eq!(webhooks, [last], "{deliveries} each, {cap} at a time");
    }
}

#[tokio::test]
async fn a_webhook_whose_limit_is_taken_away_goes_on_at_once() {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["rateLimit"] = json!(0.01);
    database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    for _ in 0..2 {
        database.emit("USER_ACTION", json!({})).await;
    }
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
    let look = "select orbhook.look($1)";
    let wait = database.one::<Option<i32>>(look, &[&claimer.id]).await;
    assert!(wait.is_some_and(|ms| ms > 90_000), "{wait:?}");
    database.execute("update orbhook.webhooks set rate_limit_per_second = null").await;
    assert_eq!(database.one::<Option<i32>>(look, &[&claimer.id]).await, Some(0));
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
}

#[tokio::test]
async fn no_more_than_max_in_flight_are_leased_over_all_sidecars() {
    let database = Database::new().await;
    webhook(&database, json!({"maxInFlight": 4})).await;
    database.execute("select orbhook_emit('USER_LOGIN', '{}') from generate_series(1, 10)").await;
    let (one, other) = (Claimer::register(&database).await, Claimer::register(&database).await);
    let mut first = one.claim(&database, 3).await;
    assert_eq!(first.len(), 3);
    assert_eq!(other.claim(&database, 100).await.len(), 1);
    assert!(one.claim(&database, 100).await.is_empty());
    one.answer(&database, &first.remove(0), 200, json!({})).await;
    assert_eq!(other.claim(&database, 100).await.len(), 1, "one came back, one may go");
}

#[tokio::test]
async fn tokens_are_spaced_and_handed_out_for_a_quarter_of_a_second_ahead() {
    let database = Database::new().await;
    webhook(&database, json!({"rateLimit": 16, "maxInFlight": 100})).await;
    database.execute("select orbhook_emit('USER_LOGIN', '{}') from generate_series(1, 20)").await;
    let claimer = Claimer::register(&database).await;
    let waits: Vec<i32> =
        claimer.claim(&database, 100).await.iter().map(|claimed| claimed.send_after_ms).collect();
    assert_eq!(waits, [0, 63, 125, 188, 250]);
    assert!(
        Claimer::register(&database).await.claim(&database, 1).await.is_empty()
            || database
                .one::<bool>("select max(next_send_at) > clock_timestamp() from orbhook.webhook_state", &[])
                .await,
        "what is given away is not given away again"
    );
    let failures: i64 = database.one("select sum(failures) from orbhook.deliveries", &[]).await;
    assert_eq!(failures, 0, "waiting is no failure");
}

#[tokio::test]
async fn a_claim_is_durable_before_the_request_whatever_the_session_says() {
    let (database, _) = with_events(3).await;
    let claimer = Claimer::register(&database).await;
    let session = database.connect().await;
    for (given, effective) in [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")] {
        session.execute(&format!("set synchronous_commit = {given}; begin")).await;
        let claim = "select count(*) from orbhook.claim($1, 1, null)";
        assert_eq!(session.one::<i64>(claim, &[&claimer.id]).await, 1);
        let setting = "select current_setting('synchronous_commit')";
        assert_eq!(session.one::<String>(setting, &[]).await, effective);
        session.execute("commit").await;
        assert_eq!(session.one::<String>(setting, &[]).await, given, "and only for that transaction");
    }
}

#[tokio::test]
async fn a_released_delivery_is_claimed_again_and_nothing_is_counted() {
    let (database, _) = with_events(1).await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    let released = json!([{"delivery": claimed.delivery.to_string(), "attempt": 1, "outcome": "released", "started_ago_ms": 0}]);
    assert!(claimer.settle(&database, released).await.is_empty());
    assert_eq!(claimer.claim(&database, 1).await.remove(0).attempt, 2);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.attempts", &[]).await, 0);
}

#[tokio::test]
async fn a_paused_webhook_queues_and_an_inactive_one_keeps_what_it_has() {
    let (database, webhook) = with_events(1).await;
    let claimer = Claimer::register(&database).await;
    database.execute(&format!("select orbhook_pause('{webhook}')")).await;
    database.emit("USER_CREATED", json!({})).await;
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert_eq!(look(&database, &claimer).await, None);
    database.execute(&format!("select orbhook_resume('{webhook}')")).await;
    let claimed = claimer.claim(&database, 1).await;
    assert_eq!(claimed.len(), 1);

    database.execute(&format!("select orbhook_update_webhook('{webhook}', '{{\"active\": false}}')")).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    let skipped: serde_json::Value =
        database.one("select skipped from orbhook.events where id = $1", &[&event]).await;
    assert_eq!(skipped, json!([{"webhook": webhook.to_string(), "reason": "inactive"}]));
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries_open", &[]).await, 2);
    claimer.settle(&database, json!([answered(&claimed[0], 200, json!({}))])).await;
    assert_eq!(
        database.one::<i64>("select count(*) from orbhook.deliveries where status = 'delivered'", &[]).await,
        1
    );
}

#[tokio::test]
async fn deleting_a_webhook_cancels_what_is_pending_also_what_is_committed_afterwards() {
    let (database, webhook) = with_events(2).await;
    let emitter = database.connect().await;
    emitter.execute("begin; select orbhook_emit('USER_CREATED', '{}')").await;
    database.execute(&format!("select orbhook_delete_webhook('{webhook}')")).await;
    let cancelled = "select count(*) from orbhook.deliveries where status = 'cancelled' and last_error = 'webhook deleted'";
    assert_eq!(database.one::<i64>(cancelled, &[]).await, 2);
    emitter.execute("commit").await;
    let claimer = Claimer::register(&database).await;
    assert_eq!(look(&database, &claimer).await, Some(0));
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert_eq!(database.one::<i64>(cancelled, &[]).await, 3);

    // A test call as well, which goes out past every other rule.
    let webhook = self::webhook(&database, json!({})).await;
    emitter.execute(&format!("begin; select orbhook_test_webhook('{webhook}')")).await;
    database.execute(&format!("select orbhook_delete_webhook('{webhook}')")).await;
    emitter.execute("commit").await;
    assert!(claimer.claim(&database, 10).await.is_empty());
    assert_eq!(database.one::<i64>(cancelled, &[]).await, 4);
    assert_eq!(look(&database, &claimer).await, None);
    assert_eq!(look(&database, &claimer).await, None);
}

#[tokio::test]
async fn what_is_older_than_max_age_is_cancelled_instead_of_sent() {
    let database = Database::new().await;
    webhook(&database, json!({"maxAgeSeconds": 60})).await;
    database.emit("USER_CREATED", json!({"n": 1})).await;
    database.execute("update orbhook.deliveries set due_at = due_at - interval '61 seconds'").await;
    database.emit("USER_CREATED", json!({"n": 2})).await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 10).await;
    assert_eq!(claimed.len(), 1);
    look(&database, &claimer).await;
    let reason = "select last_error from orbhook.deliveries where status = 'cancelled'";
    assert_eq!(database.one::<String>(reason, &[]).await, "older than maxAgeSeconds");
}

#[tokio::test]
async fn what_is_too_old_takes_no_send_time_from_what_is_not() {
    let database = Database::new().await;
    webhook(&database, json!({"maxAgeSeconds": 60, "rateLimit": 1})).await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 1000)").await;
    database.execute("update orbhook.deliveries set due_at = due_at - interval '61 seconds'").await;
    let event = database.emit("USER_CREATED", json!({})).await;
    let claimed = Claimer::register(&database).await.claim(&database, 10).await;
    let fresh: Uuid = database.one("select id from orbhook.deliveries where event_id = $1", &[&event]).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.delivery).collect::<Vec<_>>(), [fresh]);
}

#[tokio::test]
async fn the_age_counts_from_when_it_was_first_due_and_again_from_a_retry_by_hand() {
    let database = Database::new().await;
    webhook(&database, json!({"maxAgeSeconds": 60, "retryDelay": 30, "maxRetries": 100})).await;
    let claimer = Claimer::register(&database).await;
    // Emitted long before it is due.
    let later = "select orbhook_emit('USER_CREATED', '{}', deliver_at => clock_timestamp() + interval '1 hour');
                 update orbhook.deliveries set created_at = created_at - interval '1 hour', due_at = due_at - interval '1 hour'";
    database.execute(later).await;
    look(&database, &claimer).await;
    let mut claimed = claimer.claim(&database, 10).await;
    assert_eq!(claimed.len(), 1);
    claimer.answer(&database, &claimed.remove(0), 500, json!({})).await;

    // Its retry is due too late.
    let age = "update orbhook.deliveries_open set due_at = clock_timestamp(), first_due_at = first_due_at - interval '61 seconds'";
    database.execute(age).await;
    assert!(claimer.claim(&database, 10).await.is_empty());
    look(&database, &claimer).await;
    assert_eq!(database.one::<String>("select status from orbhook.deliveries", &[]).await, "cancelled");

    assert!(database.one::<bool>("select orbhook_retry(id) from orbhook.deliveries", &[]).await);
    look(&database, &claimer).await;
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
}

#[tokio::test]
async fn an_older_transaction_that_commits_late_does_not_lift_the_in_flight_cap() {
    let database = Database::new().await;
    webhook(&database, json!({"maxInFlight": 3, "rateLimit": null})).await;
    let older = database.connect().await;
    older.execute("begin; select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 3)").await;
    database.execute("select orbhook_emit('USER_CREATED', '{}') from generate_series(1, 3)").await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 10).await;
    assert_eq!(claimed.len(), 3);
    older.execute("commit").await;
    let held = "select count(*) from orbhook.claim($1, 10, null, 0, 100, array[$2::uuid], array[3])";
    assert_eq!(database.one::<i64>(held, &[&claimer.id, &claimed[0].webhook]).await, 0);
    let held = "select count(*) from orbhook.claim($1, 10, null, 0, 100, array[$2::uuid], array[2])";
    assert_eq!(database.one::<i64>(held, &[&claimer.id, &claimed[0].webhook]).await, 1);
}

#[tokio::test]
async fn a_sidecar_gets_no_more_of_one_webhook_than_its_share() {
    let (database, webhook) = with_events(20).await;
    let claimer = Claimer::register(&database).await;
    let claim =
        "select count(*) from orbhook.claim($1, 100, null, 0, 8, array[$2::uuid], array[$3::integer])";
    let mut held = 0;
    for expected in [8, 0] {
        let got: i64 = database.one(claim, &[&claimer.id, &webhook, &held]).await;
        assert_eq!(got, expected);
        held += i32::try_from(got).unwrap();
    }
    assert_eq!(database.one::<i64>(claim, &[&claimer.id, &webhook, &6]).await, 2);
}

#[tokio::test]
async fn a_claim_that_takes_long_gets_moments_that_are_still_to_come() {
    let database = Database::new().await;
    webhook(&database, json!({"rateLimit": 10, "maxInFlight": 100})).await;
    webhook(&database, json!({"rateLimit": null})).await;
    database.emit("USER_CREATED", json!({})).await;
    let claimer = Claimer::register(&database).await;
    let moments = "select coalesce(send_after_ms, -1) from orbhook.claim($1, 10, null, 900) order by 1";
    let moments: Vec<i32> =
        database.rows(moments, &[&claimer.id]).await.iter().map(|row| row.get(0)).collect();
    assert_eq!(moments, [-1, 900], "without a limit there is nothing to wait for");
}

#[tokio::test]
async fn a_payload_that_cannot_be_rendered_fails_its_own_delivery_and_no_other() {
    let database = Database::new().await;
    webhook(&database, json!({"providerType": "ZAPIER"})).await;
    database.emit("USER_CREATED", json!({"n": 1})).await;
    let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    database.execute(&format!("select orbhook_emit('USER_CREATED', '{deep}')")).await;
    database.emit("USER_CREATED", json!({"n": 3})).await;
    let claimed = Claimer::register(&database).await.claim(&database, 10).await;
    assert_eq!(claimed.len(), 2);
    let row = database.rows("select d.last_error, a.error_class from orbhook.deliveries d join orbhook.attempts a on a.delivery_id = d.id where d.status = 'failed'", &[]).await.remove(0);
    assert!(row.get::<_, String>(0).contains("nested"), "{row:?}");
    assert_eq!(row.get::<_, String>(1), "render");
}

#[tokio::test]
async fn deliver_at_waits_and_the_idle_look_says_how_long() {
    let database = Database::new().await;
    webhook(&database, json!({})).await;
    database
        .execute(
            "select orbhook_emit('USER_CREATED', '{}', deliver_at => clock_timestamp() + interval '1 hour')",
        )
        .await;
    let claimer = Claimer::register(&database).await;
    assert!(claimer.claim(&database, 1).await.is_empty());
    let wait: i32 = database.one("select orbhook.look($1)", &[&claimer.id]).await;
    assert!((3_590_000..=3_600_000).contains(&wait), "{wait}");
}

async fn with_events(count: i32) -> (Database, Uuid) {
    let database = Database::new().await;
    let id = webhook(&database, json!({"maxInFlight": 100})).await;
    database
        .execute(&format!("select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {count})"))
        .await;
    (database, id)
}

async fn webhook(database: &Database, changes: serde_json::Value) -> Uuid {
    let mut config = generic(ENDPOINT);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    database.create_webhook(config).await
}

async fn expire_leases(database: &Database) {
    database
        .execute("update orbhook.deliveries_open set lease_until = clock_timestamp() - interval '1 second'")
        .await;
}

/// What the idle look answers, in whole seconds.
async fn look(database: &Database, claimer: &Claimer) -> Option<i32> {
    database.one::<Option<i32>>("select orbhook.look($1) / 1000", &[&claimer.id]).await
}
