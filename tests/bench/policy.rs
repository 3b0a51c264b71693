//! How well the delivery policy holds: pace, isolation, hostile receivers, addresses that must not be reached, replay.

use std::time::{Duration, Instant};

use orbhook_tests::{
    Answer, Authority, Database, Hostile, Misbehaviour, Receiver, SidecarProcess, Standstill, blocked_urls,
    connections_begun, generic, is_in_namespace, most_within, wait_until,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::figures::{Figures, Goal, note};

const DEADLINE: Duration = Duration::from_secs(600);

/// Each run of a pace lasts about so long.
const PACED_SECONDS: usize = 10;

/// Queued at one of the bad neighbours, and replayed afterwards.
const QUEUED: i64 = 1_000_000;

pub(crate) async fn paces() -> Figures {
    let mut figures = Figures::new();
    for limit in [10, 100] {
        for sidecars in [1, 3] {
            pace(&mut figures, limit, sidecars).await;
        }
    }
    figures
}

/// A third of the way one sidecar is killed; if it was the only one, another takes its place.
async fn pace(figures: &mut Figures, limit: usize, sidecars: usize) {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let mut config = subscribed(&receiver.url("/paced"), "USER_ACTION");
    config["rateLimit"] = json!(limit);
    config["maxInFlight"] = json!(1_000);
    database.create_webhook(config).await;
    let mut running = Vec::new();
    for _ in 0..sidecars {
        running.push(SidecarProcess::start(&database, &[]).await);
    }
    let events = limit * PACED_SECONDS;
    let standstill = Standstill::watch();
    emit(&database, "USER_ACTION", i64::try_from(events).unwrap()).await;
    receiver.requests_within(events / 3, DEADLINE).await;
    running.remove(0).kill().await;
    if running.is_empty() {
        running.push(SidecarProcess::start(&database, &[]).await);
    }
    drained(&database).await;
    let requests = receiver.so_far();
    let span = requests.last().unwrap().at.duration_since(requests.first().unwrap().at);
    let run =
        format!("limit {limit}/s, {sidecars} sidecar{}, one killed", if sidecars == 1 { "" } else { "s" });
    figures.measure(
        format!("{run}: most requests in any second"),
        "requests",
        count(most_within(&requests, Duration::from_secs(1))),
        Goal::AtMost(count(limit + 1)),
    );
    note(
        figures,
        format!("{run}: measured on"),
        format!(
            "{} requests in {:.1} s; the receiver itself stood still for at most {:.0} ms",
            requests.len(),
            span.as_secs_f64(),
            ms(standstill.longest()),
        ),
    );
}

pub(crate) async fn hostile() -> Figures {
    let mut figures = Figures::new();
    const ROUNDS: i64 = 10;
    let database = Database::new().await;
    let authority = Authority::new();
    let tls = authority.issue().acceptor(&[b"h2"]);
    let mut servers = Vec::new();
    for misbehaviour in Misbehaviour::ALL {
        let server = Hostile::start(misbehaviour, &tls).await;
        let scheme = if misbehaviour.needs_tls() { "https" } else { "http" };
        let mut config = subscribed(&format!("{scheme}://{}/", server.address()), "USER_ACTION");
        config["timeoutSeconds"] = json!(1);
        config["maxRetries"] = json!(0);
        config["name"] = json!(format!("{misbehaviour:?}"));
        database.create_webhook(config).await;
        servers.push(server);
    }
    let receiver = Receiver::start().await;
    database.create_webhook(subscribed(&receiver.url("/good"), "USER_CREATED")).await;
    let ca_file = authority.file().display().to_string();
    let sidecar = SidecarProcess::start(&database, &["--ca-file", &ca_file]).await;
    emit(&database, "USER_CREATED", 1).await;
    drained(&database).await;
    sidecar.forget_memory_peak();
    let before = sidecar.memory_bytes();
    for _ in 0..ROUNDS {
        emit(&database, "USER_ACTION", 1).await;
        drained(&database).await;
    }
    let growth = sidecar.memory_peak_bytes().saturating_sub(before);
    let worst = database
        .rows(
            "select a.duration_ms - 1000, w.name from orbhook.attempts a join orbhook.webhooks w on w.id = a.webhook_id
             order by 1 desc limit 1",
            &[],
        )
        .await
        .remove(0);
    let attempts: i64 = database.one("select count(*) from orbhook.attempts", &[]).await;
    note(
        &mut figures,
        "hostile receivers tried",
        format!("{} kinds at once, {} attempts", servers.len(), attempts - 1),
    );
    figures.measure(
        format!(
            "hostile receivers: worst attempt ({}), time beyond its timeout of 1 s",
            worst.get::<_, String>(1)
        ),
        "ms",
        f64::from(worst.get::<_, i32>(0)),
        Goal::AtMost(1_000.0),
    );
    figures.measure(
        format!("hostile receivers: growth of the sidecar's memory at its peak, over {:.1} MiB", mib(before)),
        "MiB",
        mib(growth),
        Goal::AtMost(32.0),
    );
    figures
}

pub(crate) async fn addresses() -> Figures {
    let mut figures = Figures::new();
    let what = "URLs that must not be reached, stored past the check at creation";
    if !is_in_namespace() {
        note(&mut figures, what, "not measured: needs root, for a network namespace");
        return figures;
    }
    let database = Database::new().await;
    let urls = blocked_urls(8080);
    for url in &urls {
        let mut config = subscribed("https://hooks.example.com/", "USER_ACTION");
        config["maxRetries"] = json!(0);
        let webhook = database.create_webhook(config).await;
        let update = "update orbhook.webhook_secrets set value = $2 where webhook_id = $1 and name = 'endpoint' returning 1";
        database.one::<i32>(update, &[&webhook, url]).await;
    }
    // The last word wins: nothing is opened.
    let _sidecar = SidecarProcess::start(&database, &["--allow-network", "100.64.1.1/32"]).await;
    let before = connections_begun();
    emit(&database, "USER_ACTION", 1).await;
    drained(&database).await;
    let begun = connections_begun() - before;
    let blocked: i64 = database
        .one("select count(*) from orbhook.attempts where error_class = 'address_blocked'", &[])
        .await;
    note(&mut figures, what, format!("{} URLs, {blocked} refused", urls.len()));
    figures.measure(
        "connections begun to them (the kernel's count)",
        "connections",
        f64::from(u32::try_from(begun).unwrap()),
        Goal::AtMost(0.0),
    );
    figures
}

/// Healthy webhooks first alone, then beside four bad ones, with one and the same sidecar.
pub(crate) async fn neighbours_and_replay() -> Figures {
    let mut figures = Figures::new();
    const HEALTHY: usize = 20;
    const EVENTS: usize = 300;
    const SLOW: Duration = Duration::from_millis(14_900);

    let database = Database::new().await;
    let receiver = Receiver::start().await;
    for number in 0..HEALTHY {
        database
            .create_webhook(subscribed(&receiver.url(&format!("/healthy/{number}")), "PAYMENT_RECEIVED"))
            .await;
    }
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    latencies(&database, &receiver, HEALTHY, EVENTS / 10).await;
    let alone = latencies(&database, &receiver, HEALTHY, EVENTS).await;

    receiver.answer("/silent", Answer::hang());
    receiver.answer("/slow", Answer::status(200).after(SLOW));
    receiver.answer("/broken", Answer::status(500));
    let mut bad = Vec::new();
    for (path, event_type) in [
        ("/silent", "USER_ACTION"),
        ("/slow", "USER_ACTION"),
        ("/broken", "USER_ACTION"),
        ("/queued", "USER_CREATED"),
    ] {
        let mut config = subscribed(&receiver.url(path), event_type);
        // As it is by default.
        config["rateLimit"] = json!(10);
        bad.push(database.create_webhook(config).await);
    }
    let queued = bad[3];
    let begun = Instant::now();
    for _ in 0..10 {
        emit(&database, "USER_CREATED", QUEUED / 10).await;
    }
    println!("queued {QUEUED} in {:.0} s", begun.elapsed().as_secs_f64());
    emit(&database, "USER_ACTION", 10_000).await;
    wait_until("the bad ones to be busy", DEADLINE, async || {
        let paths = ["/silent", "/slow", "/broken", "/queued"];
        let seen = receiver.so_far();
        paths
            .iter()
            .all(|path| seen.iter().filter(|request| request.path == *path).count() >= 10)
            .then_some(())
    })
    .await;
    let beside = latencies(&database, &receiver, HEALTHY, EVENTS).await;
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        let (alone, beside) = (percentile(&alone, percent), percentile(&beside, percent));
        figures.compare(
            format!("healthy webhooks, from emit to receiver, {name}: beside four bad ones ÷ alone"),
            "ms",
            &[(ms(alone), ms(beside))],
            (percent == 99).then_some(Goal::AtMost(2.0)),
        );
    }
    let left: i64 =
        database.one("select count(*) from orbhook.deliveries_open where webhook_id = $1", &[&queued]).await;
    note(&mut figures, "queued at one of the four while that was measured", format!("{left}"));
    replay(&mut figures, &database, queued).await;
    figures
}

