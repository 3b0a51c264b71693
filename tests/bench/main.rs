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
mod server;
mod sink;
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
    Section { name: "growth", always: false, measure: || Box::pin(growth::measure()) },
    Section { name: "huge", always: false, measure: || Box::pin(huge::measure()) },
    Section { name: "hostile-sql", always: false, measure: || Box::pin(hostile_sql::measure()) },
    Section { name: "policy", always: false, measure: || Box::pin(policy::measure()) },
    Section { name: "views", always: false, measure: || Box::pin(views::measure()) },
];

#[tokio::main]
async fn main() -> ExitCode {
    let chosen: Vec<String> = env::args().skip(1).collect();
    if chosen.iter().any(|name| SECTIONS.iter().all(|section| section.name != name)) {
        let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        println!("There are: {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for section in SECTIONS {
        let is_wanted = match chosen.is_empty() {
            true => section.always,
            false => chosen.iter().any(|name| name == section.name),
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
