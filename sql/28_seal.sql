-- Secrets at rest: sealed with a public key that lies here, opened with a private key that never comes here.
--
-- While no key is installed, secrets are stored as they are given. orbhook_install_key seals what is there, and from then
-- on a trigger seals every secret on its way into webhook_secrets, whoever writes it: the calls, an admin's UPDATE, a
-- restore. What orbhook seal has sealed already passes as it is. Nothing in the server can open a sealed secret: claim
-- hands it over, the sidecar opens it (--key-file).
--
-- A sealed value names the key it is sealed with (sidecar/seal says how it looks inside). webhooks.key_ids says which
-- keys a sidecar needs for a webhook; claim gives the webhook's deliveries only to a sidecar that has them all, so
-- without the key they wait, and go out by themselves when a sidecar with the key is there.
--
-- What must stay true
--   * with a key installed, no row of webhook_secrets is in plain;
--   * a plain secret is in no statement that could be shown: the functions that handle one are planned without their
--     parameters (plan_cache_mode), because auto_explain prints the values that a custom plan was made for.
--
-- Lock order: webhooks, then webhook_secrets.

create table orbhook.sealing_keys (
    key_id       text primary key
                 constraint sealing_keys_key_id_is_hex check (key_id ~ '^[0-9a-f]{16}$'),
    public_key   text not null,
    installed_at timestamptz not null default clock_timestamp()
);
comment on table orbhook.sealing_keys is
    'Public keys that secrets are or were sealed with; the one installed last seals. Written by orbhook_install_key.';
comment on column orbhook.sealing_keys.key_id is 'Name of the pair of keys, 16 hexadecimal digits.';
comment on column orbhook.sealing_keys.public_key is 'The public key, as orbhook keygen prints it. No secret.';
comment on column orbhook.sealing_keys.installed_at is 'When it was installed last.';

create function orbhook._key_id(p_public_key text) returns text
language c volatile
as 'MODULE_PATHNAME', 'key_id_wrapper';
comment on function orbhook._key_id(text) is 'The id of a public key; SQLSTATE 22023 if the text is none.';

create function orbhook._seal(p_public_key text, p_webhook uuid, p_name text, p_value text) returns text
language c volatile strict
as 'MODULE_PATHNAME', 'seal_secret_wrapper';
comment on function orbhook._seal(text, uuid, text, text) is 'A secret sealed for its webhook and its name.';

create function orbhook._current_key() returns text
language c volatile
as 'MODULE_PATHNAME', 'current_key_wrapper';
comment on function orbhook._current_key() is
    'The public key installed last, null if there is none; as committed now, whatever the transaction''s isolation lets it see.';

create function orbhook._seal_secret() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_key text;
begin
    -- Not by new.key_id: a generated column is computed after this.
    if new.value ~ '^sealed:v1:[0-9a-f]{16}:[A-Za-z0-9_-]+$' then
        return new;
    end if;
    v_key := orbhook._current_key();
    if v_key is not null then
        new.value := orbhook._seal(v_key, new.webhook_id, new.name, new.value);
    end if;
    return new;
end
$$;
comment on function orbhook._seal_secret() is 'Trigger: with a key installed, no secret is stored in plain.';

create function orbhook._note_keys() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update orbhook.webhooks w
    set key_ids = n.key_ids
    from (select c.id,
                 (select array_agg(distinct s.key_id order by s.key_id)
                  from orbhook.webhook_secrets s
                  where s.webhook_id = c.id and s.key_id is not null) as key_ids
          from unnest(array[case when tg_op <> 'DELETE' then new.webhook_id end,
                            case when tg_op <> 'INSERT' then old.webhook_id end]) as c (id)) n
    where w.id = n.id and w.key_ids is distinct from n.key_ids;
    return null;
end
$$;
comment on function orbhook._note_keys() is 'Trigger: keeps webhooks.key_ids in step with webhook_secrets.';

create trigger seal_secret before insert or update on orbhook.webhook_secrets
    for each row execute function orbhook._seal_secret();
create trigger note_keys after insert or update or delete on orbhook.webhook_secrets
    for each row execute function orbhook._note_keys();
-- A restore and a logical subscriber may switch triggers off; neither is to store a secret in plain.
alter table orbhook.webhook_secrets enable always trigger seal_secret;
alter table orbhook.webhook_secrets enable always trigger note_keys;

