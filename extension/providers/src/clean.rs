//! Making a value safe to stand on one line of a message that people read.

const ISOLATE: char = '\u{2068}';
const END_OF_ISOLATE: char = '\u{2069}';

/// One line of text: a run of control characters and line ends becomes a space, so that a name cannot fake
/// another bullet, and marks that reorder text are dropped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut gap = false;
    for character in text.chars() {
        if breaks_lines(character) {
            gap = true;
        } else if !reorders(character) {
            if gap && !line.is_empty() {
                line.push(' ');
            }
            gap = false;
            line.push(character);
        }
    }
    line.trim().to_owned()
}

/// Isolates a line that is written right to left, so that it does not turn its label around. Adds at most two
/// characters.
pub(crate) fn isolate(line: String) -> String {
    if line.chars().any(runs_right_to_left) { format!("{ISOLATE}{line}{END_OF_ISOLATE}") } else { line }
}

fn breaks_lines(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Embeddings, overrides and isolates of the Unicode bidirectional algorithm.
fn reorders(character: char) -> bool {
    matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Hebrew, Arabic, Syriac, Thaana, N'Ko and the other blocks that Unicode reserves for right-to-left scripts.
fn runs_right_to_left(character: char) -> bool {
    matches!(character,
        '\u{0590}'..='\u{08FF}' | '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFC}'
        | '\u{10800}'..='\u{10FFF}' | '\u{1E800}'..='\u{1EFFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_end_becomes_a_space() {
        assert_eq!(one_line("John\n• Role: admin"), "John • Role: admin");
        assert_eq!(one_line("a\r\n\u{0}\u{85}\u{2028}\tb\n"), "a b");
    }

    #[test]
    fn reordering_marks_are_dropped_and_right_to_left_text_is_isolated() {
        assert_eq!(one_line("exe.\u{202E}gpj"), "exe.gpj");
        assert_eq!(isolate(one_line("\u{2067}محمد\u{2069}")), "\u{2068}محمد\u{2069}");
        assert_eq!(isolate("José".to_owned()), "José");
        assert_eq!(one_line("José 😀"), "José 😀");
    }

    proptest! {
        #[test]
        fn the_result_is_always_one_line(text in "(?s:.){0,100}") {
            prop_assert!(!one_line(&text).contains(breaks_lines));
        }
    }
}
