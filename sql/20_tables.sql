-- Tables: what is configured, what happened, what is still to be sent.
--
--   webhooks ──< subscriptions          who wants which event (derived; what an emit reads)
--      │  └────< webhook_secrets        endpoint URL, signing secret, keys
--      │  └───── webhook_state          pacing clock, failures in a row, pause
--      │
--   events ───< deliveries ───< attempts
--
-- A call of orbhook_emit writes one row of events and one row of deliveries for each subscribed webhook, in the
-- caller's transaction. orbhook.claim leases what is due to a sidecar (lease_until, claimed_by, attempts + 1);
-- orbhook.settle writes a row of attempts and either ends the delivery or sets its next due_at.
--
-- What must stay true
--   * a delivery is pending exactly as long as due_at is set, and then lives in deliveries_open;
--   * a finished delivery lives in a history partition, has finished_at and period, and is not changed again except
--     by a replay, which moves it back;
--   * deliveries.attempts only grows. It is the fence: a result is applied only if it names the latest attempt;
--   * nothing here has a foreign key on the emit path. One to webhooks would lock the webhook's row FOR KEY SHARE in
--     every application transaction (9.2k against 11.1k transactions per second at 16 writers, and an emitter would
--     wait for whoever updates that row).
--
-- Lock order: webhook_state (by webhook_id), then deliveries_open (by id). Claim never waits for a row: it skips.
--
-- Ids are UUIDv7 made in Rust, never a sequence: after a failover to a standby that lags, a sequence hands out the
-- same number twice, and a receiver that removes duplicates would drop the new event.

create table orbhook.event_types (
    name        text primary key
                constraint event_types_name_is_upper_snake
                check (name ~ '^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$' and length(name) <= 64),
    category    text not null
                constraint event_types_category_is_short check (length(category) between 1 and 64),
    description text not null default ''
                constraint event_types_description_is_short check (length(description) <= 500),
    built_in    boolean not null default false
);
comment on table orbhook.event_types is
    'Event types orbhook_emit accepts. Insert a row to add your own: upper-case words joined by _, at most 64 characters.';
comment on column orbhook.event_types.name is 'The type, as in "eventType" and in a webhook''s subscribedEvents.';
comment on column orbhook.event_types.category is 'Family the type belongs to, for people.';
comment on column orbhook.event_types.description is 'When the event happens, in words.';
comment on column orbhook.event_types.built_in is 'True for the types that come with orbhook; those cannot be changed.';

