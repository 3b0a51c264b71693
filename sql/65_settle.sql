-- Settling: the sidecar reports facts, this decides.
--
-- A result applies only if it names the latest attempt of a pending delivery, and only once (the fence). A late one is
-- recorded and changes nothing, and neither does a second report: a sidecar whose connection broke asks again. What an
-- answer means is the provider's own judgement (orbhook._judge, Rust, pure); what follows from it is here and nowhere else:
--
--   delivered            the delivery ends
--   retry                one failure more; due again after the webhook's schedule, never earlier, plus 0 to 10 % jitter,
--                        or later when Retry-After says so (at most 24 h); out of retries: failed
--   rate limited (429)   the same, without using up a retry until the delivery is 24 h old
--   pause                the whole webhook is quiet until then (429; 502, 503, 504 with Retry-After)
--   message permanent    failed: this message will never be taken
--   endpoint permanent   failed, and the webhook is switched off with the reason; what is queued stays pending
--   parked               nothing was sent, because a secret could not be opened: no retry is used up. The webhook's
--                        deliveries wait until the secret is set anew (webhooks.key_ids); a test fails
--
-- Lock order: webhook_state (by webhook_id), then deliveries_open. A webhook_state row that was not locked at the beginning
-- is not updated later, or two settles would wait for each other. Two settles have a delivery in common only when one of
-- them is late.

create type orbhook._outcome as (
    delivery         uuid,
    attempt          integer,
    outcome          text,
    started_at       timestamptz,
    duration_ms      integer,
    connect_ms       integer,
    first_byte_ms    integer,
    address          text,
    status           integer,
    headers          jsonb,
    body             text,
    body_cut         boolean,
    error_class      text,
    error            text,
    webhook_id       uuid,
    verdict          text,
    after_seconds    double precision,
    is_rate_limited  boolean,
    is_pause         boolean,
    reason           text
);
comment on type orbhook._outcome is
    'What a sidecar reported of an attempt, and what it means: verdict is delivered, retry, message_permanent, endpoint_permanent, parked or released; null when the attempt is no longer the latest.';

create function orbhook._judge(
    p_provider text, p_target text, p_status integer, p_headers text, p_body text, p_now_unix_seconds bigint) returns text[]
language c volatile
as 'MODULE_PATHNAME', 'judge_wrapper';
comment on function orbhook._judge(text, text, integer, text, text, bigint) is
    'Array of five: verdict, seconds to wait (null: none given), rate_limited, pause, reason. Never raises on data.';

create function orbhook._retry_delay_seconds(p_schedule jsonb, p_failures integer) returns double precision
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    -- Rounded first: jsonb holds numbers, such as 1e-400, that a double precision refuses.
    select round((case jsonb_typeof(p_schedule)
                      when 'number' then p_schedule
                      else p_schedule -> (least(greatest(p_failures, 1), jsonb_array_length(p_schedule)) - 1)
                  end)::numeric, 3)::double precision
$$;
comment on function orbhook._retry_delay_seconds(jsonb, integer) is
    'Seconds to wait after the n-th failure: the number, or the n-th of the array, whose last value repeats.';

create function orbhook._retry_after_seconds(p_scheduled double precision, p_asked double precision, p_jitter double precision)
returns double precision
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select greatest(p_scheduled * (1 + 0.1 * p_jitter), least(coalesce(p_asked, 0), 86400)) $$;
comment on function orbhook._retry_after_seconds(double precision, double precision, double precision) is
    'Seconds until the next try: the schedule plus 0 to 10 % (p_jitter is 0 to 1), never earlier; later when the receiver asked for it, at most 24 hours.';

create function orbhook._pause_seconds(p_scheduled double precision, p_asked double precision) returns double precision
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select least(greatest(coalesce(p_asked, p_scheduled), 0), 86400) $$;
comment on function orbhook._pause_seconds(double precision, double precision) is
    'Seconds a webhook is paused when its receiver asks for quiet: as long as it asked, else as the schedule says; at most 24 hours. The delivery itself waits at least as its schedule says.';

