//! `ORBHOOK_BLESS=1 cargo test -p orbhook-providers` writes the files anew; read the diff.

use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::Value;

use crate::samples::{Kind, event, full_payloads};

#[test]
fn every_type_looks_as_its_snapshot_says() {
    let is_blessing = env::var_os("ORBHOOK_BLESS").is_some();
    let mut expected_files = Vec::new();
    for (event_type, payload) in full_payloads() {
        let payload = payload.to_string();
        for kind in Kind::ALL {
            let (extension, text) = match kind.render(&event(&event_type, &payload)) {
                Ok(request) => readable(kind, &request.body),
                Err(reason) => ("txt", format!("{reason}\n")),
            };
            let path = directory().join(kind.name()).join(format!("{event_type}.{extension}"));
            if is_blessing {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &text).unwrap();
            }
            let snapshot = fs::read_to_string(&path).unwrap_or_default();
            assert!(snapshot == text, "{} differs; it would be:\n{text}", path.display());
            expected_files.push(path);
        }
    }
    for kind in Kind::ALL {
        for entry in fs::read_dir(directory().join(kind.name())).unwrap() {
            let path = entry.unwrap().path();
            assert!(expected_files.contains(&path), "{} belongs to no event type", path.display());
        }
    }
}

fn readable(kind: Kind, body: &str) -> (&'static str, String) {
    let body: Value = serde_json::from_str(body).unwrap();
    match kind {
        Kind::Slack => ("txt", format!("{}\n", body["text"].as_str().unwrap())),
        _ => ("json", format!("{body:#}\n")),
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots")
}
