-- Claiming: what is due becomes leased requests, ready to be sent.
--
-- One claim goes from webhook to webhook, beginning after the one where the last claim stopped, and takes some from
-- each, so that a million rows of one webhook cost its neighbours nothing. A sidecar says how many deliveries of one
-- webhook it may hold (its share, about half of its free slots) and what it holds: endpoints that never answer then run
-- out of share before the sidecar runs out of slots. It locks the webhook_state row of each
-- webhook it serves (skipping those another claim is serving) and only then looks at the queue: pacing and the in-flight
-- cap are decided by one claim at a time. It waits for nobody.
--
-- What must stay true
--   * the lease is durable before anything is sent. An application may commit with synchronous_commit = off; the claim
--     commits with it on, and as the log is sequential, that makes the application's commit durable as well. Without
--     this a crash could leave a webhook sent for a transaction that never happened;
--   * a delivery is leased for its timeout and 10 s more. The sidecar sends nothing when less than timeout + 5 s is left;
--   * a request that cannot be rendered ends its own delivery, with a reason, and no other.
--
-- Lock order: webhook_state, then deliveries_open.

create type orbhook.request as (
    delivery_id   uuid,
    attempt       integer,
    webhook_id    uuid,
    event_type    text,
    headers       text,
    body          text,
    secrets       text,
    timeout_ms    integer,
    lease_ms      integer,
    send_after_ms integer
);
comment on type orbhook.request is
'One leased delivery as a whole request. headers: JSON array of {"name", "prefix", "secret"}: the value is prefix plus the secret of that name. secrets: JSON object of name to value ("endpoint" is the URL). lease_ms and send_after_ms count from the claim; send_after_ms is null when the webhook has no rate limit.';

create function orbhook._render_delivery(
    p_provider text, p_target text, p_config text, p_secret_names text[],
    p_event_id text, p_event_type text, p_occurred_at text, p_is_test boolean, p_payload text) returns text[]
language c volatile
as 'MODULE_PATHNAME', 'render_delivery_wrapper';
comment on function orbhook._render_delivery(text, text, text, text[], text, text, text, boolean, text) is
    'Array of four: headers (JSON), body, null, null; or null, null, status the delivery ends with (failed, cancelled), reason. Never raises on data.';

create function orbhook._rfc3339(p_time timestamptz) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$ select to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;
comment on function orbhook._rfc3339(timestamptz) is 'A time as RFC 3339 in UTC with microseconds.';

create function orbhook._spacing_seconds(p_rate_limit_per_second numeric) returns double precision
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$ select greatest(1 / p_rate_limit_per_second, 1.06 / (p_rate_limit_per_second + 1))::double precision $$;
comment on function orbhook._spacing_seconds(numeric) is
'Seconds between two send times of a webhook, so that no second at the receiver holds more than the limit + 1. A request arrives up to 0.06 s off its send time (the sidecar gives back what it would dial more than 0.04 s late; the rest is for the way), so the requests of one second had send times within 1.06 s of each other. Limits up to 16.6 a second lose nothing by it; 100 a second are sent at 95.3.';

create function orbhook._pace_ahead(p_rate_limit_per_second numeric) returns interval
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
create function orbhook.claim(
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

create function orbhook._lease(
    p_sidecar uuid, p_ids uuid[], p_send_at timestamptz[], p_now timestamptz, p_dead uuid[])
returns table (
    delivery_id uuid, attempt integer, outcome_attempt integer, webhook_id uuid, event_id uuid, is_test boolean,
    send_at timestamptz, lease_until timestamptz, timeout_ms integer)
language plpgsql set search_path = pg_catalog, pg_temp
set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
as $$
#variable_conflict use_column
begin
    return query
    -- A late settle may hold one of these rows, or another claim a test: those are left for the next time.
    with free as (
        select d.id, d.attempts, d.outcome_attempt, d.lease_until, d.claimed_by, d.webhook_id, a.send_at
        from unnest(p_ids, p_send_at) as a (id, send_at)
        join orbhook.deliveries_open d on d.id = a.id
        where d.lease_until is null or d.lease_until <= p_now or d.claimed_by = any (p_dead)
        for update of d skip locked
    ), unknown as (
        -- The sidecar that had it never said what came of it.
        insert into orbhook.attempts (delivery_id, number, webhook_id, sidecar, started_at, error_class, error, period)
        select f.id, f.attempts, f.webhook_id, f.claimed_by,
               f.lease_until - make_interval(secs => w.timeout_seconds::double precision + 10), 'unknown',
               'the sidecar stopped before it reported; the request may have arrived', orbhook._period()
        from free f
        join orbhook.webhooks w on w.id = f.webhook_id
        where f.attempts > f.outcome_attempt
    )
    update orbhook.deliveries_open d
    set attempts = d.attempts + 1,
        lease_until = coalesce(f.send_at, p_now) + make_interval(secs => w.timeout_seconds::double precision + 10),
        claimed_by = p_sidecar
    from free f
    join orbhook.webhooks w on w.id = f.webhook_id
    where d.id = f.id
    returning d.id, d.attempts, d.outcome_attempt, d.webhook_id, d.event_id, d.is_test, f.send_at, d.lease_until,
              (w.timeout_seconds * 1000)::integer;
end
$$;
comment on function orbhook._lease(uuid, uuid[], timestamptz[], timestamptz, uuid[]) is
    'Leases those of the deliveries that are free to a sidecar; what its last holder never reported becomes an attempt of unknown outcome.';
