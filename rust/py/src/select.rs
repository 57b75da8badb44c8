//! Bindings of k-means and k-center.

use mllm_selector_core as core;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::convert::{Matrix, computed, metric_of, numbers, rows_of};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(kmeans, module)?)?;
    module.add_function(wrap_pyfunction!(k_center, module)?)
}

type Clusters<'py> = (
    Bound<'py, PyArray2<f32>>,
    Bound<'py, PyArray1<u32>>,
    f64,
    usize,
);

#[pyfunction]
#[pyo3(signature = (embeddings, index, *, k, metric, seed, max_iterations, tolerance, train_rows, threads, progress))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn kmeans<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    k: usize,
    metric: &str,
    seed: u64,
    max_iterations: usize,
    tolerance: f64,
    train_rows: Option<usize>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Clusters<'py>> {
    let metric = metric_of(metric)?;
    let options = core::KMeansOptions {
        k,
        metric,
        seed,
        max_iterations,
        tolerance,
        train_rows,
    };
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let clusters = computed(py, threads, progress, |observer| {
        core::kmeans(&rows, &options, observer)
    })?;
    let shape = [clusters.centroids.len() / matrix.dim, matrix.dim];
    let centroids = clusters.centroids.into_pyarray(py).reshape(shape)?;
    Ok((
        centroids,
        clusters.labels.into_pyarray(py),
        clusters.inertia,
        clusters.iterations,
    ))
}

type Cover<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f32>>);

#[pyfunction]
#[pyo3(signature = (embeddings, *, k, metric, first, weights, threads, progress, index=None))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn k_center<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    k: usize,
    metric: &str,
    first: Option<PyReadonlyArray1<'py, i64>>,
    weights: Option<PyReadonlyArray1<'py, f32>>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    index: Option<PyReadonlyArray1<'py, i64>>,
) -> PyResult<Cover<'py>> {
    let first = first.map(|first| rows_of(&first)).transpose()?;
    let options = core::KCenterOptions {
        k,
        metric: metric_of(metric)?,
        first: first
            .as_deref()
            .map_or(core::First::NearestMean, core::First::Rows),
        weights: weights
            .as_ref()
            .map(|weights| weights.as_slice())
            .transpose()?,
    };
    let matrix = Matrix::new(embeddings, index)?;
    let rows = matrix.rows()?;
    let cover = computed(py, threads, progress, |observer| {
        core::k_center(&rows, &options, observer)
    })?;
    Ok((numbers(py, cover.rows), cover.radii.into_pyarray(py)))
}
