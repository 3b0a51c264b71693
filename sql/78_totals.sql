-- Totals: attempts counted by the minute and by the hour, so that webhook_health stays fast at millions a day.
--
-- Nothing is counted while results are settled: that would write one row of the busiest webhook from every sidecar.
-- Instead orbhook.tend, which every sidecar calls every few seconds, counts a minute of orbhook.attempts once it is
-- two minutes old. Whole hours are added up from their minutes. What is newer than the last counted minute is read from
-- orbhook.attempts by whoever asks (webhook_health).
--
-- Answer times are rounded up in steps of a twentieth to a tenth: by 1 ms below 20, by 2 below 50, by 5 below 100, and so on
-- with each decade. So a percentile is at most a tenth too high, and a webhook has at most some 160 rows for a minute or an
-- hour, however much it is sent.
--
-- What must stay true
--   * minutes before minutes_until are counted and never again; minutes from there on are not counted yet;
--   * hours before hours_until are added up; minutes are kept for at least an hour after that;
--   * the totals are derived: lost or not restored, they are counted anew from the attempts of the last 25 hours.
--
-- A step is one short transaction that locks the row of orbhook.totals_until and skips when another sidecar has it. A
-- crash undoes the step; the next one begins where the last committed one ended. Two minutes are longer than a request
-- may take (30 s) and its result waits to be settled; an attempt that is reported later still (a sidecar was cut off
-- from the database) is in orbhook.attempts and in no total.

create table orbhook.attempt_minutes (
    starts_at   timestamptz not null,
    webhook_id  uuid not null,
    duration_ms integer,
    sent        integer not null,
    failed      integer not null
) with (autovacuum_vacuum_scale_factor = 0.1);
create index attempt_minutes_starts_at on orbhook.attempt_minutes (starts_at);
comment on table orbhook.attempt_minutes is
    'Attempts of each webhook by the minute they began in and the time the answer took: the last two hours or so, up to two or three minutes ago. Counted from orbhook.attempts by orbhook.tend.';
comment on column orbhook.attempt_minutes.starts_at is 'The minute.';
comment on column orbhook.attempt_minutes.webhook_id is 'The webhook.';
comment on column orbhook.attempt_minutes.duration_ms is
    'Milliseconds the answer took, rounded up by a tenth at most. A time-out counts as an answer; null: there was none.';
comment on column orbhook.attempt_minutes.sent is 'Requests sent.';
comment on column orbhook.attempt_minutes.failed is 'Those of them that failed or whose outcome is unknown.';

create table orbhook.attempt_hours (
    starts_at   timestamptz not null,
    webhook_id  uuid not null,
    duration_ms integer,
    sent        integer not null,
    failed      integer not null
);
create index attempt_hours_starts_at on orbhook.attempt_hours (starts_at);
comment on table orbhook.attempt_hours is
    'The same by the hour: the last 26 whole hours. Added up from orbhook.attempt_minutes by orbhook.tend.';
comment on column orbhook.attempt_hours.starts_at is 'The hour.';
comment on column orbhook.attempt_hours.webhook_id is 'The webhook.';
comment on column orbhook.attempt_hours.duration_ms is
    'Milliseconds the answer took, rounded up by a tenth at most. A time-out counts as an answer; null: there was none.';
comment on column orbhook.attempt_hours.sent is 'Requests sent.';
comment on column orbhook.attempt_hours.failed is 'Those of them that failed or whose outcome is unknown.';

