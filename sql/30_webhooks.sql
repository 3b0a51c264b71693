-- Webhooks: the product document's configuration object goes in as it is printed there, and comes back from the view
-- orbhook.webhook_configs with its secrets masked.
--
-- orbhook._validate_webhook (Rust, pure) reads the object and returns the columns it sets, so that every rule about a
-- key has one home. Secrets are moved to webhook_secrets on the way in, and sealed there (28_seal). A trigger keeps the derived tables
-- subscriptions and webhook_state in step, for the calls below and for plain UPDATE alike; both derived tables are
-- left out of dumps, so the trigger never writes to a table that a restore fills.

create function orbhook._validate_webhook(p_config text, p_current text) returns text
language c volatile
as 'MODULE_PATHNAME', 'validate_webhook_wrapper';
comment on function orbhook._validate_webhook(text, text) is
    'The columns and secrets a configuration object sets, as JSON text. p_current null: a new webhook. SQLSTATE 22023 names the key and what is wrong with it.';

create function orbhook._new_id() returns uuid
language c volatile
as 'MODULE_PATHNAME', 'new_id_wrapper';
comment on function orbhook._new_id() is 'A UUIDv7, increasing within a session.';

create function orbhook._new_signing_secret() returns text
language c volatile
as 'MODULE_PATHNAME', 'new_signing_secret_wrapper';
comment on function orbhook._new_signing_secret() is 'whsec_ and 32 random bytes in base64 (Standard Webhooks).';

create function orbhook._arm_doorbell() returns void
language c volatile
as 'MODULE_PATHNAME', 'arm_doorbell_wrapper';
comment on function orbhook._arm_doorbell() is 'Something becomes due with this transaction: wake a sidecar when it commits.';

create function orbhook._webhook(p_id uuid) returns orbhook.webhooks
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_webhook orbhook.webhooks;
begin
    select * into v_webhook from orbhook.webhooks w where w.id = p_id;
    if not found then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('no webhook has id %s', coalesce(p_id::text, 'null')),
            hint = 'select id, name from orbhook.webhooks';
    end if;
    return v_webhook;
end
$$;
comment on function orbhook._webhook(uuid) is 'The webhook of that id; SQLSTATE 22023 if there is none.';

create function orbhook._sync_webhook() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        delete from orbhook.subscriptions s where s.webhook_id = old.id;
    end if;
    if tg_op = 'DELETE' then
        delete from orbhook.webhook_state s where s.webhook_id = old.id;
        return null;
    end if;
    insert into orbhook.webhook_state (webhook_id) values (new.id) on conflict (webhook_id) do nothing;
    -- Only patterns that no other pattern of the same webhook covers: an event then matches each webhook at most once.
    insert into orbhook.subscriptions (pattern, webhook_id, active, filter)
    select p.pattern, new.id, new.active, new.filter
    from (select distinct u.pattern from unnest(new.subscribed_events) as u (pattern)) p
    where not exists (
        select from unnest(new.subscribed_events) as wider (pattern)
        where wider.pattern <> p.pattern
          and right(wider.pattern, 1) = '*'
          and starts_with(p.pattern, rtrim(wider.pattern, '*')));
    return null;
end
$$;
comment on function orbhook._sync_webhook() is 'Trigger: keeps subscriptions and webhook_state in step with webhooks.';

create trigger sync_derived_insert_delete after insert or delete on orbhook.webhooks
    for each row execute function orbhook._sync_webhook();
create trigger sync_derived_update after update of id, active, subscribed_events, filter on orbhook.webhooks
    for each row execute function orbhook._sync_webhook();
-- A restore may switch triggers off (pg_restore --disable-triggers): the derived rows are needed all the same.
alter table orbhook.webhooks enable always trigger sync_derived_insert_delete;
alter table orbhook.webhooks enable always trigger sync_derived_update;

