//! How like the others of its group a row is.

use super::{Grouped, Unit};
use crate::linalg::Rows;
use crate::{Observer, Result};

/// Mean cosine of each row to its `count` nearest other rows of its group (all others, if these are fewer; 0 without
/// any): the typicality by which PreSel picks (arXiv 2503.07591).
pub fn typicality(
    rows: &Rows,
    groups: &[u32],
    count: usize,
    observer: &Observer,
) -> Result<Vec<f64>> {
    observer.expect(rows.len() as u64);
    let grouped = Grouped::new(rows, groups, observer)?;
    grouped.of_rows(|unit| {
        let nearest = unit.fold(&Vec::new(), observer, |nearest, place, other, cosine| {
            if place != other {
                insert(nearest, cosine, count);
            }
        })?;
        let mean = |nearest: Vec<f64>| nearest.iter().sum::<f64>() / nearest.len().max(1) as f64;
        Ok(nearest.into_iter().map(mean).collect())
    })
}

/// Keeps the `count` greatest values in descending order.
fn insert(greatest: &mut Vec<f64>, value: f64, count: usize) {
    let place = greatest.partition_point(|&other| other >= value);
    if place < count {
        greatest.truncate(count - 1);
        greatest.insert(place, value);
    }
}

/// The greatest cosine of each row to an earlier row of its group, at least 0, the rows of a group being visited by
/// falling distance to its mean direction, ties to the lowest: by this SemDeDup (arXiv 2303.09540) removes rows.
pub fn redundancy(rows: &Rows, groups: &[u32], observer: &Observer) -> Result<Vec<f64>> {
    observer.expect(rows.len() as u64);
    let grouped = Grouped::new(rows, groups, observer)?;
    grouped.of_rows(|unit| {
        let turns = turns(unit);
        unit.fold(&0.0f64, observer, |greatest, place, other, cosine| {
            if turns[other] < turns[place] {
                *greatest = greatest.max(cosine);
            }
        })
    })
}

/// When each place is visited.
fn turns(unit: &Unit) -> Vec<usize> {
    let direction = |place: usize| {
        let length = f64::from(unit.squared[place]).sqrt();
        let vector = unit.vector(place).iter();
        vector.map(move |&value| f64::from(value) / length)
    };
    let mut sum = vec![0.0; unit.dim];
    for place in 0..unit.len() {
        sum.iter_mut()
            .zip(direction(place))
            .for_each(|(sum, value)| *sum += value);
    }
    // All are divided by the length of the same mean, which changes no order.
    let nearness: Vec<f64> = (0..unit.len())
        .map(|place| {
            direction(place)
                .zip(&sum)
                .map(|(value, sum)| value * sum)
                .sum()
        })
        .collect();
    let mut order: Vec<usize> = (0..unit.len()).collect();
    order.sort_by(|&left, &right| nearness[left].total_cmp(&nearness[right]));
    let mut turns = vec![0; unit.len()];
    for (turn, place) in order.into_iter().enumerate() {
        turns[place] = turn;
    }
    turns
}