create function orbhook._error_class(p_outcome text, p_status integer, p_class text) returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    select case when p_outcome = 'answered' then format('http_%sxx', p_status / 100) else coalesce(p_class, 'internal') end
$$;
comment on function orbhook._error_class(text, integer, text) is
    'error_class of a failed attempt: of an answer by its status (http_3xx, http_4xx, http_5xx; http_2xx when the body refuses), otherwise what the sidecar saw.';

-- The settings make every join a look-up by index, from an empty table to millions of rows: a plan made while the queue was
-- empty would read all of it (330 ms for a million), and planning anew for each call costs more than the call.
create function orbhook.settle(p_sidecar uuid, p_results jsonb)
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now      timestamptz := clock_timestamp();
    v_period   date := orbhook._period();
    v_reported orbhook._outcome[];
    v_locked   uuid[];
    v_done     uuid[];
    v_applied  orbhook._outcome[];
    v_endings  orbhook._ending[];
    v_ended    uuid[];
begin
    -- The judgement needs no lock: it reads the result and the webhook's provider.
    select array_agg(row(r.delivery, r.attempt, r.outcome, r.started_at, r.duration_ms, r.connect_ms, r.first_byte_ms,
                         left(r.address, 100), r.status, r.headers, r.body, coalesce(r.body_cut, false), r.error_class, r.error,
                         d.webhook_id,
                         -- "Gone", said to a request from before somebody changed the webhook, was said of what it was then.
                         case when j.parts[1] = 'endpoint_permanent' and r.started_at < w.updated_at then 'retry' else j.parts[1] end,
                         j.parts[2]::double precision,
                         coalesce(j.parts[3]::boolean, false), coalesce(j.parts[4]::boolean, false), j.parts[5])::orbhook._outcome)
    into v_reported
    from (select x.*, v_now - make_interval(secs => least(greatest(coalesce(x.started_ago_ms, 0), 0), 86400000) / 1000.0) as started_at
          from jsonb_to_recordset(p_results) as x (
              delivery uuid, attempt integer, outcome text, started_ago_ms bigint, duration_ms integer, connect_ms integer,
              first_byte_ms integer, address text, status integer, headers jsonb, body text, body_cut boolean,
              error_class text, error text)) r
    left join orbhook.deliveries_open d on d.id = r.delivery and d.attempts = r.attempt and d.outcome_attempt < r.attempt
    left join orbhook.webhooks w on w.id = d.webhook_id
    left join lateral (
        select case r.outcome
                   when 'released' then array['released', null, null, null, null]
                   when 'parked' then array['parked', null, null, null, coalesce(r.error, 'a secret could not be opened')]
                   when 'answered' then orbhook._judge(coalesce(w.provider_type, 'GENERIC'), w.target, r.status,
                                                       coalesce(r.headers::text, '{}'), coalesce(r.body, ''),
                                                       floor(extract(epoch from v_now))::bigint)
                   else array['retry', null, null, null, coalesce(r.error, 'no answer')]
               end) as j (parts) on d.id is not null;

    -- State first. A webhook that only succeeds and has no failures behind it is not touched.
    select array_agg(l.webhook_id)
    into v_locked
    from (select s.webhook_id
          from orbhook.webhook_state s
          where s.webhook_id in (
              -- Once for each webhook: while an old snapshot is open its row may have thousands of versions to pass over.
              select a.webhook_id
              from (select r.webhook_id,
                           bool_or(r.verdict in ('retry', 'message_permanent', 'endpoint_permanent')) as has_failed,
                           bool_or(r.verdict = 'delivered') as has_delivered
                    from unnest(v_reported) r group by r.webhook_id) a
              join orbhook.webhook_state t on t.webhook_id = a.webhook_id
              where a.has_failed or (a.has_delivered and t.failing_since is not null))
          order by s.webhook_id
          for update) l;

    v_done := orbhook._settle_delivered(p_sidecar, v_reported, v_now, v_period);
    if v_done is not null then
        select array_agg(a) into v_reported
        from unnest(v_reported) a where a.verdict is null or a.delivery <> all (v_done);
    end if;
    if v_reported is null then
        return;
    end if;

    -- The fence, under the row's lock.
    select array_agg(x.outcome)
    into v_applied
    from (select a as outcome
          from unnest(v_reported) a
          join orbhook.deliveries_open d on d.id = a.delivery and d.attempts = a.attempt and d.outcome_attempt < a.attempt
          where a.verdict is not null
          order by d.id
          for update of d) x;

    insert into orbhook.attempts (
        delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
        status_code, error_class, error, response_headers, response_body, body_cut, late, period)
    select a.delivery, a.attempt, a.webhook_id, p_sidecar, a.started_at, a.duration_ms, a.connect_ms, a.first_byte_ms, a.address,
           a.status,
           case when a.verdict = 'delivered' then null
                when a.is_rate_limited then 'rate_limited'
                else orbhook._error_class(a.outcome, a.status, a.error_class) end,
           left(a.reason, 2000), a.headers, a.body, a.body_cut, false, v_period
    from unnest(v_applied) a
    where a.verdict not in ('released', 'parked');

    if coalesce(cardinality(v_applied), 0) < cardinality(v_reported) then
        return query
        select l.* from orbhook._record_late(p_sidecar, array(
            select a from unnest(v_reported) a
            where not exists (select from unnest(v_applied) b where b.delivery = a.delivery and b.attempt = a.attempt))) l;
    end if;

    update orbhook.webhook_state s
    set consecutive_failures = case when c.failed = 0 then 0
                                    when c.delivered > 0 then c.failed
                                    else s.consecutive_failures + c.failed end,
        failing_since = case when c.failed = 0 then null
                             when c.delivered > 0 or s.failing_since is null then v_now
                             when s.last_failed_at < v_now - interval '1 day' then s.failing_since + (v_now - s.last_failed_at)
                             else s.failing_since end,
        last_failed_at = case when c.failed > 0 then v_now else s.last_failed_at end,
        paused_until = greatest(s.paused_until, v_now + make_interval(secs => c.pause_seconds)),
        pause_reason = coalesce(c.pause_reason, s.pause_reason)
    from (select a.webhook_id,
                 count(*) filter (where a.verdict = 'delivered') as delivered,
                 count(*) filter (where a.verdict in ('retry', 'message_permanent', 'endpoint_permanent')) as failed,
                 max(orbhook._pause_seconds(orbhook._retry_delay_seconds(w.retry_delay, 1), a.after_seconds))
                     filter (where a.is_pause) as pause_seconds,
                 max(a.reason) filter (where a.is_pause) as pause_reason
          from unnest(v_applied) a
          join orbhook.webhooks w on w.id = a.webhook_id
          group by a.webhook_id) c
    where s.webhook_id = c.webhook_id and s.webhook_id = any (v_locked)
      and (c.failed > 0 or (c.delivered > 0 and s.failing_since is not null));

    perform orbhook._switch_off(a.webhook_id, a.reason) from unnest(v_applied) a where a.verdict = 'endpoint_permanent';
    -- A key that is only missing (class key) is in key_ids already: the next claim knows.
    update orbhook.webhooks w
    set key_ids = array_append(w.key_ids, 'unreadable')
    from (select distinct a.webhook_id from unnest(v_applied) a where a.verdict = 'parked' and a.error_class = 'secret') u
    where w.id = u.webhook_id and array_position(w.key_ids, 'unreadable') is null;
    perform orbhook._switch_off_failing(array_agg(a.webhook_id)) from unnest(v_applied) a
    where a.verdict in ('retry', 'message_permanent') having count(*) > 0;

    select array_agg(row(a.delivery,
                         case when a.verdict = 'delivered' then 'delivered' else 'failed' end,
                         a.status, case when a.verdict = 'delivered' then null else a.reason end)::orbhook._ending),
           array_agg(a.delivery)
    into v_endings, v_ended
    from unnest(v_applied) a
    join orbhook.deliveries_open d on d.id = a.delivery
    left join orbhook.webhooks w on w.id = a.webhook_id
    where a.verdict in ('delivered', 'message_permanent', 'endpoint_permanent')
       or (a.verdict = 'parked' and d.is_test)
       or (a.verdict = 'retry'
           and (d.is_test
                or (d.failures >= coalesce(w.max_retries, 0)
                    and not (a.is_rate_limited and coalesce(d.first_due_at, d.due_at) > v_now - interval '24 hours'))));

    update orbhook.deliveries_open d
    set lease_until = null, claimed_by = null, outcome_attempt = a.attempt,
        failures = d.failures + case when a.verdict in ('released', 'parked')
                                          or (a.is_rate_limited and coalesce(d.first_due_at, d.due_at) > v_now - interval '24 hours')
                                     then 0 else 1 end,
        first_due_at = case when a.verdict in ('released', 'parked') then d.first_due_at else coalesce(d.first_due_at, d.due_at) end,
        due_at = case when a.verdict in ('released', 'parked') then d.due_at
                      else v_now + make_interval(secs => orbhook._retry_after_seconds(
                               orbhook._retry_delay_seconds(w.retry_delay, d.failures + 1), a.after_seconds, random())) end,
        last_status_code = coalesce(a.status, case when a.verdict in ('released', 'parked') then d.last_status_code end),
        last_error = coalesce(a.reason, d.last_error)
    from unnest(v_applied) a
    join orbhook.webhooks w on w.id = a.webhook_id
    where d.id = a.delivery and a.delivery <> all (coalesce(v_ended, '{}'));

    perform orbhook._report_failures(v_endings);
    perform orbhook._finish(v_endings);

    return query
    select a.delivery, a.attempt,
           case when a.delivery = any (v_ended) then case a.verdict when 'delivered' then 'delivered' else 'failed' end
                when a.verdict = 'parked' then 'parked'
                else 'pending' end,
           false, case when a.verdict <> 'parked' then (extract(epoch from d.due_at - v_now) * 1000)::integer end, a.reason
    from unnest(v_applied) a
    left join orbhook.deliveries_open d on d.id = a.delivery
    where a.verdict not in ('delivered', 'released') or a.reason is not null;
