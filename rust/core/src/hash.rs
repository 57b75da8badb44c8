//! Content hashes, to tell one input from another.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::{Error, Result};

/// How much is read and hashed at once.
const PIECE: usize = 8 << 20;

/// Returns the BLAKE3 hash of a file's content in hexadecimal.
///
/// The file is read, not mapped: the pages of a mapped one would count as this process's memory.
pub fn hash_file(path: &Path) -> Result<String> {
    let error = |source| Error::io("read", path, source);
    let mut file = File::open(path).map_err(error)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(read) => hasher.update_rayon(&piece[..read]),
            Err(source) if source.kind() == ErrorKind::Interrupted => continue,
            Err(source) => return Err(error(source)),
        };
    }
}
