//! How long an answer takes: log-normal, the usual shape of a model's latency, given by two numbers one can read
//! off a dashboard.

use std::time::Duration;

use crate::behaviour::MAX_LATENCY_MS;

/// The standard normal's 99th percentile.
const Z99: f64 = 2.326_347_874_040_841;

/// The latency at the standard normal deviate `z`: the median at 0, `p99_ms` at [`Z99`].
///
/// Equal numbers give a fixed latency. The tail is cut at [`MAX_LATENCY_MS`].
pub(crate) fn latency(median_ms: u32, p99_ms: u32, z: f64) -> Duration {
    if median_ms == 0 || p99_ms <= median_ms {
        return Duration::from_millis(median_ms.into());
    }
    let (median, p99) = (f64::from(median_ms), f64::from(p99_ms));
    let sigma = (p99 / median).ln() / Z99;
    let milliseconds = (median * (sigma * z).exp()).min(f64::from(MAX_LATENCY_MS));
    Duration::from_secs_f64(milliseconds / 1000.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Draws;

    fn close(found: Duration, expected_ms: u32) -> bool {
        let (found, expected) = (found.as_secs_f64() * 1000.0, f64::from(expected_ms));
        (found - expected).abs() <= expected * 1e-6
    }

    proptest! {
        #[test]
        fn quantiles_are_those_asked_for(median in 1_u32..60_000, factor in 1_u32..10, z in -6.0..6.0_f64) {
            let p99 = median * factor;
            prop_assert!(close(latency(median, p99, 0.0), median));
            prop_assert!(close(latency(median, p99, Z99), p99));
            prop_assert!(latency(median, p99, z) <= latency(median, p99, z + 0.1));
            prop_assert!(latency(median, p99, z) <= Duration::from_millis(MAX_LATENCY_MS.into()));
        }
    }

    #[test]
    fn equal_numbers_are_a_fixed_latency() {
        for z in [-5.0, 0.0, 5.0] {
            assert_eq!(latency(800, 800, z), Duration::from_millis(800));
            assert_eq!(latency(0, 0, z), Duration::ZERO);
        }
    }

    #[test]
    fn samples_have_the_quantiles_asked_for() {
        let mut samples: Vec<_> = (0..20_000)
            .map(|ordinal| latency(800, 2_500, Draws::new(1, ordinal).normal()).as_millis())
            .collect();
        samples.sort_unstable();
        let (median, p99) = (samples[10_000], samples[19_800]);
        assert!((780..=820).contains(&median), "median {median} ms");
        assert!((2_300..=2_700).contains(&p99), "p99 {p99} ms");
    }
}
