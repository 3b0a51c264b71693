-- Sidecars: who runs, who has died, who may sleep.
--
-- A sidecar registers a random id and holds an advisory lock on it for as long as its session lives. A lock seen free
-- means the sidecar is gone: its id is marked dead for ever, and claim treats what it had as free. That takes a poll
-- (a second) instead of a lease.
--
-- The doorbell: an idle sidecar holds one more advisory lock, K, exclusively. A transaction that made something due
-- tries K shared just before it commits (extension/src/doorbell.rs). Granted: nobody sleeps, nothing to do. Refused:
-- somebody sleeps, so one NOTIFY goes with the commit. A sidecar that has taken K looks once more before it sleeps, so
-- whatever it does not see rings.
--
-- K is the pair (1869767272, 0); a sidecar's own lock is (1869767273, last 32 bits of its id). Advisory locks belong to
-- one database, so two databases of a server do not meet.

create function orbhook._sidecar_key(p_sidecar uuid) returns integer
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select ('x' || right(p_sidecar::text, 8))::bit(32)::integer $$;
comment on function orbhook._sidecar_key(uuid) is 'Second half of a sidecar''s advisory lock.';

create function orbhook.register(
    p_sidecar uuid, p_name text, p_version text, p_session boolean,
    p_environment text default 'default', p_key_ids text[] default '{}') returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform orbhook._arm(p_environment, p_name);
    perform orbhook._refuse_silenced(p_environment);
    -- The lock comes first: an id is in the table only while its lock is held, or after.
    if p_session and not pg_try_advisory_lock(1869767273, orbhook._sidecar_key(p_sidecar)) then
        return false;
    end if;
    insert into orbhook.instances (id, name, version, has_lock, environment, key_ids)
    values (p_sidecar, left(p_name, 200), left(p_version, 50), p_session, p_environment, p_key_ids);
    delete from orbhook.instances i where coalesce(i.stopped_at, i.died_at) < clock_timestamp() - interval '30 days';
    perform orbhook._open_period();
    return true;
exception when unique_violation then
    return false;
end
$$;
comment on function orbhook.register(uuid, text, text, boolean, text, text[]) is
'A sidecar says it is here. p_session: take its advisory lock on this connection (not behind a transaction pooler). p_environment: the one it sends for. p_key_ids: keys it can open secrets of. False: the id is taken, choose another.
Errors: 55000 (nothing is sent from here for that environment: orbhook.standing says why).';

create function orbhook.deregister(p_sidecar uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update orbhook.instances i set stopped_at = clock_timestamp() where i.id = p_sidecar and i.stopped_at is null;
end
$$;
comment on function orbhook.deregister(uuid) is 'A sidecar says it stops.';

create function orbhook._open_period(p_monday date default date_trunc('week', clock_timestamp())::date) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_suffix text := to_char(p_monday, 'YYYY_MM_DD');
begin
    if exists (select from orbhook.periods p where p.starts_on = p_monday) then
        return;
    end if;
    -- Two sidecars on a Monday morning: the second waits here and then finds the row.
    insert into orbhook.periods (starts_on) values (p_monday) on conflict do nothing;
    if not found then
        return;
    end if;
    -- A dump without data brings the partitions and not their rows here.
    if exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'orbhook' and c.relname = 'deliveries_' || v_suffix and c.relispartition) then
        return;
    end if;
    -- Made at run time and attached, so that they are no members of the extension and can be dropped one by one.
    -- Attaching to a list-partitioned table without a default partition scans nothing and lets inserts go on.
    execute format('create table orbhook.deliveries_%s (like orbhook.deliveries including defaults including constraints including comments)', v_suffix);
    execute format('create unique index on orbhook.deliveries_%s (id)', v_suffix);
    execute format('create index on orbhook.deliveries_%s (event_id)', v_suffix);
    execute format('create index on orbhook.deliveries_%s using brin (finished_at) with (autosummarize = on)', v_suffix);
    execute format('create index on orbhook.deliveries_%s (finished_at) where status = ''failed''', v_suffix);
    execute format('alter table orbhook.deliveries attach partition orbhook.deliveries_%s for values in (%L)', v_suffix, p_monday);
    execute format('create table orbhook.attempts_%s (like orbhook.attempts including defaults including constraints including comments)', v_suffix);
    execute format('create unique index on orbhook.attempts_%s (delivery_id, number)', v_suffix);
    execute format('create index on orbhook.attempts_%s using brin (started_at) with (autosummarize = on)', v_suffix);
    execute format('alter table orbhook.attempts attach partition orbhook.attempts_%s for values in (%L)', v_suffix, p_monday);
