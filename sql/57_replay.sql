-- Replaying: send again what a webhook had in some span of time.
--
-- orbhook_replay writes down what was asked for and returns at once. A sidecar applies it in bounded steps, from
-- orbhook.look: a step reads at most 20,000 deliveries of the history in the order of their ids and puts those that fit
-- back into the queue, where pacing and the in-flight cap hold as for everything else. A replayed delivery keeps its id
-- and its attempts; only its retry budget is fresh.
--
-- What must stay true: a delivery is queued at most once by one replay. It may finish again while the replay still
-- runs, but then its finished_at lies after the request, and steps take only what had finished before.
--
-- Lock order: the replay's row (skipped if another sidecar has it), then deliveries.

create table orbhook.replays (
    id           uuid primary key,
    webhook_id   uuid not null,
    since        timestamptz not null,
    until        timestamptz not null,
    selection    text not null,
    requested_at timestamptz not null default clock_timestamp(),
    requested_by name not null default session_user,
    reached      uuid not null,
    examined     bigint not null default 0,
    queued       bigint not null default 0,
    finished_at  timestamptz
);
create index replays_unfinished on orbhook.replays (requested_at) where finished_at is null;
comment on table orbhook.replays is 'What orbhook_replay was asked for, and how far it has come.';
comment on column orbhook.replays.id is 'UUIDv7, what orbhook_replay returned.';
comment on column orbhook.replays.webhook_id is 'The webhook.';
comment on column orbhook.replays.since is 'Deliveries created from then on,';
comment on column orbhook.replays.until is 'and before then.';
comment on column orbhook.replays.selection is 'failed, all, or a jsonpath on the payload.';
comment on column orbhook.replays.requested_at is 'When it was asked for.';
comment on column orbhook.replays.requested_by is 'By whom.';
comment on column orbhook.replays.reached is 'Id of the last delivery examined.';
comment on column orbhook.replays.examined is 'Deliveries examined, of all webhooks.';
comment on column orbhook.replays.queued is 'Deliveries put back into the queue.';
comment on column orbhook.replays.finished_at is 'When everything had been examined; null while it runs.';

