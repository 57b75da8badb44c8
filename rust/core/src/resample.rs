//! Resizing of pictures along one axis, with the bits of Pillow.
//!
//! Image processors of models resize by Pillow, which uses no vector instructions. Faster libraries round weights to 16
//! bits and so give other bytes; here the weights are Pillow's (`src/libImaging/Resample.c` of version 13.0), and the
//! loops are written for vector registers. A byte is the sum of the bytes under a window, each times a weight with 22
//! binary places, rounded and held between 0 and 255.

use crate::error::{Error, Result};

/// Bytes of a pixel: red, green, blue.
const CHANNELS: usize = 3;

/// Binary places of a weight: of 32 bits, 8 are the byte's, and 2 leave room for sums beyond it.
const PLACES: u32 = 32 - 8 - 2;

/// Rows that are resized together, so that a register of eight numbers holds a pixel of each.
const ROWS: usize = 2;

/// How the weight of a pixel falls with its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Linear, over the nearest two pixels where a picture grows.
    Bilinear,
    /// Cubic convolution with a = -0.5, over the nearest four.
    Bicubic,
    /// Windowed sinc, over the nearest six.
    Lanczos,
}

impl Filter {
    /// Largest distance with a weight, in pixels of a picture that grows.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            Self::Bicubic if distance < 1.0 => {
                ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
            }
            Self::Bicubic if distance < 2.0 => {
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

/// The pixels that one pixel of the result is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let per_pixel = 1.0 / stretch;
    (0..to)
        .map(|place| {
            let centre = (place as f64 + 0.5) * scale;
            // Casts cut off, and what is below zero becomes zero.
            let first = (centre - support + 0.5) as usize;
            let end = from.min((centre + support + 0.5) as usize);
            let weights: Vec<f64> = (first..end)
                .map(|pixel| filter.weight((pixel as f64 - centre + 0.5) * per_pixel))
                .collect();
            let sum: f64 = weights.iter().sum();
            let share = |weight: f64| if sum == 0.0 { weight } else { weight / sum };
            Window {
                first,
                weights: weights.into_iter().map(share).map(fixed).collect(),
            }
        })
        .collect()
}

fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PLACES) + 0.5f64.copysign(weight)) as i32
}

/// What sums begin with, so that cutting their binary places off rounds them.
const HALF: i32 = 1 << (PLACES - 1);

#[inline(always)]
fn byte(sum: i32) -> u8 {
    (sum >> PLACES).clamp(0, 255) as u8
}

/// Resizes rows of RGB pixels from `width` to `new_width` pixels each.
///
/// # Errors
///
/// Fails if a width is 0, or if the slices are not the same number of whole rows.
pub fn resample_width(
    pixels: &[u8],
    width: usize,
    out: &mut [u8],
    new_width: usize,
    filter: Filter,
) -> Result<()> {
    check(
        pixels.len(),
        width * CHANNELS,
        out.len(),
        new_width * CHANNELS,
    )?;
    let windows = windows(width, new_width, filter);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the instructions are there.
        unsafe { width_avx2(pixels, width, out, &windows) };
        return Ok(());
    }
    along_rows(pixels, width, out, &windows);
    Ok(())
}

/// Resizes columns of RGB pixels from `height` to `new_height` pixels each.
///
/// # Errors
///
/// Fails if a height is 0, or if the slices are not that many rows of one length.
pub fn resample_height(
    pixels: &[u8],
    height: usize,
    out: &mut [u8],
    new_height: usize,
    filter: Filter,
) -> Result<()> {
    check(pixels.len(), height, out.len(), new_height)?;
    let windows = windows(height, new_height, filter);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the instructions are there.
        unsafe { height_avx2(pixels, height, out, &windows) };
        return Ok(());
    }
    along_columns(pixels, height, out, &windows);
    Ok(())
}

