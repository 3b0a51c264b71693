use orbhook_tests::{Claimer, Database, Session, generic};
use serde_json::{Value, json};
use uuid::Uuid;

const ENDPOINT: &str = "http://127.0.0.1:9/hook/secret-path";

#[tokio::test]
async fn what_is_captured_is_what_the_claim_hands_out_after_the_commit() {
    let database = Database::new().await;
    webhook(&database, json!({"name": "all", "headers": {"X-Key": "secret-header"}})).await;
    webhook(&database, json!({"name": "slack", "providerType": "SLACK"})).await;
    let session = database.connect().await;
    session.execute("begin").await;
    session.rows("select orbhook_emit('USER_CREATED', '{\"userId\": 1}')", &[]).await;
    let captured =
        session.rows("select delivery_id, body, method, url, headers::text from orbhook.captured", &[]).await;
    assert_eq!(captured.len(), 2);
    for row in &captured {
        assert_eq!(row.get::<_, String>(2), "POST");
        assert_eq!(row.get::<_, String>(3), "http://127.0.0.1:9/********");
        assert!(!row.get::<_, String>(4).contains("secret"), "masked: {row:?}");
    }
    session.execute("commit").await;
    assert!(
        session.rows("select from orbhook.captured", &[]).await.is_empty(),
        "of this transaction, not of the last"
    );

    let claimed = Claimer::register(&database).await.claim(&database, 10).await;
    assert_eq!(claimed.len(), 2);
    for claimed in claimed {
        let same = |row: &&tokio_postgres::Row| row.get::<_, Uuid>(0) == claimed.delivery;
        let row = captured.iter().find(same).unwrap();
        assert_eq!(row.get::<_, String>(1), claimed.body);
    }
}

#[tokio::test]
async fn savepoints_that_were_kept_are_captured_and_those_rolled_back_are_not() {
    let database = Database::new().await;
    webhook(&database, json!({})).await;
    let session = database.connect().await;
    session
        .execute(
            "begin; select orbhook_emit('USER_CREATED', '{\"n\": 1}');
             savepoint a; select orbhook_emit('USER_CREATED', '{\"n\": 2}');
             savepoint b; select orbhook_emit('USER_CREATED', '{\"n\": 3}'); release b; release a;
             savepoint c; select orbhook_emit('USER_CREATED', '{\"n\": 4}'); rollback to c;
             savepoint d; select orbhook_emit('USER_CREATED', '{\"n\": 5}')",
        )
        .await;
    // Another transaction, newer and committed, is none of this one's.
    database.emit("USER_CREATED", json!({"n": 6})).await;
    session
        .execute(
            "do $$ begin
                 begin perform orbhook_emit('USER_CREATED', '{\"n\": 7}'); raise division_by_zero; exception when division_by_zero then null; end;
                 begin perform orbhook_emit('USER_CREATED', '{\"n\": 8}'); exception when division_by_zero then null; end;
             end $$",
        )
        .await;
    assert_eq!(captured(&session, "(payload -> 'n')::int4").await, [1, 2, 3, 5, 8]);
    session.execute("rollback").await;
    assert_eq!(captured(&session, "(payload -> 'n')::int4").await, [0; 0]);
}

#[tokio::test]
async fn an_event_that_nobody_gets_is_captured_with_the_reason() {
    let database = Database::new().await;
    let id = webhook(&database, json!({"filter": "$.amount > 100"})).await;
    let session = database.connect().await;
    session.execute("begin; select orbhook_emit('PAYMENT_RECEIVED', '{\"amount\": 5}')").await;
    let row = session.rows("select delivery_id, skipped, body from orbhook.captured", &[]).await.remove(0);
    assert_eq!(row.get::<_, Option<Uuid>>(0), None);
    assert_eq!(row.get::<_, Value>(1), json!([{"webhook": id.to_string(), "reason": "filtered"}]));
    assert_eq!(row.get::<_, Option<String>>(2), None);
}

