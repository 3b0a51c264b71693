-- Views: what a person asks, answered with one select.
--
--   delivery_log    did event X reach webhook Y, and if not, why
--   backlog         what waits, and what for
--   webhook_health  who is slow, who fails, since when
--   dead_letters    what was given up
--   sidecars        who runs
--
-- They show no secret, no payload and no body of an answer, so every reader may read them. They call no function of
-- orbhook's: a function in a view runs with the rights of whoever reads the view.
--
-- What must stay true: none of them reads the history of deliveries from end to end. deliveries_open is as large as the
-- backlog; dead_letters goes by the index of failed deliveries; health reads what was counted (78_totals) and, through the
-- block range index, the attempts since. delivery_log is a plain join: what it reads is what its conditions leave (event_id, delivery_id), and
-- "order by delivery_id desc limit 20" walks the index of ids, newest first.
--
-- statement_timestamp(), not now(): in a session that stays in one transaction the answer would stand still.

create view orbhook.delivery_log as
select d.id as delivery_id, d.event_id, e.event_type, d.webhook_id, w.name as webhook, d.status, d.attempts,
       case when d.attempts = 0 then null
            when d.last_error is not null then d.last_error
            when d.last_status_code is not null then 'answered ' || d.last_status_code end as last_answer,
       case when d.status <> 'pending' then null
            when d.lease_until > statement_timestamp() and i.died_at is null then 'under way'
            when w.id is null then 'never: the webhook was deleted'
            when d.is_test and d.due_at <= statement_timestamp() then 'now'
            when not w.active then 'when the webhook is active again' || coalesce('; switched off: ' || w.inactive_reason, '')
            when w.paused then 'when the webhook is resumed'
            when d.due_at = '9999-12-31 00:00:00+00' then 'when somebody decides about it: orbhook_retry, orbhook_cancel or orbhook_takeover'
            when array_position(w.key_ids, 'unreadable') is not null then
                'when its secrets are set anew (orbhook_update_webhook): one of them cannot be opened'
            when w.key_ids is not null
                 and not exists (select from orbhook.instances k
                                 where k.stopped_at is null and k.died_at is null and w.key_ids <@ k.key_ids) then
                'when a sidecar has the key that its secrets are sealed with: ' || array_to_string(w.key_ids, ', ')
            when greatest(d.due_at, s.paused_until) <= statement_timestamp() then 'now, when its turn comes'
            when s.paused_until > d.due_at then
                'in ' || date_trunc('second', s.paused_until - statement_timestamp())
                || coalesce('; the receiver asked for quiet: ' || s.pause_reason, '; the receiver asked for quiet')
            else 'in ' || date_trunc('second', d.due_at - statement_timestamp()) end as next_try,
       d.due_at, d.created_at, d.finished_at, d.is_test
from orbhook.deliveries d
left join orbhook.events e on e.id = d.event_id
left join orbhook.webhooks w on w.id = d.webhook_id
left join orbhook.webhook_state s on s.webhook_id = d.webhook_id
left join orbhook.instances i on i.id = d.claimed_by;
comment on view orbhook.delivery_log is
    'One line for each delivery. Narrow it by event_id or delivery_id; the latest: order by delivery_id desc limit 20. The whole story of an event: orbhook.event_trace.';
comment on column orbhook.delivery_log.delivery_id is 'The delivery, which the receiver sees as webhook-id. Grows with time.';
comment on column orbhook.delivery_log.event_id is 'The event, as orbhook_emit returned it.';
comment on column orbhook.delivery_log.event_type is 'Its type; null when the event is no longer kept.';
comment on column orbhook.delivery_log.webhook_id is 'The webhook.';
comment on column orbhook.delivery_log.webhook is 'Its name; null when it was deleted.';
comment on column orbhook.delivery_log.status is 'pending, delivered, failed or cancelled.';
comment on column orbhook.delivery_log.attempts is 'Times it was claimed.';
comment on column orbhook.delivery_log.last_answer is 'What the receiver said last, or what went wrong, in words; null before the first answer.';
comment on column orbhook.delivery_log.next_try is 'When it is tried again, or what it waits for, in words; null once finished.';
comment on column orbhook.delivery_log.due_at is 'When it is due; null once finished.';
comment on column orbhook.delivery_log.created_at is 'When it was queued.';
comment on column orbhook.delivery_log.finished_at is 'When it was delivered, failed or cancelled.';
comment on column orbhook.delivery_log.is_test is 'Made by orbhook_test_webhook.';

