//! The sections of a message: the document's four, one for the event's family, and one for what is left.

use serde_json::Value;

use super::Section;
use super::lines::{FURTHER_LINES_MAX, Lines, label, words};
use crate::event::{Event, Payload};
use crate::family::{FAMILIES, Family, rest};
use crate::json;

/// Those that have content, the event's own family first: it is the news.
pub(super) fn sections(event: &Event<'_>, payload: &Payload) -> Vec<Section> {
    let rest = rest(payload, event.event_type);
    let owner = FAMILIES.iter().find(|family| family.owns(event.event_type));
    let mut sections = Vec::new();
    sections.extend(owner.map(|family| family_section(family, event, payload, &rest)));
    sections.extend([user(payload), profile(payload), subscription(payload), reseller(payload)]);
    let others = FAMILIES.iter().filter(|family| !family.owns(event.event_type));
    sections.extend(others.map(|family| family_section(family, event, payload, &[])));
    sections.push(changes(&rest));
    if owner.is_none() {
        sections.push(details(&rest));
    }
    sections.retain(|section| !section.lines.is_empty());
    sections
}

fn user(payload: &Payload) -> Section {
    let mut lines = Lines::default();
    lines.add("Email", "email", payload.get("email"));
    lines.add("Username", "username", payload.get("username"));
    lines.add("User ID", "userId", payload.get("userId"));
    if payload.flag("active") == Some(false) {
        lines.add("Active", "active", payload.get("active"));
    }
    Section { emoji: "👤", title: "User Information", lines: lines.0 }
}

fn profile(payload: &Payload) -> Section {
    let mut lines = Lines::default();
    lines.add("Name", "name", payload.full_name().map(Value::String).as_ref());
    lines.add_fields(
        payload.part("profile"),
        &[
            ("country", "Country"),
            ("phone", "Phone"),
            ("address1", "Address"),
            ("address", "Address"),
            ("city", "City"),
            ("state", "State"),
            ("postalCode", "Postal Code"),
            ("companyName", "Company"),
            ("language", "Language"),
            ("timezone", "Time Zone"),
        ],
    );
    Section { emoji: "📋", title: "Profile Details", lines: lines.0 }
}

fn subscription(payload: &Payload) -> Section {
    let part = payload.part("subscription");
    let mut lines = Lines::default();
    lines.add_fields(
        part,
        &[("groupName", "Plan"), ("previousGroupName", "Previous Plan"), ("status", "Status")],
    );
    lines.add_measured(
        "Price",
        part.and_then(|part| part.get("price")),
        part.and_then(|part| part.get("currency")),
    );
    lines.add_fields(
        part,
        &[
            ("durationDays", "Duration (Days)"),
            ("multiLoginCount", "Multi-Login Count"),
            ("startsAt", "Starts At"),
            ("expiresAt", "Expires At"),
            ("cancelledAt", "Cancelled At"),
            ("cancellationReason", "Cancellation Reason"),
            ("trialEndsAt", "Trial Ends At"),
        ],
    );
    if payload.part_flag("subscription", "isTrialPeriod") == Some(true) {
        lines.add("Trial Period", "isTrialPeriod", part.and_then(|part| part.get("isTrialPeriod")));
    }
    let auto_renew = payload.get("autoRenew").or_else(|| part.and_then(|part| part.get("autoRenew")));
    lines.add("Auto Renew", "autoRenew", auto_renew);
    Section { emoji: "📅", title: "Subscription Details", lines: lines.0 }
}

fn reseller(payload: &Payload) -> Section {
    let part = payload.part("reseller");
    let mut lines = Lines::default();
    lines.add_fields(
        part,
        &[
            ("id", "Reseller ID"),
            ("name", "Name"),
            ("email", "Email"),
            ("phone", "Phone"),
            ("level", "Level"),
        ],
    );
    let discount = part.and_then(|part| part.get("discountPercent")).and_then(json::scalar_text);
    lines.add("Discount", "discount", discount.map(|percent| Value::String(format!("{percent}%"))).as_ref());
    lines.add_fields(
        part,
        &[("credit", "Credit"), ("creditAmount", "Amount"), ("amount", "Amount"), ("reason", "Reason")],
    );
    Section { emoji: "🤝", title: "Reseller Information", lines: lines.0 }
}

/// The family's fields, then what else its object holds, then, in its own events, what the top holds.
fn family_section(family: &Family, event: &Event<'_>, payload: &Payload, rest: &[(&str, &Value)]) -> Section {
    let value = |field| family.value(field, payload, event.event_type);
    let mut lines = Lines::default();
    let mut units_shown = Vec::new();
    for field in family.fields {
        match field.unit.filter(|_| value(field.key).is_some()) {
            Some(unit) => {
                lines.add_measured(field.label, value(field.key), value(unit));
                units_shown.push(unit);
            }
            None if units_shown.contains(&field.key) => {}
            None => lines.add(field.label, field.key, value(field.key)),
        }
    }
    let further = family.further(payload).map(|(key, value)| (key.as_str(), value));
    lines.add_further(further.chain(rest.iter().copied().filter(|(key, value)| !is_changes(key, value))));
    Section { emoji: family.emoji, title: family.title, lines: lines.0 }
}

