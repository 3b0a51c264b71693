//! Telephone numbers.

/// The number in E.164 (`+14155550100`), or `None` when it has no country code or is no number.
///
/// Spaces, dots, dashes, slashes and brackets are dropped and a leading `00` is read as `+`.
/// A national number is not completed: the country of a profile is not always the country of the number.
pub(crate) fn to_e164(text: &str) -> Option<String> {
    let bare: String = text
        .chars()
        .filter(|character| !matches!(character, ' ' | '\u{A0}' | '.' | '-' | '/' | '(' | ')'))
        .collect();
    let digits = bare.strip_prefix('+').or_else(|| bare.strip_prefix("00"))?;
    let plausible = (DIGITS_MIN..=DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    plausible.then(|| format!("+{digits}"))
}

/// E.164 sets no minimum; the shortest international numbers in use have seven digits.
const DIGITS_MIN: usize = 7;
/// The maximum of E.164, country code included.
const DIGITS_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_dropped_and_a_country_code_is_required() {
        assert_eq!(to_e164("+1 (415) 555-0100").as_deref(), Some("+14155550100"));
        assert_eq!(to_e164("0049 30/1234567").as_deref(), Some("+49301234567"));
        assert_eq!(to_e164("+1234567890").as_deref(), Some("+1234567890"));
        for text in [
            "",
            "+",
            "555-0100",
            "+0123456789",
            "+12345",
            "+1234567890123456",
            "+12ab345678",
            "+１２３４５６７８",
        ] {
            assert_eq!(to_e164(text), None, "{text}");
        }
    }
}
