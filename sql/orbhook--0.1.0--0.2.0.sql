-- From 0.1.0 to 0.2.0: retention, and weekly partitions for events.
--
-- New tables and functions, an index, functions that know of them, and others that changed (claim, look, settle, pacing,
-- erase). No table that exists is rewritten, and none but event_keys, near the end, is read or locked for longer than a
-- catalogue entry takes; whoever emits without an idempotency key or delivers meanwhile goes on. Events so far stay in
-- events_default, from which they go in steps; while it is larger than 64 MiB no weekly partitions are made.

set local search_path = pg_catalog, pg_temp;


drop function orbhook._open_period();

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

-- Retention: what is old goes, so that the tables stay as large as the time they cover.
--
-- How long is in orbhook.retention, one row. Events (payloads) and attempts of what was delivered or cancelled, and events
-- nobody wanted, are kept for delivered_days; those of failed deliveries for failed_days; the line of each delivery in
-- orbhook.deliveries for line_days. Without the row everything is kept.
--
-- Events, deliveries and attempts lie in weekly partitions. A week of which nothing is needed any more is emptied as a
-- whole. Where something is, and in events_default, which has no end, rows go in steps of 1,000; once vacuum has
-- been there, what is left (up to 16 MiB) is written closely together, so that no space stays behind. Since a week begins to
-- go when its last day may, things are kept for up to seven days longer than said.
--
-- An empty week of events is dropped; a period's deliveries and attempts when the last of them is gone.
--
-- Steps are taken by orbhook.tend, one at a time over all sidecars: the row of orbhook.retention is locked for it. Without a
-- sidecar nothing goes, and nothing in a database that is a copy (48_environment).
--
-- What must stay true
--   * a pending delivery keeps its event and its attempts, however old they are;
--   * no emitter waits: an old partition is locked alone, and nobody emits into it. A parent is locked, for dropping, only if
--     it is free at that moment, and that is committed at once;
--   * whoever retries or replays locks the event (for key share), and a step locks what it is about to remove: one of them is
--     first, and the other sees what it did. A truncation locks the partition, which nobody then can read.
--
-- Lock order: orbhook.retention, the parent, the partition, events.

create table orbhook.retention (
    one            boolean primary key default true
                   constraint retention_has_one_row check (one),
    delivered_days integer not null default 30
                   constraint retention_delivered_days_in_range check (delivered_days between 1 and 36500),
    failed_days    integer not null default 90,
    line_days      integer not null default 400
                   constraint retention_line_days_in_range check (line_days <= 36500),
    key_days       integer not null default 90
                   constraint retention_key_days_in_range check (key_days between 1 and 36500),
    constraint retention_is_ordered check (delivered_days <= failed_days and failed_days <= line_days)
);
insert into orbhook.retention default values;
comment on table orbhook.retention is
    'How long things are kept: one row, to be updated. Without it everything is kept for ever. Whole weeks go at once, so up to seven days longer.';
comment on column orbhook.retention.one is 'Always true.';
comment on column orbhook.retention.delivered_days is
    'Days that events and attempts are kept of what was delivered or cancelled, and events nobody wanted: 1 to failed_days.';
comment on column orbhook.retention.failed_days is 'The same for failed deliveries, which can be replayed as long: up to line_days.';
comment on column orbhook.retention.line_days is
    'Days that the line of each delivery is kept (orbhook.deliveries), up to 36500; so long as well finished replays, what was erased, and losses of watches.';
comment on column orbhook.retention.key_days is 'Days that an idempotency key is remembered: 1 to 36500.';

-- A restored dump brings its own row, and CREATE EXTENSION has made one. Always: also where it comes by logical replication.
create function orbhook._replace_retention() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    delete from orbhook.retention;
    return new;
end
$$;
comment on function orbhook._replace_retention() is 'Trigger: another row of orbhook.retention takes the place of the one that is there.';
create trigger replace_retention before insert on orbhook.retention
    for each row execute function orbhook._replace_retention();
alter table orbhook.retention enable always trigger replace_retention;

create table orbhook.thinned (
    partition_name text primary key,
    holds          text not null
                   constraint thinned_holds_is_known check (holds in ('failed', 'pending', 'nothing')),
    ends_at        timestamptz not null,
    reached        uuid,
    removed        bigint not null default 0,
    kept_bytes     bigint not null default 0,
    thinned_at     timestamptz not null default clock_timestamp()
);
comment on table orbhook.thinned is 'Partitions that no longer hold everything they once did, gone ones included.';
comment on column orbhook.thinned.partition_name is 'The partition, in schema orbhook.';
comment on column orbhook.thinned.holds is
    'What was left in it: failed (what belongs to failed and pending deliveries), pending (to pending ones), nothing.';
comment on column orbhook.thinned.ends_at is 'It holds what was made before that; infinity: events_default.';
comment on column orbhook.thinned.reached is 'Steps are under way and have come this far; null: done.';
comment on column orbhook.thinned.removed is 'Rows removed in steps whose space is still in the file.';
comment on column orbhook.thinned.kept_bytes is 'Bytes of the rows that the latest steps left.';
comment on column orbhook.thinned.thinned_at is 'When that was last looked at.';

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

create function orbhook._retain() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_keep orbhook.retention;
begin
    -- A copy is silent, and nobody's history is shortened by a sidecar that was started on it by habit.
    select r.* into v_keep
    from orbhook.retention r
    where exists (select from orbhook.environment e where e.place = orbhook._place())
    for update skip locked;
    if not found then
        return false;
    end if;
    return orbhook._retain_partitions(v_keep) or orbhook._retain_rows(v_keep) or orbhook._rewrite_thinned() or orbhook._drop_emptied();
end
$$;
comment on function orbhook._retain() is 'One step of removing what is too old. True: there may be more.';

create function orbhook._retain_partitions(p_keep orbhook.retention) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_week record;
begin
    for v_week in
        select w.*, t.reached
        from (select w.parent, w.name, w.starts_at, w.ends_at,
                     case when w.parent = 'deliveries' then
                               case when w.ends_at <= v_now - make_interval(days => p_keep.line_days) then 'nothing' end
                          when w.ends_at <= v_now - make_interval(days => p_keep.failed_days) then 'pending'
                          when w.ends_at <= v_now - make_interval(days => p_keep.delivered_days) then 'failed' end as leaves
              from orbhook._weeks() w
              union all
              select 'events', 'events_default', '-infinity', 'infinity', 'failed'
              where exists (select from orbhook.events_default e
                            where e.id < orbhook._first_id_at(v_now - make_interval(days => p_keep.delivered_days)))) w
        left join orbhook.thinned t on t.partition_name = w.name
        where w.leaves is not null
          and (t.partition_name is null or t.reached is not null
               or (t.holds <> 'nothing' and t.holds <> w.leaves)
               -- What was pending then may have ended since, and the default partition is never done.
               or (t.thinned_at < v_now - interval '1 day' and t.holds <> 'nothing' and (w.leaves = 'pending' or w.ends_at = 'infinity')))
        order by w.ends_at, w.name
    loop
        begin
            if v_week.reached is null and v_week.ends_at < 'infinity'
               and orbhook._empty(v_week.parent, v_week.name, v_week.starts_at, v_week.ends_at, v_week.leaves) then
                return true;
            end if;
            perform orbhook._thin_a_step(v_week.parent, v_week.name, v_week.starts_at, v_week.ends_at, v_week.leaves, v_week.reached, p_keep);
            return true;
        exception
            when lock_not_available then
                -- Somebody reads it. The next one, then.
                null;
            when others then
                raise warning using message = format('orbhook cannot remove what is too old in orbhook.%s: %s (%s)', v_week.name, sqlerrm, sqlstate);
        end;
    end loop;
    return false;
end
$$;
comment on function orbhook._retain_partitions(orbhook.retention) is
    'Takes the oldest partition that holds more than it should and can be locked a step further. False: there is none.';