create table orbhook.webhooks (
    id                    uuid primary key,
    name                  text not null
                          constraint webhooks_name_is_printable
                          check (length(name) between 1 and 200 and name !~ '[[:cntrl:]]'),
    provider_type         text not null
                          constraint webhooks_provider_type_is_known
                          check (provider_type in ('SLACK', 'GOHIGHLEVEL', 'ZAPIER', 'GENERIC')),
    target                text
                          constraint webhooks_target_is_known check (target in ('api', 'inbound')),
    endpoint_scheme       text not null
                          constraint webhooks_endpoint_scheme_is_http check (endpoint_scheme in ('http', 'https')),
    endpoint_host         text not null
                          constraint webhooks_endpoint_host_is_host
                          check (length(endpoint_host) between 1 and 260 and endpoint_host !~ '[/?#@[:cntrl:][:space:]]'),
    endpoint_fingerprint  text not null
                          constraint webhooks_endpoint_fingerprint_is_hex check (endpoint_fingerprint ~ '^[0-9a-f]{12}$'),
    active                boolean not null default true,
    inactive_reason       text,
    paused                boolean not null default false,
    subscribed_events     text[] not null
                          constraint webhooks_subscribed_events_are_listed
                          check (cardinality(subscribed_events) between 1 and 1000
                                 and array_ndims(subscribed_events) = 1
                                 and array_position(subscribed_events, null) is null
                                 and array_to_string(subscribed_events, ',') ~
                                     '^(\*|[A-Z][A-Z0-9]*(_[A-Z0-9]+)*(_\*)?)(,(\*|[A-Z][A-Z0-9]*(_[A-Z0-9]+)*(_\*)?))*$'),
    provider_config       jsonb not null default '{}'
                          constraint webhooks_provider_config_is_object check (jsonb_typeof(provider_config) = 'object'),
    filter                jsonpath,
    max_retries           integer not null default 3
                          constraint webhooks_max_retries_in_range check (max_retries between 0 and 100),
    retry_delay           jsonb not null default '[30, 120, 300]'
                          constraint webhooks_retry_delay_is_schedule
                          check (jsonb_typeof(retry_delay) in ('number', 'array')
                                 and not jsonb_path_exists(retry_delay, 'lax $[*] ? (@.type() != "number" || @ < 0 || @ > 604800)')
                                 and (jsonb_typeof(retry_delay) = 'number' or jsonb_array_length(retry_delay) between 1 and 20)),
    rate_limit_per_second numeric default 10
                          constraint webhooks_rate_limit_in_range check (rate_limit_per_second between 0.01 and 10000),
    timeout_seconds       numeric not null default 15
                          constraint webhooks_timeout_in_range check (timeout_seconds between 1 and 30),
    max_in_flight         integer not null default 10
                          constraint webhooks_max_in_flight_in_range check (max_in_flight between 1 and 1000),
    max_age_seconds       numeric
                          constraint webhooks_max_age_in_range check (max_age_seconds between 1 and 315360000),
    key_ids               text[],
    created_at            timestamptz not null default clock_timestamp(),
    updated_at            timestamptz not null default clock_timestamp(),
    constraint webhooks_inactive_reason_only_when_inactive check (inactive_reason is null or not active)
);
-- Whose queues have to be looked through for what is too old: the few that say so, among any number.
create index webhooks_with_max_age on orbhook.webhooks (id) where max_age_seconds is not null;
comment on table orbhook.webhooks is
    'Webhooks. Made with orbhook_create_webhook; plain UPDATE of the columns is checked by the same rules. The endpoint and every key are in webhook_secrets.';
comment on column orbhook.webhooks.id is 'UUIDv7.';
comment on column orbhook.webhooks.name is 'What people call it: 1 to 200 printable characters.';
comment on column orbhook.webhooks.provider_type is 'SLACK, GOHIGHLEVEL, ZAPIER or GENERIC: decides the body and how answers are judged.';
comment on column orbhook.webhooks.target is 'Which of a provider''s two doors the endpoint is: api or inbound (GoHighLevel); null elsewhere.';
comment on column orbhook.webhooks.endpoint_scheme is 'http or https.';
comment on column orbhook.webhooks.endpoint_host is 'Host of the endpoint, with the port if it is not the usual one. The path is a secret with Slack and Zapier.';
comment on column orbhook.webhooks.endpoint_fingerprint is 'First 12 hex digits of the SHA-256 of the endpoint: tells two endpoints of one host apart.';
comment on column orbhook.webhooks.active is 'False: new events are skipped (recorded in events.skipped); what is queued stays pending.';
comment on column orbhook.webhooks.inactive_reason is 'Why orbhook switched it off, in words; null if a person did.';
comment on column orbhook.webhooks.paused is 'True: nothing is sent, events keep queueing. See orbhook_pause and orbhook_resume.';
comment on column orbhook.webhooks.subscribed_events is 'Event types, families such as USER_*, or * for all.';
comment on column orbhook.webhooks.provider_config is 'providerSpecificConfig without its secrets.';
comment on column orbhook.webhooks.filter is 'jsonpath on the payload: the event is sent when the first item exists and is neither false nor null. Null: no filter.';
comment on column orbhook.webhooks.max_retries is 'Retries after the first try, 0 to 100.';
comment on column orbhook.webhooks.retry_delay is 'Seconds before each retry: one number, or an array whose last value repeats; each 0 to 604800.';
comment on column orbhook.webhooks.rate_limit_per_second is 'Requests per second over all sidecars, 0.01 to 10000; null: no limit.';
comment on column orbhook.webhooks.timeout_seconds is 'Seconds a request may take, body included, 1 to 30.';
comment on column orbhook.webhooks.max_in_flight is 'Requests under way at the same time over all sidecars, 1 to 1000.';
comment on column orbhook.webhooks.max_age_seconds is 'Deliveries older than this are cancelled instead of sent; null: never.';
comment on column orbhook.webhooks.key_ids is
    'Keys that its secrets are sealed with: a sidecar must have them all to send for it. Null: in plain. "unreadable" among them: a sidecar found a secret that it cannot open.';
