//! A webhook's configuration object: accepted or refused, and no header that could break out of its line gets through.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbhook_providers::webhook::validate;
use serde_json::json;

fuzz_target!(|input: (bool, &str, Vec<(String, String)>)| {
    let (whole, text, headers) = input;
    let built;
    let config = match whole {
        true => text,
        false => {
            let headers: serde_json::Map<_, _> =
                headers.into_iter().map(|(name, value)| (name, value.into())).collect();
            built = json!({
                "name": "x", "providerType": "GENERIC", "endpoint": text, "subscribedEvents": ["*"], "headers": headers,
            })
            .to_string();
            &built
        }
    };
    let Ok(webhook) = validate(config, None) else { return };
    for (name, value) in &webhook.secrets {
        if let Some(name) = name.strip_prefix("header.") {
            let value = value.as_deref().unwrap_or_default();
            let is_clean = |text: &str| !text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
            assert!(!name.is_empty() && is_clean(name) && is_clean(value), "{name:?} {value:?}");
        }
    }
});
