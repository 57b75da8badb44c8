//! Rows handed over from Python as Arrow C streams.

use std::path::Path;

use arrow_array::RecordBatchReader;
use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use mllm_selector_core::ingest::RowStream;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::call::PoolError;

/// Calls `open(path)`, which returns an object with `__arrow_c_stream__`, the number of rows in it, and address
/// and size of the memory that its file is mapped to (0, 0 if it is not).
pub(crate) fn open(py: Python<'_>, open: &Py<PyAny>, path: &Path) -> PyResult<RowStream> {
    let opened = open.bind(py).call1((path,))?;
    let (stream, rows, (address, size)): (Bound<'_, PyAny>, u64, (usize, usize)) =
        opened.extract()?;
    let capsule = stream.call_method0("__arrow_c_stream__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let pointer = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: a capsule of this name holds a valid stream (Arrow PyCapsule interface), which is moved out of
    // it: what stays behind is marked as released.
    let reader = unsafe {
        RecordBatchStreamReader::from_raw(pointer.cast::<FFI_ArrowArrayStream>().as_ptr())
    };
    let reader =
        reader.map_err(|error| PoolError::new_err(format!("{}: {error}", path.display())))?;
    Ok(RowStream {
        schema: reader.schema(),
        batches: Box::new(reader),
        rows,
        mapped: (size > 0).then(|| address..address + size),
    })
}