create function orbhook._first_id_at(p_time timestamptz) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    -- A UUIDv7 begins with 48 bits of milliseconds since 1970.
    select (lpad(to_hex(greatest(floor(extract(epoch from p_time) * 1000), 0)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;
comment on function orbhook._first_id_at(timestamptz) is 'Below every UUIDv7 made at that time or later.';

create function orbhook._time_of_id(p_id uuid) returns timestamptz
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select to_timestamp(('x' || left(replace(p_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0) $$;
comment on function orbhook._time_of_id(uuid) is 'When a UUIDv7 was made, to the millisecond.';

create view orbhook.replay_progress with (security_barrier) as
select r.id, r.webhook_id, r.since, r.until, r.selection, r.requested_at, r.requested_by, r.examined, r.queued, r.finished_at,
       case when r.finished_at is not null then 100
            else least(greatest(round((100 * extract(epoch from orbhook._time_of_id(r.reached) - r.since)
                                       / greatest(extract(epoch from r.until - r.since), 0.001))::numeric, 1), 0), 99.9)
       end as done_percent,
       (select count(*) from orbhook.deliveries_open d where d.webhook_id = r.webhook_id) as webhook_backlog
from orbhook.replays r;
comment on view orbhook.replay_progress is 'Replays and how far they have come: how much of the span has been examined, how many were queued, how many are still waiting at the webhook.';
comment on column orbhook.replay_progress.id is 'The replay.';
comment on column orbhook.replay_progress.webhook_id is 'The webhook.';
comment on column orbhook.replay_progress.since is 'Deliveries created from then on,';
comment on column orbhook.replay_progress.until is 'and before then.';
comment on column orbhook.replay_progress.selection is 'failed, all, or a jsonpath on the payload.';
comment on column orbhook.replay_progress.requested_at is 'When it was asked for.';
comment on column orbhook.replay_progress.requested_by is 'By whom.';
comment on column orbhook.replay_progress.examined is 'Deliveries examined, of all webhooks.';
comment on column orbhook.replay_progress.queued is 'Deliveries put back into the queue.';
comment on column orbhook.replay_progress.finished_at is 'When everything had been examined; null while it runs.';
comment on column orbhook.replay_progress.done_percent is 'How much of the span has been examined, 0 to 100.';
comment on column orbhook.replay_progress.webhook_backlog is 'Deliveries pending for the webhook, for whatever reason.';

create function @extschema@.orbhook_replay(
    id uuid, since timestamptz, until timestamptz default clock_timestamp(), "only" text default 'failed') returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_webhook uuid := (orbhook._webhook(id)).id;
    v_replay  uuid := orbhook._new_id();
    v_path    jsonpath;
begin
    if since is null or until is null or "only" is null or not isfinite(since) or not isfinite(until) or since >= until then
        raise exception using
            errcode = 'invalid_parameter_value', message = 'since must be before until, both finite, and "only" not null';
    end if;
    if "only" not in ('failed', 'all') then
        begin
            v_path := "only"::jsonpath;
        exception when syntax_error or data_exception then
            raise exception using
                errcode = 'invalid_parameter_value',
                message = 'only must be failed, all, or a jsonpath on the payload', detail = sqlerrm;
        end;
    end if;
    insert into orbhook.replays (id, webhook_id, since, until, selection, reached)
    values (v_replay, v_webhook, since, least(until, clock_timestamp()), coalesce(v_path::text, "only"),
            -- An id is made a little before its row. The exact bounds are those of created_at.
            orbhook._first_id_at(since - interval '1 second'));
    perform orbhook._arm_doorbell();
    return v_replay;
end
$$;
comment on function @extschema@.orbhook_replay(uuid, timestamptz, timestamptz, text) is
'Sends again what was created for a webhook in [since, until): "only" (a reserved word, so quoted when named) = failed, all, or a jsonpath on the payload. Returns the replay''s id at once; a sidecar queues it in bounded steps (orbhook.replay_progress). Deliveries keep their ids and attempts; those whose event is no longer kept (orbhook.retention) are passed over.
Errors: 22023 (no such webhook, span, jsonpath).';

create function orbhook._matches(p_payload jsonb, p_filter jsonpath) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    -- The first item decides: "$.amount > 100" yields false for 5, where jsonb_path_exists would say that an item exists.
    return coalesce((select i.item not in ('false', 'null')
                     from jsonb_path_query(p_payload, p_filter, '{}', true) with ordinality as i (item, place)
                     order by i.place limit 1), false);
exception when others then
    -- silent leaves some errors: comparing times across zones (0A000), a variable nobody set (42704), a template that
    -- does not fit (22007). In an emit they would end the application's transaction.
    return false;
end
$$;
comment on function orbhook._matches(jsonb, jsonpath) is
    'Whether a payload passes a filter: its first item exists and is neither false nor null. A filter that cannot be evaluated lets nothing pass; it never raises.';

create function orbhook._replay_step() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_replay  orbhook.replays;
    v_now     timestamptz;
    v_ids     uuid[];
    v_reached uuid;
    v_seen    bigint;
    v_queued  bigint;
begin
    select * into v_replay
    from orbhook.replays r
    where r.finished_at is null
      -- What is queued already takes its time; more of it would only make the queue longer.
      and (select count(*) from (select from orbhook.deliveries_open d where d.webhook_id = r.webhook_id limit 10000) w) < 10000
    order by r.requested_at
    limit 1
    for update skip locked;
    if not found then
        return false;
    end if;
    -- With a row locked this transaction counts as one that writes, and no claim passes on beyond what it makes due.
    v_now := clock_timestamp();

    select array_agg(s.id), count(*), (array_agg(s.id order by s.id desc))[1]
    into v_ids, v_seen, v_reached
    from (select d.id
          from orbhook.deliveries d
          where d.period is not null and d.id > v_replay.reached and d.id < orbhook._first_id_at(v_replay.until + interval '1 second')
          order by d.id
          limit 20000) s;

    -- Those that are old enough to go are locked, so that they do not go meanwhile.
    perform from orbhook.events e
    where e.id < orbhook._first_id_at(v_now - make_interval(days => (select t.delivered_days from orbhook.retention t)))
      and e.id = any (array(select d.event_id from orbhook.deliveries d
                            where d.id = any (v_ids) and d.period is not null and d.webhook_id = v_replay.webhook_id))
    for key share;

    with gone as (
        delete from orbhook.deliveries d
        where d.id = any (v_ids) and d.period is not null
          and d.webhook_id = v_replay.webhook_id and not d.is_test
          and d.created_at >= v_replay.since and d.created_at < v_replay.until and d.finished_at <= v_replay.requested_at
          and (v_replay.selection <> 'failed' or d.status = 'failed')
          and (v_replay.selection in ('failed', 'all')
               or exists (select from orbhook.events e
                          where e.id = d.event_id and orbhook._matches(e.payload, v_replay.selection::jsonpath)))
          and exists (select from orbhook.webhooks w where w.id = v_replay.webhook_id)
          and not orbhook._is_erased(d.event_id)
          and exists (select from orbhook.events e where e.id = d.event_id)
        returning d.*
    )
    insert into orbhook.deliveries_open (
        id, event_id, webhook_id, attempts, outcome_attempt, due_at, last_status_code, last_error, created_at)
    select g.id, g.event_id, g.webhook_id, g.attempts, g.attempts, v_now, g.last_status_code, g.last_error, g.created_at
    from gone g;
    get diagnostics v_queued = row_count;

    update orbhook.replays r
    set reached = coalesce(v_reached, r.reached),
        examined = r.examined + v_seen,
        queued = r.queued + v_queued,
        finished_at = case when v_seen < 20000 then v_now end
    where r.id = v_replay.id;
    return true;
end
$$;
comment on function orbhook._replay_step() is 'One bounded step of the oldest replay that can go on; false if there is none.';
