use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orbhook_tests::{
    Answer, DEADLINE, Database, Gate, Receiver, Request, Sidecar, SidecarProcess, generic, verify_signature,
    wait_until,
};
use serde_json::{Value, json};
use uuid::Uuid;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Emitting connections at once, and events from each; every fifth is rolled back.
const EMITTERS: usize = 8;
const EVENTS_PER_EMITTER: usize = 1_250;
const COMMITTED: usize = EMITTERS * EVENTS_PER_EMITTER / 5 * 4;

/// Ten thousand deliveries take some ten seconds on two slow cores.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn an_event_reaches_the_receiver_signed() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["signingSecret"] = json!(SECRET);
    let webhook = database.create_webhook(config).await;
    let _sidecar = Sidecar::start(&database).await;

    let event = database.emit("USER_CREATED", json!({"userId": 7, "email": "ada@example.com"})).await;
    let request = receiver.requests(1).await.remove(0);

    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook"));
    assert!(request.header("content-type").is_some_and(|value| value.starts_with("application/json")));
    verify_signature(SECRET, &request).unwrap();
    let body = request.json();
    assert_eq!(body["type"], "USER_CREATED");
    assert_eq!(body["data"]["email"], "ada@example.com");
    assert!(body["timestamp"].is_string(), "{body}");

    let delivery: Uuid = request.webhook_id().parse().unwrap();
    let row = wait_until("the delivery to be settled", DEADLINE, async || {
        let select = "select event_id, webhook_id, attempts, failures, last_status_code
                      from orbhook.deliveries where id = $1 and status = 'delivered'";
        database.rows(select, &[&delivery]).await.pop()
    })
    .await;
    assert_eq!((row.get::<_, Uuid>(0), row.get::<_, Uuid>(1)), (event, webhook));
    assert_eq!((row.get::<_, i32>(2), row.get::<_, i32>(3)), (1, 0));
    assert_eq!(row.get::<_, i32>(4), 200);
    let select = "select status_code from orbhook.attempts where delivery_id = $1 and number = 1";
    assert_eq!(database.one::<i32>(select, &[&delivery]).await, 200);
}

#[tokio::test]
async fn a_retry_carries_the_same_id_and_is_signed_anew_with_the_time_of_its_own() {
    const RETRY_DELAY: Duration = Duration::from_secs(2);

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    receiver.answer_next("/hook", [Answer::status(500)]);
    let mut config = generic(&receiver.url("/hook"));
    config["signingSecret"] = json!(SECRET);
    config["retryDelay"] = json!(RETRY_DELAY.as_secs());
    database.create_webhook(config).await;
    let _sidecar = Sidecar::start(&database).await;
    database.emit("USER_CREATED", json!({"n": 1})).await;
    let requests = receiver.requests(2).await;
    all_settled(&database).await;

    let [first, second] = requests.as_slice() else { panic!("{} requests", requests.len()) };
    assert_eq!(first.webhook_id(), second.webhook_id());
    assert_eq!(first.body, second.body);
    let waited = second.at.duration_since(first.at);
    assert!(waited >= RETRY_DELAY, "tried again after {waited:?}");
    let timestamp = |request: &Request| request.header("webhook-timestamp").unwrap().parse::<u64>().unwrap();
    assert!(timestamp(second) >= timestamp(first) + RETRY_DELAY.as_secs());
    assert_ne!(first.header("webhook-signature"), second.header("webhook-signature"));
    for request in [first, second] {
        verify_signature(SECRET, request).unwrap();
    }

    let attempts = "select number, status_code, error_class from orbhook.attempts order by number";
    let attempts: Vec<(i32, i32, Option<String>)> =
        database.rows(attempts, &[]).await.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(attempts, [(1, 500, Some("http_5xx".to_owned())), (2, 200, None)]);
    assert_eq!(receiver.count(), 2);
}

#[tokio::test]
async fn every_subscribed_webhook_gets_an_event_and_no_other() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    for (path, subscribed) in [("/users", "USER_*"), ("/all", "*"), ("/payments", "PAYMENT_RECEIVED")] {
        let mut config = generic(&receiver.url(path));
        config["subscribedEvents"] = json!([subscribed]);
        database.create_webhook(config).await;
    }
    let _sidecar = Sidecar::start(&database).await;

    database.emit("USER_CREATED", json!({})).await;
    database.emit("PAYMENT_RECEIVED", json!({})).await;
    let requests = receiver.requests(4).await;
    all_settled(&database).await;

    let arrived: BTreeSet<_> =
        requests.iter().map(|request| (request.path.clone(), request.json()["type"].to_string())).collect();
    let expected = [
        ("/all", "\"PAYMENT_RECEIVED\""),
        ("/all", "\"USER_CREATED\""),
        ("/payments", "\"PAYMENT_RECEIVED\""),
        ("/users", "\"USER_CREATED\""),
    ];
    assert_eq!(arrived, expected.map(|(path, kind)| (path.to_owned(), kind.to_owned())).into());
    assert_eq!(receiver.count(), 4);
    let ids: BTreeSet<_> = requests.iter().map(Request::webhook_id).collect();
    assert_eq!(ids.len(), 4, "each webhook's delivery has an id of its own");
}