#[tokio::test]
async fn an_old_delivery_that_this_transaction_sends_again_is_captured() {
    let database = Database::new().await;
    webhook(&database, json!({"maxRetries": 0})).await;
    database.emit("USER_CREATED", json!({"n": 1})).await;
    database.emit("USER_CREATED", json!({"n": 2})).await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    claimer.answer(&database, &claimed, 500, json!({})).await;
    let session = database.connect().await;
    session.execute(&format!("begin; select orbhook_retry('{}')", claimed.delivery)).await;
    assert_eq!(captured(&session, "(payload -> 'n')::int4").await, [1]);
}

#[tokio::test]
async fn a_simulation_steps_through_the_schedule_to_the_end() {
    let database = Database::new().await;
    webhook(&database, json!({"maxRetries": 2, "retryDelay": [30, 120]})).await;
    let (session, delivery) = emitted(&database).await;
    for (attempt, wait) in [(1, 30.0), (2, 120.0)] {
        let step = simulate(&session, delivery, "500").await;
        assert_eq!((step.status.as_str(), step.attempt, step.failures), ("pending", attempt, attempt));
        let due_in = step.due_in.unwrap();
        assert!((wait - 1.0..=wait * 1.1).contains(&due_in), "{due_in} for {wait}");
    }
    let last = simulate(&session, delivery, "500").await;
    assert_eq!((last.status.as_str(), last.due_in), ("failed", None));
    assert!(last.reason.unwrap().contains("500"));
    let letters = "select count(*) from orbhook.dead_letters";
    assert_eq!(session.one::<i64>(letters, &[]).await, 1);
    session.execute("rollback").await;
    assert_eq!(session.one::<i64>("select count(*) from orbhook.attempts", &[]).await, 0, "nothing is left");
}

/// What follows from a simulated answer is what follows from a real one.
#[tokio::test]
async fn a_simulated_answer_does_what_the_same_answer_from_a_receiver_does() {
    for (provider, status, headers) in [
        ("GENERIC", 200, json!({})),
        ("GENERIC", 302, json!({"location": "http://127.0.0.1/"})),
        ("GENERIC", 400, json!({})),
        ("GENERIC", 410, json!({})),
        ("GENERIC", 429, json!({"retry-after": "500"})),
        ("GENERIC", 503, json!({"retry-after": "500"})),
        ("SLACK", 404, json!({})),
        ("ZAPIER", 413, json!({})),
    ] {
        let mut seen = Vec::new();
        for simulated in [true, false] {
            let database = Database::new().await;
            webhook(&database, json!({"providerType": provider})).await;
            database.emit("USER_CREATED", json!({})).await;
            if simulated {
                let headers: Value = headers
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(name, value)| (name.to_uppercase(), value.clone()))
                    .collect();
                let sql = "select from orbhook_simulate((select id from orbhook.deliveries), $1, $2)";
                database.rows(sql, &[&status, &headers]).await;
            } else {
                let claimer = Claimer::register(&database).await;
                let claimed = claimer.claim(&database, 1).await.remove(0);
                claimer.answer(&database, &claimed, u16::try_from(status).unwrap(), headers.clone()).await;
            }
            let outcome = "select concat_ws(' | ', d.status, d.attempts, d.failures, d.last_status_code, d.last_error, w.active,
                                  w.inactive_reason, s.consecutive_failures, round(extract(epoch from nullif(s.paused_until, '-infinity') - now()) / 100),
                                  a.status_code, a.error_class, a.error)
                           from orbhook.deliveries d join orbhook.webhooks w on true join orbhook.webhook_state s on true
                           join orbhook.attempts a on a.delivery_id = d.id";
            seen.push(database.one::<String>(outcome, &[]).await);
        }
        assert_eq!(seen[0], seen[1], "{provider} {status} {headers}");
    }
}

