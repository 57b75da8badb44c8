//! Greedy k-means++ on a sample of the rows.
//!
//! k-means++ draws the next centre with probability proportional to the distance to the nearest centre so far
//! (squared Euclidean, or cosine): Arthur and Vassilvitskii, k-means++: the advantages of careful seeding
//! (SODA 2007). The greedy form of their section 7 draws several and takes the one that lowers the sum of
//! distances the most. The sample bounds the cost to about that of one of Lloyd's iterations.

use rayon::prelude::*;

use super::{KMeansOptions, sample};
use crate::linalg::{LANES, Metric, Norms, Packed, Panels, Rows};
use crate::rng::{Rng, Stream};
use crate::{Observer, Result};

/// Rows of the sample for each centre.
const ROWS_PER_CENTRE: usize = 16;

/// Rows drawn for each centre: as many as the kernel works on at once.
const TRIALS: usize = 6;

/// Fewest rows of a sample.
const FEWEST_ROWS: usize = 4096;

/// Panels of the sample that one task compares with the drawn rows.
const TASK_PANELS: usize = 16;

/// Returns the rows that become the first centroids: `k`, or as many as the sample has distinct rows.
pub(super) fn plus_plus(
    rows: &Rows,
    norms: &Norms,
    options: &KMeansOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let count = rows.len().min(FEWEST_ROWS.max(ROWS_PER_CENTRE * options.k));
    let index = sample(
        rows.len(),
        count,
        Rng::new(options.seed, Stream::SeedingRows),
    );
    let squared = index.iter().map(|&row| norms.squared[row]).collect();
    let view = rows.subset(&index)?;
    let mut draws = Draws {
        rng: Rng::new(options.seed, Stream::Seeding),
        count: 0,
    };
    let mut distances = Distances::new(&view, Norms { squared }, options.metric);
    let first = ((draws.next() * count as f64) as usize).min(count - 1);
    let mut chosen = vec![first];
    distances.try_centres(&[first]);
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
    Ok(chosen.into_iter().map(|place| index[place]).collect())
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
    norms: Norms,
    metric: Metric,
    panels: Panels,
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
    fn new(rows: &'a Rows<'a>, norms: Norms, metric: Metric) -> Self {
        let mut panels = Panels::new(rows.dim());
        let mut vector = vec![0.0; rows.dim()];
        for row in 0..rows.len() {
            rows.copy_row(row, &mut vector);
            panels.push(&vector);
        }
        let sizes = (0..rows.len()).step_by(TASK_PANELS * LANES);
        let tasks = sizes.map(|first| Task {
            nearest: vec![f32::INFINITY; (rows.len() - first).min(TASK_PANELS * LANES)],
            sum: 0.0,
            tried: Vec::new(),
        });
        Self {
            tasks: tasks.collect(),
            rows,
            norms,
            metric,
            panels,
        }
    }

    /// Compares all rows with each drawn row and returns which one would lower the sum of distances the most.
    fn try_centres(&mut self, drawn: &[usize]) -> usize {
        let (rows, metric, norms) = (self.rows, self.metric, &self.norms);
        let mut values = vec![0.0; drawn.len() * rows.dim()];
        for (&row, out) in drawn.iter().zip(values.chunks_exact_mut(rows.dim())) {
            rows.copy_row(row, out);
        }
        let packed = Packed::new(&values, rows.dim());
        let terms: Vec<_> = drawn
            .iter()
            .map(|&row| metric.score_terms(norms.squared[row]))
            .collect();
        let panels: Vec<&[f32]> = self.panels.iter().collect();
        let tasks = self
            .tasks
            .par_iter_mut()
            .zip(panels.par_chunks(TASK_PANELS))
            .enumerate();
        tasks.for_each_init(Vec::new, |tile, (number, (task, panels))| {
            task.tried.resize(drawn.len(), (Vec::new(), 0.0));
            task.tried
                .iter_mut()
                .for_each(|(nearest, _)| nearest.clone_from(&task.nearest));
            for (place, panel) in panels.iter().enumerate() {
                packed.multiply(rows.simd(), panel, tile);
                let first = place * LANES;
                let norms = &norms.squared[number * TASK_PANELS * LANES + first..];
                let lines = tile.chunks_exact(LANES).zip(&terms).zip(&mut task.tried);
                for ((dots, &(scale, offset)), (nearest, _)) in lines {
                    for ((nearest, dot), &norm) in nearest[first..].iter_mut().zip(dots).zip(norms)
                    {
                        *nearest = metric.reduced(dot * scale - offset, norm).min(*nearest);
                    }
                }
            }
            for (nearest, sum) in &mut task.tried {
                *sum = nearest.iter().map(|&distance| f64::from(distance)).sum();
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
        let distances = self.tasks[number].nearest.iter().enumerate();
        let mut drawn = None;
        for (place, &distance) in distances.filter(|(_, distance)| **distance > 0.0) {
            drawn = Some(number * TASK_PANELS * LANES + place);
            sum += f64::from(distance);
            if sum > target {
                break;
            }
        }
        drawn
    }
}
