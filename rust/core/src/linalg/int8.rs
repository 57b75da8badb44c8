//! Vectors as 8-bit codes, and upper bounds of scores from their products.
//!
//! A vector is `x = s q + r` with whole numbers `|q| <= 127`, a scale `s` and a rest `r`. Then
//! `|x.c - s_x s_c q_x.q_c| <= |s_x q_x| |r_c| + |r_x| |c|` (Cauchy and Schwarz), and `q_x.q_c` is a sum of
//! whole numbers, which has no rounding errors and is four times as fast as float32 where the processor
//! multiplies bytes (VNNI).

use super::kernel::{GROUP, SUMS};
#[cfg(target_arch = "aarch64")]
use super::neon::products;
use super::{LANES, Simd};

/// Columns in one step of the kernel.
pub(super) const WORD: usize = 4;

/// Panel lines in one step: [`LANES`] vectors of [`WORD`] bytes.
pub(super) const LINES: usize = LANES * WORD / 64;

/// Added to the codes of rows: the instructions multiply unsigned by signed bytes.
pub(super) const SHIFT: i32 = 128;

/// Below this the squares of the rest could vanish in float32; such vectors get no codes.
const LEAST: f32 = 1e-12;

/// The part of a cache line's size that a vector load takes: aligned, it never touches two lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [i8; 64]);

/// Scores of [`GROUP`] rows with the vectors of a panel.
pub(crate) type Tile<T> = [[T; LANES]; GROUP];

/// What the canonical dot product may differ from the true one by, as a share of the product of the lengths, with
/// room for the few roundings around it.
pub(super) fn rounding(dim: usize) -> f32 {
    (dim / SUMS + 64) as f32 * (f32::EPSILON / 2.0)
}

/// What bounds need to know of a vector.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// The scale `s` of its codes.
    pub(super) scale: f32,
    /// At least its length.
    pub(super) length: f32,
    /// At least the length of its rest, and room for rounding.
    pub(super) error: f32,
    /// At least the length of its columns after the head; 0 if there is no head.
    pub(super) tail: f32,
}

/// Terms of a panel's vectors, side by side.
#[derive(Clone, Debug)]
pub(super) struct PanelTerms {
    pub(super) scale: [f32; LANES],
    pub(super) length: [f32; LANES],
    pub(super) error: [f32; LANES],
    pub(super) tail: [f32; LANES],
    pub(super) offset: [f32; LANES],
    /// What undoes [`SHIFT`]: minus [`SHIFT`] times the sum of the codes.
    shift: [i32; LANES],
}

impl PanelTerms {
    /// Terms of a panel without vectors: every bound is minus infinity.
    pub(super) const NONE: Self = Self {
        scale: [0.0; LANES],
        length: [0.0; LANES],
        error: [0.0; LANES],
        tail: [0.0; LANES],
        offset: [f32::INFINITY; LANES],
        shift: [0; LANES],
    };

    pub(super) fn set(
        &mut self,
        lane: usize,
        terms: Terms,
        (scale, offset): (f32, f32),
        codes: &[i8],
    ) {
        self.scale[lane] = terms.scale * scale;
        self.length[lane] = terms.length * scale;
        self.error[lane] = terms.error * scale;
        self.tail[lane] = terms.tail * scale;
        self.offset[lane] = offset;
        self.shift[lane] = -SHIFT * codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    }
}

/// A panel of vectors, for the kernel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [Line],
    pub(super) terms: &'a PanelTerms,
}

/// A group of rows, for the kernel.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) words: &'a [u32],
    pub(super) terms: &'a [Terms],
}

impl Simd {
    /// Codes a vector.
    pub(super) fn quantise(self, vector: &[f32], squared_norm: f32, codes: &mut [i8]) -> Terms {
        match self {
            // SAFETY: a `Simd` reaches the kernels through `Rows`, which has checked that it is supported.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { quantise_avx512(vector, squared_norm, codes) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { quantise_avx2(vector, squared_norm, codes) },
            _ => quantise(vector, squared_norm, codes),
        }
    }

