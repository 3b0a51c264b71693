use std::sync::Arc;

use orbhook_tests::{Database, generic};

/// 5,000 attempts of five webhooks in the last 23 hours, none near the edges of the hour; some failed, some unanswered.
const ATTEMPTS: &str = "
    insert into orbhook.attempts (delivery_id, number, webhook_id, started_at, duration_ms, status_code, error_class, period)
    select gen_random_uuid(), 1, w.id, statement_timestamp() - make_interval(secs => t.ago), t.duration_ms,
           case when t.kind < 8 then 200 when t.kind = 8 then 500 end,
           case t.kind when 8 then 'http' when 9 then case when n % 3 = 0 then 'timeout_body' else 'connection_refused' end end,
           '1970-01-01'
    from generate_series(1, 5000) as n
    cross join lateral (select case when n % 2 = 0 then random() * 3400 else 3800 + random() * 79000 end as ago,
                               (exp(random() * 10))::integer as duration_ms, n % 10 as kind) t
    join (select id, row_number() over (order by id) as place from orbhook.webhooks) w on w.place = n % 5 + 1";

const HEALTH: &str = "
    select string_agg(h::text, E'\\n' order by h.webhook_id) from (
        select webhook_id, sent_hour, failed_hour, success_hour_percent, p50_hour_ms, p99_hour_ms,
               sent_day, failed_day, success_day_percent, p50_day_ms, p99_day_ms from orbhook.webhook_health) h";

#[tokio::test]
async fn health_says_the_same_whether_attempts_are_counted_or_not() {
    let database = with_attempts().await;
    let before: String = database.one(HEALTH, &[]).await;
    let steps = count_all(&database).await;
    assert!((61..1600).contains(&steps), "minutes with attempts, one by one: {steps}");
    let read_live =
        "select count(*) from orbhook.attempts, orbhook.totals_until where started_at >= minutes_until";
    assert!(database.one::<i64>(read_live, &[]).await < 500, "only the last minutes are left to read");
    assert_eq!(database.one::<String>(HEALTH, &[]).await, before);

    let hours = "select count(*) from orbhook.attempt_hours h, orbhook.totals_until u
                 where h.starts_at >= u.hours_until or h.starts_at < u.hours_until - interval '26 hours'";
    assert_eq!(database.one::<i64>(hours, &[]).await, 0);
    let minutes = "select min(m.starts_at) >= min(u.hours_until) - interval '1 hour' from orbhook.attempt_minutes m, orbhook.totals_until u";
    assert!(database.one::<bool>(minutes, &[]).await, "minutes that no view reads any more are gone");
}

#[tokio::test]
async fn percentiles_are_those_of_the_attempts_and_a_tenth_more_at_most() {
    let database = with_attempts().await;
    count_all(&database).await;
    let wrong = "
        select count(*)
        from orbhook.webhook_health h
        join (select a.webhook_id,
                     percentile_disc(0.5) within group (order by a.duration_ms) as p50,
                     percentile_disc(0.99) within group (order by a.duration_ms) as p99
              from orbhook.attempts a
              where a.status_code is not null or a.error_class like 'timeout%'
              group by a.webhook_id) x on x.webhook_id = h.webhook_id
        where (h.p50_day_ms between x.p50 and x.p50 * 1.1 and h.p99_day_ms between x.p99 and x.p99 * 1.1) is not true";
    assert_eq!(database.one::<i64>(wrong, &[]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_sidecars_count_every_attempt_is_counted_once() {
    let database = Arc::new(with_attempts().await);
    let counters: Vec<_> = (0..4)
        .map(|_| {
            let database = Arc::clone(&database);
            tokio::spawn(async move {
                let session = database.connect().await;
                // False also says that another has the row, so each goes on until nothing is left.
                let left = "select minutes_until < date_trunc('minute', now() - interval '2 minutes') from orbhook.totals_until";
                while session.one::<bool>(left, &[]).await {
                    session.one::<bool>("select orbhook.tend()", &[]).await;
                }
            })
        })
        .collect();
    for counter in counters {
        counter.await.unwrap();
    }
    let missed = "
        select (select count(*) from orbhook.attempts, orbhook.totals_until
                where started_at < minutes_until)
             - (select sum(sent)::bigint from orbhook.attempt_hours)
             - (select coalesce(sum(sent), 0)::bigint from orbhook.attempt_minutes, orbhook.totals_until where starts_at >= hours_until)";
    assert_eq!(database.one::<i64>(missed, &[]).await, 0);
}

#[tokio::test]
async fn a_step_that_was_undone_is_done_again() {
    let database = with_attempts().await;
    let before: String = database.one(HEALTH, &[]).await;
    let session = database.connect().await;
    session.execute("begin; select orbhook.tend(); select orbhook.tend()").await;
    // Meanwhile the row is locked: another sidecar has nothing to do, and does not wait.
    assert!(!database.one::<bool>("select orbhook.tend()", &[]).await);
    session.execute("rollback").await;
    count_all(&database).await;
    assert_eq!(database.one::<String>(HEALTH, &[]).await, before);
}

#[tokio::test]
async fn counting_writes_to_no_row_that_a_claim_or_a_settle_locks() {
    let database = with_attempts().await;
    let written = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint from pg_stat_xact_user_tables
                   where schemaname = 'orbhook' and relname not in ('attempt_minutes', 'attempt_hours', 'totals_until')";
    let session = database.connect().await;
    session.execute("begin; select orbhook.tend()").await;
    let locks = "select count(*) from pg_locks where pid = pg_backend_pid() and mode = 'RowShareLock'
                 and relation::regclass::text not in ('orbhook.totals_until', 'orbhook.totals_until_pkey')";
    assert_eq!(session.one::<i64>(written, &[]).await, 0);
    assert_eq!(session.one::<i64>(locks, &[]).await, 0);
}

async fn with_attempts() -> Database {
    let database = Database::new().await;
    for number in 0..5 {
        database.create_webhook(generic(&format!("http://127.0.0.1:9/{number}"))).await;
    }
    database.execute(ATTEMPTS).await;
    database
}

/// Calls `orbhook.tend` until there is nothing more to count; returns how often.
async fn count_all(database: &Database) -> usize {
    let mut steps = 1;
    while database.one::<bool>("select orbhook.tend()", &[]).await {
        steps += 1;
        assert!(steps < 2_000, "it must come to an end");
    }
    steps
}
