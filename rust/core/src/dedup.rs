//! Near-duplicates by cosine, exactly: every decision rests on the canonical dot product.
//!
//! Rows are visited in batches. Inside a batch, and among the kept rows, similar ones are put near each other, so that
//! most blocks of pairs are ruled out as a whole; which rows are kept does not depend on it.

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Centres, LANES, Metric, Norms, Rows, Scratch};
use crate::neighbours::{by_likeness, check_threshold, cosine};
use crate::{Error, Observer, Result};

/// Rows that are compared with all kept rows at once.
pub(crate) const BATCH: usize = 64 * LANES;

/// Returns for every row the row that stands for it: itself if it is kept.
///
/// Rows are visited in the order of `priority` (a permutation), by default from the first to the last; a row
/// is kept unless its cosine with a row kept before is at least `threshold`, and the first such row in the
/// order of visiting stands for it.
pub fn near_duplicates(
    rows: &Rows,
    threshold: f64,
    priority: Option<&[usize]>,
    observer: &Observer,
) -> Result<Vec<usize>> {
    let ascending: Vec<usize>;
    let order = match priority {
        Some(order) => {
            check_permutation(order, rows.len())?;
            order
        }
        None => {
            ascending = (0..rows.len()).collect();
            &ascending
        }
    };
    observer.expect(order.len() as u64);
    let mut kept = Kept::new(rows, threshold, observer)?;
    let mut representatives = vec![0; rows.len()];
    for batch in order.chunks(BATCH) {
        let mut near = kept.compare(batch, observer)?;
        for (place, &row) in batch.iter().enumerate() {
            representatives[row] = near.original(place).unwrap_or(row);
            if representatives[row] == row {
                near.keep(place);
                kept.add(row);
            }
        }
        observer.advance(batch.len() as u64);
    }
    Ok(representatives)
}

fn check_permutation(order: &[usize], n: usize) -> Result<()> {
    let mut seen = vec![false; n];
    let fits = order.len() == n
        && order
            .iter()
            .all(|&row| row < n && !std::mem::replace(&mut seen[row], true));
    if fits {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "priority: it must name each of the {n} rows once"
    )))
}

/// When two rows count as the same.
struct Similarity<'a> {
    rows: &'a Rows<'a>,
    norms: Norms,
    threshold: f64,
}

/// A batch of rows that others are compared with.
struct Lanes<'a> {
    rows: &'a [usize],
    centres: Centres,
}

impl<'a> Lanes<'a> {
    fn new(similarity: &Similarity, rows: &'a [usize]) -> Self {
        let whole = similarity.rows;
        let mut centres = Centres::for_cosine(similarity.threshold, whole.dim(), whole.simd());
        let mut vector = vec![0.0; whole.dim()];
        for &row in rows {
            whole.copy_row(row, &mut vector);
            centres.push(&vector, similarity.norms.squared[row]);
        }
        Self { rows, centres }
    }
}

impl<'a> Similarity<'a> {
    fn new(rows: &'a Rows<'a>, threshold: f64, observer: &Observer) -> Result<Self> {
        check_threshold(threshold)?;
        let norms = Norms::new(rows, Metric::Cosine, observer)?;
        Ok(Self {
            rows,
            norms,
            threshold,
        })
    }

    /// Calls `visit(row of the view, lane)` for each near pair of a row and a vector. `names` are the numbers, among
    /// all rows, of the rows of the view `some` from `start` on.
    fn each_near(
        &self,
        some: &Rows,
        names: &[usize],
        start: usize,
        lanes: &Lanes,
        scratch: &mut Scratch,
        mut visit: impl FnMut(usize, usize),
    ) {
        let norms: Vec<f32> = names.iter().map(|&row| self.norms.squared[row]).collect();
        // Below this no rounding of the score can hide a near pair.
        let limit = |norm: &f32| (self.threshold * (1.0 - 1e-6)) as f32 * norm.sqrt();
        let mut limits: Vec<f32> = norms.iter().map(limit).collect();
        let block = Block {
            rows: some,
            range: start..start + names.len(),
            squared_norms: &norms,
        };
        lanes.centres.near(&block, scratch, &mut limits, |pair, _| {
            let (row, other) = (names[pair.row], lanes.rows[pair.centre]);
            if cosine(pair.dot, &self.norms, row, other) >= self.threshold {
                visit(start + pair.row, pair.centre);
            }
        });
    }
}

/// Rows that were kept, none near another that was compared with them.
pub(crate) struct Kept<'a> {
    similarity: Similarity<'a>,
    /// For each row, its turn in the order that puts similar rows near each other.
    turns: Vec<usize>,
    /// Kept rows in the order in which they were kept.
    names: Vec<usize>,
    /// Kept rows as they are compared, each batch's in the order of their turns; the latest are not there yet.
    view: Rows<'a>,
    /// For each row of the view, its place in `names`.
    places: Vec<usize>,
}

