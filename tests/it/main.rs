//! The claims, each proved with a real server, a real receiver and the real sidecar.
#![allow(clippy::unwrap_used, reason = "a value that is missing is a failed test, in a test's helper too")]

mod check; // `orbhook check` says what is wrong and how to mend it
mod config_errors; // what orbhook_create_webhook refuses
mod crash; // a server that dies under a working sidecar
mod deliver; // exactly what was committed arrives, signed
mod document; // the product document: its objects go in, its formats come out
mod emit_errors; // what orbhook_emit refuses
mod graphql; // the document's test call, on the sidecar's admin listener
mod health; // when a webhook is switched off, and who hears of it
mod idle; // a sidecar without work leaves the database alone
mod lease; // who may send what, when, and whose result counts
mod privileges; // what may be called, by whom, and what it says about itself
mod replay; // sending a span of time again
mod settle; // what follows from an answer
