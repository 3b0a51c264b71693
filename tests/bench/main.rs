//! `make bench`: figures, printed and written to tests/bench/RESULTS.md with the command that made them.
//!
//! Its arguments choose sections; none means all. Each section replaces its own part of RESULTS.md.
#![allow(clippy::print_stdout, reason = "it is there to be read")]
#![allow(clippy::unwrap_used, reason = "a value that is missing ends the measurement")]

mod policy;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

/// Rows of a table: what, and how much.
type Figures = Vec<(String, String)>;

const SECTIONS: [&str; 1] = ["policy"];

#[tokio::main]
async fn main() -> ExitCode {
    let chosen: Vec<String> = env::args().skip(1).collect();
    if chosen.iter().any(|name| !SECTIONS.contains(&name.as_str())) {
        println!("There are: {}", SECTIONS.join(", "));
        return ExitCode::FAILURE;
    }
    for name in SECTIONS {
        if !chosen.is_empty() && !chosen.iter().any(|other| other == name) {
            continue;
        }
        let load = load();
        let figures = match name {
            "policy" => policy::measure().await,
            other => panic!("{other} is listed and not measured"),
        };
        write_section(
            name,
            &format!("{}; load average {load} at the start, {} at the end", machine(), self::load()),
            &figures,
        );
    }
    ExitCode::SUCCESS
}

/// Printed at once, so that a long run shows how far it is.
fn note(figures: &mut Figures, what: impl Into<String>, how_much: impl Into<String>) {
    let (what, how_much) = (what.into(), how_much.into());
    println!("{what}: {how_much}");
    figures.push((what, how_much));
}

fn write_section(name: &str, machine: &str, figures: &Figures) {
    let mut section =
        format!("## {name}\n\n`make bench ONLY={name}` on {machine}.\n\n| what | figure |\n|---|---|\n");
    for (what, how_much) in figures {
        let _ = writeln!(section, "| {what} | {how_much} |");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/RESULTS.md");
    let before = fs::read_to_string(&path).unwrap_or_else(|_| "# Figures\n".to_owned());
    let mut parts: Vec<String> = before.split("\n## ").map(str::to_owned).collect();
    let head = parts.remove(0);
    let others =
        parts.iter().filter(|part| part.lines().next() != Some(name)).map(|part| format!("## {part}"));
    let text: Vec<String> =
        [head].into_iter().chain(others).chain([section]).map(|part| part.trim().to_owned()).collect();
    fs::write(&path, text.join("\n\n") + "\n").expect("RESULTS.md");
    println!("written to {}", path.display());
}

fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = Command::new("uname").arg("-sr").output().map(|output| output.stdout).unwrap_or_default();
    format!(
        "{cores} cores ({}), {}, PostgreSQL {}",
        model.trim_start_matches([' ', '\t', ':']),
        String::from_utf8_lossy(&kernel).trim(),
        env::var("PG").unwrap_or_else(|_| "15".to_owned()),
    )
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
