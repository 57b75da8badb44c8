//! Searching many bounds for the few that matter: plain loops, compiled once for each instruction set.

use super::{LANES, Simd};

impl Simd {
    /// A number that at least `count` of the values reach, and not many more; minus infinity if there are no more
    /// values than that.
    ///
    /// The values are cut into four times as many parts or more, and that many of the parts' maxima reach it.
    pub(crate) fn reached_by(self, count: usize, values: &[f32], maxima: &mut Vec<f32>) -> f32 {
        if values.len() <= count {
            return f32::NEG_INFINITY;
        }
        let parts = values.len().min((4 * count).next_multiple_of(LANES));
        maxima.clear();
        maxima.extend(&values[..parts]);
        for values in values[parts..].chunks(parts) {
            self.raise(maxima, values);
        }
        let (_, reached, _) =
            maxima.select_nth_unstable_by(count - 1, |left, right| right.total_cmp(left));
        *reached
    }

    fn raise(self, maxima: &mut [f32], values: &[f32]) {
        match self {
            // SAFETY: a `Simd` reaches the kernels through `Rows`, which has checked that it is supported.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { raise_avx512(maxima, values) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { raise_avx2(maxima, values) },
            _ => raise(maxima, values),
        }
    }

    /// Says in bits which values are at least `limit`, or at least their own limit times `factor`.
    pub(super) fn reaching(
        self,
        values: &[f32; LANES],
        limit: f32,
        own: &[f32; LANES],
        factor: f32,
    ) -> u64 {
        match self {
            // SAFETY: as in `raise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { reaching_avx512(values, limit, own, factor) },
            // SAFETY: as in `raise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { reaching_avx2(values, limit, own, factor) },
            _ => reaching(values, limit, own, factor),
        }
    }

    /// Writes to `places` where the values are at least `from` and below `to`, in order.
    pub(crate) fn find(self, values: &[f32], from: f32, to: f32, places: &mut Vec<usize>) {
        places.clear();
        match self {
            // SAFETY: as in `raise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { find_avx512(values, from, to, places) },
            // SAFETY: as in `raise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { find_avx2(values, from, to, places) },
            _ => find(values, from, to, places),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn raise_avx512(maxima: &mut [f32], values: &[f32]) {
    raise(maxima, values);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn raise_avx2(maxima: &mut [f32], values: &[f32]) {
    raise(maxima, values);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn find_avx512(values: &[f32], from: f32, to: f32, places: &mut Vec<usize>) {
    find(values, from, to, places);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn find_avx2(values: &[f32], from: f32, to: f32, places: &mut Vec<usize>) {
    find(values, from, to, places);
}

#[inline(always)]
fn raise(maxima: &mut [f32], values: &[f32]) {
    for (highest, &value) in maxima.iter_mut().zip(values) {
        *highest = if value > *highest { value } else { *highest };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn reaching_avx512(values: &[f32; LANES], limit: f32, own: &[f32; LANES], factor: f32) -> u64 {
    reaching(values, limit, own, factor)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn reaching_avx2(values: &[f32; LANES], limit: f32, own: &[f32; LANES], factor: f32) -> u64 {
    reaching(values, limit, own, factor)
}

/// The numbers of the bits that are set, ascending.
pub(super) fn places(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (bits != 0).then_some(bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        place
    })
}

#[inline(always)]
fn reaching(values: &[f32; LANES], limit: f32, own: &[f32; LANES], factor: f32) -> u64 {
    let mut found = 0;
    for (lane, (&value, &own)) in values.iter().zip(own).enumerate() {
        found |= u64::from((value >= limit) | (value >= own * factor)) << lane;
    }
    found
}

#[inline(always)]
fn find(values: &[f32], from: f32, to: f32, places: &mut Vec<usize>) {
    let (parts, rest) = values.as_chunks::<LANES>();
    for (part, values) in parts.iter().enumerate() {
        let mut found = 0u64;
        for (lane, &value) in values.iter().enumerate() {
            found |= u64::from((value >= from) & (value < to)) << lane;
        }
        places.extend(self::places(found).map(|lane| part * LANES + lane));
    }
    let first = values.len() - rest.len();
    let found = rest
        .iter()
        .enumerate()
        .filter(|(_, value)| **value >= from && **value < to);
    places.extend(found.map(|(place, _)| first + place));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_many_values_as_asked_for_reach_the_number(
            values in prop::collection::vec(-1.0f32..1.0, 1..700),
            count in 1usize..80,
        ) {
            let reached: Vec<u32> = Simd::available()
                .into_iter()
                .map(|simd| simd.reached_by(count, &values, &mut Vec::new()).to_bits())
                .collect();
            prop_assert!(reached.iter().all(|&bits| bits == reached[0]));
            let reached = f32::from_bits(reached[0]);
            let reaching = values.iter().filter(|&&value| value >= reached).count();
            prop_assert!(reaching >= count.min(values.len()));
            if values.len() <= 4 * count {
                // Each value is a part of its own.
                let more = values.iter().filter(|&&value| value > reached).count();
                prop_assert!(values.len() <= count || more < count);
            }
        }

        #[test]
        fn values_that_reach_either_limit_are_told(
            values in prop::collection::vec(-1.0f32..1.0, 2 * LANES),
            limit in -1.0f32..1.0,
            factor in 0.0f32..2.0,
        ) {
            let (values, own) = values.as_chunks::<LANES>().0.split_at(1);
            let (values, own) = (&values[0], &own[0]);
            let reaches = |lane: &usize| values[*lane] >= limit || values[*lane] >= own[*lane] * factor;
            let expected: Vec<usize> = (0..LANES).filter(reaches).collect();
            for simd in Simd::available() {
                let found: Vec<usize> = places(simd.reaching(values, limit, own, factor)).collect();
                prop_assert_eq!(&found, &expected);
            }
        }

        #[test]
        fn all_values_in_the_range_are_found(
            values in prop::collection::vec(-1.0f32..1.0, 0..300),
            from in -1.0f32..1.0,
            width in 0.0f32..2.0,
        ) {
            let is_in = |value: f32| value >= from && value < from + width;
            let expected: Vec<usize> = (0..values.len()).filter(|&place| is_in(values[place])).collect();
            for simd in Simd::available() {
                let mut places = vec![7];
                simd.find(&values, from, from + width, &mut places);
                prop_assert_eq!(&places, &expected);
            }
        }
    }
}
