//! Judging an answer: headers and a body from a stranger.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbhook_providers::{Provider, Response, Verdict, judge};

fuzz_target!(|input: (u8, u16, Vec<(String, String)>, &str, i64)| {
    let (provider, status, mut headers, body, now_unix_seconds) = input;
    let value = headers.pop().map(|(_, value)| value).unwrap_or_default();
    headers.push(("Retry-After".to_owned(), value));
    let response = Response { status, headers: &headers, body, now_unix_seconds };
    let target = (provider & 8 != 0).then_some("api");
    let provider = [Provider::Slack, Provider::GoHighLevel, Provider::Zapier, Provider::Generic][usize::from(provider % 4)];
    if let Verdict::Retry { after_seconds: Some(seconds), .. } = judge(provider, target, &response) {
        assert!(seconds.is_finite() && seconds >= 0.0, "{seconds}");
    }
});
