//! Where figures go: a section of RESULTS.md for people, results.json for programs. A section replaces its own part of both.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use orbhook_tests::write_section;
use serde_json::{Value, json};

use crate::figures::{Figures, Row, digits};

pub(crate) fn section(name: &str, circumstances: &str, figures: &Figures) {
    write_json(name, figures);
    write_markdown(name, circumstances, figures);
}

fn write_json(section: &str, figures: &Figures) {
    let path = target().join("bench/results.json");
    fs::create_dir_all(path.parent().unwrap()).expect("target/bench");
    let before = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
    let mut all: Vec<Value> = before.unwrap_or_default();
    all.retain(|row| row["section"] != section);
    all.extend(figures.rows.iter().map(|row| {
        json!({
            "name": row.name, "ratio": row.ratio, "baseline": row.baseline, "value": row.value,
            "goal": row.goal.map(|goal| goal.to_string()), "reached": row.reached(),
            "unit": row.unit, "spread": row.spread, "section": section,
        })
    }));
    fs::write(&path, serde_json::to_string_pretty(&all).unwrap() + "\n").expect("results.json");
    println!("written to {}", path.display());
}

fn write_markdown(name: &str, circumstances: &str, figures: &Figures) {
    let mut section = format!("`make bench ONLY={name}` on {circumstances}.\n");
    if !figures.rows.is_empty() {
        section += "\n| what | ratio | goal | reached | value | baseline | rounds differ by |\n|---|---|---|---|---|---|---|\n";
        for row in &figures.rows {
            let _ = writeln!(section, "{}", table_row(row));
        }
    }
    if !figures.notes.is_empty() {
        section += "\n| what | figure |\n|---|---|\n";
        for (what, how_much) in &figures.notes {
            let _ = writeln!(section, "| {what} | {how_much} |");
        }
    }
    println!("written to {}\n", write_section(name, &section).display());
}

fn table_row(row: &Row) -> String {
    let number = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
    let reached = match row.reached() {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "",
    };
    format!(
        "| {} | {} | {} | {reached} | {} {} | {} | {} |",
        row.name,
        number(row.ratio),
        row.goal.map(|goal| goal.to_string()).unwrap_or_default(),
        digits(row.value),
        row.unit,
        row.baseline.map(digits).unwrap_or_default(),
        row.spread.map(|spread| format!("{:.0} %", spread * 100.0)).unwrap_or_default(),
    )
}

/// The build folder that this program lies in.
fn target() -> PathBuf {
    let program = env::current_exe().expect("the path of this program");
    program.ancestors().nth(2).expect("target/release/bench").to_owned()
}
