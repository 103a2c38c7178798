//! Random draws that a seed repeats.
//!
//! SplitMix64, written out: the generators of a library may change from version to version, and then a test that
//! names a seed would mean something else. Each request has a generator of its own, made from the seed and the
//! request's number, so that requests which overlap in time cannot take each other's draws.

use std::f64::consts::TAU;

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The draws of one request.
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64, ordinal: u64) -> Self {
        Self(mix(mix(seed) ^ ordinal.wrapping_mul(GOLDEN_GAMMA)))
    }

    /// Uniform in `0..1`, in steps of 2^-32.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        let [a, b, c, d, ..] = mix(self.0).to_be_bytes();
        f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
    }

    /// Standard normal (Box-Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        // 1 - u is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

/// SplitMix64's output function: every bit of the result depends on every bit of `x`.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_number_give_the_same_draws() {
        let draws = |seed, ordinal| {
            let mut draws = Draws::new(seed, ordinal);
            [draws.uniform().to_bits(), draws.uniform().to_bits(), draws.normal().to_bits()]
        };
        assert_eq!(draws(7, 3), draws(7, 3));
        assert_ne!(draws(7, 3), draws(7, 4));
        assert_ne!(draws(7, 3), draws(8, 3));
    }

    #[test]
    fn first_draws_of_successive_requests_are_uniform() {
        for seed in [0, 1, 42, u64::MAX] {
            let mut tenths = [0_u32; 10];
            for ordinal in 0..10_000 {
                let u = Draws::new(seed, ordinal).uniform();
                let tenth = (0_u8..10).rev().find(|t| u >= f64::from(*t) / 10.0).unwrap();
                tenths[usize::from(tenth)] += 1;
            }
            // 1,000 expected in each, standard deviation 30.
            assert!(tenths.iter().all(|n| (850..1_150).contains(n)), "seed {seed}: {tenths:?}");
        }
    }
}
