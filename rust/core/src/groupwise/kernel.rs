//! Gaussian kernels inside groups, and the rows that stand for a group by them.
//!
//! With unit vectors the squared distance is `2 - 2 cos`, so the kernel is `exp((cos - 1) / bandwidth^2)`.

use rayon::prelude::*;

use super::{Grouped, Unit, check_one_each};
use crate::linalg::Rows;
use crate::{Error, Observer, Result};

/// Places whose sums one task renews.
const CHUNK: usize = 512;

/// What to choose from each group.
#[derive(Clone, Copy, Debug)]
pub struct MmdOptions<'a> {
    /// Sum of the kernel of each row with all rows of its group, itself among them: [`kernel_sums`].
    pub sums: &'a [f64],
    /// Whether each row may be chosen.
    pub open: &'a [bool],
    /// Rows that are taken beforehand, ascending.
    pub taken: &'a [usize],
    /// Rows to choose from each group.
    pub quotas: &'a [usize],
    /// Width of the kernel.
    pub bandwidth: f64,
}

fn kernel(cosine: f64, bandwidth: f64) -> f64 {
    // A portable function, so that bits do not depend on the system's library.
    libm::exp((cosine - 1.0) / (bandwidth * bandwidth))
}

/// Sums the Gaussian kernel of each row with all rows of its group, itself among them.
pub fn kernel_sums(
    rows: &Rows,
    groups: &[u32],
    bandwidth: f64,
    observer: &Observer,
) -> Result<Vec<f64>> {
    check_bandwidth(bandwidth)?;
    observer.expect(rows.len() as u64);
    let grouped = Grouped::new(rows, groups, observer)?;
    grouped.of_rows(|unit| {
        unit.fold(&0.0, observer, |sum, _, _, cosine| {
            *sum += kernel(cosine, bandwidth);
        })
    })
}

/// Chooses rows whose distribution is like that of their group: for each group, the rows in the order of choice.
///
/// The next row is the one that lowers the squared maximum mean discrepancy most: with `K` the kernel, `n` rows in
/// the group and `S` the rows taken, the one with the least `mean K[S+i, S+i] - 2 mean K[:, S+i]` (Kim, Khanna and
/// Koyejo, Examples are not enough, learn to criticize!, NIPS 2016). Without what is the same for all candidates,
/// and times `|S+i| / 2`, this is `sum K[i, S] / |S+i| - mean K[:, i]`: so one sum for each candidate, renewed with each
/// pick, does instead of the means. Ties go to the lowest row.
pub fn greedy_mmd(
    rows: &Rows,
    groups: &[u32],
    options: &MmdOptions,
    observer: &Observer,
) -> Result<Vec<Vec<usize>>> {
    check_bandwidth(options.bandwidth)?;
    check_one_each("sums", options.sums.len(), rows.len())?;
    check_one_each("open", options.open.len(), rows.len())?;
    let grouped = Grouped::new(rows, groups, observer)?;
    check_quotas(&grouped, options)?;
    observer.expect(options.quotas.iter().sum::<usize>() as u64);
    (0..grouped.members.len())
        .into_par_iter()
        .map(|group| match options.quotas[group] {
            0 => Ok(Vec::new()),
            quota => Greedy::new(&grouped.unit(group), options).choose(quota, observer),
        })
        .collect()
}

fn check_bandwidth(bandwidth: f64) -> Result<()> {
    if bandwidth > 0.0 && bandwidth.is_finite() {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "bandwidth: {bandwidth} is not a width; give a number above 0"
    )))
}

fn check_quotas(grouped: &Grouped, options: &MmdOptions) -> Result<()> {
    if options.quotas.len() != grouped.members.len() {
        return Err(Error::Argument(format!(
            "quotas: {} were given for {} groups; give one for each",
            options.quotas.len(),
            grouped.members.len()
        )));
    }
    for (group, (members, &quota)) in grouped.members.iter().zip(options.quotas).enumerate() {
        let open = members.iter().filter(|&&row| options.open[row]).count();
        if quota > open {
            return Err(Error::Argument(format!(
                "quotas: {quota} rows of group {group} cannot be chosen, {open} can"
            )));
        }
    }
    Ok(())
}

/// One group while rows are chosen from it.
struct Greedy<'a> {
    unit: &'a Unit,
    bandwidth: f64,
    /// Mean of the kernel of each place with all places.
    means: Vec<f64>,
    /// Sum of the kernel of each place with the taken ones.
    taken_sums: Vec<f64>,
    open: Vec<bool>,
    taken: usize,
}