end
$$;
comment on function orbhook.settle(uuid, jsonb) is
'Applies the results of attempts. p_results: JSON array of {"delivery", "attempt", "outcome": "answered" | "unanswered" | "released" | "parked", "started_ago_ms", "duration_ms", "connect_ms", "first_byte_ms", "address", "status", "headers", "body", "body_cut", "error_class", "error"}. Returns a row for each result worth a line in the log.';

create function orbhook._settle_delivered(
    p_sidecar uuid, p_reported orbhook._outcome[], p_now timestamptz, p_period date) returns uuid[]
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_well uuid[];
    v_done uuid[];
begin
    select array_agg(s.webhook_id) into v_well
    from orbhook.webhook_state s
    where s.webhook_id = any (array(select distinct a.webhook_id from unnest(p_reported) a where a.verdict = 'delivered'))
      and s.failing_since is null;

    -- One statement in place of eight: what was delivered to a webhook that does well changes nothing but itself. The fence
    -- is in the delete, which looks at the row again if somebody else has changed it meanwhile.
    with gone as (
        delete from orbhook.deliveries_open d
        using unnest(p_reported) a
        where a.verdict = 'delivered' and a.reason is null and a.webhook_id = any (v_well)
          and d.id = a.delivery and d.attempts = a.attempt and d.outcome_attempt < a.attempt
        returning d.id, d.event_id, d.webhook_id, d.attempts, d.failures, d.is_test, d.created_at, a.started_at, a.duration_ms,
                  a.connect_ms, a.first_byte_ms, a.address, a.status, a.headers, a.body, a.body_cut
    ), tried as (
        insert into orbhook.attempts (
            delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
            status_code, response_headers, response_body, body_cut, period)
        select g.id, g.attempts, g.webhook_id, p_sidecar, g.started_at, g.duration_ms, g.connect_ms, g.first_byte_ms, g.address,
               g.status, g.headers, g.body, g.body_cut, p_period
        from gone g
    ), ended as (
        insert into orbhook.deliveries (
            id, event_id, webhook_id, status, attempts, failures, outcome_attempt,
            last_status_code, is_test, created_at, finished_at, period)
        select g.id, g.event_id, g.webhook_id, 'delivered', g.attempts, g.failures, g.attempts,
               g.status, g.is_test, g.created_at, p_now, p_period
        from gone g
    )
    select array_agg(g.id) into v_done from gone g;
    return v_done;
