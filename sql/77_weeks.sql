-- Weeks: the partitions of events, deliveries and attempts, which ones are orbhook's own, and new ones for events.
--
-- An event lies in the partition of the week its id was made in; deliveries and attempts in that of a period, which 55_finish
-- opens. What has no partition of events falls into events_default: that of a clock that was far off, or of a time when no
-- sidecar ran for four weeks. Sidecars make the weeks (orbhook.tend).
--
-- What must stay true
--   * no emitter waits: attaching locks the default partition, so it is done only if the lock is free at that moment, and
--     committed at once. The first weeks are there before anybody emits (95_dump), so nobody emits into the default
--     partition while a sidecar runs;
--   * a partition that somebody else made is left alone: ours are recognised by name and bounds.
--
-- Lock order: events_default, the partition, events.

create function orbhook._weeks() returns table (parent text, name text, starts_at timestamptz, ends_at timestamptz, is_member boolean)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    with spans as (
        -- A period is written to until the next one is opened; a day more for sessions in other time zones.
        select p.starts_on, lead(p.starts_on) over (order by p.starts_on) + 1 as ends_on from orbhook.periods p
    ), ours as (
        select t.parent, t.parent || case when s.starts_on = '1970-01-01' then '_first' else to_char(s.starts_on, '_YYYY_MM_DD') end as name,
               format('FOR VALUES IN (%L)', s.starts_on) as bound,
               s.starts_on::timestamp at time zone 'UTC' as starts_at, s.ends_on::timestamp at time zone 'UTC' as ends_at
        from spans s
        cross join (values ('deliveries'), ('attempts')) t (parent)
        union all
        -- Mondays. No event is older.
        select 'events', to_char(w.monday, '"events_"YYYY_MM_DD'),
               format('FOR VALUES FROM (%L) TO (%L)', orbhook._first_id_at(w.monday at time zone 'UTC'),
                      orbhook._first_id_at(w.monday at time zone 'UTC' + interval '7 days')),
               w.monday at time zone 'UTC', w.monday at time zone 'UTC' + interval '7 days'
        from generate_series(timestamp '2020-01-06', current_date + interval '10 weeks', interval '7 days') w (monday)
    )
    select o.parent, o.name, o.starts_at, o.ends_at,
           exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    from ours o
    join pg_namespace n on n.nspname = 'orbhook'
    join pg_class c on c.relnamespace = n.oid and c.relname = o.name and c.relispartition
    join pg_inherits i on i.inhrelid = c.oid
    join pg_class p on p.oid = i.inhparent and p.relnamespace = n.oid and p.relname = o.parent
    where pg_get_expr(c.relpartbound, c.oid) = o.bound
$$;
comment on function orbhook._weeks() is
    'Our partitions of events, deliveries and attempts, with the span of time that each holds; ends_at is null while it is still written to.';

create function orbhook._open_event_weeks() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_monday date := date_trunc('week', clock_timestamp() at time zone 'UTC')::date;
begin
    -- Four weeks ahead: as long may all sidecars be away before events fall into events_default. One at a time: its lock is
    -- kept until the commit.
    for v_ahead in 0..4 loop
        if orbhook._open_event_week(v_monday + 7 * v_ahead) then
            return true;
        end if;
    end loop;
    return false;
end
$$;
comment on function orbhook._open_event_weeks() is
    'Makes the next missing partition of events for this week and the four after it. True: it made one.';

create function orbhook._open_event_week(p_monday date) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_name     text := 'events_' || to_char(p_monday, 'YYYY_MM_DD');
    v_from     uuid := orbhook._first_id_at(p_monday::timestamp at time zone 'UTC');
    v_to       uuid := orbhook._first_id_at((p_monday + 7)::timestamp at time zone 'UTC');
    v_attached boolean;
begin
    select c.relispartition into v_attached from pg_class c where c.oid = to_regclass('orbhook.' || v_name);
    if v_attached
       -- Attaching reads the default partition from end to end, and nobody can emit into it meanwhile.
       or pg_relation_size('orbhook.events_default') > 67108864
       or exists (select from orbhook.events_default e where e.id >= v_from and e.id < v_to) then
        return false;
    end if;
    if v_attached is null then
        -- In a transaction of its own, while nothing is locked.
        execute format('create table orbhook.%I (like orbhook.events including defaults including constraints including comments)', v_name);
        execute format('create unique index %I on orbhook.%I (id)', v_name || '_id', v_name);
        execute format('alter table orbhook.%I replica identity using index %I', v_name, v_name || '_id');
        return true;
    end if;
    -- Only if it is free: whoever waits for this lock makes emitters wait.
    lock table orbhook.events_default in access exclusive mode nowait;
    execute format('alter table orbhook.events attach partition orbhook.%I for values from (%L) to (%L)', v_name, v_from, v_to);
    -- Of a clock that was wrong.
    delete from orbhook.thinned t where t.partition_name = v_name;
    return true;
exception when lock_not_available or check_violation or duplicate_table or wrong_object_type or invalid_object_definition then
    -- Somebody emits into the default partition at this moment, another sidecar was faster, or somebody's own table or
    -- partition is in that place. In ten seconds again.
    return false;
end
$$;
comment on function orbhook._open_event_week(date) is
    'Makes the partition of events for the week that begins on that Monday (UTC), if it is missing: the table in one call, and attaches it in the next. Not while events_default is larger than 64 MiB or holds events of that week: what is in there goes in steps. True: it did.';
