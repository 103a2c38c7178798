use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const TOLERANCE: Duration = Duration::from_mins(5);

/// What `generate.mjs` wrote.
#[derive(Deserialize)]
struct Case {
    name: String,
    payload: String,
    header: String,
    now: i64,
    secrets: String,
    /// What Stripe's own library says of it.
    official: bool,
    /// Why we say no all the same.
    #[serde(default)]
    stricter: Option<String>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("fixtures.json")).unwrap()
}

fn judge(case: &Case, header: &str, body: &[u8]) -> Result<(), BadSignature> {
    let secrets = SigningSecrets::parse(&case.secrets).unwrap();
    secrets.verify(header, body, DateTime::from_timestamp(case.now, 0).unwrap(), TOLERANCE)
}

#[test]
fn what_the_official_library_signed_is_judged_as_it_judges_or_more_strictly() {
    let cases = cases();
    for case in &cases {
        let judged = judge(case, &case.header, case.payload.as_bytes());
        let expected = case.official && case.stricter.is_none();
        assert_eq!(judged.is_ok(), expected, "{}: {judged:?}", case.name);
        assert!(case.official || case.stricter.is_none(), "{}", case.name);
    }
    let count = |official| cases.iter().filter(|case| case.official == official).count();
    assert!(count(true) >= 18 && count(false) >= 24, "fixtures are missing");
}

#[test]
fn each_refusal_says_why() {
    let cases = cases();
    let said = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        judge(case, &case.header, case.payload.as_bytes())
    };
    for (name, why) in [
        ("empty header", BadSignature::Malformed),
        ("no t", BadSignature::Malformed),
        ("no v1", BadSignature::Malformed),
        ("only v0", BadSignature::Malformed),
        ("two t, the last right", BadSignature::Malformed),
        ("truncated", BadSignature::Wrong),
        ("upper-case hex", BadSignature::Wrong),
        ("another body", BadSignature::Wrong),
        ("just beyond the tolerance", BadSignature::Untimely),
        ("from the future", BadSignature::Untimely),
    ] {
        assert_eq!(said(name), Err(why), "{name}");
    }
}

#[test]
fn secrets_are_one_or_two_and_never_shown() {
    for text in ["whsec_0123456789", "whsec_0123456789, whsec_9876543210"] {
        let secrets = SigningSecrets::parse(text).unwrap();
        assert_eq!(format!("{secrets:?}"), "SigningSecrets { .. }");
    }
    for text in ["", "secret", "whsec_", "whsec_0123456789,", "whsec_a b c d e f g", "sk_live_0123456789"] {
        assert!(SigningSecrets::parse(text).is_err(), "{text}");
    }
    assert!(SigningSecrets::parse(&["whsec_0123456789"; 3].join(",")).is_err());
}

proptest! {
    #[test]
    fn one_changed_byte_is_one_too_many(at in any::<prop::sample::Index>(), to in any::<u8>(), in_header in any::<bool>()) {
        let cases = cases();
        let (case, mut header, mut body) = {
            let case = &cases[0];
            (case, case.header.clone().into_bytes(), case.payload.clone().into_bytes())
        };
        let changed = if in_header { &mut header } else { &mut body };
        let at = at.index(changed.len());
        prop_assume!(changed[at] != to);
        changed[at] = to;
        let header = String::from_utf8_lossy(&header);
        prop_assert!(judge(case, &header, &body).is_err());
    }

    #[test]
    fn no_header_is_too_odd_to_be_refused(header in "[tv01=,a-f\\PC]{0,80}") {
        let judged = judge(&cases()[0], &header, b"{}");
        prop_assert!(judged.is_err());
    }
}
