//! `make bench`: ratios against baselines of the same run, printed and written to target/bench/results.json and
//! tests/bench/RESULTS.md.
//!
//! One file is one section: a module with `pub(crate) async fn measure() -> Figures`, and a line in [`SECTIONS`].
//! Arguments choose sections; without any, those that belong to every run are measured.
#![allow(clippy::print_stdout, reason = "it is there to be read")]
#![allow(clippy::unwrap_used, reason = "a value that is missing ends the measurement")]

mod cost;
mod deliver;
mod drain;
mod emit;
mod figures;
mod growth;
mod hostile_sql;
mod huge;
mod latency;
mod pgbench;
mod policy;
mod pump;
mod retain;
mod server;
mod sink;
mod upgrade;
mod views;
mod watch;
mod written;

use std::env;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use orbhook_tests::{load, machine};

use crate::figures::Figures;

struct Section {
    /// `growth-due` is a part of `growth`, which chooses all its parts.
    name: &'static str,
    /// Measured when nothing was chosen: together they take under 10 minutes.
    always: bool,
    measure: fn() -> Pin<Box<dyn Future<Output = Figures>>>,
}

const SECTIONS: &[Section] = &[
    Section { name: "emit", always: true, measure: || Box::pin(emit::measure()) },
    Section { name: "watch", always: true, measure: || Box::pin(watch::measure()) },
    Section { name: "deliver", always: true, measure: || Box::pin(deliver::measure()) },
    Section { name: "latency", always: true, measure: || Box::pin(latency::measure()) },
    Section { name: "cost", always: true, measure: || Box::pin(cost::measure()) },
    Section { name: "growth-due", always: false, measure: || Box::pin(growth::one_due()) },
    Section { name: "growth-webhooks", always: false, measure: || Box::pin(growth::many_webhooks()) },
    Section { name: "growth-snapshot", always: false, measure: || Box::pin(growth::old_snapshot()) },
    Section { name: "growth-queue", always: false, measure: || Box::pin(growth::long_queue()) },
    Section { name: "growth-history", always: false, measure: || Box::pin(growth::much_history()) },
    Section { name: "huge", always: false, measure: || Box::pin(huge::measure()) },
    Section { name: "hostile-sql", always: false, measure: || Box::pin(hostile_sql::measure()) },
    Section { name: "policy-pace", always: false, measure: || Box::pin(policy::paces()) },
    Section { name: "policy-hostile", always: false, measure: || Box::pin(policy::hostile()) },
    Section { name: "policy-addresses", always: false, measure: || Box::pin(policy::addresses()) },
    Section {
        name: "policy-neighbours",
        always: false,
        measure: || Box::pin(policy::neighbours_and_replay()),
    },
    Section { name: "retain-purge", always: false, measure: || Box::pin(retain::purge()) },
    Section { name: "retain-year", always: false, measure: || Box::pin(retain::year()) },
    Section { name: "upgrade", always: false, measure: || Box::pin(upgrade::measure()) },
    Section { name: "views", always: false, measure: || Box::pin(views::measure()) },
];

#[tokio::main]
async fn main() -> ExitCode {
    let chosen: Vec<String> = env::args().skip(1).collect();
    if chosen.iter().any(|name| !SECTIONS.iter().any(|section| section.is(name))) {
        let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        println!("There are: {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for section in SECTIONS {
        let is_wanted = match chosen.is_empty() {
            true => section.always,
            false => chosen.iter().any(|name| section.is(name)),
        };
        if !is_wanted {
            continue;
        }
        println!("# {}", section.name);
        let (began, load_before) = (Instant::now(), load());
        let figures = (section.measure)().await;
        let circumstances = format!(
            "{}; {:.0} s, load average {load_before} at the start, {} at the end",
            machine(),
            began.elapsed().as_secs_f64(),
            load()
        );
        written::section(section.name, &circumstances, &figures);
    }
    ExitCode::SUCCESS
}

impl Section {
    fn is(&self, chosen: &str) -> bool {
        self.name.strip_prefix(chosen).is_some_and(|part| part.is_empty() || part.starts_with('-'))
    }
}
