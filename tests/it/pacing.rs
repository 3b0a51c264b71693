use std::collections::BTreeMap;
use std::time::Duration;

use orbhook_tests::{
    Answer, Database, Gate, Receiver, Request, Sidecar, SidecarProcess, Standstill, generic, most_within,
    wait_until,
};
use serde_json::{Value, json};

/// A window of a second can be measured to within the receiver's longest standstill. What was seen through a longer one is
/// measured again, so many times.
const STANDSTILL_MAX: Duration = Duration::from_millis(150);
const TRIES_MAX: usize = 4;

/// A paced queue of some seconds, on a machine that has other things to do.
const PACED_DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn no_second_holds_more_than_the_limit_and_one() {
    keeps(10, async || {
        let (database, receiver) = with_limit(10).await;
        let _sidecar = Sidecar::start(&database).await;
        emit(&database, 35).await;
        receiver.requests_within(35, PACED_DEADLINE).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sidecars_share_one_limit_and_one_that_is_killed_breaks_it_neither() {
    /// High enough that even spacing alone would not keep it: requests a few milliseconds off their moment add up.
    const LIMIT: usize = 100;
    const EVENTS: usize = 500;

    keeps(LIMIT, async || {
        let (database, receiver) = with_limit(LIMIT).await;
        let mut sidecars = BTreeMap::new();
        for name in ["one", "two", "three"] {
            sidecars.insert(name.to_owned(), SidecarProcess::start(&database, &["--name", name]).await);
        }
        emit(&database, EVENTS).await;
        receiver.requests_within(EVENTS / 3, PACED_DEADLINE).await;
        // The one with the latest moment in hand: what it holds is claimed anew while others send.
        let holder = wait_until("a sidecar to hold deliveries", PACED_DEADLINE, async || {
            let holder =
                "select i.name from orbhook.deliveries_open d join orbhook.instances i on i.id = d.claimed_by
                      where d.lease_until is not null order by d.lease_until desc limit 1";
            database.rows(holder, &[]).await.pop().map(|row| row.get::<_, String>(0))
        })
        .await;
        sidecars.remove(&holder).expect("one of the three").kill().await;

        all_delivered(&database).await;
        let requests = receiver.so_far();
        assert!(requests.len() >= EVENTS);
        requests
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_sidecar_held_does_not_arrive_in_a_bunch() {
    keeps(20, async || {
        let (database, receiver) = with_limit(20).await;
        let sidecar = SidecarProcess::start(&database, &[]).await;
        emit(&database, 40).await;
        receiver.requests(3).await;
        sidecar.freeze();
        let held: i64 = database
            .one("select count(*) from orbhook.deliveries_open where lease_until is not null", &[])
            .await;
        wait_until("the moments it holds to pass", PACED_DEADLINE, async || {
            // The lease ends 25 s after the moment: 15 s of timeout and 10 s.
            let passed = "select not exists (select from orbhook.deliveries_open
                                         where lease_until - interval '24 seconds' > clock_timestamp())";
            database.one::<bool>(passed, &[]).await.then_some(())
        })
        .await;
        sidecar.thaw();

        all_delivered(&database).await;
        assert!(held >= 3, "it held only {held}: the test proves nothing");
        let requests = receiver.so_far();
        assert_eq!(requests.len(), 40, "given back unsent, so nothing is sent twice");
        requests
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_held_up_on_its_way_does_not_arrive_in_a_bunch() {
    keeps(10, async || {
    let (database, receiver) = with_limit(10).await;
    let _sidecar = Sidecar::start(&database).await;
    // Whatever the sidecar claims meanwhile stands still where it writes down the pace.
    let session = database.connect().await;
    session.execute("begin; lock table orbhook.webhook_state in share mode").await;
    emit(&database, 40).await;
    wait_until("a claim to stand still", PACED_DEADLINE, async || {
        let waiting = "select exists (select from pg_locks where not granted and relation = 'orbhook.webhook_state'::regclass)";
        database.one::<bool>(waiting, &[]).await.then_some(())
    })
    .await;
    wait_until("a second to pass", PACED_DEADLINE, async || {
        let passed =
            "select clock_timestamp() > min(created_at) + interval '1 second' from orbhook.deliveries_open";
        session.one::<bool>(passed, &[]).await.then_some(())
    })
    .await;
    session.execute("commit").await;

    all_delivered(&database).await;
    let requests = receiver.so_far();
    assert_eq!(requests.len(), 40);
    requests
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_were_full_do_not_make_paced_deliveries_arrive_in_a_bunch() {
    const SLOTS: usize = 6;

    keeps(20, async || {
    let (database, receiver) = with_limit(20).await;
    let gate = Gate::new();
    receiver.answer("/slow", Answer::status(200).held_by(&gate));
    for _ in 0..SLOTS {
        database.create_webhook(subscribed(&receiver.url("/slow"), "USER_DELETED")).await;
    }
    let _sidecar = Sidecar::start_with(&database, |config| config.concurrency = SLOTS).await;

    // Some moments ahead, and then no slot until they have passed.
    emit(&database, 30).await;
    receiver.requests(2).await;
    database.execute("select orbhook_emit('USER_DELETED', '{}')").await;
    wait_until("every slot to be taken", PACED_DEADLINE, async || {
        (receiver.so_far().iter().filter(|request| request.path == "/slow").count() == SLOTS).then_some(())
    })
    .await;
    wait_until("paced deliveries to become late", PACED_DEADLINE, async || {
        let late = "select exists (select from orbhook.deliveries_open d join orbhook.webhooks w on w.id = d.webhook_id
                    where w.rate_limit_per_second = 20 and d.lease_until - interval '24 seconds' < clock_timestamp())";
        database.one::<bool>(late, &[]).await.then_some(())
    })
    .await;
    gate.open();

    all_delivered(&database).await;
    let paced: Vec<_> = receiver.so_far().into_iter().filter(|request| request.path == "/hook").collect();
    assert_eq!(paced.len(), 30);
    paced
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_are_in_flight_than_max_in_flight() {
    const HELD: Duration = Duration::from_millis(30);

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = subscribed(&receiver.url("/hook"), "USER_ACTION");
    config["maxInFlight"] = json!(3);
    database.create_webhook(config).await;
    database.create_webhook(subscribed(&receiver.url("/other"), "USER_CREATED")).await;
    let _first = SidecarProcess::start(&database, &[]).await;
    let _second = SidecarProcess::start(&database, &[]).await;

    let gate = Gate::new();
    receiver.answer("/hook", Answer::status(200).held_by(&gate));
    emit(&database, 60).await;
    // Every event of the other webhook is a claim that could have taken one too many.
    for number in 1..=20 {
        database.emit("USER_CREATED", json!({})).await;
        wait_until("the other webhook's turn", PACED_DEADLINE, async || {
            (count(&receiver, "/other") == number).then_some(())
        })
        .await;
    }
    assert_eq!(count(&receiver, "/hook"), 3);

    // An answer takes this long, so requests that arrive within such a span are in flight together.
    receiver.answer("/hook", Answer::status(200).after(HELD));
    gate.open();
    all_delivered(&database).await;
    let requests: Vec<_> = receiver.so_far().into_iter().filter(|request| request.path == "/hook").collect();
    assert_eq!(requests.len(), 60);
    assert!(most_within(&requests[3..], HELD) <= 3);
}

/// No second holds more requests than the limit and one.
async fn keeps(limit: usize, run: impl AsyncFn() -> Vec<Request>) {
    let mut blind = Duration::ZERO;
    for _ in 0..TRIES_MAX {
        let standstill = Standstill::watch();
        let requests = run().await;
        blind = standstill.longest();
        let worst = most_within(&requests, Duration::from_secs(1).saturating_sub(blind));
        assert!(worst <= limit + 1, "{worst} requests within a second less {blind:?}");
        if blind <= STANDSTILL_MAX {
            assert!(worst > limit / 2, "{worst} requests within a second less {blind:?}: far below its pace");
            return;
        }
    }
    panic!(
        "nothing was measured: the machine stood still in each of {TRIES_MAX} tries, at last for {blind:?}"
    );
}

async fn with_limit(limit: usize) -> (Database, Receiver) {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = subscribed(&receiver.url("/hook"), "USER_ACTION");
    config["rateLimit"] = json!(limit);
    config["maxInFlight"] = json!(100);
    database.create_webhook(config).await;
    (database, receiver)
}

fn subscribed(endpoint: &str, event_type: &str) -> Value {
    let mut config = generic(endpoint);
    config["subscribedEvents"] = json!([event_type]);
    config
}

async fn emit(database: &Database, count: usize) {
    database
        .execute(&format!(
            "select orbhook_emit('USER_ACTION', jsonb_build_object('n', n)) from generate_series(1, {count}) n"
        ))
        .await;
}

async fn all_delivered(database: &Database) {
    wait_until("everything to be delivered", PACED_DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status <> 'delivered')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}

fn count(receiver: &Receiver, path: &str) -> usize {
    receiver.so_far().iter().filter(|request| request.path == path).count()
}
