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
-- Lock order: webhook_state (by webhook_id), then deliveries_open (by id). What was not locked at the beginning is not
-- updated later, or two settles would wait for each other.

create type orbhook._judgement as (
    delivery_id   uuid,
    attempt       integer,
    webhook_id    uuid,
    verdict       text,
    after_seconds double precision,
    rate_limited  boolean,
    pause         boolean,
    reason        text
);
comment on type orbhook._judgement is
    'What a result means: verdict is delivered, retry, message_permanent, endpoint_permanent, parked or released.';

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

create function orbhook.settle(p_sidecar uuid, p_results jsonb)
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now     timestamptz := clock_timestamp();
    v_period  date := orbhook._period();
    v_locked  uuid[];
    v_judged  orbhook._judgement[];
    v_applied orbhook._judgement[];
    v_endings orbhook._ending[];
begin
    -- The judgement needs no lock: it reads the result and the webhook's provider.
    select array_agg(row(r.delivery, r.attempt, d.webhook_id,
                         -- "Gone", said to a request from before somebody changed the webhook, was said of what it was then.
                         case when j.parts[1] = 'endpoint_permanent'
                                   and v_now - make_interval(secs => greatest(coalesce(r.started_ago_ms, 0), 0) / 1000.0) < w.updated_at
                              then 'retry' else j.parts[1] end,
                         j.parts[2]::double precision,
                         coalesce(j.parts[3]::boolean, false), coalesce(j.parts[4]::boolean, false), j.parts[5])::orbhook._judgement)
    into v_judged
    from jsonb_to_recordset(p_results) as r (
        delivery uuid, attempt integer, outcome text, status integer, headers jsonb, body text, error text, started_ago_ms bigint)
    join orbhook.deliveries_open d on d.id = r.delivery and d.attempts = r.attempt and d.outcome_attempt < r.attempt
    left join orbhook.webhooks w on w.id = d.webhook_id
    cross join lateral (
        select case r.outcome
                   when 'released' then array['released', null, null, null, null]
                   when 'parked' then array['parked', null, null, null, coalesce(r.error, 'a secret could not be opened')]
                   when 'answered' then orbhook._judge(coalesce(w.provider_type, 'GENERIC'), w.target, r.status,
                                                       coalesce(r.headers::text, '{}'), coalesce(r.body, ''),
                                                       floor(extract(epoch from v_now))::bigint)
                   else array['retry', null, null, null, coalesce(r.error, 'no answer')]
               end) as j (parts);

    -- State first. A webhook that only succeeds and has no failures behind it is not touched.
    select array_agg(l.webhook_id)
    into v_locked
    from (select s.webhook_id
          from orbhook.webhook_state s
          where s.webhook_id in (
              select u.webhook_id from unnest(v_judged) u
              join orbhook.webhook_state t on t.webhook_id = u.webhook_id
              where u.verdict in ('retry', 'message_permanent', 'endpoint_permanent')
                 or (u.verdict = 'delivered' and t.failing_since is not null))
          order by s.webhook_id
          for update) l;

    -- The fence, under the row's lock.
    select array_agg(x.judgement)
    into v_applied
    from (select u as judgement
          from unnest(v_judged) u
          join orbhook.deliveries_open d on d.id = u.delivery_id and d.attempts = u.attempt and d.outcome_attempt < u.attempt
          order by d.id
          for update of d) x;

    insert into orbhook.attempts (
        delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
        status_code, error_class, error, response_headers, response_body, body_cut, late, period)
    select r.delivery, r.attempt, a.webhook_id, p_sidecar,
           v_now - make_interval(secs => least(greatest(coalesce(r.started_ago_ms, 0), 0), 86400000) / 1000.0),
           r.duration_ms, r.connect_ms, r.first_byte_ms, left(r.address, 100), r.status,
           case when a.verdict = 'delivered' then null
                when a.rate_limited then 'rate_limited'
                else orbhook._error_class(r.outcome, r.status, r.error_class) end,
           left(a.reason, 2000), r.headers, r.body, coalesce(r.body_cut, false), false, v_period
    from jsonb_to_recordset(p_results) as r (
        delivery uuid, attempt integer, outcome text, started_ago_ms bigint, duration_ms integer, connect_ms integer,
        first_byte_ms integer, address text, status integer, headers jsonb, body text, body_cut boolean, error_class text)
    join unnest(v_applied) a on a.delivery_id = r.delivery and a.attempt = r.attempt
    where r.outcome not in ('released', 'parked');

    if coalesce(cardinality(v_applied), 0) < jsonb_array_length(p_results) then
        return query select * from orbhook._record_late(p_sidecar, p_results, v_applied, v_now);
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
                     filter (where a.pause) as pause_seconds,
                 max(a.reason) filter (where a.pause) as pause_reason
          from unnest(v_applied) a
          join orbhook.webhooks w on w.id = a.webhook_id
          group by a.webhook_id) c
    where s.webhook_id = c.webhook_id and s.webhook_id = any (v_locked)
      and (c.failed > 0 or (c.delivered > 0 and s.failing_since is not null));

    perform orbhook._switch_off(a.webhook_id, a.reason) from unnest(v_applied) a where a.verdict = 'endpoint_permanent';
    -- A key that is only missing (class key) is in key_ids already: the next claim knows.
    update orbhook.webhooks w
    set key_ids = array_append(w.key_ids, 'unreadable')
    from (select distinct a.webhook_id
          from unnest(v_applied) a
          join jsonb_to_recordset(p_results) as r (delivery uuid, attempt integer, error_class text)
              on r.delivery = a.delivery_id and r.attempt = a.attempt
          where a.verdict = 'parked' and r.error_class = 'secret') u
    where w.id = u.webhook_id and array_position(w.key_ids, 'unreadable') is null;
    perform orbhook._switch_off_failing(array_agg(a.webhook_id)) from unnest(v_applied) a
    where a.verdict in ('retry', 'message_permanent') having count(*) > 0;

    select array_agg(row(a.delivery_id,
                         case when a.verdict = 'delivered' then 'delivered' else 'failed' end,
                         r.status, case when a.verdict = 'delivered' then null else a.reason end)::orbhook._ending)
    into v_endings
    from unnest(v_applied) a
    join jsonb_to_recordset(p_results) as r (delivery uuid, attempt integer, status integer)
        on r.delivery = a.delivery_id and r.attempt = a.attempt
    join orbhook.deliveries_open d on d.id = a.delivery_id
    left join orbhook.webhooks w on w.id = a.webhook_id
    where a.verdict in ('delivered', 'message_permanent', 'endpoint_permanent')
       or (a.verdict = 'parked' and d.is_test)
       or (a.verdict = 'retry'
           and (d.is_test
                or (d.failures >= coalesce(w.max_retries, 0)
                    and not (a.rate_limited and coalesce(d.first_due_at, d.due_at) > v_now - interval '24 hours'))));

    update orbhook.deliveries_open d
    set lease_until = null, claimed_by = null, outcome_attempt = a.attempt,
        failures = d.failures + case when a.verdict in ('released', 'parked') or a.spared then 0 else 1 end,
        first_due_at = case when a.verdict in ('released', 'parked') then d.first_due_at else coalesce(d.first_due_at, d.due_at) end,
        due_at = case when a.verdict in ('released', 'parked') then d.due_at
                      else v_now + make_interval(secs => orbhook._retry_after_seconds(
                               orbhook._retry_delay_seconds(w.retry_delay, d.failures + 1), a.after_seconds, random())) end,
        last_status_code = coalesce(r.status, case when a.verdict in ('released', 'parked') then d.last_status_code end),
        last_error = coalesce(a.reason, d.last_error)
    from (select u.*, u.rate_limited and coalesce(o.first_due_at, o.due_at) > v_now - interval '24 hours' as spared
          from unnest(v_applied) u
          join orbhook.deliveries_open o on o.id = u.delivery_id) a
    join jsonb_to_recordset(p_results) as r (delivery uuid, attempt integer, status integer)
        on r.delivery = a.delivery_id and r.attempt = a.attempt
    join orbhook.webhooks w on w.id = a.webhook_id
    where d.id = a.delivery_id
      and d.id <> all (coalesce((select array_agg(e.delivery_id) from unnest(v_endings) e), '{}'));

    perform orbhook._report_failures(v_endings);
    perform orbhook._finish(v_endings);

    return query
    select a.delivery_id, a.attempt, coalesce(e.status, case a.verdict when 'parked' then 'parked' else 'pending' end), false,
           case when a.verdict <> 'parked' then (extract(epoch from d.due_at - v_now) * 1000)::integer end, a.reason
    from unnest(v_applied) a
    left join unnest(v_endings) e on e.delivery_id = a.delivery_id
    left join orbhook.deliveries_open d on d.id = a.delivery_id
    where a.verdict not in ('delivered', 'released') or a.reason is not null;
