use std::collections::BTreeSet;

use orbhook_tests::{DEADLINE, Database, Receiver, Session, SidecarProcess, generic, wait_until};
use serde_json::json;
use uuid::Uuid;

/// Deliveries of that age in days: one of each status, with event and attempt, and an event that nobody wanted.
const OF_THE_AGE: &str = "
    create temporary table old on commit drop as
    select s.status, a.at, orbhook._first_id_at(a.at) as base, gen_random_uuid()::text as tail, gen_random_uuid()::text as other,
           n.n, greatest((select max(p.starts_on) from orbhook.periods p where p.starts_on <= a.at::date), '1970-01-01') as period
    from generate_series(1, $times) as n (n)
    cross join lateral (select now() - interval '$age days' as at) a
    cross join unnest($statuses::text[]) as s (status);
    insert into orbhook.events (id, event_type, payload, occurred_at, created_at, skipped)
    select (left(base::text, 14) || substr(tail, 15))::uuid, 'USER_ACTION', jsonb_build_object('what', status || ' $age'), at, at,
           case when status = 'unwanted' then jsonb_build_array(jsonb_build_object('webhook', (select id from orbhook.webhooks), 'reason', 'inactive')) end
    from old;
    insert into orbhook.deliveries (id, event_id, webhook_id, status, attempts, outcome_attempt, due_at, created_at, finished_at, period)
    select (left(base::text, 14) || substr(other, 15))::uuid, (left(base::text, 14) || substr(tail, 15))::uuid,
           (select id from orbhook.webhooks), status, 1, 1, case when status = 'pending' then now() + interval '1 hour' end, at,
           case when status <> 'pending' then at end, case when status <> 'pending' then period end
    from old where status <> 'unwanted';
    insert into orbhook.attempts (delivery_id, number, webhook_id, started_at, duration_ms, status_code, error_class, period)
    select (left(base::text, 14) || substr(other, 15))::uuid, 1, (select id from orbhook.webhooks), at, 5,
           case status when 'delivered' then 200 else 500 end, case when status <> 'delivered' then 'http_5xx' end, period
    from old where status <> 'unwanted'";

const EACH: &str = "{delivered,failed,cancelled,pending,unwanted}";

/// Where the events of the past lie.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lie {
    InTheirWeeks,
    InTheDefaultPartition,
}

#[tokio::test]
async fn things_go_when_their_time_is_over_and_what_is_pending_stays() {
    for lie in [Lie::InTheirWeeks, Lie::InTheDefaultPartition] {
        let database = with_past(lie, &[10, 45, 100, 500]).await;
        for age in [10, 45, 100, 500] {
            add(&database, age, EACH, 1).await;
        }
        tend(&database).await;
        let at_each_age = |of: &[&str], age: u32| -> BTreeSet<String> {
            of.iter().map(|status| format!("{status} {age}")).collect()
        };
        let expected = |ages: [&[&str]; 4]| -> BTreeSet<String> {
            ages.iter().zip([10, 45, 100, 500]).flat_map(|(of, age)| at_each_age(of, age)).collect()
        };
        let everything: &[&str] = &["delivered", "failed", "cancelled", "pending", "unwanted"];
        let (failed, pending): (&[&str], &[&str]) = (&["failed", "pending"], &["pending"]);
        assert_eq!(
            words(&database, "select payload ->> 'what' from orbhook.events").await,
            expected([everything, failed, pending, pending]),
            "{lie:?}: events"
        );
        let tried = "select status || ' ' || round(extract(epoch from now() - d.created_at) / 86400) from orbhook.attempts a
                     join orbhook.deliveries d on d.id = a.delivery_id";
        let was_tried = &everything[..4];
        assert_eq!(
            words(&database, tried).await,
            expected([was_tried, failed, pending, pending]),
            "{lie:?}: attempts"
        );
        let lines = "select status || ' ' || round(extract(epoch from now() - d.created_at) / 86400) from orbhook.deliveries d";
        assert_eq!(
            words(&database, lines).await,
            expected([was_tried, was_tried, was_tried, pending]),
            "{lie:?}: lines"
        );
        let violations = words(&database, "select a::text from orbhook_audit('2000-01-01') a where a.violation <> 'delivery past its deadline'").await;
        assert!(violations.is_empty(), "{lie:?}: {violations:?}");
    }
}