create view orbhook.backlog as
select q.webhook_id, w.name as webhook, q.pending, q.waiting, q.in_flight, q.scheduled,
       statement_timestamp() - q.oldest_due_at as oldest_waiting, q.next_due_at,
       case when w.id is null then 'the webhook was deleted; the next claim cancels these'
            when not w.active then coalesce('switched off: ' || w.inactive_reason,
                                            'not active; orbhook_update_webhook(id, ''{"active": true}'') sends them')
            when w.paused then 'paused; orbhook_resume(id) sends them'
            when s.paused_until > statement_timestamp() then
                'the receiver asked for quiet for another ' || date_trunc('second', s.paused_until - statement_timestamp())
                || coalesce(': ' || s.pause_reason, '')
            when q.waiting = 0 then null
            when not exists (select from orbhook.instances i where i.stopped_at is null and i.died_at is null) then
                'no sidecar is running; start one with: orbhook run'
            when array_position(w.key_ids, 'unreadable') is not null then
                'a secret of it cannot be opened; set its endpoint and its secrets anew with orbhook_update_webhook'
            when w.key_ids is not null
                 and not exists (select from orbhook.instances k
                                 where k.stopped_at is null and k.died_at is null and w.key_ids <@ k.key_ids) then
                format('no running sidecar has the key that its secrets are sealed with (%s); start one with --key-file',
                       array_to_string(w.key_ids, ', '))
            when q.in_flight >= w.max_in_flight then format('%s requests are under way, as many as maxInFlight allows', q.in_flight)
            when s.next_send_at > statement_timestamp() then format('paced by its rateLimit of %s a second', w.rate_limit_per_second)
       end as held_by
from (
    select d.webhook_id,
           count(*) as pending,
           count(*) filter (where d.due_at <= statement_timestamp() and not d.leased) as waiting,
           count(*) filter (where d.leased) as in_flight,
           count(*) filter (where d.due_at > statement_timestamp() and not d.leased) as scheduled,
           min(d.due_at) filter (where d.due_at <= statement_timestamp() and not d.leased) as oldest_due_at,
           min(d.due_at) filter (where d.due_at > statement_timestamp() and not d.leased) as next_due_at
    from (select o.webhook_id, o.due_at, coalesce(o.lease_until > statement_timestamp() and i.died_at is null, false) as leased
          from orbhook.deliveries_open o
          left join orbhook.instances i on i.id = o.claimed_by) d
    group by d.webhook_id) q
left join orbhook.webhooks w on w.id = q.webhook_id
left join orbhook.webhook_state s on s.webhook_id = q.webhook_id;
comment on view orbhook.backlog is
    'What is pending for each webhook that has something pending, and what holds it up. What is stuck: order by oldest_waiting desc nulls last.';
comment on column orbhook.backlog.webhook_id is 'The webhook.';
comment on column orbhook.backlog.webhook is 'Its name; null when it was deleted.';
comment on column orbhook.backlog.pending is 'Deliveries neither delivered nor given up: waiting + in_flight + scheduled.';
comment on column orbhook.backlog.waiting is 'Due and not under way.';
comment on column orbhook.backlog.in_flight is 'Under way at a sidecar.';
comment on column orbhook.backlog.scheduled is 'Due later: retries, and events with deliver_at.';
comment on column orbhook.backlog.oldest_waiting is 'How long the oldest waiting one has been due; null when none waits.';
comment on column orbhook.backlog.next_due_at is 'When the next scheduled one is due.';
comment on column orbhook.backlog.held_by is 'What holds it up and how to let it go, in words; null when it flows.';

