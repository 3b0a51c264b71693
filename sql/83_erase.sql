-- Erasure: a person asks to be forgotten, and the ledger stays whole.
--
-- Whose data an event holds is said by its payload: userId, at the top or one level down, or any jsonpath. Of such an
-- event stay its id, type and times, and of its deliveries what became of them; payloads, answers and what was quoted
-- from answers go, also from what was reported of their failures (DELIVERY_FAILED). What was still to be sent is cancelled: without the data there is nothing to say.
--
-- What must stay true
--   * an erased event is never sent again: no retry, no replay. erased_events says which they are;
--   * a request that was under way while its event was erased is not called back; its answer is recorded without body,
--     headers and words.
--
-- Every event is read once, in one transaction: as long as it takes to read the table. It locks what it changes, which
-- emitters never do, and a settle waits for its commit only where it has the same delivery. Rows as they were before
-- stay in the files until vacuum has been there, in the log until it is recycled, and in backups.
--
-- Lock order: events, then deliveries_open.

create table orbhook.erased_events (
    event_id  uuid primary key,
    erased_at timestamptz not null default clock_timestamp()
);
comment on table orbhook.erased_events is 'Events whose data was removed by orbhook_erase.';
comment on column orbhook.erased_events.event_id is 'The event.';
comment on column orbhook.erased_events.erased_at is 'When.';

create function orbhook._is_erased(p_event uuid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$ select exists (select from orbhook.erased_events x where x.event_id = p_event) $$;
comment on function orbhook._is_erased(uuid) is 'Whether the event''s data was removed.';

create function orbhook._erase(p_events uuid[], out events bigint, out cancelled bigint, out attempts bigint)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_deliveries uuid[];
    v_pending    uuid[];
begin
    -- What was reported of their failures quotes answers.
    p_events := p_events || array(select e.id from orbhook.events e
                                  where e.event_type = 'DELIVERY_FAILED' and e.payload #>> '{webhook,event}' = any (p_events::text[]));
    insert into orbhook.erased_events (event_id) select u.id from unnest(p_events) u (id) on conflict do nothing;
    update orbhook.events e
    set payload = jsonb_build_object('eventType', e.event_type, 'timestamp', orbhook._rfc3339(e.occurred_at), 'erased', true)
    where e.id = any (p_events);
    get diagnostics events = row_count;
    update orbhook.event_keys k set key = 'erased:' || k.event_id where k.event_id = any (p_events);

    select array_agg(d.id) into v_pending
    from (select o.id from orbhook.deliveries_open o where o.event_id = any (p_events) order by o.id for update) d;
    cancelled := coalesce(orbhook._finish(array(select row(u.id, 'cancelled', null, 'erased')::orbhook._ending from unnest(v_pending) u (id))), 0);

    select array_agg(d.id) into v_deliveries from orbhook.deliveries d where d.event_id = any (p_events);
    update orbhook.deliveries d set last_error = 'erased' where d.event_id = any (p_events) and d.last_error is not null;
    update orbhook.attempts a
    set response_headers = null, response_body = null, error = case when a.error is not null then 'erased' end
    where a.delivery_id = any (v_deliveries);
    get diagnostics attempts = row_count;
end
$$;
comment on function orbhook._erase(uuid[]) is 'Removes the data of these events; returns how many events, cancelled deliveries and attempts there were.';

create function @extschema@.orbhook_erase(user_id text, out events bigint, out cancelled bigint, out attempts bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_id    jsonb := to_jsonb(user_id);
    v_ids   uuid[];
    v_words text := '(^|[^[:alnum:]])' || regexp_replace(user_id, '([^[:alnum:]])', '\\\1', 'g') || '($|[^[:alnum:]])';
begin
    if coalesce(user_id, '') = '' then
        raise exception using errcode = 'invalid_parameter_value', message = 'user_id must not be empty or null';
    end if;
    select array_agg(e.id) into v_ids
    from orbhook.events e
    where e.payload ->> 'userId' = user_id
       or exists (select from jsonb_each(e.payload) part
                  where jsonb_typeof(part.value) = 'object' and part.value ->> 'userId' = user_id);
    select x.events, x.cancelled, x.attempts into events, cancelled, attempts from orbhook._erase(coalesce(v_ids, '{}')) x;
    -- Of tables whose rows are users. Elsewhere the same key is somebody else's.
    delete from orbhook.watch_timers t
    where t.row_key = jsonb_build_array(user_id)::text
      and exists (select from orbhook.watches w where w.target = t.target and w.source = 'users');
    update orbhook.replays r
    set selection = 'erased', finished_at = coalesce(r.finished_at, clock_timestamp())
    where r.selection not in ('failed', 'all') and r.selection ~ v_words;
end
$$;
comment on function @extschema@.orbhook_erase(text) is
'Removes a person''s data: of every event whose payload says userId = user_id (a text or a number), at the top or one level down. Payloads, recorded answers, idempotency keys, timers of watched users and the conditions of replays go; ids, types, times and what became of each delivery stay; what was still to be sent is cancelled. Returns how many events, cancelled deliveries and attempts.
Reads every event once. Old rows are in the files until vacuum, in the log and in backups for longer.
Errors: 22023 (no user_id).';

create function @extschema@.orbhook_erase(condition jsonpath, out events bigint, out cancelled bigint, out attempts bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[];
begin
    if condition is null then
        raise exception using errcode = 'invalid_parameter_value', message = 'condition must not be null';
    end if;
    select array_agg(e.id) into v_ids
    from orbhook.events e
    where orbhook._matches(e.payload, condition) and not orbhook._is_erased(e.id);
    select x.events, x.cancelled, x.attempts into events, cancelled, attempts from orbhook._erase(coalesce(v_ids, '{}')) x;
    update orbhook.replays r
    set selection = 'erased', finished_at = coalesce(r.finished_at, clock_timestamp())
    where r.selection = condition::text;
end
$$;
comment on function @extschema@.orbhook_erase(jsonpath) is
'The same for every event whose payload passes a jsonpath, as a webhook''s filter would let it pass: orbhook_erase(''$.email == "ada@example.com"''::jsonpath).
Errors: 22023 (no condition).';
