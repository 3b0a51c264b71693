//! Which events a change of a row is.

use pgrx::{AnyNumeric, pg_sys};

use crate::fault::Fault;
use crate::json::Json;
use crate::watch::body::{self, Extra};
use crate::watch::plan::Watch;
use crate::watch::row::Row;

/// An event that a change brings.
pub(crate) struct Found {
    pub(crate) event: &'static str,
    /// Told from the row as it was, not as it is.
    pub(crate) from_old: bool,
    pub(crate) extras: Vec<Extra>,
    /// The clock may have said so already.
    pub(crate) timed: bool,
}

/// A change: insert (no old row), delete (no new row) or update.
pub(crate) struct Change<'a> {
    pub(crate) watch: &'a Watch,
    pub(crate) old: Option<&'a Row>,
    pub(crate) new: Option<&'a Row>,
    pub(crate) now: pg_sys::TimestampTz,
}

impl Change<'_> {
    pub(crate) fn events(&self) -> Result<Vec<Found>, Fault> {
        match self.watch.source.name {
            "users" => self.users(),
            "subscriptions" => self.subscriptions(),
            "payments" => self.payments(),
            "devices" => self.devices(),
            "resellers" => self.resellers(),
            _ => Ok(Vec::new()),
        }
    }

    fn users(&self) -> Result<Vec<Found>, Fault> {
        let (old, new) = match self.presence("USER_DELETED")? {
            Presence::Came => return Ok(vec![found("USER_CREATED")]),
            Presence::Went => {
                let gone = Found {
                    from_old: true,
                    extras: vec![("", "active", Json::boolean(false))],
                    ..found("USER_DELETED")
                };
                return Ok(vec![gone]);
            }
            Presence::Elsewhere => return Ok(Vec::new()),
            Presence::Stays(old, new) => (old, new),
        };
        let watch = self.watch;
        let mut events = Vec::new();
        if self.rises("verified", old, new)? {
            events.push(self.with_time("USER_EMAIL_VERIFIED", "verified", "verifiedAt", new)?);
        }
        if watch.changed("password", old, new)
            && watch.signal("password").is_some_and(|column| new.get(column).is_some())
        {
            events.push(found("USER_PASSWORD_CHANGED"));
        }
        if self.rises("two_factor", old, new)? {
            events.push(found("SECURITY_2FA_ENABLED"));
        } else if self.rises("two_factor", new, old)? {
            events.push(found("SECURITY_2FA_DISABLED"));
        }
        if let Some(changes) = body::changes(watch, old, new)? {
            events.push(Found { extras: vec![("", "changes", changes)], ..found("USER_PROFILE_UPDATED") });
        }
        if self.logged_in(old, new) {
            let mut login = self.with_time("USER_LOGIN", "login", "loggedInAt", new)?;
            if let Some(column) = watch.signal("login_ip")
                && let Some(address) = column.json(new)?
            {
                login.extras.push(("", "ipAddress", address));
            }
            events.push(login);
        }
        Ok(events)
    }

    fn subscriptions(&self) -> Result<Vec<Found>, Fault> {
        let (old, new) = match (self.old, self.new) {
            (None, Some(new)) => {
                let mut events = vec![found("SUBSCRIPTION_CREATED")];
                if self.in_trial(new)? {
                    events.push(found("SUBSCRIPTION_TRIAL_STARTED"));
                }
                return Ok(events);
            }
            (Some(old), Some(new)) => (old, new),
            // Deleting what is recorded about a subscription does not end it.
            _ => return Ok(Vec::new()),
        };
        let watch = self.watch;
        let (trial_before, trial) = (self.in_trial(old)?, self.in_trial(new)?);
        let (expired_before, expired) = (self.expired(old)?, self.expired(new)?);
        let (cancelled_before, cancelled) = (self.cancelled(old)?, self.cancelled(new)?);
        let mut events = Vec::new();
        if trial && !trial_before {
            events.push(found("SUBSCRIPTION_TRIAL_STARTED"));
        }
        if trial_before && !trial {
            events.push(Found { timed: true, ..found("SUBSCRIPTION_TRIAL_ENDED") });
        }
        if let Some(change) = self.plan_change(old, new)? {
            events.push(change);
        }
        let extended = matches!((watch.instant("expires", old), watch.instant("expires", new)), (Some(old), Some(new)) if new > old);
        if !expired && !cancelled && !trial_before && (extended || expired_before) {
            events.push(found("SUBSCRIPTION_RENEWED"));
        }
        if cancelled && !cancelled_before {
            events.push(found("SUBSCRIPTION_CANCELLED"));
        }
        if expired && !expired_before {
            events.push(Found { timed: true, ..found("SUBSCRIPTION_EXPIRED") });
        }
        Ok(events)
    }

    fn payments(&self) -> Result<Vec<Found>, Fault> {
        let Some(new) = self.new else { return Ok(Vec::new()) };
        let before = self.old.map(|old| self.payment(old)).transpose()?.flatten();
        Ok(match self.payment(new)? {
            Some(event) if before != Some(event) => vec![found(event)],
            _ => Vec::new(),
        })
    }

    fn devices(&self) -> Result<Vec<Found>, Fault> {
        let (old, new) = match (self.presence("DEVICE_REMOVED")?, self.new) {
            (Presence::Came, Some(new)) => {
                let mut events = vec![found("DEVICE_ADDED")];
                if self.connected(new)? {
                    events.push(found("DEVICE_CONNECTED"));
                }
                return Ok(events);
            }
            (Presence::Went, _) => return Ok(vec![Found { from_old: true, ..found("DEVICE_REMOVED") }]),
            (Presence::Stays(old, new), _) => (old, new),
            _ => return Ok(Vec::new()),
        };
        Ok(match (self.connected(old)?, self.connected(new)?) {
            (false, true) => vec![found("DEVICE_CONNECTED")],
            (true, false) => vec![found("DEVICE_DISCONNECTED")],
            _ => Vec::new(),
        })
    }

    fn resellers(&self) -> Result<Vec<Found>, Fault> {
        let (old, new) = match self.presence("RESELLER_DELETED")? {
            Presence::Came => return Ok(vec![found("RESELLER_CREATED")]),
            Presence::Went => return Ok(vec![Found { from_old: true, ..found("RESELLER_DELETED") }]),
            Presence::Elsewhere => return Ok(Vec::new()),
            Presence::Stays(old, new) => (old, new),
        };
        let mut events = Vec::new();
        if let Some(changes) = body::changes(self.watch, old, new)? {
            events.push(Found { extras: vec![("", "changes", changes)], ..found("RESELLER_UPDATED") });
        }
        if let Some(column) = self.watch.signal("credit") {
            let zero = || AnyNumeric::from(0);
            let before = column.number(old)?.unwrap_or_else(zero);
            let after = column.number(new)?.unwrap_or_else(zero);
            let (event, amount) = match after.partial_cmp(&before) {
                Some(std::cmp::Ordering::Greater) => ("RESELLER_CREDIT_ADDED", after - before),
                Some(std::cmp::Ordering::Less) => ("RESELLER_CREDIT_DEDUCTED", before - after),
                _ => return Ok(events),
            };
            let extras = if amount.is_nan() {
                Vec::new()
            } else {
                vec![("reseller", "creditAmount", Json::parsed(&amount.to_string())?)]
            };
            events.push(Found { extras, ..found(event) });
        }
        Ok(events)
    }

    /// A row that is marked as deleted is not there.
    fn presence(&self, deleted: &str) -> Result<Presence<'_>, Fault> {
        let there = |row: &Row| -> Result<bool, Fault> {
            Ok(!self.watch.truthy("deleted", row)? && !self.watch.means(row, deleted)?)
        };
        Ok(match (self.old, self.new) {
            (None, Some(new)) if there(new)? => Presence::Came,
            (Some(old), None) if there(old)? => Presence::Went,
            (Some(old), Some(new)) => match (there(old)?, there(new)?) {
                (true, true) => Presence::Stays(old, new),
                (true, false) => Presence::Went,
                _ => Presence::Elsewhere,
            },
            _ => Presence::Elsewhere,
        })
    }

    /// From unset to set.
    fn rises(&self, signal: &str, old: &Row, new: &Row) -> Result<bool, Fault> {
        Ok(self.watch.changed(signal, old, new)
            && !self.watch.truthy(signal, old)?
            && self.watch.truthy(signal, new)?)
    }

    fn logged_in(&self, old: &Row, new: &Row) -> bool {
        let Some(column) = self.watch.signal("login") else { return false };
        if !column.differs(old, new) || new.get(column).is_none() {
            return false;
        }
        match (column.instant(old), column.instant(new)) {
            (Some(old), Some(new)) => new > old,
            _ => true,
        }
    }

    fn with_time(
        &self,
        event: &'static str,
        signal: &str,
        key: &'static str,
        row: &Row,
    ) -> Result<Found, Fault> {
        let mut extras = Vec::new();
        if let Some(column) = self.watch.signal(signal)
            && column.is_time()
            && let Some(time) = column.json(row)?
        {
            extras.push(("", key, time));
        }
        Ok(Found { extras, ..found(event) })
    }

    pub(crate) fn in_trial(&self, row: &Row) -> Result<bool, Fault> {
        let watch = self.watch;
        if watch.signal("trial").is_some() {
            return watch.truthy("trial", row);
        }
        if watch.means(row, "SUBSCRIPTION_TRIAL_STARTED")? {
            return Ok(true);
        }
        // A status that knows trials decides; one that does not leaves it to the date.
        let told = watch.signal("status").is_some();
        Ok(!told && watch.instant("trial_ends", row).is_some_and(|end| end > self.now))
    }

    pub(crate) fn expired(&self, row: &Row) -> Result<bool, Fault> {
        self.watch.means(row, "SUBSCRIPTION_EXPIRED")
    }

    fn cancelled(&self, row: &Row) -> Result<bool, Fault> {
        Ok(self.watch.truthy("cancelled", row)? || self.watch.means(row, "SUBSCRIPTION_CANCELLED")?)
    }

    fn plan_change(&self, old: &Row, new: &Row) -> Result<Option<Found>, Fault> {
        let watch = self.watch;
        let plan = watch.signal("plan");
        if plan.is_some() && !watch.changed("plan", old, new) {
            return Ok(None);
        }
        let (Some(before), Some(after)) = (watch.rank(old)?, watch.rank(new)?) else { return Ok(None) };
        let event = match after.partial_cmp(&before) {
            Some(std::cmp::Ordering::Greater) => "SUBSCRIPTION_UPGRADED",
            Some(std::cmp::Ordering::Less) => "SUBSCRIPTION_DOWNGRADED",
            _ => return Ok(None),
        };
        let mut extras = Vec::new();
        if let Some(plan) = plan
            && let Some(name) = plan.json(old)?
        {
            extras.push(("subscription", "previousGroupName", name));
        }
        Ok(Some(Found { extras, ..found(event) }))
    }

    fn payment(&self, row: &Row) -> Result<Option<&'static str>, Fault> {
        let watch = self.watch;
        if watch.truthy("refunded", row)? {
            return Ok(Some("PAYMENT_REFUNDED"));
        }
        if watch.signal("status").is_none() {
            return Ok(Some("PAYMENT_RECEIVED"));
        }
        let meaning = watch.meaning(row)?;
        Ok(watch.source.events.iter().map(|event| event.name).find(|name| Some(*name) == meaning))
    }

    fn connected(&self, row: &Row) -> Result<bool, Fault> {
        Ok(match self.watch.signal("connected") {
            Some(column) => column.truthy(row)?,
            None => self.watch.means(row, "DEVICE_CONNECTED")?,
        })
    }
}

enum Presence<'a> {
    Came,
    Went,
    Stays(&'a Row, &'a Row),
    /// Neither before nor after, or back again.
    Elsewhere,
}

fn found(event: &'static str) -> Found {
    Found { event, from_old: false, extras: Vec::new(), timed: false }
}
