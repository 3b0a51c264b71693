//! The crate as its callers see it.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail the test, too")]

/// Rendered bodies of every type, written out for the providers' own models.
mod bodies;
/// The examples of the product document.
mod document;
/// Answers of the providers and what they mean.
mod judge;
/// Every type for every provider from full, empty and hostile payloads, within the provider's limits.
mod limits;
/// Payloads and calls that the tests share.
mod samples;
/// What each type looks like, for a person to read.
mod snapshots;
/// The configuration object.
mod webhook;
