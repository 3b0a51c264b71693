//! What a payload says about its subscription.

use serde_json::Value;

use crate::event::{Event, Payload, filled};
use crate::time::Moment;

/// `CANCELLED` or `EXPIRED` in those events, else `TRIAL`, `INACTIVE` or `ACTIVE`; empty without a
/// subscription.
///
/// INACTIVE: the user or the subscription is not active, or it expired before the event.
pub(crate) fn status(event: &Event<'_>, payload: &Payload) -> &'static str {
    match event.event_type {
        "SUBSCRIPTION_CANCELLED" => return "CANCELLED",
        "SUBSCRIPTION_EXPIRED" => return "EXPIRED",
        _ => {}
    }
    if payload.part("subscription").is_none() {
        return "";
    }
    if payload.part_flag("subscription", "isTrialPeriod") == Some(true) {
        return "TRIAL";
    }
    let switched_off =
        payload.flag("active") == Some(false) || payload.part_flag("subscription", "active") == Some(false);
    let expired = match (moment(payload, "expiresAt"), event_moment(event, payload)) {
        (Some(expires_at), Some(occurred_at)) => expires_at.is_before(occurred_at),
        _ => false,
    };
    if switched_off || expired { "INACTIVE" } else { "ACTIVE" }
}

/// Length of the subscription in whole days, as text.
///
/// `durationDays` when the producer says it, else from `startsAt` to `expiresAt`; in an event that starts a
/// period, from the event to `expiresAt`. `None` when nothing says it or the end lies before the start.
pub(crate) fn duration_days(event: &Event<'_>, payload: &Payload) -> Option<String> {
    if let Some(days) =
        payload.part("subscription").and_then(|part| part.get("durationDays")).and_then(whole_days)
    {
        return Some(days.to_string());
    }
    let expires_at = moment(payload, "expiresAt")?;
    let starts_at = match moment(payload, "startsAt") {
        Some(starts_at) => starts_at,
        None if STARTS_A_PERIOD.contains(&event.event_type) => event_moment(event, payload)?,
        None => return None,
    };
    expires_at.days_since(starts_at).map(|days| days.to_string())
}

const STARTS_A_PERIOD: &[&str] = &["USER_CREATED", "SUBSCRIPTION_CREATED", "SUBSCRIPTION_RENEWED"];

/// Longer than any subscription; keeps a hostile number from printing as a long one.
const DAYS_MAX: f64 = 1_000_000.0;

fn whole_days(value: &Value) -> Option<i64> {
    let days: f64 = filled(Some(value))?.trim().parse().ok()?;
    (0.0..=DAYS_MAX).contains(&days).then(|| days.round() as i64)
}

fn moment(payload: &Payload, key: &str) -> Option<Moment> {
    payload.part("subscription")?.get(key)?.as_str().and_then(Moment::parse)
}

fn event_moment(event: &Event<'_>, payload: &Payload) -> Option<Moment> {
    Moment::parse(&payload.occurred_at(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<T>(compute: fn(&Event<'_>, &Payload) -> T, event_type: &str, payload: &str) -> T {
        let event =
            Event { id: "", event_type, occurred_at: "2024-11-03T12:00:00.000000Z", test: false, payload };
        compute(&event, &Payload::read(&event).unwrap())
    }

    #[test]
    fn status_follows_the_event_then_the_trial_then_the_flags_then_the_clock() {
        for (event_type, payload, expected) in [
            ("USER_CREATED", r#"{"active": false}"#, ""),
            ("USER_CREATED", r#"{"subscription": {}}"#, ""),
            ("USER_CREATED", r#"{"subscription": "gold"}"#, ""),
            ("USER_CREATED", r#"{"subscription": {"groupName": "x"}}"#, "ACTIVE"),
            ("USER_CREATED", r#"{"active": "false", "subscription": {"groupName": "x"}}"#, "ACTIVE"),
            ("USER_CREATED", r#"{"active": false, "subscription": {"groupName": "x"}}"#, "INACTIVE"),
            ("USER_CREATED", r#"{"subscription": {"active": false}}"#, "INACTIVE"),
            ("USER_CREATED", r#"{"active": false, "subscription": {"isTrialPeriod": true}}"#, "TRIAL"),
            ("USER_CREATED", r#"{"subscription": {"expiresAt": "2024-11-03T11:59:59"}}"#, "INACTIVE"),
            ("USER_CREATED", r#"{"subscription": {"expiresAt": "2024-11-03T13:30:00+02:00"}}"#, "INACTIVE"),
            ("USER_CREATED", r#"{"subscription": {"expiresAt": "2024-11-03T12:00:01"}}"#, "ACTIVE"),
            ("USER_CREATED", r#"{"subscription": {"expiresAt": "infinity"}}"#, "ACTIVE"),
            (
                "USER_CREATED",
                r#"{"timestamp": "2024-11-05", "subscription": {"expiresAt": "2024-11-04T00:00:00Z"}}"#,
                "INACTIVE",
            ),
            ("SUBSCRIPTION_CANCELLED", r#"{"subscription": {"isTrialPeriod": true}}"#, "CANCELLED"),
            ("SUBSCRIPTION_EXPIRED", "{}", "EXPIRED"),
        ] {
            assert_eq!(of(status, event_type, payload), expected, "{event_type} {payload}");
        }
    }

    #[test]
    fn days_come_from_the_producer_then_the_period_then_the_event() {
        for (event_type, payload, expected) in [
            (
                "USER_LOGIN",
                r#"{"subscription": {"durationDays": 30, "startsAt": "2024-01-01", "expiresAt": "2024-01-02"}}"#,
                Some("30"),
            ),
            ("USER_LOGIN", r#"{"subscription": {"durationDays": "365"}}"#, Some("365")),
            ("USER_LOGIN", r#"{"subscription": {"durationDays": 29.6}}"#, Some("30")),
            (
                "USER_LOGIN",
                r#"{"subscription": {"durationDays": 1e400, "startsAt": "2024-01-01", "expiresAt": "2024-01-08"}}"#,
                Some("7"),
            ),
            (
                "USER_LOGIN",
                r#"{"subscription": {"startsAt": "2024-01-01T00:00:00Z", "expiresAt": "2024-01-15T13:00:00"}}"#,
                Some("15"),
            ),
            ("USER_CREATED", r#"{"subscription": {"expiresAt": "2024-12-03T12:00:00Z"}}"#, Some("30")),
            (
                "SUBSCRIPTION_RENEWED",
                r#"{"timestamp": "2024-11-13T12:00:00", "subscription": {"expiresAt": "2024-12-03T12:00:00Z"}}"#,
                Some("20"),
            ),
            ("SUBSCRIPTION_CREATED", r#"{"subscription": {"expiresAt": "2024-01-01"}}"#, None),
            ("USER_LOGIN", r#"{"subscription": {"expiresAt": "2024-12-03T12:00:00Z"}}"#, None),
            ("USER_CREATED", r#"{"subscription": {"durationDays": -1, "expiresAt": 5}}"#, None),
            ("USER_CREATED", "{}", None),
        ] {
            assert_eq!(of(duration_days, event_type, payload).as_deref(), expected, "{event_type} {payload}");
        }
    }
}
