//! Points in time as producers write them: with a zone, without one, or as a date alone.

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::Offset;
use jiff::{Timestamp, civil};

/// A point in time and how much of it the producer wrote. Without a zone it is read as UTC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    at: Timestamp,
    zone_known: bool,
    date_alone: bool,
}

/// Longer texts are not times; RFC 9557 with a zone name stays well below this many bytes.
const TEXT_BYTES_MAX: usize = 100;

static PARSER: DateTimeParser = DateTimeParser::new();

impl Moment {
    /// Reads ISO 8601 as PostgreSQL, JavaScript or Java print it. Words such as `infinity` and anything else
    /// give `None`.
    pub(crate) fn parse(text: &str) -> Option<Moment> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        if let Ok(at) = PARSER.parse_timestamp(text) {
            return Some(Moment { at, zone_known: true, date_alone: false });
        }
        let civil: civil::DateTime = PARSER.parse_datetime(text).ok()?;
        let at = Offset::UTC.to_timestamp(civil).ok()?;
        Some(Moment {
            at,
            zone_known: false,
            date_alone: !text.contains(':') && civil.time() == civil::Time::midnight(),
        })
    }

    pub(crate) fn instant(self) -> Timestamp {
        self.at
    }

    /// `Nov 03, 2024 15:27:47`, with ` UTC` behind it only when the producer's text said which zone it is in.
    ///
    /// Month names are English whatever the locale. A date without a time stays one.
    pub(crate) fn to_words(self) -> String {
        let pattern = match (self.date_alone, self.zone_known) {
            (true, _) => "%b %d, %Y",
            (false, true) => "%b %d, %Y %H:%M:%S UTC",
            (false, false) => "%b %d, %Y %H:%M:%S",
        };
        self.at.strftime(pattern).to_string()
    }

    pub(crate) fn is_before(self, other: Moment) -> bool {
        self.at < other.at
    }

    /// Whole days from `earlier` to this, rounded; `None` when `earlier` is later.
    pub(crate) fn days_since(self, earlier: Moment) -> Option<i64> {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        (seconds >= 0.0).then(|| (seconds / 86_400.0).round() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<String> {
        Moment::parse(text).map(Moment::to_words)
    }

    #[test]
    fn a_time_without_a_zone_is_shown_as_it_stands() {
        assert_eq!(words("2024-11-03T15:27:47.002948").unwrap(), "Nov 03, 2024 15:27:47");
        assert_eq!(words("2024-11-03 15:27:47").unwrap(), "Nov 03, 2024 15:27:47");
    }

    #[test]
    fn a_time_with_a_zone_is_shown_in_utc_and_says_so() {
        assert_eq!(words("2024-11-03T15:27:47.002948Z").unwrap(), "Nov 03, 2024 15:27:47 UTC");
        assert_eq!(words("2024-11-03T15:27:47+05:30").unwrap(), "Nov 03, 2024 09:57:47 UTC");
        assert_eq!(words("2024-11-03 00:27:47+02").unwrap(), "Nov 02, 2024 22:27:47 UTC");
    }

    #[test]
    fn a_date_stays_a_date() {
        assert_eq!(words("2024-02-29").unwrap(), "Feb 29, 2024");
        assert_eq!(words("2024-02-29T00:00:00").unwrap(), "Feb 29, 2024 00:00:00");
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in [
            "",
            "infinity",
            "-infinity",
            "yesterday",
            "2024-13-01",
            "2024-11-03T25:00:00",
            "1730647667",
            &"9".repeat(10_000),
        ] {
            assert_eq!(words(text), None, "{text}");
        }
    }

    #[test]
    fn days_are_rounded_and_never_negative() {
        let at = |text| Moment::parse(text).unwrap();
        assert_eq!(at("2025-02-01T15:27:22.887568").days_since(at("2024-11-03T15:27:47.002948")), Some(90));
        assert_eq!(at("2024-11-04").days_since(at("2024-11-03T12:00:01Z")), Some(0));
        assert_eq!(at("2024-11-04").days_since(at("2024-11-03T12:00:00Z")), Some(1));
        assert_eq!(at("2024-11-03").days_since(at("2024-11-04")), None);
        assert_eq!(at("9999-12-30").days_since(at("-009999-01-03T00:00:00Z")), Some(7_304_480));
    }
}
