//! How every long call into the core runs: without the GIL, stoppable, with its errors mapped.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use mllm_selector_core::{Error, Observer, Result};
use pyo3::exceptions::{PyFileNotFoundError, PyKeyboardInterrupt, PyOSError};
use pyo3::import_exception;
use pyo3::prelude::*;

import_exception!(mllm_selector.errors, PoolError);
import_exception!(mllm_selector.errors, UsageError);

/// How often Python's signals are looked at and progress is reported.
const TICK: Duration = Duration::from_millis(100);

/// Runs `work` without the GIL and maps its error.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(to_python)
}

/// Runs `work` without the GIL on a thread of its own, while this thread answers Ctrl-C and calls
/// `progress(done, total)` at most ten times a second.
///
/// Python handles signals on its main thread only, so the thread that called from Python must be the one
/// that waits. An exception, from a signal or from `progress`, stops the work and is raised once it has ended.
pub(crate) fn observed<T: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    work: impl FnOnce(&Observer) -> Result<T> + Send,
) -> PyResult<T> {
    let observer = Observer::default();
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<()>(0);
            let worker = scope.spawn(|| {
                // Dropped when the work ends, by a panic too, which wakes the waiting thread.
                let _sender = sender;
                work(&observer)
            });
            let mut shown = (0, 0);
            while receiver.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if let Err(raised) = report(progress, &observer, &mut shown) {
                    observer.stop();
                    // What the stopped work returns matters less than what stopped it.
                    let _ = worker.join();
                    return Err(raised);
                }
            }
            let result = worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(to_python)?;
            report(progress, &observer, &mut shown)?;
            Ok(result)
        })
    })
}

/// Looks at signals and calls `progress` if there is any since `shown`.
fn report(
    progress: Option<&Py<PyAny>>,
    observer: &Observer,
    shown: &mut (u64, u64),
) -> PyResult<()> {
    Python::attach(|py| {
        py.check_signals()?;
        let now = observer.progress();
        if let Some(progress) = progress
            && now != *shown
        {
            progress.call1(py, now)?;
            *shown = now;
        }
        Ok(())
    })
}

pub(crate) fn to_python(error: Error) -> PyErr {
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
