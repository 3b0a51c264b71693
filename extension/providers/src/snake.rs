//! Keys as Zapier and workflow mappings want them.

/// A key in snake_case: `multiLoginCount` gives `multi_login_count`, `IPAddress` gives `ip_address`.
///
/// Never holds `__`, which Zapier uses to join the keys of nested objects, and is never empty.
pub(crate) fn snake_case(key: &str) -> String {
    let characters: Vec<char> = key.chars().take(KEY_CHARS_MAX).collect();
    let mut snake = String::with_capacity(key.len() + 4);
    for (index, &character) in characters.iter().enumerate() {
        if !character.is_alphanumeric() {
            push_joint(&mut snake);
            continue;
        }
        if character.is_uppercase() {
            let before =
                index.checked_sub(1).and_then(|before| characters.get(before)).copied().unwrap_or('_');
            let after = characters.get(index + 1).copied().unwrap_or('_');
            if !before.is_uppercase() || after.is_lowercase() {
                push_joint(&mut snake);
            }
        }
        snake.extend(character.to_lowercase());
    }
    let snake = snake.trim_end_matches('_');
    if snake.is_empty() { "field".to_owned() } else { snake.to_owned() }
}

/// Longer keys are cut: nobody maps them by hand.
const KEY_CHARS_MAX: usize = 100;

fn push_joint(snake: &mut String) {
    if !snake.is_empty() && !snake.ends_with('_') {
        snake.push('_');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_joined_by_one_underscore() {
        for (key, snake) in [
            ("eventType", "event_type"),
            ("multiLoginCount", "multi_login_count"),
            ("IPAddress", "ip_address"),
            ("userID", "user_id"),
            ("address1", "address1"),
            ("already_snake", "already_snake"),
            ("a__b--c d", "a_b_c_d"),
            ("__", "field"),
            ("", "field"),
            ("Größe", "größe"),
        ] {
            assert_eq!(snake_case(key), snake, "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_key_is_empty_or_holds_two_underscores(key in ".{0,120}|[A-Za-z_ -]{0,20}") {
            let snake = snake_case(&key);
            prop_assert!(!snake.is_empty() && !snake.contains("__") && !snake.starts_with('_') && !snake.ends_with('_'));
        }
    }
}
