-- Emitting: one event, one delivery for each active subscribed webhook, in the caller's transaction.
--
-- The body is Rust (extension/src/emit.rs). It inserts and does nothing else: it never renders, never calls out and
-- takes no lock a sidecar could hold, so an application never waits for a webhook. The statements it runs are
-- prepared once in a session.
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
