//! Vectors as 8-bit codes, and upper bounds of scores from their products.
//!
//! A vector is `x = s q + r` with whole numbers `|q| <= 127`, a scale `s` and a rest `r`. Then
//! `|x.c - s_x s_c q_x.q_c| <= |s_x q_x| |r_c| + |r_x| |c|` (Cauchy and Schwarz), and `q_x.q_c` is a sum of
//! whole numbers, which has no rounding errors and is four times as fast as float32 where the processor
//! multiplies bytes (VNNI).

use super::kernel::{GROUP, SUMS};
use super::{LANES, Simd};

/// Columns in one step of the kernel.
const WORD: usize = 4;

/// Panel lines in one step: [`LANES`] vectors of [`WORD`] bytes.
const LINES: usize = LANES * WORD / 64;

/// Added to the codes of rows: the instructions multiply unsigned by signed bytes.
const SHIFT: i32 = 128;

/// Below this the squares of the rest could vanish in float32; such vectors get no codes.
const LEAST: f32 = 1e-12;

/// The part of a cache line's size that a vector load takes: aligned, it never touches two lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line([i8; 64]);

/// Scores of [`GROUP`] rows with the vectors of a panel.
pub(crate) type Tile<T> = [[T; LANES]; GROUP];

/// What the canonical dot product may differ from the true one by, as a share of the product of the lengths, with
/// room for the few roundings around it.
fn rounding(dim: usize) -> f32 {
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
    const NONE: Self = Self {
        scale: [0.0; LANES],
        length: [0.0; LANES],
        error: [0.0; LANES],
        tail: [0.0; LANES],
        offset: [f32::INFINITY; LANES],
        shift: [0; LANES],
    };

    fn set(&mut self, lane: usize, terms: Terms, (scale, offset): (f32, f32), codes: &[i8]) {
        self.scale[lane] = terms.scale * scale;
        self.length[lane] = terms.length * scale;
        self.error[lane] = terms.error * scale;
        self.tail[lane] = terms.tail * scale;
        self.offset[lane] = offset;
        self.shift[lane] = -SHIFT * codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    }
}

/// Columns of a vector that are bounded first: the head. With the columns after it, the tail, at their worst,
/// `x.c <= head(x).head(c) + |tail(x)| |tail(c)|` rules out most pairs where only very near ones matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    words: usize,
}

impl Head {
    pub(super) const NONE: Self = Self { words: 0 };

    /// A head for scores of at least `cosine`. If the head's share of the length is `f`, a pair passes if the
    /// cosine of its heads is at least about `1 - (1 - cosine) / f`; this makes that 0.6.
    pub(super) fn for_cosine(cosine: f64, dim: usize) -> Self {
        let columns = ((1.0 - cosine) / 0.4 * dim as f64).ceil().max(32.0) as usize;
        match columns * 2 <= dim {
            true => Self {
                words: columns.div_ceil(WORD),
            },
            false => Self::NONE,
        }
    }

    fn columns(self) -> usize {
        self.words * WORD
    }

    fn tail(self, simd: Simd, vector: &[f32]) -> f32 {
        if self.words == 0 {
            return 0.0;
        }
        let tail = &vector[self.columns()..];
        simd.dot(tail, tail).sqrt() * (1.0 + rounding(vector.len()))
    }
}

/// Vectors packed for the kernel: panels of [`LANES`], interleaved by [`WORD`] columns.
#[derive(Debug)]
pub(super) struct CodePanels {
    lines: Vec<Line>,
    terms: Vec<PanelTerms>,
    head: Head,
    head_terms: Vec<PanelTerms>,
    words: usize,
    len: usize,
    codes: Vec<i8>,
}

/// A panel of vectors, for the kernel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    lines: &'a [Line],
    terms: &'a PanelTerms,
}

/// A group of rows, for the kernel.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    words: &'a [u32],
    terms: &'a [Terms],
}

impl Group<'_> {
    /// Only the rows' heads.
    pub(super) fn head(self, head: Head) -> Self {
        Self {
            words: &self.words[..head.words * GROUP],
            ..self
        }
    }
}

impl CodePanels {
    pub(super) fn new(dim: usize, head: Head) -> Self {
        Self {
            lines: Vec::new(),
            terms: Vec::new(),
            head,
            head_terms: Vec::new(),
            words: dim.div_ceil(WORD),
            len: 0,
            codes: vec![0; dim],
        }
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.terms.clear();
        self.head_terms.clear();
        self.len = 0;
    }

