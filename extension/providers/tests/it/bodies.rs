//! `tests/providers/check.sh` reads what this writes and shows it to the providers' own models.

use std::fs;
use std::path::Path;

use orbhook_providers::Event;

use crate::samples::{Kind, cases, event};

#[test]
fn bodies_are_written_for_the_official_models() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("provider-bodies");
    let mut written = 0;
    // Zapier and inbound webhooks take any JSON object; there is no model to compare with.
    for kind in [Kind::Slack, Kind::Api] {
        let directory = directory.join(kind.name());
        fs::create_dir_all(&directory).unwrap();
        for case in cases() {
            let path = directory.join(format!("{}.{}.json", case.event_type, case.variant));
            // A test call, too: its mark must be valid by the model.
            let test = case.variant == "hostile_text";
            match kind.render(&Event { test, ..event(&case.event_type, &case.payload) }) {
                Ok(request) => {
                    fs::write(path, request.body).unwrap();
                    written += 1;
                }
                // Left by an earlier version, it would be checked for ever.
                Err(_) => _ = fs::remove_file(path),
            }
        }
    }
    assert!(written > 43 * 7 + 60, "{written}");
}
