//! Which rows are near which: nearest neighbours of every row, and all pairs above a cosine.
//!
//! Rows are sorted by cluster first. Then rows that are compared at once have much in common, and most blocks of
//! pairs are ruled out as a whole. Which pairs are compared is a [`Plan`]: all of them, or only those of clusters
//! near each other.

mod graph;
mod pairs;
mod plan;

pub use graph::{Neighbours, nearest_neighbours};
pub(crate) use pairs::check_threshold;
pub use pairs::near_duplicate_pairs;
use plan::Plan;
pub(crate) use plan::by_likeness;

use crate::linalg::Norms;

/// Cosine of two rows: exactly 1 for equal ones, as the product of two float32 is exact in float64, and so is the
/// root of a square.
pub(crate) fn cosine(dot: f32, norms: &Norms, row: usize, other: usize) -> f64 {
    let squares = f64::from(norms.squared[row]) * f64::from(norms.squared[other]);
    f64::from(dot) / squares.sqrt()
}
