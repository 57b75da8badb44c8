//! Bindings of ingest, pool reading and write-back.

use std::path::PathBuf;

use mllm_selector_core as core;
use pyo3::prelude::*;

use crate::call::detached;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash_file, module)?)
}

#[pyfunction]
fn hash_file(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    detached(py, || core::hash_file(&path))
}