end
$$;
comment on function orbhook.settle(uuid, jsonb) is
'Applies the results of attempts. p_results: JSON array of {"delivery", "attempt", "outcome": "answered" | "unanswered" | "released" | "parked", "started_ago_ms", "duration_ms", "connect_ms", "first_byte_ms", "address", "status", "headers", "body", "body_cut", "error_class", "error"}. Returns a row for each result worth a line in the log.';

create function orbhook._record_late(p_sidecar uuid, p_results jsonb, p_applied orbhook._judgement[], p_now timestamptz)
returns table (delivery_id uuid, attempt integer, status text, late boolean, due_in_ms integer, reason text)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_result record;
begin
    for v_result in
        select r.*, d.status as delivery_status, d.webhook_id
        from jsonb_to_recordset(p_results) as r (
            delivery uuid, attempt integer, outcome text, started_ago_ms bigint, duration_ms integer, connect_ms integer,
            first_byte_ms integer, address text, status integer, headers jsonb, body text, body_cut boolean,
            error_class text, error text)
        left join unnest(p_applied) a on a.delivery_id = r.delivery and a.attempt = r.attempt
        left join orbhook.deliveries d on d.id = r.delivery
        where a.delivery_id is null and r.outcome not in ('released', 'parked') and d.id is not null and r.attempt between 1 and d.attempts
    loop
        -- The next claim wrote this attempt down as unknown; now its outcome is known. A second report of one that is
        -- already known (the connection broke after the commit, so the sidecar asked again) changes nothing.
        update orbhook.attempts t
        set late = true,
            started_at = p_now - make_interval(secs => least(greatest(coalesce(v_result.started_ago_ms, 0), 0), 86400000) / 1000.0),
            duration_ms = v_result.duration_ms, connect_ms = v_result.connect_ms,
            first_byte_ms = v_result.first_byte_ms, address = left(v_result.address, 100), status_code = v_result.status,
            error_class = orbhook._error_class(v_result.outcome, v_result.status, v_result.error_class),
            error = coalesce(left(v_result.error, 2000), 'the answer came after the lease had ended'),
            response_headers = v_result.headers, response_body = v_result.body, body_cut = coalesce(v_result.body_cut, false)
        where t.delivery_id = v_result.delivery and t.number = v_result.attempt and t.error_class = 'unknown';
        if not found then
            insert into orbhook.attempts (
                delivery_id, number, webhook_id, sidecar, started_at, duration_ms, connect_ms, first_byte_ms, address,
                status_code, error_class, error, response_headers, response_body, body_cut, late, period)
            select v_result.delivery, v_result.attempt, v_result.webhook_id, p_sidecar,
                   p_now - make_interval(secs => least(greatest(coalesce(v_result.started_ago_ms, 0), 0), 86400000) / 1000.0),
                   v_result.duration_ms, v_result.connect_ms, v_result.first_byte_ms, left(v_result.address, 100), v_result.status,
                   orbhook._error_class(v_result.outcome, v_result.status, v_result.error_class),
                   coalesce(left(v_result.error, 2000), 'the answer came after the delivery had ended'),
                   v_result.headers, v_result.body, coalesce(v_result.body_cut, false), true, orbhook._period()
            where not exists (select from orbhook.attempts t
                              where t.delivery_id = v_result.delivery and t.number = v_result.attempt);
            continue when not found;
        end if;
        return query select v_result.delivery, v_result.attempt, v_result.delivery_status, true, null::integer,
                            case v_result.delivery_status
                                when 'pending' then 'the lease had gone to another attempt; recorded, nothing changed'
                                else 'the delivery had already ended; recorded, nothing changed' end;
    end loop;
end
$$;
comment on function orbhook._record_late(uuid, jsonb, orbhook._judgement[], timestamptz) is
    'Records results whose attempt is no longer the latest, or whose delivery has ended.';
