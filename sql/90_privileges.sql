-- Privileges: PUBLIC has nothing; roles get what their kind needs, by orbhook_grant.
--
--   emitter         orbhook_emit
--   sender          what a sidecar calls, and no table
--   reader          configuration, deliveries and attempts, without secrets, payloads and bodies of answers; but
--                   last_error quotes the first words of an answer, and a receiver may say anything
--   reader_payload  the same with payloads and bodies
--   admin           all calls and plain DML on webhooks and event types. Whoever may create webhooks can have every
--                   payload sent to an address of their choice: an admin can read everything that is emitted.
--
-- webhook_secrets is granted to nobody.

create function @extschema@.orbhook_grant(role regrole, kind text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if kind is null or kind not in ('emitter', 'sender', 'reader', 'reader_payload', 'admin') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('kind must be emitter, sender, reader, reader_payload or admin, not %s', coalesce(quote_literal(kind), 'null'));
    end if;
    perform orbhook._grant(role, kind);
    insert into orbhook.grants (role_name, kind)
    select r.rolname, orbhook_grant.kind from pg_roles r where r.oid = role
    on conflict do nothing;
end
$$;
comment on function @extschema@.orbhook_grant(regrole, text) is
'Gives a role what its kind needs: emitter, sender, reader, reader_payload or admin. Run by a superuser or the extension''s owner; remembered in orbhook.grants.
Errors: 22023 (unknown kind), 42501.';

create function orbhook._grant(p_role regrole, p_kind text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_schema   name;
    v_function regprocedure;
begin
    select n.nspname into v_schema
    from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'orbhook';
    execute format('grant usage on schema %I to %s', v_schema, p_role);

    -- p_role is a regrole: it prints as a quoted identifier.
    for v_function in
        select p.oid
        from pg_proc p
        join pg_namespace n on n.oid = p.pronamespace
        join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
        join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'orbhook'
        where case p_kind
                  when 'emitter' then p.proname = 'orbhook_emit'
                  when 'sender' then n.nspname = 'orbhook' and p.proname in (
                      'register', 'deregister', 'look', 'doze', 'rouse', 'claim', 'settle', 'tend', 'gauges', 'start_test', 'test_result',
                      'standing', 'sealing_key', 'outdated_secrets', 'reseal')
                  when 'admin' then p.proname like 'orbhook\_%' and p.proname not in ('orbhook_grant', 'orbhook_install_key')
                       or p.proname in ('event_trace', 'top', '_captured', 'sealing_key')
                  when 'reader_payload' then p.proname in ('orbhook_render', 'orbhook_verify', 'orbhook_explain', 'orbhook_audit', 'event_trace', 'top', '_captured')
                  else p.proname in ('orbhook_render', 'orbhook_verify', 'orbhook_explain', 'orbhook_audit', 'event_trace', 'top')
              end
    loop
        execute format('grant execute on function %s to %s', v_function, p_role);
    end loop;
    if p_kind in ('reader', 'reader_payload', 'admin') then
        -- orbhook_render and orbhook_verify run as their caller, and so does a function in a view.
        execute format('grant execute on function orbhook._render(text, text, text), orbhook._verify(text, text, text, text, text), '
                       'orbhook._time_of_id(uuid) to %s', p_role);
    end if;

    if p_kind <> 'emitter' then
        execute format('grant usage on schema orbhook to %s', p_role);
    end if;
    if p_kind in ('reader', 'reader_payload', 'admin') then
        execute format('grant select on orbhook.event_types, orbhook.webhooks, orbhook.webhook_configs, orbhook.webhook_state, orbhook.keys, orbhook.sealing_keys, orbhook.environment, '
                       'orbhook.delivery_log, orbhook.backlog, orbhook.webhook_health, orbhook.dead_letters, orbhook.sidecars, '
                       'orbhook.deliveries, orbhook.attempt_minutes, orbhook.attempt_hours, orbhook.totals_until, orbhook.instances, orbhook.watches, orbhook.watch_timers, orbhook.watch_losses, orbhook.replays, orbhook.replay_progress, orbhook.erased_events, orbhook.retention, orbhook.thinned to %s', p_role);
        execute format('grant select (id, event_type, occurred_at, created_at, skipped) on orbhook.events to %s', p_role);
        execute format('grant select (delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, '
                       'address, status_code, error_class, error, body_cut, late, period) on orbhook.attempts to %s', p_role);
    end if;
    if p_kind in ('reader_payload', 'admin') then
        execute format('grant select on orbhook.events, orbhook.attempts, orbhook.captured to %s', p_role);
    end if;
    if p_kind = 'admin' then
        execute format('grant insert, update, delete on orbhook.event_types to %s', p_role);
        execute format('grant update (delivered_days, failed_days, line_days, key_days) on orbhook.retention to %s', p_role);
        execute format('grant update (name, active, paused, subscribed_events, filter, max_retries, retry_delay, '
                       'rate_limit_per_second, timeout_seconds, max_in_flight, max_age_seconds) on orbhook.webhooks to %s', p_role);
    end if;
end
$$;
comment on function orbhook._grant(regrole, text) is 'The grants of a kind.';

do $revoke$
declare
    v_function regprocedure;
begin
    -- The script runs with every object already a member of the extension.
    for v_function in
        select p.oid
        from pg_catalog.pg_proc p
        join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid and d.deptype = 'e'
        join pg_catalog.pg_extension e on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass and e.oid = d.refobjid
        where e.extname = 'orbhook'
    loop
        execute pg_catalog.format('revoke all on function %s from public', v_function);
    end loop;
end
$revoke$;

revoke all on all tables in schema orbhook from public;
revoke all on schema orbhook from public;
revoke all on type orbhook.request, orbhook._ending, orbhook._outcome from public;
