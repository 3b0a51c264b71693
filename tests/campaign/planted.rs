//! The checker checked: bugs made on purpose, each in a short campaign with the faults that expose it.
//!
//! Bugs of the sidecar are in its test-only build; bugs of the database are planted in the campaign's own database. A wrapper
//! around the right function goes wrong, so that they fit however that function is written.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::campaign::{self, Settings};
use crate::checker::Invariant;
use crate::faults::Kind;
use crate::fleet::{Orders, POINTS};
use crate::nemesis::Plan;
use crate::receivers::Misbehaviour;
use crate::stage::Commits;

/// Campaigns at a time: they wait more than they work.
const PARALLEL: usize = 3;

const DURATION: Duration = Duration::from_secs(16);

/// How long nothing may be drained before that is noticed: longer than a lease.
const PATIENCE: Duration = Duration::from_secs(18);

/// A bug and how it shows.
struct Plant {
    name: &'static str,
    /// In the sidecar, by the name it has there.
    bug: Option<&'static str>,
    /// In the database.
    sql: Option<Sql>,
    faults: &'static [Kind],
    /// Any of these gives it away. None: this is no bug, and must pass.
    shows_as: &'static [Invariant],
    commits: Commits,
    misbehaviour: Misbehaviour,
    /// Share of processes that are told to stop for longer than their lease, in percent, and where.
    stop_percent: u32,
    points: &'static [&'static str],
    retry_delay_seconds: f64,
    rest_ms_max: u64,
}

