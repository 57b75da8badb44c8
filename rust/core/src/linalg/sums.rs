//! Sums of rows by cluster.

use std::ops::Range;

use rayon::prelude::*;

use super::Rows;

/// Fewest columns that one task adds up.
const TASK_COLUMNS: usize = 16;

/// Sums of each cluster's rows, each added up in the order of the rows.
///
/// The columns are shared out among tasks; every task reads all rows. So the order of additions does not
/// depend on the number of tasks.
pub(crate) struct Sums {
    parts: Vec<(Range<usize>, Vec<f64>)>,
    counts: Vec<u64>,
}

impl Sums {
    pub(crate) fn new(k: usize, dim: usize) -> Self {
        let tasks = rayon::current_num_threads().clamp(1, dim.div_ceil(TASK_COLUMNS));
        let width = dim.div_ceil(tasks).next_multiple_of(TASK_COLUMNS);
        let parts = (0..dim)
            .step_by(width)
            .map(|first| first..dim.min(first + width));
        Self {
            parts: parts
                .map(|columns| (columns.clone(), vec![0.0; k * columns.len()]))
                .collect(),
            counts: vec![0; k],
        }
    }

    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.parts
            .par_iter_mut()
            .for_each(|(_, sums)| sums.fill(0.0));
    }

    pub(crate) fn add(
        &mut self,
        rows: &Rows,
        range: Range<usize>,
        labels: &[u32],
        weight: impl Fn(usize) -> f64 + Sync,
    ) {
        for &label in labels {
            self.counts[label as usize] += 1;
        }
        self.parts.par_iter_mut().for_each(|(columns, sums)| {
            let mut values = vec![0.0; columns.len()];
            for (row, &label) in range.clone().zip(labels) {
                rows.copy_columns(row, columns.clone(), &mut values);
                let weight = weight(row);
                let sums = &mut sums[label as usize * values.len()..][..values.len()];
                for (sum, &value) in sums.iter_mut().zip(&values) {
                    *sum += f64::from(value) * weight;
                }
            }
        });
    }

    pub(crate) fn move_row(
        &mut self,
        rows: &Rows,
        row: usize,
        weight: f64,
        donor: usize,
        target: usize,
    ) {
        for (columns, sums) in &mut self.parts {
            let width = columns.len();
            let mut values = vec![0.0; width];
            rows.copy_columns(row, columns.clone(), &mut values);
            for (column, &value) in values.iter().enumerate() {
                let value = f64::from(value) * weight;
                sums[donor * width + column] -= value;
                sums[target * width + column] += value;
            }
        }
        self.counts[donor] -= 1;
        self.counts[target] += 1;
    }

    /// How many rows a cluster has.
    pub(crate) fn count(&self, cluster: usize) -> u64 {
        self.counts[cluster]
    }

    /// The sum of a cluster, column by column.
    pub(crate) fn of(&self, cluster: usize) -> impl Iterator<Item = f64> {
        self.parts
            .iter()
            .flat_map(move |(columns, sums)| &sums[cluster * columns.len()..][..columns.len()])
            .copied()
    }
}
