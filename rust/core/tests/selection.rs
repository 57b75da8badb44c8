//! Properties of the selection algorithms: the same result on every instruction set, for any cut into chunks
//! and any number of threads; budgets met exactly; stopping.

use half::f16;
use mllm_selector_core::{
    Chunk, Claim, Error, First, KCenterOptions, KMeansOptions, Metric, Observer, Rows, Simd,
    allocate, k_center, kmeans, near_duplicate_pairs, near_duplicates,
};
use proptest::prelude::*;

/// Values with few bits, so that many distances are equal, and columns for two blocks of the dot product.
fn matrix(rows: std::ops::Range<usize>) -> impl Strategy<Value = (Vec<f32>, usize)> {
    (rows, prop_oneof![1usize..6, 60usize..70, 127usize..131]).prop_flat_map(|(n, dim)| {
        let value = (-9i8..10).prop_map(|value| f32::from(value) / 7.0 + 0.01);
        (prop::collection::vec(value, n * dim), Just(dim))
    })
}

type Outcome = (
    Vec<usize>,
    Vec<u32>,
    Vec<u32>,
    Vec<u32>,
    u64,
    Vec<usize>,
    Vec<(usize, usize)>,
);

/// The results of all algorithms, as bits.
fn outcome(rows: &Rows, metric: Metric) -> Outcome {
    let observer = Observer::default();
    let n = rows.len();
    let cover = KCenterOptions {
        k: n.min(20),
        metric,
        first: First::NearestMean,
        weights: None,
    };
    let cover = k_center(rows, &cover, &observer).unwrap();
    let clusters = KMeansOptions {
        k: n.min(7),
        metric,
        seed: 5,
        max_iterations: 10,
        tolerance: 1e-4,
        train_rows: Some(n.min(7).max(n / 2)),
    };
    let clusters = kmeans(rows, &clusters, &observer).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    (
        cover.rows,
        bits(&cover.radii),
        clusters.labels.clone(),
        bits(&clusters.centroids),
        clusters.inertia.to_bits(),
        near_duplicates(rows, 0.8, None, &observer).unwrap(),
        near_duplicate_pairs(rows, 0.8, None, &observer).unwrap(),
    )
}

fn whole(values: &[f32], dim: usize) -> Rows<'_> {
    Rows::new([Chunk::F32(values)], dim).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_instruction_set_gives_the_same_bits((values, dim) in matrix(1..300)) {
        for metric in [Metric::Euclidean, Metric::Cosine] {
            let expected = outcome(&whole(&values, dim).with_simd(Simd::Baseline), metric);
            for simd in Simd::available() {
                let found = outcome(&whole(&values, dim).with_simd(simd), metric);
                prop_assert_eq!(&found, &expected, "{:?}", simd);
            }
        }
    }

    #[test]
    fn chunks_and_number_formats_do_not_matter(
        (values, dim) in matrix(2..300),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        let values: Vec<f32> = halves.iter().map(|value| value.to_f32()).collect();
        let n = values.len() / dim;
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(n) * dim).collect();
        cuts.extend([0, n * dim]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).enumerate().map(|(number, cut)| match number % 2 {
            0 => Chunk::F16(&halves[cut[0]..cut[1]]),
            _ => Chunk::F32(&values[cut[0]..cut[1]]),
        });
        let chunked = Rows::new(chunks, dim).unwrap();
        let expected = outcome(&whole(&values, dim), Metric::Euclidean);
        prop_assert_eq!(&outcome(&chunked, Metric::Euclidean), &expected);

        // A view of all rows in another order is the matrix with its rows in that order.
        let backwards: Vec<usize> = (0..n).rev().collect();
        let turned: Vec<f32> = backwards.iter().flat_map(|&row| &values[row * dim..][..dim]).copied().collect();
        let view = chunked.subset(&backwards).unwrap();
        prop_assert_eq!(outcome(&view, Metric::Cosine), outcome(&whole(&turned, dim), Metric::Cosine));
    }

    #[test]
    fn threads_do_not_matter((values, dim) in matrix(200..900)) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| outcome(&whole(&values, dim), Metric::Cosine))
        };
        let expected = run(1);
        prop_assert_eq!(run(2), expected.clone());
        prop_assert_eq!(run(8), expected);
    }

    #[test]
    fn shares_meet_the_budget_within_bounds(
        groups in prop::collection::vec((prop_oneof![Just(0.0), 1e-30..1e30f64, 0.0..9.0f64], 0..50u64, 0..50u64), 1..20),
        part in 0.0..=1.0f64,
    ) {
        let claims: Vec<Claim> = groups
            .iter()
            .map(|&(weight, floor, open)| Claim { weight, size: floor + open, floor, capacity: floor + open })
            .collect();
        let low: u64 = claims.iter().map(|claim| claim.floor).sum();
        let high: u64 = claims.iter().map(|claim| claim.capacity).sum();
        let budget = low + ((high - low) as f64 * part) as u64;
        let counts = allocate(budget, &claims);
        prop_assert_eq!(counts.iter().sum::<u64>(), budget);
        for (count, claim) in counts.iter().zip(&claims) {
            prop_assert!((claim.floor..=claim.capacity).contains(count));
        }
        // Of two groups between their bounds, the heavier one does not get less, but for rounding.
        for (count, claim) in counts.iter().zip(&claims) {
            for (other_count, other) in counts.iter().zip(&claims) {
                if claim.weight > 0.0
                    && claim.weight >= other.weight && *count < claim.capacity && *other_count > other.floor {
                    prop_assert!(count + 1 >= *other_count);
                }
            }
        }
    }
}

#[test]
fn a_stopped_call_ends_with_an_error() {
    let values: Vec<f32> = (0..20_000).map(|value| (value as f32).sin()).collect();
    let rows = whole(&values, 20);
    let observer = Observer::default();
    observer.stop();
    let options = KCenterOptions {
        k: 10,
        metric: Metric::Cosine,
        first: First::Rows(&[0]),
        weights: None,
    };
    assert!(matches!(
        k_center(&rows, &options, &observer),
        Err(Error::Interrupted)
    ));
    assert!(matches!(
        near_duplicates(&rows, 0.9, None, &observer),
        Err(Error::Interrupted)
    ));
    let options = KMeansOptions {
        k: 10,
        metric: Metric::Euclidean,
        seed: 0,
        max_iterations: 5,
        tolerance: 0.0,
        train_rows: None,
    };
    assert!(matches!(
        kmeans(&rows, &options, &observer),
        Err(Error::Interrupted)
    ));
}
