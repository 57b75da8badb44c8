//! How fast the selection core is on each instruction set of this machine, on one thread.
//!
//!     cargo bench -p mllm-selector-core
//!
//! Throughput is in pairs of rows that an algorithm has to rank, so that tasks can be compared.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mllm_selector_core::{
    Chunk, First, KCenterOptions, KMeansOptions, Metric, Observer, Rows, Simd, k_center, kmeans,
    near_duplicate_pairs, nearest_neighbours,
};

const ROWS: usize = 20_000;
const COLUMNS: usize = 384;
const CENTRES: usize = 500;
const ITERATIONS: usize = 5;

/// Rows around 200 means, all from one recurrence.
fn rows() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let means: Vec<f32> = (0..200 * COLUMNS).map(|_| uniform()).collect();
    let mut values = Vec::with_capacity(ROWS * COLUMNS);
    for row in 0..ROWS {
        let mean = &means[row % 200 * COLUMNS..][..COLUMNS];
        values.extend(mean.iter().map(|mean| mean + uniform()));
    }
    values
}

fn on_each(c: &mut Criterion, task: &str, pairs: usize, run: impl Fn(&Rows, &Observer) + Sync) {
    let values = rows();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("one thread");
    let mut group = c.benchmark_group(task);
    group
        .sample_size(10)
        .throughput(Throughput::Elements(pairs as u64));
    // Without fused multiply-add in hardware the plain kernels are right, and too slow to wait for.
    let plain = |simd: &Simd| *simd == Simd::Baseline && Simd::best() != *simd;
    for simd in Simd::available().into_iter().filter(|simd| !plain(simd)) {
        let rows = Rows::new([Chunk::F32(&values)], COLUMNS)
            .expect("whole rows")
            .with_simd(simd);
        group.bench_function(
            BenchmarkId::from_parameter(format!("{simd:?}")),
            |bencher| {
                bencher.iter(|| pool.install(|| run(&rows, &Observer::default())));
            },
        );
    }
}

fn kernels(c: &mut Criterion) {
    on_each(c, "k_center", ROWS * CENTRES, |rows, observer| {
        let options = KCenterOptions {
            k: CENTRES,
            metric: Metric::Cosine,
            first: First::Rows(&[0]),
            weights: None,
        };
        k_center(rows, &options, observer).expect("rows that can be covered");
    });
    on_each(
        c,
        "kmeans",
        ROWS * CENTRES * ITERATIONS,
        |rows, observer| {
            let options = KMeansOptions {
                k: CENTRES,
                metric: Metric::Cosine,
                seed: 0,
                max_iterations: ITERATIONS,
                tolerance: 0.0,
                train_rows: None,
            };
            kmeans(rows, &options, observer).expect("rows that can be clustered");
        },
    );
    on_each(
        c,
        "near_duplicate_pairs",
        ROWS * ROWS / 2,
        |rows, observer| {
            near_duplicate_pairs(rows, 0.95, None, observer).expect("rows that can be compared");
        },
    );
    on_each(
        c,
        "nearest_neighbours",
        ROWS * ROWS / 2,
        |rows, observer| {
            nearest_neighbours(rows, 20, None, observer).expect("rows that can be compared");
        },
    );
}

criterion_group!(benches, kernels);
criterion_main!(benches);
