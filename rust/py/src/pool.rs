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
    module.add_class::<PoolFile>()?;
    module.add_class::<PoolColumns>()
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
        let rows = rows.as_slice()?;
        // In the file's order, for neighbours share pages of it.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_unstable_by_key(|&place| rows[place]);
        let mut found = vec![None; rows.len()];
        for place in order {
            found[place] = Some(self.row(py, rows[place])?);
        }
        PyList::new(py, found)
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

    /// Returns some columns, or all.
    #[pyo3(signature = (columns=None))]
    fn select(&self, columns: Option<Vec<String>>) -> PyResult<PoolColumns> {
        let file = self.0.columns();
        let columns = columns.unwrap_or_else(|| {
            let schema = file.schema();
            let names = schema.fields().iter().map(|field| field.name().clone());
            names.collect()
        });
        Ok(PoolColumns(file.select(&columns).map_err(to_python)?))
    }
}

/// Some columns of a pool file, for whoever reads Arrow streams.
#[pyclass(frozen, module = "mllm_selector._internal")]
struct PoolColumns(ArrowFile);

#[pymethods]
impl PoolColumns {
    /// Returns a stream that checks each batch as it is read; no other schema can be had.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(requested_schema);
        let batches = Batches {
            file: self.0.clone(),
            indices: 0..self.0.batches(),
        };
        let stream = FFI_ArrowArrayStream::new(Box::new(batches));
        PyCapsule::new_with_value(py, stream, STREAM)
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
