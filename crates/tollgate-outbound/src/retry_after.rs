//! How long the provider asks us to stay away.
//!
//! Three spellings are in use: `retry-after-ms` (OpenAI's own), `Retry-After` in seconds (fractions included,
//! though RFC 9110 has none), and `Retry-After` as a date. A date is compared with the reply's own `Date`, so
//! that neither clock has to be right; ours is the fallback and is passed in. Anything unreadable counts as
//! absent: the queue then uses its own delay.
//!
//! The official clients ignore a wait of more than a minute, because a program is waiting on them. A queue can
//! wait, and is blocked for longer if it does not, so a wait is believed up to [`LONGEST`].

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// The longest wait that is believed; more is a mistake on the other side, or malice.
pub(crate) const LONGEST: Duration = Duration::from_hours(24);

/// The wait that `headers` ask for, between zero and [`LONGEST`].
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let milliseconds = text(headers, "retry-after-ms").and_then(number).map(|ms| seconds(ms / 1000.0));
    milliseconds.or_else(|| {
        let wait = text(headers, RETRY_AFTER.as_str())?;
        number(wait).map(seconds).or_else(|| until(wait, headers, now))
    })
}

/// The wall clock, for [`retry_after`] where a reply has no `Date` of its own. The only place in this crate
/// that reads it.
#[expect(clippy::disallowed_methods, reason = "an HTTP date means nothing without the wall clock")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(text: &str) -> Option<f64> {
    // The parser would take "inf" and "nan" as well.
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(LONGEST, |wait| wait.min(LONGEST))
}

fn until(date: &str, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = httpdate::parse_http_date(date).ok()?;
    let sent = text(headers, DATE.as_str()).and_then(|date| httpdate::parse_http_date(date).ok());
    // A date that has passed asks for no wait.
    Some(date.duration_since(sent.unwrap_or(now)).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    type Headers<'a> = &'a [(&'a str, &'a str)];

    /// Sun, 06 Nov 1994 08:49:37 GMT
    const NOW: Duration = Duration::from_secs(784_111_777);

    fn read(headers: Headers) -> Option<Duration> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        retry_after(&headers, UNIX_EPOCH + NOW)
    }

    #[test]
    fn every_spelling() {
        let ms = |n| Some(Duration::from_millis(n));
        let table: &[(Headers, Option<Duration>)] = &[
            (&[], None),
            (&[("retry-after", "7")], ms(7_000)),
            (&[("retry-after", " 7 ")], ms(7_000)),
            (&[("retry-after", "0")], ms(0)),
            (&[("retry-after", "0.25")], ms(250)),
            (&[("retry-after", "-3")], ms(0)),
            (&[("retry-after", "-0")], ms(0)),
            (&[("retry-after", "86400")], ms(86_400_000)),
            (&[("retry-after", "86401")], Some(LONGEST)),
            (&[("retry-after", "1e300")], Some(LONGEST)),
            (&[("retry-after", "99999999999999999999999")], Some(LONGEST)),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "5 s")], None),
            // Milliseconds are the finer statement, if they can be read.
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], ms(1_500)),
            (&[("retry-after-ms", "0.5")], Some(Duration::from_micros(500))),
            (&[("retry-after-ms", "-1")], ms(0)),
            (&[("retry-after-ms", "soon"), ("retry-after", "9")], ms(9_000)),
            (&[("retry-after-ms", "nan"), ("retry-after", "later")], None),
            // Dates: by our clock, by theirs, past, far, and in the old spellings.
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")], ms(60_000)),
            (
                &[
                    ("date", "Sun, 06 Nov 1994 10:00:00 GMT"),
                    ("retry-after", "Sun, 06 Nov 1994 10:00:05 GMT"),
                ],
                ms(5_000),
            ),
            (&[("date", "yesterday"), ("retry-after", "Sun, 06 Nov 1994 08:49:39 GMT")], ms(2_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:36 GMT")], ms(0)),
            (&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(LONGEST)),
            (&[("retry-after", "Sunday, 06-Nov-94 08:49:38 GMT")], ms(1_000)),
            (&[("retry-after", "Sun Nov  6 08:49:38 1994")], ms(1_000)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 PST")], None),
        ];
        for (headers, expected) in table {
            assert_eq!(read(headers), *expected, "{headers:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_text_counts_as_absent() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(retry_after(&headers, UNIX_EPOCH), None);
    }

    proptest! {
        #[test]
        fn any_number_is_a_wait_within_bounds(n in proptest::num::f64::NORMAL, name in "retry-after(-ms)?") {
            let wait = read(&[(&name, &n.to_string())]).unwrap();
            prop_assert!(wait <= LONGEST);
            prop_assert!(!wait.is_zero() || n < 0.001, "{} became no wait", n);
            prop_assert!(wait.is_zero() || n > 0.0, "{} became {:?}", n, wait);
        }

        #[test]
        fn whole_seconds_come_back_exactly(n in 0_u64..=86_400) {
            prop_assert_eq!(read(&[("retry-after", &n.to_string())]), Some(Duration::from_secs(n)));
        }

        #[test]
        fn no_text_is_a_panic_or_out_of_bounds(text in "[ -~]{0,40}", date in "[ -~]{0,40}") {
            let wait = read(&[("retry-after", &text), ("retry-after-ms", &date), ("date", &date)]);
            prop_assert!(wait.is_none_or(|wait| wait <= LONGEST));
        }
    }
}
