-- What a dump takes along.
--
-- The rows of an extension's tables are dumped only where this says so. Derived tables (subscriptions, webhook_state)
-- are rebuilt by the trigger on webhooks, totals are counted anew, and how webhooks were doing begins anew; instances
-- belong to the server they ran on; built-in event types come with CREATE EXTENSION. History partitions made at run time
-- are ordinary tables and are dumped as such. The environment goes along, so that a restored copy knows that it is one
-- and stays silent (48_environment).

select pg_catalog.pg_extension_config_dump('orbhook.event_types', 'where not built_in');
select pg_catalog.pg_extension_config_dump('orbhook.environment', '');
select pg_catalog.pg_extension_config_dump('orbhook.sealing_keys', '');
select pg_catalog.pg_extension_config_dump('orbhook.webhooks', '');
select pg_catalog.pg_extension_config_dump('orbhook.webhook_secrets', '');
select pg_catalog.pg_extension_config_dump('orbhook.events_default', '');
select pg_catalog.pg_extension_config_dump('orbhook.event_keys', '');
select pg_catalog.pg_extension_config_dump('orbhook.deliveries_open', '');
select pg_catalog.pg_extension_config_dump('orbhook.deliveries_first', '');
select pg_catalog.pg_extension_config_dump('orbhook.attempts_first', '');
select pg_catalog.pg_extension_config_dump('orbhook.periods', 'where starts_on > ''1970-01-01''');
select pg_catalog.pg_extension_config_dump('orbhook.replays', '');
select pg_catalog.pg_extension_config_dump('orbhook.erased_events', '');
select pg_catalog.pg_extension_config_dump('orbhook.watches', '');
select pg_catalog.pg_extension_config_dump('orbhook.watch_timers', '');
select pg_catalog.pg_extension_config_dump('orbhook.watch_losses', '');
select pg_catalog.pg_extension_config_dump('orbhook.grants', '');
