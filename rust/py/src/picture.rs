//! Bindings of the resizing of pictures.

use mllm_selector_core as core;
use numpy::{PyReadonlyArray3, PyReadwriteArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::call::{UsageError, detached};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(resample, module)?)
}

/// Resizes a picture along one axis into `out`, which is Python's, so that a lack of memory is an exception.
#[pyfunction]
fn resample(
    py: Python<'_>,
    pixels: PyReadonlyArray3<'_, u8>,
    mut out: PyReadwriteArray3<'_, u8>,
    interpolation: &str,
) -> PyResult<()> {
    let filter = match interpolation {
        "bilinear" => core::Filter::Bilinear,
        "bicubic" => core::Filter::Bicubic,
        "lanczos" => core::Filter::Lanczos,
        _ => {
            return Err(UsageError::new_err(format!(
                "{interpolation:?}: bilinear, bicubic or lanczos"
            )));
        }
    };
    let (from, to) = (shape(pixels.shape()), shape(out.shape()));
    let (pixels, out) = (pixels.as_slice()?, out.as_slice_mut()?);
    detached(py, || match (from, to) {
        ([height, width, 3], [new_height, new_width, 3]) if height == new_height => {
            core::resample_width(pixels, width, out, new_width, filter)
        }
        ([height, width, 3], [new_height, new_width, 3]) if width == new_width => {
            core::resample_height(pixels, height, out, new_height, filter)
        }
        _ => Err(core::Error::Argument(format!(
            "a picture of shape {from:?} cannot become one of {to:?} along one axis"
        ))),
    })
}

fn shape(shape: &[usize]) -> [usize; 3] {
    [shape[0], shape[1], shape[2]]
}
