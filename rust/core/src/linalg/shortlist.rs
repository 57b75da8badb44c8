//! The most promising centres of each row, by the bounds on their scores.

use super::LANES;

/// Centres on a shortlist.
const LISTED: usize = 8;

/// Numbers of centres, in no special order.
pub(crate) type Shortlist = [u32; LISTED];

/// The shortlists of some rows in the making. The bounds have the same bits on every instruction set.
pub(super) struct Listing<'a> {
    lists: &'a mut [Shortlist],
    bounds: Vec<[f32; LISTED]>,
    /// The lowest bound of each list.
    limits: Vec<f32>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(lists: &'a mut [Shortlist]) -> Self {
        Self {
            bounds: vec![[f32::NEG_INFINITY; LISTED]; lists.len()],
            limits: vec![f32::NEG_INFINITY; lists.len()],
            lists,
        }
    }

    /// Puts those centres of a panel on the list of a row whose bounds are higher than the lowest there.
    pub(super) fn add(&mut self, row: usize, panel: usize, highest: f32, bounds: &[f32; LANES]) {
        if highest <= self.limits[row] {
            return;
        }
        let kept = &mut self.bounds[row];
        for (lane, &bound) in bounds.iter().enumerate() {
            if bound <= self.limits[row] {
                continue;
            }
            let lowest = |kept: &[f32; LISTED]| {
                let places = 1..LISTED;
                places.fold(
                    0,
                    |low, place| if kept[place] < kept[low] { place } else { low },
                )
            };
            let place = lowest(kept);
            kept[place] = bound;
            self.lists[row][place] = (panel * LANES + lane) as u32;
            self.limits[row] = kept[lowest(kept)];
        }
    }
}
