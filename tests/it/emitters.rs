use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use orbhook_tests::{
    Claimer, Cluster, DEADLINE, Database, Receiver, ShutdownMode, Sidecar, answered, generic, wait_until,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::task::JoinSet;

const LOAD_DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn whatever_savepoints_and_exceptions_do_the_events_are_those_that_were_kept() {
    const TRANSACTIONS: u64 = 600;
    let (database, _receiver) = with_receiver(Database::new().await).await;
    let session = database.connect().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut next = 0;
    let mut expected = BTreeSet::new();
    for _ in 0..TRANSACTIONS {
        let (sql, kept) = transaction(&mut random, &mut next);
        // A statement that fails ends the batch; what the transaction then does is its last word.
        for statement in &sql {
            let _ = session.batch_execute(statement).await;
        }
        expected.extend(kept);
    }
    assert!(expected.len() > 500, "too few to say anything: {}", expected.len());
    assert_eq!(recorded(&database).await, expected);
    let deliveries = "select count(*) from orbhook.deliveries_open";
    assert_eq!(database.one::<i64>(deliveries, &[]).await, i64::try_from(expected.len()).unwrap());
}

/// A random transaction, statement by statement, and the numbers of the events that must be there after it.
fn transaction(random: &mut StdRng, next: &mut i64) -> (Vec<String>, Vec<i64>) {
    let mut sql = vec!["begin".to_owned()];
    // One list for the transaction and one for each open savepoint.
    let mut levels: Vec<Vec<i64>> = vec![Vec::new()];
    for _ in 0..random.random_range(1..15) {
        *next += 1;
        let emit = format!("select orbhook_emit('USER_ACTION', '{{\"n\": {next}}}')");
        match random.random_range(0..9) {
            0..=2 => {
                sql.push(emit);
                levels.last_mut().unwrap().push(*next);
            }
            3 => {
                sql.push(format!("savepoint s{}", levels.len()));
                levels.push(Vec::new());
            }
            4 if levels.len() > 1 => {
                sql.push(format!("rollback to s{}", levels.len() - 1));
                levels.last_mut().unwrap().clear();
            }
            5 if levels.len() > 1 => {
                sql.push(format!("release s{}", levels.len() - 1));
                let inner = levels.pop().unwrap();
                levels.last_mut().unwrap().extend(inner);
            }
            // The event and an error in one block that catches it: the block's savepoint takes the event along.
            6 => sql.push(format!(
                "do $$ begin perform orbhook_emit('USER_ACTION', '{{\"n\": {next}}}'); perform 1 / 0; exception when others then end $$"
            )),
            7 => {
                sql.push(format!(
                    "do $$ begin begin perform 1 / 0; exception when others then end; perform orbhook_emit('USER_ACTION', '{{\"n\": {next}}}'); end $$"
                ));
                levels.last_mut().unwrap().push(*next);
            }
            // A refused event, and back to before it.
            _ => sql.extend([
                "savepoint refused".to_owned(),
                "select orbhook_emit('NO_SUCH_TYPE', '{}')".to_owned(),
                "rollback to refused".to_owned(),
                "release refused".to_owned(),
            ]),
        }
    }
    let kept = levels.concat();
    match random.random_range(0..4) {
        0 => {
            sql.push("rollback".to_owned());
            (sql, Vec::new())
        }
        // A statement that fails outside any savepoint: COMMIT then rolls back.
        1 if random.random_bool(0.5) => {
            sql.extend(["select 1 / 0".to_owned(), "commit".to_owned()]);
            (sql, Vec::new())
        }
        _ => {
            sql.push("commit".to_owned());
            (sql, kept)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emit_that_is_cancelled_or_out_of_time_leaves_all_or_nothing() {
    const ROUNDS: i64 = 200;
    const EVENTS: i64 = 400;
    let (database, _receiver) = with_receiver(Database::new().await).await;
    let session = database.connect().await;
    let mut random = StdRng::seed_from_u64(2);
    let mut expected = BTreeSet::new();
    let mut cut_short = 0;
    let emit = |round: i64| {
        format!(
            "select orbhook_emit('USER_ACTION', jsonb_build_object('n', {round} * 1000 + n)) from generate_series(1, {EVENTS}) n"
        )
    };
    // As long as this machine takes for one that nobody cuts short, now that the session has been there before.
    session.execute(&emit(ROUNDS)).await;
    let began = Instant::now();
    session.execute(&emit(ROUNDS + 1)).await;
    let whole = began.elapsed();
    expected.extend((ROUNDS..=ROUNDS + 1).flat_map(|round| (1..=EVENTS).map(move |n| round * 1000 + n)));
    for round in 0..ROUNDS {
        let emit = emit(round);
        let within = whole.mul_f64(random.random_range(0.0..1.5));
        let done = if round % 2 == 0 {
            let cancel = session.cancel_token();
            let cancelling = async {
                // Until the deadline of nothing: some of the statement's time passes.
                let _ = tokio::time::timeout(within, std::future::pending::<()>()).await;
                let _ = cancel.cancel_query(tokio_postgres::NoTls).await;
            };
            let (done, ()) = tokio::join!(session.batch_execute(&emit), cancelling);
            // A cancel that came too late must not meet the next statement.
            let _ = session.batch_execute("select pg_sleep(0.002)").await;
            done
        } else {
            let milliseconds = 1 + within.as_millis();
            session.execute(&format!("set statement_timeout = {milliseconds}")).await;
            let done = session.batch_execute(&emit).await;
            let _ = session.batch_execute("set statement_timeout = 0").await;
            done
        };
        match done {
            Ok(()) => expected.extend((1..=EVENTS).map(|n| round * 1000 + n)),
            Err(error) => {
                cut_short += 1;
                assert_eq!(
                    error.code().map(tokio_postgres::error::SqlState::code),
                    Some("57014"),
                    "{error:?}"
                );
            }
        }
    }
    assert!(cut_short > ROUNDS / 10, "{cut_short} of {ROUNDS}");
    assert_eq!(recorded(&database).await, expected);
}

#[tokio::test]
async fn whatever_a_sidecar_or_an_admin_has_locked_an_emitter_does_not_wait_for_it() {
    let (database, _receiver) = with_receiver(Database::new().await).await;
    database.execute("select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 20)").await;
    let claimer = Claimer::register(&database).await;
    let settling = claimer.claim(&database, 5).await;
    let results: Vec<_> = settling.iter().map(|claimed| answered(claimed, 500, json!({}))).collect();
    let emitter = database.connect().await;
    emitter.execute("set lock_timeout = '50ms'").await;
    for holding in [
        format!("select * from orbhook.claim('{}', 5, null)", claimer.id),
        format!("select * from orbhook.settle('{}', '{}')", claimer.id, json!(results)),
        format!("select * from orbhook.look('{}')", claimer.id),
        "select orbhook_pause(id) from orbhook.webhooks".to_owned(),
        "select orbhook_update_webhook(id, '{\"maxRetries\": 5}') from orbhook.webhooks".to_owned(),
        "select orbhook_rotate_secret(id) from orbhook.webhooks".to_owned(),
        "select orbhook_replay(id, now() - interval '1 hour') from orbhook.webhooks".to_owned(),
        "select orbhook_retry(id) from orbhook.deliveries".to_owned(),
        "select orbhook_cancel(id) from orbhook.deliveries".to_owned(),
        "select orbhook_delete_webhook(id) from orbhook.webhooks".to_owned(),
        "insert into orbhook.event_types (name, category) values ('COFFEE_BREWED', 'kitchen')".to_owned(),
    ] {
        let holder = database.connect().await;
        holder.execute(&format!("begin; {holding}")).await;
        // A wait would be an error.
        emitter.execute("select orbhook_emit('USER_ACTION', '{}') from generate_series(1, 10)").await;
        holder.execute("rollback").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_full_load_no_emitter_is_ever_blocked_by_anybody_but_emitters() {
    const EMITTERS: usize = 8;
    const EVENTS: usize = 400;
    let (database, receiver) = with_receiver(Database::new().await).await;
    let _sidecars = (Sidecar::start(&database).await, Sidecar::start(&database).await);
    let mut emitters = JoinSet::new();
    for _ in 0..EMITTERS {
        let session = database.connect().await;
        emitters.spawn(async move {
            session.execute("set application_name = 'emitter'").await;
            for _ in 0..EVENTS {
                session.execute("select orbhook_emit('USER_ACTION', '{}')").await;
            }
        });
    }
    let admin = database.connect().await;
    let blocked = "select count(*) from pg_stat_activity e cross join lateral unnest(pg_blocking_pids(e.pid)) b (pid)
                   join pg_stat_activity s on s.pid = b.pid
                   where e.datname = current_database() and e.application_name = 'emitter' and s.application_name <> 'emitter'";
    let mut looks = 0;
    while !emitters.is_empty() {
        admin
            .execute(
                "select orbhook_pause(id) from orbhook.webhooks; select orbhook_resume(id) from orbhook.webhooks;
                 select orbhook_update_webhook(id, '{\"maxRetries\": 5}') from orbhook.webhooks",
            )
            .await;
        assert_eq!(database.one::<i64>(blocked, &[]).await, 0);
        looks += 1;
        while let Some(ended) = emitters.try_join_next() {
            ended.unwrap();
        }
    }
    assert!(looks > 1);
    settled(&database).await;
    assert_eq!(receiver.count(), EMITTERS * EVENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn emitting_adds_no_serialization_failures() {
    const WRITERS: i32 = 4;
    const TRANSACTIONS: i32 = 150;
    let (database, _receiver) = with_receiver(Database::new().await).await;
    let _sidecar = Sidecar::start(&database).await;
    database.execute("create table entry (n int not null)").await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let session = database.connect().await;
        writers.spawn(async move {
            session.execute("set default_transaction_isolation = serializable").await;
            for round in 0..TRANSACTIONS {
                // By itself this reads nothing, so it never fails; an emit that made it fail would end the test.
                let insert = format!("insert into entry values ({})", writer * TRANSACTIONS + round);
                session
                    .execute(&format!("begin; {insert}; select orbhook_emit('USER_ACTION', '{{}}'); commit"))
                    .await;
            }
        });
    }
    writers.join_all().await;
    settled(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_takes_memory_that_does_not_grow_with_it() {
    const EVENTS: i64 = 40_000;
    const GROWTH_BYTES_MAX: i64 = 40 * 1024 * 1024;
    let (database, _receiver) = with_receiver(Database::new().await).await;
    let session = database.connect().await;
    let pid: i32 = session.one("select pg_backend_pid()", &[]).await;
    let emit =
        |count: i64| format!("select orbhook_emit('USER_ACTION', '{{}}') from generate_series(1, {count})");
    session.execute("begin").await;
    session.execute(&emit(EVENTS / 4)).await;
    let before = private_bytes(pid);
    session.execute(&emit(EVENTS)).await;
    session.execute("commit").await;
    let growth = private_bytes(pid) - before;
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes for {EVENTS} events");
    let open = "select count(*) from orbhook.deliveries_open";
    assert_eq!(database.one::<i64>(open, &[]).await, EVENTS + EVENTS / 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_and_ddl_on_its_tables_delay_emitters_and_sidecar_and_lose_nothing() {
    const EMITTERS: i64 = 4;
    const EVENTS: i64 = 150;
    let cluster = Cluster::start(&[]);
    let (database, receiver) = with_receiver(Database::on(&cluster).await).await;
    let sidecar = Sidecar::start(&database).await;
    let mut emitters = JoinSet::new();
    for emitter in 0..EMITTERS {
        let session = database.connect().await;
        emitters.spawn(async move {
            let mut kept = Vec::new();
            for event in 0..EVENTS {
                let number = emitter * EVENTS + event;
                let emit = format!("select orbhook_emit('USER_ACTION', '{{\"n\": {number}}}')");
                match session.batch_execute(&emit).await {
                    Ok(()) => kept.push(number),
                    // A deadlock with DDL that takes several tables has a victim, and it may be this one.
                    Err(error) => {
                        assert_eq!(error.code().map(|code| code.code()), Some("40P01"), "{error:?}")
                    }
                }
            }
            kept
        });
    }
    let dba = database.connect().await;
    let dump = async || {
        let arguments = [
            "--dbname",
            database.name(),
            "--serializable-deferrable",
            "--format",
            "custom",
            "--file",
            "dump",
        ];
        cluster.run("pg_dump", &arguments)
    };
    let mut expected = BTreeSet::new();
    let mut rounds = 0;
    while rounds < 2 || !emitters.is_empty() {
        for statement in [
            "vacuum full orbhook.deliveries_open",
            "vacuum full orbhook.webhooks",
            "reindex table orbhook.deliveries_open",
            "reindex table orbhook.webhook_state",
            "alter table orbhook.events add column ours int",
            "alter table orbhook.events drop column ours",
            "alter table orbhook.deliveries add column ours int",
            "alter table orbhook.deliveries drop column ours",
            "alter table orbhook.attempts add column ours int",
            "alter table orbhook.attempts drop column ours",
            "analyze",
            "alter function orbhook.claim(uuid, integer, uuid) cost 200",
        ] {
            let _ = dba.batch_execute(statement).await;
        }
        assert!(dump().await.status.success());
        rounds += 1;
        while let Some(kept) = emitters.try_join_next() {
            expected.extend(kept.unwrap());
        }
    }
    settled(&database).await;
    let arrived: BTreeSet<i64> =
        receiver.so_far().iter().filter_map(|request| request.json()["data"]["n"].as_i64()).collect();
    assert_eq!(arrived, expected);
    assert_eq!(receiver.count(), expected.len(), "and each once");
    sidecar.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_late_is_not_passed_over() {
    const ROUNDS: i64 = 60;
    let (database, receiver) = with_receiver(Database::new().await).await;
    let _sidecar = Sidecar::start(&database).await;
    let (late, early) = (database.connect().await, database.connect().await);
    for round in 0..ROUNDS {
        late.execute(&format!("begin; select orbhook_emit('USER_ACTION', '{{\"n\": {}}}')", 2 * round)).await;
        early.execute(&format!("select orbhook_emit('USER_ACTION', '{{\"n\": {}}}')", 2 * round + 1)).await;
        // The one with the higher id has gone out and is over before the other is there at all.
        if round % 3 == 0 {
            wait_until("the early one", DEADLINE, async || {
                (receiver.count() > usize::try_from(2 * round).unwrap()).then_some(())
            })
            .await;
        }
        late.execute("commit").await;
        receiver.requests(usize::try_from(2 * round + 2).unwrap()).await;
    }
    settled(&database).await;
    assert_eq!(receiver.count(), usize::try_from(2 * ROUNDS).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_for_an_asynchronous_commit_that_a_crash_undoes() {
    const ROUNDS: i64 = 12;
    let cluster = Cluster::start(&[("wal_writer_delay", "10s"), ("synchronous_commit", "off")]);
    let (database, receiver) = with_receiver(Database::on(&cluster).await).await;
    database.execute("checkpoint").await;
    for round in 0..ROUNDS {
        let sidecar = Sidecar::start(&database).await;
        database.emit("USER_ACTION", json!({"round": round})).await;
        // Every other time the server dies before a sidecar can have claimed it.
        if round % 2 == 0 {
            receiver.requests_within(receiver.count() + 1, DEADLINE).await;
        }
        database.cluster().restart(ShutdownMode::Immediate);
        let recorded = recorded_rounds(&database).await;
        let sent: BTreeSet<i64> =
            receiver.so_far().iter().filter_map(|request| request.json()["data"]["round"].as_i64()).collect();
        assert!(sent.is_subset(&recorded), "sent {sent:?}, and there are only {recorded:?}");
        drop(sidecar);
    }
}

async fn recorded_rounds(database: &Database) -> BTreeSet<i64> {
    let select = "select (payload ->> 'round')::bigint from orbhook.events";
    database.rows(select, &[]).await.iter().map(|row| row.get(0)).collect()
}

async fn recorded(database: &Database) -> BTreeSet<i64> {
    let select = "select (payload ->> 'n')::bigint from orbhook.events";
    database.rows(select, &[]).await.iter().map(|row| row.get(0)).collect()
}

/// Memory of a process that it shares with nobody.
fn private_bytes(pid: i32) -> i64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the backend runs");
    let kilobytes = |field: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel counts it");
        line.trim().trim_end_matches(" kB").parse::<i64>().expect("a number of kB")
    };
    (kilobytes("Private_Clean:") + kilobytes("Private_Dirty:")) * 1024
}

async fn with_receiver(database: Database) -> (Database, Receiver) {
    let receiver = Receiver::start().await;
    let mut config = generic(&receiver.url("/hook"));
    config["maxInFlight"] = json!(100);
    database.create_webhook(config).await;
    (database, receiver)
}

async fn settled(database: &Database) {
    wait_until("no delivery to be pending", LOAD_DEADLINE, async || {
        let pending = "select exists (select from orbhook.deliveries where status = 'pending')";
        (!database.one::<bool>(pending, &[]).await).then_some(())
    })
    .await;
}