#[tokio::test]
async fn no_answer_is_simulated_by_a_null_status() {
    let database = Database::new().await;
    webhook(&database, json!({})).await;
    let (session, delivery) = emitted(&database).await;
    let step = simulate(&session, delivery, "null").await;
    assert_eq!((step.status.as_str(), step.failures), ("pending", 1));
    assert_eq!(step.reason.as_deref(), Some("simulated: no answer"));
}

#[tokio::test]
async fn a_simulation_that_cannot_be_says_why() {
    let database = Database::new().await;
    webhook(
        &database,
        json!({"providerType": "GOHIGHLEVEL", "endpoint": "https://services.leadconnectorhq.com/contacts",
                              "providerSpecificConfig": {"apiKey": "k", "locationId": "l"}}),
    )
    .await;
    let (session, delivery) = emitted(&database).await;
    session.execute("commit").await;
    for (arguments, sqlstate, says) in [
        ("gen_random_uuid(), 200".to_owned(), "22023", "no pending delivery"),
        ("null, 200".to_owned(), "22023", "no pending delivery"),
        (format!("'{delivery}', 99"), "22023", "between 100 and 599"),
        (format!("'{delivery}', 600"), "22023", "between 100 and 599"),
        (format!("'{delivery}', 200, '[]'"), "22023", "headers must be a JSON object"),
        (format!("'{delivery}', 200"), "22023", "would not be sent: no contact identity"),
    ] {
        let refusal = session.refusal(&format!("select orbhook_simulate({arguments})")).await;
        assert_eq!(refusal.sqlstate, sqlstate, "{arguments}: {refusal:?}");
        assert!(refusal.message.contains(says), "{arguments}: {refusal:?}");
    }

    let database = Database::new().await;
    webhook(&database, json!({})).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    Claimer::register(&database).await.claim(&database, 1).await;
    let sql = format!(
        "select orbhook_simulate((select id from orbhook.deliveries where event_id = '{event}'), 200)"
    );
    let refusal = database.refusal(&sql).await;
    assert_eq!(refusal.sqlstate, "55006", "{refusal:?}");
}

#[tokio::test]
async fn a_simulation_that_was_committed_is_found_by_the_audit() {
    let database = Database::new().await;
    webhook(&database, json!({})).await;
    let (session, delivery) = emitted(&database).await;
    simulate(&session, delivery, "200").await;
    session.execute("commit").await;
    let found = "select violation from orbhook_audit(now() - interval '1 hour') where delivery_id = $1";
    assert_eq!(database.one::<String>(found, &[&delivery]).await, "delivered by a simulation");
}

struct Step {
    status: String,
    attempt: i32,
    failures: i32,
    /// Seconds.
    due_in: Option<f64>,
    reason: Option<String>,
}

async fn simulate(session: &Session, delivery: Uuid, status: &str) -> Step {
    let sql = format!(
        "select delivery_status, attempt, failures, extract(epoch from due_in)::float8, reason
         from orbhook_simulate('{delivery}', {status})"
    );
    let row = session.rows(&sql, &[]).await.remove(0);
    Step {
        status: row.get(0),
        attempt: row.get(1),
        failures: row.get(2),
        due_in: row.get(3),
        reason: row.get(4),
    }
}

/// A session with an open transaction that has emitted one event, and its delivery.
async fn emitted(database: &Database) -> (Session, Uuid) {
    let session = database.connect().await;
    session.execute("begin; select orbhook_emit('USER_CREATED', '{}')").await;
    let delivery = session.one("select delivery_id from orbhook.captured", &[]).await;
    (session, delivery)
}

async fn captured(session: &Session, expression: &str) -> Vec<i32> {
    let sql = format!("select {expression} as it from orbhook.captured order by 1");
    session.rows(&sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

async fn webhook(database: &Database, changes: Value) -> Uuid {
    let mut config = generic(ENDPOINT);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    database.create_webhook(config).await
}
