//! What orbhook knows of users, subscriptions, payments, devices and resellers: usual column names, and the events they
//! allow. One description for each; everything else reads these.

/// A kind of table.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    pub(crate) events: &'static [Event],
    /// Status words and the event that a row in that state stands for.
    pub(crate) words: &'static [(&'static str, &'static str)],
}

/// A thing a column can be. Its column is the first of `names` the table has, unless the mapping says otherwise.
#[derive(Debug)]
pub(crate) struct Field {
    /// Where it goes in the payload; `None` for what is only looked at.
    pub(crate) path: Option<&'static str>,
    /// What it tells; `None` for what is only sent.
    pub(crate) signal: Option<&'static str>,
    pub(crate) names: &'static [&'static str],
    /// Whether a change of it is an event of its own (a profile update).
    pub(crate) described: bool,
}

/// An event type and what it takes.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    pub(crate) fires_when: &'static str,
    /// Each group needs one of its signals. `"*"`: a described column.
    pub(crate) needs: &'static [&'static [&'static str]],
}

pub(crate) fn find(name: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.name == name)
}

impl Source {
    pub(crate) fn field_of_path(&self, path: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.path == Some(path))
    }

    pub(crate) fn signals(&self) -> impl Iterator<Item = &'static str> {
        self.fields.iter().filter_map(|field| field.signal)
    }

    /// Signals that a change of is looked for in every UPDATE.
    pub(crate) fn watched_signals(&self) -> impl Iterator<Item = &'static str> {
        self.signals().filter(|signal| !PASSIVE.contains(signal))
    }
}

/// Signals whose change alone means nothing.
const PASSIVE: &[&str] = &["id", "user", "reseller", "login_ip"];

const fn sent(path: &'static str, names: &'static [&'static str]) -> Field {
    Field { path: Some(path), signal: None, names, described: true }
}

const fn seen(signal: &'static str, names: &'static [&'static str]) -> Field {
    Field { path: None, signal: Some(signal), names, described: false }
}

const fn both(path: &'static str, signal: &'static str, names: &'static [&'static str]) -> Field {
    Field { path: Some(path), signal: Some(signal), names, described: false }
}

const fn described(path: &'static str, signal: &'static str, names: &'static [&'static str]) -> Field {
    Field { path: Some(path), signal: Some(signal), names, described: true }
}

