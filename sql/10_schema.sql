-- The schema and its precondition.
--
-- Functions people call are named orbhook_* and live in the schema chosen at CREATE EXTENSION. Tables, views and what
-- only a sidecar calls live in schema orbhook. The schema is created here, never adopted: a schema of that name that
-- somebody else made could hold functions or tables waiting to be called by ours.
--
-- Every identifier in these files is either qualified or resolved with search_path = pg_catalog, pg_temp.

-- CREATE EXTENSION puts the extension's own schema into the path, where anybody may have left a function or an operator
-- that fits better than the built-in one. What is created there is named with its schema below.
set local search_path = pg_catalog, pg_temp;

do $check$
begin
    -- Event payloads are read by Rust as UTF-8. In another encoding the same bytes are other text, or none.
    if pg_catalog.getdatabaseencoding() operator(pg_catalog.<>) 'UTF8' then
        raise exception using
            errcode = 'feature_not_supported',
            message = pg_catalog.format('orbhook needs a database in encoding UTF8, this one is %s',
                                        pg_catalog.getdatabaseencoding()),
            hint = 'create the database with ENCODING ''UTF8'' (TEMPLATE template0)';
    end if;
end
$check$;

create schema orbhook;
comment on schema orbhook is
    'orbhook: webhooks from committed changes. Start with orbhook.webhooks, orbhook.deliveries and orbhook.attempts.';
