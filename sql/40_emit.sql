-- Emitting: one event, one delivery for each active subscribed webhook, in the caller's transaction.
--
-- The body is Rust (extension/src/emit.rs). It inserts and does nothing else: it never renders, never calls out and
-- takes no lock a sidecar could hold, so an application never waits for a webhook.
--
-- Who subscribes is remembered by each session (extension/src/subscription.rs) until a transaction that changed
-- orbhook.subscriptions or orbhook.event_types commits: a trigger on both tells every session, before the committing
-- one answers its client. The rows are written straight into orbhook.events and orbhook.deliveries_open
-- (extension/src/ledger.rs), past the executor. A trigger, rule, policy, column, constraint or index that somebody adds
-- to one of these tables is respected: each session then goes back to an INSERT statement by itself, which costs an
-- emit about twice as much.
--
-- It runs as the extension's owner: an emitter needs EXECUTE on this function and nothing on the tables.

create function @extschema@.orbhook_emit(
    event_type text, payload jsonb, idempotency_key text default null, deliver_at timestamptz default null) returns uuid
language c volatile security definer set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'emit_wrapper';
comment on function @extschema@.orbhook_emit(text, jsonb, text, timestamptz) is
'Records an event and queues a delivery to every active webhook that subscribes to it, in this transaction: a rollback takes all of it back. Returns the event''s id (UUIDv7).
payload: a JSON object, at most orbhook.payload_bytes_max bytes as text (262144). "eventType" and "timestamp" (RFC 3339, UTC) are added when absent; everything else passes unchanged.
idempotency_key: at most 255 bytes; the same key again returns the same id and queues nothing new.
deliver_at: not before then; null: at once.
Errors: 22023 (unknown type, payload no object, eventType in the payload differs, bad key or time), 54000 (payload too large), 25006 (standby or read-only transaction).';

create function orbhook._forget_lookups(p_table regclass) returns void
language c volatile
as 'MODULE_PATHNAME', 'forget_lookups_wrapper';
comment on function orbhook._forget_lookups(regclass) is
    'Every session looks event types and subscriptions up anew, once this transaction has committed; this one at once.';

create function orbhook._lookups_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform orbhook._forget_lookups(tg_relid::regclass);
    return null;
end
$$;
comment on function orbhook._lookups_changed() is 'Trigger: tells every session that what an emit looks up has changed.';

create trigger lookups_changed after insert or update or delete or truncate on orbhook.subscriptions
    for each statement execute function orbhook._lookups_changed();
create trigger lookups_changed after insert or update or delete or truncate on orbhook.event_types
    for each statement execute function orbhook._lookups_changed();
-- Also while a restore or a replica has switched triggers off.
alter table orbhook.subscriptions enable always trigger lookups_changed;
alter table orbhook.event_types enable always trigger lookups_changed;
