-- The test call: a sample event for one webhook alone.
--
-- It is marked as a test in the body, goes out whatever the webhook subscribes to and even when it is paused or
-- switched off, and is never retried.

create function @extschema@.orbhook_test_webhook(id uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_webhook  orbhook.webhooks := orbhook._webhook(id);
    v_now      timestamptz := clock_timestamp();
    v_type     text;
    v_event    uuid := orbhook._new_id();
    v_delivery uuid := orbhook._new_id();
begin
    -- A type the webhook subscribes to, so that the sample is one its receiver has a use for.
    select t.name into v_type
    from orbhook.event_types t
    where t.built_in and orbhook._is_subscribed(v_webhook.subscribed_events, t.name)
    order by t.name <> 'USER_CREATED', t.name
    limit 1;
    v_type := coalesce(v_type, 'USER_CREATED');

    insert into orbhook.events (id, event_type, payload, occurred_at, created_at)
    values (v_event, v_type, orbhook._sample_payload(v_type, v_now), v_now, v_now);
    insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, is_test, created_at)
    values (v_delivery, v_event, v_webhook.id, v_now, true, v_now);
    perform orbhook._arm_doorbell();
    return v_delivery;
end
$$;
comment on function @extschema@.orbhook_test_webhook(uuid) is
    'Queues a sample event to this webhook alone, marked as a test, whatever it subscribes to and even when it is paused; never retried. Returns the delivery''s id. Errors: 22023.';

create function orbhook._is_subscribed(p_patterns text[], p_type text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select exists (select from unnest(p_patterns) as p (pattern)
                   where p.pattern = p_type
                      or (right(p.pattern, 1) = '*' and starts_with(p_type, rtrim(p.pattern, '*'))))
$$;
comment on function orbhook._is_subscribed(text[], text) is 'Whether a type is covered by a list of types and patterns.';

create function orbhook._sample_payload(p_type text, p_now timestamptz) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
               'eventType', p_type,
               'timestamp', orbhook._rfc3339(p_now),
               'test', true,
               'userId', 63396,
               'email', 'user@example.com',
               'username', 'user@example.com',
               'profile', jsonb_build_object('firstName', 'John', 'lastName', 'Doe', 'country', 'US', 'phone', '+12025550123'),
               'subscription', jsonb_build_object(
                   'groupName', '3 Month', 'groupId', 3, 'multiLoginCount', 5,
                   'expiresAt', orbhook._rfc3339(p_now + interval '90 days'), 'isTrialPeriod', false),
               'active', true,
               'autoRenew', false)
           || case split_part(p_type, '_', 1)
                  when 'PAYMENT' then '{"payment": {"id": "pay_0001", "amount": 29.99, "currency": "USD", "status": "paid"}}'
                  when 'DEVICE' then '{"device": {"id": "dev_0001", "name": "Laptop", "os": "Linux"}}'
                  when 'SECURITY' then '{"security": {"ip": "203.0.113.7", "reason": "wrong password"}}'
                  when 'RESELLER' then '{"reseller": {"id": 1, "level": "OWNER", "discountPercent": 100.0, "credit": 600.0}}'
                  when 'SYSTEM' then '{"system": {"server": "node-1", "message": "planned maintenance"}}'
                  when 'USAGE' then '{"usage": {"used": 92, "limit": 100, "unit": "GB"}}'
                  else '{}'
              end::jsonb
$$;
comment on function orbhook._sample_payload(text, timestamptz) is 'The product document''s example event, of a given type and time.';

create function orbhook.start_test(p_webhook uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_delivery uuid;
begin
    -- orbhook_test_webhook lives in whatever schema the extension was created in.
    execute format('select %I.orbhook_test_webhook($1)', (
        select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'orbhook'))
    into v_delivery using p_webhook;
    return v_delivery;
end
$$;
comment on function orbhook.start_test(uuid) is 'orbhook_test_webhook, for the sidecar''s GraphQL endpoint.';

create function orbhook.test_result(
    p_delivery uuid, out finished boolean, out delivered boolean, out status_code integer, out error text, out wait_seconds integer)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    select d.status <> 'pending', d.status = 'delivered', d.last_status_code, d.last_error,
           ceil(coalesce(w.timeout_seconds, 15))::integer + 5
    into finished, delivered, status_code, error, wait_seconds
    from orbhook.deliveries d
    left join orbhook.webhooks w on w.id = d.webhook_id
    where d.id = p_delivery and d.is_test;
end
$$;
comment on function orbhook.test_result(uuid) is
    'What came of a test delivery. wait_seconds: how long it makes sense to wait for it (the timeout and 5 s). All null: no such test.';
