//! Numbers of a configuration and their ranges.

use std::ops::RangeInclusive;

use serde_json::{Number, Value};

use super::ConfigError;
use super::keys::Keys;

/// A week: a receiver that is away longer needs a person.
const DELAY_SECONDS_MAX: f64 = 604_800.0;
const DELAYS_MAX: usize = 20;

/// A whole number; `3.0` is one.
pub(super) fn whole(
    keys: &Keys<'_>,
    key: &str,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, ConfigError> {
    let Some(value) = keys.get(key) else { return Ok(None) };
    let number = as_finite(value).ok_or_else(|| keys.fault(key, "is not a number", None))?;
    if number.fract() != 0.0 {
        return Err(keys.fault(key, "is not a whole number", None));
    }
    if !(f64::from(*range.start())..=f64::from(*range.end())).contains(&number) {
        return Err(keys.fault(key, &format!("is not between {} and {}", range.start(), range.end()), None));
    }
    Ok(Some(number as u32))
}

/// A number, kept digit by digit.
pub(super) fn decimal(
    keys: &Keys<'_>,
    key: &str,
    range: RangeInclusive<f64>,
) -> Result<Option<Number>, ConfigError> {
    let Some(value) = keys.get(key) else { return Ok(None) };
    match (value, as_finite(value)) {
        (Value::Number(digits), Some(number)) if range.contains(&number) => Ok(Some(digits.clone())),
        (Value::Number(_), _) => {
            Err(keys.fault(key, &format!("is not between {} and {}", range.start(), range.end()), None))
        }
        _ => Err(keys.fault(key, "is not a number", None)),
    }
}

/// What `read` reads, or null.
pub(super) fn or_null<T>(
    keys: &Keys<'_>,
    key: &str,
    read: impl FnOnce(&Keys<'_>, &str) -> Result<Option<T>, ConfigError>,
) -> Result<Option<Option<T>>, ConfigError> {
    match keys.get(key) {
        Some(Value::Null) => Ok(Some(None)),
        _ => Ok(read(keys, key)?.map(Some)),
    }
}

/// `retryDelay`: seconds before every retry, or 1 to 20 of them of which the last repeats; each from 0 to a
/// week.
pub(super) fn retry_delay(keys: &Keys<'_>) -> Result<Option<Value>, ConfigError> {
    const KEY: &str = "retryDelay";
    let Some(value) = keys.get(KEY) else { return Ok(None) };
    match value {
        Value::Number(_) => check_delay(keys, KEY, value)?,
        Value::Array(delays) if delays.is_empty() => {
            return Err(keys.fault(KEY, "is an empty array", Some("give 1 to 20 delays in seconds")));
        }
        Value::Array(delays) if delays.len() > DELAYS_MAX => {
            return Err(keys.fault(
                KEY,
                "has more than 20 delays",
                Some("the last delay repeats, so later ones can be left out"),
            ));
        }
        Value::Array(delays) => {
            for (index, delay) in delays.iter().enumerate() {
                check_delay(keys, &format!("{KEY}[{index}]"), delay)?;
            }
        }
        _ => {
            return Err(keys.fault(
                KEY,
                "is neither a number nor an array of numbers",
                Some("give seconds, as in 60 or [30, 120, 300]"),
            ));
        }
    }
    Ok(Some(value.clone()))
}

fn check_delay(keys: &Keys<'_>, key: &str, value: &Value) -> Result<(), ConfigError> {
    let Value::Number(_) = value else { return Err(keys.fault(key, "is not a number", None)) };
    match as_finite(value) {
        Some(seconds) if seconds < 0.0 => Err(keys.fault(key, "is negative", None)),
        Some(seconds) if seconds <= DELAY_SECONDS_MAX => Ok(()),
        _ => Err(keys.fault(key, "is longer than 604800 seconds (a week)", None)),
    }
}

fn as_finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}
