//! The nearest neighbours of every row.

use rayon::prelude::*;

use super::{Plan, cosine};
use crate::linalg::{BLOCK_ROWS, Block, Bounded, CentreLimits, Centres, Rows, Scratch};
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
/// With `probes`, only rows of similar blocks are compared, see [`Plan`]: some of the nearest may be missed, and
/// others stand in for them.
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
    let pairs = plan.pairs();
    observer.expect(observer.progress().0 + pairs.len() as u64);
    let mut lists = Lists::new(n, k);
    for (block, other) in pairs {
        match block == other {
            true => lists.begin(&plan, block, observer)?,
            false => lists.compare(&plan, block, other, observer)?,
        }
        observer.advance(1);
    }
    Ok(lists.finish(&plan))
}

/// A neighbour: cosine and row.
type Found = (f32, u32);

const NONE: Found = (f32::NEG_INFINITY, u32::MAX);

/// The nearest rows found so far, for every row of the view.
struct Lists {
    k: usize,
    capacity: usize,
    /// For each row, `capacity` places; the first `lengths[row]` are taken, in no order.
    found: Vec<Found>,
    lengths: Vec<usize>,
    /// The least cosine that still counts.
    least: Vec<f32>,
}

/// The list of one row.
struct List<'a> {
    k: usize,
    found: &'a mut [Found],
    length: &'a mut usize,
    least: &'a mut f32,
}

impl List<'_> {
    fn add(&mut self, row: u32, cosine: f32) {
        if cosine < *self.least {
            return;
        }
        self.found[*self.length] = (cosine, row);
        *self.length += 1;
        if *self.length == self.found.len() {
            self.shorten();
        }
    }

    /// Keeps the `k` nearest of at least as many.
    fn shorten(&mut self) {
        let (_, last, _) = self.found[..*self.length]
            .select_nth_unstable_by(self.k - 1, |left, right| before(*left, *right));
        (*self.least, *self.length) = (last.0, self.k);
    }
}

fn before(left: Found, right: Found) -> std::cmp::Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}

/// Below this, times the length of the row, no rounding of the score can hide a cosine of at least `least`.
fn limit(least: f32) -> f32 {
    least - 1e-6
}

impl Lists {
    fn new(n: usize, k: usize) -> Self {
        let capacity = k + (k / 2).max(8);
        Self {
            k,
            capacity,
            found: vec![NONE; n * capacity],
            lengths: vec![0; n],
            least: vec![f32::NEG_INFINITY; n],
        }
    }

    /// Fills the lists of a block's rows, which are empty, with rows of the same block.
    fn begin(&mut self, plan: &Plan, block: usize, observer: &Observer) -> Result<()> {
        let range = plan.block(block);
        let centres = plan.pack(range.clone(), None);
        let (k, capacity) = (self.k, self.capacity);
        let found = self.found[range.start * capacity..range.end * capacity]
            .par_chunks_mut(BLOCK_ROWS * capacity);
        let lengths = self.lengths[range.clone()].par_chunks_mut(BLOCK_ROWS);
        let least = self.least[range.clone()].par_chunks_mut(BLOCK_ROWS);
        found.zip(lengths).zip(least).enumerate().try_for_each_init(
            || (Scratch::default(), Memory::default()),
            |(scratch, memory), (part, ((found, lengths), least))| {
                observer.check()?;
                let first = range.start + part * BLOCK_ROWS;
                let rows = first..first + lengths.len();
                let block = Block {
                    rows: &plan.view,
                    squared_norms: &plan.squared_norms(rows.clone()),
                    range: rows,
                };
                centres.bound(&block, scratch, |bounded| {
                    let list = List {
                        k,
                        found: &mut found[bounded.row * capacity..][..capacity],
                        length: &mut lengths[bounded.row],
                        least: &mut least[bounded.row],
                    };
                    let own = Own {
                        plan,
                        centres: &centres,
                        first: range.start,
                        place: first + bounded.row,
                    };
                    own.fill(list, bounded, memory);
                });
                Ok(())
            },
        )
    }

