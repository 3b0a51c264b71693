//! Asks the database for work. What comes back is leased and committed: nothing is acted on before the statement is over.

use std::{pin::Pin, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::{
    campaign::{self, Bug, Point},
    db::Db,
    delivery::{Delivery, ErrorClass, Fault, Finished, Ticket},
    error::DatabaseError,
    link::Link,
};

const CLAIM: &str = "\
SELECT delivery_id, attempt, webhook_id, event_type, headers, body, secrets, timeout_ms, lease_ms, send_after_ms
FROM orbhook.claim($1, $2, $3, $4, $5, $6, $7)";

/// What one claim brought.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// The registration it was asked for under.
    pub(crate) sidecar: Uuid,
    pub(crate) deliveries: Vec<Delivery>,
    /// Rows that make no sense to this sidecar: each costs its own delivery an attempt, and nothing else.
    pub(crate) unreadable: Vec<Finished>,
    /// Where the next claim goes on, so that every webhook has its turn.
    pub(crate) last_webhook: Option<Uuid>,
    /// From asking to having it: commit and way back included.
    pub(crate) took: Duration,
}

impl Claimed {
    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.unreadable.is_empty()
    }
}

/// What to ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClaimRequest {
    pub(crate) batch: usize,
    pub(crate) after: Option<Uuid>,
    /// Paced requests are to be sent no sooner than so long after the claim: it will not be back before.
    pub(crate) lead: Duration,
    /// The most deliveries of one webhook to hold,
    pub(crate) share: usize,
    /// and what is held, of which webhooks.
    pub(crate) held: Vec<(Uuid, usize)>,
}

/// The link comes back with what it brought; None when the claim did not happen.
type ClaimFuture = Pin<Box<dyn Future<Output = (Box<Link>, Option<Claimed>)> + Send>>;

/// One claim at a time, on one connection.
pub(crate) enum Claims {
    Idle(Box<Link>),
    Running(ClaimFuture),
    /// Only while the state changes hands.
    Between,
}

impl Claims {
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Claims::Idle(_))
    }

    pub(crate) fn begin(
        &mut self,
        request: ClaimRequest,
        registration: watch::Receiver<Option<Uuid>>,
        stop: watch::Receiver<bool>,
    ) {
        *self = match std::mem::replace(self, Claims::Between) {
            Claims::Idle(link) => Claims::Running(Box::pin(claim_once(link, request, registration, stop))),
            other => other,
        };
    }

    /// Pending while there is none. Cancel-safe.
    pub(crate) async fn finished(&mut self) -> Option<Claimed> {
        match self {
            Claims::Running(running) => {
                let (link, claimed) = running.await;
                *self = Claims::Idle(link);
                claimed
            }
            Claims::Idle(_) | Claims::Between => std::future::pending().await,
        }
    }

    pub(crate) async fn finished_or_none(&mut self) -> Option<Claimed> {
        if self.is_idle() {
            return None;
        }
        self.finished().await
    }
}

/// The registration is read when the statement is sent: the id that was current when the claim was wanted may be dead by then.
async fn claim_once(
    mut link: Box<Link>,
    request: ClaimRequest,
    registration: watch::Receiver<Option<Uuid>>,
    mut stop: watch::Receiver<bool>,
) -> (Box<Link>, Option<Claimed>) {
    if !link.is_connected() {
        let is_stopping = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => true,
            _ = link.connected() => false,
        };
        if is_stopping {
            return (link, None);
        }
    }
    if campaign::has(Bug::ClaimNotCommitted) {
        leave_claim_open(link.connected().await).await;
    }
    let current = *registration.borrow();
    let Some(sidecar) = current else { return (link, None) };
    let db = link.connected().await;
    let asked_at = Instant::now();
    match claim(db, sidecar, &request).await {
        Ok(claimed) => {
            link.worked(asked_at.elapsed());
            link.metrics().claimed(claimed.deliveries.len());
            if !claimed.is_empty() {
                campaign::pass(Point::AfterClaim);
            }
            (link, Some(claimed))
        }
        Err(error) => {
            link.failed(error).await;
            (link, None)
        }
    }
}

