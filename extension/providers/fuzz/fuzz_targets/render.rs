//! Rendering for every provider: whatever a payload and a configuration hold, there is a body of JSON or a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbhook_providers::{Event, Provider, Settings, facts, render};

fuzz_target!(|input: (u8, u8, &str, &str)| {
    let (provider, kind, payload, config) = input;
    let provider = [Provider::Slack, Provider::GoHighLevel, Provider::Zapier, Provider::Generic][usize::from(provider % 4)];
    let event_type = ["USER_CREATED", "PAYMENT_FAILED", "SUBSCRIPTION_RENEWED", "SECURITY_IP_BLOCKED"][usize::from(kind % 4)];
    let _ = facts(payload);
    let event = Event {
        id: "00000000-0000-7000-8000-000000000000",
        event_type,
        occurred_at: "2026-01-02T03:04:05.000006Z",
        test: kind & 4 != 0,
        payload,
    };
    let target = match kind >> 6 {
        0 => Some("api"),
        1 => Some("inbound"),
        _ => None,
    };
    let settings = Settings { config, target, secret_names: &["apiKey", "header.X-One"] };
    let Ok(request) = render(provider, &event, &settings) else { return };
    // GENERIC passes on what PostgreSQL has parsed, at any depth.
    if provider != Provider::Generic {
        serde_json::from_str::<serde_json::Value>(&request.body).expect("a body is JSON");
    }
    for header in &request.headers {
        let line = format!("{}{}", header.name, header.prefix);
        assert!(!line.bytes().any(|byte| byte < b' ' || byte == 0x7f), "{line:?}");
    }
    assert_eq!(render(provider, &event, &settings).as_ref(), Ok(&request), "a retry repeats its request");
});
