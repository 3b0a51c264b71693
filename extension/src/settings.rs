//! Server settings (GUCs). Every name carries its unit.

use std::ffi::CString;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

/// Largest payload `orbhook_emit` takes, in bytes of its text. 256 KiB leaves room for any event a person wrote and
/// keeps a claim of 200 deliveries within tens of megabytes.
static PAYLOAD_BYTES_MAX: GucSetting<i32> = GucSetting::<i32>::new(256 * 1024);
const PAYLOAD_BYTES_MAX_LOWEST: i32 = 1024;
/// 25 MiB: what the largest receivers take, and far below what jsonb can hold.
const PAYLOAD_BYTES_MAX_HIGHEST: i32 = 25 * 1024 * 1024;

/// Read by SQL alone (`sql/62_health.sql`).
static SWITCH_OFF_AFTER_DAYS: GucSetting<i32> = GucSetting::<i32>::new(5);

static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(true);
/// A full notification queue would fail the application's COMMIT. Half full leaves hours to whoever fills it.
static NOTIFY_QUEUE_USAGE_MAX: GucSetting<f64> = GucSetting::<f64>::new(0.5);
static ALLOW_NETWORKS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

static EMIT: GucSetting<bool> = GucSetting::<bool>::new(true);
static ON_EMIT_ERROR: GucSetting<OnEmitError> = GucSetting::<OnEmitError>::new(OnEmitError::Error);

/// What a trigger of a watched table does when an event cannot be recorded.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum OnEmitError {
    /// The statement fails: nothing is lost.
    #[name = c"error"]
    Error,
    /// The row is written, the loss is counted in `orbhook.watch_losses`.
    #[name = c"warning"]
    Warning,
}

/// Whether watched tables emit.
pub(crate) fn emit() -> bool {
    EMIT.get()
}

pub(crate) fn on_emit_error() -> OnEmitError {
    ON_EMIT_ERROR.get()
}

pub(crate) fn payload_bytes_max() -> usize {
    usize::try_from(PAYLOAD_BYTES_MAX.get()).unwrap_or_default()
}

/// Whether commits may ring the doorbell. Off: sidecars find work by polling.
pub(crate) fn notify() -> bool {
    NOTIFY.get()
}

/// From this much of the server's notification queue in use no bell is rung: 0 to 1.
pub(crate) fn notify_queue_usage_max() -> f64 {
    NOTIFY_QUEUE_USAGE_MAX.get()
}

/// Comma-separated CIDRs an endpoint may name although they are not public.
pub(crate) fn allow_networks() -> String {
    ALLOW_NETWORKS.get().map(|networks| networks.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) fn define() {
    GucRegistry::define_int_guc(
        c"orbhook.payload_bytes_max",
        c"Largest payload orbhook_emit takes, in bytes of its text.",
        c"A larger one is refused with SQLSTATE 54000.",
        &PAYLOAD_BYTES_MAX,
        PAYLOAD_BYTES_MAX_LOWEST,
        PAYLOAD_BYTES_MAX_HIGHEST,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"orbhook.switch_off_after_days",
        c"Days without a success, while being tried, after which a webhook is switched off; 0 = never.",
        c"What is queued stays pending until it is switched on again.",
        &SWITCH_OFF_AFTER_DAYS,
        0,
        3650,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"orbhook.notify",
        c"Whether a commit that makes something due may wake a sleeping sidecar with NOTIFY.",
        c"Off: sidecars find it by polling, within a second.",
        &NOTIFY,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"orbhook.notify_queue_usage_max",
        c"Part of the server's notification queue (0 to 1) in use from which no sidecar is woken with NOTIFY.",
        c"A full queue would fail the application's COMMIT. Sidecars then find work by polling, within a second.",
        &NOTIFY_QUEUE_USAGE_MAX,
        0.0,
        1.0,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"orbhook.emit",
        c"Whether changes of watched tables become events.",
        c"SET LOCAL orbhook.emit = off keeps one transaction silent. A superuser's setting; GRANT SET ON PARAMETER hands it out.",
        &EMIT,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"orbhook.on_emit_error",
        c"What a change of a watched table does when its event cannot be recorded: error or warning.",
        c"error: the statement fails and nothing is lost. warning: the row is written and the loss is counted in orbhook.watch_losses.",
        &ON_EMIT_ERROR,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"orbhook.allow_networks",
        c"Networks a webhook's endpoint may name although they are not public: comma-separated CIDRs.",
        c"The sidecar has a list of its own (--allow-network), and that one decides what is dialled.",
        &ALLOW_NETWORKS,
        GucContext::Suset,
        GucFlags::default(),
    );
}
