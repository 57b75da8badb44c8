//! Bindings of the selection algorithms.

use half::f16;
use mllm_selector_core as core;
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::call::{UsageError, observed};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(kmeans, module)?)?;
    module.add_function(wrap_pyfunction!(k_center, module)?)?;
    module.add_function(wrap_pyfunction!(near_duplicates, module)?)?;
    module.add_function(wrap_pyfunction!(near_duplicate_pairs, module)?)?;
    module.add_function(wrap_pyfunction!(strata, module)?)?;
    module.add_function(wrap_pyfunction!(random_groups, module)?)?;
    module.add_function(wrap_pyfunction!(check_limits, module)?)?;
    module.add_function(wrap_pyfunction!(grouped_sample, module)?)
}

/// A matrix in parts, and the rows of it that are meant.
struct Matrix<'py> {
    parts: Vec<Part<'py>>,
    dim: usize,
    index: Option<Vec<usize>>,
}

enum Part<'py> {
    F16(PyReadonlyArray2<'py, f16>),
    F32(PyReadonlyArray2<'py, f32>),
}

impl<'py> Matrix<'py> {
    fn new(
        parts: &Bound<'py, PyList>,
        index: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Self> {
        let parts: Vec<Part<'py>> = parts
            .iter()
            .map(|part| match part.extract::<PyReadonlyArray2<'py, f16>>() {
                Ok(part) => Ok(Part::F16(part)),
                Err(_) => Ok(Part::F32(part.extract()?)),
            })
            .collect::<PyResult<_>>()?;
        let widths = parts.iter().map(|part| match part {
            Part::F16(part) => part.shape()[1],
            Part::F32(part) => part.shape()[1],
        });
        let dim = widths.max().unwrap_or(0);
        let index = index.map(|index| rows_of(&index)).transpose()?;
        Ok(Self { parts, dim, index })
    }

    fn rows(&self) -> PyResult<core::Rows<'_>> {
        let chunks = self
            .parts
            .iter()
            .map(|part| {
                Ok(match part {
                    Part::F16(part) => core::Chunk::F16(part.as_slice()?),
                    Part::F32(part) => core::Chunk::F32(part.as_slice()?),
                })
            })
            .collect::<PyResult<Vec<_>>>()?;
        let rows = core::Rows::new(chunks, self.dim).map_err(usage)?;
        match &self.index {
            Some(index) => rows.subset(index).map_err(usage),
            None => Ok(rows),
        }
    }
}

fn usage(error: core::Error) -> PyErr {
    UsageError::new_err(error.to_string())
}

fn rows_of(index: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let place = |&row: &i64| {
        usize::try_from(row)
            .map_err(|_| UsageError::new_err(format!("row {row} is below 0; rows count from 0")))
    };
    index.as_slice()?.iter().map(place).collect()
}

fn numbers<'py>(py: Python<'py>, rows: Vec<usize>) -> Bound<'py, PyArray1<i64>> {
    rows.into_iter()
        .map(|row| row as i64)
        .collect::<Vec<_>>()
        .into_pyarray(py)
}

fn metric_of(name: &str) -> PyResult<core::Metric> {
    match name {
        "euclidean" => Ok(core::Metric::Euclidean),
        "cosine" => Ok(core::Metric::Cosine),
        _ => Err(UsageError::new_err(format!(
            "metric: '{name}' is not one of euclidean, cosine"
        ))),
    }
}

/// Runs `work` as [`observed`] does, in a pool of `threads` threads of its own (all cores if not given).
fn computed<T: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&core::Observer) -> core::Result<T> + Send,
) -> PyResult<T> {
    observed(py, progress.as_ref(), |observer| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .build()
            .map_err(|error| {
                core::Error::Argument(format!(
                    "threads: cannot start them: {error}; ask for fewer"
                ))
            })?;
        pool.install(|| work(observer))
    })
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
#[pyo3(signature = (embeddings, *, k, metric, first, weights, threads, progress))]
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
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let cover = computed(py, threads, progress, |observer| {
        core::k_center(&rows, &options, observer)
    })?;
    Ok((numbers(py, cover.rows), cover.radii.into_pyarray(py)))
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