comment on column orbhook.webhooks.created_at is 'When it was made.';
comment on column orbhook.webhooks.updated_at is 'When its configuration last changed.';

create table orbhook.webhook_secrets (
    webhook_id uuid not null references orbhook.webhooks (id) on delete cascade,
    name       text not null
               constraint webhook_secrets_name_is_known
               check (name in ('endpoint', 'signing', 'signing.previous', 'apiKey', 'api_key')
                      or name ~ '^header\.[!#$%&''*+.^_`|~0-9A-Za-z-]{1,100}$'),
    value      text not null
               constraint webhook_secrets_value_is_short check (octet_length(value) between 1 and 16384),
    expires_at timestamptz,
    key_id     text generated always as (substring(value from '^sealed:v1:([0-9a-f]{16}):[A-Za-z0-9_-]+$')) stored,
    primary key (webhook_id, name)
);
comment on table orbhook.webhook_secrets is
    'Secrets of webhooks: the endpoint URL, signing secrets, provider keys, extra headers. Granted to nobody; claim hands them to the sidecar.';
comment on column orbhook.webhook_secrets.webhook_id is 'The webhook.';
comment on column orbhook.webhook_secrets.name is 'endpoint, signing, signing.previous, apiKey, api_key, or header.NAME.';
comment on column orbhook.webhook_secrets.value is 'The secret: sealed (sealed:v1:…) when a key is installed, otherwise as it is.';
comment on column orbhook.webhook_secrets.expires_at is 'From then on it is not used (the old signing secret after a rotation); null: never.';
comment on column orbhook.webhook_secrets.key_id is 'The key it is sealed with; null: in plain.';

create table orbhook.subscriptions (
    pattern    text not null,
    webhook_id uuid not null,
    active     boolean not null,
    filter     jsonpath,
    primary key (pattern, webhook_id)
);
comment on table orbhook.subscriptions is
    'Derived from webhooks.subscribed_events by a trigger: what an emit looks up. Patterns of one webhook never overlap. Do not write to it.';
comment on column orbhook.subscriptions.pattern is 'An event type, a family such as USER_*, or *.';
comment on column orbhook.subscriptions.webhook_id is 'The webhook.';
comment on column orbhook.subscriptions.active is 'Copy of webhooks.active.';
comment on column orbhook.subscriptions.filter is 'Copy of webhooks.filter.';

create table orbhook.webhook_state (
    webhook_id           uuid primary key,
    next_send_at         timestamptz not null default '-infinity',
    paused_until         timestamptz not null default '-infinity',
    pause_reason         text,
    failing_since        timestamptz,
    last_failed_at       timestamptz,
    consecutive_failures integer not null default 0,
    reported_disabled_at timestamptz not null default '-infinity',
    reported_failed_at   timestamptz not null default '-infinity'
) with (fillfactor = 50);
comment on table orbhook.webhook_state is
    'How each webhook is doing. Its row is locked by the claim or settle that serves the webhook; emitters never touch it. Written at most about once a second per webhook, and not at all while an unlimited webhook only succeeds.';
