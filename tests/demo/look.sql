-- What a DBA asks afterwards.

select right(d.id::text, 12) as delivery, e.event_type, w.provider_type, d.status, d.attempts, d.last_status_code as code
from orbhook.deliveries d
join orbhook.events e on e.id = d.event_id
join orbhook.webhooks w on w.id = d.webhook_id
order by d.event_id, d.id;

select right(delivery_id::text, 12) as delivery, number, to_char(started_at, 'HH24:MI:SS.MS') as started, duration_ms,
       status_code as code, error_class, left(replace(response_body, E'\n', ' '), 40) as answer
from orbhook.attempts
order by started_at, delivery_id;