#[tokio::test]
async fn an_empty_week_is_dropped_and_leaves_nothing_in_the_catalogue() {
    let database = with_past(Lie::InTheirWeeks, &[500]).await;
    let weeks =
        "select name from orbhook._weeks() where starts_at < now() - interval '499 days' and not is_member";
    assert_eq!(words(&database, weeks).await.len(), 3, "events, deliveries, attempts");
    add(&database, 500, "{delivered,failed,cancelled,unwanted}", 3).await;
    tend(&database).await;
    assert_eq!(words(&database, weeks).await, BTreeSet::new());
    assert_eq!(database.one::<i64>("select count(*) from orbhook.deliveries", &[]).await, 0);
    let remembered = "select count(*) from orbhook.periods where starts_on > '1970-01-01'";
    assert_eq!(database.one::<i64>(remembered, &[]).await, 2, "the week after it, and this one");
}

#[tokio::test]
async fn what_is_left_of_a_week_takes_no_more_room_than_it_needs() {
    let database = with_past(Lie::InTheirWeeks, &[45]).await;
    add(&database, 45, "{failed}", 30).await;
    add(&database, 45, "{delivered}", 20_000).await;
    let size = "select sum(pg_table_size(format('orbhook.%I', name)::regclass))::bigint from orbhook._weeks() where parent <> 'deliveries'";
    let before = database.one::<i64>(size, &[]).await;
    tend(&database).await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 30);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.attempts", &[]).await, 30);
    database.execute("vacuum").await;
    // What vacuum has done is told to others with a delay.
    wait_until("the rest to be written closely together", DEADLINE, async || {
        tend(&database).await;
        let after = database.one::<i64>(size, &[]).await;
        (after * 10 < before).then_some(())
    })
    .await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 30);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.attempts", &[]).await, 30);
}

#[tokio::test]
async fn an_emitter_waits_for_none_of_it() {
    let database = with_past(Lie::InTheirWeeks, &[45, 500]).await;
    add(&database, 45, EACH, 10).await;
    add(&database, 500, "{delivered}", 10).await;
    let emitter = database.connect().await;
    emitter.execute("set lock_timeout = '1ms'").await;
    let emit = "select orbhook_emit('USER_ACTION', '{}')";
    // One transaction of an application is open, and one step after the other is not committed yet.
    let open = database.connect().await;
    open.execute("begin").await;
    open.execute(emit).await;
    let upkeep = database.connect().await;
    loop {
        upkeep.execute("begin").await;
        let has_more = upkeep.one::<bool>("select orbhook.tend()", &[]).await;
        emitter.execute(emit).await;
        upkeep.execute("commit").await;
        if !has_more {
            break;
        }
    }
    assert_eq!(held(&database, 45).await, BTreeSet::from(["failed".to_owned(), "pending".to_owned()]));
    let left =
        "select name from orbhook._weeks() where ends_at < now() - interval '400 days' and not is_member";
    let events_alone: BTreeSet<String> = words(&database, left).await;
    assert!(
        events_alone.len() == 1 && events_alone.iter().all(|name| name.starts_with("events_")),
        "dropping a week of events waits for the application, not the application for it: {events_alone:?}"
    );
    open.execute("commit").await;
    tend(&database).await;
    assert_eq!(words(&database, left).await, BTreeSet::new());
}

#[tokio::test]
async fn a_week_that_somebody_reads_goes_later() {
    let database = with_past(Lie::InTheirWeeks, &[45]).await;
    add(&database, 45, "{delivered,cancelled,unwanted}", 1).await;
    let reader = database.connect().await;
    reader.execute("begin").await;
    reader.execute("select from orbhook.events").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await.len(), 3);
    reader.execute("commit").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await.len(), 0);
}

#[tokio::test]
async fn what_has_lost_its_event_is_not_sent_again() {
    let database = with_past(Lie::InTheirWeeks, &[45]).await;
    add(&database, 45, EACH, 1).await;
    tend(&database).await;
    let retried = "select status from orbhook.deliveries where status <> 'pending' and orbhook_retry(id)";
    assert_eq!(words(&database, retried).await, BTreeSet::from(["failed".to_owned()]));
    database
        .execute("select orbhook_replay(id, now() - interval '100 days', now(), 'all') from orbhook.webhooks; select orbhook.look(gen_random_uuid())")
        .await;
    let finished = "select status from orbhook.deliveries where status <> 'pending'";
    assert_eq!(
        words(&database, finished).await,
        BTreeSet::from(["delivered".to_owned(), "cancelled".to_owned()])
    );
}

