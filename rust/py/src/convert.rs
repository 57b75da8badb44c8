//! Arguments and results of the bindings, and how they run.

use half::f16;
use mllm_selector_core as core;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::call::{UsageError, observed};

/// A matrix in parts, and the rows of it that are meant.
pub(crate) struct Matrix<'py> {
    parts: Vec<Part<'py>>,
    pub(crate) dim: usize,
    index: Option<Vec<usize>>,
}

enum Part<'py> {
    F16(PyReadonlyArray2<'py, f16>),
    F32(PyReadonlyArray2<'py, f32>),
}

impl<'py> Matrix<'py> {
    pub(crate) fn new(
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

    pub(crate) fn rows(&self) -> PyResult<core::Rows<'_>> {
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

pub(crate) fn usage(error: core::Error) -> PyErr {
    UsageError::new_err(error.to_string())
}

pub(crate) fn rows_of(index: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let place = |&row: &i64| {
        usize::try_from(row)
            .map_err(|_| UsageError::new_err(format!("row {row} is below 0; rows count from 0")))
    };
    index.as_slice()?.iter().map(place).collect()
}

pub(crate) fn numbers<'py>(py: Python<'py>, rows: Vec<usize>) -> Bound<'py, PyArray1<i64>> {
    rows.into_iter()
        .map(|row| row as i64)
        .collect::<Vec<_>>()
        .into_pyarray(py)
}

pub(crate) fn metric_of(name: &str) -> PyResult<core::Metric> {
    match name {
        "euclidean" => Ok(core::Metric::Euclidean),
        "cosine" => Ok(core::Metric::Cosine),
        _ => Err(UsageError::new_err(format!(
            "metric: '{name}' is not one of euclidean, cosine"
        ))),
    }
}

/// Runs `work` as [`observed`] does, in a pool of `threads` threads of its own (all cores if not given).
pub(crate) fn computed<T: Send>(
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
