//! The `Retry-After` header (RFC 9110, section 10.2.3).

use std::time::UNIX_EPOCH;

/// Seconds to wait, from a number of seconds or an HTTP date. Always finite and never negative; a date in the
/// past is 0.
///
/// Anything else is `None`: the header comes from a stranger. How long a wait is honoured is the caller's
/// decision.
pub fn retry_after_seconds(value: &str, now_unix_seconds: i64) -> Option<f64> {
    let value = value.trim();
    if value.is_empty() || value.len() > VALUE_BYTES_MAX {
        return None;
    }
    if value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return value.parse().ok().filter(|seconds: &f64| seconds.is_finite());
    }
    let date = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let wait = i64::try_from(date.as_secs()).ok()?.saturating_sub(now_unix_seconds);
    Some(wait.max(0) as f64)
}

/// The longest of the three forms of an HTTP date has 33 characters.
const VALUE_BYTES_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2024-11-03T15:27:47Z.
    const NOW: i64 = 1_730_647_667;

    #[test]
    fn seconds_and_all_three_forms_of_a_date_are_read() {
        for (value, seconds) in [
            ("120", 120.0),
            (" 0 ", 0.0),
            ("1.5", 1.5),
            ("Sun, 03 Nov 2024 15:28:47 GMT", 60.0),
            ("Sunday, 03-Nov-24 15:28:47 GMT", 60.0),
            ("Sun Nov  3 15:28:47 2024", 60.0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ] {
            assert_eq!(retry_after_seconds(value, NOW), Some(seconds), "{value}");
        }
    }

    #[test]
    fn hostile_values_are_no_wait() {
        for value in [
            "",
            "-1",
            "+1",
            "1e9",
            "inf",
            "NaN",
            "0x10",
            "1.2.3",
            ".",
            "1, 2",
            "tomorrow",
            "Sun, 99 Nov 2024 15:28:47 GMT",
            &"9".repeat(400),
        ] {
            assert_eq!(retry_after_seconds(value, NOW), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_finite_and_never_negative(value in ".{0,60}|[0-9.]{0,45}|[A-Za-z]{3}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT", now: i64) {
            if let Some(seconds) = retry_after_seconds(&value, now) {
                prop_assert!(seconds.is_finite() && seconds >= 0.0);
            }
        }
    }
}
