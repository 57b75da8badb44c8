//! Content hashes, to tell one input from another.

use std::path::Path;

use crate::{Error, Result};

/// Returns the BLAKE3 hash of a file's content in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_mmap_rayon(path)
        .map_err(|source| Error::io("read", path, source))?;
    Ok(hasher.finalize().to_hex().to_string())
}