comment on column orbhook.webhook_state.webhook_id is 'The webhook.';
comment on column orbhook.webhook_state.next_send_at is 'Pacing: the next free send time.';
comment on column orbhook.webhook_state.paused_until is 'The receiver asked for quiet (429, or 503 with Retry-After) until then.';
comment on column orbhook.webhook_state.pause_reason is 'Why it is paused until then, in words.';
comment on column orbhook.webhook_state.failing_since is
    'First failure since the last success, moved on by every span of more than a day in which nothing was tried; null while it works.';
comment on column orbhook.webhook_state.last_failed_at is 'Latest failure.';
comment on column orbhook.webhook_state.consecutive_failures is 'Failed attempts since the last success.';
comment on column orbhook.webhook_state.reported_disabled_at is 'Latest WEBHOOK_DISABLED about it: one an hour at most.';
comment on column orbhook.webhook_state.reported_failed_at is 'Latest DELIVERY_FAILED about it: one an hour at most.';

-- Range-partitioned by id, which begins with the time. The default partition is what an emit falls back on, so an
-- event never fails for want of a partition.
create table orbhook.events (
    id          uuid not null,
    event_type  text not null,
    payload     jsonb not null
                constraint events_payload_is_object check (jsonb_typeof(payload) = 'object'),
    occurred_at timestamptz not null,
    created_at  timestamptz not null default clock_timestamp(),
    skipped     jsonb
) partition by range (id);
-- Each partition has an index of its own. One that belongs to the parent would be made by restoring a dump as well, which
-- brings the weekly partitions with theirs.
create table orbhook.events_default partition of orbhook.events default;
create unique index events_default_id on orbhook.events_default (id);
alter table orbhook.events_default replica identity using index events_default_id;
comment on table orbhook.events is
    'Every event of a committed transaction, also when nobody subscribes. Partitioned by id, that is by time.';
comment on column orbhook.events.id is 'UUIDv7, what orbhook_emit returns.';
comment on column orbhook.events.event_type is 'The type, from orbhook.event_types at the time of the emit.';
comment on column orbhook.events.payload is 'The event object: eventType and timestamp are added when the producer left them out.';
comment on column orbhook.events.occurred_at is 'The payload''s timestamp, read as UTC when it has no zone; the time of the emit when it is absent or unreadable.';
comment on column orbhook.events.created_at is 'When it was emitted.';
comment on column orbhook.events.skipped is
    'Subscribed webhooks that got no delivery and why: [{"webhook": id, "reason": "inactive" | "filtered"}], at most 100, then {"more": n}. Null: none.';
comment on table orbhook.events_default is 'Events outside every other partition.';

create table orbhook.event_keys (
    key        text primary key
               constraint event_keys_key_is_short check (octet_length(key) between 1 and 255),
    event_id   uuid not null,
    created_at timestamptz not null default clock_timestamp()
);
create index event_keys_created_at on orbhook.event_keys using brin (created_at) with (autosummarize = on);
comment on table orbhook.event_keys is 'Idempotency keys of orbhook_emit: the same key again returns the same event.';
comment on column orbhook.event_keys.key is 'The key, 1 to 255 bytes.';
comment on column orbhook.event_keys.event_id is 'The event it stands for.';
comment on column orbhook.event_keys.created_at is 'When it was first used.';

