//! Hooks of the crash campaign (`make campaign`): points to die at, bugs made on purpose, requests that say which attempt they are.
//!
//! All of it exists in a build with the feature `campaign` alone, which is never installed. In any other build the functions here
//! are empty and [`has`] is `false`, so the compiler drops what stands behind them.

#[cfg(feature = "campaign")]
mod armed;

#[cfg(feature = "campaign")]
pub(crate) use armed::{has, mark, pass};

/// A place between two steps, where a crash leaves the one done and the other not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Leased and committed; nothing has been sent.
    AfterClaim,
    /// The endpoint has answered; nobody else knows.
    AfterSend,
    /// Results are about to be written.
    BeforeSettle,
    /// Results are written; the worker has not heard of it.
    AfterSettle,
}

/// What the campaign has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A delivery is reported as delivered, and then sent.
    SettleBeforeSend,
    /// What is left of the lease is not looked at before dialling.
    IgnoredLease,
    /// The claim's transaction is still open when its requests are sent.
    ClaimNotCommitted,
    /// A result that could not be written is forgotten.
    SwallowedSettleError,
    /// Nothing is looked for unless somebody rings.
    NoPoll,
    /// A redirect is followed.
    RedirectFollowed,
}

#[cfg(not(feature = "campaign"))]
pub(crate) fn pass(_: Point) {}

#[cfg(not(feature = "campaign"))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

#[cfg(not(feature = "campaign"))]
pub(crate) fn mark(_: &mut reqwest::header::HeaderMap, _: crate::delivery::Ticket) {}
