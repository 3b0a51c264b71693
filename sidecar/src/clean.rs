//! Makes text from a stranger safe to store and to print.

/// The first `bytes_max` bytes as text: invalid UTF-8 and control characters other than newline and tab become U+FFFD, `\r\n`
/// a newline. PostgreSQL refuses NUL, and escape sequences would be acted on by the terminal of whoever reads the attempt.
/// Returns the text, at most `bytes_max` bytes of it, and whether anything was left out.
pub(crate) fn clean(bytes: &[u8], bytes_max: usize) -> (String, bool) {
    let mut text = String::with_capacity(bytes.len().min(bytes_max));
    let lossy = String::from_utf8_lossy(bytes);
    let mut characters = lossy.chars().peekable();
    while let Some(character) = characters.next() {
        let safe = match character {
            '\r' if characters.peek() == Some(&'\n') => continue,
            '\n' | '\t' => character,
            other if other.is_control() => char::REPLACEMENT_CHARACTER,
            other => other,
        };
        if text.len() + safe.len_utf8() > bytes_max {
            return (text, true);
        }
        text.push(safe);
    }
    (text, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_broken_utf8_are_replaced() {
        let (text, cut) = clean(b"ok\r\n\tx\0\x1b[31m\x7f\xff\xc2\x85", 100);
        assert_eq!(text, "ok\n\tx\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}");
        assert!(!cut);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(clean("äöü".as_bytes(), 5), ("äö".to_owned(), true));
        assert_eq!(clean("äöü".as_bytes(), 6), ("äöü".to_owned(), false));
        // A replaced byte grows to three.
        assert_eq!(clean(b"\0\0", 5), ("\u{fffd}".to_owned(), true));
        assert_eq!(clean(b"", 0), (String::new(), false));
    }
}
