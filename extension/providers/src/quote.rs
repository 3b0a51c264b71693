//! Quoting a response body in a reason.

use crate::cut::{cut, utf16_units};

/// At most this much of a body is quoted: enough for an error message, too little for a record of data.
const QUOTE_CHARS_MAX: usize = 100;

/// The beginning of a body as a quotation on one line, at most 100 characters with its marks; `None` when
/// nothing is worth it.
///
/// Addresses are left out, since for many receivers the URL is the secret. A page of HTML is only named.
pub(crate) fn quote(body: &str) -> Option<String> {
    // Enough to fill the quotation even when words are dropped; the rest is not looked at.
    let head: String = body.chars().take(10 * QUOTE_CHARS_MAX).collect();
    if head.trim_start().starts_with('<') {
        return Some("(a page of HTML or XML)".to_owned());
    }
    let words: Vec<&str> = head
        .split(|character: char| character.is_whitespace() || character.is_control())
        .filter(|word| !word.is_empty())
        .map(|word| if is_address(word) { "[address]" } else { word })
        .collect();
    let line = words.join(" ");
    (!line.is_empty()).then(|| format!("“{}”", cut(&line, QUOTE_CHARS_MAX - 2, utf16_units)))
}

fn is_address(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    word.contains("://") || word.contains(":\\/\\/") || word.contains("%3a%2f%2f") || word.contains("www.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quotation_is_short_on_one_line_and_without_addresses() {
        assert_eq!(quote("no such\n  hook").as_deref(), Some("“no such hook”"));
        assert_eq!(
            quote("see https://hooks.slack.com/services/T/B/X now").as_deref(),
            Some("“see [address] now”")
        );
        assert_eq!(quote(r#"{"url":"http:\/\/x\/secret"}"#).as_deref(), Some("“[address]”"));
        assert_eq!(quote("<html><body>oops").as_deref(), Some("(a page of HTML or XML)"));
        assert_eq!(quote(" \n\0"), None);
        assert_eq!(quote(&"a".repeat(5_000)).unwrap().chars().count(), 100);
    }

    proptest! {
        #[test]
        fn a_quotation_never_holds_an_address_or_too_much(body in "(?s:.){0,300}|([a-z]{0,5}(https?://)?[a-z./ ]{0,9}){0,20}") {
            if let Some(quotation) = quote(&body) {
                prop_assert!(quotation.chars().count() <= QUOTE_CHARS_MAX);
                prop_assert!(!quotation.contains("://") && !quotation.chars().any(char::is_control));
            }
        }
    }
}