const fn event(
    name: &'static str,
    fires_when: &'static str,
    needs: &'static [&'static [&'static str]],
) -> Event {
    Event { name, fires_when, needs }
}

const DELETED: &[&str] = &["deleted_at", "is_deleted", "deleted", "discarded_at", "soft_deleted_at"];
const USER: &[&str] = &[
    "user_id",
    "userid",
    "customer_id",
    "account_id",
    "member_id",
    "owner_id",
    "user_uuid",
    "customer",
    "user",
];
const STATUS: &[&str] = &["status", "state"];

pub(crate) const SOURCES: &[Source] = &[
    Source {
        name: "users",
        fields: &[
            both("userId", "id", &["id", "user_id", "uuid", "uid"]),
            sent("email", &["email", "email_address", "e_mail", "mail"]),
            sent("username", &["username", "login", "user_name", "handle", "nickname"]),
            sent("profile.firstName", &["first_name", "firstname", "given_name"]),
            sent("profile.lastName", &["last_name", "lastname", "surname", "family_name"]),
            sent("profile.name", &["name", "full_name", "fullname", "display_name"]),
            sent("profile.country", &["country", "country_code"]),
            sent("profile.phone", &["phone", "phone_number", "mobile", "mobile_number", "telephone"]),
            sent("profile.address1", &["address1", "address", "street"]),
            sent("profile.city", &["city"]),
            sent("profile.state", &["state", "province", "region"]),
            sent("profile.postalCode", &["postal_code", "postcode", "zip", "zip_code"]),
            sent("profile.companyName", &["company_name", "company", "organization"]),
            sent("profile.language", &["language", "locale"]),
            sent("profile.timezone", &["timezone", "time_zone"]),
            sent("active", &["is_active", "active", "enabled", "is_enabled"]),
            described("status", "status", &["status", "account_status"]),
            sent("autoRenew", &["auto_renew"]),
            seen(
                "password",
                &[
                    "encrypted_password",
                    "password_hash",
                    "password_digest",
                    "hashed_password",
                    "password",
                    "passwd",
                ],
            ),
            seen(
                "verified",
                &[
                    "email_verified_at",
                    "confirmed_at",
                    "email_confirmed_at",
                    "verified_at",
                    "email_verified",
                    "is_email_verified",
                    "email_confirmed",
                    "is_verified",
                    "verified",
                ],
            ),
            seen(
                "login",
                &[
                    "current_sign_in_at",
                    "last_login_at",
                    "last_login",
                    "last_sign_in_at",
                    "last_logged_in_at",
                    "logged_in_at",
                ],
            ),
            seen("login_ip", &["current_sign_in_ip", "last_login_ip", "last_sign_in_ip"]),
            seen(
                "two_factor",
                &[
                    "two_factor_enabled",
                    "otp_enabled",
                    "mfa_enabled",
                    "totp_enabled",
                    "two_factor_confirmed_at",
                    "otp_required_for_login",
                    "is_2fa_enabled",
                ],
            ),
            seen("deleted", DELETED),
            seen("reseller", &["reseller_id"]),
        ],
        events: &[
            event("USER_CREATED", "a row is inserted", &[]),
            event("USER_DELETED", "a row is deleted, or marked as deleted", &[]),
            event("USER_PASSWORD_CHANGED", "the stored password changes", &[&["password"]]),
            event("USER_EMAIL_VERIFIED", "the address becomes verified", &[&["verified"]]),
            event("USER_LOGIN", "the time of the last login moves on", &[&["login"]]),
            event("USER_PROFILE_UPDATED", "a column that is sent changes", &[&["*"]]),
            event("SECURITY_2FA_ENABLED", "two-factor login is switched on", &[&["two_factor"]]),
            event("SECURITY_2FA_DISABLED", "two-factor login is switched off", &[&["two_factor"]]),
        ],
        words: &[("deleted", "USER_DELETED")],
    },
    Source {
        name: "subscriptions",
        fields: &[
            both("subscription.id", "id", &["id", "subscription_id", "uuid"]),
            both("userId", "user", USER),
            both(
                "subscription.groupName",
                "plan",
                &[
                    "group_name",
                    "plan_name",
                    "plan",
                    "plan_id",
                    "group_id",
                    "tier",
                    "product",
                    "product_id",
                    "price_id",
                ],
            ),
            sent("subscription.groupId", &["group_id", "plan_id"]),
            both("subscription.status", "status", STATUS),
            sent("subscription.multiLoginCount", &["multi_login_count", "seats", "quantity"]),
            sent(
                "subscription.startsAt",
                &["starts_at", "started_at", "current_period_start", "start_date", "starts_on"],
            ),
            both(
                "subscription.expiresAt",
                "expires",
                &[
                    "expires_at",
                    "current_period_end",
                    "expires_on",
                    "expiry",
                    "expires",
                    "valid_until",
                    "ends_at",
                    "end_date",
                ],
            ),
            both("subscription.isTrialPeriod", "trial", &["is_trial", "is_trial_period", "trial"]),
            both(
                "subscription.trialEndsAt",
                "trial_ends",
                &["trial_ends_at", "trial_end", "trial_end_at", "trial_ends_on"],
            ),
            both(
                "subscription.cancelledAt",
                "cancelled",
                &["canceled_at", "cancelled_at", "is_cancelled", "is_canceled"],
            ),
            sent("subscription.cancellationReason", &["cancellation_reason", "cancel_reason"]),
            both("subscription.price", "price", &["price", "amount", "unit_amount", "plan_amount"]),
            sent("subscription.currency", &["currency"]),
            sent("autoRenew", &["auto_renew", "auto_renewal"]),
            seen("rank", &["rank", "plan_rank", "plan_level"]),
        ],
        events: &[
            event("SUBSCRIPTION_CREATED", "a row is inserted", &[]),
            event(
                "SUBSCRIPTION_RENEWED",
                "the end moves to a later time, or the status comes back from expired",
                &[&["expires", "status"]],
            ),
            event(
                "SUBSCRIPTION_CANCELLED",
                "it becomes cancelled, by its date or its status",
                &[&["cancelled", "status"]],
            ),
            event(
                "SUBSCRIPTION_EXPIRED",
                "its end passes (by the clock), or the status says so first",
                &[&["expires", "status"]],
            ),
            event(
                "SUBSCRIPTION_TRIAL_STARTED",
                "it is inserted in trial, or a trial begins",
                &[&["trial", "trial_ends", "status"]],
            ),
            event(
                "SUBSCRIPTION_TRIAL_ENDED",
                "the trial's end passes (by the clock), or the row says so first",
                &[&["trial", "trial_ends", "status"]],
            ),
            event(
                "SUBSCRIPTION_UPGRADED",
                "it changes to a plan of higher rank or price",
                &[&["plan", "price"], &["price", "rank"]],
            ),
            event(
                "SUBSCRIPTION_DOWNGRADED",
                "it changes to a plan of lower rank or price",
                &[&["plan", "price"], &["price", "rank"]],
            ),
        ],
        words: &[
            ("trialing", "SUBSCRIPTION_TRIAL_STARTED"),
            ("trial", "SUBSCRIPTION_TRIAL_STARTED"),
            ("in_trial", "SUBSCRIPTION_TRIAL_STARTED"),
            ("on_trial", "SUBSCRIPTION_TRIAL_STARTED"),
            ("canceled", "SUBSCRIPTION_CANCELLED"),
            ("cancelled", "SUBSCRIPTION_CANCELLED"),
            ("terminated", "SUBSCRIPTION_CANCELLED"),
            ("expired", "SUBSCRIPTION_EXPIRED"),
            ("ended", "SUBSCRIPTION_EXPIRED"),
            ("lapsed", "SUBSCRIPTION_EXPIRED"),
            ("incomplete_expired", "SUBSCRIPTION_EXPIRED"),
        ],
    },
    Source {
        name: "payments",
        fields: &[
            both("payment.id", "id", &["id", "payment_id", "uuid"]),
            both("userId", "user", USER),
            sent("payment.amount", &["amount", "total", "total_amount", "amount_paid", "price"]),
            sent("payment.currency", &["currency", "currency_code"]),
            sent(
                "payment.method",
                &["method", "payment_method", "payment_method_type", "gateway", "provider"],
            ),
            both("payment.status", "status", STATUS),
            sent("payment.transactionId", &["transaction_id", "invoice_id", "reference", "external_id"]),
            sent("payment.subscriptionId", &["subscription_id"]),
            sent("payment.description", &["description"]),
            sent(
                "payment.failureReason",
                &["failure_reason", "failure_message", "error_message", "decline_code"],
            ),
            both("payment.refundedAt", "refunded", &["refunded_at", "refunded", "is_refunded"]),
        ],
        events: &[
            event("PAYMENT_RECEIVED", "it is inserted as paid (or there is no status), or becomes paid", &[]),
            event("PAYMENT_FAILED", "it is inserted as failed, or becomes failed", &[&["status"]]),
            event(
                "PAYMENT_REFUNDED",
                "it becomes refunded, by its date or its status",
                &[&["refunded", "status"]],
            ),
            event("PAYMENT_PENDING", "it is inserted as pending, or becomes pending", &[&["status"]]),
        ],
        words: &[
            ("succeeded", "PAYMENT_RECEIVED"),
            ("success", "PAYMENT_RECEIVED"),
            ("successful", "PAYMENT_RECEIVED"),
            ("paid", "PAYMENT_RECEIVED"),
            ("completed", "PAYMENT_RECEIVED"),
            ("complete", "PAYMENT_RECEIVED"),
            ("captured", "PAYMENT_RECEIVED"),
            ("settled", "PAYMENT_RECEIVED"),
            ("received", "PAYMENT_RECEIVED"),
            ("failed", "PAYMENT_FAILED"),
            ("failure", "PAYMENT_FAILED"),
            ("declined", "PAYMENT_FAILED"),
            ("rejected", "PAYMENT_FAILED"),
            ("error", "PAYMENT_FAILED"),
            ("uncollectible", "PAYMENT_FAILED"),
            ("refunded", "PAYMENT_REFUNDED"),
            ("partially_refunded", "PAYMENT_REFUNDED"),
            ("charged_back", "PAYMENT_REFUNDED"),
            ("pending", "PAYMENT_PENDING"),
            ("processing", "PAYMENT_PENDING"),
            ("authorized", "PAYMENT_PENDING"),
            ("open", "PAYMENT_PENDING"),
            ("unpaid", "PAYMENT_PENDING"),
            ("requires_action", "PAYMENT_PENDING"),
            ("requires_capture", "PAYMENT_PENDING"),
            ("requires_confirmation", "PAYMENT_PENDING"),
            ("requires_payment_method", "PAYMENT_PENDING"),
        ],
    },
    Source {
        name: "devices",
        fields: &[
            both("device.id", "id", &["id", "device_id", "uuid"]),
            both("userId", "user", USER),
            sent("device.name", &["name", "device_name", "hostname"]),
            sent("device.type", &["type", "device_type", "platform", "os"]),
            sent("device.model", &["model", "device_model"]),
            sent("device.ipAddress", &["ip_address", "ip", "last_ip"]),
            both("device.connected", "connected", &["is_connected", "connected", "is_online", "online"]),
            both("device.status", "status", STATUS),
            seen("deleted", DELETED),
        ],
        events: &[
            event("DEVICE_ADDED", "a row is inserted", &[]),
            event("DEVICE_REMOVED", "a row is deleted, or marked as deleted", &[]),
            event(
                "DEVICE_CONNECTED",
                "it is inserted connected, or becomes connected",
                &[&["connected", "status"]],
            ),
            event("DEVICE_DISCONNECTED", "it is no longer connected", &[&["connected", "status"]]),
        ],
        words: &[
            ("connected", "DEVICE_CONNECTED"),
            ("online", "DEVICE_CONNECTED"),
            ("disconnected", "DEVICE_DISCONNECTED"),
            ("offline", "DEVICE_DISCONNECTED"),
            ("deleted", "DEVICE_REMOVED"),
            ("removed", "DEVICE_REMOVED"),
        ],
    },
    Source {
        name: "resellers",
        fields: &[
            both("reseller.id", "id", &["id", "reseller_id", "uuid"]),
            sent("reseller.name", &["name", "company_name", "company", "username"]),
            sent("reseller.email", &["email"]),
            sent("reseller.phone", &["phone", "phone_number"]),
            sent("reseller.level", &["level", "level_name", "tier"]),
            sent("reseller.levelId", &["level_id"]),
            sent("reseller.discountPercent", &["discount_percent", "discount"]),
            sent("reseller.active", &["is_active", "active", "enabled"]),
            described("reseller.status", "status", STATUS),
            both("reseller.credit", "credit", &["credit", "credits", "balance", "credit_balance"]),
            seen("deleted", DELETED),
        ],
        events: &[
            event("RESELLER_CREATED", "a row is inserted", &[]),
            event("RESELLER_UPDATED", "a column that is sent changes", &[&["*"]]),
            event("RESELLER_DELETED", "a row is deleted, or marked as deleted", &[]),
            event("RESELLER_CREDIT_ADDED", "the credit grows", &[&["credit"]]),
            event("RESELLER_CREDIT_DEDUCTED", "the credit shrinks", &[&["credit"]]),
        ],
        words: &[("deleted", "RESELLER_DELETED")],
    },
];
