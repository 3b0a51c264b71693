//! Many events of one type at once: a statement for the events, one for the deliveries.

use std::collections::HashSet;

use pgrx::datum::DatumWithOid;
use pgrx::{PgBuiltInOids, Spi, Uuid, pg_sys};

use crate::emit::{self, time};
use crate::fault::Fault;
use crate::watch::statement::run;
use crate::{doorbell, identity};

/// Records an event for each payload, in their order. To be called with the rights of the extension's owner.
pub(crate) fn record(
    event_type: &str,
    payloads: &[pg_sys::Datum],
    now: pg_sys::TimestampTz,
) -> Result<(), Fault> {
    const SUBSCRIBERS: &str = "\
        select s.webhook_id, s.active, s.filter is not null \
        from orbhook.subscriptions s where s.pattern operator(pg_catalog.=) any ($1)";
    const FILTERED: &str = "\
        select p.place, s.webhook_id \
        from pg_catalog.unnest($1) with ordinality as p (payload, place) \
        cross join orbhook.subscriptions s \
        where s.pattern operator(pg_catalog.=) any ($2) and s.active and s.filter is not null \
          and not orbhook._matches(p.payload, s.filter)";
    const EVENTS: &str = "\
        insert into orbhook.events (id, event_type, payload, occurred_at, created_at, skipped) \
        select e.id, $1, e.payload, $2, $2, e.skipped::pg_catalog.jsonb \
        from rows from (pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) as e (id, payload, skipped)";
    const DELIVERIES: &str = "\
        insert into orbhook.deliveries_open (id, event_id, webhook_id, due_at, created_at) \
        select d.id, d.event_id, d.webhook_id, $1, $1 \
        from rows from (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)) as d (id, event_id, webhook_id)";
    let patterns = emit::patterns(event_type);
    Spi::connect_mut(|client| {
        let mut subscribers = Vec::new();
        for row in run(client, SUBSCRIBERS, &[patterns.clone().into()])? {
            if let (Some(webhook), Some(active), Some(filter)) =
                (row.get::<Uuid>(1)?, row.get::<bool>(2)?, row.get::<bool>(3)?)
            {
                subscribers.push((webhook, active, filter));
            }
        }
        let mut filtered = HashSet::new();
        if subscribers.iter().any(|(_, active, filter)| *active && *filter) {
            for row in run(client, FILTERED, &[jsonb_array(payloads), patterns.into()])? {
                if let (Some(place), Some(webhook)) = (row.get::<i64>(1)?, row.get::<Uuid>(2)?) {
                    filtered.insert((place, webhook));
                }
            }
        }
        let ids: Vec<Uuid> = payloads.iter().map(|_| identity::new_uuid()).collect();
        let mut skipped = Vec::with_capacity(payloads.len());
        let (mut delivery_ids, mut event_ids, mut webhook_ids) = (Vec::new(), Vec::new(), Vec::new());
        for (place, id) in (1_i64..).zip(&ids) {
            let mut left_out = Vec::new();
            for (webhook, active, _) in &subscribers {
                if !active {
                    left_out.push((*webhook, "inactive"));
                } else if filtered.contains(&(place, *webhook)) {
                    left_out.push((*webhook, "filtered"));
                } else {
                    delivery_ids.push(identity::new_uuid());
                    event_ids.push(*id);
                    webhook_ids.push(*webhook);
                }
            }
            skipped.push(emit::skipped_json(&left_out));
        }
        run(
            client,
            EVENTS,
            &[event_type.into(), time(now), ids.into(), jsonb_array(payloads), skipped.into()],
        )?;
        if !delivery_ids.is_empty() {
            run(client, DELIVERIES, &[time(now), delivery_ids.into(), event_ids.into(), webhook_ids.into()])?;
            doorbell::arm();
        }
        Ok(())
    })
}

fn jsonb_array(payloads: &[pg_sys::Datum]) -> DatumWithOid<'static> {
    let mut payloads = payloads.to_vec();
    // SAFETY: all are jsonb: variable length, aligned as integers.
    unsafe {
        let array = pg_sys::construct_array(
            payloads.as_mut_ptr(),
            i32::try_from(payloads.len()).unwrap_or_default(),
            pg_sys::JSONBOID,
            -1,
            false,
            pg_sys::TYPALIGN_INT as std::ffi::c_char,
        );
        DatumWithOid::new(pg_sys::Datum::from(array), PgBuiltInOids::JSONBARRAYOID.value())
    }
}