end
$$;
comment on function orbhook._open_period(date) is
    'Makes a week''s history partitions if they are missing. Until somebody does, results go to the latest that exists.';

create function orbhook._period() returns date
language sql stable set search_path = pg_catalog, pg_temp
as $$ select max(p.starts_on) from orbhook.periods p where p.starts_on <= current_date $$;
comment on function orbhook._period() is 'The period in which a delivery that ends now is kept.';

create function orbhook._dead_sidecars() returns uuid[]
language sql stable set search_path = pg_catalog, pg_temp
as $$
    -- No lease lasts longer than 10 minutes (timeout + 10 s, pacing included), so older deaths no longer matter.
    select coalesce(array_agg(i.id), '{}')
    from orbhook.instances i
    where i.died_at > clock_timestamp() - interval '10 minutes'
$$;
comment on function orbhook._dead_sidecars() is 'Sidecars that died within the longest lease.';

create function orbhook._mark_dead(p_sidecar uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    -- The transaction-level try lets go by itself, so nothing stays behind in a pooled session.
    update orbhook.instances i
    set died_at = clock_timestamp()
    where i.has_lock and i.died_at is null and i.stopped_at is null
      and i.id is distinct from p_sidecar
      and pg_try_advisory_xact_lock(1869767273, orbhook._sidecar_key(i.id));
end
$$;
comment on function orbhook._mark_dead(uuid) is 'Marks every registered sidecar whose lock is free as dead; p_sidecar, who asks, excepted.';

-- The settings: as with settle. Sidecars look while the queue is empty, and keep the plan.
create function orbhook.look(p_sidecar uuid) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
    v_now     timestamptz;
    v_dead    uuid[];
    v_key_ids text[];
    v_due_at  timestamptz;
    v_free_at timestamptz;
    v_next    timestamptz;
    v_limit   integer;
begin
    -- Told once a second, so that a sidecar learns of a takeover.
    perform orbhook._refuse_silenced(i.environment) from orbhook.instances i where i.id = p_sidecar;
    perform orbhook._mark_dead(p_sidecar);
    if not exists (select from orbhook.periods p where p.starts_on = date_trunc('week', clock_timestamp())::date) then
        perform orbhook._open_period();
    end if;
    -- What a step queues is due: claim first, and look again after.
    if exists (select from orbhook.replays r where r.finished_at is null) and orbhook._replay_step() then
        return 0;
    end if;
    v_now := clock_timestamp();
    if exists (select from orbhook.watch_timers t where t.fired_at is null and t.at <= v_now) then
        perform orbhook._fire_timers();
    end if;
    perform orbhook._cancel_too_old();
    v_dead := orbhook._dead_sidecars();
    v_now := clock_timestamp();

    select i.key_ids into v_key_ids from orbhook.instances i where i.id = p_sidecar;

    -- Where much is due, the first few have some of it; then nobody asks the others, each of which has to pass over what has
    -- left its queue and is not vacuumed yet.
    foreach v_limit in array array[3, null] loop
        v_next := null;
        -- In the order of due_at, as far as that can still be sooner than what was found.
        for v_due_at, v_free_at in
            with recursive waiting (webhook_id, due_at) as (
                (select d.webhook_id, d.due_at from orbhook.deliveries_open d order by d.webhook_id, d.due_at limit 1)
                union all
                select n.webhook_id, n.due_at
                from waiting w
                cross join lateral (
                    select d.webhook_id, d.due_at from orbhook.deliveries_open d
                    where d.webhook_id > w.webhook_id order by d.webhook_id, d.due_at limit 1) n
            )
            select q.due_at,
                   greatest(front.free_at, s.paused_until,
                            -- No send time is handed out more than a quarter of a second ahead. Calling _pace_ahead for each of
                            -- thousands that are further away would take longer than all the rest.
                            case when w.rate_limit_per_second is null then null
                                 when s.next_send_at > v_now + interval '500 ms' then s.next_send_at - interval '250 ms'
                                 else s.next_send_at - orbhook._pace_ahead(w.rate_limit_per_second) end)
            from (select u.webhook_id, u.due_at from (select * from waiting limit v_limit) u order by u.due_at offset 0) q
            left join lateral (select v.* from orbhook.webhooks v where v.id = q.webhook_id limit 1) w on true
            left join lateral (select t.* from orbhook.webhook_state t where t.webhook_id = q.webhook_id limit 1) s on true
            cross join lateral (
                -- The front of the queue holds what is under way; with the cap reached, the next place is free when a lease ends.
                select min(case when d.lease_until > v_now and d.claimed_by <> all (v_dead) then d.lease_until else d.due_at end) as free_at
                from (select o.lease_until, o.claimed_by, o.due_at
                      from orbhook.deliveries_open o
                      where o.webhook_id = q.webhook_id and o.due_at >= q.due_at
                      order by o.due_at
                      limit coalesce(w.max_in_flight, 1)) d) front
            where w.id is null
               or (w.active and not w.paused and (w.key_ids is null or w.key_ids <@ coalesce(v_key_ids, '{}')))
        loop
            exit when v_due_at >= v_next;
            v_next := least(v_next, v_free_at);
            exit when v_next <= v_now;
        end loop;
        exit when v_next <= v_now;
    end loop;

    select least(v_next, min(case when d.lease_until > v_now and d.claimed_by <> all (v_dead) then d.lease_until else d.due_at end))
    into v_next
    from orbhook.deliveries_open d
    where d.is_test;

    -- greatest and least pass over nulls, and nothing pending is null.
    return case when v_next is not null
                then least(greatest(ceil(extract(epoch from v_next - v_now) * 1000), 0), 2147483647)::integer end;
end
$$;
comment on function orbhook.look(uuid) is
    'Milliseconds until there may be something to claim: 0 now, null nothing at all. Also notices dead sidecars, opens the week''s partitions, cancels what is too old and takes replays a step further; called at least once a second.';

create function orbhook.doze(p_sidecar uuid, out state text, out wait_ms integer)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_try_advisory_lock(1869767272, 0) then
        state := 'dozing';
    elsif exists (select from pg_locks l
                  where l.locktype = 'advisory' and l.classid = 1869767272 and l.objid = 0 and l.objsubid = 2
                    and l.mode = 'ExclusiveLock' and l.granted
                    and l.database = (select d.oid from pg_database d where d.datname = current_database())) then
        state := 'listening';
    else
        state := 'refused';
    end if;
    -- After the lock, and as a statement of its own, so that it sees what committed before the lock was there.
    wait_ms := orbhook.look(p_sidecar);
end
$$;
comment on function orbhook.doze(uuid) is
    'Before sleep: takes the doorbell lock and looks once more. state: dozing (it holds the lock), listening (another sidecar does), refused (emitters are committing; try again in a few milliseconds). wait_ms: as orbhook.look.';

create function orbhook.rouse() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_unlock(1869767272, 0);
end
$$;
comment on function orbhook.rouse() is 'Awake again: lets go of the doorbell lock.';
