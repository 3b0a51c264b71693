-- The audit: what must be true of the ledger, asked of the ledger. A healthy system has no violations.
--
-- What it proves, from the rows alone
--   * every try belongs to a delivery, of the same webhook, and what counts as delivered was answered;
--   * no delivery is both pending and finished, and none exists twice for one event and webhook;
--   * what is due is being worked on: the oldest due delivery of a webhook that may be sent to has been due for more
--     than a minute, and nothing of that webhook is under way or was tried within the last minute;
--   * webhooks have their state, their endpoint and exactly the subscriptions their configuration asks for.
--
-- What it can prove only in part: that an event has its deliveries. An emit reads who subscribes, and afterwards only
-- the configuration of today is known. So an event is judged against a webhook only if that webhook has not changed since
-- an hour before the event: the hour covers a change that was made, but not yet committed, when the event was emitted,
-- and a transaction that emits under an older snapshot. Longer ones are the one way to a false alarm here.

create function orbhook._stamp_webhook() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := clock_timestamp();
    return new;
end
$$;
comment on function orbhook._stamp_webhook() is
    'Trigger: updated_at is true for a plain UPDATE as well. The audit relies on it.';

create trigger stamp_updated_at before update on orbhook.webhooks
    for each row when (old.updated_at = new.updated_at) execute function orbhook._stamp_webhook();

create function @extschema@.orbhook_audit(since timestamptz)
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
