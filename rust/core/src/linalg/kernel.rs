//! Products and distances of two vectors: plain loops, compiled once for each instruction set.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Partial sums of a dot product: four AVX-512 registers.
pub(super) const SUMS: usize = 64;

/// Partial sums in float64: four AVX-512 registers.
const WIDE_SUMS: usize = 32;

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
    /// aarch64 with dot products of bytes (FEAT_DotProd): most since 2018.
    NeonDot,
    /// What the target always has: NEON on aarch64; slow on x86-64, which has no fused multiply-add then.
    Baseline,
}

impl Simd {
    /// Returns the instruction sets of this machine, best first.
    pub fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::NeonDot, Self::Baseline]
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
            Self::NeonDot => false,
            Self::Baseline => true,
        }
        #[cfg(target_arch = "aarch64")]
        match self {
            Self::Avx512 | Self::Avx2 => false,
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Baseline => true,
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
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

    /// The canonical dot products of a vector with four others, faster than one by one where there are registers
    /// for it.
    pub(crate) fn dots(self, x: &[f32], y: [&[f32]; 4]) -> [f32; 4] {
        match self {
            // SAFETY: as in `dot`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { dots_avx512(x, y) },
            _ => y.map(|y| self.dot(x, y)),
        }
    }

    /// Widens float16 to float32, which is exact. `half` calls a function for every eight numbers.
    pub(super) fn widen(self, values: &[f16], out: &mut [f32]) {
        match self {
            // SAFETY: as in `dot`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { widen_avx512(values, out) },
            _ => values.convert_to_f32_slice(out),
        }
    }

    /// The dot product in float64, summed like the canonical one but in 32 partial sums.
    pub(crate) fn wide_dot(self, x: &[f32], y: &[f32]) -> f64 {
        match self {
            // SAFETY: as in `dot`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { wide_dot_avx512(x, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { wide_dot_avx2(x, y) },
            _ => wide_sum(x, y, product),
        }
    }

    /// `|x - y|^2` in float64, summed like [`Self::wide_dot`].
    pub(crate) fn wide_squared_distance(self, x: &[f32], y: &[f32]) -> f64 {
        match self {
            // SAFETY: as in `dot`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { wide_squared_distance_avx512(x, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { wide_squared_distance_avx2(x, y) },
            _ => wide_sum(x, y, squared_difference),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dot_avx512(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dots_avx512(x: &[f32], y: [&[f32]; 4]) -> [f32; 4] {
    dots(x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_avx512(values: &[f16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
    let (parts, rest) = values.as_chunks::<16>();
    let (out_parts, out_rest) = out.as_chunks_mut::<16>();
    for (part, out) in parts.iter().zip(out_parts) {
        // SAFETY: the arrays have 32 and 64 bytes.
        unsafe {
            let wide = _mm512_cvtph_ps(_mm256_loadu_si256(part.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), wide);
        }
    }
    for (value, out) in rest.iter().zip(out_rest) {
        *out = value.to_f32();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide_dot_avx512(x: &[f32], y: &[f32]) -> f64 {
    wide_sum(x, y, product)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn wide_dot_avx2(x: &[f32], y: &[f32]) -> f64 {
    wide_sum(x, y, product)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn wide_squared_distance_avx512(x: &[f32], y: &[f32]) -> f64 {
    wide_sum(x, y, squared_difference)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn wide_squared_distance_avx2(x: &[f32], y: &[f32]) -> f64 {
    wide_sum(x, y, squared_difference)
}

/// Exact: the product of two 24-bit numbers has at most 48 bits.
#[inline(always)]
fn product(x: f64, y: f64) -> f64 {
    x * y
}

#[inline(always)]
fn squared_difference(x: f64, y: f64) -> f64 {
    (x - y) * (x - y)
}

/// Sums `term(x[i], y[i])` in float64; not fused, as sets without fused multiply-add must give the same bits.
#[inline(always)]
fn wide_sum(x: &[f32], y: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0.0f64; WIDE_SUMS];
    let (parts, rest) = x.as_chunks::<WIDE_SUMS>();
    let (other_parts, other_rest) = y.as_chunks::<WIDE_SUMS>();
    for (x, y) in parts.iter().zip(other_parts) {
        for lane in 0..WIDE_SUMS {
            sums[lane] += term(f64::from(x[lane]), f64::from(y[lane]));
        }
    }
    for (sum, (&x, &y)) in sums.iter_mut().zip(rest.iter().zip(other_rest)) {
        *sum += term(f64::from(x), f64::from(y));
    }
    let mut width = WIDE_SUMS;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let [dot] = dots(x, [y]);
    dot
}

#[inline(always)]
fn dots<const N: usize>(x: &[f32], y: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0f32; SUMS]; N];
    let (parts, rest) = x.as_chunks::<SUMS>();
    let others = y.map(|y| y.as_chunks::<SUMS>());
    for (part, x) in parts.iter().enumerate() {
        for (sums, (parts, _)) in sums.iter_mut().zip(others) {
            add_products(sums, x, &parts[part]);
        }
    }
    if !rest.is_empty() {
        // Filled up with zeros, which change no sum: with indices that are not constant, sums would not stay in
        // registers.
        let x = filled_up(rest);
        for (sums, (_, rest)) in sums.iter_mut().zip(others) {
            add_products(sums, &x, &filled_up(rest));
        }
    }
    sums.map(|mut sums| {
        halve::<32>(&mut sums);
        halve::<16>(&mut sums);
        halve::<8>(&mut sums);
        halve::<4>(&mut sums);
        halve::<2>(&mut sums);
        halve::<1>(&mut sums);
        sums[0]
    })
}

#[inline(always)]
fn add_products(sums: &mut [f32; SUMS], x: &[f32; SUMS], y: &[f32; SUMS]) {
    for lane in 0..SUMS {
        sums[lane] = x[lane].mul_add(y[lane], sums[lane]);
    }
}

#[inline(always)]
fn filled_up(values: &[f32]) -> [f32; SUMS] {
    let mut filled = [0.0; SUMS];
    filled[..values.len()].copy_from_slice(values);
    filled
}

#[inline(always)]
fn halve<const WIDTH: usize>(sums: &mut [f32; SUMS]) {
    for lane in 0..WIDTH {
        sums[lane] += sums[lane + WIDTH];
    }
}
