//! Bindings of ingest, pool reading and write-back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mllm_selector_core as core;
use mllm_selector_core::Compression;
use mllm_selector_core::ingest::{CheckImages, Format, Images, IngestOptions, Input, Summary};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call::{detached, observed};
use crate::rows;
use crate::store::Store;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash_file, module)?)?;
    module.add_function(wrap_pyfunction!(ingest, module)?)?;
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
    let (name, check_images) = (pool_format.to_owned(), check_images.to_owned());
    let inputs = inputs
        .into_iter()
        .map(|(path, source)| Input { path, source })
        .collect();
    // What `rows` and `store` raise keeps its class: the core only learns that it is to stop.
    let raised = Arc::new(Mutex::new(None));
    let store = store
        .map(|store| Store::new(py, store, Arc::clone(&raised)))
        .transpose()?;
    let outcome = observed(py, progress.as_ref(), |observer| {
        let format = match rows {
            // A program knows few formats, and for as long as it runs.
            Some(_) => Format::Rows(name.leak()),
            None => Format::from_name(&name)?,
        };
        let options = IngestOptions {
            images: match store {
                Some(store) => Some(Images::Store(Arc::new(store))),
                None => images.map(Images::Folder),
            },
            check_images: CheckImages::from_name(&check_images)?,
            max_image_pixels,
            source,
            columns: columns.unwrap_or_default(),
            turns_alternate,
            inserts_marks,
            renames_duplicates,
            strict,
            threads,
            ..IngestOptions::new(inputs, format, out, rejected)
        };
        let Some(callable) = &rows else {
            return core::ingest::ingest(&options, observer);
        };
        let open = |input: &Input| {
            Python::attach(|py| rows::open(py, callable, &input.path)).map_err(|error| {
                *raised.lock().expect("nothing panics while it is held") = Some(error);
                core::Error::Interrupted
            })
        };
        core::ingest::ingest_rows(&options, open, observer)
    });
    let raised = raised
        .lock()
        .expect("nothing panics while it is held")
        .take();
    match raised {
        Some(error) => Err(error),
        None => {
            let summary = outcome?;
            if let Some(hashed) = hashed {
                hashed.call1(py, (&summary.pool_hash, &summary.input_hashes))?;
            }
            as_dict(py, &summary)
        }
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