    /// Compares the rows of two blocks, for the lists of both.
    fn compare(
        &mut self,
        plan: &Plan,
        block: usize,
        other: usize,
        observer: &Observer,
    ) -> Result<()> {
        let (targets, candidates) = (plan.block(block), plan.block(other));
        let centres = plan.pack(candidates.clone(), None);
        let own = self.least[candidates.clone()]
            .iter()
            .map(|&least| limit(least));
        let own = CentreLimits::new(own.collect());
        let (k, capacity) = (self.k, self.capacity);
        let (before, after) = self.least.split_at_mut(targets.start);
        let candidates_least = &before[candidates.clone()];
        let found = self.found[targets.start * capacity..targets.end * capacity]
            .par_chunks_mut(BLOCK_ROWS * capacity);
        let lengths = self.lengths[targets.clone()].par_chunks_mut(BLOCK_ROWS);
        let least = after[..targets.len()].par_chunks_mut(BLOCK_ROWS);
        let reverse: Vec<Vec<(u32, Found)>> = found
            .zip(lengths)
            .zip(least)
            .enumerate()
            .map_init(
                Scratch::default,
                |scratch, (part, ((found, lengths), least))| {
                    observer.check()?;
                    let first = targets.start + part * BLOCK_ROWS;
                    let range = first..first + lengths.len();
                    let norms = plan.squared_norms(range.clone());
                    let mut limits: Vec<f32> = least
                        .iter()
                        .zip(&norms)
                        .map(|(&least, norm)| limit(least) * norm.sqrt())
                        .collect();
                    let mut reverse = Vec::new();
                    let block = Block {
                        rows: &plan.view,
                        range,
                        squared_norms: &norms,
                    };
                    centres.near_either(
                        &block,
                        scratch,
                        &mut limits,
                        &own,
                        |at, centre, dot, reached| {
                            let (place, other) = (first + at, candidates.start + centre);
                            let (row, other_row) = (plan.names[place], plan.names[other]);
                            let cosine = cosine(dot, &plan.norms, row, other_row) as f32;
                            let mut list = List {
                                k,
                                found: &mut found[at * capacity..][..capacity],
                                length: &mut lengths[at],
                                least: &mut least[at],
                            };
                            list.add(other_row as u32, cosine);
                            *reached = limit(*list.least) * norms[at].sqrt();
                            if cosine >= candidates_least[centre] {
                                reverse.push((centre as u32, (cosine, row as u32)));
                            }
                        },
                    );
                    Ok::<_, Error>(reverse)
                },
            )
            .collect::<Result<_>>()?;
        for (centre, (cosine, row)) in reverse.into_iter().flatten() {
            let place = candidates.start + centre as usize;
            let mut list = List {
                k,
                found: &mut self.found[place * capacity..][..capacity],
                length: &mut self.lengths[place],
                least: &mut self.least[place],
            };
            list.add(row, cosine);
        }
        Ok(())
    }

    /// Returns the lists by row, each in order.
    fn finish(mut self, plan: &Plan) -> Neighbours {
        let (n, k) = (self.lengths.len(), self.k);
        let mut neighbours = Neighbours {
            k,
            rows: vec![u32::MAX; n * k],
            cosines: vec![f32::NEG_INFINITY; n * k],
        };
        let lists = self
            .found
            .chunks_exact_mut(self.capacity)
            .zip(&self.lengths);
        for ((found, &length), &row) in lists.zip(&plan.names) {
            let found = &mut found[..length];
            found.sort_unstable_by(|left, right| before(*left, *right));
            for (place, &(cosine, other)) in found.iter().take(k).enumerate() {
                neighbours.rows[row * k + place] = other;
                neighbours.cosines[row * k + place] = cosine;
            }
        }
        neighbours
    }
}

/// A row that is compared with those of its own block.
struct Own<'a> {
    plan: &'a Plan<'a>,
    centres: &'a Centres,
    /// Place of the block's first row in the view.
    first: usize,
    /// Place of the row in the view.
    place: usize,
}

impl Own<'_> {
    /// Fills an empty list: first with the rows whose bounds are the highest, then with those whose bounds reach the
    /// least cosine among these.
    fn fill(&self, mut list: List, of: Bounded, memory: &mut Memory) {
        let simd = self.plan.view.simd();
        let floor = simd.reached_by(list.k + 1, of.bounds, &mut memory.maxima);
        simd.find(of.bounds, floor, f32::INFINITY, &mut memory.centres);
        self.add(&mut list, of.vector, &memory.centres);
        if *list.length >= list.k {
            list.shorten();
        }
        let row = self.plan.names[self.place];
        let limit = limit(*list.least) * self.plan.norms.squared[row].sqrt();
        simd.find(of.bounds, limit, floor, &mut memory.centres);
        self.add(&mut list, of.vector, &memory.centres);
    }

    /// Compares the row with others of its block.
    fn add(&self, list: &mut List, vector: &[f32], centres: &[usize]) {
        let row = self.plan.names[self.place];
        self.centres.multiply(vector, centres, |centre, dot| {
            let other = self.plan.names[self.first + centre];
            if other != row {
                let cosine = cosine(dot, &self.plan.norms, row, other) as f32;
                list.add(other as u32, cosine);
            }
        });
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Memory {
    maxima: Vec<f32>,
    centres: Vec<usize>,
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