/// What was queued has been delivered, and is asked for again.
async fn replay(figures: &mut Figures, database: &Database, webhook: Uuid) {
    let finish =
        "update orbhook.deliveries set status = 'delivered', finished_at = clock_timestamp(), due_at = null,
                      lease_until = null, claimed_by = null, outcome_attempt = attempts, period = '1970-01-01'
                  where webhook_id = $1 and period is null returning 1";
    let finished = database.rows(finish, &[&webhook]).await.len();
    let begun = Instant::now();
    let id: Uuid = database
        .one("select orbhook_replay($1, now() - interval '1 day', \"only\" => 'all')", &[&webhook])
        .await;
    let took = begun.elapsed();
    figures.measure(
        format!("the statement orbhook_replay over {finished} deliveries of one webhook"),
        "ms",
        ms(took),
        None,
    );
    wait_until("the replay to show progress", DEADLINE, async || {
        let progress = "select queued >= 10000 from orbhook.replay_progress where id = $1";
        database.one::<bool>(progress, &[&id]).await.then_some(())
    })
    .await;
    figures.measure(
        "its first 10,000 deliveries queued again after",
        "s",
        begun.elapsed().as_secs_f64(),
        None,
    );
}

/// Emits one event after the other, each when the one before has arrived everywhere; every arrival counts.
async fn latencies(database: &Database, receiver: &Receiver, healthy: usize, events: usize) -> Vec<Duration> {
    let mut latencies = Vec::with_capacity(healthy * events);
    for _ in 0..events {
        let seen = receiver.count();
        let begun = Instant::now();
        database.emit("PAYMENT_RECEIVED", json!({})).await;
        let mut arrived = Vec::new();
        wait_until("all healthy webhooks", DEADLINE, async || {
            arrived = receiver.since(seen);
            arrived.retain(|request| request.path.starts_with("/healthy/") && request.at >= begun);
            (arrived.len() >= healthy).then_some(())
        })
        .await;
        latencies.extend(arrived.iter().map(|request| request.at.duration_since(begun)));
    }
    latencies.sort();
    latencies
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn subscribed(endpoint: &str, event_type: &str) -> Value {
    let mut config = generic(endpoint);
    config["subscribedEvents"] = json!([event_type]);
    config
}

async fn emit(database: &Database, event_type: &str, count: i64) {
    database
        .execute(&format!("select count(*) from (select orbhook_emit('{event_type}', '{{}}') from generate_series(1, {count})) e"))
        .await;
}

async fn drained(database: &Database) {
    wait_until("the queue to be empty", DEADLINE, async || {
        let left = "select exists (select from orbhook.deliveries_open)";
        (!database.one::<bool>(left, &[]).await).then_some(())
    })
    .await;
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap())
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap()) / 1024.0
}