create function orbhook._empty(p_parent text, p_name text, p_starts_at timestamptz, p_ends_at timestamptz, p_leaves text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if orbhook._holds_needed(p_parent, p_name, p_starts_at, p_ends_at, p_leaves) then
        return false;
    end if;
    -- Claims read events of all weeks and wait meanwhile; so whoever reads for long makes us come back later.
    perform set_config('lock_timeout', '50ms', true);
    execute format('lock table orbhook.%I in access exclusive mode', p_name);
    -- Again: a retry may have been faster.
    if orbhook._holds_needed(p_parent, p_name, p_starts_at, p_ends_at, p_leaves) then
        return false;
    end if;
    execute format('truncate orbhook.%I', p_name);
    insert into orbhook.thinned as t (partition_name, holds, ends_at)
    values (p_name, 'nothing', p_ends_at)
    on conflict (partition_name) do update
    set holds = excluded.holds, ends_at = excluded.ends_at, reached = null, removed = 0, kept_bytes = 0, thinned_at = excluded.thinned_at;
    return true;
exception when feature_not_supported then
    -- A foreign key of somebody's refers to it: rows are deleted then, as far as the key lets them.
    return false;
end
$$;
comment on function orbhook._empty(text, text, timestamptz, timestamptz, text) is
    'Truncates a partition of which nothing is needed. False: something is. Raises 55P03 if somebody uses it.';

create function orbhook._holds_needed(p_parent text, p_name text, p_starts_at timestamptz, p_ends_at timestamptz, p_leaves text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_found boolean := false;
begin
    if p_leaves <> 'nothing' then
        execute format('select exists (select from orbhook._still_needed($1, $2, $3, $4, null, null) k (id) join orbhook.%I x on x.%I = k.id)',
                       p_name, case p_parent when 'attempts' then 'delivery_id' else 'id' end)
        into v_found
        using p_parent, p_starts_at, p_ends_at, p_leaves;
    end if;
    return v_found;
end
$$;
comment on function orbhook._holds_needed(text, text, timestamptz, timestamptz, text) is 'Whether a partition holds a row that is to be left.';

create function orbhook._still_needed(
    p_parent text, p_starts_at timestamptz, p_ends_at timestamptz, p_leaves text, p_from uuid, p_to uuid) returns setof uuid
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_from  uuid := coalesce(p_from, orbhook._first_id_at(greatest(p_starts_at, '1970-01-01 00:00:00+00')));
    v_to    uuid := coalesce(p_to, orbhook._first_id_at(p_ends_at));
    -- A delivery's id is made in the same call as its event's.
    v_since uuid := orbhook._first_id_at(orbhook._time_of_id(v_from) - interval '1 minute');
    v_until uuid := orbhook._first_id_at(orbhook._time_of_id(v_to) + interval '1 day');
    -- A delivery ends no earlier than its event and its attempts were made.
    v_week  date := (greatest(p_starts_at, '1970-01-15 00:00:00+00') at time zone 'UTC')::date - 14;
begin
    if p_parent = 'events' then
        return query select d.event_id from orbhook.deliveries_open d
                     where d.id >= v_since and d.id < v_until and d.event_id between v_from and v_to;
        if p_leaves = 'failed' then
            return query select d.event_id from orbhook.deliveries d
                         where d.status = 'failed' and (d.period >= v_week or d.period = '1970-01-01') and d.event_id between v_from and v_to;
        end if;
    else
        -- A delivery is older than its attempts, by as much as it was put off.
        return query select d.id from orbhook.deliveries_open d
                     where d.attempts > 0 and (p_from is null or d.id between v_from and v_to);
        if p_leaves = 'failed' then
            return query select d.id from orbhook.deliveries d
                         where d.status = 'failed' and (d.period >= v_week or d.period = '1970-01-01')
                           and (p_from is null or d.id between v_from and v_to);
        end if;
    end if;
end
$$;
comment on function orbhook._still_needed(text, timestamptz, timestamptz, text, uuid, uuid) is
    'Events, or deliveries of attempts, of a span that belong to pending deliveries, or also to failed ones; with p_from and p_to only those between.';

create function orbhook._thin_a_step(
    p_parent text, p_name text, p_starts_at timestamptz, p_ends_at timestamptz, p_leaves text, p_reached uuid, p_keep orbhook.retention) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_now     timestamptz := clock_timestamp();
    v_key     text := case p_parent when 'attempts' then 'delivery_id' else 'id' end;
    -- In the default partition some failed long enough ago.
    v_failed  uuid := case when p_leaves = 'pending' then 'ffffffff-ffff-ffff-ffff-ffffffffffff'
                           when p_ends_at = 'infinity' then orbhook._first_id_at(v_now - make_interval(days => p_keep.failed_days))
                           else '00000000-0000-0000-0000-000000000000' end;
    v_ids     uuid[];
    v_needed  uuid[] := '{}';
    v_reached uuid;
    v_removed bigint := 0;
    v_bytes   bigint := 0;
begin
    execute format('select array_agg(x.id order by x.id), (array_agg(x.id order by x.id desc))[1] from ('
                   'select p.%1$I as id from orbhook.%2$I p where p.%1$I > $1 and p.%1$I < $2 order by p.%1$I limit 1000 '
                   'for update skip locked) x', v_key, p_name)
    into v_ids, v_reached
    using coalesce(p_reached, '00000000-0000-0000-0000-000000000000'::uuid),
          case when p_ends_at = 'infinity' then orbhook._first_id_at(v_now - make_interval(days => p_keep.delivered_days))
               else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
    if v_ids is not null then
        if p_leaves <> 'nothing' then
            -- Statements of their own, after the locks: they see what a retry did that was faster.
            v_needed := array(select orbhook._still_needed(p_parent, p_starts_at, least(p_ends_at, v_now), 'pending', v_ids[1], v_reached));
            if v_failed <= v_reached then
                v_needed := v_needed || array(select orbhook._still_needed(p_parent, p_starts_at, least(p_ends_at, v_now), 'failed',
                                                                           greatest(v_ids[1], v_failed), v_reached));
            end if;
        end if;
        execute format('delete from orbhook.%1$I p where p.%2$I = any ($1) and not p.%2$I = any ($2)', p_name, v_key)
        using v_ids, v_needed;
        get diagnostics v_removed = row_count;
        execute format('select coalesce(sum(pg_column_size(p.*)), 0) from orbhook.%1$I p where p.%2$I = any ($1)', p_name, v_key)
        into v_bytes using v_ids;
    end if;
    insert into orbhook.thinned as t (partition_name, holds, ends_at, reached, removed, kept_bytes)
    values (p_name, p_leaves, p_ends_at, case when cardinality(v_ids) = 1000 then v_reached end, v_removed, v_bytes)
    on conflict (partition_name) do update
    set holds = excluded.holds, ends_at = excluded.ends_at, reached = excluded.reached, thinned_at = excluded.thinned_at,
        removed = t.removed + excluded.removed,
        kept_bytes = excluded.kept_bytes + case when p_reached is null then 0 else t.kept_bytes end;
end
$$;
comment on function orbhook._thin_a_step(text, text, timestamptz, timestamptz, text, uuid, orbhook.retention) is
    'Removes what is no longer needed among the next 1,000 rows of a partition.';

-- The settings: the rows that are left are fetched by the index. Reading the file from end to end would take as long as it
-- is large, with claims waiting.
create function orbhook._rewrite_thinned() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_week record;
begin
    for v_week in
        select w.parent, w.name, t.removed
        from orbhook._weeks() w
        join orbhook.thinned t on t.partition_name = w.name
        cross join lateral (select ('orbhook.' || quote_ident(w.name))::regclass as relation) r
        where t.reached is null and t.removed >= 1000 and t.kept_bytes <= 16777216
          -- Before vacuum has taken the dead entries out of the index, it leads to every dead row.
          and greatest(pg_stat_get_last_autovacuum_time(r.relation), pg_stat_get_last_vacuum_time(r.relation)) > t.thinned_at
        order by w.ends_at, w.name
    loop
        begin
            perform set_config('lock_timeout', '50ms', true);
            execute format('cluster orbhook.%I using %I', v_week.name,
                           (select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
                            where i.indrelid = ('orbhook.' || quote_ident(v_week.name))::regclass and i.indisunique limit 1));
            update orbhook.thinned t set removed = 0 where t.partition_name = v_week.name;
            return true;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return false;
end
$$;
comment on function orbhook._rewrite_thinned() is
    'Writes what was left of a partition closely together, once vacuum has been there, if it is at most 16 MiB. True: it did.';

create function orbhook._retain_rows(p_keep orbhook.retention) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_lines timestamptz := v_now - make_interval(days => p_keep.line_days);
    v_count bigint;
    v_most  bigint := 0;
begin
    delete from orbhook.event_keys k
    where k.key = any (array(select o.key from orbhook.event_keys o
                             where o.created_at < v_now - make_interval(days => p_keep.key_days) limit 1000));
    get diagnostics v_most = row_count;
    -- Longer than any line: a retry must find that its event was erased.
    delete from orbhook.erased_events x
    where x.event_id = any (array(select o.event_id from orbhook.erased_events o where o.erased_at < v_lines - interval '14 days' limit 1000));
    get diagnostics v_count = row_count;
    v_most := greatest(v_most, v_count);
    delete from orbhook.replays r where r.finished_at < v_lines;
    delete from orbhook.watch_losses l where l.lost_at < v_lines;
    return v_most = 1000;
end
$$;
comment on function orbhook._retain_rows(orbhook.retention) is
    'Removes up to 1,000 idempotency keys that are too old, and as many of each of the small ledgers. True: there are more.';

create function orbhook._drop_emptied() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_week record;
begin
    -- A period's deliveries and attempts go together, and last: should the clock be turned back, results go there again.
    for v_week in
        select array_agg(w.parent order by w.parent) as parents, array_agg(w.name order by w.parent) as names, w.starts_at,
               max(w.ends_at) as ends_at, bool_or(w.parent = 'deliveries') as is_period
        from orbhook._weeks() w
        left join orbhook.thinned t on t.partition_name = w.name and t.holds = 'nothing'
        where not w.is_member and w.ends_at < clock_timestamp()
        group by w.starts_at, w.parent = 'events'
        having count(t.partition_name) = count(*)
        order by max(w.ends_at)
    loop
        begin
            -- Whoever waits for this lock makes everybody wait who comes after: emitters, for events. So it is taken only if
            -- it is free, and what it is needed for is done in a millisecond.
            for v_at in 1..cardinality(v_week.names) loop
                execute format('lock table only orbhook.%I in access exclusive mode nowait', v_week.parents[v_at]);
                execute format('lock table orbhook.%I in access exclusive mode nowait', v_week.names[v_at]);
                if orbhook._has_rows(v_week.names[v_at]) then
                    -- The clock was turned back, or somebody wrote there: once more from the beginning.
                    delete from orbhook.thinned t where t.partition_name = v_week.names[v_at];
                    return true;
                end if;
            end loop;
            for v_at in 1..cardinality(v_week.names) loop
                execute format('drop table orbhook.%I', v_week.names[v_at]);
            end loop;
            if v_week.is_period then
                delete from orbhook.periods p where p.starts_on = (v_week.starts_at at time zone 'UTC')::date;
                -- The audit asks for the latest of each kind.
                delete from orbhook.thinned t where t.ends_at < v_week.ends_at;
            end if;
            return true;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return false;
end
$$;
comment on function orbhook._drop_emptied() is
    'Drops one empty partition of events, or the two of a period, if nobody uses the tables at this moment. True: it did.';

create function orbhook._has_rows(p_name text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_found boolean;
begin
    execute format('select exists (select from orbhook.%I)', p_name) into v_found;
    return v_found;
end
$$;
comment on function orbhook._has_rows(text) is 'Whether there is a row in one of our partitions.';

create function orbhook._kept_since(p_parent text) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(max(t.ends_at), '-infinity') from orbhook.thinned t where starts_with(t.partition_name, p_parent || '_') and t.ends_at < 'infinity'
$$;
comment on function orbhook._kept_since(text) is 'Deliveries or attempts that were made since then are all there; of older ones, some or all are gone.';

create or replace function @extschema@.orbhook_retry(delivery uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    update orbhook.deliveries_open d
    set due_at = v_now, first_due_at = null, failures = 0
    where d.id = delivery and (d.lease_until is null or d.lease_until <= v_now);
    if not found then
        -- Locked, so that its event does not go meanwhile for its age.
        perform from orbhook.events e
        where e.id = (select d.event_id from orbhook.deliveries d where d.id = delivery and d.period is not null)
        for key share;
        if not found then
            return false;
        end if;
        with gone as (
            delete from orbhook.deliveries d
            where d.id = delivery and d.period is not null
              and exists (select from orbhook.webhooks w where w.id = d.webhook_id)
              and not orbhook._is_erased(d.event_id)
            returning d.*
        )
        insert into orbhook.deliveries_open (
            id, event_id, webhook_id, attempts, outcome_attempt, due_at, last_status_code, last_error, is_test, created_at)
        select g.id, g.event_id, g.webhook_id, g.attempts, g.attempts, v_now, g.last_status_code, g.last_error, g.is_test, g.created_at
        from gone g;
    end if;
    if found then
        perform orbhook._arm_doorbell();
    end if;
    return found;
end
$$;
comment on function @extschema@.orbhook_retry(uuid) is
    'Sends a delivery again, now: a waiting one at once, a finished one once more with a fresh retry budget. It keeps its id and its attempts. False: no such delivery, its event was erased or is no longer kept, or a request is under way.';

create or replace function orbhook._replay_step() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_replay  orbhook.replays;
    v_now     timestamptz;
    v_ids     uuid[];
    v_reached uuid;
    v_seen    bigint;
    v_queued  bigint;
begin
    select * into v_replay
    from orbhook.replays r
    where r.finished_at is null
      -- What is queued already takes its time; more of it would only make the queue longer.
      and (select count(*) from (select from orbhook.deliveries_open d where d.webhook_id = r.webhook_id limit 10000) w) < 10000
    order by r.requested_at
    limit 1
    for update skip locked;
    if not found then
        return false;
    end if;
    -- With a row locked this transaction counts as one that writes, and no claim passes on beyond what it makes due.
    v_now := clock_timestamp();

    select array_agg(s.id), count(*), (array_agg(s.id order by s.id desc))[1]
    into v_ids, v_seen, v_reached
    from (select d.id
          from orbhook.deliveries d
          where d.period is not null and d.id > v_replay.reached and d.id < orbhook._first_id_at(v_replay.until + interval '1 second')
          order by d.id
          limit 20000) s;

    -- Those that are old enough to go are locked, so that they do not go meanwhile.
    perform from orbhook.events e
    where e.id < orbhook._first_id_at(v_now - make_interval(days => (select t.delivered_days from orbhook.retention t)))
      and e.id = any (array(select d.event_id from orbhook.deliveries d
                            where d.id = any (v_ids) and d.period is not null and d.webhook_id = v_replay.webhook_id))
    for key share;

    with gone as (
        delete from orbhook.deliveries d
        where d.id = any (v_ids) and d.period is not null
          and d.webhook_id = v_replay.webhook_id and not d.is_test
          and d.created_at >= v_replay.since and d.created_at < v_replay.until and d.finished_at <= v_replay.requested_at
          and (v_replay.selection <> 'failed' or d.status = 'failed')
          and (v_replay.selection in ('failed', 'all')
               or exists (select from orbhook.events e
                          where e.id = d.event_id and orbhook._matches(e.payload, v_replay.selection::jsonpath)))
          and exists (select from orbhook.webhooks w where w.id = v_replay.webhook_id)
          and not orbhook._is_erased(d.event_id)
          and exists (select from orbhook.events e where e.id = d.event_id)
        returning d.*
    )
    insert into orbhook.deliveries_open (
        id, event_id, webhook_id, attempts, outcome_attempt, due_at, last_status_code, last_error, created_at)
    select g.id, g.event_id, g.webhook_id, g.attempts, g.attempts, v_now, g.last_status_code, g.last_error, g.created_at
    from gone g;
    get diagnostics v_queued = row_count;

    update orbhook.replays r
    set reached = coalesce(v_reached, r.reached),
        examined = r.examined + v_seen,
        queued = r.queued + v_queued,
        finished_at = case when v_seen < 20000 then v_now end
    where r.id = v_replay.id;
    return true;
end
$$;
comment on function orbhook._replay_step() is 'One bounded step of the oldest replay that can go on; false if there is none.';

create or replace function orbhook.tend() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return orbhook._open_event_weeks() or orbhook._total_attempts() or orbhook._retain();
end
$$;
comment on function orbhook.tend() is
    'Upkeep in small steps, called by every sidecar every few seconds: counts attempts for webhook_health, makes next weeks'' partitions, removes what is too old (orbhook.retention). True: there is more to do, call again.';

create or replace function @extschema@.orbhook_audit(since timestamptz)
returns table (violation text, detail text, event_id uuid, delivery_id uuid, webhook_id uuid, at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
-- A million rows are joined and grouped in memory rather than in files; compiling the plans would cost more than it saves.
set work_mem = '64MB' set jit = off
as $$
#variable_conflict use_column
declare
    v_since timestamptz := orbhook_audit.since;
    v_first uuid;
    v_now   timestamptz := clock_timestamp();
begin
    if v_since is null then
        raise exception using
            errcode = 'invalid_parameter_value', message = 'since must not be null',
            hint = 'select * from orbhook_audit(now() - interval ''1 day'')';
    end if;

    v_first := orbhook._first_id_at(v_since);

    return query
    with asked as materialized (
        select t.name as event_type, w.id, w.name, greatest(w.created_at, w.updated_at) + interval '1 hour' as settled_at
        from orbhook.webhooks w
        join orbhook.event_types t on orbhook._is_subscribed(w.subscribed_events, t.name)
        -- Those about webhooks in trouble go to the others only.
        where t.name not in ('WEBHOOK_DISABLED', 'DELIVERY_FAILED')
    )
    select 'event without its delivery',
           format('%s subscribes to %s and has not changed since, but there is neither a delivery nor a skipped entry', a.name, e.event_type),
           e.id, null::uuid, a.id, e.created_at
    from orbhook.events e
    join asked a on a.event_type = e.event_type and a.settled_at < e.created_at
    where e.id >= v_first and e.created_at >= greatest(v_since, orbhook._kept_since('deliveries'))
      -- A delivery's id is made after its event's.
      and not exists (select from orbhook.deliveries d
                      where d.event_id = e.id and d.webhook_id = a.id and d.id >= v_first)
      and (e.skipped is null
           or not (e.skipped @> jsonb_build_array(jsonb_build_object('webhook', a.id))
                   or jsonb_path_exists(e.skipped, '$[*].more')))
      -- Tests go to one webhook alone.
      and not exists (select from orbhook.deliveries d where d.event_id = e.id and d.is_test and d.id >= v_first);

    return query
    with twice as (
        select d.event_id, d.webhook_id, count(*) as deliveries
        from orbhook.deliveries d
        where d.id >= v_first and not d.is_test
        group by d.event_id, d.webhook_id
        having count(*) > 1
    )
    select 'event delivered twice to one webhook', format('%s deliveries', t.deliveries), t.event_id, f.id, t.webhook_id, f.created_at
    from twice t
    cross join lateral (
        select d.id, d.created_at from orbhook.deliveries d
        where d.event_id = t.event_id and d.webhook_id = t.webhook_id and d.id >= v_first and not d.is_test
        order by d.id limit 1) f;

    return query
    select 'delivery both pending and finished', format('finished as %s at %s', d.status, d.finished_at), d.event_id, d.id, d.webhook_id, d.finished_at
    from orbhook.deliveries_open o
    join orbhook.deliveries d on d.id = o.id and d.period is not null;

    return query
    select 'delivery past its deadline',
           format('due since %s and nothing of this webhook is under way; %s', f.due_at,
                  case when exists (select from orbhook.instances i where i.stopped_at is null and i.died_at is null)
                       then 'a sidecar is running: look at its log'
                       else 'no sidecar is running: start orbhook run' end),
           f.event_id, f.id, w.id, f.due_at
    from orbhook.webhooks w
    join orbhook.webhook_state s on s.webhook_id = w.id
    cross join lateral (select o.id, o.event_id, o.due_at from orbhook.deliveries_open o
                        where o.webhook_id = w.id order by o.due_at limit 1) f
    where w.active and not w.paused
      and greatest(f.due_at, s.paused_until, s.next_send_at) < v_now - interval '1 minute'
      and not exists (select from orbhook.deliveries_open o
                      where o.webhook_id = w.id and o.due_at <= v_now and o.lease_until > v_now - interval '1 minute')
      -- Longer than the minute, because it began before it was reported: timeout (30 s at most) and lease.
      and not exists (select from orbhook.attempts a
                      where a.webhook_id = w.id and a.started_at > v_now - interval '2 minutes');

    -- Most attempts are of deliveries made since then, which are read once; the others, retries and replays of older ones, are
    -- looked up one by one. Joining all of history to them took four fifths of the audit at 10,000,000 deliveries.
    return query
    with tried as materialized (
        select a.delivery_id, a.number, a.webhook_id, a.started_at, d.id, d.event_id, d.webhook_id as of_webhook, d.attempts
        from orbhook.attempts a
        left join orbhook.deliveries d on d.id = a.delivery_id and d.id >= v_first
        where a.started_at >= v_since
    ), found as (
        select t.* from tried t where t.id is not null
        union all
        select t.delivery_id, t.number, t.webhook_id, t.started_at, o.id, o.event_id, o.webhook_id, o.attempts
        from tried t
        left join lateral (select d.* from orbhook.deliveries d where d.id = t.delivery_id offset 0) o on true
        where t.id is null
    )
    select case when f.id is null then 'attempt without delivery' else 'attempt that does not fit its delivery' end,
           case when f.id is null then format('attempt %s', f.number)
                when f.of_webhook <> f.webhook_id then format('attempt %s names another webhook', f.number)
                else format('attempt %s of a delivery claimed %s times', f.number, f.attempts) end,
           f.event_id, f.delivery_id, f.webhook_id, f.started_at
    from found f
    where f.id is null or f.of_webhook <> f.webhook_id or f.number not between 1 and f.attempts;

    return query
    select case when s.simulated then 'delivered by a simulation' else 'delivered without an answer' end,
           case when s.simulated then 'orbhook_simulate was committed: nothing was sent; orbhook_retry(delivery_id) sends it'
                else 'no attempt of it succeeded' end,
           d.event_id, d.id, d.webhook_id, d.finished_at
    from orbhook.deliveries d
    cross join lateral (
        select exists (select from orbhook.attempts a
                       where a.delivery_id = d.id and a.address = 'simulated' and a.error_class is null) as simulated) s
    where d.finished_at >= greatest(v_since, orbhook._kept_since('attempts') + interval '1 hour') and d.status = 'delivered'
      -- Its last attempt began minutes before at most; a period that is no longer kept proves nothing.
      and not exists (select from orbhook.attempts a
                      where a.delivery_id = d.id and a.error_class is null and a.address is distinct from 'simulated'
                        and a.started_at >= v_since - interval '1 hour')
      and exists (select from orbhook.periods p
                  where p.starts_on = '1970-01-01' and d.period = '1970-01-01'
                     or p.starts_on = least(d.period, date_trunc('week', d.finished_at - interval '1 hour')::date));

    return query
    select 'webhook without state', w.name, null::uuid, null::uuid, w.id, w.created_at
    from orbhook.webhooks w
    where not exists (select from orbhook.webhook_state s where s.webhook_id = w.id)
    union all
    select 'webhook without endpoint', format('%s; set one with orbhook_update_webhook', w.name), null, null, w.id, w.created_at
    from orbhook.webhooks w
    where not exists (select from orbhook.webhook_secrets s where s.webhook_id = w.id and s.name = 'endpoint')
    union all
    select 'state without webhook', null, null, null, s.webhook_id, null
    from orbhook.webhook_state s
    where not exists (select from orbhook.webhooks w where w.id = s.webhook_id);

    return query
    with wanted as (
        select p.pattern, w.id, w.active, w.filter::text as filter
        from orbhook.webhooks w
        cross join lateral (select distinct u.pattern from unnest(w.subscribed_events) as u (pattern)) p
        where not exists (select from unnest(w.subscribed_events) as wider (pattern)
                          where wider.pattern <> p.pattern and orbhook._is_subscribed(array[wider.pattern], p.pattern))
    )
    select 'subscription differs from its webhook',
           case when s.webhook_id is null then format('%s is missing', n.pattern)
                when n.id is null then format('%s is not asked for', s.pattern)
                else format('%s has another state or filter', n.pattern) end
           || '; update orbhook.webhooks set subscribed_events = subscribed_events where id = the webhook''s makes them anew',
           null::uuid, null::uuid, coalesce(n.id, s.webhook_id), null::timestamptz
    from wanted n
    full join orbhook.subscriptions s on s.webhook_id = n.id and s.pattern = n.pattern
    where n.id is null or s.webhook_id is null or s.active <> n.active or s.filter::text is distinct from n.filter;
end
$$;
comment on function @extschema@.orbhook_audit(timestamptz) is
'Violations of what must always hold, among what was emitted, tried or finished since then; none on a healthy system. Reads everything since then: minutes for a month of a busy system, so give it a day.
violation: event without its delivery; event delivered twice to one webhook; delivery both pending and finished; delivery past its deadline; attempt without delivery; attempt that does not fit its delivery; delivered without an answer; delivered by a simulation; webhook without state; webhook without endpoint; state without webhook; subscription differs from its webhook.
An event is judged against a webhook only if that webhook has not changed since an hour before the event.
Errors: 22023 (since is null).';

create or replace function orbhook._grant(p_role regrole, p_kind text) returns void
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

-- The settings: as with settle. Sidecars look while the queue is empty, and keep the plan.
create or replace function orbhook.look(p_sidecar uuid) returns integer
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

create or replace function orbhook._pace_ahead(p_rate_limit_per_second numeric) returns interval
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select case when p_rate_limit_per_second is not null
                then make_interval(secs => least(0.25, 64 * orbhook._spacing_seconds(p_rate_limit_per_second))) end
$$;
comment on function orbhook._pace_ahead(numeric) is
    'How far ahead send times are handed out: a quarter of a second, so that a pause takes effect within it, and at most 64 of them. Null without a limit.';

create function orbhook._begin_claim() returns boolean
language c volatile
as 'MODULE_PATHNAME', 'begin_claim_wrapper';
comment on function orbhook._begin_claim() is
    'Forgets the fronts of queues that this session has remembered for a second, or for up to ten where finding them took long. True when the horizon is to be read before the claim goes on.';

create function orbhook._note_horizon(p_horizon timestamptz) returns void
language c volatile
as 'MODULE_PATHNAME', 'note_horizon_wrapper';
comment on function orbhook._note_horizon(timestamptz) is
    'Until further notice this session remembers fronts as far as that; null: not at all.';

create function orbhook._next_front(p_after uuid) returns uuid
language c volatile strict
as 'MODULE_PATHNAME', 'next_front_wrapper';
comment on function orbhook._next_front(uuid) is
    'The first webhook after this one whose front this session remembers; null: none.';

create function orbhook._front(p_webhook uuid) returns timestamptz
language c stable strict
as 'MODULE_PATHNAME', 'front_wrapper';
comment on function orbhook._front(uuid) is
    'Nothing of this webhook is pending that was due before, as far as this session remembers; null: it does not.';

create function orbhook._remember_front(p_webhook uuid, p_front timestamptz) returns timestamptz
language c volatile strict
as 'MODULE_PATHNAME', 'remember_front_wrapper';
comment on function orbhook._remember_front(uuid, timestamptz) is
    'Remembers that nothing of this webhook is pending that was due before, as far as the horizon reaches. Returns p_front.';

create function orbhook._horizon(p_now timestamptz) returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    -- The sessions first: whoever prepares its transaction in between is then in both lists, and not in neither. One with
    -- track_activities off does not say when it began.
    select case when count(*) = count(s.xact_start)
                     and not exists (select from pg_prepared_xacts p where p.database = current_database())
                then least(min(s.xact_start), p_now) - interval '100 ms' end
    from pg_stat_get_activity(null) s
    where s.backend_xid is not null and s.datid = (select d.oid from pg_database d where d.datname = current_database())
$$;
comment on function orbhook._horizon(timestamptz) is
'What becomes visible from now on was made due after this: it lies before the beginning of every transaction here that writes, and 0.1 s before p_now (a clock reading), as an emit reads the clock before it begins to write. Null when there is one of which nobody knows when it began: prepared, or with track_activities off.';

-- The settings keep the plan the same from an empty table to a million rows: made while the queue was empty, a plan would
-- scan it as a whole, and planning anew for each call costs more than the call. Joins with big tables are look-ups by index
-- whatever the planner believes: lateral, limited.
create or replace function orbhook.claim(
    p_sidecar uuid, p_batch integer, p_after uuid,
    p_lead_ms integer default 0, p_share integer default 1000,
    p_held_webhooks uuid[] default '{}', p_held_counts integer[] default '{}') returns setof orbhook.request
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
    v_now       timestamptz := clock_timestamp();
    -- No paced request can be on its way before the claim is back.
    v_earliest  timestamptz := v_now + make_interval(secs => least(greatest(p_lead_ms, 0), 10000) / 1000.0);
    v_dead      uuid[] := orbhook._dead_sidecars();
    v_first     constant uuid := '00000000-0000-0000-0000-000000000000';
    v_last      constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_after     constant uuid := coalesce(p_after, v_first);
    v_ids       uuid[];
    v_send_at   timestamptz[];
    v_requests  orbhook.request[];
    v_problems  orbhook._ending[];
    v_key_ids   text[];
begin
    -- Whoever takes this id for dead would send the same deliveries at once; so would the database that this one is a
    -- copy of, and another environment.
    select i.key_ids into v_key_ids
    from orbhook.instances i
    join orbhook.environment e on e.name = i.environment and e.place = orbhook._place()
    where i.id = p_sidecar and i.died_at is null and i.stopped_at is null;
    if not found then
        return;
    end if;

    -- Never lowered: remote_write and remote_apply are stronger than on.
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    if orbhook._begin_claim() then
        perform orbhook._note_horizon(orbhook._horizon(v_now));
    end if;

    -- After the horizon was read, so that its snapshot has all that was committed by then.
    with recursive waiting (webhook_id, due_at, is_second_part) as (
        -- From each webhook to the next along the index (webhook_id, due_at): after p_after to the end, and from the
        -- beginning to p_after. Deliveries that are gone lie before the front of a queue, tens of thousands between two
        -- vacuums: only this walk passes over them, and where the session remembers a front, nobody does.
        select v_after, 'infinity'::timestamptz, false
        union all
        select n.*
        from waiting w
        cross join lateral (
            select coalesce(orbhook._next_front(w.webhook_id), v_last) as webhook_id,
                   case when w.is_second_part then v_after else v_last end as end_id
            offset 0) k
        cross join lateral (
            -- One that is not remembered, before the next that is;
            (select d.webhook_id, d.due_at, w.is_second_part from orbhook.deliveries_open d
             where d.webhook_id > w.webhook_id and d.webhook_id < k.webhook_id and d.webhook_id <= k.end_id
             order by d.webhook_id, d.due_at limit 1)
            union all
            -- that one from its front on, or nothing of it, to go on behind it;
            (select k.webhook_id,
                    coalesce((select d.due_at from orbhook.deliveries_open d
                              where d.webhook_id = k.webhook_id and d.due_at >= orbhook._front(k.webhook_id)
                              order by d.due_at limit 1), 'infinity'),
                    w.is_second_part
             where k.webhook_id < v_last and k.webhook_id <= k.end_id)
            union all
            -- after the last, again from the beginning.
            (select v_first, 'infinity', true where not w.is_second_part)
            limit 1) n
    ), serving as (
        -- Lateral, each for the one before: so the walk is read as far as the limit asks for, and in its order.
        select w.id, w.max_in_flight, w.max_age_seconds, h.held, orbhook._remember_front(q.webhook_id, q.due_at) as front_at,
               -- A call of a function with a search_path of its own takes 10 µs: none without a limit.
               case when w.rate_limit_per_second is not null then orbhook._spacing_seconds(w.rate_limit_per_second) end as spacing,
               greatest(s.next_send_at, v_earliest) as first_send_at,
               case when w.rate_limit_per_second is not null
                    then v_earliest + orbhook._pace_ahead(w.rate_limit_per_second) end as last_send_at
        from waiting q
        cross join lateral (
            select v.id, v.max_in_flight, v.max_age_seconds, v.rate_limit_per_second
            from orbhook.webhooks v
            where v.id = q.webhook_id and v.active and not v.paused and (v.key_ids is null or v.key_ids <@ v_key_ids)
            limit 1) w
        cross join lateral (select coalesce(p_held_counts[array_position(p_held_webhooks, w.id)], 0) as held) h
        cross join lateral (
            -- One that has nothing free, or its cap under way, must not take a place either: hundreds of endpoints that
            -- hang would hide whoever comes behind them.
            select true
            from (select d.lease_until, d.claimed_by
                  from orbhook.deliveries_open d
                  where d.webhook_id = w.id and d.due_at between q.due_at and v_now and not d.is_test
                  order by d.due_at
                  limit w.max_in_flight) u
            where u.lease_until is null or u.lease_until <= v_now or u.claimed_by = any (v_dead)
            limit 1) f
        cross join lateral (
            select t.next_send_at
            from orbhook.webhook_state t
            where t.webhook_id = w.id and t.paused_until <= v_now
              -- At most a quarter of a second ahead: no call for those that are further away.
              and (w.rate_limit_per_second is null
                   or (t.next_send_at <= v_earliest + interval '250 ms'
                       and t.next_send_at <= v_earliest + orbhook._pace_ahead(w.rate_limit_per_second)))
              -- One that has its share must not take the place of one that has not.
              and h.held < least(p_share, w.max_in_flight)
            for update skip locked) s
        where q.due_at <= v_now
        limit p_batch
    ), share as (
        select v.*,
               greatest(ceil(p_batch::numeric / count(*) over ()), 1) as fair,
               floor(extract(epoch from v.last_send_at - v.first_send_at) / v.spacing) + 1 as tokens
        from serving v
    ), queues as (
        -- The front of each queue: as many as its share, and what is under way before them. No more of a queue is read than
        -- that, however many may be in flight.
        select h.*, f.ids,
               -- What commits late stands before what is leased, which can then be out of sight here: the sidecar's own
               -- count knows better.
               least(h.fair, h.tokens, p_share - h.held, h.max_in_flight - greatest(l.leased, h.held)) as room
        from share h
        cross join lateral (
            select array_agg(u.id) as ids, max(u.due_at) as last_due_at
            from (select d.id, d.due_at
                  from orbhook.deliveries_open d
                  where d.webhook_id = h.id and d.due_at between h.front_at and v_now and not d.is_test
                    and (d.lease_until is null or d.lease_until <= v_now or d.claimed_by = any (v_dead))
                    -- look cancels these; they take nobody's place and no send time.
                    and (h.max_age_seconds is null
                         or coalesce(d.first_due_at, d.due_at) >= v_now - make_interval(secs => h.max_age_seconds::double precision))
                  order by d.due_at
                  limit least(h.fair, h.tokens)) u) f
        cross join lateral (
            select count(*) as leased
            from (select from orbhook.deliveries_open d
                  where d.webhook_id = h.id and d.due_at between h.front_at and f.last_due_at and not d.is_test
                    and d.lease_until > v_now and d.claimed_by <> all (v_dead)
                  order by d.due_at
                  limit h.max_in_flight) u) l
    ), chosen as (
        select c.id as delivery_id, q.id as webhook_id, q.spacing,
               case when q.spacing is not null
                    then q.first_send_at + make_interval(secs => (c.place - 1) * q.spacing) end as send_at
        from queues q
        cross join lateral unnest(q.ids) with ordinality as c (id, place)
        where c.place <= q.room
        order by c.place, q.id <= v_after, q.id
        limit p_batch
    ), paced as (
        update orbhook.webhook_state s
        set next_send_at = c.next_send_at
        from (select h.webhook_id, max(h.send_at) + make_interval(secs => max(h.spacing)) as next_send_at
              from chosen h where h.spacing is not null group by h.webhook_id) c
        where s.webhook_id = c.webhook_id
    ), tests as (
        -- A test goes out at once, also to a webhook that is paused, switched off or over its pace.
        select d.id, null::timestamptz as send_at
        from orbhook.deliveries_open d
        join orbhook.webhooks w on w.id = d.webhook_id
        where d.is_test and d.due_at <= v_now
          and (d.lease_until is null or d.lease_until <= v_now or d.claimed_by = any (v_dead))
        order by d.due_at
        limit p_batch
    )
    select array_agg(a.id), array_agg(a.send_at)
    into v_ids, v_send_at
    from (select c.delivery_id as id, c.send_at from chosen c union all select t.id, t.send_at from tests t) a;

    if v_ids is null then
        -- That walks from webhook to webhook too, and is in no hurry: not while there are fronts to remember.
        if orbhook._next_front(v_first) is null then
            perform orbhook._cancel_deliveries_without_webhook();
        end if;
        return;
    end if;

    with leased as materialized (
        select l.* from orbhook._lease(p_sidecar, v_ids, v_send_at, v_now, v_dead) l
    ), senders as materialized (
        -- Once for each webhook, not for each delivery.
        select w.id, w.provider_type, w.target, w.provider_config::text as config, x.names, x.secrets
        from (select distinct l.webhook_id from leased l) v
        join orbhook.webhooks w on w.id = v.webhook_id
        left join lateral (
            select array_agg(y.name) as names, jsonb_object_agg(y.name, y.value)::text as secrets
            from orbhook.webhook_secrets y
            where y.webhook_id = w.id and (y.expires_at is null or y.expires_at > v_now)) x on true
    ), rendered as (
        select l.*, e.event_type, s.secrets, r.parts,
               case when l.attempt - l.outcome_attempt > 20 then 'failed'
                    when e.id is null then 'cancelled'
                    when s.names is null or not 'endpoint' = any (s.names) then 'failed'
                    else r.parts[3] end as ends_as,
               case when l.attempt - l.outcome_attempt > 20 then 'outcome unknown: 20 sidecars in a row stopped without reporting'
                    when e.id is null then 'the event is no longer there'
                    when s.names is null or not 'endpoint' = any (s.names) then 'the webhook has no endpoint; set one with orbhook_update_webhook'
                    else r.parts[4] end as reason
        from leased l
        join senders s on s.id = l.webhook_id
        left join lateral (
            -- The time as orbhook._rfc3339 writes it; a call of that function costs more than the rendering.
            select v.id, v.event_type, v.payload, to_char(v.occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as occurred_at
            from orbhook.events v where v.id = l.event_id limit 1) e on true
        left join lateral orbhook._render_delivery(
            s.provider_type, s.target, s.config, s.names,
            e.id::text, e.event_type, e.occurred_at, l.is_test, e.payload::text) as r (parts) on true
    )
    select array_agg(row(r.delivery_id, r.attempt, r.webhook_id, r.event_type, r.parts[1], r.parts[2], r.secrets,
                         r.timeout_ms,
                         (extract(epoch from r.lease_until - v_now) * 1000)::integer,
                         (extract(epoch from r.send_at - v_now) * 1000)::integer)::orbhook.request
                     order by r.webhook_id <= v_after, r.webhook_id, r.send_at)
               filter (where r.ends_as is null),
           array_agg(row(r.delivery_id, r.ends_as, null, r.reason)::orbhook._ending) filter (where r.ends_as is not null)
    into v_requests, v_problems
    from rendered r;

    if v_problems is not null then
        insert into orbhook.attempts (delivery_id, number, webhook_id, sidecar, started_at, duration_ms, error_class, error, period)
        select d.id, d.attempts, d.webhook_id, p_sidecar, v_now, 0, 'render', p.last_error, orbhook._period()
        from unnest(v_problems) p
        cross join lateral (select o.* from orbhook.deliveries_open o where o.id = p.delivery_id limit 1) d
        where p.status = 'failed';
        perform orbhook._report_failures(v_problems);
        perform orbhook._finish(v_problems);
    end if;

    return query select q.* from unnest(v_requests) q;
end
$$;
comment on function orbhook.claim(uuid, integer, uuid, integer, integer, uuid[], integer[]) is
'Leases up to p_batch due deliveries to a sidecar and returns them as requests. Nothing for a sidecar that is not registered, has stopped or was found dead, and nothing at all from a database that is a copy (orbhook.standing).
p_after: the webhook of the last row of the previous claim (null at first), so that every webhook has its turn. p_lead_ms: how long claims take to come back to this sidecar, 0 to 10000; paced requests get send times after that. p_share: the most deliveries of one webhook it may hold. p_held_webhooks, p_held_counts: what it holds, of which webhooks.';

create or replace function @extschema@.orbhook_erase(user_id text, out events bigint, out cancelled bigint, out attempts bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_id    jsonb := to_jsonb(user_id);
    v_ids   uuid[];
    v_words text := '(^|[^[:alnum:]])' || regexp_replace(user_id, '([^[:alnum:]])', '\\\1', 'g') || '($|[^[:alnum:]])';
begin
    if coalesce(user_id, '') = '' then
        raise exception using errcode = 'invalid_parameter_value', message = 'user_id must not be empty or null';
    end if;
    select array_agg(e.id) into v_ids
    from orbhook.events e
    where e.payload ->> 'userId' = user_id
       or exists (select from jsonb_each(e.payload) part
                  where jsonb_typeof(part.value) = 'object' and part.value ->> 'userId' = user_id);
    select x.events, x.cancelled, x.attempts into events, cancelled, attempts from orbhook._erase(coalesce(v_ids, '{}')) x;
    -- Of tables whose rows are users. Elsewhere the same key is somebody else's.
    delete from orbhook.watch_timers t
    where t.row_key = jsonb_build_array(user_id)::text
      and exists (select from orbhook.watches w where w.target = t.target and w.source = 'users');
    update orbhook.replays r
    set selection = 'erased', finished_at = coalesce(r.finished_at, clock_timestamp())
    where r.selection not in ('failed', 'all') and r.selection ~ v_words;
end
$$;
comment on function @extschema@.orbhook_erase(text) is
'Removes a person''s data: of every event whose payload says userId = user_id (a text or a number), at the top or one level down. Payloads, recorded answers, idempotency keys, timers of watched users and the conditions of replays go; ids, types, times and what became of each delivery stay; what was still to be sent is cancelled. Returns how many events, cancelled deliveries and attempts.
Reads every event once. Old rows are in the files until vacuum, in the log and in backups for longer.
Errors: 22023 (no user_id).';

comment on function @extschema@.orbhook_replay(uuid, timestamptz, timestamptz, text) is
'Sends again what was created for a webhook in [since, until): "only" (a reserved word, so quoted when named) = failed, all, or a jsonpath on the payload. Returns the replay''s id at once; a sidecar queues it in bounded steps (orbhook.replay_progress). Deliveries keep their ids and attempts; those whose event is no longer kept (orbhook.retention) are passed over.
Errors: 22023 (no such webhook, span, jsonpath).';

create or replace function orbhook.settle(p_sidecar uuid, p_results jsonb)
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now      timestamptz := clock_timestamp();
    v_period   date := orbhook._period();
    v_reported orbhook._outcome[];
    v_locked   uuid[];
    v_done     uuid[];
    v_applied  orbhook._outcome[];
    v_endings  orbhook._ending[];
    v_ended    uuid[];
begin
    -- The judgement needs no lock: it reads the result and the webhook's provider.
    select array_agg(row(r.delivery, r.attempt, r.outcome, r.started_at, r.duration_ms, r.connect_ms, r.first_byte_ms,
                         left(r.address, 100), r.status, r.headers, r.body, coalesce(r.body_cut, false), r.error_class, r.error,
                         d.webhook_id,
                         -- "Gone", said to a request from before somebody changed the webhook, was said of what it was then.
                         case when j.parts[1] = 'endpoint_permanent' and r.started_at < w.updated_at then 'retry' else j.parts[1] end,
                         j.parts[2]::double precision,
                         coalesce(j.parts[3]::boolean, false), coalesce(j.parts[4]::boolean, false), j.parts[5])::orbhook._outcome)
    into v_reported
    from (select x.*, v_now - make_interval(secs => least(greatest(coalesce(x.started_ago_ms, 0), 0), 86400000) / 1000.0) as started_at
          from jsonb_to_recordset(p_results) as x (
              delivery uuid, attempt integer, outcome text, started_ago_ms bigint, duration_ms integer, connect_ms integer,
              first_byte_ms integer, address text, status integer, headers jsonb, body text, body_cut boolean,
              error_class text, error text)) r
    left join orbhook.deliveries_open d on d.id = r.delivery and d.attempts = r.attempt and d.outcome_attempt < r.attempt
    left join orbhook.webhooks w on w.id = d.webhook_id
    left join lateral (
        select case r.outcome
                   when 'released' then array['released', null, null, null, null]
                   when 'parked' then array['parked', null, null, null, coalesce(r.error, 'a secret could not be opened')]
                   when 'answered' then orbhook._judge(coalesce(w.provider_type, 'GENERIC'), w.target, r.status,
                                                       coalesce(r.headers::text, '{}'), coalesce(r.body, ''),
                                                       floor(extract(epoch from v_now))::bigint)
                   else array['retry', null, null, null, coalesce(r.error, 'no answer')]
               end) as j (parts) on d.id is not null;

    -- State first. A webhook that only succeeds and has no failures behind it is not touched.
    select array_agg(l.webhook_id)
    into v_locked
    from (select s.webhook_id
          from orbhook.webhook_state s
          where s.webhook_id in (
              -- Once for each webhook: while an old snapshot is open its row may have thousands of versions to pass over.
              select a.webhook_id
              from (select r.webhook_id,
                           bool_or(r.verdict in ('retry', 'message_permanent', 'endpoint_permanent')) as has_failed,
                           bool_or(r.verdict = 'delivered') as has_delivered
                    from unnest(v_reported) r group by r.webhook_id) a
              join orbhook.webhook_state t on t.webhook_id = a.webhook_id
              where a.has_failed or (a.has_delivered and t.failing_since is not null))
          order by s.webhook_id
          for update) l;

    v_done := orbhook._settle_delivered(p_sidecar, v_reported, v_now, v_period);
    if v_done is not null then
        select array_agg(a) into v_reported
        from unnest(v_reported) a where a.verdict is null or a.delivery <> all (v_done);
    end if;
    if v_reported is null then
        return;
    end if;

    -- The fence, under the row's lock.
    select array_agg(x.outcome)
    into v_applied
    from (select a as outcome
          from unnest(v_reported) a
          join orbhook.deliveries_open d on d.id = a.delivery and d.attempts = a.attempt and d.outcome_attempt < a.attempt
          where a.verdict is not null
          order by d.id
          for update of d) x;

    insert into orbhook.attempts (
        delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
        status_code, error_class, error, response_headers, response_body, body_cut, late, period)
    select a.delivery, a.attempt, a.webhook_id, p_sidecar, a.started_at, a.duration_ms, a.connect_ms, a.first_byte_ms, a.address,
           a.status,
           case when a.verdict = 'delivered' then null
                when a.is_rate_limited then 'rate_limited'
                else orbhook._error_class(a.outcome, a.status, a.error_class) end,
           left(a.reason, 2000), a.headers, a.body, a.body_cut, false, v_period
    from unnest(v_applied) a
    where a.verdict not in ('released', 'parked');

    if coalesce(cardinality(v_applied), 0) < cardinality(v_reported) then
        return query
        select l.* from orbhook._record_late(p_sidecar, array(
            select a from unnest(v_reported) a
            where not exists (select from unnest(v_applied) b where b.delivery = a.delivery and b.attempt = a.attempt))) l;
    end if;

    update orbhook.webhook_state s
    set consecutive_failures = case when c.failed = 0 then 0
                                    when c.delivered > 0 then c.failed
                                    else s.consecutive_failures + c.failed end,
        failing_since = case when c.failed = 0 then null
                             when c.delivered > 0 or s.failing_since is null then v_now
                             when s.last_failed_at < v_now - interval '1 day' then s.failing_since + (v_now - s.last_failed_at)
                             else s.failing_since end,
        last_failed_at = case when c.failed > 0 then v_now else s.last_failed_at end,
        paused_until = greatest(s.paused_until, v_now + make_interval(secs => c.pause_seconds)),
        pause_reason = coalesce(c.pause_reason, s.pause_reason)
    from (select a.webhook_id,
                 count(*) filter (where a.verdict = 'delivered') as delivered,
                 count(*) filter (where a.verdict in ('retry', 'message_permanent', 'endpoint_permanent')) as failed,
                 max(orbhook._pause_seconds(orbhook._retry_delay_seconds(w.retry_delay, 1), a.after_seconds))
                     filter (where a.is_pause) as pause_seconds,
                 max(a.reason) filter (where a.is_pause) as pause_reason
          from unnest(v_applied) a
          join orbhook.webhooks w on w.id = a.webhook_id
          group by a.webhook_id) c
    where s.webhook_id = c.webhook_id and s.webhook_id = any (v_locked)
      and (c.failed > 0 or (c.delivered > 0 and s.failing_since is not null));

    perform orbhook._switch_off(a.webhook_id, a.reason) from unnest(v_applied) a where a.verdict = 'endpoint_permanent';
    -- A key that is only missing (class key) is in key_ids already: the next claim knows.
    update orbhook.webhooks w
    set key_ids = array_append(w.key_ids, 'unreadable')
    from (select distinct a.webhook_id from unnest(v_applied) a where a.verdict = 'parked' and a.error_class = 'secret') u
    where w.id = u.webhook_id and array_position(w.key_ids, 'unreadable') is null;
    perform orbhook._switch_off_failing(array_agg(a.webhook_id)) from unnest(v_applied) a
    where a.verdict in ('retry', 'message_permanent') having count(*) > 0;

    select array_agg(row(a.delivery,
                         case when a.verdict = 'delivered' then 'delivered' else 'failed' end,
                         a.status, case when a.verdict = 'delivered' then null else a.reason end)::orbhook._ending),
           array_agg(a.delivery)
    into v_endings, v_ended
    from unnest(v_applied) a
    join orbhook.deliveries_open d on d.id = a.delivery
    left join orbhook.webhooks w on w.id = a.webhook_id
    where a.verdict in ('delivered', 'message_permanent', 'endpoint_permanent')
       or (a.verdict = 'parked' and d.is_test)
       or (a.verdict = 'retry'
           and (d.is_test
                or (d.failures >= coalesce(w.max_retries, 0)
                    and not (a.is_rate_limited and coalesce(d.first_due_at, d.due_at) > v_now - interval '24 hours'))));

    update orbhook.deliveries_open d
    set lease_until = null, claimed_by = null, outcome_attempt = a.attempt,
        failures = d.failures + case when a.verdict in ('released', 'parked')
                                          or (a.is_rate_limited and coalesce(d.first_due_at, d.due_at) > v_now - interval '24 hours')
                                     then 0 else 1 end,
        first_due_at = case when a.verdict in ('released', 'parked') then d.first_due_at else coalesce(d.first_due_at, d.due_at) end,
        due_at = case when a.verdict in ('released', 'parked') then d.due_at
                      else v_now + make_interval(secs => orbhook._retry_after_seconds(
                               orbhook._retry_delay_seconds(w.retry_delay, d.failures + 1), a.after_seconds, random())) end,
        last_status_code = coalesce(a.status, case when a.verdict in ('released', 'parked') then d.last_status_code end),
        last_error = coalesce(a.reason, d.last_error)
    from unnest(v_applied) a
    join orbhook.webhooks w on w.id = a.webhook_id
    where d.id = a.delivery and a.delivery <> all (coalesce(v_ended, '{}'));

    perform orbhook._report_failures(v_endings);
    perform orbhook._finish(v_endings);

    return query
    select a.delivery, a.attempt,
           case when a.delivery = any (v_ended) then case a.verdict when 'delivered' then 'delivered' else 'failed' end
                when a.verdict = 'parked' then 'parked'
                else 'pending' end,
           false, case when a.verdict <> 'parked' then (extract(epoch from d.due_at - v_now) * 1000)::integer end, a.reason
    from unnest(v_applied) a
    left join orbhook.deliveries_open d on d.id = a.delivery
    where a.verdict not in ('delivered', 'released') or a.reason is not null;
end
$$;

-- Whoever waits for this lock makes everybody wait who comes after and gives an idempotency key. So they are let pass after a
-- tenth of a second, and it is tried again. Near the end, since it is kept until the commit.
do $lock$
declare
    v_lock_timeout text := current_setting('lock_timeout');
begin
    for v_try in 1..100 loop
        begin
            perform set_config('lock_timeout', '100ms', true);
            lock table orbhook.event_keys in share mode;
            perform set_config('lock_timeout', v_lock_timeout, true);
            return;
        exception when lock_not_available then
            perform pg_sleep(0.1);
        end;
    end loop;
    raise exception using
        errcode = 'lock_not_available', message = 'transactions that have emitted with an idempotency key do not end',
        hint = 'say it again later; select * from pg_stat_activity order by xact_start shows them';
end
$lock$;
create index event_keys_created_at on orbhook.event_keys using brin (created_at) with (autosummarize = on);

select pg_catalog.pg_extension_config_dump('orbhook.retention', '');
select pg_catalog.pg_extension_config_dump('orbhook.thinned', '');

do $revoke$
declare
    v_function regprocedure;
begin
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
revoke all on orbhook.retention, orbhook.thinned from public;

-- What was granted before, on what is new. A role that has gone since is passed over.
select orbhook._grant(r.oid::pg_catalog.regrole, g.kind)
from orbhook.grants g
join pg_catalog.pg_roles r on r.rolname operator(pg_catalog.=) g.role_name;
