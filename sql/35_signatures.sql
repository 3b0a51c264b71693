-- Signing secrets: rotation, and verification for people who receive in SQL.
--
-- Every request is signed by the sidecar with the secret called signing; while signing.previous has not expired, with
-- both, so that a receiver can change over in its own time. A secret is shown once, by the rotation that makes it.

create function @extschema@.orbhook_rotate_secret(id uuid, overlap interval default '24 hours') returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_webhook orbhook.webhooks := orbhook._webhook(id);
    v_secret  text := orbhook._new_signing_secret();
begin
    if overlap is null or overlap < interval '0' or overlap > interval '7 days' then
        raise exception using
            errcode = 'invalid_parameter_value', message = 'overlap must be between 0 and 7 days';
    end if;
    -- Two rotations at once follow each other; the second's previous secret is then the first's new one.
    perform from orbhook.webhooks w where w.id = v_webhook.id for no key update;
    insert into orbhook.webhook_secrets (webhook_id, name, value, expires_at)
    select s.webhook_id, 'signing.previous', s.value, clock_timestamp() + overlap
    from orbhook.webhook_secrets s
    where s.webhook_id = v_webhook.id and s.name = 'signing'
    on conflict (webhook_id, name) do update set value = excluded.value, expires_at = excluded.expires_at;
    insert into orbhook.webhook_secrets (webhook_id, name, value)
    values (v_webhook.id, 'signing', v_secret)
    on conflict (webhook_id, name) do update set value = excluded.value;
    return v_secret;
end
$$;
comment on function @extschema@.orbhook_rotate_secret(uuid, interval) is
    'Makes a new signing secret and returns it, the only time it is visible. Until the overlap has passed (0 to 7 days) requests are signed with the old one as well. Errors: 22023.';

create function orbhook._verify(p_secret text, p_id text, p_timestamp text, p_signatures text, p_body text) returns boolean
language c volatile
as 'MODULE_PATHNAME', 'verify_wrapper';
comment on function orbhook._verify(text, text, text, text, text) is 'orbhook_verify, each header by itself; null is false.';

create function @extschema@.orbhook_verify(secret text, headers jsonb, body text) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select orbhook._verify(
        secret,
        max(h.value) filter (where lower(h.key) = 'webhook-id'),
        max(h.value) filter (where lower(h.key) = 'webhook-timestamp'),
        max(h.value) filter (where lower(h.key) = 'webhook-signature'),
        body)
    from jsonb_each_text(case when jsonb_typeof(headers) = 'object' then headers else '{}' end) h
$$;
comment on function @extschema@.orbhook_verify(text, jsonb, text) is
    'Whether a received request carries a valid Standard Webhooks signature (v1) of this secret, made within 5 minutes of now. headers: object with webhook-id, webhook-timestamp and webhook-signature, names in any case. Compares in constant time.';
