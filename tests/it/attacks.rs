use orbhook_tests::{Database, Session};

#[tokio::test]
async fn nothing_that_an_attacker_puts_into_the_path_runs_with_the_owners_rights() {
    let database = Database::new().await;
    let attacker = attacker(&database).await;
    assert!(ATTACKS.len() >= 30);
    for attack in ATTACKS {
        let session = database.connect().await;
        session.execute(&format!("begin; {}", MARKS.replace("{attacker}", &attacker))).await;
        session
            .execute(&format!(
                "set local role {attacker}; set local search_path = public, pg_catalog, orbhook; {}",
                attack.set_up
            ))
            .await;
        for role in [attacker.as_str(), "none"] {
            session.execute(&format!("set local role {role}; savepoint all_calls")).await;
            call_everything(&session, attack.name).await;
            let ran = marks(&session).await;
            assert_eq!(ran, 0, "{}: ran with the owner's rights, called by {role}", attack.name);
            session.execute("rollback to all_calls").await;
        }
        // The attack is a real one: naive code falls for it.
        let body = if attack.falls_for_it.starts_with("declare") {
            attack.falls_for_it.to_owned()
        } else {
            format!("begin {}; end", attack.falls_for_it)
        };
        session
            .execute(&format!(
                "set local role none; create function public.naive() returns pg_catalog.void language plpgsql security definer as $naive${body}$naive$;
                 grant execute on function public.naive() to {attacker}; set local role {attacker}; select public.naive(); set local role none"
            ))
            .await;
        assert!(
            marks(&session).await > 0,
            "{}: would not run in naive code either, so it proves nothing",
            attack.name
        );
    }
}

#[tokio::test]
async fn settings_of_a_role_change_nothing() {
    let database = Database::new().await;
    let attacker = attacker(&database).await;
    for setting in [
        "search_path = ''",
        "standard_conforming_strings = off",
        "escape_string_warning = on",
        "quote_all_identifiers = on",
        "transform_null_equals = on",
        "array_nulls = off",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = sql_standard",
        "timezone = 'Asia/Kathmandu'",
        "bytea_output = escape",
        "extra_float_digits = -15",
        "lc_numeric = 'C'",
        "default_transaction_isolation = 'repeatable read'",
        "plpgsql.extra_errors = 'strict_multi_assignment'",
        "plpgsql.check_asserts = on",
        "check_function_bodies = off",
        "row_security = off",
        "client_encoding = 'LATIN1'",
        "enable_nestloop = off",
        "jit_above_cost = 0",
    ] {
        database.execute(&format!("alter role {attacker} set {setting}")).await;
        let session = database.connect_as(&attacker).await;
        session.execute("begin").await;
        call_everything(&session, setting).await;
        session.execute("rollback").await;
        let name = setting.split(' ').next().unwrap();
        database.execute(&format!("alter role {attacker} reset {name}")).await;
    }
}

#[tokio::test]
async fn every_function_that_runs_with_the_owners_rights_is_attacked() {
    let database = Database::new().await;
    let calls = CALLS.join("\n");
    let definers = database
        .rows(
            "select p.proname::text from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
             join pg_extension e on e.oid = d.refobjid and e.extname = 'orbhook'
             where p.prosecdef and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)",
            &[],
        )
        .await;
    let missed: Vec<String> = definers
        .iter()
        .map(|row| row.get(0))
        .filter(|name: &String| !calls.contains(&format!(".{name}(")))
        .collect();
    assert_eq!(missed, [""; 0], "SECURITY DEFINER, and not among CALLS");
}

/// Something of the attacker's in the path, and the naive code that falls for it: the body of a SECURITY DEFINER
/// function without a search_path of its own. `mark()` and `marked()` write down as whom they run.
struct Attack {
    name: &'static str,
    set_up: &'static str,
    falls_for_it: &'static str,
}

const fn attack(name: &'static str, set_up: &'static str, falls_for_it: &'static str) -> Attack {
    Attack { name, set_up, falls_for_it }
}

