//! Durations as people write them in a configuration: `500ms`, `20s`, `1m 30s`, `2h`.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// In milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*value))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text)
        .ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration such as 500ms, 30s, 5m or 2h")))
}

/// In the longest unit that leaves no rest; parts of a millisecond are left out.
pub(crate) fn text(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let whole = UNITS.into_iter().find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit));
    let (name, unit) = whole.unwrap_or(("s", 1_000));
    format!("{}{name}", millis / unit)
}

pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = None;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (name, tail) = tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        let (_, unit) = UNITS.into_iter().find(|(unit, _)| *unit == name)?;
        let part = number.parse::<u64>().ok()?.checked_mul(unit)?;
        sum = Some(sum.unwrap_or(0_u64).checked_add(part)?);
        rest = tail.trim_start();
    }
    sum.map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling() {
        let table = [
            ("500ms", Some(500)),
            (" 20s ", Some(20_000)),
            ("1m 30s", Some(90_000)),
            ("1m30s", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("0s", Some(0)),
            ("", None),
            ("20", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("20 s", None),
            ("1y", None),
            ("99999999999999999999s", None),
            ("9999999999999999h", None),
        ];
        for (text, millis) in table {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis in prop_oneof![0..10_000_u64, (0..10_000_u64).prop_map(|s| s * 1_000)]) {
            let value = Duration::from_millis(millis);
            prop_assert_eq!(parse(&text(value)), Some(value));
        }
    }
}