create function @extschema@.orbhook_install_key(public_key text) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_id text := orbhook._key_id(public_key);
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- The update below would not see what was written since this transaction's first statement.
        raise exception using
            errcode = 'active_sql_transaction', message = 'orbhook_install_key must run in a transaction of isolation read committed';
    end if;
    -- Waits for whoever is writing a secret, and they for this; claims only read and go on.
    lock table orbhook.webhook_secrets in share row exclusive mode;
    insert into orbhook.sealing_keys (key_id, public_key)
    values (v_id, btrim(orbhook_install_key.public_key))
    on conflict (key_id) do update set installed_at = clock_timestamp();
    update orbhook.webhook_secrets s set value = s.value where s.key_id is null;
    if not exists (select from orbhook.instances i
                   where i.stopped_at is null and i.died_at is null and v_id = any (i.key_ids)) then
        raise warning 'no running sidecar has the private key of %', v_id
            using hint = 'what needs it waits; start the sidecars with --key-file and the file that orbhook keygen wrote';
    end if;
    return v_id;
end
$$;
comment on function @extschema@.orbhook_install_key(text) is
'Seals every secret that is stored in plain with this public key (orbhook keygen prints it), and from then on every secret on its way in. Returns the key''s id. Installing a second key begins a rotation: new secrets are sealed with it, the old ones until orbhook reseal has run with both.
The rows as they were before stay in the table''s file until VACUUM FULL orbhook.webhook_secrets, in the log (WAL) until it is recycled, and in every backup made until now: replace what has to be beyond reach (orbhook_rotate_secret).
Run by a superuser or the extension''s owner. Errors: 22023 (no public key, damaged, or the private one), 25001 (isolation above read committed).';

create function orbhook._check_sealed(p_secrets jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret record;
begin
    select s.key as name, split_part(s.value, ':', 3) as key_id into v_secret
    from jsonb_each_text(p_secrets) s
    where starts_with(s.value, 'sealed:v1:')
      and not exists (select from orbhook.sealing_keys k where k.key_id = split_part(s.value, ':', 3))
    limit 1;
    if found then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('%s is sealed with key %s, which is not installed here', v_secret.name, left(v_secret.key_id, 16)),
            hint = 'install it with orbhook_install_key, or seal with an installed one; they are listed in orbhook.keys';
    end if;
end
$$;
comment on function orbhook._check_sealed(jsonb) is 'SQLSTATE 22023 if a secret that came sealed names a key nobody installed.';

create function orbhook.sealing_key() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select k.public_key from orbhook.sealing_keys k order by k.installed_at desc limit 1 $$;
comment on function orbhook.sealing_key() is 'The public key that secrets are sealed with, for orbhook seal; null when none is installed.';

create function orbhook.outdated_secrets(p_after_webhook uuid, p_after_name text, p_limit integer)
returns table (webhook_id uuid, name text, value text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select s.webhook_id, s.name, s.value
    from orbhook.webhook_secrets s
    where s.key_id <> (select k.key_id from orbhook.sealing_keys k order by k.installed_at desc limit 1)
      and (p_after_webhook is null or (s.webhook_id, s.name) > (p_after_webhook, p_after_name))
    order by s.webhook_id, s.name
    limit p_limit;
end
$$;
comment on function orbhook.outdated_secrets(uuid, text, integer) is
    'Secrets sealed with another key than the one installed last, as they are stored, for orbhook reseal. After that webhook and name; nulls: from the first.';

create function orbhook.reseal(p_webhook uuid, p_name text, p_old text, p_new text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from orbhook.sealing_keys k where starts_with(p_new, 'sealed:v1:' || k.key_id || ':')) then
        raise exception using errcode = 'invalid_parameter_value', message = 'not sealed with an installed key';
    end if;
    perform from orbhook.webhooks w where w.id = p_webhook for no key update;
    update orbhook.webhook_secrets s set value = p_new
    where s.webhook_id = p_webhook and s.name = p_name and s.value = p_old;
    return found;
end
$$;
comment on function orbhook.reseal(uuid, text, text, text) is
    'Replaces a sealed secret by the same one sealed anew, for orbhook reseal. False: it has been replaced meanwhile. Errors: 22023.';

create view orbhook.keys as
select k.key_id, k.public_key, k.installed_at,
       k.installed_at = max(k.installed_at) over () as seals,
       (select count(*) from orbhook.webhooks w where k.key_id = any (w.key_ids)) as webhooks,
       (select count(*) from orbhook.instances i
        where i.stopped_at is null and i.died_at is null and k.key_id = any (i.key_ids)) as sidecars
from orbhook.sealing_keys k;
comment on view orbhook.keys is
    'Installed keys, and whether they are still needed. Which webhooks need one: select id, name from orbhook.webhooks where ''the key id'' = any (key_ids).';
comment on column orbhook.keys.key_id is 'The key''s id.';
comment on column orbhook.keys.public_key is 'The public key. No secret.';
comment on column orbhook.keys.installed_at is 'When it was installed last.';
comment on column orbhook.keys.seals is 'True for the one that new secrets are sealed with.';
comment on column orbhook.keys.webhooks is 'Webhooks with a secret sealed with it; at 0 its private key is no longer needed.';
comment on column orbhook.keys.sidecars is 'Running sidecars that have its private key.';
