//! A flat picture of embeddings: their principal axes, and the rows' places along them.
//!
//! Subspace iteration (Golub and Van Loan, Matrix Computations, 4th edition, section 8.2.4) on the covariance,
//! which is never formed: each step multiplies the centred rows with the axes and the products with the rows.

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Rows, Sums};
use crate::rng::{Rng, Stream};
use crate::{Error, Observer, Result};

/// Steps after which the axes are taken as they are: a picture needs no more digits.
const STEPS: usize = 50;

/// Principal axes of some rows.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Mean of the rows.
    pub mean: Vec<f32>,
    /// Unit vectors, orthogonal to each other, the one of greatest variance first.
    pub axes: Vec<Vec<f32>>,
}

/// Finds the `count` axes along which the rows vary most.
///
/// The greatest component of each axis is positive. Where the rows vary in fewer directions, the axes left over are
/// zero.
pub fn principal_axes(rows: &Rows, count: usize, observer: &Observer) -> Result<Axes> {
    if rows.is_empty() {
        return Err(Error::Argument(
            "embeddings: there are no rows to project; give at least one".into(),
        ));
    }
    let mean = weighted_sum(rows, |_| 1.0 / rows.len() as f64);
    let rng = Rng::new(0, Stream::Axes);
    let mut axes: Vec<Vec<f64>> = (0..count)
        .map(|axis| {
            let first = axis * rows.dim();
            (first..first + rows.dim())
                .map(|index| rng.uniform(index as u64) - 0.5)
                .collect()
        })
        .collect();
    orthonormalise(&mut axes);
    observer.expect(STEPS as u64);
    for _ in 0..STEPS {
        let places = places(
            rows,
            &narrow(&mean),
            &axes.iter().map(|axis| narrow(axis)).collect::<Vec<_>>(),
            observer,
        )?;
        for (number, axis) in axes.iter_mut().enumerate() {
            let total: f64 = places
                .iter()
                .skip(number)
                .step_by(count)
                .map(|&at| f64::from(at))
                .sum();
            *axis = weighted_sum(rows, |row| f64::from(places[row * count + number]));
            axis.iter_mut()
                .zip(&mean)
                .for_each(|(value, mean)| *value -= total * mean);
        }
        orthonormalise(&mut axes);
        observer.advance(1);
    }
    for axis in &mut axes {
        let greatest = axis.iter().copied().fold(0.0, |greatest: f64, value| {
            if value.abs() > greatest.abs() {
                value
            } else {
                greatest
            }
        });
        if greatest < 0.0 {
            axis.iter_mut().for_each(|value| *value = -*value);
        }
    }
    Ok(Axes {
        mean: narrow(&mean),
        axes: axes.iter().map(|axis| narrow(axis)).collect(),
    })
}

/// Returns the place of each row along each axis, row by row.
pub fn project(rows: &Rows, axes: &Axes, observer: &Observer) -> Result<Vec<f32>> {
    observer.expect(rows.len() as u64);
    places(rows, &axes.mean, &axes.axes, observer)
}

fn places(rows: &Rows, mean: &[f32], axes: &[Vec<f32>], observer: &Observer) -> Result<Vec<f32>> {
    let simd = rows.simd();
    let origin: Vec<f32> = axes.iter().map(|axis| simd.dot(mean, axis)).collect();
    let mut places = vec![0.0; rows.len() * axes.len()];
    places
        .par_chunks_mut(BLOCK_ROWS * axes.len())
        .enumerate()
        .try_for_each_init(Vec::new, |buffer, (number, out)| {
            observer.check()?;
            let first = number * BLOCK_ROWS;
            let block = rows.block(first..first + out.len() / axes.len(), buffer);
            let of_rows = block
                .chunks_exact(rows.dim())
                .zip(out.chunks_exact_mut(axes.len()));
            for (row, out) in of_rows {
                for ((axis, origin), out) in axes.iter().zip(&origin).zip(out) {
                    *out = simd.dot(row, axis) - origin;
                }
            }
            Ok::<_, Error>(())
        })?;
    Ok(places)
}

/// Sum of the rows times their weights, added up in the order of the rows.
fn weighted_sum(rows: &Rows, weight: impl Fn(usize) -> f64 + Sync) -> Vec<f64> {
    let mut sums = Sums::new(1, rows.dim());
    sums.add(rows, 0..rows.len(), &vec![0; rows.len()], weight);
    sums.of(0).collect()
}

fn narrow(vector: &[f64]) -> Vec<f32> {
    vector.iter().map(|&value| value as f32).collect()
}

/// Gram-Schmidt in the order of the axes, twice for the digits; what has no length of its own becomes zero.
fn orthonormalise(axes: &mut [Vec<f64>]) {
    for number in 0..axes.len() {
        let (before, axis) = axes.split_at_mut(number);
        let axis = &mut axis[0];
        let whole = dot(axis, axis).sqrt();
        for _ in 0..2 {
            for other in &*before {
                let along = dot(axis, other);
                axis.iter_mut()
                    .zip(other)
                    .for_each(|(value, other)| *value -= along * other);
            }
        }
        let length = dot(axis, axis).sqrt();
        let kept = if length > 1e-6 * whole {
            length.recip()
        } else {
            0.0
        };
        axis.iter_mut().for_each(|value| *value *= kept);
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| left * right)
        .sum()
}
