//! Countries as two letters.

/// The ISO 3166-1 alpha-2 code of a country given as code or English name, in any case; `None` when it is
/// neither.
pub(crate) fn to_code(text: &str) -> Option<&'static str> {
    let wanted = text.trim();
    entries()
        .find(|(code, name)| code.eq_ignore_ascii_case(wanted) || name.eq_ignore_ascii_case(wanted))
        .map(|(code, _)| code)
}

/// Code and name; a code appears again for every further name in common use.
fn entries() -> impl Iterator<Item = (&'static str, &'static str)> {
    include_str!("country.txt").lines().filter_map(|line| line.split_once(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_found_in_any_case() {
        for (text, code) in [
            ("US", "US"),
            ("us", "US"),
            ("United States", "US"),
            ("germany", "DE"),
            ("UK", "GB"),
            (" Iran ", "IR"),
            ("Türkiye", "TR"),
        ] {
            assert_eq!(to_code(text), Some(code), "{text}");
        }
        for text in ["", "ZZ", "Atlantis", "U"] {
            assert_eq!(to_code(text), None, "{text}");
        }
    }

    #[test]
    fn every_entry_is_two_letters_and_a_name() {
        let mut codes: Vec<&str> = entries().map(|(code, _)| code).collect();
        assert!(entries().all(|(code, name)| code.len() == 2 && !name.trim().is_empty()));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 250);
    }
}
