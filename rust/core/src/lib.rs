//! Pool reading and diverse selection, without Python.
//!
//! Data flows from [`ingest`] (the user's file to an Arrow pool) through [`pool`] (memory-mapped reading)
//! to the selection algorithms. Nothing here prints, reads the environment or owns a global thread pool.

mod error;
mod hash;

pub use error::{Error, Result};
pub use hash::hash_file;
