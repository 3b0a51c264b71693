-- Watched tables change their columns: ALTER TABLE goes on to work, and the watch follows.
--
-- PostgreSQL refuses to drop a column, or to change its type, while a trigger's WHEN clause names it. So before an
-- ALTER TABLE whose text speaks of a type or of dropping, the UPDATE trigger of a watched table it names is made
-- without its WHEN clause, and after it with a new one. If the ALTER TABLE fails, that is taken back with it.
-- The UPDATE trigger of a plain table names the columns of interest (UPDATE OF). A BEFORE trigger could change one of
-- them in an UPDATE that names another, so where there is one the WHEN clause alone decides; when one is made, the
-- UPDATE trigger is made anew.
-- A column that was renamed is followed, one that was dropped is left out and listed in orbhook.watches.broken.
--
-- Event triggers can block every CREATE TABLE of a database. These are PL/pgSQL, so that a missing library does no
-- harm; they listen to a few commands only, do nothing while nothing is watched, and turn their own errors into
-- warnings.

create function orbhook._watch_widen(p_target regclass) returns void
language c volatile set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'watch_widen_wrapper';
comment on function orbhook._watch_widen(regclass) is 'Makes a watched table''s UPDATE trigger without WHEN clause, so that columns can be dropped or change their type.';

create function orbhook._watch_refit(p_target regclass) returns void
language c volatile set search_path = pg_catalog, pg_temp
as 'MODULE_PATHNAME', 'watch_refit_wrapper';
comment on function orbhook._watch_refit(regclass) is 'Follows renamed columns of a watched table, leaves out dropped ones and makes its triggers anew where needed.';

create function orbhook._before_alter_table() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_text   text;
    v_target regclass;
begin
    if not exists (select from orbhook.watches) then
        return;
    end if;
    -- Inside a function the statement is in the call stack, not in current_query().
    get diagnostics v_text = pg_context;
    v_text := concat_ws(' ', current_query(), v_text);
    -- Of a function in SQL only the name is there, in words of the server's language.
    v_text := lower(concat_ws(' ', v_text, (
        select string_agg(p.prosrc, ' ')
        from pg_proc p
        join pg_language l on l.oid = p.prolang
        where l.lanname = 'sql' and p.prosrc ~* '\malter\M' and strpos(v_text, p.proname) > 0)));
    if v_text !~ '\m(type|drop)\M' then
        return;
    end if;
    for v_target in
        select w.target
        from orbhook.watches w
        join pg_class c on c.oid = w.target
        where strpos(v_text, lower(c.relname)) > 0
          -- Nobody can lock a table this way that they could not alter.
          and pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, c.relowner, 'usage')
    loop
        perform orbhook._watch_widen(v_target);
    end loop;
exception when others then
    raise warning 'orbhook could not prepare a watched table for this command: %', sqlerrm
        using hint = 'if the command fails because of a trigger, call orbhook_unwatch, alter the table, and orbhook_watch again';
end
$$;
comment on function orbhook._before_alter_table() is 'Event trigger: lets go of columns that are about to be dropped or to change their type.';

create function orbhook._after_alter_table() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_target regclass;
begin
    if not exists (select from orbhook.watches) then
        return;
    end if;
    for v_target in
        select distinct w.target
        from pg_event_trigger_ddl_commands() c
        join orbhook.watches w on w.target::oid = c.objid
        where c.classid = 'pg_class'::regclass
    loop
        perform orbhook._watch_refit(v_target);
    end loop;
exception when others then
    raise warning 'orbhook could not follow a change of a watched table: %', sqlerrm
        using hint = 'call orbhook_watch on it again';
end
$$;
comment on function orbhook._after_alter_table() is 'Event trigger: fits watches to changed columns.';

create function orbhook._after_create_trigger() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_target regclass;
begin
    if not exists (select from orbhook.watches) then
        return;
    end if;
    for v_target in
        select distinct w.target
        from pg_event_trigger_ddl_commands() c
        join pg_trigger t on t.oid = c.objid
        join orbhook.watches w on w.target::oid = t.tgrelid
        -- BEFORE UPDATE FOR EACH ROW.
        where c.classid = 'pg_trigger'::regclass and t.tgtype & 19 = 19
    loop
        perform orbhook._watch_refit(v_target);
    end loop;
exception when others then
    raise warning 'orbhook could not follow a new trigger of a watched table: %', sqlerrm
        using hint = 'call orbhook_watch on it again: a change made by the new trigger may bring no event until then';
end
$$;
comment on function orbhook._after_create_trigger() is 'Event trigger: a BEFORE trigger may change columns that an UPDATE does not name.';

create function orbhook._after_drop() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_target regclass;
begin
    if not exists (select from orbhook.watches) then
        return;
    end if;
    delete from orbhook.watch_timers t where not exists (select from pg_class c where c.oid = t.target);
    delete from orbhook.watches w where not exists (select from pg_class c where c.oid = w.target);
    -- Columns go with their type, and a trigger with a column it names.
    for v_target in
        select distinct w.target
        from pg_event_trigger_dropped_objects() d
        join orbhook.watches w on w.target::oid = d.objid
        where d.classid = 'pg_class'::regclass and d.objsubid > 0
    loop
        perform orbhook._watch_refit(v_target);
    end loop;
exception when others then
    raise warning 'orbhook could not forget a dropped table: %', sqlerrm;
end
$$;
comment on function orbhook._after_drop() is 'Event trigger: forgets the watches of dropped tables.';

create event trigger orbhook_before_alter_table on ddl_command_start
    when tag in ('ALTER TABLE') execute function orbhook._before_alter_table();
comment on event trigger orbhook_before_alter_table is 'Lets go of columns of watched tables that are about to be dropped or to change their type.';
create event trigger orbhook_after_alter_table on ddl_command_end
    when tag in ('ALTER TABLE') execute function orbhook._after_alter_table();
comment on event trigger orbhook_after_alter_table is 'Fits watches to changed columns.';
create event trigger orbhook_after_create_trigger on ddl_command_end
    when tag in ('CREATE TRIGGER') execute function orbhook._after_create_trigger();
comment on event trigger orbhook_after_create_trigger is 'Fits watches to a new BEFORE trigger.';
create event trigger orbhook_after_drop on sql_drop
    when tag in ('DROP TABLE', 'DROP SCHEMA', 'DROP OWNED', 'DROP TYPE', 'DROP DOMAIN', 'DROP EXTENSION')
    execute function orbhook._after_drop();
comment on event trigger orbhook_after_drop is 'Forgets the watches of dropped tables.';
-- A trigger that is made while triggers are switched off may write all the same later.
alter event trigger orbhook_after_create_trigger enable always;
