use orbhook_tests::{Claimer, DEADLINE, Database, Session, generic, wait_until};
use serde_json::{Value, json};
use uuid::Uuid;

/// In the history, of which every third is the webhook's.
const HISTORY: i64 = 45_000;

/// What one step reads, and the backlog at which replays wait.
const STEP_ROWS_MAX: i64 = 20_000;
const BACKLOG_MAX: i64 = 10_000;

#[tokio::test]
async fn a_replay_returns_at_once_and_goes_on_in_bounded_steps_that_show_their_progress() {
    let (database, claimer, webhook) = with_history(json!({})).await;
    let replay = replay_all(&database, webhook).await;
    assert_eq!(progress(&database, replay).await, Progress { examined: 0, queued: 0, done_percent: 0.0 });
    assert_eq!(backlog(&database, webhook).await, 0, "the statement itself moves nothing");

    let mut seen = vec![progress(&database, replay).await];
    while seen[seen.len() - 1].done_percent < 100.0 {
        look(&database, &claimer).await;
        let (now, before) = (progress(&database, replay).await, seen[seen.len() - 1].clone());
        assert!(now.examined - before.examined <= STEP_ROWS_MAX, "{before:?} {now:?}");
        assert!(now.done_percent > before.done_percent, "{before:?} {now:?}");
        assert!(seen.len() <= 10, "it does not end: {seen:?}");
        // What was queued is out of the way, as if it had been sent.
        send_all(&database, webhook).await;
        seen.push(now);
    }
    let last = seen.pop().unwrap();
    assert_eq!(last, Progress { examined: HISTORY, queued: HISTORY / 3, done_percent: 100.0 });
    assert!(seen[1..].iter().all(|step| step.done_percent > 0.0 && step.done_percent < 100.0), "{seen:?}");
    assert_eq!(seen.len(), 3, "45,000 rows in steps of 20,000: {seen:?}");
    let others = "select count(*) from orbhook.deliveries where webhook_id <> $1 and status <> 'failed'";
    assert_eq!(database.one::<i64>(others, &[&webhook]).await, 0, "nothing of another webhook moves");
}

#[tokio::test]
async fn a_replay_waits_while_ten_thousand_are_pending_and_then_goes_on() {
    let (database, claimer, webhook) = with_history(json!({})).await;
    let replay = replay_all(&database, webhook).await;
    look(&database, &claimer).await;
    look(&database, &claimer).await;
    let full = progress(&database, replay).await;
    assert_eq!(full.examined, 2 * STEP_ROWS_MAX);
    assert!(backlog(&database, webhook).await >= BACKLOG_MAX);
    for _ in 0..3 {
        look(&database, &claimer).await;
        assert_eq!(progress(&database, replay).await, full, "the queue is long enough");
    }
    let shown = "select webhook_backlog from orbhook.replay_progress where id = $1";
    assert_eq!(database.one::<i64>(shown, &[&replay]).await, full.queued);

    send(&database, webhook, full.queued - BACKLOG_MAX).await;
    look(&database, &claimer).await;
    assert_eq!(progress(&database, replay).await, full, "ten thousand still");
    send(&database, webhook, 1).await;
    look(&database, &claimer).await;
    assert_eq!(progress(&database, replay).await.done_percent, 100.0);
}

#[tokio::test]
async fn a_long_queue_of_one_webhook_does_not_hold_up_another_ones_replay() {
    let (database, claimer, webhook) = with_history(json!({})).await;
    let other: Uuid = database.one("select id from orbhook.webhooks where id <> $1", &[&webhook]).await;
    let first = replay_all(&database, other).await;
    look(&database, &claimer).await;
    let full = progress(&database, first).await;
    assert!(full.queued >= BACKLOG_MAX && full.done_percent < 100.0);
    let second = replay_all(&database, webhook).await;
    look(&database, &claimer).await;
    assert_eq!(progress(&database, first).await, full);
    assert_eq!(progress(&database, second).await.examined, STEP_ROWS_MAX);
}

#[tokio::test]
async fn what_is_sent_again_and_ends_while_a_replay_runs_is_not_queued_a_second_time() {
    let (database, claimer, webhook) = with_history(json!({})).await;
    // The first and the last of the webhook's: one behind the step that is made, one before it.
    let ends =
        "select min(id::text)::uuid, max(id::text)::uuid from orbhook.deliveries where webhook_id = $1";
    let row = database.rows(ends, &[&webhook]).await.remove(0);
    let (early, late): (Uuid, Uuid) = (row.get(0), row.get(1));
    let replay = replay_all(&database, webhook).await;
    look(&database, &claimer).await;
    assert!(is_pending(&database, early).await && !is_pending(&database, late).await);

    assert!(database.one::<bool>("select orbhook_retry($1)", &[&late]).await);
    send_all(&database, webhook).await;
    for _ in 0..3 {
        look(&database, &claimer).await;
        assert!(!is_pending(&database, early).await && !is_pending(&database, late).await);
        send_all(&database, webhook).await;
    }
    let done = progress(&database, replay).await;
    assert_eq!((done.done_percent, done.queued), (100.0, HISTORY / 3 - 1), "all but the one sent by hand");
    let twice = "select count(*) from orbhook.deliveries where webhook_id = $1 and last_error = 'sent twice'";
    assert_eq!(database.one::<i64>(twice, &[&webhook]).await, 0);
}

