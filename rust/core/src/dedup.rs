//! Near-duplicates by cosine, exactly: every pair is compared by the canonical dot product.

use rayon::prelude::*;

use crate::linalg::{BLOCK_ROWS, Block, Centres, LANES, Metric, Norms, Rows, Scratch};
use crate::neighbours::{check_threshold, cosine};
use crate::{Error, Observer, Result};

/// Rows that are compared with all kept rows at once.
pub(crate) const BATCH: usize = 24 * LANES;

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

    /// Calls `visit(place in names, lane)` for each near pair of a row and a vector. `names[i]` is the number,
    /// among all rows, of row `start + i` of the view `some`.
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
    view: Rows<'a>,
    names: Vec<usize>,
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
        Ok(Self {
            similarity,
            view: rows.without_rows(),
            names: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, row: usize) {
        self.view.push(self.similarity.rows, row);
        self.names.push(row);
    }

    /// Compares a batch with the kept rows and with itself.
    pub(crate) fn compare(&self, batch: &[usize], observer: &Observer) -> Result<Near> {
        let lanes = Lanes::new(&self.similarity, batch);
        let none = || vec![usize::MAX; batch.len()];
        let first = (0..self.names.len().div_ceil(BLOCK_ROWS))
            .into_par_iter()
            .try_fold(
                || (Scratch::default(), none()),
                |(mut scratch, mut first), block| {
                    observer.check()?;
                    let start = block * BLOCK_ROWS;
                    let names = &self.names[start..self.names.len().min(start + BLOCK_ROWS)];
                    self.similarity.each_near(
                        &self.view,
                        names,
                        start,
                        &lanes,
                        &mut scratch,
                        |place, lane| {
                            first[lane] = first[lane].min(place);
                        },
                    );
                    Ok::<_, Error>((scratch, first))
                },
            )
            .map(|part| part.map(|(_, first)| first))
            .try_reduce(none, |left, right| {
                Ok(left
                    .into_iter()
                    .zip(right)
                    .map(|(left, right)| left.min(right))
                    .collect())
            })?;
        let kept = first
            .into_iter()
            .map(|place| self.names.get(place).copied())
            .collect();
        let mut near = Near {
            kept,
            earlier: vec![Vec::new(); batch.len()],
            rows: batch.to_vec(),
            chosen: vec![false; batch.len()],
        };
        self.compare_inside(batch, &lanes, &mut near)?;
        Ok(near)
    }

    fn compare_inside(&self, batch: &[usize], lanes: &Lanes, near: &mut Near) -> Result<()> {
        let view = self.similarity.rows.subset(batch)?;
        let found: Vec<Vec<(usize, usize)>> = (0..batch.len().div_ceil(BLOCK_ROWS))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, block| {
                let start = block * BLOCK_ROWS;
                let names = &batch[start..batch.len().min(start + BLOCK_ROWS)];
                let mut pairs = Vec::new();
                self.similarity
                    .each_near(&view, names, start, lanes, scratch, |place, lane| {
                        if place < lane {
                            pairs.push((place, lane));
                        }
                    });
                pairs
            })
            .collect();
        for (place, lane) in found.into_iter().flatten() {
            near.earlier[lane].push(place);
        }
        near.earlier
            .iter_mut()
            .for_each(|places| places.sort_unstable());
        Ok(())
    }
}
