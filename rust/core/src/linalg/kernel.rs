//! The dot product in float32: plain loops, compiled once for each instruction set.

/// Partial sums of a dot product: four AVX-512 registers.
pub(super) const SUMS: usize = 64;

/// Vectors side by side in a panel: four AVX-512 registers of 32-bit numbers.
pub(crate) const LANES: usize = 64;

/// Rows that the kernel on codes works on: 6 x 4 accumulators fill 24 of the 32 AVX-512 registers.
pub(crate) const GROUP: usize = 6;

/// An instruction set that the kernels are compiled for. All of them give the same bits.
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

    /// The canonical dot product; see the module above.
    pub(crate) fn dot(self, x: &[f32], y: &[f32]) -> f32 {
        match self {
            // SAFETY: a `Simd` reaches the kernels through `Rows`, which has checked that it is supported.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { dot_avx512(x, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { dot_avx2(x, y) },
            _ => dot(x, y),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dot_avx512(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; SUMS];
    let (parts, rest) = x.as_chunks::<SUMS>();
    let (other_parts, other_rest) = y.as_chunks::<SUMS>();
    for (x, y) in parts.iter().zip(other_parts) {
        for lane in 0..SUMS {
            sums[lane] = x[lane].mul_add(y[lane], sums[lane]);
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(rest.iter().zip(other_rest)) {
        *sum = x.mul_add(*y, *sum);
    }
    let mut width = SUMS;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
