//! `orbhook_verify`: for people who receive webhooks in SQL (Standard Webhooks, scheme `v1`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use pgrx::prelude::*;
use sha2::Sha256;

/// How far a request's timestamp may lie from the clock, both ways (Standard Webhooks reference libraries).
const TOLERANCE_SECONDS: i64 = 300;

#[pg_extern(sql = false)]
fn verify(
    secret: Option<&str>,
    id: Option<&str>,
    timestamp: Option<&str>,
    signatures: Option<&str>,
    body: Option<&str>,
) -> bool {
    let (Some(secret), Some(id), Some(timestamp), Some(signatures), Some(body)) =
        (secret, id, timestamp, signatures, body)
    else {
        return false;
    };
    verify_at(secret, id, timestamp, signatures, body, jiff::Timestamp::now().as_second())
}

/// Anything unreadable is a signature that does not fit.
fn verify_at(
    secret: &str,
    id: &str,
    timestamp: &str,
    signatures: &str,
    body: &str,
    now_unix_seconds: i64,
) -> bool {
    let Ok(key) = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)) else { return false };
    let Ok(seconds) = timestamp.parse::<i64>() else { return false };
    if key.is_empty() || now_unix_seconds.abs_diff(seconds) > TOLERANCE_SECONDS.unsigned_abs() {
        return false;
    }
    // During a rotation there are several, separated by spaces; one that fits is enough.
    signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
        let (Ok(given), Ok(mut mac)) = (STANDARD.decode(signature), Hmac::<Sha256>::new_from_slice(&key))
        else {
            return false;
        };
        for part in [id, ".", timestamp, ".", body] {
            mac.update(part.as_bytes());
        }
        // Compares in constant time.
        mac.verify_slice(&given).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::verify_at;

    // The example of the Standard Webhooks specification.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &str = r#"{"test": 2432232314}"#;
    const NOW: i64 = 1_614_265_330;
    const GOOD: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn fits(secret: &str, signatures: &str, body: &str, now: i64) -> bool {
        verify_at(secret, ID, &NOW.to_string(), signatures, body, now)
    }

    #[test]
    fn a_signature_that_fits_is_accepted_among_others_and_within_five_minutes() {
        for signatures in [GOOD.to_owned(), format!("v1,AAAA v2,x {GOOD}")] {
            for now in [NOW, NOW - 300, NOW + 300] {
                assert!(fits(SECRET, &signatures, BODY, now), "{signatures} at {now}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(!fits(SECRET, GOOD, "{}", NOW));
        assert!(!fits("whsec_AAAA", GOOD, BODY, NOW));
        assert!(!fits("whsec_", GOOD, BODY, NOW));
        assert!(!fits(SECRET, "v1,AAAA", BODY, NOW));
        assert!(!fits(SECRET, "", BODY, NOW));
        assert!(!fits(SECRET, GOOD, BODY, NOW + 301));
        assert!(!fits(SECRET, GOOD, BODY, NOW - 301));
        assert!(!fits(SECRET, GOOD, BODY, i64::MIN));
        assert!(!verify_at(SECRET, ID, "now", GOOD, BODY, NOW));
    }
}