create table orbhook.totals_until (
    one           boolean primary key default true
                  constraint totals_until_has_one_row check (one),
    minutes_until timestamptz not null default '-infinity',
    hours_until   timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into orbhook.totals_until default values;
comment on table orbhook.totals_until is 'How far attempts have been counted: one row.';
comment on column orbhook.totals_until.one is 'Always true.';
comment on column orbhook.totals_until.minutes_until is 'attempt_minutes is complete up to here; later attempts are read from orbhook.attempts.';
comment on column orbhook.totals_until.hours_until is 'attempt_hours is complete up to here.';

create function orbhook._duration_step(p_duration_ms integer) returns integer
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select case when p_duration_ms < 20 then 1 when p_duration_ms < 50 then 2 when p_duration_ms < 100 then 5
                when p_duration_ms < 200 then 10 when p_duration_ms < 500 then 20 when p_duration_ms < 1000 then 50
                when p_duration_ms < 2000 then 100 when p_duration_ms < 5000 then 200 when p_duration_ms < 10000 then 500
                when p_duration_ms < 20000 then 1000 when p_duration_ms < 50000 then 2000 else 5000 end
$$;
comment on function orbhook._duration_step(integer) is
    'Milliseconds that a duration is rounded up to a multiple of. webhook_health says the same in place.';

create function orbhook._total_attempts() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_done  timestamptz;
    v_hours timestamptz;
    v_limit timestamptz := date_trunc('minute', clock_timestamp() - interval '2 minutes', 'UTC');
    v_from  timestamptz;
    v_to    timestamptz;
begin
    select t.minutes_until, t.hours_until into v_done, v_hours
    from orbhook.totals_until t
    where t.minutes_until < v_limit
    for update skip locked;
    if not found then
        return false;
    end if;
    -- Nobody asks about more than a day and the hour it began in.
    v_from := greatest(v_done, date_trunc('hour', v_limit, 'UTC') - interval '25 hours');
    v_hours := greatest(v_hours, date_trunc('hour', v_from, 'UTC'));

    -- After a night without a sidecar: when nothing was tried at all it is one step, and an hour in which nothing was tried
    -- is one, not sixty.
    v_to := v_limit;
    if exists (select from orbhook.attempts a
               where a.started_at >= v_from and a.started_at < v_limit
                 and (a.period >= v_from::date - 13 or a.period = '1970-01-01')) then
        v_to := least(v_from + interval '1 hour', v_limit);
    end if;
    if exists (select from orbhook.attempts a
               where a.started_at >= v_from and a.started_at < v_to
                 and (a.period >= v_from::date - 13 or a.period = '1970-01-01')) then
        v_to := v_from + interval '1 minute';
        insert into orbhook.attempt_minutes (starts_at, webhook_id, duration_ms, sent, failed)
        select v_from, a.webhook_id, r.rounded_ms, count(*)::integer, count(a.error_class)::integer
        from orbhook.attempts a
        cross join lateral (
            select case when a.status_code is not null or a.error_class like 'timeout%'
                        then (least(a.duration_ms, 3600000) + t.step - 1) / t.step * t.step end as rounded_ms
            from (select orbhook._duration_step(a.duration_ms) as step) t) r
        where a.started_at >= v_from and a.started_at < v_to
          and (a.period >= v_from::date - 13 or a.period = '1970-01-01')
          and a.error_class is distinct from 'render'
        group by a.webhook_id, r.rounded_ms;
    end if;

    if v_to >= v_hours + interval '1 hour' then
        insert into orbhook.attempt_hours (starts_at, webhook_id, duration_ms, sent, failed)
        select v_hours, m.webhook_id, m.duration_ms, sum(m.sent)::integer, sum(m.failed)::integer
        from orbhook.attempt_minutes m
        where m.starts_at >= v_hours and m.starts_at < v_hours + interval '1 hour'
        group by m.webhook_id, m.duration_ms;
        v_hours := v_hours + interval '1 hour';
        delete from orbhook.attempt_minutes m where m.starts_at < v_hours - interval '1 hour';
        delete from orbhook.attempt_hours h where h.starts_at < v_hours - interval '26 hours';
    end if;
    update orbhook.totals_until t set minutes_until = v_to, hours_until = v_hours;
    return v_to < v_limit;
end
$$;
comment on function orbhook._total_attempts() is
    'Counts the next minute of attempts, if it is two minutes old. True: there is more to count.';

create function orbhook.tend() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return orbhook._open_event_weeks() or orbhook._total_attempts() or orbhook._retain();
end
$$;
comment on function orbhook.tend() is
    'Upkeep in small steps, called by every sidecar every few seconds: counts attempts for webhook_health, makes next weeks'' partitions, removes what is too old (orbhook.retention). True: there is more to do, call again.';