#[pyfunction]
#[pyo3(signature = (embeddings, *, threshold, threads, progress))]
fn near_duplicate_pairs<'py>(
    py: Python<'py>,
    embeddings: &Bound<'py, PyList>,
    threshold: f64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray2<i64>>> {
    let matrix = Matrix::new(embeddings, None)?;
    let rows = matrix.rows()?;
    let pairs = computed(py, threads, progress, |observer| {
        core::near_duplicate_pairs(&rows, threshold, observer)
    })?;
    let count = pairs.len();
    let flat = pairs
        .into_iter()
        .flat_map(|(low, high)| [low, high])
        .collect();
    numbers(py, flat).reshape([count, 2])
}

#[pyfunction]
fn strata<'py>(
    py: Python<'py>,
    necessity: PyReadonlyArray1<'py, f32>,
    count: usize,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    Ok(core::strata(necessity.as_slice()?, count).into_pyarray(py))
}

#[pyfunction]
fn random_groups(py: Python<'_>, size: usize, count: usize, seed: u64) -> Bound<'_, PyArray1<u32>> {
    core::random_groups(size, count, seed).into_pyarray(py)
}

/// Name, floor and ceiling of a source.
type Limit = (String, u64, u64);

fn limits_of(limits: Vec<Limit>) -> Vec<core::Limit> {
    let limit = |(name, floor, ceiling)| core::Limit {
        name,
        floor,
        ceiling,
    };
    limits.into_iter().map(limit).collect()
}

#[pyfunction]
fn check_limits(budget: u64, limits: Vec<Limit>, available: Vec<u64>) -> PyResult<()> {
    let stock = |available| core::Stock {
        taken: 0,
        available,
    };
    let stocks: Vec<_> = available.into_iter().map(stock).collect();
    core::check_limits(budget, &limits_of(limits), &stocks).map_err(usage)
}

#[pyfunction]
#[pyo3(signature = (
    necessity, groups, included, embeddings, index, *, sources, limits, budget, share, within, trim, skip_duplicates,
    seed, threads, progress
))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of a Python function"
)]
fn grouped_sample<'py>(
    py: Python<'py>,
    necessity: PyReadonlyArray1<'py, f32>,
    groups: PyReadonlyArray1<'py, u32>,
    included: PyReadonlyArray1<'py, i64>,
    embeddings: Option<&Bound<'py, PyList>>,
    index: Option<PyReadonlyArray1<'py, i64>>,
    sources: Option<PyReadonlyArray1<'py, u32>>,
    limits: Vec<Limit>,
    budget: usize,
    share: &str,
    within: &str,
    trim: f64,
    skip_duplicates: Option<f64>,
    seed: u64,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let options = core::GroupedOptions {
        budget,
        share: share_of(share)?,
        within: within_of(within)?,
        trim,
        skip_duplicates,
        seed,
    };
    let matrix = embeddings
        .map(|parts| Matrix::new(parts, index))
        .transpose()?;
    let rows = matrix.as_ref().map(Matrix::rows).transpose()?;
    let included = rows_of(&included)?;
    let of_source = limits_of(limits);
    let limits = match &sources {
        Some(sources) => Some(core::Limits {
            sources: sources.as_slice()?,
            of_source: &of_source,
        }),
        None => None,
    };
    let candidates = core::Candidates {
        necessity: necessity.as_slice()?,
        groups: groups.as_slice()?,
        included: &included,
        embeddings: rows.as_ref(),
        limits,
    };
    let chosen = computed(py, threads, progress, |observer| {
        core::grouped_sample(&candidates, &options, observer)
    })?;
    Ok(numbers(py, chosen))
}

fn share_of(name: &str) -> PyResult<core::Share> {
    match name {
        "size-necessity" => Ok(core::Share::SizeNecessity),
        "necessity" => Ok(core::Share::Necessity),
        "size" => Ok(core::Share::Size),
        "equal" => Ok(core::Share::Equal),
        _ => Err(UsageError::new_err(format!(
            "share: '{name}' is not one of size-necessity, necessity, size, equal"
        ))),
    }
}

fn within_of(name: &str) -> PyResult<core::Within> {
    match name {
        "uniform" => Ok(core::Within::Uniform),
        "top" => Ok(core::Within::Top),
        "weighted" => Ok(core::Within::Weighted),
        "k-center" => Ok(core::Within::KCenter),
        "middle" => Ok(core::Within::Middle),
        _ => Err(UsageError::new_err(format!(
            "within: '{name}' is not one of uniform, top, weighted, k-center, middle"
        ))),
    }
}