end
$$;
comment on function orbhook._settle_delivered(uuid, orbhook._outcome[], timestamptz, date) is
    'Ends what was simply delivered, to webhooks that have no failure behind them; returns those deliveries, null for none.';

create function orbhook._record_late(p_sidecar uuid, p_late orbhook._outcome[])
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_late record;
begin
    for v_late in
        select a.delivery, a.attempt, a.outcome, a.started_at, a.duration_ms, a.connect_ms, a.first_byte_ms, a.address, a.status,
               a.error_class, d.status as delivery_status, d.webhook_id as delivery_webhook_id,
               -- Of an event that was erased while its request was under way, no word of the answer is kept.
               case when not x.erased then a.headers end as headers, case when not x.erased then a.body end as body,
               a.body_cut and not x.erased as body_cut, case when x.erased then 'erased' else a.error end as error
        from unnest(p_late) a
        join orbhook.deliveries d on d.id = a.delivery
        cross join lateral (select orbhook._is_erased(d.event_id) as erased) x
        where a.outcome not in ('released', 'parked') and a.attempt between 1 and d.attempts
    loop
        -- The next claim wrote this attempt down as unknown; now its outcome is known. A second report of one that is
        -- already known (the connection broke after the commit, so the sidecar asked again) changes nothing.
        update orbhook.attempts t
        set late = true, started_at = v_late.started_at, duration_ms = v_late.duration_ms, connect_ms = v_late.connect_ms,
            first_byte_ms = v_late.first_byte_ms, address = v_late.address, status_code = v_late.status,
            error_class = orbhook._error_class(v_late.outcome, v_late.status, v_late.error_class),
            error = coalesce(left(v_late.error, 2000), 'the answer came after the lease had ended'),
            response_headers = v_late.headers, response_body = v_late.body, body_cut = v_late.body_cut
        where t.delivery_id = v_late.delivery and t.number = v_late.attempt and t.error_class = 'unknown';
        if not found then
            insert into orbhook.attempts (
                delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
                status_code, error_class, error, response_headers, response_body, body_cut, late, period)
            select v_late.delivery, v_late.attempt, v_late.delivery_webhook_id, p_sidecar, v_late.started_at,
                   v_late.duration_ms, v_late.connect_ms, v_late.first_byte_ms, v_late.address, v_late.status,
                   orbhook._error_class(v_late.outcome, v_late.status, v_late.error_class),
                   coalesce(left(v_late.error, 2000), 'the answer came after the delivery had ended'),
                   v_late.headers, v_late.body, v_late.body_cut, true, orbhook._period()
            where not exists (select from orbhook.attempts t
                              where t.delivery_id = v_late.delivery and t.number = v_late.attempt);
            continue when not found;
        end if;
        return query select v_late.delivery, v_late.attempt, v_late.delivery_status, true, null::integer,
                            case v_late.delivery_status
                                when 'pending' then 'the lease had gone to another attempt; recorded, nothing changed'
                                else 'the delivery had already ended; recorded, nothing changed' end;
    end loop;
end
$$;
comment on function orbhook._record_late(uuid, orbhook._outcome[]) is
    'Records results whose attempt is no longer the latest, or whose delivery has ended.';
