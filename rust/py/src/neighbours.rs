//! Bindings of near-duplicates, nearest neighbours and facility location.

use mllm_selector_core as core;
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::convert::{Matrix, computed, numbers, rows_of};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(near_duplicates, module)?)?;
    module.add_function(wrap_pyfunction!(near_duplicates_by_pairs, module)?)?;
    module.add_function(wrap_pyfunction!(nearest_neighbours, module)?)?;
    module.add_function(wrap_pyfunction!(facility_location, module)?)?;
    module.add_function(wrap_pyfunction!(facility_location_on, module)?)
}

#[pyfunction]
#[pyo3(signature = (embeddings, *, threshold, priority, threads, progress))]
fn near_duplicates<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    threshold: f64,
    priority: Option<PyReadonlyArray1<'py, i64>>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let priority = priority.map(|priority| rows_of(&priority)).transpose()?;
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let representatives = computed(py, threads, progress, |observer| {
        core::near_duplicates(&rows, threshold, priority.as_deref(), observer)
    })?;
    Ok(numbers(py, representatives))
}

type Duplicates<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray2<i64>>);

#[pyfunction]
#[pyo3(signature = (embeddings, *, threshold, priority, probes, threads, progress))]
fn near_duplicates_by_pairs<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    threshold: f64,
    priority: Option<PyReadonlyArray1<'py, i64>>,
    probes: Option<usize>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Duplicates<'py>> {
    let priority = priority.map(|priority| rows_of(&priority)).transpose()?;
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let found = computed(py, threads, progress, |observer| {
        core::near_duplicates_by_pairs(&rows, threshold, priority.as_deref(), probes, observer)
    })?;
    let count = found.pairs.len();
    let pairs = found.pairs.into_iter().flat_map(|(low, high)| [low, high]);
    Ok((
        numbers(py, found.representatives),
        numbers(py, pairs.collect()).reshape([count, 2])?,
    ))
}

type Graph<'py> = (
    Bound<'py, PyArray2<u32>>,
    Bound<'py, PyArray2<f32>>,
    Option<f64>,
);

#[pyfunction]
#[pyo3(signature = (embeddings, *, k, probes, threads, progress, index=None))]
fn nearest_neighbours<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    k: usize,
    probes: Option<usize>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    index: Option<PyReadonlyArray1<'py, i64>>,
) -> PyResult<Graph<'py>> {
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let (found, recall) = computed(py, threads, progress, |observer| {
        let found = core::nearest_neighbours(&rows, k, probes, observer)?;
        let recall = match probes {
            Some(_) => Some(core::recall(&rows, &found, observer)?),
            None => None,
        };
        Ok((found, recall))
    })?;
    let shape = [rows.len(), k];
    Ok((
        found.rows.into_pyarray(py).reshape(shape)?,
        found.cosines.into_pyarray(py).reshape(shape)?,
        recall,
    ))
}

type Facilities<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>);

fn facilities(py: Python<'_>, found: core::FacilityLocation) -> Facilities<'_> {
    (numbers(py, found.rows), found.gains.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (embeddings, *, k, neighbours, probes, weights, threads, progress))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn facility_location<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    k: usize,
    neighbours: usize,
    probes: Option<usize>,
    weights: Option<PyReadonlyArray1<'py, f32>>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Facilities<'py>> {
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let options = options(k, weights.as_ref())?;
    let found = computed(py, threads, progress, |observer| {
        core::facility_location_of_rows(&rows, neighbours, probes, &options, observer)
    })?;
    Ok(facilities(py, found))
}

#[pyfunction]
#[pyo3(signature = (rows, cosines, *, k, weights, threads, progress))]
fn facility_location_on<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray2<'py, u32>,
    cosines: PyReadonlyArray2<'py, f32>,
    k: usize,
    weights: Option<PyReadonlyArray1<'py, f32>>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Facilities<'py>> {
    let count = rows.shape()[1];
    let (rows, cosines) = (rows.as_slice()?, cosines.as_slice()?);
    let options = options(k, weights.as_ref())?;
    let found = computed(py, threads, progress, |observer| {
        let graph = core::Neighbours::from_parts(count, rows.to_vec(), cosines.to_vec())?;
        core::facility_location(&graph, &options, observer)
    })?;
    Ok(facilities(py, found))
}

fn options<'a>(
    k: usize,
    weights: Option<&'a PyReadonlyArray1<'_, f32>>,
) -> PyResult<core::FacilityOptions<'a>> {
    Ok(core::FacilityOptions {
        k,
        first: &[],
        weights: weights.map(|weights| weights.as_slice()).transpose()?,
    })
}