/// What a batch of rows is near to.
pub(crate) struct Near {
    /// For each row of the batch, the first kept row near it.
    kept: Vec<Option<usize>>,
    /// For each row of the batch, earlier places of the batch near it, ascending.
    earlier: Vec<Vec<usize>>,
    rows: Vec<usize>,
    chosen: Vec<bool>,
}

impl Near {
    /// The row that makes the row at a place of the batch a duplicate: the first that was kept.
    pub(crate) fn original(&self, place: usize) -> Option<usize> {
        let inside = || {
            self.earlier[place]
                .iter()
                .find(|&&other| self.chosen[other])
        };
        self.kept[place].or_else(|| inside().map(|&other| self.rows[other]))
    }

    /// Says that the row at a place of the batch is kept.
    pub(crate) fn keep(&mut self, place: usize) {
        self.chosen[place] = true;
    }
}

impl<'a> Kept<'a> {
    pub(crate) fn new(rows: &'a Rows<'a>, threshold: f64, observer: &Observer) -> Result<Self> {
        let similarity = Similarity::new(rows, threshold, observer)?;
        let mut turns = vec![0; rows.len()];
        for (turn, row) in by_likeness(rows, &observer.part())?.into_iter().enumerate() {
            turns[row] = turn;
        }
        Ok(Self {
            similarity,
            turns,
            names: Vec::new(),
            view: rows.without_rows(),
            places: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, row: usize) {
        self.names.push(row);
    }

    /// Makes the rows that were added since the last time comparable.
    fn catch_up(&mut self) {
        let mut added: Vec<usize> = (self.places.len()..self.names.len()).collect();
        added.sort_unstable_by_key(|&place| self.turns[self.names[place]]);
        for place in added {
            self.view.push(self.similarity.rows, self.names[place]);
            self.places.push(place);
        }
    }

    /// Compares a batch with the kept rows and with itself.
    pub(crate) fn compare(&mut self, batch: &[usize], observer: &Observer) -> Result<Near> {
        self.catch_up();
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_unstable_by_key(|&place| self.turns[batch[place]]);
        let sorted: Vec<usize> = order.iter().map(|&place| batch[place]).collect();
        let lanes = Lanes::new(&self.similarity, &sorted);
        let mut kept = vec![None; batch.len()];
        for (lane, place) in self.first_near(&lanes, observer)?.into_iter().enumerate() {
            kept[order[lane]] = self.names.get(place).copied();
        }
        let mut near = Near {
            kept,
            earlier: vec![Vec::new(); batch.len()],
            rows: batch.to_vec(),
            chosen: vec![false; batch.len()],
        };
        for (earlier, later) in self.near_inside(&lanes, &order, observer)? {
            near.earlier[later as usize].push(earlier as usize);
        }
        near.earlier
            .iter_mut()
            .for_each(|places| places.sort_unstable());
        Ok(near)
    }

    /// For each lane, the first kept row near it, as its place in `names`.
    fn first_near(&self, lanes: &Lanes, observer: &Observer) -> Result<Vec<usize>> {
        let none = || vec![usize::MAX; lanes.rows.len()];
        self.places
            .par_chunks(BLOCK_ROWS)
            .enumerate()
            .try_fold(
                || (Scratch::default(), none()),
                |(mut scratch, mut first), (block, places)| {
                    observer.check()?;
                    let start = block * BLOCK_ROWS;
                    let names: Vec<usize> = places.iter().map(|&place| self.names[place]).collect();
                    self.similarity.each_near(
                        &self.view,
                        &names,
                        start,
                        lanes,
                        &mut scratch,
                        |row, lane| first[lane] = first[lane].min(places[row - start]),
                    );
                    Ok::<_, Error>((scratch, first))
                },
            )
            .map(|part| part.map(|(_, first)| first))
            .try_reduce(none, |left, right| {
                let both = left.into_iter().zip(right);
                Ok(both.map(|(left, right)| left.min(right)).collect())
            })
    }

    /// All near pairs of a batch, as places in it, the earlier one first.
    fn near_inside(
        &self,
        lanes: &Lanes,
        order: &[usize],
        observer: &Observer,
    ) -> Result<Vec<(u32, u32)>> {
        let view = self.similarity.rows.subset(lanes.rows)?;
        let found: Vec<Vec<(u32, u32)>> = lanes
            .rows
            .par_chunks(BLOCK_ROWS)
            .enumerate()
            .map_init(Scratch::default, |scratch, (block, names)| {
                observer.check()?;
                let mut pairs = Vec::new();
                self.similarity.each_near(
                    &view,
                    names,
                    block * BLOCK_ROWS,
                    lanes,
                    scratch,
                    |row, lane| {
                        if order[row] < order[lane] {
                            pairs.push((order[row] as u32, order[lane] as u32));
                        }
                    },
                );
                Ok::<_, Error>(pairs)
            })
            .collect::<Result<_>>()?;
        Ok(found.into_iter().flatten().collect())
    }
}
