//! What each provider gets for an event, and what its answer means.
//!
//! Pure functions: no server, no I/O, no clock.
//! [`render()`] turns an event into a request, [`judge()`] turns a response into a verdict, and
//! [`webhook::validate`] turns the configuration object of the product document into a record.
//! A provider is one module: the keys of its `providerSpecificConfig`, its body, its headers and its
//! judgement.

mod clean;
mod country;
mod cut;
mod escape;
mod event;
mod facts;
mod family;
mod generic;
mod gohighlevel;
mod json;
mod judge;
mod phone;
mod provider;
mod quote;
mod render;
mod retry_after;
mod slack;
mod snake;
mod subscription;
mod time;
pub mod webhook;
mod zapier;

pub use event::Event;
pub use facts::{Facts, facts, instant};
pub use judge::{Response, Verdict, judge};
pub use provider::{Provider, UnknownProvider};
pub use render::{Header, Request, Settings, Unrenderable, render};
pub use retry_after::retry_after_seconds;
