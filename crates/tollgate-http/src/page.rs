//! Lists come in pages: `{"data": […], "next_cursor": …}`.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use tollgate_model::cursor;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType};
use utoipa::openapi::{Ref, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::Problem;

/// One page of a list.
#[derive(Debug, Serialize)]
pub(crate) struct Page<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

// By hand, since what utoipa derives for a generic type repeats the rows' schema instead of naming it. Endpoints
// document an alias (`type JobPage = Page<Job>`), which is named by `name` alone.
impl<T: ToSchema> PartialSchema for Page<T> {
    fn schema() -> RefOr<Schema> {
        let rows = ArrayBuilder::new().items(Ref::from_schema_name(T::name())).description(Some("The rows."));
        let next = ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
            .description(Some("Pass it as `cursor` for the next page; null: there is none, for now."));
        let page = ObjectBuilder::new().property("data", rows).property("next_cursor", next);
        page.required("data").required("next_cursor").description(Some("One page of a list.")).into()
    }
}

impl<T: ToSchema> ToSchema for Page<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Page", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into(), T::schema()));
        T::schemas(schemas);
    }
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
