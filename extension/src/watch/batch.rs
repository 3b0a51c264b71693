//! Many events of one type at once.

use std::collections::HashSet;

use pgrx::{IntoDatum as _, Spi, Uuid, pg_sys};

use crate::emit;
use crate::fault::Fault;
use crate::ledger::{Delivery, Event};
use crate::statement::run;
use crate::{identity, json, subscription};

/// Records an event for each payload, in their order. To be called with the rights of the extension's owner.
pub(crate) fn record(
    event_type: &str,
    payloads: &[pg_sys::Datum],
    now: pg_sys::TimestampTz,
) -> Result<(), Fault> {
    const FILTERED: &str = "\
        select p.place, s.webhook_id \
        from pg_catalog.unnest($1) with ordinality as p (payload, place) \
        cross join orbhook.subscriptions s \
        where s.pattern operator(pg_catalog.=) any ($2) and s.active and s.filter is not null \
          and not orbhook._matches(p.payload, s.filter)";
    let subscriptions = subscription::of(event_type)?;
    let mut filtered = HashSet::new();
    if subscriptions.iter().any(|one| one.active && one.filtered) {
        let payloads = emit::array(pg_sys::JSONBOID, payloads.iter().copied().map(Some));
        Spi::connect_mut(|client| -> Result<(), Fault> {
            for row in run(client, FILTERED, &[payloads, subscription::patterns(event_type).into()])? {
                if let (Some(place), Some(webhook)) = (row.get::<i64>(1)?, row.get::<Uuid>(2)?) {
                    filtered.insert((place, webhook));
                }
            }
            Ok(())
        })?;
    }
    let word = event_type.into_datum().unwrap_or_else(|| pg_sys::Datum::from(0_usize));
    let (mut events, mut deliveries) = (Vec::with_capacity(payloads.len()), Vec::new());
    for (place, payload) in (1_i64..).zip(payloads) {
        let id = identity::new_uuid();
        let mut left_out = Vec::new();
        for one in subscriptions.iter() {
            if !one.active {
                left_out.push((one.webhook, "inactive"));
            } else if filtered.contains(&(place, one.webhook)) {
                left_out.push((one.webhook, "filtered"));
            } else {
                deliveries.push(Delivery {
                    id: identity::new_uuid(),
                    event_id: id,
                    webhook_id: one.webhook,
                    due_at: now,
                    created_at: now,
                });
            }
        }
        events.push(Event {
            id,
            event_type: word,
            payload: *payload,
            occurred_at: now,
            created_at: now,
            skipped: subscription::skipped_json(&left_out).as_deref().map(json::parse).transpose()?,
        });
    }
    emit::write(event_type, &events, &deliveries)
}
