//! Opaque cursors: where the next page of a list begins.
//!
//! A cursor names its list, so that one taken from another list is refused instead of silently skipping rows.
//! It holds nothing secret and is not signed: whatever a client puts in it, row-level security decides what it sees.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The cursor did not come from this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this cursor does not belong to this list; pass `next_cursor` of the page before, unchanged")]
pub struct ForeignCursor;

#[derive(Serialize, Deserialize)]
struct Wire<T> {
    list: String,
    after: T,
}

/// Writes a cursor for `list` that continues after the row `after`.
pub fn encode<T: Serialize>(list: &str, after: &T) -> String {
    let wire = serde_json::json!({ "list": list, "after": after });
    URL_SAFE_NO_PAD.encode(wire.to_string())
}

/// Reads a cursor of `list`.
pub fn decode<T: DeserializeOwned>(list: &str, cursor: &str) -> Result<T, ForeignCursor> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| ForeignCursor)?;
    let wire: Wire<T> = serde_json::from_slice(&bytes).map_err(|_| ForeignCursor)?;
    if wire.list == list { Ok(wire.after) } else { Err(ForeignCursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_continues_its_own_list_only() {
        let cursor = encode("jobs", &7_i32);
        assert_eq!(decode("jobs", &cursor), Ok(7));
        assert_eq!(decode::<i32>("api-keys", &cursor), Err(ForeignCursor));
        assert_eq!(decode::<String>("jobs", &cursor), Err(ForeignCursor));
        for junk in ["", "!", "e30", "bnVsbA", &cursor[1..]] {
            assert_eq!(decode::<i32>("jobs", junk), Err(ForeignCursor), "{junk}");
        }
    }
}
