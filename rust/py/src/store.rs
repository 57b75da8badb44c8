//! Images that Python fetches.

use std::sync::{Arc, Mutex};

use mllm_selector_core::ingest::ImageStore;
use mllm_selector_core::{Error, Result};
use pyo3::exceptions::PyFileNotFoundError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// An object with `url`, and `read(path, most)`, which returns bytes or raises `FileNotFoundError`.
#[derive(Debug)]
pub(crate) struct Store {
    object: Py<PyAny>,
    url: String,
    /// What it has raised otherwise.
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Store {
    pub(crate) fn new(
        py: Python<'_>,
        object: Py<PyAny>,
        raised: Arc<Mutex<Option<PyErr>>>,
    ) -> PyResult<Self> {
        let url = object.getattr(py, "url")?.extract(py)?;
        Ok(Self {
            object,
            url,
            raised,
        })
    }

    fn fetch(&self, py: Python<'_>, path: &str, most: Option<usize>) -> PyResult<Vec<u8>> {
        let content = self.object.bind(py).call_method1("read", (path, most))?;
        Ok(content.cast::<PyBytes>()?.as_bytes().to_vec())
    }

    fn raised(&self) -> std::sync::MutexGuard<'_, Option<PyErr>> {
        self.raised.lock().expect("nothing panics while it is held")
    }
}

impl ImageStore for Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn read(&self, path: &str, most: Option<usize>) -> Result<Option<Vec<u8>>> {
        // One request that has failed for good is enough.
        if self.raised().is_some() {
            return Err(Error::Interrupted);
        }
        Python::attach(|py| match self.fetch(py, path, most) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.is_instance_of::<PyFileNotFoundError>(py) => Ok(None),
            Err(error) => {
                self.raised().get_or_insert(error);
                Err(Error::Interrupted)
            }
        })
    }
}
