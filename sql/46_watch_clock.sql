-- What the clock says: subscriptions and trials end without anyone writing a row.
--
-- orbhook.look, which every sidecar calls at least once a second, asks orbhook.watch_timers (small, indexed) whether
-- something has come due, and only then calls this. It takes at most 100 timers, skips what another sidecar has
-- locked, and marks a timer before it builds the event, so that a row that cannot be told is counted as a loss and
-- does not come back. After downtime what has come due meanwhile is said in order.

create function orbhook._fire_timers() returns integer
language c volatile set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'fire_timers_wrapper';
comment on function orbhook._fire_timers() is 'Emits what has come due by the clock, at most 100; returns how many timers it took.';
