//! Content hashes, to tell one input from another.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::path::Path;

use crate::{Error, Result};

/// How much is read and hashed at once. Two of these stand on a worker's stack: a process that has used up its
/// memory can still take the checksum of what it has finished.
const PIECE: usize = 128 << 10;

/// Returns the BLAKE3 hash of a file's content in hexadecimal.
///
/// The file is read, not mapped: the pages of a mapped one would count as this process's memory.
pub fn hash_file(path: &Path) -> Result<String> {
    let error = |source| Error::io("read", path, source);
    let mut file = File::open(path).map_err(error)?;
    // On a worker, from which joining costs next to nothing.
    let hash = rayon::scope(|_| hash_all(&mut file)).map_err(error)?;
    Ok(hash.to_hex().to_string())
}

/// Hashes a piece while the next one is read.
fn hash_all(file: &mut File) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut pieces = [[0; PIECE]; 2];
    let [piece, next] = &mut pieces;
    let (mut piece, mut next) = (piece, next);
    let mut length = read_some(file, piece)?;
    while length > 0 {
        let (_, read) = rayon::join(
            || hasher.update_rayon(&piece[..length]),
            || read_some(file, next),
        );
        length = read?;
        mem::swap(&mut piece, &mut next);
    }
    Ok(hasher.finalize())
}

fn read_some(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            outcome => return outcome,
        }
    }
}
