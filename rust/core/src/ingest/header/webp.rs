//! WebP: a RIFF file that says its own length (RFC 9649).

use super::Picture;
use super::reader::{Reader, Step, Stop};

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    let end = 8 + u64::from(reader.le32(4)?);
    let (width, height) = match &reader.bytes(12)? {
        b"VP8 " => lossy(reader)?,
        b"VP8L" => lossless(reader)?,
        b"VP8X" => (le24(reader, 24)? + 1, le24(reader, 27)? + 1),
        _ => return Err(Stop::Wrong("its first chunk is not VP8, VP8L or VP8X")),
    };
    Ok(Picture {
        width,
        height,
        is_whole: end <= reader.len(),
    })
}

fn lossy(reader: &mut Reader<'_>) -> Step<(u32, u32)> {
    // Three bytes of frame tag stand before the start code (RFC 6386, section 9.1).
    if reader.bytes(23)? != [0x9d, 0x01, 0x2a] {
        return Err(Stop::Wrong("its VP8 chunk is not a key frame"));
    }
    // The upper two bits say how the picture may be enlarged.
    let side = |bits: u16| u32::from(bits & 0x3fff);
    Ok((side(reader.le16(26)?), side(reader.le16(28)?)))
}

fn lossless(reader: &mut Reader<'_>) -> Step<(u32, u32)> {
    if reader.byte(20)? != 0x2f {
        return Err(Stop::Wrong("its VP8L chunk has no signature"));
    }
    let bits = reader.le32(21)?;
    Ok(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
}

fn le24(reader: &mut Reader<'_>, at: u64) -> Step<u32> {
    let [low, middle, high] = reader.bytes(at)?;
    Ok(u32::from_le_bytes([low, middle, high, 0]))
}
