//! The matrix kernel: plain loops, compiled once for each instruction set.

/// Columns that are summed in one run; see the module's definition of the canonical dot product.
pub(crate) const BLOCK_K: usize = 64;

/// Vectors side by side in a panel: four AVX-512 registers of float32.
pub(crate) const LANES: usize = 64;

/// Rows that a kernel call works on: 6 x 4 accumulators fill 24 of the 32 AVX-512 registers.
pub(crate) const GROUP: usize = 6;

/// An instruction set that the kernel is compiled for. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// x86-64 with AVX-512F, BW and VNNI: Intel from Ice Lake, AMD from Zen 4.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// What the target always has: NEON on aarch64; slow on x86-64, which has no fused multiply-add then.
    Baseline,
}

impl Simd {
    /// Returns the instruction sets of this machine, best first.
    pub fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::Baseline]
            .into_iter()
            .filter(|simd| simd.is_supported())
            .collect()
    }

    /// Returns the best instruction set of this machine.
    pub fn best() -> Self {
        Self::available()[0]
    }

    pub(crate) fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Baseline => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Baseline
        }
    }

    /// Adds the products of a block of at most [`BLOCK_K`] columns: `tile[r][l] += rows[r] . panel[l]`.
    ///
    /// `rows` holds [`GROUP`] rows interleaved by column, `panel` [`LANES`] vectors interleaved by column,
    /// `tile` one line of [`LANES`] sums for each row.
    pub(crate) fn add_block(self, rows: &[f32], panel: &[f32], tile: &mut [f32]) {
        self.dispatch::<GROUP>(rows, panel, tile);
    }

    /// Adds the squares of a block of columns of a panel's vectors: `sums[l] += panel[l] . panel[l]`.
    pub(crate) fn add_squares(self, panel: &[f32], sums: &mut [f32; LANES]) {
        match self {
            // SAFETY: as in `dispatch`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { squares_avx512(panel, sums) },
            // SAFETY: as in `dispatch`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { squares_avx2(panel, sums) },
            _ => add_squares(panel, sums),
        }
    }

    /// Like [`Self::add_block`] for a single row.
    pub(crate) fn add_block_of_one(self, row: &[f32], panel: &[f32], tile: &mut [f32]) {
        self.dispatch::<1>(row, panel, tile);
    }

    /// The canonical dot product.
    pub(super) fn dot(self, x: &[f32], y: &[f32]) -> f32 {
        match self {
            // SAFETY: as in `dispatch`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => unsafe { dot_avx2(x, y) },
            _ => dot(x, y),
        }
    }

    /// The dot product in an order that is fast on this machine, so for bounds only.
    pub(super) fn fast_dot(self, x: &[f32], y: &[f32]) -> f32 {
        match self {
            // SAFETY: as in `dispatch`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { fast_dot_avx512(x, y) },
            // SAFETY: as in `dispatch`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { fast_dot_avx2(x, y) },
            _ => fast_dot(x, y),
        }
    }

    fn dispatch<const M: usize>(self, rows: &[f32], panel: &[f32], tile: &mut [f32]) {
        match self {
            // SAFETY: a `Simd` reaches the kernel through `Rows`, which has checked that it is supported.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::<M>(rows, panel, tile) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::<M>(rows, panel, tile) },
            _ => add_block::<M, 16>(rows, panel, tile),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<const M: usize>(rows: &[f32], panel: &[f32], tile: &mut [f32]) {
    add_block::<M, LANES>(rows, panel, tile);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<const M: usize>(rows: &[f32], panel: &[f32], tile: &mut [f32]) {
    add_block::<M, 16>(rows, panel, tile);
}

/// Keeps `M x W` accumulators in registers; the compiler turns the inner loops into vector instructions.
#[inline(always)]
fn add_block<const M: usize, const W: usize>(rows: &[f32], panel: &[f32], tile: &mut [f32]) {
    for first in (0..LANES).step_by(W) {
        let mut sums = [[0.0f32; W]; M];
        for (row, lanes) in rows.chunks_exact(M).zip(panel.chunks_exact(LANES)) {
            let lanes = &lanes[first..first + W];
            for m in 0..M {
                for w in 0..W {
                    sums[m][w] = row[m].mul_add(lanes[w], sums[m][w]);
                }
            }
        }
        for (line, sums) in tile.chunks_exact_mut(LANES).zip(&sums) {
            for (out, sum) in line[first..first + W].iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn squares_avx512(panel: &[f32], sums: &mut [f32; LANES]) {
    add_squares(panel, sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn squares_avx2(panel: &[f32], sums: &mut [f32; LANES]) {
    add_squares(panel, sums);
}

#[inline(always)]
fn add_squares(panel: &[f32], sums: &mut [f32; LANES]) {
    let mut block = [0.0f32; LANES];
    for lanes in panel.chunks_exact(LANES) {
        for (sum, &value) in block.iter_mut().zip(lanes) {
            *sum = value.mul_add(value, *sum);
        }
    }
    for (out, sum) in sums.iter_mut().zip(block) {
        *out += sum;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

/// Goes through several blocks at once: one after another, each addition would wait for the one before.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    const BLOCKS: usize = 4;
    let mut total = 0.0;
    let (several, rest) = x.as_chunks::<{ BLOCKS * BLOCK_K }>();
    let (others, other_rest) = y.as_chunks::<{ BLOCKS * BLOCK_K }>();
    for (x, y) in several.iter().zip(others) {
        let mut sums = [0.0f32; BLOCKS];
        for column in 0..BLOCK_K {
            for (block, sum) in sums.iter_mut().enumerate() {
                let place = block * BLOCK_K + column;
                *sum = x[place].mul_add(y[place], *sum);
            }
        }
        sums.iter().for_each(|sum| total += sum);
    }
    for (x, y) in rest.chunks(BLOCK_K).zip(other_rest.chunks(BLOCK_K)) {
        total += x.iter().zip(y).fold(0.0, |sum, (x, y)| x.mul_add(*y, sum));
    }
    total
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fast_dot_avx512(x: &[f32], y: &[f32]) -> f32 {
    fast_dot(x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fast_dot_avx2(x: &[f32], y: &[f32]) -> f32 {
    fast_dot(x, y)
}

#[inline(always)]
fn fast_dot(x: &[f32], y: &[f32]) -> f32 {
    const WIDTH: usize = 64;
    let mut sums = [0.0f32; WIDTH];
    let (parts, rest) = x.as_chunks::<WIDTH>();
    let (other_parts, other_rest) = y.as_chunks::<WIDTH>();
    for (x, y) in parts.iter().zip(other_parts) {
        for lane in 0..WIDTH {
            sums[lane] = x[lane].mul_add(y[lane], sums[lane]);
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(rest.iter().zip(other_rest)) {
        *sum = x.mul_add(*y, *sum);
    }
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
