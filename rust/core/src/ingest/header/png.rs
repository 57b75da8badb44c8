//! PNG: the size is in the first chunk, IHDR, and the last one is IEND (W3C PNG, third edition, section 5).

use super::Picture;
use super::reader::{Reader, Step, Stop};

const IEND: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";
/// Chunks that are walked over at most; files are written with some thousands.
const MOST_CHUNKS: usize = 1 << 20;

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    if reader.bytes(8)? != *b"\0\0\0\x0dIHDR" {
        return Err(Stop::Wrong("its first chunk is not IHDR"));
    }
    Ok(Picture {
        width: reader.be32(16)?,
        height: reader.be32(20)?,
        is_whole: reader.tail(IEND.len())? == IEND || has_end(reader)?,
    })
}

/// Walks over the chunks: there may be bytes after the last one.
fn has_end(reader: &mut Reader<'_>) -> Step<bool> {
    let mut at = 8_u64;
    for _ in 0..MOST_CHUNKS {
        let length = reader.be32(at)?;
        let name: [u8; 4] = reader.bytes(at + 4)?;
        at += 12 + u64::from(length);
        if at > reader.len() || !name.iter().all(u8::is_ascii_alphabetic) {
            return Ok(false);
        }
        if name == *b"IEND" {
            return Ok(true);
        }
    }
    Ok(false)
}