    /// Adds a vector whose score with a row is `scale * dot - offset`.
    pub(super) fn push(
        &mut self,
        simd: Simd,
        vector: &[f32],
        squared_norm: f32,
        score: (f32, f32),
    ) {
        let (panel, lane) = (self.len / LANES, self.len % LANES);
        let size = self.words * LINES;
        if lane == 0 {
            self.lines.resize((panel + 1) * size, Line([0; 64]));
            self.terms.push(PanelTerms::NONE);
            self.head_terms.push(PanelTerms::NONE);
        }
        let terms = simd.quantise(vector, squared_norm, &mut self.codes);
        let lines = self.lines[panel * size..].chunks_exact_mut(LINES);
        for (lines, word) in lines.zip(self.codes.chunks(WORD)) {
            let first = lane * WORD;
            lines[first / 64].0[first % 64..][..word.len()].copy_from_slice(word);
        }
        self.terms[panel].set(lane, terms, score, &self.codes);
        let terms = Terms {
            tail: self.head.tail(simd, vector),
            ..terms
        };
        let codes = &self.codes[..self.head.columns()];
        self.head_terms[panel].set(lane, terms, score, codes);
        self.len += 1;
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn panel(&self, number: usize) -> Panel<'_> {
        let size = self.words * LINES;
        Panel {
            lines: &self.lines[number * size..][..size],
            terms: &self.terms[number],
        }
    }

    /// Only the heads of a panel's vectors; none if heads are not looked at.
    pub(super) fn panel_head(&self, number: usize) -> Option<Panel<'_>> {
        let lines = self.head.words * LINES;
        (lines > 0).then(|| Panel {
            lines: &self.lines[number * self.words * LINES..][..lines],
            terms: &self.head_terms[number],
        })
    }
}

/// Rows packed for the kernel: groups of [`GROUP`], interleaved by [`WORD`] columns.
#[derive(Debug, Default)]
pub(crate) struct CodeRows {
    words: Vec<u32>,
    terms: Vec<Terms>,
    codes: Vec<i8>,
    dim: usize,
}

impl CodeRows {
    pub(super) fn fill(
        &mut self,
        simd: Simd,
        head: Head,
        rows: &[f32],
        dim: usize,
        squared_norms: &[f32],
    ) {
        let count = rows.len() / dim;
        let words = dim.div_ceil(WORD);
        self.dim = dim;
        self.codes.resize(words * WORD, 0);
        self.codes[dim..].fill(0);
        self.words.resize(count.div_ceil(GROUP) * GROUP * words, 0);
        self.terms.clear();
        self.terms
            .resize(count.next_multiple_of(GROUP), Terms::default());
        for (number, (row, &squared)) in rows.chunks_exact(dim).zip(squared_norms).enumerate() {
            self.terms[number] = Terms {
                tail: head.tail(simd, row),
                ..simd.quantise(row, squared, &mut self.codes[..dim])
            };
            let group = &mut self.words[number / GROUP * GROUP * words..][..GROUP * words];
            for (packed, word) in group
                .chunks_exact_mut(GROUP)
                .zip(self.codes.chunks_exact(WORD))
            {
                let shifted = |place: usize| (word[place] as u8).wrapping_add(SHIFT as u8);
                packed[number % GROUP] =
                    u32::from_le_bytes([shifted(0), shifted(1), shifted(2), shifted(3)]);
            }
        }
    }

    /// The groups in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.words
            .chunks_exact(self.dim.div_ceil(WORD) * GROUP)
            .zip(self.terms.chunks_exact(GROUP))
            .map(|(words, terms)| Group { words, terms })
    }
}

/// Vectors as their codes say, without the rests: an approximation with the same bits on every machine.
#[derive(Debug)]
pub(crate) struct Coded {
    panels: CodePanels,
    simd: Simd,
    dim: usize,
}

impl Coded {
    pub(crate) fn new(dim: usize, simd: Simd) -> Self {
        Self {
            panels: CodePanels::new(dim, Head::NONE),
            simd,
            dim,
        }
    }

    /// Adds a vector and returns the squared norm of what its codes stand for.
    pub(crate) fn push(&mut self, vector: &[f32]) -> f32 {
        self.panels.push(self.simd, vector, 0.0, (1.0, 0.0));
        let (panel, lane) = ((self.panels.len - 1) / LANES, (self.panels.len - 1) % LANES);
        let panel = &mut self.panels.terms[panel];
        (panel.length[lane], panel.error[lane]) = (0.0, 0.0);
        let square: i32 = self
            .panels
            .codes
            .iter()
            .map(|&code| i32::from(code) * i32::from(code))
            .sum();
        square as f32 * (panel.scale[lane] * panel.scale[lane])
    }

    /// Codes at most [`GROUP`] row-major vectors that others are multiplied with.
    pub(crate) fn group(&self, vectors: &[f32]) -> CodeRows {
        let mut rows = CodeRows::default();
        rows.fill(self.simd, Head::NONE, vectors, self.dim, &[0.0; GROUP]);
        rows.terms
            .iter_mut()
            .for_each(|terms| (terms.length, terms.error) = (0.0, 0.0));
        rows
    }

    /// Computes the dot products of a group with the vectors of one panel.
    pub(crate) fn multiply(&self, group: &CodeRows, panel: usize, dots: &mut Tile<f32>) {
        let group = Group {
            words: &group.words,
            terms: &group.terms,
        };
        self.simd.bound(group, self.panels.panel(panel), dots);
    }
}

impl Simd {
    /// Codes a vector.
    fn quantise(self, vector: &[f32], squared_norm: f32, codes: &mut [i8]) -> Terms {
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
        *highest = strides.into_iter().fold(f32::NEG_INFINITY, f32::max);
    }
    highest
}