/// `"changes": {"email": {"old": …, "new": …}}`, one line for each.
fn changes(rest: &[(&str, &Value)]) -> Section {
    let mut lines = Lines::default();
    let changes =
        rest.iter().find(|(key, value)| is_changes(key, value)).and_then(|(_, value)| value.as_object());
    for (key, change) in changes.into_iter().flatten().take(FURTHER_LINES_MAX) {
        let side = |side: &str| {
            change.get(side).and_then(|value| words(key, value)).unwrap_or_else(|| "(empty)".to_owned())
        };
        lines.0.push(format!("{}: {} → {}", label(key), side("old"), side("new")));
    }
    Section { emoji: "✏️", title: "Changes", lines: lines.0 }
}

fn is_changes(key: &str, value: &Value) -> bool {
    let is_change = |change: &Value| change.get("old").is_some() || change.get("new").is_some();
    key == "changes" && value.as_object().is_some_and(|changes| changes.values().all(is_change))
}

fn details(rest: &[(&str, &Value)]) -> Section {
    let mut lines = Lines::default();
    lines.add_further(rest.iter().copied().filter(|(key, value)| !is_changes(key, value)));
    Section { emoji: "📎", title: "Details", lines: lines.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(event_type: &str, payload: &str) -> String {
        let event =
            Event { id: "", event_type, occurred_at: "2024-11-03T15:27:47.002948Z", test: false, payload };
        let payload = Payload::read(&event).unwrap();
        sections(&event, &payload).iter().map(|section| section.text(3_000)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn an_empty_payload_has_no_section() {
        assert_eq!(text("USER_CREATED", "{}"), "");
        assert_eq!(
            text(
                "USER_CREATED",
                r#"{"email": "", "profile": {"firstName": " "}, "subscription": {}, "reseller": []}"#
            ),
            ""
        );
    }

    #[test]
    fn a_payment_shows_its_amount_with_the_currency() {
        let expected = "💳 *Payment Details*\n-------------------\n• Amount: 9.90 USD\n• Method: card\n• Coupon Code: XMAS";
        assert_eq!(
            text(
                "PAYMENT_FAILED",
                r#"{"payment": {"amount": 9.90, "currency": "USD", "method": "card", "couponCode": "XMAS"}}"#
            ),
            expected
        );
        assert_eq!(
            text(
                "PAYMENT_FAILED",
                r#"{"amount": 9.90, "currency": "USD", "method": "card", "couponCode": "XMAS"}"#
            ),
            expected
        );
        assert_eq!(
            text("PAYMENT_FAILED", r#"{"currency": "USD"}"#),
            "💳 *Payment Details*\n-------------------\n• Currency: USD"
        );
    }

    #[test]
    fn a_type_of_the_users_own_shows_what_it_holds() {
        assert_eq!(
            text(
                "ORDER_CREATED",
                r#"{"orderId": 7, "paidAt": "2024-01-02T03:04:05+01:00", "items": ["a", 2], "shipTo": {"city": "Ulm"}, "x": [[1]]}"#
            ),
            "📎 *Details*\n-------------------\n• Order ID: 7\n• Paid At: Jan 02, 2024 02:04:05 UTC\n• Items: a, 2\n• Ship To City: Ulm\n• X: [[1]]"
        );
    }

    #[test]
    fn changes_show_old_and_new() {
        assert_eq!(
            text(
                "USER_PROFILE_UPDATED",
                r#"{"changes": {"email": {"old": "a@b.c", "new": "d@e.f"}, "phone": {"old": null, "new": "1"}}}"#
            ),
            "✏️ *Changes*\n-------------------\n• Email: a@b.c → d@e.f\n• Phone: (empty) → 1"
        );
    }

    #[test]
    fn a_name_cannot_mention_link_or_fake_a_bullet() {
        let shown =
            text("USER_CREATED", r#"{"username": "<!channel>\n• Role: admin <http://evil|bank.com> &lt;"}"#);
        assert_eq!(
            shown,
            "👤 *User Information*\n-------------------\n• Username: &lt;!channel&gt; • Role: admin &lt;http://evil|bank.com&gt; &amp;lt;"
        );
    }

    #[test]
    fn a_huge_value_is_cut_and_hides_nothing_after_it() {
        let payload = format!(r#"{{"email": "{}", "username": "ann"}}"#, "&".repeat(100_000));
        let shown = text("USER_CREATED", &payload);
        assert!(shown.contains("&amp;…\n• Username: ann"), "{shown}");
        assert!(shown.len() < 700);
    }

    #[test]
    fn wrong_types_are_shown_as_text() {
        let shown = text(
            "USER_CREATED",
            r#"{"email": 5, "username": {"a": [1]}, "userId": ["x", "y"], "active": "no", "profile": 7}"#,
        );
        assert_eq!(
            shown,
            "👤 *User Information*\n-------------------\n• Email: 5\n• Username: {\"a\":[1]}\n• User ID: x, y\n📎 *Details*\n-------------------\n• Profile: 7"
        );
    }
}
