//! Greedy choice with a penalty for what is like the chosen: stage 2 of Self-Filter.
//!
//! Chen, Wu and others, Your vision-language model itself is a strong filter (arXiv 2402.12501): take the
//! sample of the highest difficulty `d_i`, and lower that of its nearest samples that are still there by
//! `gamma d_i cos^2`.

use rayon::prelude::*;

use crate::linalg::{Metric, Norms, Rows};
use crate::neighbours::{cosine, nearest_neighbours};
use crate::{Error, Observer, Result};

/// Edges of the graph for each neighbour that is penalised: in a list this long, few are taken already.
const EDGES: usize = 5;

/// How to choose.
#[derive(Clone, Copy, Debug)]
pub struct PenaltyOptions<'a> {
    /// Rows to choose, those of `first` not among them.
    pub k: usize,
    /// Rows that are taken before, in this order.
    pub first: &'a [usize],
    /// How many rows that are still there a pick lowers.
    pub neighbours: usize,
    /// Strength of the penalty.
    pub gamma: f64,
}

/// Chooses `k` rows in the order of choice; ties go to the lowest row.
pub fn penalised(
    rows: &Rows,
    difficulty: &[f64],
    options: &PenaltyOptions,
    observer: &Observer,
) -> Result<Vec<usize>> {
    check(rows.len(), difficulty, options)?;
    let mut field = Field::new(rows, difficulty, options, observer)?;
    observer.expect(observer.progress().0 + options.k as u64);
    for &row in options.first {
        field.take(row, observer)?;
    }
    let mut chosen = Vec::with_capacity(options.k);
    for _ in 0..options.k {
        observer.check()?;
        let row = field.ranking.best();
        field.take(row, observer)?;
        chosen.push(row);
        observer.advance(1);
    }
    Ok(chosen)
}

fn check(n: usize, difficulty: &[f64], options: &PenaltyOptions) -> Result<()> {
    let problem = if difficulty.len() != n {
        format!(
            "difficulty: {} were given for {n} rows; give one for each",
            difficulty.len()
        )
    } else if let Some(row) = difficulty.iter().position(|value| !value.is_finite()) {
        format!("difficulty: {} of row {row} is not finite", difficulty[row])
    } else if options.first.iter().any(|&row| row >= n) || options.first.len() + options.k > n {
        format!(
            "k: {} rows and {} taken before cannot be chosen of {n}",
            options.k,
            options.first.len()
        )
    } else if options.neighbours == 0 || !options.gamma.is_finite() {
        format!(
            "neighbours: {} and gamma: {}; give at least 1 and a finite number",
            options.neighbours, options.gamma
        )
    } else {
        return Ok(());
    };
    Err(Error::Argument(problem))
}

/// What is still there.
struct Field<'a> {
    rows: &'a Rows<'a>,
    norms: Norms,
    /// Nearest rows of each row with their cosines, `width` of each.
    near: Vec<u32>,
    cosines: Vec<f32>,
    width: usize,
    ranking: Ranking,
    options: PenaltyOptions<'a>,
}

impl<'a> Field<'a> {
    fn new(
        rows: &'a Rows<'a>,
        difficulty: &[f64],
        options: &PenaltyOptions<'a>,
        observer: &Observer,
    ) -> Result<Self> {
        let width = options
            .neighbours
            .saturating_mul(EDGES)
            .min(rows.len().saturating_sub(1));
        let (near, cosines) = match width {
            0 => (Vec::new(), Vec::new()),
            _ => {
                let graph = nearest_neighbours(rows, width, None, observer)?;
                (graph.rows, graph.cosines)
            }
        };
        Ok(Self {
            rows,
            norms: Norms::new(rows, Metric::Cosine, observer)?,
            near,
            cosines,
            width,
            ranking: Ranking::new(difficulty),
            options: *options,
        })
    }

    /// Takes a row away and lowers the rows nearest to it.
    fn take(&mut self, row: usize, observer: &Observer) -> Result<()> {
        let difficulty = self.ranking.values[row];
        self.ranking.set(row, TAKEN);
        for (other, cosine) in self.nearest(row, observer)? {
            let penalty = self.options.gamma * difficulty * f64::from(cosine) * f64::from(cosine);
            self.ranking
                .set(other, self.ranking.values[other] - penalty);
        }
        Ok(())
    }

    /// The nearest rows that are still there, nearest first.
    fn nearest(&self, row: usize, observer: &Observer) -> Result<Vec<(usize, f32)>> {
        let list = row * self.width..(row + 1) * self.width;
        let found: Vec<(usize, f32)> = self.near[list.clone()]
            .iter()
            .map(|&other| other as usize)
            .zip(self.cosines[list].iter().copied())
            .filter(|&(other, _)| self.ranking.is_there(other))
            .take(self.options.neighbours)
            .collect();
        if found.len() == self.options.neighbours || self.width + 1 == self.rows.len() {
            return Ok(found);
        }
        self.nearest_of_all(row, observer)
    }

    /// The same by comparing with all rows that are still there.
    fn nearest_of_all(&self, row: usize, observer: &Observer) -> Result<Vec<(usize, f32)>> {
        let there: Vec<usize> = (0..self.rows.len())
            .filter(|&other| self.ranking.is_there(other))
            .collect();
        let mut vector = vec![0.0; self.rows.dim()];
        self.rows.copy_row(row, &mut vector);
        let mut found: Vec<(usize, f32)> = there
            .par_iter()
            .map_init(
                || vec![0.0; self.rows.dim()],
                |buffer, &other| {
                    observer.check()?;
                    self.rows.copy_row(other, buffer);
                    let dot = self.rows.simd().dot(&vector, buffer);
                    Ok::<_, Error>((other, cosine(dot, &self.norms, row, other) as f32))
                },
            )
            .collect::<Result<_>>()?;
        found.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        found.truncate(self.options.neighbours);
        Ok(found)
    }
}

/// Value of a row that is taken.
const TAKEN: f64 = f64::NEG_INFINITY;

/// Values of which the greatest is known at any time: a tournament, won by the greater value, then the lower row.
struct Ranking {
    values: Vec<f64>,
    /// Winners, the root at 1; the leaves are the rows.
    winners: Vec<u32>,
    leaves: usize,
}

impl Ranking {
    fn new(values: &[f64]) -> Self {
        let leaves = values.len().next_power_of_two();
        let mut ranking = Self {
            values: values.to_vec(),
            winners: vec![u32::MAX; 2 * leaves],
            leaves,
        };
        for row in 0..values.len() {
            ranking.winners[leaves + row] = row as u32;
        }
        for node in (1..leaves).rev() {
            ranking.play(node);
        }
        ranking
    }

    fn best(&self) -> usize {
        self.winners[1] as usize
    }

    fn is_there(&self, row: usize) -> bool {
        self.values[row] > TAKEN
    }

    fn set(&mut self, row: usize, value: f64) {
        self.values[row] = value;
        let mut node = (self.leaves + row) / 2;
        while node > 0 {
            self.play(node);
            node /= 2;
        }
    }

    fn play(&mut self, node: usize) {
        let (left, right) = (self.winners[2 * node], self.winners[2 * node + 1]);
        let value = |row: u32| self.values.get(row as usize).copied();
        // The left one is the lower row; beyond the last row there is no value.
        self.winners[node] = match value(right) > value(left) {
            true => right,
            false => left,
        };
    }
}
