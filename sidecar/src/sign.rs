//! Standard Webhooks v1 signatures (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md).

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Secrets are often copied without their padding.
const SECRET_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The secret is not `whsec_` and base64.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signing secret is not base64 (with or without whsec_ in front)")]
pub(crate) struct BadSecret;

/// The value of `webhook-signature`: one `v1,…` for each secret, so that both verify while a secret is being replaced.
///
/// `unix_seconds` is the value of `webhook-timestamp`, taken anew for each attempt; `body` the exact bytes sent.
pub(crate) fn sign<'a>(
    secrets: impl IntoIterator<Item = &'a str>,
    id: &str,
    unix_seconds: i64,
    body: &[u8],
) -> Result<String, BadSecret> {
    let signatures = secrets
        .into_iter()
        .map(|secret| sign_one(secret, id, unix_seconds, body))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(signatures.join(" "))
}

fn sign_one(secret: &str, id: &str, unix_seconds: i64, body: &[u8]) -> Result<String, BadSecret> {
    let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = SECRET_BASE64.decode(encoded).map_err(|_| BadSecret)?;
    if key.is_empty() {
        return Err(BadSecret);
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| BadSecret)?;
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(unix_seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    Ok(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The specification's own example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_example_of_the_specification_is_signed_as_printed() {
        assert_eq!(sign([SECRET], ID, 1_614_265_330, BODY).unwrap(), SIGNATURE);
    }

    #[test]
    fn the_prefix_and_the_padding_of_a_secret_are_optional() {
        assert_eq!(sign([&SECRET[6..]], ID, 1_614_265_330, BODY).unwrap(), SIGNATURE);
        assert_eq!(sign(["whsec_AAAA/w=="], ID, 1, BODY), sign(["AAAA/w"], ID, 1, BODY));
    }

    #[test]
    fn while_a_secret_is_replaced_both_sign() {
        let both = sign([SECRET, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"], ID, 1_614_265_330, BODY).unwrap();
        let parts: Vec<_> = both.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0], SIGNATURE);
        assert!(parts[1].starts_with("v1,") && parts[1] != SIGNATURE);
    }

    #[test]
    fn the_signature_covers_id_time_and_body() {
        let all = [
            sign([SECRET], ID, 1, BODY).unwrap(),
            sign([SECRET], "other", 1, BODY).unwrap(),
            sign([SECRET], ID, 2, BODY).unwrap(),
            sign([SECRET], ID, 1, b"{}").unwrap(),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one));
        }
    }

    /// tests/providers/check.sh shows the same signatures to the reference libraries of PyPI and npm.
    #[test]
    fn the_signatures_that_the_reference_libraries_accept_are_what_is_signed() {
        #[derive(serde::Deserialize)]
        struct Signed {
            secrets: Vec<String>,
            id: String,
            timestamp: i64,
            body: String,
            signature: String,
        }
        let signed = include_str!("../../tests/providers/signatures.json");
        for signed in serde_json::from_str::<Vec<Signed>>(signed).unwrap() {
            let secrets = signed.secrets.iter().map(String::as_str);
            let signature = sign(secrets, &signed.id, signed.timestamp, signed.body.as_bytes()).unwrap();
            assert_eq!(signature, signed.signature, "{}", signed.body);
        }
    }

    #[test]
    fn a_secret_that_is_not_base64_is_refused() {
        for secret in ["", "whsec_", "whsec_***", "not base64!", "whsec_\u{e9}"] {
            assert_eq!(sign([secret], ID, 1, BODY), Err(BadSecret), "{secret}");
        }
    }
}