const ATTACKS: &[Attack] = &[
    attack(
        "function now()",
        "create function now() returns timestamptz language sql as 'select mark(); select pg_catalog.now()'",
        "perform now()",
    ),
    attack(
        "function clock_timestamp()",
        "create function clock_timestamp() returns timestamptz language sql as 'select mark(); select pg_catalog.clock_timestamp()'",
        "perform clock_timestamp()",
    ),
    attack(
        "function statement_timestamp()",
        "create function statement_timestamp() returns timestamptz language sql as 'select mark(); select pg_catalog.statement_timestamp()'",
        "perform statement_timestamp()",
    ),
    attack(
        "function format(text, text)",
        "create function format(text, text) returns text language sql as 'select mark(); select pg_catalog.format($1, $2)'",
        "perform format('%s'::text, 'x'::text)",
    ),
    attack(
        "function jsonb_typeof(jsonb)",
        "create function jsonb_typeof(jsonb) returns text language sql as 'select mark(); select pg_catalog.jsonb_typeof($1)'",
        "perform jsonb_typeof('{}'::jsonb)",
    ),
    attack(
        "function lower(text)",
        "create function lower(text) returns text language sql as 'select mark(); select pg_catalog.lower($1)'",
        "perform lower('x'::text)",
    ),
    attack(
        "function left(text, integer)",
        "create function \"left\"(text, integer) returns text language sql as 'select mark(); select pg_catalog.left($1, $2)'",
        "perform left('x'::text, 1)",
    ),
    attack(
        "function right(text, integer)",
        "create function \"right\"(text, integer) returns text language sql as 'select mark(); select pg_catalog.right($1, $2)'",
        "perform right('x'::text, 1)",
    ),
    attack(
        "function starts_with(text, text)",
        "create function starts_with(text, text) returns boolean language sql as 'select mark(); select pg_catalog.starts_with($1, $2)'",
        "perform starts_with('x'::text, 'x'::text)",
    ),
    attack(
        "function unnest(text[])",
        "create function unnest(text[]) returns setof text language sql as 'select mark(); select pg_catalog.unnest($1)'",
        "perform unnest('{x}'::text[])",
    ),
    attack(
        "function current_setting(text)",
        "create function current_setting(text) returns text language sql as 'select mark(); select pg_catalog.current_setting($1)'",
        "perform current_setting('port'::text)",
    ),
    attack(
        "function set_config(text, text, boolean)",
        "create function set_config(text, text, boolean) returns text language sql as 'select mark(); select pg_catalog.set_config($1, $2, $3)'",
        "perform set_config('geqo'::text, 'on'::text, true)",
    ),
    attack(
        "function pg_try_advisory_lock(integer, integer)",
        "create function pg_try_advisory_lock(integer, integer) returns boolean language sql as 'select mark(); select pg_catalog.pg_try_advisory_lock($1, $2)'",
        "perform pg_try_advisory_lock(1, 1)",
    ),
    attack(
        "function jsonb_build_object(text, text)",
        "create function jsonb_build_object(text, text) returns jsonb language sql as 'select mark(); select pg_catalog.jsonb_build_object($1, $2)'",
        "perform jsonb_build_object('x'::text, 'x'::text)",
    ),
    attack(
        "aggregate count(*)",
        "create function plus_one(bigint) returns bigint language sql as 'select mark(); select $1'; create aggregate count(*) (sfunc = plus_one, stype = bigint, initcond = '0')",
        "perform count(*) from pg_catalog.pg_class",
    ),
    attack(
        "function max(uuid), a better fit than any built in",
        "create function first_uuid(uuid, uuid) returns uuid language sql as 'select mark(); select $2'; create aggregate max(uuid) (sfunc = first_uuid, stype = uuid)",
        "perform max('00000000-0000-0000-0000-000000000000'::uuid)",
    ),
    attack(
        "operator = (uuid, uuid)",
        "create function same(uuid, uuid) returns boolean language sql as 'select mark(); select $1 operator(pg_catalog.=) $2'; create operator = (function = same, leftarg = uuid, rightarg = uuid)",
        "perform '00000000-0000-0000-0000-000000000000'::uuid = '00000000-0000-0000-0000-000000000000'::uuid",
    ),
    attack(
        "operator = (text, text)",
        "create function same(text, text) returns boolean language sql as 'select mark(); select $1 operator(pg_catalog.=) $2'; create operator = (function = same, leftarg = text, rightarg = text)",
        "perform 'x'::text = 'x'::text",
    ),
    attack(
        "operator <> (text, text)",
        "create function other(text, text) returns boolean language sql as 'select mark(); select $1 operator(pg_catalog.<>) $2'; create operator <> (function = other, leftarg = text, rightarg = text)",
        "perform 'x'::text <> 'x'::text",
    ),
    attack(
        "operator <= (timestamptz, timestamptz)",
        "create function before(timestamptz, timestamptz) returns boolean language sql as 'select mark(); select $1 operator(pg_catalog.<=) $2'; create operator <= (function = before, leftarg = timestamptz, rightarg = timestamptz)",
        "perform '-infinity'::timestamptz <= 'infinity'::timestamptz",
    ),
    attack(
        "operator + (timestamptz, interval)",
        "create function later(timestamptz, interval) returns timestamptz language sql as 'select mark(); select $1 operator(pg_catalog.+) $2'; create operator + (function = later, leftarg = timestamptz, rightarg = interval)",
        "perform '2020-01-01'::timestamptz + '1 s'::interval",
    ),
    attack(
        "operator || (text, text)",
        "create function joined(text, text) returns text language sql as 'select mark(); select $1 operator(pg_catalog.||) $2'; create operator || (function = joined, leftarg = text, rightarg = text)",
        "perform 'x'::text || 'x'::text",
    ),
    attack(
        "operator || (jsonb, jsonb)",
        "create function joined(jsonb, jsonb) returns jsonb language sql as 'select mark(); select $1 operator(pg_catalog.||) $2'; create operator || (function = joined, leftarg = jsonb, rightarg = jsonb)",
        "perform '{}'::jsonb || '{}'::jsonb",
    ),
    attack(
        "operator ->> (jsonb, text)",
        "create function got(jsonb, text) returns text language sql as 'select mark(); select $1 operator(pg_catalog.->>) $2'; create operator ->> (function = got, leftarg = jsonb, rightarg = text)",
        "perform '{}'::jsonb ->> 'x'::text",
    ),
    attack(
        "operator ~ (text, text)",
        "create function fits(text, text) returns boolean language sql as 'select mark(); select $1 operator(pg_catalog.~) $2'; create operator ~ (function = fits, leftarg = text, rightarg = text)",
        "perform 'x'::text ~ 'x'::text",
    ),
    attack(
        "cast by assignment to a domain called jsonb",
        "create domain public.jsonb as pg_catalog.jsonb check (marked())",
        "declare v jsonb; begin v := '{}'; end",
    ),
    attack(
        "domain called text in public",
        "create domain public.text as pg_catalog.text check (marked())",
        "declare v text; begin v := 'x'; end",
    ),
    attack(
        "domain called uuid in pg_temp",
        "create domain pg_temp.uuid as pg_catalog.uuid check (public.marked())",
        "declare v uuid; begin v := '00000000-0000-0000-0000-000000000000'; end",
    ),
    attack(
        "domain called timestamptz in pg_temp",
        "create domain pg_temp.timestamptz as pg_catalog.timestamptz check (public.marked())",
        "declare v timestamptz; begin v := 'infinity'; end",
    ),
    attack(
        "implicit cast from a row type",
        "create type public.bait as (x pg_catalog.int4); create function bait_text(public.bait) returns pg_catalog.text language sql as 'select mark(); select ''x''::pg_catalog.text'; create cast (public.bait as pg_catalog.text) with function bait_text(public.bait) as implicit; create function clock_timestamp() returns public.bait language sql as 'select row(1)::public.bait'",
        "perform pg_catalog.lower(clock_timestamp())",
    ),
    attack(
        "view called pg_extension in pg_temp",
        "create view pg_temp.pg_extension as select 0::pg_catalog.oid as oid, 'orbhook'::name as extname, 0::pg_catalog.oid as extnamespace where public.marked()",
        "perform extname from pg_extension",
    ),
    attack(
        "view called pg_locks in pg_temp",
        "create view pg_temp.pg_locks as select 'advisory' as locktype where public.marked()",
        "perform locktype from pg_locks",
    ),
    attack(
        "table called pg_namespace in pg_temp",
        "create table pg_temp.pg_namespace (nspname name default public.marked_name(), oid pg_catalog.oid)",
        "insert into pg_namespace default values",
    ),
    attack(
        "table called events in public",
        "create table public.events (id pg_catalog.uuid, event_type pg_catalog.text, payload pg_catalog.jsonb, x pg_catalog.bool default marked())",
        "insert into events default values",
    ),
    attack(
        "view called subscriptions in pg_temp",
        "create view pg_temp.subscriptions as select public.marked() as active",
        "perform active from subscriptions",
    ),
];