impl<'a> Greedy<'a> {
    fn new(unit: &'a Unit, options: &MmdOptions) -> Self {
        let n = unit.len() as f64;
        let mut greedy = Self {
            unit,
            bandwidth: options.bandwidth,
            means: unit
                .members
                .iter()
                .map(|&row| options.sums[row] / n)
                .collect(),
            taken_sums: vec![0.0; unit.len()],
            open: unit.members.iter().map(|&row| options.open[row]).collect(),
            taken: 0,
        };
        for (place, row) in unit.members.iter().enumerate() {
            if options.taken.binary_search(row).is_ok() {
                greedy.take(place);
            }
        }
        greedy
    }

    fn choose(mut self, quota: usize, observer: &Observer) -> Result<Vec<usize>> {
        let mut chosen = Vec::with_capacity(quota);
        for _ in 0..quota {
            observer.check()?;
            let Some(place) = self.best() else { break };
            chosen.push(self.unit.members[place]);
            self.take(place);
            observer.advance(1);
        }
        Ok(chosen)
    }

    fn best(&self) -> Option<usize> {
        let size = (self.taken + 1) as f64;
        let value = |place: usize| self.taken_sums[place] / size - self.means[place];
        (0..self.unit.len())
            .filter(|&place| self.open[place])
            .min_by(|&left, &right| value(left).total_cmp(&value(right)))
    }

    fn take(&mut self, taken: usize) {
        self.open[taken] = false;
        self.taken += 1;
        let (unit, bandwidth, open) = (self.unit, self.bandwidth, &self.open);
        self.taken_sums
            .par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(chunk, sums)| {
                for (offset, sum) in sums.iter_mut().enumerate() {
                    let place = chunk * CHUNK + offset;
                    if open[place] {
                        *sum += kernel(unit.cosine(place, taken), bandwidth);
                    }
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::linalg::Chunk;

    /// The definition: the whole objective, from the whole kernel, for each candidate and pick.
    fn direct(kernel: &[Vec<f64>], open: &[bool], taken: &[usize], quota: usize) -> Vec<usize> {
        let n = kernel.len();
        let mut set = taken.to_vec();
        for _ in 0..quota {
            let objective = |candidate: usize| {
                let all: Vec<usize> = set.iter().copied().chain([candidate]).collect();
                let size = all.len() as f64;
                let inside: f64 = all
                    .iter()
                    .flat_map(|&i| all.iter().map(move |&j| (i, j)))
                    .map(|(i, j)| kernel[i][j])
                    .sum();
                let across: f64 = (0..n)
                    .flat_map(|i| all.iter().map(move |&j| (i, j)))
                    .map(|(i, j)| kernel[i][j])
                    .sum();
                inside / (size * size) - 2.0 * across / (n as f64 * size)
            };
            let best = (0..n)
                .filter(|place| open[*place] && !set.contains(place))
                .min_by(|&left, &right| {
                    // Nearly equal objectives are ties, broken by the lowest place.
                    let (left, right) = (objective(left), objective(right));
                    if (left - right).abs() < 1e-12 {
                        std::cmp::Ordering::Equal
                    } else {
                        left.total_cmp(&right)
                    }
                });
            set.extend(best);
        }
        set.split_off(taken.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn incremental_picks_are_those_of_the_definition(
            values in prop::collection::vec(-1.0f32..1.0, 3 * 30),
            closed in prop::collection::vec(any::<bool>(), 30),
            quota in 1usize..8,
            taken_count in 0usize..3,
        ) {
            let rows = Rows::new([Chunk::F32(&values)], 3).unwrap();
            let observer = Observer::default();
            let groups = vec![0u32; 30];
            let sums = kernel_sums(&rows, &groups, 0.7, &observer).unwrap();
            let taken: Vec<usize> = (0..taken_count).map(|place| place * 7).collect();
            // Ten rows at least stay open.
            let open: Vec<bool> = (0..30).map(|row| (row % 3 == 1 || !closed[row]) && !taken.contains(&row)).collect();
            let options = MmdOptions { sums: &sums, open: &open, taken: &taken, quotas: &[quota], bandwidth: 0.7 };
            let chosen = greedy_mmd(&rows, &groups, &options, &observer).unwrap();
            let vector = |row: usize| &values[row * 3..][..3];
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
            let kernel: Vec<Vec<f64>> = (0..30)
                .map(|i| (0..30).map(|j| {
                    let (x, y) = (vector(i), vector(j));
                    ((dot(x, y) / (dot(x, x) * dot(y, y)).sqrt() - 1.0) / 0.49).exp()
                }).collect())
                .collect();
            prop_assert_eq!(&chosen[0], &direct(&kernel, &open, &taken, quota));
        }
    }
}
