//! Facility location: the rows that the others are near to, by lazy greedy.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::kcenter::check_weights;
use crate::linalg::{Metric, Norms, Rows};
use crate::neighbours::{Neighbours, nearest_neighbours};
use crate::{Error, Observer, Result};

/// What to choose.
#[derive(Clone, Debug)]
pub struct FacilityOptions<'a> {
    /// Number of rows, the first ones included.
    pub k: usize,
    /// These are taken first, in this order.
    pub first: &'a [usize],
    /// Weight of every row, not negative: what covering it counts.
    pub weights: Option<&'a [f32]>,
}

/// Chosen rows in order, and what each added to the value.
#[derive(Clone, Debug, PartialEq)]
pub struct FacilityLocation {
    /// The chosen rows.
    pub rows: Vec<usize>,
    /// Growth of the value by each of them; falling, but for the first ones.
    pub gains: Vec<f64>,
}

/// Chooses `k` rows greedily for the greatest value `sum over rows i of w_i max over chosen j of s_ij`.
///
/// `s_ij` is 1 for a row itself, the cosine if `j` is a neighbour of `i` and the cosine is positive, and 0 for all
/// others. The greedy value is at least 1 - 1/e of the greatest one (Nemhauser, Wolsey, Fisher, Mathematical
/// Programming 14, 1978). A row's gain can only fall, so only rows that come up again are looked at again
/// (Minoux, Accelerated greedy algorithms, 1978). Ties go to the lowest row.
pub fn facility_location(
    neighbours: &Neighbours,
    options: &FacilityOptions,
    observer: &Observer,
) -> Result<FacilityLocation> {
    let FacilityOptions { k, first, weights } = *options;
    let n = neighbours.rows.len().checked_div(neighbours.k).unwrap_or(0);
    check(n, options)?;
    observer.expect(observer.progress().0 + k as u64);
    let covered = Covered::new(neighbours, weights);
    let mut best = vec![0.0f32; n];
    let mut is_first = vec![false; n];
    let mut chosen = FacilityLocation {
        rows: Vec::with_capacity(k),
        gains: Vec::with_capacity(k),
    };
    for &row in first {
        chosen.gains.push(covered.gain(row, &best));
        chosen.rows.push(row);
        covered.take(row, &mut best);
        is_first[row] = true;
        observer.advance(1);
    }
    let bounds: Vec<Bound> = (0..n)
        .into_par_iter()
        .filter(|&row| !is_first[row])
        .map(|row| Bound {
            gain: covered.gain(row, &best),
            row,
        })
        .collect();
    let mut heap = BinaryHeap::from(bounds);
    while chosen.rows.len() < k
        && let Some(Bound { row, .. }) = heap.pop()
    {
        observer.check()?;
        let now = Bound {
            gain: covered.gain(row, &best),
            row,
        };
        if heap.peek().is_some_and(|next| *next > now) {
            heap.push(now);
            continue;
        }
        covered.take(row, &mut best);
        chosen.rows.push(row);
        chosen.gains.push(now.gain);
        observer.advance(1);
    }
    Ok(chosen)
}

/// Like [`facility_location`], on the graph of each row's `count` nearest neighbours, or of all other rows where
/// there are fewer; `probes` as in [`nearest_neighbours`].
pub fn facility_location_of_rows(
    rows: &Rows,
    count: usize,
    probes: Option<usize>,
    options: &FacilityOptions,
    observer: &Observer,
) -> Result<FacilityLocation> {
    check(rows.len(), options)?;
    if rows.len() > 1 {
        let neighbours = nearest_neighbours(rows, count.min(rows.len() - 1), probes, observer)?;
        return facility_location(&neighbours, options, observer);
    }
    Norms::new(rows, Metric::Cosine, observer)?;
    let alone = Neighbours::from_parts(1, vec![u32::MAX], vec![f32::NEG_INFINITY])?;
    facility_location(&alone, options, observer)
}

fn check(n: usize, options: &FacilityOptions) -> Result<()> {
    let FacilityOptions { k, first, weights } = *options;
    if k == 0 || k > n {
        return Err(Error::Argument(format!(
            "k: {k} rows were asked for of {n}; give at least 1 and at most {n}"
        )));
    }
    let mut seen = vec![false; n];
    let fits = first.len() <= k
        && first
            .iter()
            .all(|&row| row < n && !std::mem::replace(&mut seen[row], true));
    if !fits {
        return Err(Error::Argument(format!(
            "first: give at most k = {k} different rows, each below {n}"
        )));
    }
    check_weights(weights, n)
}

/// What a row would add at most. The greatest comes first, of equal ones the lowest row.
struct Bound {
    gain: f64,
    row: usize,
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain
            .total_cmp(&other.gain)
            .then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bound {}

/// For each row, the rows that it is a neighbour of, with their cosines.
struct Covered<'a> {
    starts: Vec<usize>,
    rows: Vec<u32>,
    cosines: Vec<f32>,
    weights: Option<&'a [f32]>,
}

impl<'a> Covered<'a> {
    fn new(neighbours: &Neighbours, weights: Option<&'a [f32]>) -> Self {
        let n = neighbours.rows.len() / neighbours.k;
        let edges = || {
            let of = |place: usize| (place / neighbours.k) as u32;
            let cosines = neighbours.cosines.iter().enumerate();
            cosines
                .filter(|(_, cosine)| **cosine > 0.0)
                // Rounding may put the cosine of equal directions above 1, which is what a row is to itself.
                .map(move |(place, &cosine)| {
                    (neighbours.rows[place] as usize, of(place), cosine.min(1.0))
                })
        };
        let mut starts = vec![0; n + 1];
        edges().for_each(|(neighbour, ..)| starts[neighbour + 1] += 1);
        for row in 0..n {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut covered = Self {
            rows: vec![0; starts[n]],
            cosines: vec![0.0; starts[n]],
            starts,
            weights,
        };
        for (neighbour, row, cosine) in edges() {
            covered.rows[next[neighbour]] = row;
            covered.cosines[next[neighbour]] = cosine;
            next[neighbour] += 1;
        }
        covered
    }

    /// The rows that a row covers and how well, itself first.
    fn of(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        let range = self.starts[row]..self.starts[row + 1];
        let others = self.rows[range.clone()].iter().zip(&self.cosines[range]);
        [(row, 1.0)]
            .into_iter()
            .chain(others.map(|(&row, &cosine)| (row as usize, cosine)))
    }

    /// What a row adds to the value.
    ///
    /// Two rows that cover each other alone have the same gain. In float64 the differences, and nearly all sums, of
    /// cosines are exact, so that this is a tie.
    fn gain(&self, row: usize, best: &[f32]) -> f64 {
        let weight = |row: usize| self.weights.map_or(1.0, |weights| f64::from(weights[row]));
        self.of(row)
            .map(|(row, cosine)| (f64::from(cosine) - f64::from(best[row])).max(0.0) * weight(row))
            .sum()
    }

    fn take(&self, row: usize, best: &mut [f32]) {
        for (row, cosine) in self.of(row) {
            best[row] = best[row].max(cosine);
        }
    }
}
