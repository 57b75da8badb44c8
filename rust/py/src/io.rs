//! Bindings of ingest, pool reading and write-back.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mllm_selector_core as core;
use mllm_selector_core::ingest::{
    CheckImages, Format, Images, IngestOptions, Input, RowStream, Summary,
};
use mllm_selector_core::{Compression, Observer, Result};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::call::{detached, observed, to_python};
use crate::rows;
use crate::store::Store;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash_file, module)?)?;
    module.add_function(wrap_pyfunction!(ingest, module)?)?;
    module.add_function(wrap_pyfunction!(read_part, module)?)?;
    module.add_function(wrap_pyfunction!(join_parts, module)?)?;
    module.add_function(wrap_pyfunction!(recognise, module)?)?;
    module.add_function(wrap_pyfunction!(compression_suffix, module)?)?;
    module.add_function(wrap_pyfunction!(write_subset, module)?)
}

#[pyfunction]
fn hash_file(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    detached(py, || core::hash_file(&path))
}

#[pyfunction]
fn recognise(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Option<&'static str>> {
    detached(
        py,
        || Ok(core::ingest::recognise(&paths)?.map(Format::name)),
    )
}

#[pyfunction]
fn compression_suffix(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<&'static str> {
    let compression = detached(py, || core::writeback::common_compression(&paths))?;
    Ok(match compression {
        Compression::Plain => "",
        Compression::Gzip => ".gz",
        Compression::Zstd => ".zst",
    })
}

#[pyfunction]
#[pyo3(signature = (
    inputs, pool_format, out, rejected, *, images=None, store=None, check_images="header",
    max_image_pixels=89_478_485, source=None, columns=None, turns_alternate=true, inserts_marks=None,
    renames_duplicates=true, strict=false, threads=None, progress=None, rows=None, hashed=None
))]
// One argument an option, so that Python names them.
#[allow(clippy::too_many_arguments)]
fn ingest<'py>(
    py: Python<'py>,
    inputs: Vec<(PathBuf, Option<String>)>,
    pool_format: &str,
    out: PathBuf,
    rejected: PathBuf,
    images: Option<PathBuf>,
    store: Option<Py<PyAny>>,
    check_images: &str,
    max_image_pixels: u64,
    source: Option<String>,
    columns: Option<BTreeMap<String, String>>,
    turns_alternate: bool,
    inserts_marks: Option<bool>,
    renames_duplicates: bool,
    strict: bool,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    rows: Option<Py<PyAny>>,
    hashed: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = IngestOptions {
        check_images: CheckImages::from_name(check_images).map_err(to_python)?,
        max_image_pixels,
        source,
        columns: columns.unwrap_or_default(),
        turns_alternate,
        inserts_marks,
        renames_duplicates,
        strict,
        threads,
        ..IngestOptions::new(
            listed(inputs),
            format(pool_format, rows.is_some())?,
            out,
            rejected,
        )
    };
    let outside = Outside {
        images,
        store,
        rows,
    };
    let summary = outside.run(
        py,
        options,
        progress.as_ref(),
        core::ingest::ingest,
        |options, open, observer| core::ingest::ingest_rows(options, open, observer),
    )?;
    told(py, &summary, hashed)
}

#[pyfunction]
#[pyo3(signature = (
    entry, pool_format, out, *, images=None, store=None, check_images="header",
    max_image_pixels=89_478_485, source=None, columns=None, turns_alternate=true, inserts_marks=None,
    strict=false, threads=None, rows=None
))]
// One argument an option, so that Python names them.
#[allow(clippy::too_many_arguments)]
fn read_part(
    py: Python<'_>,
    entry: (PathBuf, Option<String>),
    pool_format: &str,
    out: Py<PyAny>,
    images: Option<PathBuf>,
    store: Option<Py<PyAny>>,
    check_images: &str,
    max_image_pixels: u64,
    source: Option<String>,
    columns: Option<BTreeMap<String, String>>,
    turns_alternate: bool,
    inserts_marks: Option<bool>,
    strict: bool,
    threads: Option<usize>,
    rows: Option<Py<PyAny>>,
) -> PyResult<()> {
    let options = IngestOptions {
        check_images: CheckImages::from_name(check_images).map_err(to_python)?,
        max_image_pixels,
        source,
        columns: columns.unwrap_or_default(),
        turns_alternate,
        inserts_marks,
        strict,
        threads,
        ..IngestOptions::new(
            listed(vec![entry]),
            format(pool_format, rows.is_some())?,
            PathBuf::new(),
            PathBuf::new(),
        )
    };
    let outside = Outside {
        images,
        store,
        rows,
    };
    outside.run(
        py,
        options,
        None,
        |options, observer| core::ingest::read_part(options, PyFile(&out), observer),
        |options, open, observer| {
            core::ingest::read_part_of_rows(options, open, PyFile(&out), observer)
        },
    )
}

