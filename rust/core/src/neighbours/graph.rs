//! The nearest neighbours of every row.

use rayon::prelude::*;

use super::{Plan, Task, cosine};
use crate::linalg::{BLOCK_ROWS, Rows, Scratch};
use crate::{Error, Observer, Result};

/// Neighbours of `n` rows, `k` of each, the nearest first; ties go to the lowest row.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Number of neighbours of each row.
    pub k: usize,
    /// Row-major; `u32::MAX` where too few rows were compared, which exact search leaves nowhere.
    pub rows: Vec<u32>,
    /// Their cosines; minus infinity where there is none.
    pub cosines: Vec<f32>,
}

/// Finds the `k` nearest other rows of each row, by cosine.
///
/// With `probes`, the rows of a cluster are compared with those of as many clusters only, see [`Plan`]: some of
/// the nearest may be missed, and others stand in for them.
pub fn nearest_neighbours(
    rows: &Rows,
    k: usize,
    probes: Option<usize>,
    observer: &Observer,
) -> Result<Neighbours> {
    let n = rows.len();
    if k == 0 || k >= n || u32::try_from(n).is_err() {
        return Err(Error::Argument(format!(
            "k: {k} neighbours of {n} rows; give at least 1 and fewer than there are rows (and those at most {})",
            u32::MAX
        )));
    }
    let plan = Plan::new(rows, probes, observer)?;
    observer.expect(observer.progress().0 + n as u64);
    let mut sorted = Neighbours::none(n, k);
    for task in plan.tasks() {
        sorted.search(&plan, &task, observer)?;
        observer.advance(task.targets.len() as u64);
    }
    let mut found = Neighbours::none(n, k);
    for (place, &row) in plan.names.iter().enumerate() {
        found.rows[row * k..][..k].copy_from_slice(&sorted.rows[place * k..][..k]);
        found.cosines[row * k..][..k].copy_from_slice(&sorted.cosines[place * k..][..k]);
    }
    Ok(found)
}

impl Neighbours {
    fn none(n: usize, k: usize) -> Self {
        Self {
            k,
            rows: vec![u32::MAX; n * k],
            cosines: vec![f32::NEG_INFINITY; n * k],
        }
    }

    /// Compares the targets of a task, by their places, with its candidates.
    fn search(&mut self, plan: &Plan, task: &Task, observer: &Observer) -> Result<()> {
        let k = self.k;
        let range = task.targets.start * k..task.targets.end * k;
        let (rows, cosines) = (&mut self.rows[range.clone()], &mut self.cosines[range]);
        for candidates in &task.candidates {
            let centres = plan.pack(candidates.clone(), None);
            rows.par_chunks_mut(BLOCK_ROWS * k)
                .zip(cosines.par_chunks_mut(BLOCK_ROWS * k))
                .enumerate()
                .try_for_each_init(Scratch::default, |scratch, (block, (rows, cosines))| {
                    observer.check()?;
                    let first = task.targets.start + block * BLOCK_ROWS;
                    let range = first..first + rows.len() / k;
                    let norms = plan.squared_norms(range.clone());
                    // Below this no rounding of the score can hide a row at least as near as the last one found.
                    let limit = |cosine: f32, place: usize| (cosine - 1e-6) * norms[place].sqrt();
                    let limits: Vec<f32> =
                        (0..norms.len()).map(|place| limit(cosines[place * k + k - 1], place)).collect();
                    centres.near(&plan.view, range, &norms, scratch, |place| limits[place], |pair, reached| {
                        let (place, other) = (first + pair.row, candidates.start + pair.centre);
                        if place == other {
                            return;
                        }
                        let (row, other) = (plan.names[place], plan.names[other]);
                        let cosine = cosine(pair.dot, &plan.norms, row, other) as f32;
                        let found = pair.row * k..(pair.row + 1) * k;
                        insert(&mut rows[found.clone()], &mut cosines[found.clone()], other as u32, cosine);
                        *reached = limit(cosines[found.end - 1], pair.row);
                    });
                    Ok::<_, Error>(())
                })?;
        }
        Ok(())
    }
}

/// Puts a neighbour where it belongs, and drops the last one.
fn insert(rows: &mut [u32], cosines: &mut [f32], row: u32, cosine: f32) {
    let nearer = |place: usize| {
        cosines[place] > cosine || (cosines[place] == cosine && rows[place] < row)
    };
    let mut place = rows.len();
    while place > 0 && !nearer(place - 1) {
        place -= 1;
    }
    if place == rows.len() {
        return;
    }
    rows.copy_within(place..rows.len() - 1, place + 1);
    cosines.copy_within(place..rows.len() - 1, place + 1);
    (rows[place], cosines[place]) = (row, cosine);
}

/// By how much rounding may put a cosine beyond 1, float16 included.
const BEYOND: f32 = 1e-3;

impl Neighbours {
    /// Joins rows and cosines from elsewhere, `k` of each row, in any order.
    pub fn from_parts(k: usize, rows: Vec<u32>, cosines: Vec<f32>) -> Result<Self> {
        if k == 0 || !rows.len().is_multiple_of(k) || rows.len() != cosines.len() {
            return Err(Error::Argument(format!(
                "neighbours: {} rows and {} cosines are not {k} of each row",
                rows.len(),
                cosines.len()
            )));
        }
        let n = rows.len() / k;
        let lists = rows.par_chunks_exact(k).zip(cosines.par_chunks_exact(k));
        let problem = lists
            .enumerate()
            .find_map_first(|(row, (rows, cosines))| problem(n, row, rows, cosines));
        if let Some(problem) = problem {
            return Err(Error::Argument(format!("neighbours: {problem}")));
        }
        Ok(Self { k, rows, cosines })
    }
}

/// Says what is wrong with the neighbours of a row, if anything is.
fn problem(n: usize, row: usize, rows: &[u32], cosines: &[f32]) -> Option<String> {
    let is_there =
        |(other, cosine): &(u32, f32)| (*other, *cosine) != (u32::MAX, f32::NEG_INFINITY);
    let listed = rows.iter().copied().zip(cosines.iter().copied());
    let mut others = Vec::with_capacity(rows.len());
    for (other, cosine) in listed.filter(is_there) {
        if other as usize >= n {
            return Some(format!(
                "row {row} lists row {other}, but there are {n} rows"
            ));
        }
        if other as usize == row {
            return Some(format!("row {row} lists itself; leave it out"));
        }
        if !(-1.0 - BEYOND..=1.0 + BEYOND).contains(&cosine) {
            return Some(format!(
                "row {row} lists row {other} with {cosine}, which is no cosine; give numbers from -1 to 1"
            ));
        }
        others.push(other);
    }
    others.sort_unstable();
    let twice = others.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!(
        "row {row} lists row {} twice; list it once",
        twice[0]
    ))
}
