//! Making somebody else's words fit to be shown: on one line, short, and without our API key.
//!
//! A provider that refuses a key likes to quote it, whole or with the middle masked (`Incorrect API key
//! provided: sk-abc***xyz`). A failure's message is stored and shown to tenants, and the key is the
//! operator's, so not even its ends may stay. Too much is removed rather than too little: a hidden word in an
//! error message costs nothing.
//!
//! Dropping the provider's words altogether was rejected: "which parameter?" is answered nowhere else.

/// The most characters that a message has.
pub(crate) const LONGEST: usize = 500;

/// What is worth looking at before the removal; far more than is kept, and a bound on the work.
const LOOKED_AT: usize = 4 * LONGEST;

/// So many characters of the key in a row are a leak. Shorter keys are looked for whole.
const LEAK: usize = 8;

const REMOVED: &str = "[redacted]";

/// `text` on one line, without `key` or pieces of it, and of at most [`LONGEST`] characters.
pub(crate) fn presentable(text: &str, key: &str) -> String {
    let text = shorten(&one_line(text), LOOKED_AT);
    shorten(&without_pieces(&without_masked(&text, key), key), LONGEST)
}

/// White space and control characters (NUL among them) become single spaces.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn shorten(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    text.chars().take(longest - 1).chain(['…']).collect()
}

/// Removes words that look like a key, masked or not.
fn without_masked(text: &str, key: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(is_boundary) {
        let word = piece.trim_end_matches(is_boundary);
        if looks_like_key(word, key) {
            out.push_str(REMOVED);
            out.push_str(&piece[word.len()..]);
        } else {
            out.push_str(piece);
        }
    }
    out
}

fn is_boundary(c: char) -> bool {
    c.is_whitespace() || "\"'`()[]{}<>,;:=|".contains(c)
}

fn looks_like_key(word: &str, key: &str) -> bool {
    let masked = ["**", "...", "…", "••", "xxx", "XXX"].iter().any(|mask| word.contains(mask));
    let bare = word.trim_end_matches(['.', '!', '?']);
    // Three characters at either end: as few as are seen left standing beside a mask.
    let ends = key.len() >= LEAK && (bare.starts_with(&key[..3]) || bare.ends_with(&key[key.len() - 3..]));
    word.contains("***") || (masked && ends) || (word.len() > 3 && word.starts_with("sk-"))
}

/// Removes every stretch of [`LEAK`] characters or more that the text has in common with the key.
fn without_pieces(text: &str, key: &str) -> String {
    if key.is_empty() {
        return text.to_owned();
    }
    // A key is ASCII (it was refused otherwise), so each of its pieces begins and ends between characters.
    let mut found = vec![false; text.len()];
    for piece in key.as_bytes().windows(LEAK.min(key.len())) {
        for (start, _) in
            text.as_bytes().windows(piece.len()).enumerate().filter(|(_, bytes)| *bytes == piece)
        {
            found[start..start + piece.len()].fill(true);
        }
    }
    let mut out = String::with_capacity(text.len());
    let mut removing = false;
    for (at, c) in text.char_indices() {
        if !found[at] {
            out.push(c);
        } else if !removing {
            out.push_str(REMOVED);
        }
        removing = found[at];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sk-proj-a1B2c3D4e5F6g7H8i9J0-k_L";

    #[test]
    fn the_key_goes_in_every_guise() {
        for (text, expected) in [
            (
                format!("Incorrect API key provided: {KEY}. See https://h.example/keys."),
                "Incorrect API key provided: [redacted] See https://h.example/keys.",
            ),
            ("provided: sk-abc***xyz. Look".to_owned(), "provided: [redacted] Look"),
            ("provided: 'sk-pr...k_L'.".to_owned(), "provided: '[redacted]'."),
            ("key gsk_********9xyz is bad".to_owned(), "key [redacted] is bad"),
            ("key ab••k_L!".to_owned(), "key [redacted]"),
            (format!("{{\"authorization\":\"Bearer {KEY}\"}}"), "{\"authorization\":\"Bearer [redacted]\"}"),
            (format!("x{KEY}y"), "x[redacted]y"),
            (format!("{KEY}{KEY}"), "[redacted]"),
            ("begins B2c3D4e5F ends".to_owned(), "begins [redacted] ends"),
            ("über B2c3D4e5 é".to_owned(), "über [redacted] é"),
            ("a1B2c3D is too short to tell".to_owned(), "a1B2c3D is too short to tell"),
            ("no such model: **gpt-4o**...".to_owned(), "no such model: **gpt-4o**..."),
        ] {
            assert_eq!(presentable(&text, KEY), expected, "{text}");
        }
    }

    #[test]
    fn short_keys_go_whole_and_no_key_is_fine() {
        assert_eq!(presentable("the key none is bad", "none"), "the key [redacted] is bad");
        assert_eq!(presentable("bad", ""), "bad");
    }

    #[test]
    fn one_line_and_short() {
        assert_eq!(presentable(" a\n\tb\0c\u{7f}  d ", KEY), "a b c d");
        let long = presentable(&"ä".repeat(100_000), KEY);
        assert_eq!(long.chars().count(), LONGEST);
        assert!(long.ends_with("ä…"));
        assert_eq!(presentable(&"ä".repeat(LONGEST), KEY), "ä".repeat(LONGEST));
    }

    #[test]
    fn a_key_across_the_cut_does_not_stay_in_part() {
        for before in LONGEST - KEY.len()..=LONGEST {
            let text = presentable(&format!("{} {KEY}", "y".repeat(before)), KEY);
            assert!(!text.contains("a1B2"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_piece_of_the_key_is_ever_left(
            key in "[A-Za-z0-9_.~-]{8,80}",
            before in ".{0,60}",
            after in ".{0,60}",
            from in 0_usize..80,
        ) {
            let from = from.min(key.len() - LEAK);
            let text = presentable(&format!("{before}{}{after}", &key[from..]), &key);
            prop_assert!(text.chars().count() <= LONGEST);
            for piece in key.as_bytes().windows(LEAK) {
                prop_assert!(!text.as_bytes().windows(LEAK).any(|bytes| bytes == piece), "{}", text);
            }
        }
    }
}