/// Refuses slices that are not the same number of whole units.
fn check(pixels: usize, unit: usize, out: usize, new_unit: usize) -> Result<()> {
    let count = |len: usize, unit: usize| len.checked_div(unit).filter(|count| count * unit == len);
    if count(pixels, unit).is_some() && count(pixels, unit) == count(out, new_unit) {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "{pixels} and {out} bytes are not equally many times {unit} and {new_unit}"
    )))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn width_avx2(pixels: &[u8], width: usize, out: &mut [u8], windows: &[Window]) {
    along_rows(pixels, width, out, windows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn height_avx2(pixels: &[u8], height: usize, out: &mut [u8], windows: &[Window]) {
    along_columns(pixels, height, out, windows);
}

#[inline(always)]
fn along_rows(pixels: &[u8], width: usize, out: &mut [u8], windows: &[Window]) {
    let row_bytes = width * CHANNELS;
    let new_row_bytes = windows.len() * CHANNELS;
    let height = pixels.len() / row_bytes;
    // A pixel of each row, with an unused fourth channel.
    let mut wide = vec![[0i32; 4 * ROWS]; width];
    for top in (0..height).step_by(ROWS) {
        // Where rows are lacking at the end, the last one is computed again.
        let rows: [usize; ROWS] = std::array::from_fn(|index| (top + index).min(height - 1));
        for (index, row) in rows.into_iter().enumerate() {
            let row = pixels[row * row_bytes..][..row_bytes]
                .as_chunks::<CHANNELS>()
                .0;
            for (wide, [red, green, blue]) in wide.iter_mut().zip(row) {
                wide[4 * index..][..4].copy_from_slice(&[*red, *green, *blue, 0].map(i32::from));
            }
        }
        for (place, window) in windows.iter().enumerate() {
            let mut sums = [HALF; 4 * ROWS];
            for (weight, pixel) in window.weights.iter().zip(&wide[window.first..]) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += value * weight;
                }
            }
            let bytes = sums.map(byte);
            for (index, row) in rows.into_iter().enumerate() {
                out[row * new_row_bytes + place * CHANNELS..][..CHANNELS]
                    .copy_from_slice(&bytes[4 * index..][..CHANNELS]);
            }
        }
    }
}

#[inline(always)]
fn along_columns(pixels: &[u8], height: usize, out: &mut [u8], windows: &[Window]) {
    let row_bytes = pixels.len() / height;
    if row_bytes == 0 {
        return;
    }
    let mut sums = vec![HALF; row_bytes];
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(row_bytes)) {
        sums.fill(HALF);
        let rows = pixels[window.first * row_bytes..].chunks_exact(row_bytes);
        for (weight, row) in window.weights.iter().zip(rows) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = byte(*sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILTERS: [Filter; 3] = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    /// One channel of one line, in real numbers: the mean under the filter, stretched where the line shrinks.
    fn real(line: &[u8], to: usize, filter: Filter) -> Vec<f64> {
        let scale = line.len() as f64 / to as f64;
        let stretch = scale.max(1.0);
        (0..to)
            .map(|place| {
                let centre = (place as f64 + 0.5) * scale - 0.5;
                let weights: Vec<f64> = (0..line.len())
                    .map(|pixel| filter.weight((pixel as f64 - centre) / stretch))
                    .collect();
                let total: f64 = weights.iter().sum();
                let mean = line
                    .iter()
                    .zip(&weights)
                    .map(|(value, weight)| f64::from(*value) * weight);
                (mean.sum::<f64>() / total).clamp(0.0, 255.0)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn both_axes_are_the_filtered_mean_and_the_same_on_every_instruction_set(
            (width, height) in (1usize..40, 1usize..12),
            to in 1usize..50,
            seed in prop::collection::vec(prop::sample::select(vec![0u8, 1, 100, 254, 255]), 3 * 40 * 12),
        ) {
            let pixels = &seed[..CHANNELS * width * height];
            for filter in FILTERS {
                let mut wide = vec![0; CHANNELS * to * height];
                resample_width(pixels, width, &mut wide, to, filter).unwrap();
                let mut tall = vec![0; CHANNELS * width * to];
                resample_height(pixels, height, &mut tall, to, filter).unwrap();
                for row in 0..height {
                    for channel in 0..CHANNELS {
                        let at = |place: usize, width: usize| (row * width + place) * CHANNELS + channel;
                        let line: Vec<u8> = (0..width).map(|place| pixels[at(place, width)]).collect();
                        for (place, mean) in real(&line, to, filter).into_iter().enumerate() {
                            prop_assert!((f64::from(wide[at(place, to)]) - mean).abs() < 0.501);
                        }
                    }
                }
                for column in 0..CHANNELS * width {
                    let line: Vec<u8> = (0..height).map(|row| pixels[row * CHANNELS * width + column]).collect();
                    for (row, mean) in real(&line, to, filter).into_iter().enumerate() {
                        prop_assert!((f64::from(tall[row * CHANNELS * width + column]) - mean).abs() < 0.501);
                    }
                }
                let mut plain = vec![0; wide.len()];
                along_rows(pixels, width, &mut plain, &windows(width, to, filter));
                prop_assert_eq!(&plain, &wide);
                let mut plain = vec![0; tall.len()];
                along_columns(pixels, height, &mut plain, &windows(height, to, filter));
                prop_assert_eq!(&plain, &tall);
            }
        }
    }

    #[test]
    fn slices_that_do_not_go_with_their_sizes_are_refused() {
        let mut out = [0; 12];
        for (pixels, width, new_width) in [(12, 0, 4), (12, 4, 0), (11, 4, 4), (12, 4, 2)] {
            let pixels = vec![0; pixels];
            let result = resample_width(&pixels, width, &mut out, new_width, Filter::Bicubic);
            assert!(
                matches!(result, Err(Error::Argument(_))),
                "{width} {new_width}"
            );
        }
    }
}
