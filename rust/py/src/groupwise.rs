//! Bindings of what is computed inside groups, and of penalised greedy choice.

use mllm_selector_core as core;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::convert::{Matrix, computed, numbers, rows_of};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(kernel_sums, module)?)?;
    module.add_function(wrap_pyfunction!(greedy_mmd, module)?)?;
    module.add_function(wrap_pyfunction!(typicality, module)?)?;
    module.add_function(wrap_pyfunction!(redundancy, module)?)?;
    module.add_function(wrap_pyfunction!(penalised, module)?)
}

#[pyfunction]
#[pyo3(signature = (embeddings, index, groups, *, bandwidth, threads, progress))]
fn kernel_sums<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    groups: PyReadonlyArray1<'py, u32>,
    bandwidth: f64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let (rows, groups) = (matrix.rows()?, groups.as_slice()?);
    let sums = computed(py, threads, progress, |observer| {
        core::kernel_sums(&rows, groups, bandwidth, observer)
    })?;
    Ok(sums.into_pyarray(py))
}

/// The rows chosen from each group, group after group.
#[pyfunction]
#[pyo3(signature = (embeddings, index, groups, *, sums, is_open, taken, quotas, bandwidth, threads, progress))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn greedy_mmd<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    groups: PyReadonlyArray1<'py, u32>,
    sums: PyReadonlyArray1<'py, f64>,
    is_open: PyReadonlyArray1<'py, bool>,
    taken: PyReadonlyArray1<'py, i64>,
    quotas: PyReadonlyArray1<'py, i64>,
    bandwidth: f64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let (rows, groups) = (matrix.rows()?, groups.as_slice()?);
    let (taken, quotas) = (rows_of(&taken)?, rows_of(&quotas)?);
    let options = core::MmdOptions {
        sums: sums.as_slice()?,
        open: is_open.as_slice()?,
        taken: &taken,
        quotas: &quotas,
        bandwidth,
    };
    let chosen = computed(py, threads, progress, |observer| {
        core::greedy_mmd(&rows, groups, &options, observer)
    })?;
    Ok(numbers(py, chosen.into_iter().flatten().collect()))
}

#[pyfunction]
#[pyo3(signature = (embeddings, index, groups, *, count, threads, progress))]
fn typicality<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    groups: PyReadonlyArray1<'py, u32>,
    count: usize,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let (rows, groups) = (matrix.rows()?, groups.as_slice()?);
    let means = computed(py, threads, progress, |observer| {
        core::typicality(&rows, groups, count, observer)
    })?;
    Ok(means.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (embeddings, index, groups, *, threads, progress))]
fn redundancy<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    groups: PyReadonlyArray1<'py, u32>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let (rows, groups) = (matrix.rows()?, groups.as_slice()?);
    let greatest = computed(py, threads, progress, |observer| {
        core::redundancy(&rows, groups, observer)
    })?;
    Ok(greatest.into_pyarray(py))
}

#[pyfunction]
#[pyo3(signature = (embeddings, index, difficulty, *, k, first, neighbours, gamma, threads, progress))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn penalised<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    difficulty: PyReadonlyArray1<'py, f64>,
    k: usize,
    first: PyReadonlyArray1<'py, i64>,
    neighbours: usize,
    gamma: f64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let first = rows_of(&first)?;
    let options = core::PenaltyOptions {
        k,
        first: &first,
        neighbours,
        gamma,
    };
    let difficulty = difficulty.as_slice()?;
    let chosen = computed(py, threads, progress, |observer| {
        core::penalised(&rows, difficulty, &options, observer)
    })?;
    Ok(numbers(py, chosen))
}