create view orbhook.webhook_health as
select w.id as webhook_id, w.name as webhook,
       case when not w.active then 'inactive'
            when w.paused then 'paused'
            when s.paused_until > statement_timestamp() then 'quiet'
            when b.oldest_waiting > interval '1 minute' and b.in_flight = 0 then 'stuck'
            when s.failing_since is not null then 'failing'
            else 'ok' end as state,
       case when w.active and not w.paused and s.paused_until <= statement_timestamp()
                 and s.failing_since is not null and (b.oldest_waiting > interval '1 minute' and b.in_flight = 0) is not true then
                format('%s failed attempts since %s without a success%s', s.consecutive_failures,
                       date_trunc('second', s.failing_since), coalesce(': ' || l.last_error, ''))
            when not w.active then coalesce(w.inactive_reason, 'switched off by hand; orbhook_update_webhook(id, ''{"active": true}'')')
            when w.paused then 'paused by hand; orbhook_resume(id)'
            when b.oldest_waiting > interval '1 minute' or s.paused_until > statement_timestamp() then
                coalesce(b.held_by, 'deliveries are due and nobody claims them: look at orbhook.sidecars') end as reason,
       coalesce(a.sent_hour, 0) as sent_hour, coalesce(a.failed_hour, 0) as failed_hour,
       round(100 * (a.sent_hour - a.failed_hour)::numeric / nullif(a.sent_hour, 0), 2) as success_hour_percent,
       a.p50_hour_ms, a.p99_hour_ms,
       coalesce(a.sent_day, 0) as sent_day, coalesce(a.failed_day, 0) as failed_day,
       round(100 * (a.sent_day - a.failed_day)::numeric / nullif(a.sent_day, 0), 2) as success_day_percent,
       a.p50_day_ms, a.p99_day_ms,
       coalesce(b.pending, 0) as backlog, coalesce(b.in_flight, 0) as in_flight, b.oldest_waiting
from orbhook.webhooks w
left join orbhook.webhook_state s on s.webhook_id = w.id
left join orbhook.backlog b on b.webhook_id = w.id
left join lateral (
    -- Retries lie at the end of the queue; a hundred rows bound the look.
    select n.last_error
    from (select d.last_error, d.due_at from orbhook.deliveries_open d
          where d.webhook_id = w.id and s.failing_since is not null order by d.due_at desc limit 100) n
    where n.last_error is not null
    order by n.due_at desc
    limit 1) l on true