    /// Bounds the scores of a group of rows with a panel from above; returns each row's highest bound.
    pub(super) fn bound(self, rows: Group, panel: Panel, bounds: &mut Tile<f32>) -> [f32; GROUP] {
        match self {
            // SAFETY: as in `quantise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { bound_avx512(rows, panel, bounds) },
            // SAFETY: as in `quantise`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { bound_avx2(rows, panel, bounds) },
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => {
                let mut sums = [[0; LANES]; GROUP];
                // SAFETY: as in `quantise`.
                unsafe { products(rows, panel, &mut sums) };
                bound(&sums, rows.terms, panel.terms, bounds)
            }
            _ => {
                let mut sums = [panel.terms.shift; GROUP];
                add_products(rows.words, panel.lines, &mut sums);
                bound(&sums, rows.terms, panel.terms, bounds)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn quantise_avx512(vector: &[f32], squared_norm: f32, codes: &mut [i8]) -> Terms {
    quantise(vector, squared_norm, codes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn quantise_avx2(vector: &[f32], squared_norm: f32, codes: &mut [i8]) -> Terms {
    quantise(vector, squared_norm, codes)
}

/// Values that are coded at once.
const WIDTH: usize = 16;

/// Codes some values and adds the squares of what is left of them.
#[inline(always)]
fn code(
    values: &[f32; WIDTH],
    inverse: f32,
    scale: f32,
    squares: &mut [f32; WIDTH],
) -> [i8; WIDTH] {
    /// Adding it leaves a number of at most 2^22 rounded to a whole one in the lowest bits.
    const WHOLE: f32 = 1.5 * (1 << 23) as f32;
    let mut shifted = [0.0; WIDTH];
    for lane in 0..WIDTH {
        shifted[lane] = values[lane] * inverse + WHOLE;
    }
    for lane in 0..WIDTH {
        let rest = values[lane] - (shifted[lane] - WHOLE) * scale;
        squares[lane] += rest * rest;
    }
    let mut codes = [0; WIDTH];
    for lane in 0..WIDTH {
        codes[lane] = shifted[lane].to_bits() as i8;
    }
    codes
}

#[inline(always)]
fn quantise(vector: &[f32], squared_norm: f32, codes: &mut [i8]) -> Terms {
    let (parts, rest) = vector.as_chunks::<WIDTH>();
    let mut greatest = [0.0f32; WIDTH];
    for part in parts {
        for (greatest, value) in greatest.iter_mut().zip(part) {
            let size = value.abs();
            *greatest = if size > *greatest { size } else { *greatest };
        }
    }
    let greatest = rest.iter().fold(
        greatest.into_iter().fold(0.0, f32::max),
        |greatest, value| greatest.max(value.abs()),
    );
    let dim = vector.len();
    if greatest < LEAST {
        codes.fill(0);
        let length = greatest * (dim as f32).sqrt() * 1.001;
        return Terms {
            length,
            error: length,
            ..Terms::default()
        };
    }
    let (scale, inverse) = (greatest / 127.0, 127.0 / greatest);
    let mut squares = [0.0f32; WIDTH];
    let (code_parts, last_codes) = codes.as_chunks_mut::<WIDTH>();
    for (part, codes) in parts.iter().zip(code_parts) {
        *codes = code(part, inverse, scale, &mut squares);
    }
    let mut last = [0.0; WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    last_codes.copy_from_slice(&code(&last, inverse, scale, &mut squares)[..rest.len()]);
    let rest = squares.into_iter().sum::<f32>().sqrt();
    let rounding = rounding(dim);
    let length = squared_norm.sqrt() * (1.0 + rounding);
    Terms {
        scale,
        length,
        error: rest * (1.0 + 1e-4) + rounding * length,
        tail: 0.0,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn bound_avx512(rows: Group, panel: Panel, bounds: &mut Tile<f32>) -> [f32; GROUP] {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_storeu_si512,
    };
    let mut sums = [panel.terms.shift; GROUP];
    // SAFETY: each pointer is to 64 bytes of an array: four quarters of `shift`, a line, which is aligned.
    unsafe {
        let load =
            |part: usize| _mm512_loadu_si512(panel.terms.shift.as_ptr().add(part * 16).cast());
        let mut totals: [[__m512i; LINES]; GROUP] = [[load(0), load(1), load(2), load(3)]; GROUP];
        for (words, lines) in rows
            .words
            .chunks_exact(GROUP)
            .zip(panel.lines.chunks_exact(LINES))
        {
            let lanes: [__m512i; LINES] =
                std::array::from_fn(|part| _mm512_load_si512((&raw const lines[part]).cast()));
            for (totals, &word) in totals.iter_mut().zip(words) {
                let word = _mm512_set1_epi32(word as i32);
                for (total, &lanes) in totals.iter_mut().zip(&lanes) {
                    *total = _mm512_dpbusd_epi32(*total, word, lanes);
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for (sums, total) in sums.chunks_exact_mut(16).zip(totals) {
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), total);
            }
        }
    }
    bound(&sums, rows.terms, panel.terms, bounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn bound_avx2(rows: Group, panel: Panel, bounds: &mut Tile<f32>) -> [f32; GROUP] {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_cvtepu8_epi16, _mm256_hadd_epi32, _mm256_madd_epi16, _mm256_permute4x64_epi64,
        _mm256_setzero_si256, _mm256_storeu_si256,
    };
    /// Lanes that the registers have room for at once.
    const WIDTH: usize = 8;
    let mut sums = [panel.terms.shift; GROUP];
    for first in (0..LANES).step_by(WIDTH) {
        let mut totals = [[_mm256_setzero_si256(); 2]; GROUP];
        for (words, lines) in rows
            .words
            .chunks_exact(GROUP)
            .zip(panel.lines.chunks_exact(LINES))
        {
            let lanes = &lines[first * WORD / 64].0[first * WORD % 64..][..WIDTH * WORD];
            // SAFETY: the slice has 32 bytes.
            let [low, high] =
                unsafe { [0, 16].map(|place| _mm_loadu_si128(lanes.as_ptr().add(place).cast())) };
            let lanes = [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)];
            for (totals, &word) in totals.iter_mut().zip(words) {
                let word = _mm256_cvtepu8_epi16(_mm_set1_epi32(word as i32));
                for (total, &lanes) in totals.iter_mut().zip(&lanes) {
                    *total = _mm256_add_epi32(*total, _mm256_madd_epi16(word, lanes));
                }
            }
        }
        for (sums, [low, high]) in sums.iter_mut().zip(totals) {
            // Each lane has two sums; adding neighbours leaves the lanes in the order 0 1 4 5 2 3 6 7.
            let total = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_hadd_epi32(low, high));
            let mut values = [0i32; WIDTH];
            // SAFETY: the array has 32 bytes.
            unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), total) };
            for (sum, value) in sums[first..first + WIDTH].iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
    bound(&sums, rows.terms, panel.terms, bounds)
}

fn add_products(rows: &[u32], panel: &[Line], sums: &mut Tile<i32>) {
    for (words, lines) in rows.chunks_exact(GROUP).zip(panel.chunks_exact(LINES)) {
        for (sums, word) in sums.iter_mut().zip(words) {
            let word = word.to_le_bytes().map(i32::from);
            let lanes = lines.iter().flat_map(|line| line.0.as_chunks::<WORD>().0);
            for (sum, lane) in sums.iter_mut().zip(lanes) {
                let products = word
                    .iter()
                    .zip(lane)
                    .map(|(row, &lane)| row * i32::from(lane));
                *sum += products.sum::<i32>();
            }
        }
    }
}

/// Leaves the greater of the numbers `HALF` apart: a few vector instructions, where comparing one number after the other
/// took half of the time of short vectors.
#[inline(always)]
fn greater_half<const HALF: usize>(values: &mut [f32; 16]) {
    for lane in 0..HALF {
        let (low, high) = (values[lane], values[lane + HALF]);
        values[lane] = if high > low { high } else { low };
    }
}

/// Turns products of codes into bounds of scores.
#[inline(always)]
fn bound(
    sums: &Tile<i32>,
    rows: &[Terms],
    panel: &PanelTerms,
    bounds: &mut Tile<f32>,
) -> [f32; GROUP] {
    let mut highest = [f32::NEG_INFINITY; GROUP];
    for (((sums, row), bounds), highest) in sums.iter().zip(rows).zip(bounds).zip(&mut highest) {
        for lane in 0..LANES {
            let estimate = sums[lane] as f32 * (panel.scale[lane] * row.scale);
            let error = row.error * panel.length[lane]
                + (row.length + row.error) * panel.error[lane]
                + row.tail * panel.tail[lane];
            bounds[lane] = estimate + error - panel.offset[lane];
        }
        let mut strides = [f32::NEG_INFINITY; 16];
        for stride in bounds.chunks_exact(16) {
            for (best, &bound) in strides.iter_mut().zip(stride) {
                *best = if bound > *best { bound } else { *best };
            }
        }
        greater_half::<8>(&mut strides);
        greater_half::<4>(&mut strides);
        greater_half::<2>(&mut strides);
        greater_half::<1>(&mut strides);
        *highest = strides[0];
    }
    highest
}