#[tokio::test]
async fn two_sidecars_do_not_take_the_same_step() {
    let (database, claimer, webhook) = with_history(json!({})).await;
    let replay = replay_all(&database, webhook).await;
    let other = Claimer::register(&database).await;
    let (first, second) = (database.connect().await, database.connect().await);
    first.execute("begin").await;
    look_in(&first, &claimer).await;
    // It neither waits nor repeats what the first has not committed.
    look_in(&second, &other).await;
    assert_eq!(progress(&database, replay).await.examined, 0);
    first.execute("commit").await;
    let step = progress(&database, replay).await;
    assert_eq!(step.examined, STEP_ROWS_MAX);
    assert_eq!(backlog(&database, webhook).await, step.queued);
}

#[tokio::test]
async fn a_paced_webhook_stays_paced_when_it_is_replayed() {
    let (database, claimer, webhook) = with_history(json!({"rateLimit": 10, "maxInFlight": 1000})).await;
    replay_all(&database, webhook).await;
    look(&database, &claimer).await;
    assert!(backlog(&database, webhook).await > 1_000);
    let claimed = claimer.claim(&database, 200).await;
    assert!((2..=11).contains(&claimed.len()), "moments for a second ahead at most: {}", claimed.len());
    for pair in claimed.windows(2) {
        let apart = pair[1].send_after_ms - pair[0].send_after_ms;
        assert!((99..=101).contains(&apart), "100 ms apart: {claimed:?}");
    }
    claimer.claim(&database, 200).await;
    let closest = "select min(extract(epoch from gap))::float8
                   from (select lease_until - lag(lease_until) over (order by lease_until) as gap
                         from orbhook.deliveries_open where lease_until is not null) g";
    assert!(database.one::<f64>(closest, &[]).await >= 0.099, "nor does a second claim bring them closer");
}

#[derive(Clone, Debug, PartialEq)]
struct Progress {
    examined: i64,
    queued: i64,
    done_percent: f64,
}

async fn progress(database: &Database, replay: Uuid) -> Progress {
    let select = "select examined, queued, done_percent::float8 from orbhook.replay_progress where id = $1";
    let row = database.rows(select, &[&replay]).await.remove(0);
    Progress { examined: row.get(0), queued: row.get(1), done_percent: row.get(2) }
}

/// Two webhooks of which nothing is sent by itself, and their history, one delivery a second until an hour ago. The first
/// has the changes, and every third of the deliveries.
async fn with_history(changes: Value) -> (Database, Claimer, Uuid) {
    let database = Database::new().await;
    let mut config = generic("http://127.0.0.1:9/hook");
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let webhook = database.create_webhook(config).await;
    let other = database.create_webhook(generic("http://127.0.0.1:9/other")).await;
    let event = database.emit("USER_CREATED", json!({})).await;
    database.execute("delete from orbhook.deliveries_open").await;
    database
        .execute(&format!(
            "insert into orbhook.deliveries (id, event_id, webhook_id, status, attempts, failures, outcome_attempt,
                                             created_at, finished_at, period)
             select (left(orbhook._first_id_at(h.at)::text, 14) || '7000-8000-' || lpad(to_hex(h.n), 12, '0'))::uuid, '{event}',
                    case when h.n % 3 = 0 then '{webhook}'::uuid else '{other}' end, 'failed', 1, 1, 1, h.at, h.at, '1970-01-01'
             from (select n, date_trunc('second', now()) - interval '1 hour' - make_interval(secs => {HISTORY} - n) as at
                   from generate_series(1, {HISTORY}) n) h"
        ))
        .await;
    let claimer = Claimer::register(&database).await;
    // The first look of a week has other things to do as well.
    wait_until("a look without work", DEADLINE, async || {
        let looked = "select orbhook.look($1)";
        database.one::<Option<i32>>(looked, &[&claimer.id]).await.is_none().then_some(())
    })
    .await;
    (database, claimer, webhook)
}

async fn replay_all(database: &Database, webhook: Uuid) -> Uuid {
    database.one("select orbhook_replay($1, now() - interval '1 day', \"only\" => 'all')", &[&webhook]).await
}

async fn look(database: &Database, claimer: &Claimer) {
    database.rows("select orbhook.look($1)", &[&claimer.id]).await;
}

async fn look_in(session: &Session, claimer: &Claimer) {
    session.rows("select orbhook.look($1)", &[&claimer.id]).await;
}

async fn backlog(database: &Database, webhook: Uuid) -> i64 {
    database.one("select count(*) from orbhook.deliveries_open where webhook_id = $1", &[&webhook]).await
}

async fn is_pending(database: &Database, delivery: Uuid) -> bool {
    database.one("select exists (select from orbhook.deliveries_open where id = $1)", &[&delivery]).await
}

async fn send_all(database: &Database, webhook: Uuid) {
    send(database, webhook, HISTORY).await;
}

/// Ends so many of what is pending for the webhook, as settle does.
async fn send(database: &Database, webhook: Uuid, count: i64) {
    let finish = "select orbhook._finish(array_agg(row(d.id, 'delivered', 200,
                             case when d.last_error = 'sent' then 'sent twice' else 'sent' end)::orbhook._ending))
                  from (select id, last_error from orbhook.deliveries_open where webhook_id = $1 limit $2) d";
    database.rows(finish, &[&webhook, &count]).await;
}
