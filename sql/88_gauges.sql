-- Gauges: how things stand now, in a bounded look, for /metrics (the sidecar's role) and for orbhook top (readers).
--
-- What must stay true
--   * a look stays cheap however long the queues are. orbhook.gauges reads the front of each webhook's queue and counts
--     at most 10,000 rows each for at most p_webhooks_max webhooks, and at most a million for the total;
--   * the number of rows is bounded by p_webhooks_max, so that a metric's labels are;
--   * no secret, no payload, no body of an answer.

create function orbhook.gauges(p_webhooks_max integer)
returns table (gauge text, webhook_id uuid, webhook text, state text, value double precision)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_now  timestamptz := clock_timestamp();
    v_late jsonb;
begin
    -- One step from each webhook to the next along the index (webhook_id, due_at); then the first of its queue that is
    -- due and not under way. What is under way lies in front of it, at most maxInFlight rows.
    with recursive queued (webhook_id) as (
        (select d.webhook_id from orbhook.deliveries_open d order by d.webhook_id limit 1)
        union all
        select (select d.webhook_id from orbhook.deliveries_open d
                where d.webhook_id > q.webhook_id order by d.webhook_id limit 1)
        from queued q
        where q.webhook_id is not null
    ), waiting as (
        select q.webhook_id, w.name, f.due_at
        from queued q
        join orbhook.webhooks w on w.id = q.webhook_id
        left join lateral (
            select d.due_at from orbhook.deliveries_open d
            where w.active and not w.paused and d.webhook_id = q.webhook_id and d.due_at <= v_now and (d.lease_until is null or d.lease_until <= v_now)
            order by d.due_at limit 1) f on true
        order by f.due_at nulls last, q.webhook_id
        limit greatest(least(p_webhooks_max, 1000), 0)
    )
    select jsonb_agg(jsonb_build_object('id', t.webhook_id, 'name', t.name, 'due_at', t.due_at)) into v_late
    from waiting t;

    return query
    select 'webhook_pending', t.id, t.name, null::text,
           (select count(*) from (select from orbhook.deliveries_open d where d.webhook_id = t.id limit 10000) d)::double precision
    from jsonb_to_recordset(v_late) as t (id uuid, name text)
    union all
    select 'webhook_oldest_waiting_seconds', t.id, t.name, null,
           coalesce(greatest(extract(epoch from v_now - t.due_at), 0), 0)::double precision
    from jsonb_to_recordset(v_late) as t (id uuid, name text, due_at timestamptz);

    return query
    select 'pending', null::uuid, null::text, null::text,
           (select count(*) from (select from orbhook.deliveries_open limit 1000000) d)::double precision
    union all
    select 'webhooks', null, null, c.state, count(k.state)::double precision
    from unnest(array['ok', 'failing', 'quiet', 'paused', 'inactive']) as c (state)
    left join (
        select case when not w.active then 'inactive'
                    when w.paused then 'paused'
                    when s.paused_until > v_now then 'quiet'
                    when s.failing_since is not null then 'failing'
                    else 'ok' end as state
        from orbhook.webhooks w
        left join orbhook.webhook_state s on s.webhook_id = w.id) k on k.state = c.state
    group by c.state
    union all
    select 'sidecars', null, null, null, count(*)::double precision
    from orbhook.instances i
    where i.stopped_at is null and i.died_at is null;
end
$$;
comment on function orbhook.gauges(integer) is
'How things stand, for /metrics. gauge: pending (deliveries, counted up to 1,000,000); webhooks (for each state: ok, failing, quiet, paused, inactive); sidecars; and for the p_webhooks_max webhooks (0 to 1000) that have waited longest: webhook_pending (counted up to 10,000), webhook_oldest_waiting_seconds (0: none waits, or the webhook is paused or inactive).';

create function orbhook.top(p_window_seconds integer default 30, p_webhooks_max integer default 500)
returns table (webhook_id uuid, webhook text, state text, reason text, sent bigint, failed bigint, p50_ms integer, p99_ms integer,
               in_flight bigint, pending bigint, oldest_waiting_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if p_window_seconds is null or p_window_seconds not between 1 and 3600
       or p_webhooks_max is null or p_webhooks_max not between 1 and 1000 then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'p_window_seconds must be 1 to 3600 and p_webhooks_max 1 to 1000',
            hint = 'select * from orbhook.top(30, 500)';
    end if;

    return query
    with flow as materialized (
        select a.webhook_id, count(*) as sent, count(a.error_class) as failed,
               percentile_disc(0.5) within group (order by a.duration_ms) filter (where r.timed) as p50_ms,
               percentile_disc(0.99) within group (order by a.duration_ms) filter (where r.timed) as p99_ms
        from orbhook.attempts a
        cross join lateral (select a.status_code is not null or a.error_class like 'timeout%' as timed) r
        where a.started_at > statement_timestamp() - make_interval(secs => p_window_seconds)
          and (a.period >= statement_timestamp()::date - 13 or a.period = '1970-01-01')
          and a.error_class is distinct from 'render'
        group by grouping sets ((), (a.webhook_id))
    ), health as materialized (
        -- Only columns that need no attempts: the planner leaves the counting out.
        select h.webhook_id, h.webhook, h.state, h.reason, h.in_flight, h.backlog, h.oldest_waiting
        from orbhook.webhook_health h
    ), running as (
        select count(*) as sidecars, left(string_agg(s.sidecar, ', ' order by s.started_at), 200) as names
        from orbhook.sidecars s
        where s.state in ('running', 'assumed')
    )
    select t.webhook_id, t.webhook, t.state, t.reason, t.sent, t.failed, t.p50_ms, t.p99_ms, t.in_flight, t.pending, t.oldest
    from (
        select null::uuid as webhook_id, null::text as webhook,
               case when r.sidecars = 0 then 'stopped' else 'running' end as state,
               case when r.sidecars = 0 then 'no sidecar is running; start one with: orbhook run'
                    else format('%s sidecar%s: %s', r.sidecars, case when r.sidecars > 1 then 's' end, r.names) end as reason,
               f.sent, f.failed, f.p50_ms, f.p99_ms, h.in_flight, h.pending, h.oldest
        from running r
        cross join (select coalesce(sum(h.in_flight), 0)::bigint as in_flight, coalesce(sum(h.backlog), 0)::bigint as pending,
                           extract(epoch from max(h.oldest_waiting))::double precision as oldest
                    from health h) h
        join flow f on f.webhook_id is null
        union all
        select h.webhook_id, h.webhook, h.state, h.reason, coalesce(f.sent, 0), coalesce(f.failed, 0), f.p50_ms, f.p99_ms,
               h.in_flight, h.backlog, extract(epoch from h.oldest_waiting)::double precision
        from health h
        left join flow f on f.webhook_id = h.webhook_id) t
    order by t.webhook_id is not null, t.sent desc, t.pending desc, t.state = 'ok', t.webhook
    limit p_webhooks_max + 1;
end
$$;
comment on function orbhook.top(integer, integer) is
'What flows now, for orbhook top: first a row for all webhooks together (webhook_id null; state: running or stopped; reason: the sidecars), then one for each webhook, the busiest first, p_webhooks_max (1 to 1000) of them.
sent, failed, p50_ms, p99_ms: requests that began within the last p_window_seconds (1 to 3600) and are over. state, reason, in_flight, pending: as in orbhook.webhook_health. oldest_waiting_seconds: null when none waits.
Errors: 22023 (out of range).';