-- List-partitioned by the period a delivery was finished in. What is open (period null) is one small table whose size
-- follows the backlog, not the history: claims, vacuum and an old snapshot see only that. Finishing moves the row, which
-- costs what an update in place would (100,000 in 8.3 s against 8.4 s; 51 MB of log against 45). History is append-only
-- and dropped by the partition.
create table orbhook.deliveries (
    id               uuid not null,
    event_id         uuid not null,
    webhook_id       uuid not null,
    status           text not null default 'pending'
                     constraint deliveries_status_is_known check (status in ('pending', 'delivered', 'failed', 'cancelled')),
    attempts         integer not null default 0 constraint deliveries_attempts_not_negative check (attempts >= 0),
    failures         integer not null default 0 constraint deliveries_failures_not_negative check (failures >= 0),
    outcome_attempt  integer not null default 0,
    due_at           timestamptz constraint deliveries_due_at_is_finite check (isfinite(due_at)),
    first_due_at     timestamptz,
    lease_until      timestamptz,
    claimed_by       uuid,
    last_status_code integer,
    last_error       text,
    is_test          boolean not null default false,
    created_at       timestamptz not null default clock_timestamp(),
    finished_at      timestamptz,
    period           date,
    constraint deliveries_pending_is_due check ((status = 'pending') = (due_at is not null)),
    constraint deliveries_pending_is_open
        check ((status = 'pending') = (period is null) and (status = 'pending') = (finished_at is null)),
    constraint deliveries_finished_is_unleased check (status = 'pending' or (lease_until is null and claimed_by is null)),
    constraint deliveries_outcome_of_an_attempt check (outcome_attempt between 0 and attempts)
) partition by list (period);

-- fillfactor: a claim changes lease_until, claimed_by and attempts, which no index covers; with room on the page that
-- is a HOT update and writes no index.
create table orbhook.deliveries_open partition of orbhook.deliveries for values in (null)
    with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
          autovacuum_vacuum_insert_scale_factor = 0.5, autovacuum_vacuum_cost_delay = 0);
create unique index deliveries_open_id on orbhook.deliveries_open (id);
create index deliveries_open_due on orbhook.deliveries_open (webhook_id, due_at);
create index deliveries_open_test on orbhook.deliveries_open (due_at) where is_test;

create table orbhook.deliveries_first partition of orbhook.deliveries for values in ('1970-01-01');
create unique index deliveries_first_id on orbhook.deliveries_first (id);
create index deliveries_first_event_id on orbhook.deliveries_first (event_id);
-- autosummarize: what is not summarized yet is read by every look at the last minutes, and vacuum comes late to a table that
-- is only inserted into.
create index deliveries_first_finished_at on orbhook.deliveries_first using brin (finished_at) with (autosummarize = on);
create index deliveries_first_failed on orbhook.deliveries_first (finished_at) where status = 'failed';

comment on table orbhook.deliveries is
    'One row for each event and webhook that was to get it. Pending rows are in deliveries_open, finished ones in history partitions.';
comment on column orbhook.deliveries.id is 'UUIDv7; the webhook-id header, the same on every attempt.';
comment on column orbhook.deliveries.event_id is 'The event.';
comment on column orbhook.deliveries.webhook_id is 'The webhook.';
comment on column orbhook.deliveries.status is 'pending, delivered, failed or cancelled.';
comment on column orbhook.deliveries.attempts is 'Times it was claimed. Never reset: it is the fence that shuts out late results.';
comment on column orbhook.deliveries.failures is 'Failed attempts that count against max_retries. Reset by retry and replay.';
comment on column orbhook.deliveries.outcome_attempt is 'Number of the latest attempt whose outcome is known. Smaller than attempts: under way, or its sidecar died.';
comment on column orbhook.deliveries.due_at is 'When the next attempt is due; null once finished.';
comment on column orbhook.deliveries.first_due_at is
    'When the first try of this round was due; null while due_at still says so. A retry or replay by hand begins a new round. maxAgeSeconds and the day in which a 429 costs no retry count from it.';
comment on column orbhook.deliveries.lease_until is 'A sidecar has it until then.';
comment on column orbhook.deliveries.claimed_by is 'The sidecar that has it.';
comment on column orbhook.deliveries.last_status_code is 'HTTP status of the latest answer.';
comment on column orbhook.deliveries.last_error is 'What went wrong last, in words.';
comment on column orbhook.deliveries.is_test is 'Made by orbhook_test_webhook: sent once, also when the webhook is paused, never retried.';
comment on column orbhook.deliveries.created_at is 'When it was queued.';
comment on column orbhook.deliveries.finished_at is 'When it was delivered, failed or cancelled.';
comment on column orbhook.deliveries.period is 'The history partition it is kept in; null while pending.';
comment on table orbhook.deliveries_open is 'Pending deliveries.';
comment on table orbhook.deliveries_first is 'Deliveries finished before the first sidecar made a partition for its week.';

