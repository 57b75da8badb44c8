//! Products of codes by the dot product instructions of aarch64 (FEAT_DotProd): `int8.rs` says what they are for.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s8, veorq_s8, vld1q_s8, vld1q_s32, vst1q_s32,
};
use std::arch::asm;

use super::int8::{Group, LINES, Panel, Tile, WORD};
use super::{GROUP, LANES};

/// Lanes that the registers have room for at once: 6 x 4 accumulators fill 24 of the 32.
const WIDTH: usize = 16;

/// Lanes of one register.
const QUARTER: usize = 4;

/// Adds to each of the four sums the product of a word of four codes in `lanes` with word `INDEX` of `words`.
///
/// The intrinsic of this instruction is not stable yet (rust-lang/rust#117224).
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products<const INDEX: usize>(
    sums: int32x4_t,
    lanes: int8x16_t,
    words: int8x16_t,
) -> int32x4_t {
    let mut total = sums;
    // SAFETY: the instruction reads and writes the named registers only, and the caller has FEAT_DotProd.
    unsafe {
        asm!(
            "sdot {total:v}.4s, {lanes:v}.16b, {words:v}.4b[{index}]",
            total = inout(vreg) total,
            lanes = in(vreg) lanes,
            words = in(vreg) words,
            index = const INDEX,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    total
}

/// Sums the products of the codes of each row and lane.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn products(rows: Group, panel: Panel, sums: &mut Tile<i32>) {
    // The codes of rows are shifted to unsigned bytes, which flips their highest bit; these products are signed.
    let highest_bit = vdupq_n_s8(i8::MIN);
    for first in (0..LANES).step_by(WIDTH) {
        // SAFETY: an array of four numbers has 16 bytes.
        let zero = unsafe { vld1q_s32([0; QUARTER].as_ptr()) };
        let mut totals = [[zero; WIDTH / QUARTER]; GROUP];
        let steps = rows
            .words
            .chunks_exact(GROUP)
            .zip(panel.lines.chunks_exact(LINES));
        for (words, lines) in steps {
            let line = &lines[first * WORD / 64].0;
            let words = [
                words[0], words[1], words[2], words[3], words[4], words[5], 0, 0,
            ];
            // SAFETY: each load is of 16 bytes of an array of 32 bytes or of a line of 64, `WIDTH * WORD` of them.
            let (low, high, lanes) = unsafe {
                (
                    veorq_s8(vld1q_s8(words.as_ptr().cast()), highest_bit),
                    veorq_s8(vld1q_s8(words.as_ptr().add(QUARTER).cast()), highest_bit),
                    [0, 16, 32, 48].map(|place| vld1q_s8(line.as_ptr().add(place))),
                )
            };
            for (part, lanes) in lanes.into_iter().enumerate() {
                totals[0][part] = add_products::<0>(totals[0][part], lanes, low);
                totals[1][part] = add_products::<1>(totals[1][part], lanes, low);
                totals[2][part] = add_products::<2>(totals[2][part], lanes, low);
                totals[3][part] = add_products::<3>(totals[3][part], lanes, low);
                totals[4][part] = add_products::<0>(totals[4][part], lanes, high);
                totals[5][part] = add_products::<1>(totals[5][part], lanes, high);
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            let parts = sums[first..first + WIDTH].chunks_exact_mut(QUARTER);
            for (sums, total) in parts.zip(totals) {
                // SAFETY: the part has 16 bytes.
                unsafe { vst1q_s32(sums.as_mut_ptr(), total) };
            }
        }
    }
}
