//! A row of the table of settings, and how values are written.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize as _;
use serde::de::{Deserializer, Error as _};

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its name in the environment; in the file, the same in lower case.
    pub name: &'static str,
    /// What holds if it is not set; `None`: nothing.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
}

pub(super) const fn set(name: &'static str, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: Some(default), doc }
}

pub(super) const fn unset(name: &'static str, doc: &'static str) -> Setting {
    Setting { name, default: None, doc }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(D::Error::custom)
}

pub(super) fn durations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.split(',').map(|part| parse_duration(part.trim()).map_err(D::Error::custom)).collect()
}

/// `None`: for ever.
pub(super) fn retention<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if ["0", "off"].contains(&text.as_str()) {
        return Ok(None);
    }
    parse_duration(&text).map(|keep| Some(keep).filter(|keep| !keep.is_zero())).map_err(D::Error::custom)
}

/// What reads itself from text.
pub(super) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// The same; unset, it is empty.
pub(super) fn parsed_or_empty<'de, D: Deserializer<'de>, T: FromStr<Err: Display> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map_or_else(|| Ok(T::default()), |text| text.parse().map_err(D::Error::custom))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration such as 500ms, 30s, 5m or 2h: {error}"))
}