left join (
    -- For each webhook, its times in ascending order with a running count: a percentile is the first time that reaches it.
    select u.webhook_id,
           sum(u.sent_hour)::bigint as sent_hour, sum(u.failed_hour)::bigint as failed_hour,
           min(u.duration_ms) filter (where u.timed_hour > 0 and u.upto_hour >= 0.5 * u.timed_hour) as p50_hour_ms,
           min(u.duration_ms) filter (where u.timed_hour > 0 and u.upto_hour >= 0.99 * u.timed_hour) as p99_hour_ms,
           sum(u.sent_day)::bigint as sent_day, sum(u.failed_day)::bigint as failed_day,
           min(u.duration_ms) filter (where u.timed_day > 0 and u.upto_day >= 0.5 * u.timed_day) as p50_day_ms,
           min(u.duration_ms) filter (where u.timed_day > 0 and u.upto_day >= 0.99 * u.timed_day) as p99_day_ms
    from (
        select t.webhook_id, t.duration_ms,
               sum(t.sent) filter (where t.in_hour) as sent_hour, sum(t.failed) filter (where t.in_hour) as failed_hour,
               sum(t.sent) filter (where t.in_day) as sent_day, sum(t.failed) filter (where t.in_day) as failed_day,
               sum(sum(t.sent) filter (where t.in_hour and t.duration_ms is not null)) over ascending as upto_hour,
               sum(sum(t.sent) filter (where t.in_hour and t.duration_ms is not null)) over whole as timed_hour,
               sum(sum(t.sent) filter (where t.in_day and t.duration_ms is not null)) over ascending as upto_day,
               sum(sum(t.sent) filter (where t.in_day and t.duration_ms is not null)) over whole as timed_day
        from (
            select h.webhook_id, h.duration_ms, h.sent, h.failed, false as in_hour, true as in_day
            from orbhook.attempt_hours h
            where h.starts_at >= date_trunc('hour', statement_timestamp() - interval '1 day', 'UTC')
            union all
            select m.webhook_id, m.duration_ms, m.sent, m.failed,
                   m.starts_at >= date_trunc('minute', statement_timestamp() - interval '1 hour', 'UTC'),
                   m.starts_at >= c.hours_until
            from orbhook.attempt_minutes m
            cross join orbhook.totals_until c
            where m.starts_at >= date_trunc('hour', statement_timestamp() - interval '1 day', 'UTC')
            union all
            -- Not counted yet: the last two or three minutes while a sidecar runs.
            select x.webhook_id,
                   case when x.status_code is not null or x.error_class like 'timeout%'
                        then (least(x.duration_ms, 3600000) + r.step - 1) / r.step * r.step end,
                   1, case when x.error_class is null then 0 else 1 end,
                   x.started_at > statement_timestamp() - interval '1 hour', true
            from orbhook.attempts x
            cross join lateral (
                select case when x.duration_ms < 20 then 1 when x.duration_ms < 50 then 2 when x.duration_ms < 100 then 5
                            when x.duration_ms < 200 then 10 when x.duration_ms < 500 then 20 when x.duration_ms < 1000 then 50
                            when x.duration_ms < 2000 then 100 when x.duration_ms < 5000 then 200 when x.duration_ms < 10000 then 500
                            when x.duration_ms < 20000 then 1000 when x.duration_ms < 50000 then 2000 else 5000 end as step) r
            where x.started_at >= (select c.minutes_until from orbhook.totals_until c)
              and x.started_at > statement_timestamp() - interval '1 day'
              -- What was tried within a day lies in this week's partition or the last one's: the others are not opened.
              and (x.period >= statement_timestamp()::date - 13 or x.period = '1970-01-01')
              and x.error_class is distinct from 'render') t
        group by t.webhook_id, t.duration_ms
        window ascending as (partition by t.webhook_id order by t.duration_ms), whole as (partition by t.webhook_id)) u
    group by u.webhook_id) a on a.webhook_id = w.id;
comment on view orbhook.webhook_health is
    'How each webhook is doing: state and why, requests and answer times of the last hour and day, backlog. Who is slow: order by p99_hour_ms desc nulls last.';
comment on column orbhook.webhook_health.webhook_id is 'The webhook.';
comment on column orbhook.webhook_health.webhook is 'Its name.';
comment on column orbhook.webhook_health.state is
    'ok; failing (no success since the last failure); stuck (something has been due for over a minute and nothing is under way); quiet (the receiver asked for it); paused; inactive.';
comment on column orbhook.webhook_health.reason is 'Why, in words; null when ok.';
comment on column orbhook.webhook_health.sent_hour is 'Requests sent in the last hour, retries and tests included; it begins with a whole minute.';
comment on column orbhook.webhook_health.failed_hour is 'Those of them that failed or whose outcome is unknown.';
comment on column orbhook.webhook_health.success_hour_percent is 'Share of them that succeeded, 0 to 100; null when none was sent.';
comment on column orbhook.webhook_health.p50_hour_ms is 'Half of the answers came within this many milliseconds, rounded up by a tenth at most. A time-out counts as an answer.';
comment on column orbhook.webhook_health.p99_hour_ms is '99 of 100 answers came within this many milliseconds.';
comment on column orbhook.webhook_health.sent_day is 'Requests sent in the last 24 hours; they begin with a whole hour.';
comment on column orbhook.webhook_health.failed_day is 'Those of them that failed or whose outcome is unknown.';
comment on column orbhook.webhook_health.success_day_percent is 'Share of them that succeeded, 0 to 100; null when none was sent.';
comment on column orbhook.webhook_health.p50_day_ms is 'Half of the answers came within this many milliseconds.';
comment on column orbhook.webhook_health.p99_day_ms is '99 of 100 answers came within this many milliseconds.';
comment on column orbhook.webhook_health.backlog is 'Deliveries pending.';
comment on column orbhook.webhook_health.in_flight is 'Of these, under way at a sidecar.';
comment on column orbhook.webhook_health.oldest_waiting is 'How long the oldest waiting one has been due; null when none waits.';