/// Every call that runs with the owner's rights, in an order in which all of them have something to do.
/// Nothing in them is looked up in the path. {webhook}: a webhook's id; {delivery}: an open delivery's; {event}: its event's.
const CALLS: &[&str] = &[
    "public.orbhook_create_webhook('{\"name\": \"w\", \"providerType\": \"GENERIC\", \"endpoint\": \"http://127.0.0.1:9/\", \"subscribedEvents\": [\"*\"], \"filter\": \"$.n > 0\"}')",
    "public.orbhook_update_webhook('{webhook}', '{\"headers\": {\"X-A\": \"b\"}, \"retryDelay\": [1, 2], \"filter\": null}')",
    "public.orbhook_pause('{webhook}')",
    "public.orbhook_resume('{webhook}')",
    "public.orbhook_rotate_secret('{webhook}')",
    "public.orbhook_render('SLACK', '{\"eventType\": \"USER_CREATED\"}')",
    "public.orbhook_verify('whsec_AAAA', '{\"webhook-id\": \"x\", \"webhook-timestamp\": \"1\", \"webhook-signature\": \"v1,x\"}', 'x')",
    "public.orbhook_preview('{webhook}', 'USER_CREATED', '{}')",
    "public.orbhook_explain('USER_CREATED', '{\"n\": 1}')",
    "public.orbhook_emit('USER_CREATED', '{\"n\": 1, \"timestamp\": \"2024-06-14T15:30:00Z\"}', 'key', '2020-01-01')",
    "public.orbhook_emit('USER_CREATED', '{\"n\": 2}', 'key')",
    "orbhook._captured()",
    "orbhook.event_trace('{event}')",
    "orbhook.standing('default', '{}')",
    "public.orbhook_install_key('orbhook-public-key:ec6f1d3bd245b3b9:ARRau7P1soUMeeUnoTYugnTgtAbaFerle2yzyqgntGw')",
    "orbhook.sealing_key()",
    "orbhook.outdated_secrets(null, null, 10)",
    "orbhook.reseal('{webhook}', 'signing', 'sealed:v1:old', 'sealed:v1:ec6f1d3bd245b3b9:AAAA')",
    "orbhook.register('00000000-0000-4000-8000-000000000001', 'a', '0', true, 'default', '{ec6f1d3bd245b3b9}')",
    "orbhook.look('00000000-0000-4000-8000-000000000001')",
    "orbhook.doze('00000000-0000-4000-8000-000000000001')",
    "orbhook.rouse()",
    "orbhook.tend()",
    "orbhook.gauges(10)",
    "orbhook.top(30, 10)",
    "public.orbhook_simulate('{delivery}', 500, '{\"Retry-After\": \"1\"}')",
    "public.orbhook_retry('{delivery}')",
    "orbhook.claim('00000000-0000-4000-8000-000000000001', 10, null)",
    "orbhook.settle('00000000-0000-4000-8000-000000000001', '[{\"delivery\": \"{delivery}\", \"attempt\": 2, \"outcome\": \"answered\", \"status\": 200, \"started_ago_ms\": 1}]')",
    "orbhook.settle('00000000-0000-4000-8000-000000000001', '[{\"delivery\": \"{delivery}\", \"attempt\": 1, \"outcome\": \"answered\", \"status\": 200, \"started_ago_ms\": 1}]')",
    "public.orbhook_test_webhook('{webhook}')",
    "orbhook.start_test('{webhook}')",
    "orbhook.test_result('{delivery}')",
    "public.orbhook_replay('{webhook}', '2020-01-01', '2100-01-01', 'all')",
    "orbhook.look('00000000-0000-4000-8000-000000000001')",
    "public.orbhook_audit('-infinity')",
    "public.orbhook_takeover('default', 'keep')",
    "public.orbhook_takeover('other', 'keep')",
    "public.orbhook_cancel('{delivery}')",
    "public.orbhook_erase('1')",
    "public.orbhook_erase('$.userId == 1'::pg_catalog.jsonpath)",
    "orbhook.deregister('00000000-0000-4000-8000-000000000001')",
    "public.orbhook_delete_webhook('{webhook}')",
];

