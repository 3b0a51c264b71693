//! How old things go: whether anybody notices while they do, and what a year leaves behind.

use std::time::{Duration, Instant};

use orbhook_tests::{Cluster, Database, Session, SidecarProcess};

use crate::drain::{Load, Queue, USUAL};
use crate::figures::{Figures, Goal, note};
use crate::pgbench::Pgbench;
use crate::server;

const FINISHED: i64 = 10_000_000;
/// They go in so many rounds, each of which is compared with one without.
const ROUNDS: i64 = 3;
const WEEKS: i64 = 9;
/// Ages of the weeks, in weeks; all have outlived everything.
const AGE_WEEKS_MIN: i64 = 60;

const WINDOW: Duration = Duration::from_secs(15);

const EMITTERS: usize = 4;

/// Events per second that leave the sidecar room to keep up, on two cores with everything beside it.
const STEADY: &str = "--rate=1000";

/// What upkeep does is done every ten seconds; the window holds one or two of them.
pub(crate) async fn purge() -> Figures {
    let mut figures = Figures::new();
    let cluster = server::start();
    let queue = Queue::empty(&cluster, Load { webhooks: 2, ..USUAL }).await;
    let session = queue.database.connect().await;
    let bytes_before = bytes(&session).await;
    session.execute("select orbhook._arm('default', 'bench')").await;
    // Nothing goes until it is told to.
    session
        .execute(
            "update orbhook.retention set line_days = 30000, failed_days = 30000, delivered_days = 30000",
        )
        .await;
    make_history(&session).await;
    let bytes_full = bytes(&session).await;
    let _sidecar = SidecarProcess::start(&queue.database, &[]).await;
    work(&queue, &[]).await;

    let (mut emitted, mut delivered) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        for (arguments, rates) in [(&[][..], &mut emitted), (&[STEADY], &mut delivered)] {
            let without = work(&queue, arguments).await;
            // Weeks are from this Monday on, and end a day later than they begin anew.
            let days = 7 * (AGE_WEEKS_MIN + WEEKS - WEEKS / ROUNDS * round) - 8;
            // Two of the round's three weeks in the one window, the third in the other.
            let days = if arguments.is_empty() { days + 7 } else { days };
            session
                .execute(&format!(
                    "update orbhook.retention set delivered_days = {days}, failed_days = {days}, line_days = {days}"
                ))
                .await;
            let with = work(&queue, arguments).await;
            rates.push(match arguments.is_empty() {
                true => (without.0, with.0),
                false => (without.1, with.1),
            });
        }
    }
    figures.compare(
        "emit while 10,000,000 finished deliveries go ÷ before",
        "per second",
        &emitted,
        Goal::AtLeast(0.90),
    );
    figures.compare(
        "deliver meanwhile ÷ before, at 1,000 events per second for two webhooks",
        "per second",
        &delivered,
        Goal::AtLeast(0.90),
    );
    while session.one::<bool>("select orbhook.tend()", &[]).await {}
    let left: i64 = session
        .one("select count(*) from orbhook.deliveries where created_at < now() - interval '1 year'", &[])
        .await;
    note(&mut figures, "of the 10,000,000 left", left.to_string());
    note(
        &mut figures,
        "size before, with them, and after (with what was delivered meanwhile)",
        format!(
            "{}, {}, {}",
            megabytes(bytes_before),
            megabytes(bytes_full),
            megabytes(bytes(&session).await)
        ),
    );
    figures
}

/// Emits and deliveries per second, both at once; begins with an empty queue.
async fn work(queue: &Queue, arguments: &[&str]) -> (f64, f64) {
    queue.finished().await;
    let (arrived, began) = (queue.sink.count(), Instant::now());
    let emitted = Pgbench {
        database: &queue.database,
        script: "select orbhook_emit('USER_ACTION', '{\"userId\": \"usr_12345\"}')",
        clients: EMITTERS,
        duration: WINDOW,
        arguments,
    }
    .run();
    let delivered = queue.sink.count() - arrived;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    (emitted, delivered as f64 / began.elapsed().as_secs_f64())
}

async fn make_history(session: &Session) {
    let began = Instant::now();
    let per_week = FINISHED / WEEKS + 1;
    for week in 0..WEEKS {
        let monday = format!("date_trunc('week', now())::date - 7 * {}", AGE_WEEKS_MIN + week);
        session
            .execute(&format!(
                "set timezone = 'UTC'; set synchronous_commit = off;
                 select orbhook._open_period({monday}), orbhook._open_period({monday} + 7), orbhook._open_event_week({monday}); select orbhook._open_event_week({monday});
                 create temporary table made as
                 select (left(b.ms, 14) || substr(b.tail, 15))::uuid as event_id, (left(b.ms, 14) || substr(b.other, 15))::uuid as id, b.at,
                        (select w.id from orbhook.webhooks w limit 1) as webhook_id
                 from generate_series(0, {per_week} - 1) as n
                 cross join lateral (
                     select t.at, orbhook._first_id_at(t.at)::text as ms, gen_random_uuid()::text as tail, gen_random_uuid()::text as other
                     from (select ({monday})::timestamptz + n * interval '604800 seconds' / {per_week} as at) t) b;
                 insert into orbhook.events (id, event_type, payload, occurred_at, created_at)
                 select event_id, 'USER_ACTION', '{{\"userId\": \"usr_12345\"}}', at, at from made;
                 insert into orbhook.deliveries (id, event_id, webhook_id, status, attempts, outcome_attempt, created_at, finished_at, period)
                 select id, event_id, webhook_id, 'delivered', 1, 1, at, at, {monday} from made;
                 insert into orbhook.attempts (delivery_id, number, webhook_id, started_at, duration_ms, status_code, period)
                 select id, 1, webhook_id, at, 20, 200, {monday} from made;
                 drop table made"
            ))
            .await;
        println!("{} deliveries, {:.0} s", per_week * (week + 1), began.elapsed().as_secs_f64());
    }
    session.execute("vacuum analyze").await;
    session.execute("checkpoint").await;
}