#[tokio::test]
async fn a_rolled_back_savepoint_sends_nothing() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let _sidecar = Sidecar::start(&database).await;

    database
        .execute(
            "begin;
             select orbhook_emit('USER_CREATED', '{\"n\": 1}');
             savepoint here;
             select orbhook_emit('USER_CREATED', '{\"n\": 2}');
             rollback to here;
             select orbhook_emit('USER_CREATED', '{\"n\": 3}');
             commit",
        )
        .await;
    database.execute("begin; select orbhook_emit('USER_CREATED', '{\"n\": 4}'); rollback").await;
    database.emit("USER_CREATED", json!({"n": 5})).await;

    receiver.requests(3).await;
    all_settled(&database).await;
    assert_eq!(numbers(&receiver.so_far()), [1, 3, 5].into());
}

#[tokio::test]
async fn a_prepared_transaction_sends_after_its_commit() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let _sidecar = Sidecar::start(&database).await;
    let (kept, dropped) = (format!("{}_kept", database.name()), format!("{}_dropped", database.name()));

    for (number, name) in [(1, &kept), (2, &dropped)] {
        let emit = format!("select orbhook_emit('USER_CREATED', '{{\"n\": {number}}}')");
        database.execute(&format!("begin; {emit}; prepare transaction '{name}'")).await;
    }
    database.emit("USER_CREATED", json!({"n": 3})).await;
    receiver.requests(1).await;
    assert_eq!(numbers(&receiver.so_far()), [3].into(), "prepared is not committed");

    database.execute(&format!("rollback prepared '{dropped}'")).await;
    database.execute(&format!("commit prepared '{kept}'")).await;
    receiver.requests(2).await;
    all_settled(&database).await;
    assert_eq!(numbers(&receiver.so_far()), [1, 3].into());
}

#[tokio::test]
async fn an_event_emitted_without_a_sidecar_waits_for_one() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    database.emit("USER_CREATED", json!({"n": 1})).await;

    let _sidecar = Sidecar::start(&database).await;
    receiver.requests(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_events_exactly_the_committed_arrive_once_each() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(for_load(&receiver)).await;
    let _sidecar = Sidecar::start(&database).await;

    let committed = emit_many(&database).await;
    receiver.requests_within(COMMITTED, LOAD_DEADLINE).await;
    all_settled(&database).await;

    let requests = receiver.so_far();
    assert_eq!(requests.len(), COMMITTED, "nothing failed, so nothing is sent twice");
    assert_eq!(numbers(&requests), committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_of_the_sidecar_lose_nothing_and_invent_nothing() {
    const KILLS: usize = 10;
    /// Requests whose answers are held back when the sidecar is killed: those are sent again for certain.
    const HELD: usize = 5;

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    database.create_webhook(for_load(&receiver)).await;

    let killing = async {
        for round in 0..KILLS {
            let sidecar = SidecarProcess::start(&database, &[]).await;
            receiver.requests_within(receiver.count() + 100, LOAD_DEADLINE).await;
            let gate = Gate::new();
            receiver.answer("/hook", Answer::status(200).held_by(&gate));
            receiver.requests_within(receiver.count() + HELD, LOAD_DEADLINE).await;
            sidecar.kill().await;
            receiver.answer("/hook", Answer::status(200));
            gate.open();
            assert!(
                receiver.count() < COMMITTED,
                "in round {round} everything was sent already: the test is too small"
            );
        }
    };
    let (committed, ()) = tokio::join!(emit_many(&database), killing);
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    all_settled_within(&database, LOAD_DEADLINE).await;

    let requests = receiver.so_far();
    assert_eq!(numbers(&requests), committed, "none lost, none from a transaction that was rolled back");
    let mut ids: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    for request in &requests {
        ids.entry(number(request)).or_default().insert(request.webhook_id());
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "every repeat carries the webhook-id of the first");
    assert!(requests.len() >= COMMITTED + KILLS, "requests without an answer were sent again");
}

/// Emits from several connections at once; returns the numbers of the committed events.
async fn emit_many(database: &Database) -> BTreeSet<i64> {
    let mut emitters = tokio::task::JoinSet::new();
    for emitter in 0..EMITTERS {
        let session = database.connect().await;
        emitters.spawn(async move {
            let mut committed = Vec::new();
            let emit = session.prepare("select orbhook_emit('USER_ACTION', $1)").await.unwrap();
            for event in 0..EVENTS_PER_EMITTER {
                let number = i64::try_from(emitter * EVENTS_PER_EMITTER + event).unwrap();
                session.execute("begin").await;
                session.query_one(&emit, &[&json!({"n": number})]).await.unwrap();
                if event % 5 == 0 {
                    session.execute("rollback").await;
                } else {
                    session.execute("commit").await;
                    committed.push(number);
                }
            }
            committed
        });
    }
    emitters.join_all().await.into_iter().flatten().collect()
}

fn for_load(receiver: &Receiver) -> Value {
    let mut config = generic(&receiver.url("/hook"));
    config["maxInFlight"] = json!(100);
    config
}

async fn all_settled(database: &Database) {
    all_settled_within(database, DEADLINE).await;
}

async fn all_settled_within(database: &Database, deadline: Duration) {
    wait_until("no delivery to be pending", deadline, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}

fn numbers(requests: &[Request]) -> BTreeSet<i64> {
    requests.iter().map(number).collect()
}

fn number(request: &Request) -> i64 {
    request.json()["data"]["n"].as_i64().expect("the payload has a number n")
}
