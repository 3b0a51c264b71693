-- Health: when orbhook switches a webhook off, and how it tells.
--
-- A webhook is switched off when its receiver says that it is gone for good (410, a revoked hook), or when it has been
-- tried without a success for orbhook.switch_off_after_days (5; 0 = never). What is queued stays pending until a person
-- switches it on again; new events are skipped and say so.
--
-- Both, and every delivery that fails for good, are events themselves: WEBHOOK_DISABLED and DELIVERY_FAILED, to which
-- other webhooks can subscribe. Against loops and floods: at most one of a kind for a webhook in an hour, never to the
-- webhook it is about, and none about deliveries of these two types.
--
-- Only days of trying count: a span of more than a day between two failures, in which there was nothing to send, moves
-- failing_since on.
--
-- Lock order: the caller (settle) holds the webhook_state row; then webhooks.

create function orbhook._switch_off(p_webhook uuid, p_reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    update orbhook.webhooks w
    set active = false, inactive_reason = left(p_reason, 2000), updated_at = clock_timestamp()
    where w.id = p_webhook and w.active;
    if found then
        perform orbhook._report('WEBHOOK_DISABLED', p_webhook, jsonb_build_object('reason', left(p_reason, 2000)));
    end if;
end
$$;
comment on function orbhook._switch_off(uuid, text) is 'Deactivates a webhook, with the reason, and reports it.';

create function orbhook._switch_off_failing(p_webhooks uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    -- Null until the library is loaded in this session; then its default is 5.
    v_days integer := coalesce(nullif(current_setting('orbhook.switch_off_after_days', true), '')::integer, 5);
begin
    if v_days = 0 then
        return;
    end if;
    -- A change of the configuration, switching it on among them, begins the count anew.
    perform orbhook._switch_off(s.webhook_id, format(
                'no success since %s (%s failed attempts); what is queued waits. When the receiver is well again: '
                'select orbhook_update_webhook(%L, ''{"active": true}'')',
                orbhook._rfc3339(date_trunc('second', s.failing_since)), s.consecutive_failures, s.webhook_id))
    from orbhook.webhook_state s
    join orbhook.webhooks w on w.id = s.webhook_id
    where s.webhook_id = any (p_webhooks) and w.active
      and greatest(s.failing_since, w.updated_at) < clock_timestamp() - make_interval(days => v_days);
end
$$;
comment on function orbhook._switch_off_failing(uuid[]) is 'Switches off those of the webhooks that have had no success for too long.';

create function orbhook._report_failures(p_endings orbhook._ending[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    perform orbhook._report('DELIVERY_FAILED', f.webhook_id, jsonb_build_object(
                'delivery', f.id, 'event', f.event_id, 'failedEventType', f.event_type, 'attempts', f.attempts,
                'statusCode', f.last_status_code, 'reason', f.last_error))
    from (select distinct on (d.webhook_id) d.webhook_id, d.id, d.event_id, t.event_type, d.attempts, e.last_status_code, e.last_error
          from unnest(p_endings) e
          join orbhook.deliveries_open d on d.id = e.delivery_id
          join orbhook.events t on t.id = d.event_id
          where e.status = 'failed' and not d.is_test and t.event_type not in ('WEBHOOK_DISABLED', 'DELIVERY_FAILED')
          order by d.webhook_id, d.id) f;
end
$$;
comment on function orbhook._report_failures(orbhook._ending[]) is
    'Emits DELIVERY_FAILED for those endings that are failures, one for each webhook; called before they become history.';

create function orbhook._report(p_type text, p_webhook uuid, p_details jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_event uuid := orbhook._new_id();
    v_name  text;
    v_body  jsonb;
begin
    update orbhook.webhook_state s
    set reported_disabled_at = case when p_type = 'WEBHOOK_DISABLED' then v_now else s.reported_disabled_at end,
        reported_failed_at = case when p_type = 'DELIVERY_FAILED' then v_now else s.reported_failed_at end
    where s.webhook_id = p_webhook
      and case p_type when 'WEBHOOK_DISABLED' then s.reported_disabled_at else s.reported_failed_at end
          < v_now - interval '1 hour';
    if not found then
        return;
    end if;
    select w.name into v_name from orbhook.webhooks w where w.id = p_webhook;

    v_body := jsonb_build_object('eventType', p_type, 'timestamp', orbhook._rfc3339(v_now),
                                 'webhook', jsonb_build_object('id', p_webhook, 'name', v_name) || p_details);
    with subscribed as (
        select s.webhook_id,
               case when not s.active then 'inactive'
                    when s.filter is not null and not orbhook._matches(v_body, s.filter) then 'filtered' end as skipped
        from orbhook.subscriptions s
        where s.pattern in (p_type, split_part(p_type, '_', 1) || '_*', '*') and s.webhook_id <> p_webhook
    ), event as (
        insert into orbhook.events (id, event_type, payload, occurred_at, created_at, skipped)
        select v_event, p_type, v_body, v_now, v_now,
               (select jsonb_agg(jsonb_build_object('webhook', f.webhook_id, 'reason', f.skipped))
                from (select * from subscribed s where s.skipped is not null order by s.webhook_id limit 100) f)
    )
    insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, created_at)
    select orbhook._new_id(), v_event, s.webhook_id, v_now, v_now
    from subscribed s
    where s.skipped is null;
    perform orbhook._arm_doorbell();
end
$$;
comment on function orbhook._report(text, uuid, jsonb) is
    'Emits WEBHOOK_DISABLED or DELIVERY_FAILED about a webhook to the others, at most once an hour.';