create table orbhook.attempts (
    delivery_id      uuid not null,
    number           integer not null,
    webhook_id       uuid not null,
    sidecar          uuid,
    started_at       timestamptz not null,
    duration_ms      integer,
    connect_ms       integer,
    first_byte_ms    integer,
    address          text,
    status_code      integer,
    error_class      text,
    error            text,
    response_headers jsonb,
    response_body    text,
    body_cut         boolean not null default false,
    late             boolean not null default false,
    period           date not null
) partition by list (period);
create table orbhook.attempts_first partition of orbhook.attempts for values in ('1970-01-01');
create unique index attempts_first_delivery_id on orbhook.attempts_first (delivery_id, number);
create index attempts_first_started_at on orbhook.attempts_first using brin (started_at) with (autosummarize = on);

comment on table orbhook.attempts is
    'One row for each try, also the ones whose outcome stayed unknown because their sidecar died.';
comment on column orbhook.attempts.delivery_id is 'The delivery.';
comment on column orbhook.attempts.number is 'Which attempt, from 1. A number may be missing: claimed, but let go before anything was sent.';
comment on column orbhook.attempts.webhook_id is 'The webhook.';
comment on column orbhook.attempts.sidecar is 'The sidecar that made it.';
comment on column orbhook.attempts.started_at is 'When it began, by the database''s clock.';
comment on column orbhook.attempts.duration_ms is 'Milliseconds from start to end; null when the outcome is unknown.';
comment on column orbhook.attempts.connect_ms is 'Milliseconds to connect; null on a kept connection.';
comment on column orbhook.attempts.first_byte_ms is 'Milliseconds to the first byte of the answer.';
comment on column orbhook.attempts.address is 'The address dialled.';
comment on column orbhook.attempts.status_code is 'HTTP status of the answer; null if none came.';
comment on column orbhook.attempts.error_class is
    'connection_refused, dns, tls, timeout_connect, timeout_first_byte, timeout_body, reset, malformed_response, address_blocked, secret, internal, http_1xx, http_3xx, http_4xx, http_5xx, http_2xx (refused in the body), rate_limited, render, unknown; null when delivered.';
comment on column orbhook.attempts.error is 'What went wrong and what to do, in words.';
comment on column orbhook.attempts.response_headers is 'Chosen headers of the answer.';
comment on column orbhook.attempts.response_body is 'At most 16 KiB of the answer''s body.';
comment on column orbhook.attempts.body_cut is 'True if the body was longer.';
comment on column orbhook.attempts.late is 'True if the result came after the lease had gone to somebody else: recorded, but it changed nothing.';
comment on column orbhook.attempts.period is 'The partition it is kept in.';
comment on table orbhook.attempts_first is 'Attempts made before the first sidecar made a partition for its week.';

create table orbhook.periods (
    starts_on date primary key
);
insert into orbhook.periods values ('1970-01-01');
comment on table orbhook.periods is
    'History periods that have a partition in deliveries and in attempts: the Monday each begins on. 1970-01-01 stands for everything before the first.';
comment on column orbhook.periods.starts_on is 'First day of the period.';

create table orbhook.instances (
    id          uuid primary key,
    name        text not null,
    version     text not null,
    has_lock    boolean not null,
    started_at  timestamptz not null default clock_timestamp(),
    stopped_at  timestamptz,
    died_at     timestamptz,
    environment text not null default 'default',
    key_ids     text[] not null default '{}'
);
comment on table orbhook.instances is
    'Sidecars that registered. One whose advisory lock was seen free is dead for ever, and what it had claimed is free at once.';