/// In steps: a failed delivery of the same week keeps it from going as a whole.
#[tokio::test]
async fn a_retry_at_the_last_moment_keeps_its_event_or_is_refused() {
    for lie in [Lie::InTheirWeeks, Lie::InTheDefaultPartition] {
        let database = with_past(lie, &[45]).await;
        add(&database, 45, EACH, 1).await;
        let delivery: Uuid =
            database.one("select id from orbhook.deliveries where status = 'delivered'", &[]).await;
        let retry = "select orbhook_retry($1)";
        let first = database.connect().await;
        first.execute("begin").await;
        assert!(first.one::<bool>(retry, &[&delivery]).await);
        tend(&database).await;
        first.execute("commit").await;
        assert!(held(&database, 45).await.contains("delivered"), "{lie:?}: the retry was first");
        let orphans = "select count(*) from orbhook.deliveries_open d where not exists (select from orbhook.events e where e.id = d.event_id)";
        assert_eq!(database.one::<i64>(orphans, &[]).await, 0, "{lie:?}");

        // The other way round: it waits for the step, and finds the event gone.
        database.execute("delete from orbhook.thinned").await;
        add(&database, 45, "{cancelled}", 1).await;
        let with_event = "select d.id from orbhook.deliveries d join orbhook.events e on e.id = d.event_id where d.status = 'cancelled'";
        let cancelled: Uuid = database.one(with_event, &[]).await;
        let step = database.connect().await;
        step.execute("begin").await;
        while step.one::<bool>("select orbhook.tend()", &[]).await {}
        let late = database.connect().await;
        let (retried, ()) = tokio::join!(async { late.one::<bool>(retry, &[&cancelled]).await }, async {
            wait_until("the retry to wait, or to be refused", DEADLINE, async || {
                let waits = "select exists (select from pg_locks where not granted)";
                database.one::<bool>(waits, &[]).await.then_some(())
            })
            .await;
            step.execute("commit").await;
        });
        assert!(!retried, "{lie:?}");
        assert_eq!(database.one::<i64>(orphans, &[]).await, 0, "{lie:?}");
    }
}

#[tokio::test]
async fn partitions_that_somebody_else_made_are_left_alone() {
    let database = without_weeks().await;
    database.execute("select orbhook._arm('default', 'a test')").await;
    // A month under a week's name, and one that covers the weeks to come.
    database
        .execute(
            "create table orbhook.events_2020_01_06 partition of orbhook.events
                 for values from ('00000000-0000-0000-0000-000000000000') to ('01700000-0000-0000-0000-000000000000');
             create table orbhook.events_2020_99_99 partition of orbhook.events
                 for values from ('01700000-0000-0000-0000-000000000000') to ('0f000000-0000-0000-0000-000000000000');
             insert into orbhook.events (id, event_type, payload, occurred_at)
             values ('00700000-0000-7000-8000-000000000001', 'USER_ACTION', '{}', now())",
        )
        .await;
    tend(&database).await;
    database.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.events", &[]).await, 2);
    assert_eq!(
        words(&database, "select name from orbhook._weeks() where parent = 'events'").await,
        BTreeSet::new()
    );
}

#[tokio::test]
async fn a_copy_keeps_what_it_has() {
    let database = with_past(Lie::InTheirWeeks, &[45]).await;
    add(&database, 45, EACH, 1).await;
    database.execute("update orbhook.environment set place = 'elsewhere/1'").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await.len(), 5);
}

#[tokio::test]
async fn how_long_things_are_kept_is_one_row() {
    let database = with_past(Lie::InTheirWeeks, &[45]).await;
    add(&database, 45, EACH, 1).await;
    for (wrong, constraint) in [
        ("delivered_days = 0", "23514"),
        ("delivered_days = 91", "23514"),
        ("line_days = 60", "23514"),
        ("line_days = 36501", "23514"),
        ("key_days = 0", "23514"),
    ] {
        let refusal = database.refusal(&format!("update orbhook.retention set {wrong}")).await;
        assert_eq!(refusal.sqlstate, constraint, "{wrong}");
    }
    // As a restored dump brings it.
    database.execute("insert into orbhook.retention (delivered_days) values (60)").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await.len(), 5, "60 days");
    database.execute("delete from orbhook.retention").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await.len(), 5, "for ever");
    database.execute("insert into orbhook.retention default values").await;
    let admin = database.connect_as(&database.role("admin").await).await;
    admin.execute("update orbhook.retention set delivered_days = 1, failed_days = 30").await;
    tend(&database).await;
    assert_eq!(held(&database, 45).await, BTreeSet::from(["pending".to_owned()]));
}

