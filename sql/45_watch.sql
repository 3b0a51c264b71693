-- orbhook_watch: an application's table speaks for itself.
--
-- The calls are Rust (extension/src/watch.rs). They run as their caller, because only then can they ask whether the
-- caller owns the table; what they write in orbhook's tables and the triggers they make, they write as the extension's
-- owner. Three triggers are made: orbhook_insert (one call for a statement, with a transition table; row by row on a
-- partitioned table), orbhook_update (row by row, only when the WHEN clause finds a change of interest) and
-- orbhook_delete. They are ordinary triggers: a dump takes them along, and session_replication_role = replica or a
-- logical subscriber does not fire them.
--
-- The trigger function runs as whoever changes the table. Look-ups of a row's user, subscription and reseller run as
-- the owner of the table read; only the inserts into orbhook's tables run as the extension's owner.
--
-- Lock order: a watched row's table, then orbhook.watch_timers, then orbhook.events and deliveries_open (inserts only).
-- TRUNCATE fires none of these triggers: it brings no events.

create function @extschema@.orbhook_watch(source text, target regclass, mapping jsonb default '{}')
returns table (event_type text, fires_when text, columns text[])
language c volatile set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'watch_wrapper';
comment on function @extschema@.orbhook_watch(text, regclass, jsonb) is
'Makes a table emit events by itself and says which: one row for each event with the columns it uses, then rows without event_type that say what was not found. Again on the same table: replaces the watch.
source: users, subscriptions, payments, devices or resellers. target: a table you own; partitioned tables by their root.
mapping, all optional: payload {path: column or null}, signals {signal: column or null}, status {word: event type or null}, never [column], rank {plan: number}, user (column, or {column, table, key}), payload_function (a function of the row type that returns jsonb, run as whoever changes the table; null = no event), grace_seconds (0 to 7776000; how long after its end a subscription counts as expired).
Columns that look like passwords, keys or tokens are never sent. TRUNCATE brings no events.
Renamed columns are followed; a dropped one is left out (orbhook.watches.broken). Should PostgreSQL refuse ALTER TABLE because a trigger uses the column, call orbhook_unwatch, alter, and orbhook_watch again.
Errors: 22023 (mapping), 42602 (payload_function is not a name), 42501 (not the owner), 42809 (a view, a partition, a temporary or foreign table, a table of the system or of orbhook).';

create function @extschema@.orbhook_unwatch(target regclass) returns void
language c volatile set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'unwatch_wrapper';
comment on function @extschema@.orbhook_unwatch(regclass) is
    'Takes orbhook''s triggers off a table and forgets its watch; events already recorded stay. Errors: 42501 (not the owner).';

create function orbhook._watch_changed() returns trigger
language c volatile
as 'MODULE_PATHNAME', 'watch_changed';
comment on function orbhook._watch_changed() is
    'Trigger of watched tables. Without a row in orbhook.watches it emits nothing, counts in orbhook.watch_losses and never fails.';
