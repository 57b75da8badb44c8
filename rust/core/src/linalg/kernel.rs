//! The kernels in float32: plain loops, compiled once for each instruction set.

/// Columns that are summed in one run; see the module's definition of the canonical dot product.
pub(crate) const BLOCK_K: usize = 64;

/// Vectors side by side in a panel: four AVX-512 registers of float32.
pub(crate) const LANES: usize = 64;

/// Rows that the kernel on codes works on: 6 x 4 accumulators fill 24 of the 32 AVX-512 registers.
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

    /// Adds the products of a block of at most [`BLOCK_K`] columns: `sums[l] += row . panel[l]`, where `panel`
    /// holds [`LANES`] vectors interleaved by column.
    pub(super) fn add_block(self, row: &[f32], panel: &[f32], sums: &mut [f32; LANES]) {
        match self {
            // SAFETY: a `Simd` reaches the kernels through `Rows`, which has checked that it is supported.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { add_block_avx512(row, panel, sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { add_block_avx2(row, panel, sums) },
            _ => add_block(row, panel, sums),
        }
    }

    /// The canonical dot product.
    pub(super) fn dot(self, x: &[f32], y: &[f32]) -> f32 {
        match self {
            // SAFETY: as in `add_block`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => unsafe { dot_avx2(x, y) },
            _ => dot(x, y),
        }
    }

    /// The dot product in an order that is fast on this machine, so for bounds only.
    pub(super) fn fast_dot(self, x: &[f32], y: &[f32]) -> f32 {
        match self {
            // SAFETY: as in `add_block`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { fast_dot_avx512(x, y) },
            // SAFETY: as in `add_block`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { fast_dot_avx2(x, y) },
            _ => fast_dot(x, y),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_block_avx512(row: &[f32], panel: &[f32], sums: &mut [f32; LANES]) {
    add_block(row, panel, sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_block_avx2(row: &[f32], panel: &[f32], sums: &mut [f32; LANES]) {
    add_block(row, panel, sums);
}

/// The compiler keeps the block's sums in registers and turns the inner loop into vector instructions.
#[inline(always)]
fn add_block(row: &[f32], panel: &[f32], sums: &mut [f32; LANES]) {
    let mut block = [0.0f32; LANES];
    for (&value, lanes) in row.iter().zip(panel.chunks_exact(LANES)) {
        for (sum, &lane) in block.iter_mut().zip(lanes) {
            *sum = value.mul_add(lane, *sum);
        }
    }
    for (sum, block) in sums.iter_mut().zip(block) {
        *sum += block;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut total = 0.0;
    let (x, y) = add_blocks::<4>(x, y, &mut total);
    let (x, y) = add_blocks::<1>(x, y, &mut total);
    total + x.iter().zip(y).fold(0.0, |sum, (x, y)| x.mul_add(*y, sum))
}

/// Adds the sums of whole blocks, `N` at once so that the additions of one need not wait for each other, and
/// returns what is left.
#[inline(always)]
fn add_blocks<'a, const N: usize>(mut x: &'a [f32], mut y: &'a [f32], total: &mut f32) -> (&'a [f32], &'a [f32]) {
    while x.len() >= N * BLOCK_K {
        let mut sums = [0.0f32; N];
        for column in 0..BLOCK_K {
            for (block, sum) in sums.iter_mut().enumerate() {
                let place = block * BLOCK_K + column;
                *sum = x[place].mul_add(y[place], *sum);
            }
        }
        sums.iter().for_each(|sum| *total += sum);
        (x, y) = (&x[N * BLOCK_K..], &y[N * BLOCK_K..]);
    }
    (x, y)
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
