//! A session that claims again and again passes over what has left a queue, and over nothing else.

use std::time::{Duration, Instant, SystemTime};

use orbhook_tests::{Claimed, Claimer, DEADLINE, Database, Session, answered, generic, wait_until};
use serde_json::json;
use uuid::Uuid;

#[tokio::test]
async fn under_an_old_snapshot_a_claim_reads_no_more_of_what_has_left_the_queue() {
    const GONE: usize = 2_000;
    let queue = Queue::new().await;
    let old = queue.database.connect().await;
    old.execute("begin isolation level repeatable read; select count(*) from orbhook.webhooks").await;
    let emit = format!("select orbhook_emit('USER_CREATED', '{{}}') from generate_series(1, {GONE})");
    queue.database.execute(&emit).await;
    let mut gone = 0;
    while gone < GONE {
        gone += queue.claim_and_deliver().await.len();
    }

    // Everything is read again once a second, and until what is gone lies behind the horizon.
    wait_until("a claim that reads little", DEADLINE, async || {
        queue.database.emit("USER_CREATED", json!({})).await;
        let before = queue.entries_read().await;
        assert_eq!(queue.claim_and_deliver().await.len(), 1);
        (queue.entries_read().await - before < i64::try_from(GONE / 4).unwrap()).then_some(())
    })
    .await;
    old.execute("commit").await;
}

#[tokio::test]
async fn what_commits_late_is_claimed_at_once_although_the_front_has_passed_on() {
    let queue = Queue::new().await;
    let late = queue.database.connect().await;
    // With it off, nobody can see when a session's transaction began.
    for track_activities in ["on", "off", "on", "off"] {
        late.execute(&format!("set track_activities = {track_activities}")).await;
        late.execute("begin").await;
        let delivery: Uuid = emit(&late).await;
        queue.pass_on().await;
        late.execute("commit").await;
        assert_eq!(queue.claim_and_deliver().await, [delivery]);
    }
}

#[tokio::test]
async fn what_was_prepared_is_claimed_at_once_although_the_front_has_passed_on() {
    let queue = Queue::new().await;
    let late = queue.database.connect().await;
    let name = format!("{}_late", queue.database.name());
    for _ in 0..4 {
        late.execute("begin").await;
        let delivery: Uuid = emit(&late).await;
        late.execute(&format!("prepare transaction '{name}'")).await;
        queue.pass_on().await;
        late.execute(&format!("commit prepared '{name}'")).await;
        assert_eq!(queue.claim_and_deliver().await, [delivery]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_emit_that_had_to_wait_makes_due_is_not_due_before_it_could_go_on() {
    const EMIT: &str = "select orbhook_emit('USER_CREATED', '{}', 'key')";
    let queue = Queue::new().await;
    let (first, second) = (queue.database.connect().await, queue.database.connect().await);
    first.execute("begin").await;
    first.execute(EMIT).await;
    let waiting = tokio::spawn(async move { second.one::<Uuid>(EMIT, &[]).await });
    wait_until("the second to wait", DEADLINE, async || {
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        (queue.database.one::<i64>(waits, &[]).await == 1).then_some(())
    })
    .await;
    let let_go: SystemTime = queue.database.one("select clock_timestamp()", &[]).await;
    first.execute("rollback").await;
    let event = waiting.await.unwrap();
    let due = "select due_at from orbhook.deliveries_open where event_id = $1";
    assert!(queue.database.one::<SystemTime>(due, &[&event]).await >= let_go);
}

#[tokio::test]
async fn what_a_person_puts_before_the_front_is_found_within_a_poll() {
    let queue = Queue::new().await;
    let later = "select orbhook_emit('USER_CREATED', '{}', deliver_at => now() + interval '1 hour')";
    queue.database.execute(later).await;
    queue.pass_on().await;
    queue
        .database
        .execute("update orbhook.deliveries_open set due_at = now() - interval '1 day' where due_at > now()")
        .await;
    wait_until("the delivery", DEADLINE, async || (queue.claim_and_deliver().await.len() == 1).then_some(()))
        .await;
}

#[tokio::test]
async fn each_webhook_is_found_between_those_that_are_remembered() {
    let queue = Queue::new().await;
    let mut webhooks = vec![queue.webhook];
    for round in 0..12 {
        // Ids increase with time; the walk begins behind any of them.
        let after = webhooks[round % webhooks.len()];
        queue.pass_on().await;
        let config = generic(&format!("http://127.0.0.1:9/{round}"));
        webhooks.push(queue.database.create_webhook(config).await);
        queue.database.emit("USER_CREATED", json!({})).await;
        let claimed = queue.claimer.claim_after(&queue.database, 100, Some(after)).await;
        let mut served: Vec<Uuid> = claimed.iter().map(|claimed| claimed.webhook).collect();
        queue.deliver(&claimed).await;
        let place = webhooks.iter().position(|webhook| *webhook == after).unwrap();
        let in_turn = [&webhooks[place + 1..], &webhooks[..=place]].concat();
        assert_eq!(served, in_turn, "in the order of their turns");
        served.dedup();
        assert_eq!(served.len(), webhooks.len());
    }
}

/// Returns the delivery.
async fn emit(session: &Session) -> Uuid {
    let event: Uuid = session.one("select orbhook_emit('USER_CREATED', '{}')", &[]).await;
    session.one("select id from orbhook.deliveries_open where event_id = $1", &[&event]).await
}

/// One webhook, and a session that claims for it.
struct Queue {
    database: Database,
    claimer: Claimer,
    webhook: Uuid,
}

impl Queue {
    async fn new() -> Queue {
        let database = Database::new().await;
        database.execute("alter table orbhook.deliveries_open set (autovacuum_enabled = off)").await;
        let mut config = generic("http://127.0.0.1:9/hook");
        config["maxInFlight"] = json!(200);
        let webhook = database.create_webhook(config).await;
        let claimer = Claimer::register(&database).await;
        Queue { database, claimer, webhook }
    }

    async fn claim_and_deliver(&self) -> Vec<Uuid> {
        let claimed = self.claimer.claim(&self.database, 200).await;
        self.deliver(&claimed).await;
        claimed.iter().map(|claimed| claimed.delivery).collect()
    }

    async fn deliver(&self, claimed: &[Claimed]) {
        let results: Vec<_> = claimed.iter().map(|claimed| answered(claimed, 200, json!({}))).collect();
        self.claimer.settle(&self.database, json!(results)).await;
    }

    /// Emits and delivers for as long as it takes a front to pass over what was emitted before.
    async fn pass_on(&self) {
        const LONG_ENOUGH: Duration = Duration::from_millis(300);
        let began = Instant::now();
        while began.elapsed() < LONG_ENOUGH {
            self.database.emit("USER_CREATED", json!({})).await;
            assert!(!self.claim_and_deliver().await.is_empty());
        }
    }

    /// Of the index by which queues are read, by anybody.
    async fn entries_read(&self) -> i64 {
        self.database.rows("select pg_stat_force_next_flush()", &[]).await;
        let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'deliveries_open_due'";
        self.database.one(read, &[]).await
    }
}