#[tokio::test]
async fn keys_and_small_ledgers_go_as_well() {
    let database = with_past(Lie::InTheDefaultPartition, &[]).await;
    database
        .execute(
            "insert into orbhook.event_keys select 'key ' || n, gen_random_uuid(), now() - n * interval '1 hour' from generate_series(1, 5000) n;
             insert into orbhook.erased_events values (gen_random_uuid(), now() - interval '415 days'), (gen_random_uuid(), now());
             insert into orbhook.watch_losses values ('pg_class', 1, 'old', now() - interval '401 days'), ('pg_class', 1, 'new', now())",
        )
        .await;
    tend(&database).await;
    assert_eq!(database.one::<i64>("select count(*) from orbhook.event_keys", &[]).await, 90 * 24 - 1);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.erased_events", &[]).await, 1);
    assert_eq!(database.one::<i64>("select count(*) from orbhook.watch_losses", &[]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_gives_events_a_partition_for_each_week() {
    let (database, receiver) = (without_weeks().await, Receiver::start().await);
    database.create_webhook(generic(&receiver.url("/hook"))).await;
    let _sidecar = SidecarProcess::start(&database, &[]).await;
    wait_until("the partitions", DEADLINE, async || {
        let weeks = "select count(*) from orbhook._weeks() where parent = 'events' and ends_at > now()";
        (database.one::<i64>(weeks, &[]).await == 5).then_some(())
    })
    .await;
    let id = database.emit("USER_ACTION", json!({"n": 1})).await;
    let lies = "select tableoid::regclass::text from orbhook.events where id = $1";
    let week =
        "select 'orbhook.events_' || to_char(date_trunc('week', now() at time zone 'UTC'), 'YYYY_MM_DD')";
    assert_eq!(database.one::<String>(lies, &[&id]).await, database.one::<String>(week, &[]).await);
    receiver.requests(1).await;
}

#[tokio::test]
async fn weeks_are_made_while_an_application_has_emitted_into_the_default_partition() {
    let database = without_weeks().await;
    let open: Session = database.connect().await;
    open.execute("begin").await;
    open.execute("select orbhook_emit('USER_ACTION', '{}')").await;
    tend(&database).await;
    let weeks = "select count(*) from orbhook._weeks() where parent = 'events' and ends_at > now()";
    assert_eq!(database.one::<i64>(weeks, &[]).await, 0, "attaching waits for nobody");
    open.execute("commit").await;
    tend(&database).await;
    assert_eq!(database.one::<i64>(weeks, &[]).await, 4, "this week's events are in the default partition");
}

/// As after five weeks without a sidecar.
async fn without_weeks() -> Database {
    let database = Database::new().await;
    let drop = "select format('drop table orbhook.%I', name) from orbhook._weeks() where parent = 'events'";
    for statement in words(&database, drop).await {
        database.execute(&statement).await;
    }
    database
}

async fn with_past(lie: Lie, ages: &[u32]) -> Database {
    let database = Database::new().await;
    database.create_webhook(generic("http://127.0.0.1:9/")).await;
    database
        .execute(
            "update orbhook.webhooks set created_at = now() - interval '2 years', updated_at = now() - interval '2 years';
             select orbhook._arm('default', 'a test'), orbhook._open_period()",
        )
        .await;
    for age in ages {
        let monday = format!("date_trunc('week', now() - interval '{age} days')::date");
        database
            .execute(&format!("select orbhook._open_period({monday}), orbhook._open_period({monday} + 7)"))
            .await;
        if lie == Lie::InTheirWeeks {
            for _ in ["made", "attached"] {
                database.execute(&format!("select orbhook._open_event_week({monday})")).await;
            }
        }
    }
    database
}

async fn add(database: &Database, age: u32, statuses: &str, times: u32) {
    let sql = OF_THE_AGE
        .replace("$age", &age.to_string())
        .replace("$statuses", &format!("'{statuses}'"))
        .replace("$times", &times.to_string());
    database.execute(&format!("begin; {sql}; commit")).await;
}

/// As a sidecar does, until there is no more to do.
async fn tend(database: &Database) {
    let session = database.connect().await;
    while session.one::<bool>("select orbhook.tend()", &[]).await {}
}

/// Statuses whose events of that age are there.
async fn held(database: &Database, age: u32) -> BTreeSet<String> {
    let sql = format!(
        "select split_part(payload ->> 'what', ' ', 1) from orbhook.events where payload ->> 'what' like '% {age}'"
    );
    words(database, &sql).await
}

async fn words(database: &Database, sql: &str) -> BTreeSet<String> {
    database.rows(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}
