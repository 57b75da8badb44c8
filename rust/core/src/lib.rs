//! Pool reading and diverse selection, without Python.
//!
//! Data flows from [`ingest`] (the user's file to an Arrow pool) through [`pool`] (memory-mapped reading)
//! to the selection algorithms. Nothing here prints, reads the environment or owns a global thread pool.

mod error;
mod files;
mod hash;
pub mod ingest;
mod observe;
pub mod pool;
pub mod writeback;

pub use error::{Error, Result};
pub use hash::hash_file;
pub use observe::Observer;
