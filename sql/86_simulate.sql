-- Simulating: an answer that nobody gave, applied to one delivery. For tests inside begin … rollback.
--
-- The delivery is leased as claim leases it, and the answer goes through orbhook.settle: retries, pauses and switching
-- off are the real ones. A simulation that is committed stays visible: its attempt has the address "simulated", and
-- orbhook_audit reports a delivery that only a simulation delivered.
--
-- Lock order: webhook_state, then deliveries_open, as everywhere.

create function @extschema@.orbhook_simulate(delivery uuid, status integer, headers jsonb default '{}', body text default '')
returns table (delivery_status text, attempt integer, failures integer, due_in interval, reason text,
               webhook_active boolean, webhook_quiet_for interval)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    -- No sidecar has this id: ids of sidecars are random.
    v_simulator constant uuid := '00000000-0000-0000-0000-000000000000';
    v_delivery  orbhook.deliveries_open;
    v_webhook   orbhook.webhooks;
    v_event     orbhook.events;
    v_ends_as   text;
    v_reason    text;
begin
    if status not between 100 and 599 then
        raise exception using
            errcode = 'invalid_parameter_value', message = format('status must be between 100 and 599, or null for no answer, not %s', status);
    end if;
    if jsonb_typeof(headers) is distinct from 'object' then
        raise exception using
            errcode = 'invalid_parameter_value', message = 'headers must be a JSON object of names and values',
            hint = 'for example {"Retry-After": "120"}';
    end if;

    perform from orbhook.webhook_state s
    where s.webhook_id = (select o.webhook_id from orbhook.deliveries_open o where o.id = delivery)
    for update;
    select o.* into v_delivery from orbhook.deliveries_open o where o.id = delivery for update;
    if not found then
        raise exception using
            errcode = 'invalid_parameter_value', message = format('no pending delivery has id %s', coalesce(delivery::text, 'null')),
            hint = 'select delivery_id from orbhook.captured where status = ''pending''; orbhook_retry makes a finished one pending again';
    end if;
    if v_delivery.lease_until > clock_timestamp() then
        raise exception using
            errcode = 'object_in_use', message = 'a sidecar is sending this delivery',
            hint = 'simulate in the transaction that emits, before it commits';
    end if;
    select w.* into v_webhook from orbhook.webhooks w where w.id = v_delivery.webhook_id;
    select e.* into v_event from orbhook.events e where e.id = v_delivery.event_id;
    select u.ends_as, u.reason into v_ends_as, v_reason
    from orbhook._unsent_request(v_webhook, v_event.id::text, v_event.event_type, orbhook._rfc3339(v_event.occurred_at),
                                 v_delivery.is_test, v_event.payload::text) u;
    if v_webhook.id is null or v_event.id is null or v_ends_as is not null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('this delivery would not be sent: %s',
                             case when v_webhook.id is null then 'webhook deleted'
                                  when v_event.id is null then 'the event is no longer there'
                                  else v_reason end),
            detail = format('It would end as %s.', coalesce(v_ends_as, 'cancelled'));
    end if;

    update orbhook.deliveries_open o
    set attempts = o.attempts + 1, claimed_by = v_simulator,
        lease_until = clock_timestamp() + make_interval(secs => v_webhook.timeout_seconds::double precision + 10)
    where o.id = delivery;
    perform orbhook.settle(v_simulator, jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'delivery', delivery, 'attempt', v_delivery.attempts + 1,
        'outcome', case when status is null then 'unanswered' else 'answered' end,
        'started_ago_ms', 0, 'duration_ms', 0, 'address', 'simulated', 'status', status,
        'headers', (select coalesce(jsonb_object_agg(lower(h.key), h.value), '{}') from jsonb_each_text(headers) h),
        'body', left(body, 16384), 'body_cut', length(body) > 16384,
        'error_class', case when status is null then 'timeout_first_byte' end,
        'error', case when status is null then 'simulated: no answer' end))));

    return query
    select d.status, d.attempts, d.failures, d.due_at - clock_timestamp(), d.last_error, w.active,
           case when s.paused_until > clock_timestamp() then s.paused_until - clock_timestamp() end
    from orbhook.deliveries d
    join orbhook.webhooks w on w.id = d.webhook_id
    join orbhook.webhook_state s on s.webhook_id = w.id
    where d.id = delivery;
end
$$;
comment on function @extschema@.orbhook_simulate(uuid, integer, jsonb, text) is
'Applies an answer that nobody gave to a pending delivery, due or not, and says what follows: for tests inside begin … rollback. Call it again for the next try.
status: 100 to 599; null: no answer came. headers: for example {"Retry-After": "120"}, names in any case.
Returns the delivery''s status, attempts and failures, when it is tried again (due_in), why, and whether the webhook is still active or was asked to be quiet.
If it is committed, the attempt stays recorded with the address "simulated" and orbhook_audit reports it.
Errors: 22023 (no such pending delivery, bad status or headers, or why it would not be sent), 55006 (a sidecar is sending it).';
