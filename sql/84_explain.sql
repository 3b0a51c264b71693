-- Explaining: who would get an event, who would not, and exactly why; and what the transaction that is open now will
-- cause. Nothing here writes or sends.
--
-- orbhook_explain says in words what orbhook_emit and orbhook.claim decide. Where it can, it asks the same functions
-- (_matches, _render_delivery); that the rest agrees is proved with random webhooks and events (tests/it/explain.rs).
--
-- Secrets are masked: only their names are read.

create function orbhook._check_event(p_event_type text, p_payload jsonb) returns void
language c volatile
as 'MODULE_PATHNAME', 'check_event_wrapper';
comment on function orbhook._check_event(text, jsonb) is
    'Raises what orbhook_emit would raise about these arguments, except that the type is unknown.';

create function orbhook._is_own_transaction(p_xid xid) returns boolean
language c volatile
as 'MODULE_PATHNAME', 'is_own_transaction_wrapper';
comment on function orbhook._is_own_transaction(xid) is
    'Whether that is the transaction open now, or one of its savepoints that was not rolled back.';

create function orbhook._unsent_request(
    p_webhook orbhook.webhooks, p_event text, p_event_type text, p_occurred_at text, p_is_test boolean, p_payload text,
    out ends_as text, out reason text, out method text, out url text, out headers jsonb, out body text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_names text[];
    v_parts text[];
begin
    select array_agg(s.name order by s.name) into v_names
    from orbhook.webhook_secrets s
    where s.webhook_id = p_webhook.id and (s.expires_at is null or s.expires_at > clock_timestamp());
    if v_names is null or not 'endpoint' = any (v_names) then
        ends_as := 'failed';
        reason := 'the webhook has no endpoint; set one with orbhook_update_webhook';
        return;
    end if;
    v_parts := orbhook._render_delivery(
        p_webhook.provider_type, p_webhook.target, p_webhook.provider_config::text, v_names,
        p_event, p_event_type, p_occurred_at, p_is_test, p_payload);
    ends_as := v_parts[3];
    reason := v_parts[4];
    if ends_as is null then
        method := 'POST';
        url := p_webhook.endpoint_scheme || '://' || p_webhook.endpoint_host || '/********';
        select jsonb_object_agg(h ->> 'name', (h ->> 'prefix') || case when h ->> 'secret' is null then '' else '********' end)
        into headers
        from jsonb_array_elements(v_parts[1]::jsonb) h;
        body := v_parts[2];
    end if;
end
$$;
comment on function orbhook._unsent_request(orbhook.webhooks, text, text, text, boolean, text) is
    'The request claim would make, secrets masked; or how the delivery would end without one, and why.';

create function @extschema@.orbhook_explain(event_type text, payload jsonb)
returns table (webhook_id uuid, webhook text, outcome text, reason text, send_at timestamptz,
               method text, url text, headers jsonb, body text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_type    text := orbhook_explain.event_type;
    v_payload jsonb := orbhook_explain.payload;
    v_now     timestamptz := clock_timestamp();
    v_stamped text;
begin
    perform orbhook._check_event(v_type, v_payload);
    if not exists (select from orbhook.event_types t where t.name = v_type) then
        perform orbhook._raise_unknown_event_type('', v_type);
    end if;
    v_stamped := (jsonb_build_object('eventType', v_type, 'timestamp', orbhook._rfc3339(v_now)) || v_payload)::text;

    return query
    select w.id, w.name,
           case when s.pattern is null then 'not subscribed'
                when not s.active or not f.passes then 'skipped'
                when r.ends_as is not null then r.ends_as
                when t.send_at > v_now + make_interval(secs => w.max_age_seconds::double precision) then 'cancelled'
                else 'sent' end,
           case when s.pattern is null then 'subscribes to ' || array_to_string(w.subscribed_events, ', ')
                when not s.active then 'inactive: ' || coalesce(w.inactive_reason, 'switched off by hand')
                when not f.passes then
                    'filtered: ' || s.filter::text || ' gives '
                    || coalesce(jsonb_path_query_first(v_payload, s.filter, '{}', true)::text, 'nothing')
                when r.ends_as is not null then r.reason
                when t.send_at > v_now + make_interval(secs => w.max_age_seconds::double precision) then
                    'older than maxAgeSeconds before its turn comes'
                when w.paused then 'subscribes to ' || s.pattern || '; paused, waits for orbhook_resume'
                when t.send_at = q.paused_until then
                    'subscribes to ' || s.pattern || '; the receiver asked for quiet' || coalesce(': ' || q.pause_reason, '')
                when t.send_at > v_now then 'subscribes to ' || s.pattern || '; paced by rateLimit, what is queued goes first'
                else 'subscribes to ' || s.pattern end,
           case when r.ends_as is null then t.send_at end,
           r.method, r.url, r.headers, r.body
    from orbhook.webhooks w
    left join orbhook.webhook_state q on q.webhook_id = w.id
    -- Patterns of one webhook never overlap: at most one fits.
    left join orbhook.subscriptions s on s.webhook_id = w.id and orbhook._is_subscribed(array[s.pattern], v_type)
    left join lateral (
        -- The payload as the caller gave it: a filter does not see what an emit adds.
        select s.filter is null or orbhook._matches(v_payload, s.filter) as passes) f on true
    left join lateral (
        select u.*
        from orbhook._unsent_request(
            w, '00000000-0000-7000-8000-000000000000', v_type,
            coalesce(orbhook._occurred_at(v_payload::text), orbhook._rfc3339(v_now)), false, v_stamped) u
        where s.active and f.passes) r on true
    left join lateral (
        select greatest(v_now, q.paused_until, q.next_send_at)
               + make_interval(secs => coalesce(
                     (select count(*) from orbhook.deliveries_open o where o.webhook_id = w.id and o.due_at <= v_now)
                     * orbhook._spacing_seconds(w.rate_limit_per_second), 0)) as send_at
        where r.method is not null and not w.paused) t on true
    order by w.name, w.id;
end
$$;
comment on function @extschema@.orbhook_explain(text, jsonb) is
'What emitting this event now would do, for every webhook; nothing is written or sent. Sees what this transaction has changed.
outcome: sent; skipped (subscribed, but inactive or filtered); not subscribed; cancelled or failed (how the delivery would end without a request). reason: exactly why.
send_at: the earliest time, from pauses, rateLimit and what is queued already; null: not before somebody resumes it, or never.
method, url, headers, body: the request, secrets masked; signature headers are added when it is sent.
Errors: as orbhook_emit, 22023 and 54000.';

create function orbhook._captured()
returns table (event_id uuid, event_type text, payload jsonb, skipped jsonb, delivery_id uuid, webhook_id uuid, webhook text,
               status text, due_at timestamptz, reason text, method text, url text, headers jsonb, body text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with mine as (
        select e.id, d.id as delivery_id
        from (select n.id from orbhook.events n
              where n.id >= orbhook._first_id_at(now()) and orbhook._is_own_transaction(n.xmin)) e
        left join orbhook.deliveries d on d.event_id = e.id
        union
        -- An earlier event that this transaction sends again.
        select o.event_id, o.id from orbhook.deliveries_open o where orbhook._is_own_transaction(o.xmin)
    )
    select e.id, e.event_type, e.payload, e.skipped, d.id, d.webhook_id, w.name,
           d.status, d.due_at, coalesce(r.reason, d.last_error), r.method, r.url, r.headers, r.body
    from mine m
    join orbhook.events e on e.id = m.id
    left join orbhook.deliveries d on d.id = m.delivery_id
    left join orbhook.webhooks w on w.id = d.webhook_id
    left join lateral (
        select u.*
        from orbhook._unsent_request(
            w, e.id::text, e.event_type, orbhook._rfc3339(e.occurred_at), d.is_test, e.payload::text) u
        where w.id is not null) r on true
    order by e.id, d.id;
end
$$;
comment on function orbhook._captured() is 'What orbhook.captured shows.';

create view orbhook.captured as select * from orbhook._captured();
comment on view orbhook.captured is
    'Inside a transaction: the events it has emitted and the requests they will cause once it commits, secrets masked. One row for each delivery; an event without one has a row of its own. For tests: begin; …; select * from orbhook.captured; rollback.';
comment on column orbhook.captured.event_id is 'The event.';
comment on column orbhook.captured.event_type is 'Its type.';
comment on column orbhook.captured.payload is 'Its payload as recorded.';
comment on column orbhook.captured.skipped is 'Subscribed webhooks left out and why, as in orbhook.events.';
comment on column orbhook.captured.delivery_id is 'The delivery, for orbhook_simulate; null when nobody gets the event.';
comment on column orbhook.captured.webhook_id is 'The webhook that gets it.';
comment on column orbhook.captured.webhook is 'Its name.';
comment on column orbhook.captured.status is 'pending, or what orbhook_simulate has made of it.';
comment on column orbhook.captured.due_at is 'When it is due; null once finished.';
comment on column orbhook.captured.reason is 'Why no request can be made, or what went wrong last.';
comment on column orbhook.captured.method is 'POST; null when no request can be made.';
comment on column orbhook.captured.url is 'Scheme and host; the rest is a secret.';
comment on column orbhook.captured.headers is 'Object of header names and values, secrets masked.';
comment on column orbhook.captured.body is 'The bytes that would be sent.';
