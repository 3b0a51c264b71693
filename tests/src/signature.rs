use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::http::Request;

/// How far a timestamp may be off, as the reference libraries of Standard Webhooks have it.
const TOLERANCE_SECONDS: u64 = 5 * 60;

/// Checks a request as a receiver does that knows nothing but the Standard Webhooks specification.
///
/// `secret` is `whsec_` and base64. The signature is base64 of HMAC-SHA256 over `id.timestamp.body`, one of possibly
/// several (`v1,… v1,…`, while a secret is being rotated).
///
/// # Errors
///
/// What is wrong, in words.
pub fn verify_signature(secret: &str, request: &Request) -> Result<(), String> {
    let header = |name: &str| request.header(name).ok_or_else(|| format!("header {name} is missing"));
    let id = header("webhook-id")?;
    let timestamp = header("webhook-timestamp")?;
    let signatures = header("webhook-signature")?;

    let sent =
        timestamp.parse::<i64>().map_err(|_| format!("webhook-timestamp is no number: {timestamp}"))?;
    if sent.abs_diff(unix_seconds()) > TOLERANCE_SECONDS {
        return Err(format!("webhook-timestamp {sent} is more than {TOLERANCE_SECONDS} s off"));
    }

    let expected = signature(secret, id, sent, &request.body)?;
    if signatures.split(' ').any(|signature| signature == expected) {
        Ok(())
    } else {
        Err(format!("none of the signatures matches: {signatures}"))
    }
}

/// The signature of a request with these headers and body, as the specification has it: `v1,…`.
///
/// # Errors
///
/// What is wrong with the secret, in words.
pub fn signature(secret: &str, id: &str, unix_seconds: i64, body: &[u8]) -> Result<String, String> {
    let key = secret.strip_prefix("whsec_").ok_or("the secret does not begin with whsec_")?;
    let key = STANDARD.decode(key).map_err(|_| "the secret is no base64")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| "the key has no usable length")?;
    mac.update(format!("{id}.{unix_seconds}.").as_bytes());
    mac.update(body);
    Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

/// The wall clock.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("this machine's clock is after 1970");
    i64::try_from(since.as_secs()).expect("it is not that late")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(timestamp: i64, signature: &str) -> Request {
        Request {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            headers: vec![
                ("webhook-id".to_owned(), "msg_1".to_owned()),
                ("webhook-timestamp".to_owned(), timestamp.to_string()),
                ("webhook-signature".to_owned(), signature.to_owned()),
            ],
            body: b"{}".to_vec(),
            at: std::time::Instant::now(),
        }
    }

    #[test]
    fn a_signature_is_the_one_of_the_reference_libraries() {
        // The example in the tests of the standardwebhooks libraries.
        let (secret, id) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let made = signature(secret, id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(made.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_old_timestamp_is_refused_whatever_the_signature() {
        let error = verify_signature("whsec_AAAA", &signed(1, "v1,AAAA")).unwrap_err();
        assert!(error.contains("off"), "{error}");
    }

    #[test]
    fn a_signature_of_something_else_is_refused() {
        let error = verify_signature("whsec_AAAA", &signed(unix_seconds(), "v1,AAAA")).unwrap_err();
        assert!(error.contains("none of the signatures"), "{error}");
    }
}
