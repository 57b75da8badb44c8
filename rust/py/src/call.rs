//! How every long call into the core runs: without the GIL, stoppable, with its errors mapped.

use mllm_selector_core::{Error, Result};
use pyo3::exceptions::{PyFileNotFoundError, PyKeyboardInterrupt, PyOSError};
use pyo3::import_exception;
use pyo3::prelude::*;

import_exception!(mllm_selector.errors, PoolError);
import_exception!(mllm_selector.errors, UsageError);

/// Runs `work` without the GIL and maps its error.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(work).map_err(to_python)
}

fn to_python(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(text)
        }
        Error::Io { .. } => PyOSError::new_err(text),
        Error::Pool(_) => PoolError::new_err(text),
        Error::Argument(_) => UsageError::new_err(text),
        Error::Interrupted => PyKeyboardInterrupt::new_err(text),
    }
}
