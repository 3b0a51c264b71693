-- What a dump takes along.
--
-- The rows of an extension's tables are dumped only where this says so. Derived tables (subscriptions, webhook_state)
-- are rebuilt by the trigger on webhooks, totals are counted anew, and how webhooks were doing begins anew; instances
-- belong to the server they ran on; built-in event types come with CREATE EXTENSION. History partitions made at run time
-- are ordinary tables and are dumped as such. The environment goes along, so that a restored copy knows that it is one
-- and stays silent (48_environment).
--
-- Last, the first weekly partitions of events are made, before anybody emits.

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
select pg_catalog.pg_extension_config_dump('orbhook.retention', '');
select pg_catalog.pg_extension_config_dump('orbhook.thinned', '');
select pg_catalog.pg_extension_config_dump('orbhook.replays', '');
select pg_catalog.pg_extension_config_dump('orbhook.erased_events', '');
select pg_catalog.pg_extension_config_dump('orbhook.watches', '');
select pg_catalog.pg_extension_config_dump('orbhook.watch_timers', '');
select pg_catalog.pg_extension_config_dump('orbhook.watch_losses', '');
select pg_catalog.pg_extension_config_dump('orbhook.grants', '');

-- Attaching a partition later locks the default one, which emitters then use. They are no members of the extension, so that
-- they can be dropped one by one and are dumped; so a dump that is being restored brings its own, and is known by the
-- row_security = off that pg_dump begins with. Where they are missing, sidecars make them.
do $weeks$
declare
    v_name name;
begin
    if pg_catalog.current_setting('row_security') operator(pg_catalog.=) 'off' then
        return;
    end if;
    while orbhook._open_event_weeks() loop
        null;
    end loop;
    for v_name in select w.name from orbhook._weeks() w where w.parent operator(pg_catalog.=) 'events' loop
        execute pg_catalog.format('alter extension orbhook drop table orbhook.%I', v_name);
    end loop;
end
$weeks$;
