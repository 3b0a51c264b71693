use orbhook_tests::Database;

/// Everything that CREATE EXTENSION made, by class.
const MEMBERS: &str = "select classid, objid from pg_depend
    where refclassid = 'pg_extension'::regclass and deptype = 'e'
      and refobjid = (select oid from pg_extension where extname = 'orbhook')";

#[tokio::test]
async fn nothing_is_granted_to_public() {
    let granted = list(
        "select o.what from members m join (
             select 'pg_proc'::regclass as classid, oid, oid::regprocedure::text as what,
                    coalesce(proacl, acldefault('f', proowner)) as acl from pg_proc
             union all
             select 'pg_class'::regclass, oid, oid::regclass::text,
                    coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::\"char\", relowner)) from pg_class
             union all
             select 'pg_namespace'::regclass, oid, nspname::text, coalesce(nspacl, acldefault('n', nspowner))
             from pg_namespace
         ) o on o.classid = m.classid and o.oid = m.objid
         where exists (select from aclexplode(o.acl) where grantee = 0)",
    )
    .await;
    assert_eq!(granted, [""; 0], "granted to PUBLIC");
}

#[tokio::test]
async fn every_security_definer_function_pins_its_search_path() {
    let unpinned = list(
        "select p.oid::regprocedure::text from members m join pg_proc p on p.oid = m.objid
         where m.classid = 'pg_proc'::regclass and p.prosecdef
           and not coalesce(p.proconfig, '{}') && array['search_path=pg_catalog, pg_temp']",
    )
    .await;
    assert_eq!(unpinned, [""; 0], "SECURITY DEFINER without search_path = pg_catalog, pg_temp");

    let definers = list(
        "select p.proname::text from members m join pg_proc p on p.oid = m.objid
         where m.classid = 'pg_proc'::regclass and p.prosecdef",
    )
    .await;
    assert!(!definers.is_empty(), "there is nothing to check: the query is wrong");
}

#[tokio::test]
async fn everything_public_says_what_it_is_for() {
    let silent = list(
        "select p.oid::regprocedure::text from members m join pg_proc p on p.oid = m.objid
         where m.classid = 'pg_proc'::regclass and p.proname !~ '^_' and obj_description(p.oid, 'pg_proc') is null
         union all
         select c.oid::regclass::text from members m join pg_class c on c.oid = m.objid
         where m.classid = 'pg_class'::regclass and c.relkind in ('r', 'p', 'v', 'm')
           and obj_description(c.oid, 'pg_class') is null
         union all
         select c.oid::regclass || '.' || a.attname from members m
         join pg_class c on c.oid = m.objid join pg_attribute a on a.attrelid = c.oid
         where m.classid = 'pg_class'::regclass and c.relkind in ('r', 'p', 'v', 'm') and not c.relispartition
           and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null
         union all
         select n.nspname::text from members m join pg_namespace n on n.oid = m.objid
         where m.classid = 'pg_namespace'::regclass and obj_description(n.oid, 'pg_namespace') is null",
    )
    .await;
    assert_eq!(silent, [""; 0], "without a comment");
}

#[tokio::test]
async fn a_sender_may_execute_functions_and_read_nothing() {
    let database = Database::new().await;
    let sender = database.role("sender").await;
    let readable = database
        .rows(
            &format!(
                "with members as ({MEMBERS})
                 select c.oid::regclass::text from members m join pg_class c on c.oid = m.objid
                 where m.classid = 'pg_class'::regclass and c.relkind in ('r', 'p', 'v')
                   and has_table_privilege($1::text, c.oid, 'select, insert, update, delete, truncate')"
            ),
            &[&sender],
        )
        .await;
    assert!(readable.is_empty(), "{readable:?}");

    let session = database.connect_as(&sender).await;
    for table in ["events", "deliveries", "webhook_secrets"] {
        let refusal = session.refusal(&format!("select * from orbhook.{table}")).await;
        assert_eq!(refusal.sqlstate, "42501", "{table}: {refusal:?}");
    }
    let refusal = session.refusal("select orbhook_emit('USER_CREATED', '{}')").await;
    assert_eq!(refusal.sqlstate, "42501", "a sender does not emit: {refusal:?}");
}

#[tokio::test]
async fn an_emitter_may_emit_and_no_more() {
    let database = Database::new().await;
    let emitter = database.role("emitter").await;
    let session = database.connect_as(&emitter).await;
    session.execute("select orbhook_emit('USER_CREATED', '{}')").await;
    for sql in [
        "select * from orbhook.events",
        "select * from orbhook.claim(gen_random_uuid(), 1, null)",
        "select orbhook_create_webhook('{}')",
    ] {
        assert_eq!(session.refusal(sql).await.sqlstate, "42501", "{sql}");
    }
}

async fn list(query: &str) -> Vec<String> {
    let database = Database::new().await;
    let rows = database.rows(&format!("with members as ({MEMBERS}) {query} order by 1"), &[]).await;
    rows.iter().map(|row| row.get(0)).collect()
}