create view orbhook.dead_letters as
select d.id as delivery_id, d.event_id, e.event_type, d.webhook_id, w.name as webhook, d.attempts,
       d.last_status_code, d.last_error, d.created_at, d.finished_at
from orbhook.deliveries d
left join orbhook.events e on e.id = d.event_id
left join orbhook.webhooks w on w.id = d.webhook_id
where d.status = 'failed' and d.period is not null and not d.is_test;
comment on view orbhook.dead_letters is
    'Deliveries that failed for good; the latest: order by finished_at desc limit 20. One again: orbhook_retry(delivery_id); many: orbhook_replay(webhook_id, since).';
comment on column orbhook.dead_letters.delivery_id is 'The delivery, for orbhook_retry.';
comment on column orbhook.dead_letters.event_id is 'The event.';
comment on column orbhook.dead_letters.event_type is 'Its type; null when the event is no longer kept.';
comment on column orbhook.dead_letters.webhook_id is 'The webhook, for orbhook_replay.';
comment on column orbhook.dead_letters.webhook is 'Its name; null when it was deleted.';
comment on column orbhook.dead_letters.attempts is 'Times it was claimed.';
comment on column orbhook.dead_letters.last_status_code is 'HTTP status of the last answer; null if there was none.';
comment on column orbhook.dead_letters.last_error is 'Why it failed, in words.';
comment on column orbhook.dead_letters.created_at is 'When it was queued.';
comment on column orbhook.dead_letters.finished_at is 'When it was given up.';

create view orbhook.sidecars as
select i.id as sidecar_id, i.name as sidecar, i.version,
       case when i.stopped_at is not null then 'stopped'
            when i.died_at is not null then 'dead'
            when not i.has_lock then 'assumed'
            when k.held then 'running'
            else 'gone' end as state,
       i.started_at, coalesce(i.stopped_at, i.died_at) as ended_at,
       coalesce(f.in_flight, 0) as in_flight
from orbhook.instances i
left join lateral (
    select true as held
    from pg_locks l
    join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = 1869767273
      and l.objid::bigint = ('x' || right(i.id::text, 8))::bit(32)::bigint
    limit 1) k on true
left join (
    select o.claimed_by, count(*) as in_flight
    from orbhook.deliveries_open o
    where o.lease_until > statement_timestamp()
    group by o.claimed_by) f on f.claimed_by = i.id and i.died_at is null;
comment on view orbhook.sidecars is
    'Sidecars of this database, the ones that ended within 30 days too. Who runs: where state in (''running'', ''assumed'').';
comment on column orbhook.sidecars.sidecar_id is 'Its id, a new one after every reconnect; as in deliveries.claimed_by and attempts.sidecar.';
comment on column orbhook.sidecars.sidecar is 'What the operator calls it.';
comment on column orbhook.sidecars.version is 'Its version.';
comment on column orbhook.sidecars.state is
    'running (holds its lock); assumed (behind a transaction pooler, where nobody can tell); gone (its lock is free, the next look marks it dead); dead; stopped (in order).';
comment on column orbhook.sidecars.started_at is 'When it connected.';
comment on column orbhook.sidecars.ended_at is 'When it stopped or was seen dead; null while it runs.';
comment on column orbhook.sidecars.in_flight is 'Deliveries it has under way.';