comment on column orbhook.instances.id is 'Random; a new one after every reconnect.';
comment on column orbhook.instances.name is 'What the operator calls it.';
comment on column orbhook.instances.version is 'Version of the sidecar.';
comment on column orbhook.instances.has_lock is 'False behind a transaction pooler: its death shows only by its leases running out.';
comment on column orbhook.instances.started_at is 'When it registered.';
comment on column orbhook.instances.stopped_at is 'When it stopped in order.';
comment on column orbhook.instances.died_at is 'When its lock was seen free.';
comment on column orbhook.instances.environment is 'The environment it was started for.';
comment on column orbhook.instances.key_ids is 'Keys it can open secrets of.';

create table orbhook.watches (
    target     regclass primary key,
    source     text not null
               constraint watches_source_is_known
               check (source in ('users', 'subscriptions', 'payments', 'devices', 'resellers')),
    mapping    jsonb not null default '{}'
               constraint watches_mapping_is_object check (jsonb_typeof(mapping) = 'object'),
    resolved   jsonb not null default '{}'
               constraint watches_resolved_is_object check (jsonb_typeof(resolved) = 'object'),
    numbers    jsonb not null default '{}',
    broken     text[],
    created_at timestamptz not null default clock_timestamp()
);
comment on table orbhook.watches is 'Application tables whose changes become events by themselves. Written by orbhook_watch and orbhook_unwatch.';
comment on column orbhook.watches.target is 'The table.';
comment on column orbhook.watches.source is 'What its rows are: users, subscriptions, payments, devices or resellers.';
comment on column orbhook.watches.mapping is 'What orbhook_watch was told: payload path to column, signal to column, words to meaning.';
comment on column orbhook.watches.resolved is 'Which column is what: the mapping, completed by the usual names. Renames are followed.';
comment on column orbhook.watches.numbers is 'Number of each column when resolved was written, by which a rename is recognised.';
comment on column orbhook.watches.broken is
    'Columns that were dropped although the watch used them: it emits what it still can. Null: none. Call orbhook_watch again to settle it.';
comment on column orbhook.watches.created_at is 'Since when.';

create table orbhook.watch_timers (
    target     regclass not null,
    row_key    text not null,
    event_type text not null,
    at         timestamptz not null,
    fired_at   timestamptz,
    primary key (target, event_type, row_key)
);
create index watch_timers_due on orbhook.watch_timers (at) where fired_at is null;
comment on table orbhook.watch_timers is
    'Ends of subscriptions and trials that come without anyone writing a row. Kept by the triggers, read by orbhook.look.';
comment on column orbhook.watch_timers.target is 'The watched table.';
comment on column orbhook.watch_timers.row_key is 'Primary key of the row, a JSON array of texts.';
comment on column orbhook.watch_timers.event_type is 'The event that says so.';
comment on column orbhook.watch_timers.at is 'When it ends.';
comment on column orbhook.watch_timers.fired_at is 'When it was said, by the clock or by a change of the row; null: still to come.';

create table orbhook.watch_losses (
    target  regclass not null,
    lost    bigint not null,
    reason  text not null,
    lost_at timestamptz not null default clock_timestamp()
);
comment on table orbhook.watch_losses is
    'Events of watched tables that could not be recorded: orbhook.on_emit_error = warning, triggers without a watch, payloads the clock could not build.';
comment on column orbhook.watch_losses.target is 'The table.';
comment on column orbhook.watch_losses.lost is 'How many changes.';
comment on column orbhook.watch_losses.reason is 'Why, in words.';
comment on column orbhook.watch_losses.lost_at is 'When it was written down.';

create table orbhook.grants (
    role_name name not null,
    kind      text not null
              constraint grants_kind_is_known check (kind in ('emitter', 'sender', 'reader', 'reader_payload', 'admin')),
    primary key (role_name, kind)
);
comment on table orbhook.grants is 'What orbhook_grant gave, so that an upgrade can give the same on what it adds.';
comment on column orbhook.grants.role_name is 'The role.';
comment on column orbhook.grants.kind is 'emitter, sender, reader, reader_payload or admin.';