/// What is planted in the database.
enum Sql {
    Plain(&'static str),
    /// Around the claim.
    Claim {
        tables: &'static str,
        before: &'static str,
        after: &'static str,
    },
}

const PLAIN: Plant = Plant {
    name: "",
    bug: None,
    sql: None,
    faults: &[],
    shows_as: &[],
    commits: Commits::Mixed,
    misbehaviour: Misbehaviour::USUAL,
    stop_percent: 0,
    points: POINTS,
    retry_delay_seconds: 0.3,
    rest_ms_max: 1_000,
};

static PLANTS: [Plant; 13] = [
    Plant {
        name: "nothing planted, a lagging standby promoted",
        faults: &[Kind::PromotedLagging],
        commits: Commits::Durable,
        ..PLAIN
    },
    Plant {
        name: "settle before send",
        bug: Some("settle_before_send"),
        faults: &[Kind::SidecarKilled],
        shows_as: &[Invariant::RecordsAreTrue],
        ..PLAIN
    },
    Plant {
        name: "no fence",
        sql: Some(NO_FENCE),
        faults: &[Kind::SidecarTerminated],
        shows_as: &[Invariant::RecordsAreTrue],
        misbehaviour: Misbehaviour::BAD,
        stop_percent: 100,
        points: &["after_send", "before_settle"],
        retry_delay_seconds: 2.0,
        ..PLAIN
    },
    Plant {
        name: "lease ignored by the claim",
        sql: Some(LEASE_IGNORED),
        shows_as: &[Invariant::DuplicatesHaveACause],
        ..PLAIN
    },
    Plant {
        name: "lease ignored by the sidecar",
        bug: Some("ignored_lease"),
        faults: &[Kind::SidecarTerminated],
        shows_as: &[Invariant::SuccessIsFinal],
        stop_percent: 100,
        points: &["after_claim"],
        ..PLAIN
    },
    Plant {
        name: "cursor by id",
        sql: Some(CURSOR_BY_ID),
        shows_as: &[Invariant::EverythingDrains],
        ..PLAIN
    },
    Plant {
        name: "claim not committed before the POST",
        bug: Some("claim_not_committed"),
        faults: &[Kind::SidecarKilled],
        shows_as: &[Invariant::DuplicatesHaveACause, Invariant::NothingIsInvented],
        ..PLAIN
    },
    Plant {
        name: "id from a sequence",
        sql: Some(ID_FROM_SEQUENCE),
        faults: &[Kind::PromotedLagging],
        shows_as: &[Invariant::AnIdIsOneMessage],
        commits: Commits::Durable,
        ..PLAIN
    },
    Plant {
        name: "swallowed settle error",
        bug: Some("swallowed_settle_error"),
        faults: &[Kind::AllSessionsTerminated, Kind::ServerRestarted],
        shows_as: &[Invariant::DuplicatesHaveACause],
        ..PLAIN
    },
    Plant { name: "no poll", bug: Some("no_poll"), shows_as: &[Invariant::EverythingDrains], ..PLAIN },
    Plant {
        name: "claim with asynchronous commit",
        sql: Some(CLAIM_ASYNC),
        faults: &[Kind::ServerRestarted],
        shows_as: &[Invariant::NothingIsInvented],
        commits: Commits::Early,
        // Sidecars are back a while after a restart; something has to be sent before the next.
        rest_ms_max: 4_000,
        ..PLAIN
    },
    Plant {
        name: "redirect followed",
        bug: Some("redirect_followed"),
        shows_as: &[Invariant::NothingIsInvented],
        ..PLAIN
    },
    Plant {
        name: "unlogged table",
        sql: Some(Sql::Plain("alter table orbhook.deliveries_open set unlogged")),
        faults: &[Kind::ServerRestarted],
        shows_as: &[Invariant::NothingIsLost],
        ..PLAIN
    },
];

/// The last result wins, whichever attempt it is of.
const NO_FENCE: Sql = Sql::Plain(
    "
alter function orbhook.settle(uuid, jsonb) rename to _settle_right;
create function orbhook.settle(p_sidecar uuid, p_results jsonb)
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    with late as (
        update orbhook.deliveries_open d set outcome_attempt = 0
        from jsonb_to_recordset(p_results) as r (delivery uuid, attempt integer, outcome text)
        where d.id = r.delivery and d.attempts > r.attempt and r.outcome <> 'released'
        returning d.id, d.attempts
    )
    delete from orbhook.attempts t using late l where t.delivery_id = l.id and t.number = l.attempts;
    return query
    select s.* from orbhook._settle_right(p_sidecar, (
        select jsonb_agg(r || jsonb_build_object('attempt', coalesce(d.attempts, (r ->> 'attempt')::integer)))
        from jsonb_array_elements(p_results) r
        left join orbhook.deliveries_open d on d.id = (r ->> 'delivery')::uuid)) s;
end
$$;
grant execute on function orbhook.settle(uuid, jsonb) to campaign_sender;",
);

/// A wrapper around the claim, whatever its arguments are: what it does before and after the right one.
const WRAP_CLAIM: &str = "
do $do$
declare
    v_claim regprocedure := (select p.oid from pg_proc p where p.proname = 'claim' and p.pronamespace = 'orbhook'::regnamespace);
    v_arguments text := pg_get_function_arguments(v_claim);
    v_passed text := (select string_agg('$' || n, ', ')
                      from pg_proc p, generate_series(1, p.pronargs) n where p.oid = v_claim);
begin
    execute format('alter function %s rename to _claim_right', v_claim);
    execute format($f$
        create function orbhook.claim(%s) returns setof orbhook.request
        language plpgsql security definer set search_path = pg_catalog, pg_temp
        as $$
        declare
            v_requests orbhook.request[];
        begin
            BEFORE
            v_requests := array(select r from orbhook._claim_right(%s) r);
            AFTER
            return query select q.* from unnest(v_requests) q;
        end
        $$ $f$, v_arguments, v_passed);
    execute 'grant execute on function orbhook.claim to campaign_sender';
end
$do$;";

/// Whatever is under way is free.
const LEASE_IGNORED: Sql = Sql::Claim {
    tables: "",
    before: "update orbhook.deliveries_open d set lease_until = clock_timestamp() - interval '1 second'
             where d.id in (select o.id from orbhook.deliveries_open o where o.lease_until is not null for update skip locked);",
    after: "",
};

/// What was never claimed and lies behind the last id that was is not looked at any more.
const CURSOR_BY_ID: Sql = Sql::Claim {
    tables: "create table orbhook.cursor (last uuid);
             insert into orbhook.cursor values ('00000000-0000-0000-0000-000000000000');",
    before: "update orbhook.deliveries_open d set due_at = d.due_at + interval '1 day'
             from orbhook.cursor c
             where d.attempts = 0 and d.id < c.last and d.due_at < clock_timestamp() + interval '1 hour';",
    after: "update orbhook.cursor c set last = n.delivery_id
            from (select q.delivery_id from unnest(v_requests) q where q.attempt = 1 order by q.delivery_id desc limit 1) n
            where n.delivery_id > c.last;",
};

/// The claim asks for less than the application did.
const CLAIM_ASYNC: Sql =
    Sql::Claim { tables: "", before: "", after: "perform set_config('synchronous_commit', 'off', true);" };

/// Numbers that a standby which lags behind hands out again.
const ID_FROM_SEQUENCE: Sql = Sql::Plain(
    "
create sequence orbhook.delivery_numbers;
create function orbhook.number_delivery() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    new.id := lpad(to_hex(nextval('orbhook.delivery_numbers')), 32, '0')::uuid;
    return new;
end
$$;
create trigger number before insert on orbhook.deliveries_open for each row execute function orbhook.number_delivery();",
);

impl Sql {
    fn text(&self) -> String {
        match self {
            Sql::Plain(text) => (*text).to_owned(),
            Sql::Claim { tables, before, after } => {
                format!("{tables}{}", WRAP_CLAIM.replace("BEFORE", before).replace("AFTER", after))
            }
        }
    }
}

impl Plant {
    fn settings(&self, seed: u64) -> Settings {
        let usual = Settings::usual(seed, DURATION);
        Settings {
            duration: DURATION,
            emitters: 4,
            orders: Orders {
                abort_percent: 0,
                stop_percent: self.stop_percent,
                points: self.points,
                bug: self.bug,
                ..usual.orders
            },
            plan: Plan { rest_ms_max: self.rest_ms_max, ..Plan::only(self.faults) },
            misbehaviour: self.misbehaviour,
            commits: self.commits,
            with_operator: false,
            with_standby: self.faults.contains(&Kind::PromotedLagging),
            retry_delay_seconds: self.retry_delay_seconds,
            planted_sql: self.sql.as_ref().map(Sql::text),
            patience: PATIENCE,
            ..usual
        }
    }
}

/// Runs all of them, each in a process of its own, or the one of that name in this. Fails if one escapes.
pub(crate) async fn run_all(seed: u64, only: &str) -> ExitCode {
    if let Some(plant) = PLANTS.iter().find(|plant| plant.name == only) {
        return if run(plant, seed).await { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if !only.is_empty() {
        let names: Vec<&str> = PLANTS.iter().map(|plant| plant.name).collect();
        println!("There are: {}", names.join("; "));
        return ExitCode::FAILURE;
    }
    let places = Arc::new(Semaphore::new(PARALLEL));
    let mut running = JoinSet::new();
    for plant in &PLANTS {
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire().await.expect("nobody closes it");
            let this = std::env::current_exe().expect("the path of this program");
            let mut command = Command::new(this);
            command.args(["--planted", plant.name, "--seed", &seed.to_string()]).kill_on_drop(true);
            command.output().await.expect("this program can be run")
        });
    }
    let mut escaped = 0;
    while let Some(output) = running.join_next().await {
        let output = output.expect("waiting for it does not panic");
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        escaped += usize::from(!output.status.success());
    }
    println!("{} of {} as expected", PLANTS.len() - escaped, PLANTS.len());
    if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether it came out as expected: noticed by the right invariant, or, with nothing planted, no violation.
async fn run(plant: &Plant, seed: u64) -> bool {
    let began = Instant::now();
    let outcome = campaign::run(&plant.settings(seed)).await;
    let broken = outcome.broken();
    let is_expected = match plant.shows_as {
        [] => broken.is_empty(),
        expected => expected.iter().any(|invariant| broken.contains(invariant)),
    };
    let word = match (is_expected, plant.shows_as) {
        (true, []) => "clean",
        (true, _) => "caught",
        (false, _) => "ESCAPED",
    };
    println!("{word} after {:.0} s: {}: {broken:?}", began.elapsed().as_secs_f64(), plant.name);
    if is_expected {
        drop(std::fs::remove_dir_all(&outcome.directory));
    } else {
        crate::print(&outcome);
    }
    is_expected
}
