//! Bindings of pool files: rows as tuples, columns as Arrow streams.

use std::ffi::CStr;
use std::ops::Range;
use std::path::PathBuf;

use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};
use mllm_selector_core::pool::{self, ArrowFile, PoolRow};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyList, PyString, PyTuple};

use crate::call::{detached, to_python};

/// Name that the Arrow PyCapsule interface gives to streams.
const STREAM: &CStr = c"arrow_array_stream";

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PoolFile>()
}

/// A memory-mapped pool file.
#[pyclass(frozen, module = "mllm_selector._internal")]
struct PoolFile(pool::PoolFile);

#[pymethods]
impl PoolFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || pool::PoolFile::open(&path)).map(Self)
    }

    fn __len__(&self) -> usize {
        self.0.columns().rows() as usize
    }

    /// Returns the first row of each batch, then the number of rows.
    #[getter]
    fn starts(&self) -> Vec<u64> {
        self.0.columns().starts().to_vec()
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.0.columns().metadata(key)
    }

    fn row<'py>(&self, py: Python<'py>, row: u64) -> PyResult<Bound<'py, PyTuple>> {
        as_tuple(py, &self.0.row(row).map_err(to_python)?)
    }

    fn rows<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'_, u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = PyList::empty(py);
        for &row in rows.as_slice()? {
            found.append(self.row(py, row)?)?;
        }
        Ok(found)
    }

    fn ids<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'_, u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = PyList::empty(py);
        for &row in rows.as_slice()? {
            found.append(self.0.id(row).map_err(to_python)?)?;
        }
        Ok(found)
    }

    /// Returns some columns of some batches, all by default, as an Arrow stream that checks each batch.
    #[pyo3(signature = (columns=None, batches=None))]
    fn stream<'py>(
        &self,
        py: Python<'py>,
        columns: Option<Vec<String>>,
        batches: Option<(usize, usize)>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let file = self.0.columns();
        let columns = match columns {
            Some(names) => names,
            None => file
                .schema()
                .fields()
                .iter()
                .map(|field| field.name().clone())
                .collect(),
        };
        let (first, end) = batches.unwrap_or((0, file.batches()));
        let stream = Batches {
            file: file.select(&columns).map_err(to_python)?,
            indices: first..end.min(file.batches()),
        };
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(stream)), STREAM)
    }
}

fn as_tuple<'py>(py: Python<'py>, row: &PoolRow<'_>) -> PyResult<Bound<'py, PyTuple>> {
    let messages = row
        .messages
        .iter()
        // Three roles make up all of them.
        .map(|(role, content)| (PyString::intern(py, role), *content).into_pyobject(py))
        .collect::<PyResult<Vec<_>>>()?;
    let images = row
        .images
        .iter()
        .map(|image| {
            let bytes = image.bytes.map(|bytes| PyBytes::new(py, bytes));
            (image.path, bytes, image.range).into_pyobject(py)
        })
        .collect::<PyResult<Vec<_>>>()?;
    (
        row.id,
        row.source,
        PyTuple::new(py, messages)?,
        PyTuple::new(py, images)?,
        row.file,
    )
        .into_pyobject(py)
}

/// Batches that are read as a consumer asks for them.
struct Batches {
    file: ArrowFile,
    indices: Range<usize>,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.file.batch(self.indices.next()?);
        Some(batch.map_err(|error| ArrowError::InvalidArgumentError(error.to_string())))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        self.file.schema().into()
    }
}
