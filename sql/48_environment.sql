-- The environment: which database may send at all.
--
-- A copy of a production database holds production's webhooks and whatever was pending. A sidecar started on it by habit
-- would send all of it a second time. So sending is tied to one place (system identifier of the server, oid of the
-- database) and to one name, which every sidecar says (--environment). The first sidecar on a database that has never
-- sent writes both down; from then on orbhook.claim gives nothing to anybody unless both fit.
--
--   fits by itself          a failover (a standby has its primary's identifier), a restart, a renamed database
--   has another place       a restored dump, CREATE DATABASE ... TEMPLATE, a logical subscriber, pg_upgrade
--   has the same place      a snapshot or base backup of the server: only --environment tells it from the original
--
-- What does not fit sends nothing until somebody calls orbhook_takeover, which also decides about what was pending.
--
-- What must stay true: the install script writes no row here; a dump takes the row along, so a restored copy knows that
-- it is one.

create table orbhook.environment (
    only_row      boolean primary key default true
                  constraint environment_is_one_row check (only_row),
    name          text not null
                  constraint environment_name_is_plain check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    place         text not null,
    database_name name not null,
    armed_at      timestamptz not null default clock_timestamp(),
    armed_by      text not null
);
comment on table orbhook.environment is
    'The one environment that this database sends for. Written by the first sidecar and by orbhook_takeover; empty: it has never sent.';
comment on column orbhook.environment.only_row is 'Always true: there is one row at most.';
comment on column orbhook.environment.name is 'What sidecars must say with --environment: 1 to 63 letters, digits, dots, dashes and underscores.';
comment on column orbhook.environment.place is 'System identifier of the server and oid of the database that may send.';
comment on column orbhook.environment.database_name is 'The database''s name at that time, for people.';
comment on column orbhook.environment.armed_at is 'Since when.';
comment on column orbhook.environment.armed_by is 'The sidecar that was the first, or the role that called orbhook_takeover.';

create function orbhook._place() returns text
language c stable
as 'MODULE_PATHNAME', 'place_wrapper';
comment on function orbhook._place() is 'System identifier of the server and oid of the database, as 7312345678901234567/16384.';

-- PostgreSQL has no later time that every client can show. claim never reaches it.
create function orbhook._held() returns timestamptz
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select timestamptz '9999-12-31 00:00:00+00' $$;
comment on function orbhook._held() is 'due_at of a delivery that orbhook_takeover keeps until somebody decides.';

create function orbhook._arm(p_environment text, p_armed_by text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    insert into orbhook.environment (name, place, database_name, armed_by)
    select p_environment, orbhook._place(), current_database(), left(p_armed_by, 200)
    where not exists (select from orbhook.environment)
      and not exists (select from orbhook._subscribed_table())
    on conflict (only_row) do nothing;
end
$$;
comment on function orbhook._arm(text, text) is 'Ties a database that has never sent to this place and this name.';

create function orbhook._subscribed_table() returns setof regclass
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select r.srrelid::regclass
    from pg_subscription_rel r
    join pg_class c on c.oid = r.srrelid
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'orbhook'
    limit 1
$$;
comment on function orbhook._subscribed_table() is 'One of orbhook''s tables that comes here by logical replication, if any does.';

create function orbhook._silence(p_environment text, out message text, out hint text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_armed orbhook.environment;
    v_table regclass;
begin
    select e.* into v_armed from orbhook.environment e;
    if not found then
        select t.* into v_table from orbhook._subscribed_table() t;
        if found then
            message := format('%s comes here by logical replication: its deliveries are the publisher''s to send', v_table);
        end if;
    elsif v_armed.place <> orbhook._place() then
        message := format('this database is a copy: environment %s is database %s (%s), and this is database %s (%s)',
                          v_armed.name, v_armed.database_name, v_armed.place, current_database(), orbhook._place());
    elsif v_armed.name is distinct from p_environment then
        message := format('this database belongs to environment %s, and the sidecar was started for %s',
                          v_armed.name, coalesce(p_environment, 'none'));
    end if;
    if message is not null then
        hint := format('if it is to stay silent, all is well. If it is to send from now on: select orbhook_takeover(%L, pending), '
                       'where pending is ''send'', ''cancel'' or ''keep'' and says what to do with what the original may have sent already',
                       coalesce(p_environment, 'name'));
    end if;
end
$$;
comment on function orbhook._silence(text) is 'Why a sidecar of that environment sends nothing here, and what to do; nulls when it may.';

create function orbhook._refuse_silenced(p_environment text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_why record;
begin
    select s.message, s.hint into v_why from orbhook._silence(p_environment) s;
    if v_why.message is not null then
        raise exception using
            errcode = 'object_not_in_prerequisite_state', message = v_why.message, hint = v_why.hint;
    end if;
end
$$;
comment on function orbhook._refuse_silenced(text) is 'SQLSTATE 55000 unless a sidecar of that environment may send here.';

create function @extschema@.orbhook_takeover(environment text, pending text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now   constant timestamptz := clock_timestamp();
    v_held  constant timestamptz := orbhook._held();
    v_fits  boolean;
    v_ids   uuid[];
    v_total bigint := 0;
begin
    if environment is null or environment !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'environment must be 1 to 63 letters, digits, dots, dashes and underscores';
    end if;
    if pending is null or pending not in ('send', 'cancel', 'keep') then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('pending must be send, cancel or keep, not %s', coalesce(quote_literal(pending), 'null')),
            hint = 'send: it is due as before. cancel: it is given up. keep: it waits until orbhook_retry, orbhook_cancel or another takeover';
    end if;
    -- Two takeovers follow each other.
    lock table orbhook.environment in share row exclusive mode;
    -- Where sending goes on anyway, this decides about what an earlier takeover has kept and about nothing else: typed
    -- into the wrong window it must not cancel what production is about to send.
    v_fits := coalesce((select e.name = orbhook_takeover.environment and e.place = orbhook._place()
                        from orbhook.environment e), false);
    insert into orbhook.environment as e (name, place, database_name, armed_by)
    values (orbhook_takeover.environment, orbhook._place(), current_database(), session_user)
    on conflict (only_row) do update
    set name = excluded.name, place = excluded.place, database_name = excluded.database_name,
        armed_at = excluded.armed_at, armed_by = excluded.armed_by
    where not v_fits;

    if not v_fits and pending <> 'send' then
        -- What would queue more of the original's work.
        update orbhook.replays r set finished_at = v_now where r.finished_at is null;
        update orbhook.watch_timers t set fired_at = v_now where t.fired_at is null and t.at <= v_now;
    end if;
    loop
        select array_agg(d.id) into v_ids
        from (select o.id
              from orbhook.deliveries_open o
              where case when v_fits then o.due_at = v_held else o.created_at <= v_now end
                and case pending
                        when 'cancel' then true
                        when 'keep' then o.due_at <> v_held
                        else o.due_at = v_held end
              order by o.id
              limit 10000
              for update) d;
        exit when v_ids is null;
        v_total := v_total + cardinality(v_ids);
        if pending = 'cancel' then
            perform orbhook._finish(array(
                select row(i.id, 'cancelled', null, format('cancelled by orbhook_takeover(%L, ''cancel'')', environment))::orbhook._ending
                from unnest(v_ids) as i (id)));
        else
            update orbhook.deliveries_open o
            set due_at = case when pending = 'keep' then v_held else v_now end,
                last_error = case when pending = 'keep'
                                  then 'kept by orbhook_takeover; orbhook_retry(id) sends it, orbhook_cancel(id) gives it up' end
            where o.id = any (v_ids);
        end if;
    end loop;
    if pending = 'send' and not v_fits then
        select count(*) into v_total from orbhook.deliveries_open o;
    end if;
    perform orbhook._arm_doorbell();
    return v_total;
end
$$;
comment on function @extschema@.orbhook_takeover(text, text) is
'Lets this database send from now on, as this environment: sidecars must be started with --environment and the same name. For a copy (a restored dump, CREATE DATABASE ... TEMPLATE, a promoted snapshot, pg_upgrade) that is to send; whatever the copy was made of goes on as before.
environment: 1 to 63 letters, digits, dots, dashes and underscores.
pending: what to do with what is pending, which the original may have sent already. send: it is due as before. cancel: it is given up. keep: it waits, and only new events are sent; orbhook_retry(id) sends one, orbhook_cancel(id) gives one up, and this call again with send or cancel decides about all that was kept.
cancel and keep also end replays under way, and watched rows'' ends that have come since are not told.
Called again where sending already fits, it decides only about what was kept. Returns how many deliveries it decided about.
Errors: 22023.';

create function orbhook.standing(p_environment text, p_key_ids text[])
returns table (subject text, severity text, message text, hint text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_silence record;
    v_key     text := (select k.key_id from orbhook.sealing_keys k order by k.installed_at desc limit 1);
begin
    select s.message, s.hint into v_silence from orbhook._silence(p_environment) s;
    if v_silence.message is not null then
        return query select 'environment', 'stop', v_silence.message, v_silence.hint;
    else
        return query
        select 'environment', 'ok',
               coalesce((select format('sends for environment %s since %s', e.name, date_trunc('second', e.armed_at))
                         from orbhook.environment e),
                        format('has never sent; the first orbhook run makes it environment %s', p_environment)),
               null::text;
    end if;

    if v_key is null then
        return query
        select 'keys', 'warning', 'secrets are stored in plain: a dump, a replica and a superuser can read them',
               'orbhook keygen FILE makes a pair of keys; start the sidecars with --key-file FILE, then call orbhook_install_key(public key)';
    else
        return query select 'keys', 'ok', format('secrets are sealed with key %s', v_key), null::text;
    end if;
    return query
    select 'keys', 'warning', format('%s secrets are stored in plain although a key is installed', count(*)),
           'call orbhook_install_key again with the same key'
    from orbhook.webhook_secrets s
    where v_key is not null and s.key_id is null
    having count(*) > 0;
    return query
    select 'keys', 'missing',
           format('%s webhooks are sealed with key %s, and its file was not given: their deliveries wait', count(*), k.id),
           'give the file that orbhook keygen wrote with --key-file; if it is lost, set every secret of those webhooks anew'
    from orbhook.webhooks w
    cross join unnest(w.key_ids) as k (id)
    where k.id <> all (coalesce(p_key_ids, '{}')) and k.id <> 'unreadable'
    group by k.id;
    return query
    select 'keys', 'warning', format('a secret of webhook %s (%s) cannot be opened: its deliveries wait', w.name, w.id),
           'it is damaged or was sealed for another webhook; set its endpoint and its secrets anew with orbhook_update_webhook'
    from orbhook.webhooks w
    where 'unreadable' = any (w.key_ids)
    order by w.id
    limit 10;
    return query
    select 'keys', 'warning', format('the file of key %s, which seals new secrets, was not given', v_key),
           'give the file that orbhook keygen wrote with --key-file'
    where v_key <> all (coalesce(p_key_ids, '{}'))
      and not exists (select from orbhook.webhooks w where v_key = any (w.key_ids));
    return query
    select 'keys', 'ok', format('%s webhooks still use key %s', count(*), k.id), 'orbhook reseal, given both files, seals them with the new one'
    from orbhook.webhooks w
    cross join unnest(w.key_ids) as k (id)
    where k.id <> v_key and k.id <> 'unreadable'
    group by k.id;

    return query
    select 'log', 'warning', 'the server''s log takes the bind parameters of every statement along, secrets in them too',
           'set log_parameter_max_length = 0, or give secrets sealed (orbhook seal)'
    where current_setting('log_parameter_max_length') <> '0'
      and (current_setting('log_statement') = 'all' or current_setting('log_min_duration_statement') = '0');
end
$$;
comment on function orbhook.standing(text, text[]) is
'What a sidecar of that environment that has these keys should know, for orbhook check and the sidecar''s start.
subject: environment, keys or log. severity: ok; warning; missing (deliveries wait for a key); stop (nothing is sent).';
