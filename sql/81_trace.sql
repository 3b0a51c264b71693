-- The whole story of one event, in the order of time: emitted, left out, queued, tried, ended, and what comes next.
--
-- It shows no payload and no body of an answer, so that every reader may call it.

create function orbhook.event_trace(event_id uuid)
returns table (at timestamptz, what text, webhook text, attempt integer, detail text, webhook_id uuid, delivery_id uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_event uuid := event_trace.event_id;
begin
    if not exists (select from orbhook.events e where e.id = v_event)
       and not exists (select from orbhook.deliveries d where d.event_id = v_event) then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('no event has id %s', coalesce(v_event::text, 'null')),
            detail = 'Its transaction was rolled back or has not committed, or the event is no longer kept.',
            hint = 'the id is what orbhook_emit returned; the latest events: select id, event_type, created_at from orbhook.events order by id desc limit 20';
    end if;

    return query
    with event as (
        select e.* from orbhook.events e where e.id = v_event
    ), delivery as (
        select d.*, w.name as webhook, w.active, w.paused, w.inactive_reason, w.key_ids, s.paused_until, s.pause_reason,
               i.name as sidecar, coalesce(d.lease_until > statement_timestamp() and i.died_at is null, false) as leased
        from orbhook.deliveries d
        left join orbhook.webhooks w on w.id = d.webhook_id
        left join orbhook.webhook_state s on s.webhook_id = d.webhook_id
        left join orbhook.instances i on i.id = d.claimed_by
        where d.event_id = v_event
    ), story (at, rank, what, webhook, attempt, detail, webhook_id, delivery_id) as (
        select e.created_at, 0, 'emitted', null, null::integer,
               format('%s, which happened at %s', e.event_type, orbhook._rfc3339(e.occurred_at)), null::uuid, null::uuid
        from event e
        union all
        select e.created_at, 1, 'skipped', w.name, null,
               case when s.entry ? 'more' then format('and %s more webhooks', s.entry ->> 'more') else s.entry ->> 'reason' end,
               (s.entry ->> 'webhook')::uuid, null
        from event e
        cross join lateral jsonb_array_elements(e.skipped) as s (entry)
        left join orbhook.webhooks w on w.id = (s.entry ->> 'webhook')::uuid
        union all
        select d.created_at, 2, 'queued', d.webhook, null, case when d.is_test then 'as a test' end, d.webhook_id, d.id
        from delivery d
        union all
        select t.started_at, 3,
               case when t.error_class is null then 'answered'
                    when t.error_class = 'unknown' then 'outcome unknown'
                    when t.late then 'answered too late'
                    else 'attempt failed' end,
               d.webhook, t.number,
               concat_ws(', ',
                   coalesce(t.error, 'answered ' || t.status_code, t.error_class),
                   'after ' || t.duration_ms || ' ms',
                   'sent by ' || coalesce(i.name, t.sidecar::text)),
               d.webhook_id, d.id
        from delivery d
        join orbhook.attempts t on t.delivery_id = d.id
        left join orbhook.instances i on i.id = t.sidecar
        union all
        select d.finished_at, 4, d.status, d.webhook, null,
               coalesce(d.last_error, 'answered ' || d.last_status_code), d.webhook_id, d.id
        from delivery d
        where d.status <> 'pending'
        union all
        select case when d.leased then statement_timestamp() else greatest(d.due_at, d.paused_until) end, 5,
               case when d.leased then 'under way' else 'due' end,
               d.webhook, d.attempts + case when d.leased then 0 else 1 end,
               case when d.leased then 'at ' || coalesce(d.sidecar, d.claimed_by::text)
                    when d.webhook is null then 'never sent: the webhook was deleted'
                    when d.is_test then null
                    when not d.active then 'waits until the webhook is active again' || coalesce('; switched off: ' || d.inactive_reason, '')
                    when d.paused then 'waits until the webhook is resumed'
                    when d.due_at = orbhook._held() then d.last_error
                    when array_position(d.key_ids, 'unreadable') is not null then
                        'waits until its secrets are set anew: one of them cannot be opened'
                    when d.key_ids is not null
                         and not exists (select from orbhook.instances k
                                         where k.stopped_at is null and k.died_at is null and d.key_ids <@ k.key_ids) then
                        'waits for a sidecar with the key that its secrets are sealed with: ' || array_to_string(d.key_ids, ', ')
                    when d.paused_until > d.due_at then 'the receiver asked for quiet' || coalesce(': ' || d.pause_reason, '')
               end,
               d.webhook_id, d.id
        from delivery d
        where d.status = 'pending'
    )
    select s.at, s.what, s.webhook, s.attempt, s.detail, s.webhook_id, s.delivery_id
    from story s
    order by s.at, s.rank, s.delivery_id, s.attempt;
end
$$;
comment on function orbhook.event_trace(uuid) is
'The whole story of an event in the order of time. what: emitted, skipped (subscribed but left out: inactive or filtered), queued, answered, attempt failed, answered too late, outcome unknown, delivered, failed, cancelled, under way, due (the next try; may lie in the future).
Errors: 22023 (no such event).';