/// A year and some weeks at a hundredth of 1,000,000 a day, by a clock that is turned: the real calls, and nobody at the other end.
pub(crate) async fn year() -> Figures {
    const DAYS: i64 = 440;
    const A_DAY: i64 = 10_000;
    let mut figures = Figures::new();
    let (cluster, clock) = Cluster::start_with_clock(&[("autovacuum_naptime", "5s")], -DAYS);
    let database = Database::on(&cluster).await;
    let session = database.connect().await;
    session
        .execute(
            "set orbhook.allow_networks = '127.0.0.0/8';
             select orbhook_create_webhook(jsonb_build_object('name', 'w' || n, 'providerType', 'GENERIC', 'endpoint', 'http://127.0.0.1:9/' || n,
                    'subscribedEvents', jsonb_build_array('USER_ACTION'), 'rateLimit', null, 'maxInFlight', 1000, 'maxRetries', 0))
             from generate_series(1, 1) n",
        )
        .await;
    let mut noted = Vec::new();
    for day in 0..DAYS {
        clock.set(day - DAYS);
        a_day(&session, A_DAY).await;
        if [30, 100, 200, 300, 420, DAYS - 1].contains(&day) {
            noted.push((day, sizes(&session).await));
        }
    }
    for (day, sizes) in noted {
        note(&mut figures, format!("after {} days", day + 1), sizes);
    }
    let pending: i64 = session.one("select count(*) from orbhook.deliveries_open", &[]).await;
    note(&mut figures, "left pending", pending.to_string());
    let event = "select id from orbhook.events order by id desc limit 1";
    let plan = session
        .rows(&format!("explain select * from orbhook.delivery_log where event_id = ({event})"), &[])
        .await
        .iter()
        .filter(|row| row.get::<_, String>(0).contains("Seq Scan on deliveries_2"))
        .count();
    note(
        &mut figures,
        "weeks of deliveries read from end to end for the deliveries of one event",
        plan.to_string(),
    );
    figures
}

/// What a sidecar does in a day, one result in 200 a refusal.
async fn a_day(session: &Session, events: i64) {
    session
        .execute(&format!(
            "select count(orbhook_emit('USER_ACTION', jsonb_build_object('userId', n, 'note', repeat('x', 300)))) from generate_series(1, {events}) n"
        ))
        .await;
    let sidecar = "'00000000-0000-4000-8000-000000000001'::uuid";
    session
        .execute(&format!(
            "delete from orbhook.instances;
             select orbhook.register({sidecar}, 'bench', '0', false);
             select orbhook.look({sidecar})"
        ))
        .await;
    loop {
        let settled: i64 = session
            .one(
                &format!(
                    "with claimed as materialized (select c.*, row_number() over () as n from orbhook.claim({sidecar}, 1000, null) c)
                     select count(*) + 0 * count(s) from (select count(*) as n from claimed) k
                     cross join lateral (select count(*) as s from orbhook.settle({sidecar}, coalesce((
                         select jsonb_agg(jsonb_build_object('delivery', delivery_id, 'attempt', attempt, 'outcome', 'answered', 'started_ago_ms', 5,
                                                             'duration_ms', 5, 'status', case when n % 200 = 0 then 400 else 200 end, 'headers', '{{}}'::jsonb))
                         from claimed), '[]'))) s
                     where k.n > 0"
                ),
                &[],
            )
            .await;
        if settled == 0 {
            break;
        }
    }
    while session.one::<bool>("select orbhook.tend()", &[]).await {}
}

async fn sizes(session: &Session) -> String {
    session
        .one(
            "select string_agg(format('%s %s MB', what, round(bytes / 1048576.0)), ', ' order by what)
                    || format(', %s partitions', (select count(*) from orbhook._weeks()))
             from (select p.relname as what, sum(pg_total_relation_size(i.inhrelid)) as bytes
                   from pg_inherits i join pg_class p on p.oid = i.inhparent
                   where p.relnamespace = 'orbhook'::regnamespace and p.relname in ('events', 'deliveries', 'attempts')
                   group by p.relname
                   union all
                   select 'catalogue', sum(pg_total_relation_size(c.oid)) from pg_class c where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r') t",
            &[],
        )
        .await
}

async fn bytes(session: &Session) -> i64 {
    session.one("select pg_database_size(current_database())", &[]).await
}

fn megabytes(bytes: i64) -> String {
    format!("{} MB", bytes / 1_048_576)
}
