//! The claims, each proved with a real server, a real receiver and the real sidecar.
#![allow(clippy::unwrap_used, reason = "a value that is missing is a failed test, in a test's helper too")]

mod attacks; // nothing that somebody put into the search path is run
mod audit; // the ledger proves itself
mod by_hand; // what a person does about a delivery or a webhook: retry, pause, resume
mod canary; // a sealed secret is found nowhere
mod captured; // what a transaction would cause, before it commits
mod check; // `orbhook check` says what is wrong and how to mend it
mod config_errors; // what orbhook_create_webhook refuses
mod crash; // a server that dies under a working sidecar
mod deliver; // exactly what was committed arrives, signed
mod document; // the product document: its objects go in, its formats come out
mod doorbell; // woken or not, everything is found
mod dump; // backup and restore
mod echo; // a receiver that repeats what it was sent gives nothing away
mod emit; // one key is one event, and a delivery for later waits
mod emit_errors; // what orbhook_emit refuses
mod emitters; // what an application's transaction may go through
mod environment; // a copy of a database that sends stays silent
mod erase;
mod explain; // what is explained is what then happens
mod failover; // another server takes over
mod filter; // which events pass a filter
mod found; // what the crash campaign found
mod front; // where a queue begins, remembered
mod golden; // compares with a file that a person has read
mod graphql; // the document's test call, on the sidecar's admin listener
mod health; // when a webhook is switched off, and who hears of it
mod hostile; // whatever a receiver does, an attempt ends in time, with its reason, and nothing is unpacked or followed
mod idle; // a sidecar without work leaves the database alone
mod isolation; // a bad webhook is its own trouble
mod lease; // who may send what, when, and whose result counts
mod leave; // DROP EXTENSION
mod ledger; // rows written past the executor are what an INSERT would have written
mod logs; // what the sidecar's log says of a failure, and how often
mod metrics; // what /metrics says, and that the dashboard and the alerts ask for nothing else
mod outbound; // what must not be reached is not reached
mod owner; // sidecars that die, stop or stand still, with work in their hands
mod pacing; // how many requests a receiver gets in a second, and at once
mod plans;
mod poison; // what cannot be delivered harms nothing else
mod privileges; // what may be called, by whom, and what it says about itself
mod readme;
mod record; // when an attempt began, by the database's clock
mod recovery; // a receiver that was gone is not run over when it comes back
mod replay; // sending a span of time again
mod replay_steps; // a long span is sent again in bounded steps
mod resends; // an attempt is one request on the wire
mod retain; // what is old goes
mod roles; // who may do what
mod seal; // secrets at rest: who can open them, and what happens without the key
mod settle; // what follows from an answer
mod signatures; // rotation of secrets, verification in SQL, every provider's bytes
mod subscription; // sessions remember who subscribes, and none longer than it is true
mod tls; // whom it trusts, and what it says of those it does not
mod tls_servers; // TLS as OpenSSL's server speaks it
mod top; // `orbhook top`, in a pipe
mod totals; // attempts counted by the minute and the hour
mod upgrade; // a released version becomes this one
mod views; // what a person asks, answered with one select
mod watch; // what orbhook_watch says, takes and refuses, and whose rights count
mod watch_events; // every event type, from plain SQL
mod watch_replica; // a logical subscriber's copy stays silent
mod watch_schema; // watched tables change, go, and move to another server
mod watch_tables; // kinds of tables and of columns, and tables made by frameworks
