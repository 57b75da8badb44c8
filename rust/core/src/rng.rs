//! Random numbers that depend on (seed, stream, index) only, so that items can be drawn in any order.
//!
//! Philox4x32-10: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

const MULTIPLIERS: (u32, u32) = (0xD251_1F53, 0xCD9E_8D57);
const WEYL: (u32, u32) = (0x9E37_79B9, 0xBB67_AE85);

/// What a number is drawn for. Streams of one seed are independent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    /// The samples that k-means is trained on.
    TrainingRows = 1,
    /// Candidates for the first centroids of k-means.
    Candidates = 2,
    /// First centroids of k-means.
    Seeding = 3,
    /// Which random group an item falls into.
    Groups = 4,
    /// Draws inside groups.
    Draw = 5,
    /// The rows that recall is measured on.
    RecallRows = 6,
    /// Where the search for principal axes begins.
    Axes = 7,
}

/// A generator without state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rng {
    key: (u32, u32),
    stream: u32,
}

impl Rng {
    pub(crate) fn new(seed: u64, stream: Stream) -> Self {
        Self {
            key: (seed as u32, (seed >> 32) as u32),
            stream: stream as u32,
        }
    }

    /// 64 random bits of an item.
    pub(crate) fn bits(self, index: u64) -> u64 {
        let [low, high, ..] = philox(
            [index as u32, (index >> 32) as u32, self.stream, 0],
            self.key,
        );
        u64::from(high) << 32 | u64::from(low)
    }

    /// A number strictly between 0 and 1, uniform on a grid of 2^-53.
    pub(crate) fn uniform(self, index: u64) -> f64 {
        ((self.bits(index) >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
    }
}

fn philox(mut counter: [u32; 4], mut key: (u32, u32)) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(MULTIPLIERS.0) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS.1) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key.0,
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key.1,
            first as u32,
        ];
        key = (key.0.wrapping_add(WEYL.0), key.1.wrapping_add(WEYL.1));
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_values() {
        // Known-answer tests of the authors' Random123 library (kat_vectors).
        assert_eq!(
            philox([0; 4], (0, 0)),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], (u32::MAX, u32::MAX)),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                (0xa409_3822, 0x299f_31d0)
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_are_inside_the_unit_interval_and_spread() {
        let rng = Rng::new(7, Stream::Draw);
        let mean = (0..10_000).map(|i| rng.uniform(i)).sum::<f64>() / 10_000.0;
        assert!((0..10_000).all(|i| (f64::MIN_POSITIVE..1.0).contains(&rng.uniform(i))));
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }
}
