-- Finishing: a pending delivery becomes history.
--
-- The row leaves deliveries_open and enters the partition of the current period: the one place where that happens.
-- Lock order: deliveries_open by id; callers that need webhook_state take it before.

create type orbhook._ending as (
    delivery_id      uuid,
    status           text,
    last_status_code integer,
    last_error       text
);
comment on type orbhook._ending is 'How a delivery ends: delivered, failed or cancelled, and why.';

-- The settings: as with settle.
create function orbhook._finish(p_endings orbhook._ending[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
as $$
declare
    v_count  integer;
    v_period date := orbhook._period();
begin
    with gone as (
        delete from orbhook.deliveries_open d
        using unnest(p_endings) as e
        where d.id = e.delivery_id
        returning d.*, e.status as ends_as, e.last_status_code as ends_with, e.last_error as because
    )
    insert into orbhook.deliveries (
        id, event_id, webhook_id, status, attempts, failures, outcome_attempt,
        last_status_code, last_error, is_test, created_at, finished_at, period)
    select g.id, g.event_id, g.webhook_id, g.ends_as, g.attempts, g.failures, g.attempts,
           coalesce(g.ends_with, g.last_status_code), g.because, g.is_test, g.created_at, clock_timestamp(), v_period
    from gone g;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function orbhook._finish(orbhook._ending[]) is 'Ends pending deliveries; returns how many there were.';

create function orbhook._cancel_deliveries_of(p_webhook uuid, p_reason text) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_endings orbhook._ending[];
begin
    -- A bounded step: a long statement would hold its row locks against settle. Claim goes on with the rest.
    select array_agg(row(d.id, 'cancelled', null, p_reason)::orbhook._ending)
    into v_endings
    from (select o.id from orbhook.deliveries_open o where o.webhook_id = p_webhook limit 10000 for update skip locked) d;
    return orbhook._finish(v_endings);
end
$$;
comment on function orbhook._cancel_deliveries_of(uuid, text) is
    'Cancels up to 10,000 pending deliveries of a webhook, with the reason; returns how many.';

create function orbhook._cancel_deliveries_without_webhook() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_webhook uuid;
begin
    -- A delivery can be committed after its webhook was deleted: emitters take no lock on webhooks.
    with recursive waiting (webhook_id) as (
        (select d.webhook_id from orbhook.deliveries_open d order by d.webhook_id limit 1)
        union all
        select (select d.webhook_id from orbhook.deliveries_open d
                where d.webhook_id > w.webhook_id order by d.webhook_id limit 1)
        from waiting w
        where w.webhook_id is not null
    )
    select q.webhook_id into v_webhook
    from waiting q
    where q.webhook_id is not null and not exists (select from orbhook.webhooks w where w.id = q.webhook_id)
    limit 1;
    if found then
        perform orbhook._cancel_deliveries_of(v_webhook, 'webhook deleted');
    end if;
end
$$;
comment on function orbhook._cancel_deliveries_without_webhook() is 'Cancels what is pending for one webhook that no longer exists.';

create function orbhook._cancel_too_old() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_now     timestamptz := clock_timestamp();
    v_endings orbhook._ending[];
begin
    -- What is new and too old stands first in its queue, so a bounded piece of each queue is enough; a retry that has
    -- become too old is found when it is its turn.
    select array_agg(row(x.id, 'cancelled', null, 'older than maxAgeSeconds')::orbhook._ending)
    into v_endings
    from (select d.id
          from orbhook.webhooks w
          cross join lateral (
              select o.id, coalesce(o.first_due_at, o.due_at) as since, o.lease_until
              from orbhook.deliveries_open o
              where o.webhook_id = w.id and o.due_at <= v_now and not o.is_test
              order by o.due_at
              limit 5000) q
          join orbhook.deliveries_open d on d.id = q.id
          where w.max_age_seconds is not null
            and q.since < v_now - make_interval(secs => w.max_age_seconds::double precision)
            and (q.lease_until is null or q.lease_until <= v_now)
          for update of d skip locked) x;
    if v_endings is not null then
        perform orbhook._finish(v_endings);
    end if;
end
$$;
comment on function orbhook._cancel_too_old() is
    'Cancels due deliveries that are older than their webhook''s maxAgeSeconds: of each webhook the first 5,000 of its queue are looked at.';

create function @extschema@.orbhook_cancel(delivery uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform from orbhook.deliveries_open d where d.id = delivery for update;
    return orbhook._finish(array[row(delivery, 'cancelled', null, 'cancelled by hand')::orbhook._ending]) = 1;
end
$$;
comment on function @extschema@.orbhook_cancel(uuid) is
    'Gives a pending delivery up. True if it was pending. A request already under way is not called back; its result is logged.';

create function @extschema@.orbhook_retry(delivery uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    update orbhook.deliveries_open d
    set due_at = v_now, first_due_at = null, failures = 0
    where d.id = delivery and (d.lease_until is null or d.lease_until <= v_now);
    if not found then
        -- Locked, so that its event does not go meanwhile for its age.
        perform from orbhook.events e
        where e.id = (select d.event_id from orbhook.deliveries d where d.id = delivery and d.period is not null)
        for key share;
        if not found then
            return false;
        end if;
        with gone as (
            delete from orbhook.deliveries d
            where d.id = delivery and d.period is not null
              and exists (select from orbhook.webhooks w where w.id = d.webhook_id)
              and not orbhook._is_erased(d.event_id)
            returning d.*
        )
        insert into orbhook.deliveries_open (
            id, event_id, webhook_id, attempts, outcome_attempt, due_at, last_status_code, last_error, is_test, created_at)
        select g.id, g.event_id, g.webhook_id, g.attempts, g.attempts, v_now, g.last_status_code, g.last_error, g.is_test, g.created_at
        from gone g;
    end if;
    if found then
        perform orbhook._arm_doorbell();
    end if;
    return found;
end
$$;
comment on function @extschema@.orbhook_retry(uuid) is
    'Sends a delivery again, now: a waiting one at once, a finished one once more with a fresh retry budget. It keeps its id and its attempts. False: no such delivery, its event was erased or is no longer kept, or a request is under way.';
