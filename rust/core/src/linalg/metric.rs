//! Distances, as functions of dot products and norms.

use rayon::prelude::*;

use super::int8::rounding;
use super::{BLOCK_ROWS, Rows, Simd};
use crate::{Error, Observer, Result};

/// What "far" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// `|x - y|`; computed as `sqrt(max(0, |x|^2 - (2 x.y - |y|^2)))`.
    Euclidean,
    /// `1 - x.y / (|x| |y|)`; undefined for zero vectors.
    Cosine,
}

impl Metric {
    /// Scale and offset of a centre, by which [`Metric::reduced`] needs one multiplication and one
    /// subtraction for each pair: the score `scale * x.c - offset` is greatest for the nearest centre.
    pub(crate) fn score_terms(self, squared_norm: f32) -> (f32, f32) {
        match self {
            Self::Euclidean => (2.0, squared_norm),
            Self::Cosine => (1.0 / squared_norm.sqrt(), 0.0),
        }
    }

    /// The squared Euclidean or the cosine distance that belongs to a score.
    pub(crate) fn reduced(self, score: f32, squared_norm: f32) -> f32 {
        match self {
            Self::Euclidean => (squared_norm - score).max(0.0),
            Self::Cosine => (1.0 - score / squared_norm.sqrt()).max(0.0),
        }
    }

    /// What a row counts in a mean: under the cosine metric, its direction counts only.
    pub(crate) fn weight(self, squared_norm: f32) -> f64 {
        match self {
            Self::Euclidean => 1.0,
            Self::Cosine => 1.0 / f64::from(squared_norm).sqrt(),
        }
    }

    /// The squared Euclidean or the cosine distance in float64; 0 for equal vectors.
    pub(crate) fn wide_reduced(self, simd: Simd, x: &[f32], y: &[f32]) -> f64 {
        match self {
            Self::Euclidean => simd.wide_squared_distance(x, y),
            Self::Cosine => {
                let lengths = (simd.wide_dot(x, x) * simd.wide_dot(y, y)).sqrt();
                (1.0 - simd.wide_dot(x, y) / lengths).max(0.0)
            }
        }
    }

    /// The score of a centre at a distance as by [`Metric::wide_reduced`].
    pub(crate) fn score(self, distance: f64, squared_norm: f32) -> f32 {
        let squared = f64::from(squared_norm);
        let score = match self {
            Self::Euclidean => squared - distance,
            Self::Cosine => (1.0 - distance) * squared.sqrt(),
        };
        score as f32
    }

    /// More than twice what the scores in float32 of a row and of centres no longer than `longest` are wrong by.
    pub(crate) fn slack(self, squared_norm: f32, longest: f32, dim: usize) -> f32 {
        let length = squared_norm.sqrt();
        let scale = match self {
            Self::Euclidean => (length + longest) * (length + longest),
            Self::Cosine => length,
        };
        4.0 * rounding(dim) * scale
    }

    /// The distance that users see.
    pub(crate) fn distance(self, reduced: f64) -> f64 {
        match self {
            Self::Euclidean => reduced.sqrt(),
            Self::Cosine => reduced,
        }
    }
}

/// The largest squared norm: sums and doubles of two of them are still numbers in float32.
const LARGEST: f32 = f32::MAX / 64.0;

/// Squared norm of every row, by the canonical dot product.
#[derive(Debug)]
pub(crate) struct Norms {
    pub(crate) squared: Vec<f32>,
}

impl Norms {
    /// Reads all rows once; this is where their values are checked.
    pub(crate) fn new(rows: &Rows, metric: Metric, observer: &Observer) -> Result<Self> {
        let mut squared = vec![0.0; rows.len()];
        squared
            .par_chunks_mut(BLOCK_ROWS)
            .enumerate()
            .try_for_each_init(Vec::new, |buffer, (number, out)| {
                observer.check()?;
                let first = number * BLOCK_ROWS;
                let block = rows.block(first..first + out.len(), buffer);
                for (row, out) in block.chunks_exact(rows.dim()).zip(out) {
                    *out = rows.simd().dot(row, row);
                }
                Ok::<_, Error>(())
            })?;
        if let Some(row) = squared
            .iter()
            .position(|norm| norm.is_nan() || *norm > LARGEST)
        {
            return Err(Error::Argument(format!(
                "embeddings: row {} holds NaN, infinity or values too large to be squared in float32; \
                 leave the row out or mend it",
                rows.place(row)
            )));
        }
        let tiny = |norm: &f32| *norm < f32::MIN_POSITIVE;
        if metric == Metric::Cosine
            && let Some(row) = squared.iter().position(tiny)
        {
            return Err(Error::Argument(format!(
                "embeddings: row {} is zero (or too small), so it has no cosine; leave the row out or use the \
                 euclidean metric",
                rows.place(row)
            )));
        }
        Ok(Self { squared })
    }
}
