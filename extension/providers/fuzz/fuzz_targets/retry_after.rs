//! `Retry-After`: a wait is finite and never negative, or there is none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbhook_providers::retry_after_seconds;

fuzz_target!(|input: (&str, i64)| {
    if let Some(seconds) = retry_after_seconds(input.0, input.1) {
        assert!(seconds.is_finite() && seconds >= 0.0, "{seconds}");
    }
});
