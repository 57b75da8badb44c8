//! What depends on all pairs of rows inside each group, such as each cluster.
//!
//! The rows of a group are gathered as float32, so memory is that of the groups in work. Pairs are visited in
//! tiles that stay in the cache; every row meets the others of its group in ascending order, so sums do not depend
//! on the number of threads.

mod kernel;
mod likeness;

pub use kernel::{MmdOptions, greedy_mmd, kernel_sums};
pub use likeness::{redundancy, typicality};
use rayon::prelude::*;

use crate::linalg::{Metric, Norms, Rows, Simd};
use crate::{Error, Observer, Result};

/// Rows of a tile: two tiles of some hundred columns fit into the second-level cache.
const TILE: usize = 64;

/// The rows of one group.
struct Unit {
    /// Their numbers among all rows, ascending.
    members: Vec<usize>,
    values: Vec<f32>,
    squared: Vec<f32>,
    dim: usize,
    simd: Simd,
}

impl Unit {
    fn new(rows: &Rows, norms: &Norms, members: Vec<usize>) -> Self {
        let dim = rows.dim();
        let mut values = vec![0.0; members.len() * dim];
        for (out, &row) in values.chunks_exact_mut(dim).zip(&members) {
            rows.copy_row(row, out);
        }
        let squared = members.iter().map(|&row| norms.squared[row]).collect();
        Self {
            members,
            values,
            squared,
            dim,
            simd: rows.simd(),
        }
    }

    fn len(&self) -> usize {
        self.members.len()
    }

    fn vector(&self, place: usize) -> &[f32] {
        &self.values[place * self.dim..][..self.dim]
    }

    /// Cosine of two rows, exactly 1 for equal ones; see [`crate::neighbours::cosine`].
    fn cosine(&self, place: usize, other: usize) -> f64 {
        let dot = f64::from(self.simd.dot(self.vector(place), self.vector(other)));
        dot / (f64::from(self.squared[place]) * f64::from(self.squared[other])).sqrt()
    }

    /// For each place, calls `visit(state, place, other, cosine)` for every place of the group, itself among them, in
    /// ascending order, and returns the states.
    fn fold<T: Clone + Send + Sync>(
        &self,
        start: &T,
        observer: &Observer,
        visit: impl Fn(&mut T, usize, usize, f64) + Sync,
    ) -> Result<Vec<T>> {
        let mut states = vec![start.clone(); self.len()];
        states
            .par_chunks_mut(TILE)
            .enumerate()
            .try_for_each(|(tile, states)| {
                observer.check()?;
                for first in (0..self.len()).step_by(TILE) {
                    for (offset, state) in states.iter_mut().enumerate() {
                        let place = tile * TILE + offset;
                        for other in first..self.len().min(first + TILE) {
                            visit(state, place, other, self.cosine(place, other));
                        }
                    }
                }
                observer.advance(states.len() as u64);
                Ok::<_, Error>(())
            })?;
        Ok(states)
    }
}

/// Rows that are compared inside their groups.
struct Grouped<'a> {
    rows: &'a Rows<'a>,
    norms: Norms,
    /// The rows of each group, ascending.
    members: Vec<Vec<usize>>,
}

impl<'a> Grouped<'a> {
    fn new(rows: &'a Rows<'a>, groups: &[u32], observer: &Observer) -> Result<Self> {
        check_one_each("groups", groups.len(), rows.len())?;
        let norms = Norms::new(rows, Metric::Cosine, observer)?;
        let count = groups.iter().max().map_or(0, |&last| last as usize + 1);
        let mut members = vec![Vec::new(); count];
        for (row, &group) in groups.iter().enumerate() {
            members[group as usize].push(row);
        }
        Ok(Self {
            rows,
            norms,
            members,
        })
    }

    fn unit(&self, group: usize) -> Unit {
        Unit::new(self.rows, &self.norms, self.members[group].clone())
    }

    /// Computes a value of every row from its group.
    fn of_rows<T: Clone + Default + Send>(
        &self,
        compute: impl Fn(&Unit) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let by_group: Vec<Vec<T>> = (0..self.members.len())
            .into_par_iter()
            .map(|group| compute(&self.unit(group)))
            .collect::<Result<_>>()?;
        let mut values = vec![T::default(); self.rows.len()];
        for (members, of_group) in self.members.iter().zip(by_group) {
            for (&row, value) in members.iter().zip(of_group) {
                values[row] = value;
            }
        }
        Ok(values)
    }
}

fn check_one_each(name: &str, given: usize, rows: usize) -> Result<()> {
    if given == rows {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "{name}: {given} were given for {rows} rows; give one for each"
    )))
}
