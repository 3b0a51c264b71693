//! Shortening text without breaking a character that a person sees.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation;

/// What shows that something is missing.
pub(crate) const ELLIPSIS: &str = "…";

/// Shortens `text` to at most `units_max` as `measure` counts them, the ellipsis included.
///
/// Cuts between graphemes only: a family emoji stays whole or goes. Text that is escaped later is measured as
/// escaped, so a cut never lands inside an entity.
pub(crate) fn cut(text: &str, units_max: usize, measure: fn(&str) -> usize) -> Cow<'_, str> {
    if measure(text) <= units_max {
        return Cow::Borrowed(text);
    }
    let room = units_max.saturating_sub(measure(ELLIPSIS));
    let mut used = 0;
    let mut end = 0;
    for grapheme in text.graphemes(true) {
        used += measure(grapheme);
        if used > room {
            break;
        }
        end += grapheme.len();
    }
    let kept = text.get(..end).unwrap_or_default();
    Cow::Owned(format!("{kept}{ELLIPSIS}"))
}

/// Length in UTF-16 units, as JavaScript counts.
pub(crate) fn utf16_units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::escape::{escape, escaped_units};

    #[test]
    fn a_family_emoji_is_never_split() {
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(utf16_units(family), 11);
        assert_eq!(cut(&family.repeat(3), 23, utf16_units), format!("{family}{family}…"));
        assert_eq!(cut(&family.repeat(3), 22, utf16_units), format!("{family}…"));
    }

    #[test]
    fn an_entity_is_never_split() {
        assert_eq!(escape(&cut("ab&cd", 6, escaped_units)), "ab…");
        assert_eq!(escape(&cut("ab&cd", 8, escaped_units)), "ab&amp;…");
        assert_eq!(escape(&cut("ab&cd", 9, escaped_units)), "ab&amp;cd");
    }

    #[test]
    fn one_grapheme_longer_than_the_limit_leaves_the_ellipsis() {
        let tower = format!("e{}", "\u{301}".repeat(1_000));
        assert_eq!(cut(&tower, 100, utf16_units), "…");
    }

    proptest! {
        #[test]
        fn a_cut_text_fits_and_is_a_prefix_in_whole_graphemes(
            text in "(\\PC|👨‍👩‍👧‍👦|🇩🇪|é|[&<>]){0,80}", units_max in 1_usize..60,
        ) {
            let short = cut(&text, units_max, escaped_units);
            prop_assert!(escaped_units(&short) <= units_max);
            if short == text {
                return Ok(());
            }
            let kept: Vec<&str> = short.strip_suffix('…').unwrap().graphemes(true).collect();
            let whole: Vec<&str> = text.graphemes(true).take(kept.len()).collect();
            prop_assert_eq!(kept, whole);
        }
    }
}
