//! One tag per event type.

/// `<source> User`, left out without a source, and the tag of the event's type.
pub(super) fn tags(source: &str, event_type: &str) -> Vec<String> {
    // A comma would split the tag in the comma-separated copy.
    let source = source.replace(',', " ");
    let of_source = (!source.trim().is_empty()).then(|| format!("{} User", source.trim()));
    of_source.into_iter().chain([tag(event_type)]).collect()
}

fn tag(event_type: &str) -> String {
    let known = TAGS.iter().find(|(known, _)| *known == event_type);
    known.map_or_else(|| in_title_case(event_type), |(_, tag)| (*tag).to_owned())
}

/// A type of the users' own: `ORDER_CREATED` gives `Order Created`.
fn in_title_case(event_type: &str) -> String {
    let words = event_type.split('_').filter(|word| !word.is_empty()).map(|word| {
        let (first, others) = word.split_at_checked(1).unwrap_or((word, ""));
        format!("{first}{}", others.to_lowercase())
    });
    words.collect::<Vec<_>>().join(" ")
}

const TAGS: &[(&str, &str)] = &[
    ("USER_CREATED", "New User"),
    ("USER_DELETED", "Deleted User"),
    ("USER_ACTION", "User Activity"),
    ("USER_LOGIN", "Logged In"),
    ("USER_LOGOUT", "Logged Out"),
    ("USER_PASSWORD_CHANGED", "Password Changed"),
    ("USER_EMAIL_VERIFIED", "Email Verified"),
    ("USER_PROFILE_UPDATED", "Profile Updated"),
    ("SUBSCRIPTION_CREATED", "New Subscription"),
    ("SUBSCRIPTION_RENEWED", "Subscription Renewed"),
    ("SUBSCRIPTION_CANCELLED", "Subscription Cancelled"),
    ("SUBSCRIPTION_EXPIRED", "Subscription Expired"),
    ("SUBSCRIPTION_TRIAL_STARTED", "Trial Started"),
    ("SUBSCRIPTION_TRIAL_ENDED", "Trial Ended"),
    ("SUBSCRIPTION_UPGRADED", "Subscription Upgraded"),
    ("SUBSCRIPTION_DOWNGRADED", "Subscription Downgraded"),
    ("PAYMENT_RECEIVED", "Payment Received"),
    ("PAYMENT_FAILED", "Payment Failed"),
    ("PAYMENT_REFUNDED", "Payment Refunded"),
    ("PAYMENT_PENDING", "Payment Pending"),
    ("DEVICE_CONNECTED", "Device Connected"),
    ("DEVICE_DISCONNECTED", "Device Disconnected"),
    ("DEVICE_ADDED", "New Device"),
    ("DEVICE_REMOVED", "Device Removed"),
    ("DEVICE_LIMIT_REACHED", "Device Limit Reached"),
    ("SECURITY_LOGIN_ATTEMPT", "Failed Login"),
    ("SECURITY_PASSWORD_RESET", "Password Reset"),
    ("SECURITY_2FA_ENABLED", "2FA Enabled"),
    ("SECURITY_2FA_DISABLED", "2FA Disabled"),
    ("SECURITY_IP_BLOCKED", "IP Blocked"),
    ("RESELLER_CREATED", "New Reseller"),
    ("RESELLER_UPDATED", "Reseller Updated"),
    ("RESELLER_DELETED", "Deleted Reseller"),
    ("RESELLER_CREDIT_ADDED", "Reseller Credit Added"),
    ("RESELLER_CREDIT_DEDUCTED", "Reseller Credit Deducted"),
    ("SYSTEM_MAINTENANCE_START", "Maintenance Started"),
    ("SYSTEM_MAINTENANCE_END", "Maintenance Ended"),
    ("SYSTEM_SERVER_DOWN", "Server Down"),
    ("SYSTEM_SERVER_UP", "Server Up"),
    ("SYSTEM_UPDATE", "System Update"),
    ("USAGE_LIMIT_APPROACHING", "Usage Limit Near"),
    ("USAGE_LIMIT_REACHED", "Usage Limit Reached"),
    ("USAGE_ABNORMAL", "Abnormal Usage"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_43_types_has_a_tag_of_its_own() {
        let mut names: Vec<&str> = TAGS.iter().map(|(_, tag)| *tag).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 43);
    }

    #[test]
    fn tags_follow_the_source_and_the_type() {
        assert_eq!(tags("OrbVPN", "USER_CREATED"), ["OrbVPN User", "New User"]);
        assert_eq!(tags("Acme, Inc", "USER_DELETED"), ["Acme  Inc User", "Deleted User"]);
        assert_eq!(tags(" ", "ORDER_CREATED"), ["Order Created"]);
    }
}
