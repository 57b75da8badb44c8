//! Greedy k-means++ on a sample of the rows.
//!
//! k-means++ draws the next centre with probability proportional to the distance to the nearest centre so far
//! (squared Euclidean, or cosine): Arthur and Vassilvitskii, k-means++: the advantages of careful seeding
//! (SODA 2007). The greedy form of their section 7 draws several and takes the one that lowers the sum of
//! distances the most. The sample bounds the cost to about that of one of Lloyd's iterations. Distances are those
//! between the rows' 8-bit codes: near enough to draw by, and whole numbers under the scales.

use rayon::prelude::*;

use super::KMeansOptions;
use super::oversampling::{self, Candidates};
use crate::linalg::{Coded, GROUP, LANES, Metric, Rows};
use crate::rng::{Rng, Stream};
use crate::{Observer, Result};

/// Centres from which on k-means|| chooses candidates first.
const MANY: usize = 2048;

/// Rows of the sample for each centre.
const ROWS_PER_CENTRE: usize = 16;

/// Rows drawn for each centre: as many as the kernel works on at once.
const TRIALS: usize = GROUP;

/// Fewest rows of a sample.
const FEWEST_ROWS: usize = 4096;

/// Panels of the sample that one task compares with the drawn rows.
const TASK_PANELS: usize = 16;

/// Rows wanted in the sample.
pub(super) fn sample_size(k: usize) -> usize {
    FEWEST_ROWS.max(ROWS_PER_CENTRE * k)
}

/// Returns the rows of the sample, which is in random order, that become the first centroids: `k`, or as many as
/// it has distinct rows.
pub(super) fn first_centroids(
    rows: &Rows,
    sample: &[usize],
    options: &KMeansOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let view = rows.subset(sample)?;
    if options.k >= MANY {
        let Candidates { rows, weights } = oversampling::draw(&view, options, observer)?;
        if rows.len() >= options.k {
            let chosen = plus_plus(&view.subset(&rows)?, &weights, options, observer)?;
            return Ok(chosen
                .into_iter()
                .map(|place| sample[rows[place]])
                .collect());
        }
    }
    let chosen = plus_plus(&view, &vec![1.0; sample.len()], options, observer)?;
    Ok(chosen.into_iter().map(|place| sample[place]).collect())
}

/// Chooses among weighted rows in random order.
fn plus_plus(
    rows: &Rows,
    weights: &[f64],
    options: &KMeansOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let mut draws = Draws {
        rng: Rng::new(options.seed, Stream::Seeding),
        count: 0,
    };
    let mut distances = Distances::new(rows, weights, options.metric);
    let mut chosen = vec![0];
    distances.try_centres(&[0]);
    distances.take(0);
    while chosen.len() < options.k {
        observer.check()?;
        let drawn: Vec<usize> = (0..TRIALS)
            .map_while(|_| distances.draw(draws.next()))
            .collect();
        if drawn.is_empty() {
            break;
        }
        let best = distances.try_centres(&drawn);
        distances.take(best);
        chosen.push(drawn[best]);
        observer.advance((rows.len() / options.k) as u64);
    }
    Ok(chosen)
}

struct Draws {
    rng: Rng,
    count: u64,
}

impl Draws {
    fn next(&mut self) -> f64 {
        self.count += 1;
        self.rng.uniform(self.count)
    }
}

/// Distance of every row of the sample to its nearest centre.
struct Distances<'a> {
    rows: &'a Rows<'a>,
    weights: &'a [f64],
    metric: Metric,
    coded: Coded,
    /// Squared norms of the coded rows.
    squared: Vec<f32>,
    tasks: Vec<Task>,
}

/// Some rows of the sample.
struct Task {
    nearest: Vec<f32>,
    sum: f64,
    /// For each drawn row, what `nearest` and its sum would be with it as a centre.
    tried: Vec<(Vec<f32>, f64)>,
}

