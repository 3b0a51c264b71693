use orbhook_tests::{Claimer, Database, generic};
use serde_json::json;

use crate::golden::golden;

const KINDS: [&str; 5] = ["emitter", "sender", "reader", "reader_payload", "admin"];

/// Who holds what, one line for each object and privilege that anybody holds; effective privileges, those of PUBLIC too.
/// Columns are named where it is not all of them. $1: the roles; $2: their kinds.
const MATRIX: &str = "
    with roles as (
        select r.oid, k.kind, k.place
        from unnest($1::text[], $2::text[]) with ordinality as k (name, kind, place) join pg_roles r on r.rolname = k.name
    ), members as (
        select d.classid, d.objid from pg_depend d join pg_extension e on e.oid = d.refobjid and e.extname = 'orbhook'
        where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
    ), held as (
        select 1 as rank, 'schema ' || n.nspname as object, p.privilege, '' as columns, r.kind, r.place
        from members m join pg_namespace n on m.classid = 'pg_namespace'::regclass and n.oid = m.objid
        cross join unnest(array['usage', 'create']) as p (privilege)
        left join roles r on has_schema_privilege(r.oid, n.oid, p.privilege)
        union all
        select 2, case c.relkind when 'v' then 'view ' else 'table ' end || c.oid::regclass, p.privilege,
               case when g.allowed < g.of then '(' || g.columns || ')' else '' end, g.kind, g.place
        from members m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid and c.relkind in ('r', 'p', 'v', 'm')
        cross join unnest(array['select', 'insert', 'update', 'references']) as p (privilege)
        left join lateral (
            select r.kind, r.place, count(*) as of,
                   count(*) filter (where has_column_privilege(r.oid, c.oid, a.attnum, p.privilege)) as allowed,
                   string_agg(a.attname, ', ' order by a.attnum) filter (where has_column_privilege(r.oid, c.oid, a.attnum, p.privilege)) as columns
            from roles r cross join pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            group by r.kind, r.place) g on g.allowed > 0
        union all
        select 2, case c.relkind when 'v' then 'view ' else 'table ' end || c.oid::regclass, p.privilege, '', r.kind, r.place
        from members m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid and c.relkind in ('r', 'p', 'v', 'm')
        cross join unnest(array['delete', 'truncate', 'trigger']) as p (privilege)
        left join roles r on has_table_privilege(r.oid, c.oid, p.privilege)
        union all
        select 3, 'sequence ' || c.oid::regclass, p.privilege, '', r.kind, r.place
        from members m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid and c.relkind = 'S'
        cross join unnest(array['usage', 'select', 'update']) as p (privilege)
        left join roles r on has_sequence_privilege(r.oid, c.oid, p.privilege)
        union all
        select 4, 'type ' || t.oid::regtype, 'usage', '', r.kind, r.place
        from members m join pg_type t on m.classid = 'pg_type'::regclass and t.oid = m.objid and t.typelem = 0
        join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
        left join roles r on has_type_privilege(r.oid, t.oid, 'usage')
        union all
        select 5, 'function ' || p.oid::regprocedure, 'execute', '', r.kind, r.place
        from members m join pg_proc p on m.classid = 'pg_proc'::regclass and p.oid = m.objid
        left join roles r on has_function_privilege(r.oid, p.oid, 'execute')
    ), cells as (
        select h.rank, h.object, h.privilege, h.columns, string_agg(h.kind, ' ' order by h.place) as kinds
        from held h group by h.rank, h.object, h.privilege, h.columns
    )
    select c.object || ': ' || c.privilege || case when c.columns = '' then '' else ' ' || c.columns end || ': ' || c.kinds
    from cells c where c.kinds is not null
    union all
    select o.object || ': nobody'
    from (select c.rank, c.object from cells c group by c.rank, c.object having count(c.kinds) = 0) o
    order by 1";

#[tokio::test]
async fn every_role_has_on_every_object_exactly_what_the_golden_matrix_says() {
    let database = Database::new().await;
    let mut roles = Vec::new();
    for kind in KINDS {
        roles.push(database.role(kind).await);
    }
    let rows = database.rows(MATRIX, &[&roles, &KINDS.as_slice()]).await;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(lines.contains(&"table orbhook.webhook_secrets: nobody".to_owned()), "{lines:#?}");
    golden("roles.txt", &(lines.join("\n") + "\n"));
}

#[tokio::test]
async fn a_role_without_a_grant_has_nothing() {
    let database = Database::new().await;
    let nobody = database.role("").await;
    let rows = database.rows(MATRIX, &[&vec![nobody], &vec!["nobody at all"]]).await;
    let held: Vec<String> =
        rows.iter().map(|row| row.get(0)).filter(|line: &String| !line.ends_with(": nobody")).collect();
    assert_eq!(held, [""; 0]);
}

#[tokio::test]
async fn a_reader_sees_no_secret_and_no_payload_unless_it_was_granted() {
    // The body of an answer is not for a reader either, but for its first words: last_error quotes them.
    let database = Database::new().await;
    let mut config = generic("https://example.com/canary-secret-path?key=canary-secret-query");
    config["headers"] = json!({"X-Key": "canary-secret-header"});
    config["signingSecret"] = json!("whsec_Y2FuYXJ5LXNlY3JldC1zaWduaW5nLWtleSEh");
    config["maxRetries"] = json!(0);
    database.create_webhook(config).await;
    let event = database.emit("USER_CREATED", json!({"email": "canary-payload"})).await;
    let claimer = Claimer::register(&database).await;
    let claimed = claimer.claim(&database, 1).await.remove(0);
    let answer = json!([{"delivery": claimed.delivery.to_string(), "attempt": 1, "outcome": "answered", "started_ago_ms": 0,
                         "status": 500, "body": format!("{} canary-payload", "quoted ".repeat(200))}]);
    claimer.settle(&database, answer).await;

    for (kind, sees_payload) in [("reader", false), ("reader_payload", true), ("admin", true)] {
        let session = database.connect_as(&database.role(kind).await).await;
        let readable = session
            .rows(
                "select format('select concat_ws('' '', %s) from %s as x', string_agg(format('to_jsonb(x.%I)', a.attname), ', '), c.oid::regclass)
                 from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                 where c.relnamespace = 'orbhook'::regnamespace and c.relkind in ('r', 'p', 'v')
                   and has_column_privilege(c.oid, a.attnum, 'select')
                 group by c.oid",
                &[],
            )
            .await;
        let mut queries: Vec<String> = readable.iter().map(|row| row.get(0)).collect();
        assert!(queries.len() > 10, "{kind} reads {queries:?}");
        queries.push(format!("select t::text from orbhook.event_trace('{event}') t"));
        queries.push("select a::text from orbhook_audit('-infinity') a".to_owned());
        queries.push("select e::text from orbhook_explain('USER_LOGIN', '{}') e".to_owned());
        let mut all = String::new();
        for query in &queries {
            for row in session.rows(query, &[]).await {
                all.push_str(&row.get::<_, Option<String>>(0).unwrap_or_default());
            }
        }
        assert!(all.contains("example.com") && all.contains("answered 500"), "{kind} sees something: {all}");
        for secret in ["canary-secret", "Y2FuYXJ5LXNlY3JldC"] {
            assert!(!all.contains(secret), "{kind} sees {secret}");
        }
        assert_eq!(all.contains("canary-payload"), sees_payload, "{kind} and payloads");
    }
}