create function orbhook._apply_webhook(p_id uuid, p_set jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_unknown text;
    v_webhook orbhook.webhooks := orbhook._webhook(p_id);
begin
    select e.name into v_unknown
    from jsonb_array_elements_text(p_set -> 'subscribed_events') as e (name)
    where right(e.name, 1) <> '*'
      and not exists (select from orbhook.event_types t where t.name = e.name)
    limit 1;
    if found then
        perform orbhook._raise_unknown_event_type('subscribedEvents: ', v_unknown);
    end if;

    begin
        v_webhook := jsonb_populate_record(v_webhook, p_set - 'secrets');
    exception when syntax_error or data_exception then
        -- Everything but the jsonpath has been checked by _validate_webhook.
        raise exception using
            errcode = 'invalid_parameter_value',
            message = 'filter: not a valid jsonpath',
            detail = sqlerrm,
            hint = 'for example $.payment.amount ? (@ > 100); see the PostgreSQL manual, "The SQL/JSON Path Language"';
    end;

    perform orbhook._check_sealed(coalesce(p_set -> 'secrets', '{}'));
    insert into orbhook.webhook_secrets (webhook_id, name, value)
    select p_id, s.key, s.value
    from jsonb_each_text(coalesce(p_set -> 'secrets', '{}')) as s
    where s.value is not null
    on conflict (webhook_id, name) do update set value = excluded.value, expires_at = null;

    delete from orbhook.webhook_secrets s
    where s.webhook_id = p_id
      and (p_set -> 'secrets' -> s.name) = 'null';

    update orbhook.webhooks w
    set name = v_webhook.name,
        provider_type = v_webhook.provider_type,
        target = v_webhook.target,
        endpoint_scheme = v_webhook.endpoint_scheme,
        endpoint_host = v_webhook.endpoint_host,
        endpoint_fingerprint = coalesce(
            left(encode(sha256(convert_to(p_set -> 'secrets' ->> 'endpoint', 'UTF8')), 'hex'), 12), w.endpoint_fingerprint),
        active = v_webhook.active,
        inactive_reason = case when v_webhook.active then null else w.inactive_reason end,
        subscribed_events = v_webhook.subscribed_events,
        provider_config = v_webhook.provider_config,
        filter = v_webhook.filter,
        max_retries = v_webhook.max_retries,
        retry_delay = v_webhook.retry_delay,
        rate_limit_per_second = v_webhook.rate_limit_per_second,
        timeout_seconds = v_webhook.timeout_seconds,
        max_in_flight = v_webhook.max_in_flight,
        max_age_seconds = v_webhook.max_age_seconds,
        updated_at = clock_timestamp()
    where w.id = p_id;

    perform orbhook._arm_doorbell();
end
$$;
comment on function orbhook._apply_webhook(uuid, jsonb) is
    'Writes what _validate_webhook returned. SQLSTATE 22023 for an unknown event type or a broken filter.';

create function orbhook._raise_unknown_event_type(p_prefix text, p_name text) returns void
language c volatile
as 'MODULE_PATHNAME', 'raise_unknown_event_type_wrapper';
comment on function orbhook._raise_unknown_event_type(text, text) is
    'Raises SQLSTATE 22023, naming the type; the hint names the nearest known ones and how to register another.';

create function @extschema@.orbhook_create_webhook(config jsonb) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_id  uuid := orbhook._new_id();
    v_set jsonb := orbhook._validate_webhook(config::text, null)::jsonb;
begin
    if not v_set -> 'secrets' ? 'signing' then
        v_set := jsonb_set(v_set, '{secrets,signing}', to_jsonb(orbhook._new_signing_secret()));
    end if;
    insert into orbhook.webhooks (id, name, provider_type, endpoint_scheme, endpoint_host, endpoint_fingerprint, subscribed_events)
    values (v_id, v_set ->> 'name', v_set ->> 'provider_type', v_set ->> 'endpoint_scheme', v_set ->> 'endpoint_host',
            repeat('0', 12), '{*}');
    perform orbhook._apply_webhook(v_id, v_set);
    return v_id;
end
$$;
comment on function @extschema@.orbhook_create_webhook(jsonb) is
'Makes a webhook from its configuration object and returns its id.
Required keys: name, providerType (SLACK, GOHIGHLEVEL, ZAPIER, GENERIC), endpoint (absolute http or https URL), subscribedEvents (types, families such as "USER_*", or "*").
Optional: active (true), providerSpecificConfig, maxRetries (3; 0-100), retryDelay ([30, 120, 300]; seconds, a number or up to 20 of them), rateLimit (10 requests per second; 0.01-10000, null = no limit), timeoutSeconds (15; 1-30), maxInFlight (10; 1-1000), maxAgeSeconds (null), headers, filter (jsonpath), signingSecret (whsec_... of 24-64 bytes; made at random if absent).
Errors: 22023 names the key and what is wrong with it.';

create function @extschema@.orbhook_update_webhook(id uuid, changes jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_webhook orbhook.webhooks := orbhook._webhook(id);
    v_current jsonb;
begin
    -- Two updates of one webhook follow each other, so that each validates against what the other left.
    perform from orbhook.webhooks w where w.id = v_webhook.id for no key update;
    v_webhook := orbhook._webhook(v_webhook.id);
    select jsonb_build_object(
               'provider', v_webhook.provider_type, 'target', v_webhook.target,
               'endpoint_host', v_webhook.endpoint_host, 'provider_config', v_webhook.provider_config::text,
               'secret_names', coalesce(jsonb_agg(s.name), '[]'))
    into v_current
    from orbhook.webhook_secrets s
    where s.webhook_id = v_webhook.id;
    perform orbhook._apply_webhook(v_webhook.id, orbhook._validate_webhook(changes::text, v_current::text)::jsonb);
end
$$;
comment on function @extschema@.orbhook_update_webhook(uuid, jsonb) is
    'Changes any subset of a webhook''s configuration keys; the rest stays. "active": true also takes a webhook back that orbhook had switched off. Errors: 22023.';

create function @extschema@.orbhook_delete_webhook(id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := (orbhook._webhook(id)).id;
begin
    -- State before webhooks, as settle takes them.
    perform from orbhook.webhook_state s where s.webhook_id = v_id for update;
    delete from orbhook.webhooks w where w.id = v_id;
    perform orbhook._cancel_deliveries_of(v_id, 'webhook deleted');
end
$$;
comment on function @extschema@.orbhook_delete_webhook(uuid) is
    'Deletes a webhook and its secrets and cancels what is still pending for it; history stays. Errors: 22023.';

create function @extschema@.orbhook_pause(id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := (orbhook._webhook(id)).id;
begin
    update orbhook.webhooks w set paused = true, updated_at = clock_timestamp() where w.id = v_id and not w.paused;
end
$$;
comment on function @extschema@.orbhook_pause(uuid) is 'Stops sending to a webhook; events keep queueing. What is already under way finishes. Errors: 22023.';

create function @extschema@.orbhook_resume(id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := (orbhook._webhook(id)).id;
begin
    -- State before webhooks, as settle takes them.
    update orbhook.webhook_state s set paused_until = '-infinity', pause_reason = null
    where s.webhook_id = v_id and s.paused_until > clock_timestamp();
    update orbhook.webhooks w set paused = false, updated_at = clock_timestamp() where w.id = v_id and w.paused;
    perform orbhook._arm_doorbell();
end
$$;
comment on function @extschema@.orbhook_resume(uuid) is
    'Sends to a paused webhook again, what has queued up first; also ends a pause the receiver had asked for. Errors: 22023.';

create view orbhook.webhook_configs with (security_barrier) as
select w.id,
       jsonb_strip_nulls(jsonb_build_object(
           'name', w.name,
           'providerType', w.provider_type,
           'endpoint', w.endpoint_scheme || '://' || w.endpoint_host || '/********',
           'active', w.active,
           'subscribedEvents', w.subscribed_events,
           'providerSpecificConfig', w.provider_config || coalesce(s.keys, '{}'),
           'headers', s.headers,
           'signingSecret', s.signing,
           'maxRetries', w.max_retries,
           'retryDelay', w.retry_delay,
           'timeoutSeconds', w.timeout_seconds,
           'maxInFlight', w.max_in_flight,
           'maxAgeSeconds', w.max_age_seconds,
           'filter', w.filter::text))
       || jsonb_build_object('rateLimit', w.rate_limit_per_second) as config
from orbhook.webhooks w
left join lateral (
    select jsonb_object_agg(s.name, '********') filter (where s.name in ('apiKey', 'api_key')) as keys,
           jsonb_object_agg(substr(s.name, 8), '********') filter (where s.name like 'header.%') as headers,
           max('********') filter (where s.name = 'signing') as signing
    from orbhook.webhook_secrets s
    where s.webhook_id = w.id) s on true;
comment on view orbhook.webhook_configs is
    'Each webhook as its configuration object, every secret masked as a whole. What it shows can be handed to orbhook_update_webhook: a masked value means "as it is".';
comment on column orbhook.webhook_configs.id is 'The webhook.';
comment on column orbhook.webhook_configs.config is 'The object orbhook_create_webhook takes.';