#[pyfunction]
#[pyo3(signature = (
    inputs, pool_format, parts, out, rejected, *, renames_duplicates=true, strict=false, threads=None,
    progress=None, hashed=None
))]
// One argument an option, so that Python names them.
#[allow(clippy::too_many_arguments)]
fn join_parts<'py>(
    py: Python<'py>,
    inputs: Vec<(PathBuf, Option<String>)>,
    pool_format: &str,
    parts: Vec<PathBuf>,
    out: PathBuf,
    rejected: PathBuf,
    renames_duplicates: bool,
    strict: bool,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    hashed: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    // Of a format's own, a part needs no more than the name, which a format of rows has too.
    let format = Format::from_name(pool_format).unwrap_or_else(|_| rows_of(pool_format));
    let options = IngestOptions {
        renames_duplicates,
        strict,
        threads,
        ..IngestOptions::new(listed(inputs), format, out, rejected)
    };
    let summary = observed(py, progress.as_ref(), |observer| {
        core::ingest::join_parts(&options, &parts, observer)
    })?;
    told(py, &summary, hashed)
}

fn listed(inputs: Vec<(PathBuf, Option<String>)>) -> Vec<Input> {
    let inputs = inputs.into_iter();
    inputs
        .map(|(path, source)| Input { path, source })
        .collect()
}

fn format(name: &str, has_rows: bool) -> PyResult<Format> {
    if has_rows {
        return Ok(rows_of(name));
    }
    Format::from_name(name).map_err(to_python)
}

fn rows_of(name: &str) -> Format {
    // A program knows few formats, and for as long as it runs.
    Format::Rows(name.to_owned().leak())
}

fn told<'py>(
    py: Python<'py>,
    summary: &Summary,
    hashed: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    if let Some(hashed) = hashed {
        hashed.call1(py, (&summary.pool_hash, &summary.input_hashes))?;
    }
    as_dict(py, summary)
}

/// What reading a pool asks Python for.
struct Outside {
    images: Option<PathBuf>,
    store: Option<Py<PyAny>>,
    rows: Option<Py<PyAny>>,
}

impl Outside {
    /// Runs one of two calls, the second where Python opens the inputs as rows.
    ///
    /// What Python raises keeps its class: the core only learns that it is to stop.
    fn run<T: Send>(
        self,
        py: Python<'_>,
        mut options: IngestOptions,
        progress: Option<&Py<PyAny>>,
        read: impl FnOnce(&IngestOptions, &Observer) -> Result<T> + Send,
        read_rows: impl FnOnce(&IngestOptions, &mut Open<'_>, &Observer) -> Result<T> + Send,
    ) -> PyResult<T> {
        let raised = Arc::new(Mutex::new(None));
        options.images = match self.store {
            Some(store) => {
                let store = Store::new(py, store, Arc::clone(&raised))?;
                Some(Images::Store(Arc::new(store)))
            }
            None => self.images.map(Images::Folder),
        };
        let outcome = observed(py, progress, |observer| {
            let Some(callable) = &self.rows else {
                return read(&options, observer);
            };
            let mut open = |input: &Input| {
                Python::attach(|py| rows::open(py, callable, &input.path)).map_err(|error| {
                    *raised.lock().expect("nothing panics while it is held") = Some(error);
                    core::Error::Interrupted
                })
            };
            read_rows(&options, &mut open, observer)
        });
        let raised = raised
            .lock()
            .expect("nothing panics while it is held")
            .take();
        raised.map_or(outcome, Err)
    }
}

type Open<'a> = dyn FnMut(&Input) -> Result<RowStream> + 'a;

/// A file of Python's, open for writing.
struct PyFile<'a>(&'a Py<PyAny>);

impl Write for PyFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Python::attach(|py| {
            let bytes = PyBytes::new(py, bytes);
            Ok(self.0.call_method1(py, "write", (bytes,))?.extract(py)?)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Python::attach(|py| Ok(self.0.call_method0(py, "flush").map(drop)?))
    }
}

fn as_dict<'py>(py: Python<'py>, summary: &Summary) -> PyResult<Bound<'py, PyDict>> {
    let rejected = PyDict::new(py);
    for (reason, count) in &summary.rejected {
        rejected.set_item(reason.code(), count)?;
    }
    let counts = PyDict::new(py);
    counts.set_item("samples", summary.samples)?;
    counts.set_item("rejected", rejected)?;
    counts.set_item("renamed", summary.renamed)?;
    counts.set_item("text_only", summary.text_only)?;
    counts.set_item("multi_image", summary.multi_image)?;
    counts.set_item("multi_turn", summary.multi_turn)?;
    counts.set_item("images", summary.images)?;
    counts.set_item("sources", &summary.sources)?;
    counts.set_item("bytes", summary.bytes)?;
    Ok(counts)
}

#[pyfunction]
#[pyo3(signature = (pool, rows, inputs, out, *, progress=None))]
fn write_subset(
    py: Python<'_>,
    pool: PathBuf,
    rows: PyReadonlyArray1<'_, u64>,
    inputs: Vec<PathBuf>,
    out: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let rows = rows.as_slice()?;
    observed(py, progress.as_ref(), |observer| {
        core::writeback::write_subset(&pool, rows, &inputs, &out, observer)
    })
}