/// Commits the last claim late, and begins a transaction for the next.
async fn leave_claim_open(db: &Db) {
    const LATE: Duration = Duration::from_millis(300);
    tokio::time::sleep(LATE).await;
    for statement in ["COMMIT", "BEGIN"] {
        // The claim that follows says what is wrong.
        drop(db.query(statement, &[]).await);
    }
}

/// Leases due deliveries to `sidecar`.
async fn claim(db: &Db, sidecar: Uuid, request: &ClaimRequest) -> Result<Claimed, DatabaseError> {
    let to_i32 = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let batch = to_i32(request.batch);
    let lead_ms = i32::try_from(request.lead.as_millis()).unwrap_or(i32::MAX);
    let share = to_i32(request.share);
    let (webhooks, counts): (Vec<Uuid>, Vec<i32>) =
        request.held.iter().map(|(webhook, count)| (*webhook, to_i32(*count))).unzip();
    let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
        (&sidecar, Type::UUID),
        (&batch, Type::INT4),
        (&request.after, Type::UUID),
        (&lead_ms, Type::INT4),
        (&share, Type::INT4),
        (&webhooks, Type::UUID_ARRAY),
        (&counts, Type::INT4_ARRAY),
    ];
    let asked_at = Instant::now();
    let rows = db.query(CLAIM, &parameters).await?;
    let returned_at = Instant::now();
    let mut claimed = Claimed {
        sidecar,
        deliveries: Vec::with_capacity(rows.len()),
        unreadable: Vec::new(),
        last_webhook: None,
        took: returned_at - asked_at,
    };
    for row in &rows {
        let ticket = read_ticket(row, sidecar)?;
        claimed.last_webhook = Some(ticket.webhook);
        match read_delivery(row, ticket, asked_at) {
            Ok(delivery) => claimed.deliveries.push(delivery),
            Err(reason) => {
                let fault =
                    Fault::new(ErrorClass::Internal, format!("the claimed row cannot be read: {reason}"));
                claimed.unreadable.push(Finished::unanswered(ticket, returned_at, returned_at, fault));
            }
        }
    }
    Ok(claimed)
}

fn read_ticket(row: &Row, sidecar: Uuid) -> Result<Ticket, DatabaseError> {
    let read = || -> Result<Ticket, tokio_postgres::Error> {
        Ok(Ticket { delivery: row.try_get(0)?, attempt: row.try_get(1)?, webhook: row.try_get(2)?, sidecar })
    };
    read().map_err(|error| DatabaseError::Unexpected { reason: format!("orbhook.claim: {error}") })
}

/// Errors name the column and never its value: headers and secrets are in here.
fn read_delivery(row: &Row, ticket: Ticket, asked_at: Instant) -> Result<Delivery, String> {
    let text = |index: usize, column: &str| {
        row.try_get::<_, String>(index).map_err(|_| format!("{column} is not text"))
    };
    let milliseconds = |index: usize, column: &str| {
        let value = row.try_get::<_, i32>(index).map_err(|_| format!("{column} is not an integer"))?;
        u64::try_from(value).map(Duration::from_millis).map_err(|_| format!("{column} is negative"))
    };
    let send_after = match row.try_get::<_, Option<i32>>(9) {
        Ok(None) => None,
        _ => Some(milliseconds(9, "send_after_ms")?),
    };
    Ok(Delivery {
        ticket,
        event_type: text(3, "event_type")?,
        headers: serde_json::from_str(&text(4, "headers")?)
            .map_err(|_| "headers are not as agreed".to_owned())?,
        body: text(5, "body")?,
        secrets: serde_json::from_str(&text(6, "secrets")?)
            .map_err(|_| "secrets are not as agreed".to_owned())?,
        timeout: milliseconds(7, "timeout_ms")?,
        lease_until: asked_at + milliseconds(8, "lease_ms")?,
        // Counted from when the claim was asked for, not from when it came back: other sidecars count from the database's moment
        // as well, and the statement's way there is short and even, while its work, its commit and its way back are neither.
        send_at: asked_at + send_after.unwrap_or_default(),
        is_paced: send_after.is_some(),
    })
}
