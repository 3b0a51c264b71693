//! `make model FAULTS=2`: visits every state with so many faults, of every kind and at every step, and says how many there were.
#![allow(clippy::print_stdout, reason = "it is there to be read")]

use std::process::ExitCode;
use std::time::Instant;

use orbhook_model::{Fault, Protocol, Rules, explore};
use stateright::{Checker as _, Model as _};

fn main() -> ExitCode {
    let Some(faults) = std::env::args().nth(1).and_then(|text| text.parse().ok()) else {
        println!("usage: explore FAULTS (0 to 7; each more is some fifteen times as many states)");
        return ExitCode::FAILURE;
    };
    let begun = Instant::now();
    let model = Protocol::new(Rules::KEPT, Fault::ALL, faults);
    let checker = model.clone().checker().threads(2).spawn_bfs().join();
    let reached = explore(&model);
    println!(
        "{} states with up to {faults} faults of {} kinds, 2 sidecars, 2 emitters, 2 deliveries; {} properties, {:.0} s",
        reached.states,
        Fault::ALL.len(),
        model.properties().len() + 1,
        begun.elapsed().as_secs_f64()
    );
    for (property, path) in checker.discoveries() {
        println!("violated: {property}: {:#?}", path.into_actions());
    }
    if let Some(state) = &reached.stuck {
        println!("from here nothing more is delivered: {state:#?}");
    }
    match reached.stuck.is_none() && checker.discoveries().is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