/// Read by everybody who may; a view runs functions and operators that were looked up when it was made.
const VIEWS: &[&str] = &[
    "captured",
    "delivery_log",
    "backlog",
    "webhook_health",
    "dead_letters",
    "sidecars",
    "webhook_configs",
    "replay_progress",
];

/// What attacks leave behind when their code runs: who ran it.
const MARKS: &str = "
    create table public.ran (who name);
    grant all on public.ran to {attacker};
    create function public.mark() returns void language plpgsql as 'begin insert into public.ran values (current_user); end';
    create function public.marked() returns boolean language plpgsql as 'begin insert into public.ran values (current_user); return true; end';
    create function public.marked_name() returns name language plpgsql as 'begin insert into public.ran values (current_user); return current_user; end'";

/// How often something ran as the owner. What ran as the attacker is no gain for it.
async fn marks(session: &Session) -> i64 {
    session.execute("set local role none; set local search_path = pg_catalog, pg_temp").await;
    let marks = text(session, "select count(*) from public.ran where who = 'postgres'")
        .await
        .unwrap()
        .parse()
        .unwrap();
    session.execute("set local search_path = public, pg_catalog, orbhook").await;
    marks
}

async fn call_everything(session: &Session, context: &str) {
    // Event triggers run with the owner's rights inside anybody's statement.
    let tables = "create table public.scratch (x pg_catalog.int4); alter table public.scratch add y pg_catalog.int4; drop table public.scratch";
    if let Err(error) = session.batch_execute(tables).await {
        panic!("{context}: {error:?}\nin: {tables}");
    }
    let mut ids = [String::new(), String::new(), String::new()];
    let isolation = text(session, "show transaction_isolation").await;
    for call in CALLS {
        // Refused, by its documentation: it must see what others have just committed.
        if isolation.as_deref() != Some("read committed")
            && (call.contains("install_key") || call.contains(".reseal("))
        {
            continue;
        }
        let mut sql = format!("select {call}");
        for (name, id) in ["{webhook}", "{event}", "{delivery}"].iter().zip(&ids) {
            sql = sql.replace(name, id);
        }
        let result = match session.simple_query(&sql).await {
            Ok(messages) => first(&messages),
            Err(error) => panic!("{context}: {error:?}\nin: {sql}"),
        };
        if call.contains("create_webhook") {
            ids[0] = result.unwrap();
        } else if call.contains("'key', ") {
            ids[1] = result.unwrap();
            ids[2] = text(session, "select delivery_id from orbhook._captured()").await.unwrap();
            for view in VIEWS {
                text(session, &format!("select pg_catalog.to_jsonb(v) from orbhook.{view} v")).await;
            }
        }
    }
}

async fn text(session: &Session, sql: &str) -> Option<String> {
    first(&session.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}")))
}

fn first(messages: &[tokio_postgres::SimpleQueryMessage]) -> Option<String> {
    messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// A role that may do everything a role may, and create in public as well.
async fn attacker(database: &Database) -> String {
    let attacker = database.role("admin").await;
    for kind in ["emitter", "sender", "reader_payload"] {
        database.execute(&format!("select orbhook_grant('{attacker}', '{kind}')")).await;
    }
    database.execute(&format!("grant create on schema public to {attacker}")).await;
    // An owner's call; whoever it is granted to must not be able to do more with it than it says.
    database.execute(&format!("grant execute on function orbhook_install_key to {attacker}")).await;
    attacker
}
