-- Rendering: what a provider would get, without sending it.
--
-- The renderers are pure Rust (extension/providers): the same functions claim uses.

create function @extschema@.orbhook_render(provider text, event jsonb, config jsonb default '{}') returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return orbhook._render(provider, event::text, config::text)::jsonb;
end
$$;
comment on function @extschema@.orbhook_render(text, jsonb, jsonb) is
'The body a provider would get for an event object. provider: SLACK, GOHIGHLEVEL, ZAPIER or GENERIC, in any case. config: the providerSpecificConfig object; keys the provider does not use are ignored; {"target": "api"} gives GoHighLevel''s API shape.
Errors: 22023 (unknown provider, event no object or not renderable, with the reason).';

create function orbhook._render(p_provider text, p_event text, p_config text) returns text
language c volatile
as 'MODULE_PATHNAME', 'render_wrapper';
comment on function orbhook._render(text, text, text) is 'The body as text; SQLSTATE 22023 if there is none.';

create function @extschema@.orbhook_preview(
    id uuid, event_type text, payload jsonb, out method text, out url text, out headers jsonb, out body text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_webhook orbhook.webhooks := orbhook._webhook(id);
    v_names   text[];
    v_parts   text[];
    v_now     timestamptz := clock_timestamp();
begin
    if jsonb_typeof(payload) is distinct from 'object' then
        raise exception using errcode = 'invalid_parameter_value', message = 'payload must be a JSON object';
    end if;
    select array_agg(s.name order by s.name) into v_names from orbhook.webhook_secrets s where s.webhook_id = v_webhook.id;
    v_parts := orbhook._render_delivery(
        v_webhook.provider_type, v_webhook.target, v_webhook.provider_config::text, v_names,
        '00000000-0000-7000-8000-000000000000', event_type,
        coalesce(orbhook._occurred_at(payload::text), orbhook._rfc3339(v_now)), false,
        (jsonb_build_object('eventType', event_type, 'timestamp', orbhook._rfc3339(v_now)) || payload)::text);
    if v_parts[3] is not null then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('this event would not be sent: %s', v_parts[4]),
            detail = format('The delivery would end as %s.', v_parts[3]);
    end if;
    method := 'POST';
    url := v_webhook.endpoint_scheme || '://' || v_webhook.endpoint_host || '/********';
    select jsonb_object_agg(h ->> 'name', (h ->> 'prefix') || case when h ->> 'secret' is null then '' else '********' end)
    into headers
    from jsonb_array_elements(v_parts[1]::jsonb) h;
    body := v_parts[2];
end
$$;
comment on function @extschema@.orbhook_preview(uuid, text, jsonb) is
    'The whole request a webhook would get for this event, unsent, secrets masked; the signature headers are added when it is sent. Errors: 22023 (no such webhook, payload no object, or why it would not be sent).';

create function orbhook._occurred_at(p_payload text) returns text
language c volatile
as 'MODULE_PATHNAME', 'occurred_at_wrapper';
comment on function orbhook._occurred_at(text) is
    'The payload''s timestamp as RFC 3339 in UTC, read as UTC when it has no zone; null when absent or unreadable.';
