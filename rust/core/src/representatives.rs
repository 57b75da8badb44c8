//! All near pairs, and which rows are kept by them.

use rayon::prelude::*;

use crate::linalg::Rows;
use crate::neighbours::near_duplicate_pairs;
use crate::{Error, Observer, Result};

/// Near-duplicates with all their pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct NearDuplicates {
    /// For every row the row that stands for it: itself if it is kept.
    pub representatives: Vec<usize>,
    /// Near pairs as (lower row, higher row), ascending.
    pub pairs: Vec<(usize, usize)>,
}

/// Finds all pairs of rows with a cosine of at least `threshold`, and the rows that stand for others by them.
///
/// Without `probes`, the representatives are those of [`near_duplicates`](crate::near_duplicates), which is faster
/// where many rows are near each other. With `probes`, pairs may be missed, see [`near_duplicate_pairs`]: then two
/// kept rows may be near each other.
pub fn near_duplicates_by_pairs(
    rows: &Rows,
    threshold: f64,
    priority: Option<&[usize]>,
    probes: Option<usize>,
    observer: &Observer,
) -> Result<NearDuplicates> {
    let places = match priority {
        Some(order) => places_of(rows.len(), order)?,
        None => (0..rows.len()).collect(),
    };
    let pairs = near_duplicate_pairs(rows, threshold, probes, observer)?;
    Ok(NearDuplicates {
        representatives: representatives(&pairs, &places),
        pairs,
    })
}

/// Visits rows by their places; the first kept row that makes a pair with one stands for it.
fn representatives(pairs: &[(usize, usize)], places: &[usize]) -> Vec<usize> {
    let mut links: Vec<(usize, usize)> = pairs
        .par_iter()
        .map(|&(row, other)| match places[row] > places[other] {
            true => (row, other),
            false => (other, row),
        })
        .collect();
    links.par_sort_unstable_by_key(|&(later, earlier)| (places[later], places[earlier]));
    let mut representatives: Vec<usize> = (0..places.len()).collect();
    for links in links.chunk_by(|left, right| left.0 == right.0) {
        let kept = links
            .iter()
            .find(|&&(_, earlier)| representatives[earlier] == earlier);
        if let Some(&(later, earlier)) = kept {
            representatives[later] = earlier;
        }
    }
    representatives
}

/// When each row is visited.
fn places_of(n: usize, order: &[usize]) -> Result<Vec<usize>> {
    let mut places = vec![usize::MAX; n];
    for (place, &row) in order.iter().enumerate() {
        if row < n {
            places[row] = place;
        }
    }
    if order.len() == n && !places.contains(&usize::MAX) {
        return Ok(places);
    }
    Err(Error::Argument(format!(
        "priority: it must name each of the {n} rows once"
    )))
}
