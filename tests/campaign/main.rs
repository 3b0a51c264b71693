//! `make campaign`: a crash campaign against real processes, judged by ten invariants.
//!
//! Emitters write down what they intend and what became of it, receivers what came; a nemesis kills, stops and restarts
//! everything between them in an order that the seed decides. At the end all is healed, everything drains, and the checker
//! compares the two books with each other and with the database.
#![allow(clippy::print_stdout, reason = "it is there to be read")]

mod campaign;
mod checker;
mod clock;
mod emitters;
mod faults;
mod figures;
mod fleet;
mod history;
mod ledger;
mod nemesis;
mod operator;
mod planted;
mod receivers;
mod stage;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};
use orbhook_tests::{load, machine, write_section};

use crate::campaign::Outcome;
use crate::figures::Run;

/// Violations that are printed.
const PRINTED_MAX: usize = 10;

/// A shorter campaign makes no figures.
const RECORDED_MINUTES_MIN: f64 = 10.0;

/// Lines of the first violating history that are printed.
const HISTORY_LINES_MAX: usize = 60;

#[derive(Parser)]
struct Arguments {
    /// How long the nemesis works, in minutes
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,

    /// What is asked
    #[arg(long, value_enum, default_value_t = Run::Campaign)]
    run: Run,

    /// Write the figures into tests/bench/RESULTS.md; a campaign of less than ten minutes is none
    #[arg(long)]
    record: bool,

    /// Decides what happens; printed, so that a run can be repeated [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Run with bugs made on purpose instead, each of which must be noticed: all, or the one named
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    planted: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    if let Some(only) = arguments.planted {
        return planted::run_all(seed, &only).await;
    }
    println!("seed {seed}");
    let load_before = load();
    let duration = Duration::from_secs_f64(60.0 * arguments.minutes);
    let mut outcome = campaign::run(&arguments.run.settings(seed, duration)).await;
    outcome.counts.extend(arguments.run.figures(&outcome));
    print(&outcome);
    if arguments.record && (arguments.run != Run::Campaign || arguments.minutes >= RECORDED_MINUTES_MIN) {
        record(&outcome, arguments.run, seed, arguments.minutes, &load_before);
    }
    match outcome.verdict.violations.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn record(outcome: &Outcome, run: Run, seed: u64, minutes: f64, load_before: &str) {
    let name = run.to_possible_value().expect("every run has a name").get_name().to_owned();
    let (heading, command) = match run {
        Run::Campaign => ("campaign".to_owned(), format!("make campaign MINUTES={minutes} SEED={seed}")),
        _ => (format!("campaign: {name}"), format!("make campaign RUN={name} MINUTES={minutes} SEED={seed}")),
    };
    let mut text = format!(
        "`{command}` on {}; load average {load_before} at the start, {} at the end.\n\n| what | figure |\n|---|---|\n",
        machine(),
        load()
    );
    for (what, how_much) in &outcome.counts {
        let _ = writeln!(text, "| {what} | {how_much} |");
    }
    let broken = outcome.broken();
    let _ = match broken.is_empty() {
        true => writeln!(text, "| invariants | all ten hold |"),
        false => writeln!(text, "| invariants | **violated**: {broken:?} |"),
    };
    println!("written to {}", write_section(&heading, &text).display());
}

fn print(outcome: &Outcome) {
    for (what, how_much) in &outcome.counts {
        println!("{what}: {how_much}");
    }
    let violations = &outcome.verdict.violations;
    if violations.is_empty() {
        println!("all ten invariants hold");
        return;
    }
    for violation in violations.iter().take(PRINTED_MAX) {
        let delivery = violation.delivery.map(|id| format!(" (delivery {id})")).unwrap_or_default();
        println!("VIOLATED {:?}: {}{delivery}", violation.invariant, violation.what);
    }
    println!("{} violations; the books are in {}", violations.len(), outcome.directory.display());
    println!("the first one's history:");
    for line in outcome.first_history.iter().take(HISTORY_LINES_MAX) {
        println!("  {line}");
    }
}
