//! tests/bench/RESULTS.md: one section for each thing that was measured, with the command that made it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Replaces the section of that name, or adds it at the end. `text`: Markdown without the heading. Returns the file.
pub fn write_section(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/RESULTS.md");
    let before = fs::read_to_string(&path).unwrap_or_else(|_| "# Figures\n".to_owned());
    let mut parts: Vec<String> = before.split("\n## ").map(str::to_owned).collect();
    let head = parts.remove(0);
    let others =
        parts.iter().filter(|part| part.lines().next() != Some(name)).map(|part| format!("## {part}"));
    let section = format!("## {name}\n\n{text}");
    let text: Vec<String> =
        [head].into_iter().chain(others).chain([section]).map(|part| part.trim().to_owned()).collect();
    fs::write(&path, text.join("\n\n") + "\n").expect("RESULTS.md");
    path
}

/// What it was measured on.
pub fn machine() -> String {
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

/// The load average of the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
