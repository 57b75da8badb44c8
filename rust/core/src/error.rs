//! The one error type: what is wrong, where, and how to go on.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. The Python bindings map each variant to one exception class.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb ("open", "write").
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A pool, or a file made from one, is not what it should be.
    #[error("{0}")]
    Pool(String),
    /// An argument cannot work.
    #[error("{0}")]
    Argument(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Wraps an I/O error with the file and what was done to it.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
