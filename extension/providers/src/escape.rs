//! Slack's escaping: exactly three characters, which is also what keeps a name from mentioning a channel or
//! hiding a link.

/// Escapes `&`, `<` and `>` and nothing else, as Slack's formatting reference asks.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match entity(character) {
            Some(entity) => escaped.push_str(entity),
            None => escaped.push(character),
        }
    }
    escaped
}

/// Length of the escaped text in UTF-16 units.
///
/// Slack does not say whether its limits count characters, UTF-16 units or bytes; this is the largest of the
/// first two.
pub(crate) fn escaped_units(text: &str) -> usize {
    text.chars().map(|character| entity(character).map_or(character.len_utf16(), str::len)).sum()
}

fn entity(character: char) -> Option<&'static str> {
    match character {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unescape(text: &str) -> String {
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }

    #[test]
    fn a_mention_and_a_link_become_plain_text() {
        assert_eq!(escape("<!channel>"), "&lt;!channel&gt;");
        assert_eq!(escape("<http://evil|paypal.com>"), "&lt;http://evil|paypal.com&gt;");
        assert_eq!(escape("&lt;!here&gt;"), "&amp;lt;!here&amp;gt;");
    }

    proptest! {
        #[test]
        fn escaping_is_undone_by_unescaping(text in ".{0,200}|[&<>;a-z!@#|]{0,60}") {
            prop_assert_eq!(unescape(&escape(&text)), text);
        }

        #[test]
        fn no_stray_special_character_is_left(text in ".{0,200}|[&<>;a-z!@#|]{0,60}") {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(['<', '>']));
            let bare = escaped.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            prop_assert!(!bare.contains('&'));
        }

        #[test]
        fn the_length_is_that_of_the_escaped_text(text in ".{0,200}|[&<>😀é]{0,60}") {
            prop_assert_eq!(escaped_units(&text), escape(&text).encode_utf16().count());
        }
    }
}
