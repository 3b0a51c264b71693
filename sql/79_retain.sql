-- Retention: what is old goes, so that the tables stay as large as the time they cover.
--
-- How long is in orbhook.retention, one row. Events (payloads) and attempts of what was delivered or cancelled, and events
-- nobody wanted, are kept for delivered_days; those of failed deliveries for failed_days; the line of each delivery in
-- orbhook.deliveries for line_days. Without the row everything is kept.
--
-- Events, deliveries and attempts lie in weekly partitions (77_weeks). A week of which nothing is needed any more is emptied as a
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
