//! Takes a delivery's own secrets out of what its receiver says.
//!
//! Error pages quote requests: a router names the path it has no route for, a debug page prints the headers, a redirect to
//! https repeats the URL. What is recorded is read by people who may not see the webhook's secrets.

use std::borrow::Cow;

use url::Url;

use crate::delivery::Secrets;

/// Shorter texts than this are found in innocent answers, and nobody's secret is so short.
const SECRET_BYTES_MIN: usize = 8;
/// A part of a path that is as long as this is a token and not a word.
const TOKEN_BYTES_MIN: usize = 16;
const REDACTED: &str = "***";

/// What must not be recorded, longest first.
pub(crate) struct Redactor(Vec<String>);

impl Redactor {
    pub(crate) fn new(secrets: &Secrets) -> Redactor {
        let mut texts = Vec::new();
        for (name, secret) in secrets.iter() {
            match Url::parse(secret) {
                Ok(url) if name == "endpoint" => texts.extend(parts(&url)),
                _ => texts.extend(secret.strip_prefix("whsec_").map(str::to_owned)),
            }
            texts.push(secret.to_owned());
        }
        // As JSON encoders that escape slashes write it.
        let escaped: Vec<_> =
            texts.iter().filter(|text| text.contains('/')).map(|text| text.replace('/', "\\/")).collect();
        texts.extend(escaped);
        texts.retain(|text| text.len() >= SECRET_BYTES_MIN);
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Redactor(texts)
    }

    pub(crate) fn redact<'a>(&self, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let mut text = text.into();
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), REDACTED));
            }
        }
        text
    }
}

/// The path with its query, the path, the query, and what looks like a token in either.
fn parts(url: &Url) -> Vec<String> {
    let path = url.path();
    let query = url.query().unwrap_or_default();
    let tokens = path.split('/').chain(query.split(['&', '=']));
    let tokens = tokens.filter(|token| token.len() >= TOKEN_BYTES_MIN).map(str::to_owned);
    [format!("{path}?{query}"), path.to_owned(), query.to_owned()].into_iter().chain(tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        let secrets = r#"{"endpoint": "https://hooks.example/services/T000/B000/abcdefghijklmnopqrst?key=short&token=0123456789abcdef",
                          "signing": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "apiKey": "pit-1234", "header.X-A": "tiny"}"#;
        Redactor::new(&serde_json::from_str(secrets).unwrap())
    }

    #[test]
    fn whatever_of_a_request_is_quoted_its_secrets_are_not_in_it() {
        for quoted in [
            "no route for POST /services/T000/B000/abcdefghijklmnopqrst",
            "moved to https://hooks.example/services/T000/B000/abcdefghijklmnopqrst?key=short&token=0123456789abcdef",
            "unknown hook abcdefghijklmnopqrst",
            r#"{"url":"https:\/\/hooks.example\/services\/T000\/B000\/abcdefghijklmnopqrst"}"#,
            "bad token 0123456789abcdef",
            "Authorization: Bearer pit-1234",
            "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
            "key c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
        ] {
            let redacted = redactor().redact(quoted);
            assert!(redacted.contains(REDACTED), "{redacted}");
            for secret in ["abcdefghijklmnopqrst", "0123456789abcdef", "pit-1234", "c2VjcmV0"] {
                assert!(!redacted.contains(secret), "{redacted}");
            }
        }
    }

    #[test]
    fn an_answer_without_secrets_stays_as_it_is() {
        let answer = "no_service: tiny hooks.example services";
        assert!(matches!(redactor().redact(answer), Cow::Borrowed(text) if text == answer));
    }
}
