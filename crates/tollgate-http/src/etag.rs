//! Whether a client has the bytes already: what it has is named by their hash.

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::IF_NONE_MATCH;

/// The `ETag` of bytes with this hash.
pub(crate) fn tag(sha256: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in sha256 {
        // Writing to a string cannot fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag + "\""
}

/// Whether one of the client's copies is this one. A cache on the way may have made a tag weak (`W/`).
pub(crate) fn has(headers: &HeaderMap, tag: &str) -> bool {
    let sent = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = sent.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_known_by_its_tag() {
        let ours = tag(&[0xab, 0x01]);
        assert_eq!(ours, "\"ab01\"");
        for (sent, known) in [
            (&["\"ab01\""][..], true),
            (&["W/\"ab01\""], true),
            (&["\"other\", \"ab01\""], true),
            (&["\"other\"", "\"ab01\""], true),
            (&["*"], true),
            (&["ab01"], false),
            (&["\"ab02\""], false),
            (&[""], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in sent {
                headers.append(IF_NONE_MATCH, value.parse().unwrap());
            }
            assert_eq!(has(&headers, &ours), known, "{sent:?}");
        }
    }
}