impl<'a> Distances<'a> {
    fn new(rows: &'a Rows<'a>, weights: &'a [f64], metric: Metric) -> Self {
        let mut coded = Coded::new(rows.dim(), rows.simd());
        let mut vector = vec![0.0; rows.dim()];
        let squared = (0..rows.len()).map(|row| {
            rows.copy_row(row, &mut vector);
            coded.push(&vector)
        });
        let squared: Vec<f32> = squared.collect();
        let sizes = (0..rows.len()).step_by(TASK_PANELS * LANES);
        let tasks = sizes.map(|first| Task {
            nearest: vec![f32::INFINITY; (rows.len() - first).min(TASK_PANELS * LANES)],
            sum: 0.0,
            tried: Vec::new(),
        });
        Self {
            tasks: tasks.collect(),
            rows,
            weights,
            metric,
            coded,
            squared,
        }
    }

    /// Compares all rows with each drawn row and returns which one would lower the sum of distances the most.
    fn try_centres(&mut self, drawn: &[usize]) -> usize {
        let (rows, metric) = (self.rows, self.metric);
        let (coded, squared, weights) = (&self.coded, &self.squared, self.weights);
        let mut values = vec![0.0; drawn.len() * rows.dim()];
        for (&row, out) in drawn.iter().zip(values.chunks_exact_mut(rows.dim())) {
            rows.copy_row(row, out);
        }
        let group = coded.group(&values);
        let terms: Vec<_> = drawn
            .iter()
            .map(|&row| metric.score_terms(squared[row]))
            .collect();
        self.tasks
            .par_iter_mut()
            .enumerate()
            .for_each(|(number, task)| {
                task.tried.resize(drawn.len(), (Vec::new(), 0.0));
                task.tried
                    .iter_mut()
                    .for_each(|(nearest, _)| nearest.clone_from(&task.nearest));
                let mut dots = [[0.0; LANES]; GROUP];
                for panel in 0..task.nearest.len().div_ceil(LANES) {
                    coded.multiply(&group, number * TASK_PANELS + panel, &mut dots);
                    let first = panel * LANES;
                    let squared = &squared[number * TASK_PANELS * LANES + first..];
                    let lines = dots.iter().zip(&terms).zip(&mut task.tried);
                    for ((dots, &(scale, offset)), (nearest, _)) in lines {
                        for ((nearest, dot), &norm) in
                            nearest[first..].iter_mut().zip(dots).zip(squared)
                        {
                            *nearest = metric.reduced(dot * scale - offset, norm).min(*nearest);
                        }
                    }
                }
                for (nearest, sum) in &mut task.tried {
                    let weights = &weights[number * TASK_PANELS * LANES..];
                    let terms = nearest.iter().zip(weights);
                    *sum = terms
                        .map(|(&distance, weight)| f64::from(distance) * weight)
                        .sum();
                }
            });
        let sum = |trial: usize| {
            self.tasks
                .iter()
                .map(|task| task.tried[trial].1)
                .sum::<f64>()
        };
        let sums: Vec<f64> = (0..drawn.len()).map(sum).collect();
        (0..drawn.len())
            .min_by(|&left, &right| sums[left].total_cmp(&sums[right]))
            .unwrap_or(0)
    }

    /// Makes a drawn row a centre.
    fn take(&mut self, trial: usize) {
        for task in &mut self.tasks {
            std::mem::swap(&mut task.nearest, &mut task.tried[trial].0);
            task.sum = task.tried[trial].1;
        }
    }

    /// Draws a row by its distance; none if all distances are zero.
    fn draw(&self, uniform: f64) -> Option<usize> {
        let target = uniform * self.tasks.iter().map(|task| task.sum).sum::<f64>();
        // Where rounding leaves the target above all sums, the last row of any distance is drawn.
        let mut before = 0.0;
        let mut found = None;
        for (number, task) in self
            .tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| task.sum > 0.0)
        {
            found = Some((number, before));
            if before + task.sum > target {
                break;
            }
            before += task.sum;
        }
        let (number, mut sum) = found?;
        let first = number * TASK_PANELS * LANES;
        let distances = self.tasks[number]
            .nearest
            .iter()
            .zip(&self.weights[first..]);
        let mut drawn = None;
        for (place, (&distance, weight)) in distances.enumerate() {
            let share = f64::from(distance) * weight;
            if share <= 0.0 {
                continue;
            }
            drawn = Some(first + place);
            sum += share;
            if sum > target {
                break;
            }
        }
        drawn
    }
}
