//! Bindings of what a report shows of the embeddings: a flat picture, coverage, and what is near some rows.

use mllm_selector_core as core;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::convert::{Matrix, computed, numbers, rows_of};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(flat_map, module)?)?;
    module.add_function(wrap_pyfunction!(coverage, module)?)?;
    module.add_function(wrap_pyfunction!(near_rows, module)?)
}

/// Places of the rows along the two principal axes of some of them.
#[pyfunction]
#[pyo3(signature = (embeddings, index, *, sample, progress))]
fn flat_map<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    sample: PyReadonlyArray1<'py, i64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let sample = rows_of(&sample)?;
    let places = computed(py, None, progress, |observer| {
        let axes = core::principal_axes(&rows.subset(&sample)?, 2, observer)?;
        core::project(&rows, &axes, observer)
    })?;
    places.into_pyarray(py).reshape([rows.len(), 2])
}

#[pyfunction]
#[pyo3(signature = (embeddings, *, reference, centres, counts, progress))]
fn coverage<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    reference: PyReadonlyArray1<'py, i64>,
    centres: PyReadonlyArray1<'py, i64>,
    counts: PyReadonlyArray1<'py, i64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let (reference, centres, counts) =
        (rows_of(&reference)?, rows_of(&centres)?, rows_of(&counts)?);
    let distances = computed(py, None, progress, |observer| {
        core::coverage(&rows, &reference, &centres, &counts, observer)
    })?;
    distances
        .into_pyarray(py)
        .reshape([counts.len(), reference.len()])
}

type NearRows<'py> = (
    Bound<'py, PyArray1<i64>>,
    Vec<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>)>,
);

#[pyfunction]
#[pyo3(signature = (embeddings, index, *, queries, threshold, keep, progress))]
fn near_rows<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    queries: PyReadonlyArray1<'py, i64>,
    threshold: f64,
    keep: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<NearRows<'py>> {
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let queries = rows_of(&queries)?;
    let found = computed(py, None, progress, |observer| {
        core::near_rows(&rows, &queries, threshold, keep, observer)
    })?;
    let counts = numbers(py, found.iter().map(|near| near.count).collect());
    let nearest = found.into_iter().map(|near| {
        let (rows, cosines): (Vec<usize>, Vec<f32>) = near.nearest.into_iter().unzip();
        (numbers(py, rows), cosines.into_pyarray(py))
    });
    Ok((counts, nearest.collect()))
}
