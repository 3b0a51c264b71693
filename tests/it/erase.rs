use orbhook_tests::{Claimer, Database, answered, generic};
use serde_json::{Value, json};
use uuid::Uuid;

const CANARY: &str = "ada@example.com";

#[tokio::test]
async fn a_persons_data_goes_and_the_ledger_stays() {
    let (database, claimer, ada, other) = with_history().await;
    let erased = database.rows("select * from orbhook_erase('42')", &[]).await.remove(0);
    assert_eq!((erased.get::<_, i64>(0), erased.get::<_, i64>(1), erased.get::<_, i64>(2)), (4, 1, 2));

    for table in ["events", "event_keys", "deliveries", "attempts", "replays"] {
        let rows: Vec<String> = database
            .rows(&format!("select t::text from orbhook.{table} t"), &[])
            .await
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert!(!rows.is_empty(), "{table}");
        assert!(rows.iter().all(|row| !row.contains(CANARY)), "{table}: {rows:?}");
    }
    let kept = "select event_type, payload ->> 'erased' from orbhook.events where id = $1";
    let row = database.rows(kept, &[&ada]).await.remove(0);
    assert_eq!(
        (row.get::<_, String>(0), row.get::<_, String>(1)),
        ("USER_LOGIN".to_owned(), "true".to_owned())
    );
    let payload: Value = database.one("select payload from orbhook.events where id = $1", &[&other]).await;
    assert_eq!(payload["email"], "eve@example.com", "somebody else's stays");
    let statuses = "select string_agg(status, ' ' order by id) from orbhook.deliveries";
    assert_eq!(database.one::<String>(statuses, &[]).await, "delivered failed cancelled pending");
    let violations = database.rows("select * from orbhook_audit(now() - interval '1 day')", &[]).await;
    assert!(violations.is_empty(), "{violations:?}");
    let again = database.rows("select * from orbhook_erase('42')", &[]).await.remove(0);
    assert_eq!(again.get::<_, i64>(0), 0, "once is enough");
    assert_eq!(claimer.claim(&database, 10).await.len(), 1);
}

/// Timers are known by the key of their row, and a subscription's is not its user's.
#[tokio::test]
async fn somebody_elses_subscription_of_the_same_number_keeps_its_timer() {
    let (database, ..) = with_history().await;
    database
        .execute(
            "create table subs (id int primary key, user_id int, trial_ends_at timestamptz, expires_at timestamptz);
             select orbhook_watch('subscriptions', 'subs'); insert into subs values (42, 7, null, now() + interval '1 hour')",
        )
        .await;
    let timers = "select count(*) from orbhook.watch_timers";
    assert_eq!(database.one::<i64>(timers, &[]).await, 1);
    database.execute("select orbhook_erase('42')").await;
    assert_eq!(database.one::<i64>(timers, &[]).await, 1);
}

#[tokio::test]
async fn what_was_erased_is_never_sent_again() {
    let (database, claimer, _, _) = with_history().await;
    database.execute("select orbhook_erase('42')").await;
    let retried =
        "select count(*) filter (where orbhook_retry(id)) from orbhook.deliveries where status <> 'pending'";
    assert_eq!(database.one::<i64>(retried, &[]).await, 0);
    database
        .execute("select orbhook_replay(id, now() - interval '1 day', now(), 'all') from orbhook.webhooks; select orbhook.look(gen_random_uuid())")
        .await;
    let claimed = claimer.claim(&database, 10).await;
    assert!(claimed.iter().all(|claimed| claimed.body.contains("eve@example.com")), "{claimed:?}");
}

#[tokio::test]
async fn the_answer_to_a_request_that_was_under_way_is_recorded_without_its_words() {
    let (database, claimer, _, _) = with_history().await;
    let under_way = claimer.claim(&database, 10).await;
    let of_ada = under_way.iter().find(|claimed| claimed.body.contains(CANARY)).expect("the pending one");
    database.execute("select orbhook_erase('42')").await;
    let mut result = answered(of_ada, 200, json!({"x-echo": CANARY}));
    result["body"] = json!(CANARY);
    assert_eq!(claimer.settle(&database, json!([result])).await, [("cancelled".to_owned(), true)]);
    let recorded = "select status_code || ' ' || a::text from orbhook.attempts a where delivery_id = $1";
    let recorded: String = database.one(recorded, &[&of_ada.delivery]).await;
    assert!(recorded.starts_with("200 ") && !recorded.contains(CANARY), "{recorded}");
}

#[tokio::test]
async fn a_jsonpath_chooses_as_a_filter_does() {
    let (database, _, _, other) = with_history().await;
    let erase = "select events from orbhook_erase('$.email == \"eve@example.com\"'::jsonpath)";
    assert_eq!(database.one::<i64>(erase, &[]).await, 1);
    assert!(
        database.one::<bool>("select payload ? 'erased' from orbhook.events where id = $1", &[&other]).await
    );
    let left = "select count(*) from orbhook.events where payload::text like '%ada@example.com%'";
    assert_eq!(database.one::<i64>(left, &[]).await, 4, "three and the report of one that failed");
}

#[tokio::test]
async fn nobody_is_erased_by_an_empty_name_or_without_the_right() {
    let database = Database::new().await;
    for call in ["orbhook_erase('')", "orbhook_erase(null::text)", "orbhook_erase(null::jsonpath)"] {
        assert_eq!(database.refusal(&format!("select {call}")).await.sqlstate, "22023", "{call}");
    }
    let reader = database.role("reader_payload").await;
    let reader = database.connect_as(&reader).await;
    assert_eq!(reader.refusal("select orbhook_erase('42')").await.sqlstate, "42501");
}

/// Of user 42 one delivery each that was delivered (the receiver repeated the data), failed, and is pending; of another
/// one that is pending. Returns the first event and the other's.
async fn with_history() -> (Database, Claimer, Uuid, Uuid) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    config["maxRetries"] = json!(0);
    let webhook = database.create_webhook(config).await;
    let claimer = Claimer::register(&database).await;
    let emit = "select orbhook_emit('USER_LOGIN', $1, $2)";
    let mut first = None;
    for (number, (payload, status)) in [
        (json!({"userId": 42, "email": CANARY}), Some(200)),
        (json!({"user": {"userId": "42", "email": CANARY}}), Some(500)),
        (json!({"userId": "42", "email": CANARY}), None),
    ]
    .into_iter()
    .enumerate()
    {
        let event: Uuid = database.one(emit, &[&payload, &format!("{CANARY} {number}")]).await;
        first.get_or_insert(event);
        let Some(status) = status else { continue };
        let claimed = claimer.claim(&database, 1).await.remove(0);
        let mut result = answered(&claimed, status, json!({"x-echo": CANARY}));
        result["body"] = json!(format!("got {CANARY}"));
        claimer.settle(&database, json!([result])).await;
    }
    database
        .execute(&format!(
            "select orbhook_replay('{webhook}', now() - interval '1 day', now() - interval '1 hour', '$.userId == \"42\" || $.email == \"{CANARY}\"')"
        ))
        .await;
    let other = database.emit("USER_LOGIN", json!({"userId": 43, "email": "eve@example.com"})).await;
    (database, claimer, first.expect("there were some"), other)
}
