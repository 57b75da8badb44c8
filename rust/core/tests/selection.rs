//! Properties of the selection algorithms: the same result on every instruction set, for any cut into chunks
//! and any number of threads; budgets met exactly; stopping.

use half::f16;
use mllm_selector_core::{
    Chunk, Claim, Error, FacilityOptions, First, KCenterOptions, KMeansOptions, Metric, Neighbours,
    Observer, Rows, Simd, allocate, facility_location, facility_location_of_rows, k_center, kmeans,
    near_duplicates, near_duplicates_by_pairs, nearest_neighbours, recall,
};
use proptest::prelude::*;

/// Values with few bits, so that many distances are equal, and columns for two blocks of the dot product.
fn matrix(rows: std::ops::Range<usize>) -> impl Strategy<Value = (Vec<f32>, usize)> {
    (rows, prop_oneof![1usize..6, 60usize..70, 127usize..131]).prop_flat_map(|(n, dim)| {
        let value = (-9i8..10).prop_map(|value| f32::from(value) / 7.0 + 0.01);
        (prop::collection::vec(value, n * dim), Just(dim))
    })
}

/// Name and bits of each result.
type Outcome = Vec<(&'static str, Vec<u64>)>;

fn places(rows: &[usize]) -> Vec<u64> {
    rows.iter().map(|&row| row as u64).collect()
}

fn bits(values: &[f32]) -> Vec<u64> {
    let bits = |value: &f32| u64::from(value.to_bits());
    values.iter().map(bits).collect()
}

fn labels(labels: &[u32]) -> Vec<u64> {
    labels.iter().map(|&label| u64::from(label)).collect()
}

/// The results of all algorithms. With `probes`, only some blocks of rows are compared.
fn outcome(rows: &Rows, metric: Metric, probes: Option<usize>) -> Outcome {
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
    let kept = near_duplicates(rows, 0.8, None, &observer).unwrap();
    let near = near_duplicates_by_pairs(rows, 0.8, None, probes, &observer).unwrap();
    let facilities = FacilityOptions {
        k: n.min(20),
        first: &[n / 2],
        weights: None,
    };
    let facilities = facility_location_of_rows(rows, 9, probes, &facilities, &observer).unwrap();
    let gains = facilities.gains.iter().map(|gain| gain.to_bits());
    let mut outcome = vec![
        ("centres", places(&cover.rows)),
        ("radii", bits(&cover.radii)),
        ("labels", labels(&clusters.labels)),
        ("centroids", bits(&clusters.centroids)),
        ("inertia", vec![clusters.inertia.to_bits()]),
        ("kept", places(&kept)),
        ("representatives", places(&near.representatives)),
        (
            "lower rows",
            near.pairs.iter().map(|pair| pair.0 as u64).collect(),
        ),
        (
            "higher rows",
            near.pairs.iter().map(|pair| pair.1 as u64).collect(),
        ),
        ("facilities", places(&facilities.rows)),
        ("gains", gains.collect()),
    ];
    if n > 1 {
        let graph = nearest_neighbours(rows, (n - 1).min(9), probes, &observer).unwrap();
        let found = recall(rows, &graph, &observer).unwrap();
        assert!(probes.is_some() || found == 1.0);
        outcome.extend([
            ("neighbours", labels(&graph.rows)),
            ("cosines", bits(&graph.cosines)),
            ("recall", vec![found.to_bits()]),
        ]);
    }
    outcome
}

fn whole(values: &[f32], dim: usize) -> Rows<'_> {
    Rows::new([Chunk::F32(values)], dim).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_instruction_set_gives_the_same_bits((values, dim) in matrix(1..300)) {
        for metric in [Metric::Euclidean, Metric::Cosine] {
            let expected = outcome(&whole(&values, dim).with_simd(Simd::Baseline), metric, None);
            for simd in Simd::available() {
                let found = outcome(&whole(&values, dim).with_simd(simd), metric, None);
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
        let expected = outcome(&whole(&values, dim), Metric::Euclidean, None);
        prop_assert_eq!(&outcome(&chunked, Metric::Euclidean, None), &expected);

        // A view of all rows in another order is the matrix with its rows in that order.
        let backwards: Vec<usize> = (0..n).rev().collect();
        let turned: Vec<f32> = backwards.iter().flat_map(|&row| &values[row * dim..][..dim]).copied().collect();
        let view = chunked.subset(&backwards).unwrap();
        prop_assert_eq!(outcome(&view, Metric::Cosine, None), outcome(&whole(&turned, dim), Metric::Cosine, None));
    }

    #[test]
    fn threads_do_not_matter((values, dim) in matrix(200..900)) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| outcome(&whole(&values, dim), Metric::Cosine, None))
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

/// Rows around some means, so many that k-means begins with a sample and neighbours are searched block by block.
fn many_rows(n: usize, dim: usize) -> Vec<f32> {
    let noise = |number: usize, scale: f32| {
        let bits = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        (bits as f32 / (1 << 24) as f32 - 0.5) * scale
    };
    let value = |row: usize, column: usize| {
        let mean = noise((row % 90) * dim + column, 2.0);
        mean + noise(1_000_003 + row * dim + column, 0.7)
    };
    (0..n)
        .flat_map(|row| (0..dim).map(move |column| value(row, column)))
        .collect()
}

/// Bits of a result on every instruction set and with 1, 2 and 8 threads, the best with one thread first.
fn everywhere(
    values: &[f32],
    dim: usize,
    result: impl Fn(&Rows) -> Outcome + Sync,
) -> Vec<Outcome> {
    let run = |simd, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let rows = whole(values, dim).with_simd(simd);
        pool.build().unwrap().install(|| result(&rows))
    };
    let threads = [1, 2, 8].map(|threads| run(Simd::best(), threads));
    let others = Simd::available()
        .into_iter()
        .skip(1)
        .map(|simd| run(simd, 2));
    threads.into_iter().chain(others).collect()
}

#[test]
fn rows_of_several_blocks_give_the_same_bits_everywhere() {
    let dim = 24;
    let values = many_rows(9_000, dim);
    let found = everywhere(&values, dim, |rows| outcome(rows, Metric::Cosine, Some(2)));
    for other in &found[1..] {
        assert_eq!(other, &found[0]);
    }
}

/// Labels, centroids and inertia, the same bits everywhere.
fn clusters_everywhere(values: &[f32], dim: usize, options: &KMeansOptions) -> Outcome {
    let mut found = everywhere(values, dim, |rows| {
        let clusters = kmeans(rows, options, &Observer::default()).unwrap();
        vec![
            ("labels", labels(&clusters.labels)),
            ("centroids", bits(&clusters.centroids)),
            ("inertia", vec![clusters.inertia.to_bits()]),
        ]
    });
    let first = found.swap_remove(0);
    for other in found {
        assert_eq!(other, first);
    }
    first
}

#[test]
fn k_means_that_begins_with_a_sample_gives_the_same_bits_everywhere() {
    let values = many_rows(17_000, 24);
    for metric in [Metric::Euclidean, Metric::Cosine] {
        let options = KMeansOptions {
            k: 60,
            metric,
            seed: 1,
            max_iterations: 10,
            tolerance: 1e-4,
            train_rows: None,
        };
        clusters_everywhere(&values, 24, &options);
    }
}

#[test]
fn k_means_with_many_clusters_gives_the_same_bits_everywhere() {
    // So many clusters that candidates for the first centroids are drawn, and fewer distinct rows than that.
    let values = many_rows(6_000, 4);
    for (distinct, metric) in [
        (6_000, Metric::Euclidean),
        (6_000, Metric::Cosine),
        (900, Metric::Euclidean),
    ] {
        let values: Vec<f32> = (0..6_000)
            .flat_map(|row| values[row % distinct * 4..][..4].to_vec())
            .collect();
        let options = KMeansOptions {
            k: 2_100,
            metric,
            seed: 3,
            max_iterations: 4,
            tolerance: 1e-4,
            train_rows: None,
        };
        let found = clusters_everywhere(&values, 4, &options);
        let mut used = found[0].1.clone();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len() * 4, found[1].1.len());
        // Cosines in float32 do not tell all rows of the same direction apart.
        assert!(metric == Metric::Cosine || used.len() == distinct.min(2_100));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of small whole numbers every product is exact, and many cosines are equal.
    #[test]
    fn neighbours_are_those_of_a_comparison_with_all(
        values in prop::collection::vec(-2i8..=2, 400 * 5),
        dim in 1usize..=5,
        n in 2usize..=400,
        k in 1usize..60,
    ) {
        let k = k.min(n - 1);
        let mut values: Vec<f32> = values[..n * dim].iter().map(|&value| f32::from(value)).collect();
        values.iter_mut().step_by(dim).for_each(|value| *value += 3.0);
        let found = nearest_neighbours(&whole(&values, dim), k, None, &Observer::default()).unwrap();
        let dot = |one: usize, other: usize| {
            let pairs = values[one * dim..][..dim].iter().zip(&values[other * dim..][..dim]);
            pairs.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>()
        };
        for row in 0..n {
            let others = (0..n as u32).filter(|&other| other as usize != row);
            let mut expected: Vec<(f32, u32)> = others
                .map(|other| {
                    let place = other as usize;
                    ((dot(row, place) / (dot(row, row) * dot(place, place)).sqrt()) as f32, other)
                })
                .collect();
            expected.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
            let rows = found.rows[row * k..][..k].iter();
            let found: Vec<_> = found.cosines[row * k..][..k].iter().copied().zip(rows.copied()).collect();
            prop_assert_eq!(&found, &expected[..k]);
        }
    }
}

#[test]
fn few_probes_find_a_part_and_many_find_all() {
    let (n, dim, k) = (9_000, 16, 10);
    let values = many_rows(n, dim);
    let rows = whole(&values, dim);
    let observer = Observer::default();
    let search = |probes| nearest_neighbours(&rows, k, probes, &observer).unwrap();
    let (exact, some) = (search(None), search(Some(1)));
    assert_eq!(search(Some(3)), exact);
    let mut hits = 0;
    for row in 0..n {
        let (last, found) = (
            exact.cosines[row * k + k - 1],
            &some.cosines[row * k..][..k],
        );
        hits += found.iter().filter(|&&cosine| cosine >= last).count();
    }
    let measured = recall(&rows, &some, &observer).unwrap();
    let share = hits as f64 / (n * k) as f64;
    assert!(
        share < 0.99,
        "{share} of the neighbours are in the own block"
    );
    assert!(
        (measured - share).abs() < 0.02,
        "{measured} measured, {share} true"
    );
}

#[test]
fn recall_of_few_rows_is_measured_on_all() {
    let (n, dim, k) = (600, 5, 4);
    let values = many_rows(n, dim);
    let rows = whole(&values, dim);
    let observer = Observer::default();
    let mut graph = nearest_neighbours(&rows, k, None, &observer).unwrap();
    for row in 0..n / 2 {
        graph.rows[row * k + 3] = u32::MAX;
        graph.cosines[row * k + 3] = f32::NEG_INFINITY;
    }
    assert_eq!(recall(&rows, &graph, &observer).unwrap(), 1.0 - 1.0 / 8.0);
}

#[test]
fn neighbours_from_elsewhere_are_checked() {
    let check = |rows: &[u32], cosines: &[f32]| match Neighbours::from_parts(
        2,
        rows.to_vec(),
        cosines.to_vec(),
    ) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let cosines = [0.5, 0.4, 1.0005, -0.2, 0.0, f32::NEG_INFINITY];
    let rows = [1, 2, 2, 0, 1, u32::MAX];
    assert_eq!(check(&rows, &cosines), "");
    for (place, row, cosine, message) in [
        (0, 3, 0.5, "row 0 lists row 3, but there are 3 rows"),
        (3, 1, 0.5, "row 1 lists itself"),
        (1, 1, 0.4, "row 0 lists row 1 twice"),
        (2, 2, 1.1, "row 1 lists row 2 with 1.1, which is no cosine"),
        (2, 2, f32::NAN, "row 1 lists row 2 with NaN"),
        (2, 2, f32::NEG_INFINITY, "row 1 lists row 2 with -inf"),
        (5, u32::MAX, 0.1, "row 2 lists row 4294967295, but"),
    ] {
        let (mut rows, mut cosines) = (rows, cosines);
        (rows[place], cosines[place]) = (row, cosine);
        let found = check(&rows, &cosines);
        assert!(
            found.starts_with(&format!("neighbours: {message}")),
            "{found}"
        );
    }
    assert!(
        check(&rows[..5], &cosines[..5]).contains("5 rows and 5 cosines are not 2 of each row")
    );
    assert!(check(&rows, &cosines[..4]).contains("6 rows and 4 cosines"));
}

#[test]
fn facility_location_takes_given_rows_first() {
    let (n, dim) = (300, 6);
    let values = many_rows(n, dim);
    let rows = whole(&values, dim);
    let observer = Observer::default();
    let graph = nearest_neighbours(&rows, 20, None, &observer).unwrap();
    let choose = |k, first: &[usize]| {
        let options = FacilityOptions {
            k,
            first,
            weights: None,
        };
        facility_location(&graph, &options, &observer).map_err(|error| error.to_string())
    };
    let free = choose(n, &[]).unwrap();
    // What would be chosen next anyhow changes nothing.
    assert_eq!(choose(n, &free.rows[..7]).unwrap(), free);
    let found = choose(n, &[250, 3]).unwrap();
    assert_eq!(found.rows[..2], [250, 3]);
    let mut sorted = found.rows.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..n).collect::<Vec<_>>());
    assert!(found.gains[2..].windows(2).all(|pair| pair[0] >= pair[1]));
    assert!((found.gains.iter().sum::<f64>() - n as f64).abs() < 1e-3);
    for first in [&[3, 3][..], &[300], &[1, 2, 3]] {
        let error = choose(2, first).unwrap_err();
        assert_eq!(
            error,
            "first: give at most k = 2 different rows, each below 300"
        );
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
    assert!(matches!(
        nearest_neighbours(&rows, 5, None, &observer),
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

/// Gonzalez's algorithm word for word: one pass over all rows for each centre. Squared distances times squared
/// weights.
fn plain_k_center(
    values: &[i32],
    dim: usize,
    k: usize,
    first: &[usize],
    weights: &[i32],
) -> Vec<usize> {
    let row = |number: usize| &values[number * dim..][..dim];
    let mut nearest = vec![i32::MAX / 4; values.len() / dim];
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < k {
        let farthest = (0..nearest.len())
            .filter(|number| !chosen.contains(number))
            .max_by_key(|&number| {
                let weight = weights[number];
                (nearest[number] * weight * weight, nearest.len() - number)
            });
        let next = first.get(chosen.len()).copied().or(farthest).unwrap();
        chosen.push(next);
        for (number, nearest) in nearest.iter_mut().enumerate() {
            let differences = row(number)
                .iter()
                .zip(row(next))
                .map(|(x, c)| (x - c) * (x - c));
            *nearest = differences.sum::<i32>().min(*nearest);
        }
    }
    chosen
}

/// More rows than the pool holds and more centres than it lasts for. The values are whole numbers, so that no
/// product is rounded and many distances are equal.
#[test]
fn k_center_of_many_rows_is_the_plain_algorithms() {
    let (n, dim, k) = (9_000, 6, 700);
    // Knuth's multiplicative hash.
    let hash = |place: usize| (place as u32).wrapping_mul(2_654_435_761) >> 16;
    let values: Vec<i32> = (0..n * dim)
        .map(|place| (hash(place) % 41) as i32 - 20)
        .collect();
    let weights: Vec<i32> = (0..n).map(|row| (hash(row + 7) % 3) as i32).collect();
    let floats: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let rows = Rows::new([Chunk::F32(&floats)], dim).unwrap();
    let ones = vec![1; n];
    for (first, weights) in [(&[0][..], &ones), (&[8_999, 5, 4_000][..], &weights)] {
        let floats: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
        let options = KCenterOptions {
            k,
            metric: Metric::Euclidean,
            first: First::Rows(first),
            weights: Some(&floats),
        };
        let cover = k_center(&rows, &options, &Observer::default()).unwrap();
        assert_eq!(cover.rows, plain_k_center(&values, dim, k, first, weights));
    }
}
