//! Lists come in pages: `{"data": […], "next_cursor": …}`.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use tollgate_model::cursor;
use utoipa::ToSchema;

use crate::problem::Problem;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// The rows.
    pub(crate) data: Vec<T>,
    /// Pass it as `cursor` for the next page; null: there is none, for now.
    pub(crate) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of `rows`, which were read with [`Limit::and_one`]: the row too many only shows that there is more.
    pub(crate) fn new<A: Serialize>(list: &str, mut rows: Vec<T>, limit: Limit, place: fn(&T) -> A) -> Self {
        let more = rows.len() > usize::from(limit.0);
        rows.truncate(limit.0.into());
        let next_cursor = rows.last().filter(|_| more).map(|last| cursor::encode(list, &place(last)));
        Self { data: rows, next_cursor }
    }
}

/// Where the page begins, in the list's own terms; `None`: at its beginning.
pub(crate) fn after<A: DeserializeOwned>(list: &str, cursor: Option<&str>) -> Result<Option<A>, Problem> {
    let place = cursor.map(|cursor| cursor::decode(list, cursor)).transpose();
    place.map_err(|foreign| Problem::invalid(format!("query parameter `cursor`: {foreign}")))
}

/// Rows a page may hold: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(u8);

impl Limit {
    /// One more than asked for, to learn whether there is a next page.
    pub(crate) fn and_one(self) -> i64 {
        i64::from(self.0) + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(20)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let limit = text.parse().ok().filter(|limit| (1..=100).contains(limit));
        limit.map(Self).ok_or_else(|| D::Error::custom("must be a whole number from 1 to 100"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_the_next_one_only_if_there_is_one() {
        let page = Page::new("n", vec![1, 2, 3], Limit(2), |n| *n);
        assert_eq!(page.data, [1, 2]);
        assert_eq!(after::<i32>("n", page.next_cursor.as_deref()), Ok(Some(2)));
        assert!(after::<i32>("m", page.next_cursor.as_deref()).is_err());
        assert_eq!(Page::new("n", vec![1, 2], Limit(2), |n| *n).next_cursor, None);
        assert_eq!(Page::new("n", Vec::<i32>::new(), Limit(2), |n| *n).next_cursor, None);
    }
}
