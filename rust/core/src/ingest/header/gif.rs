//! GIF: the size is that of the screen or of a first picture that is larger (GIF89a).
//!
//! What counts is that the first picture is whole, the one shown to a model. The trailer is a single byte: cut-off
//! data may well end with it, and many a good file lacks it.

use super::Picture;
use super::reader::{Reader, Step, Stop};

const EXTENSION: u8 = 0x21;
const IMAGE: u8 = 0x2c;
/// How far blocks are walked over.
const MOST_WALKED: u64 = 256 << 20;

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    let (width, height) = (reader.le16(6)?, reader.le16(8)?);
    let mut at = 13 + colours(reader.byte(10)?);
    loop {
        match reader.byte(at)? {
            EXTENSION => at = after_blocks(reader, at + 2)?,
            IMAGE => break,
            _ => return Err(Stop::Wrong("it holds no picture")),
        }
    }
    let (left, top) = (reader.le16(at + 1)?, reader.le16(at + 3)?);
    let (own_width, own_height) = (reader.le16(at + 5)?, reader.le16(at + 7)?);
    // After the colours comes the size of the codes, then the data.
    let data = at + 10 + colours(reader.byte(at + 9)?) + 1;
    Ok(Picture {
        width: u32::from(width).max(u32::from(left) + u32::from(own_width)),
        height: u32::from(height).max(u32::from(top) + u32::from(own_height)),
        is_whole: after_blocks(reader, data).is_ok(),
    })
}

/// Bytes of a colour table, by the flags of the one who has it.
fn colours(flags: u8) -> u64 {
    if flags & 0x80 == 0 {
        return 0;
    }
    3 << ((flags & 7) + 1)
}

/// Walks over blocks, each after its length, to the empty one that ends them.
fn after_blocks(reader: &mut Reader<'_>, start: u64) -> Step<u64> {
    let mut at = start;
    while at < start + MOST_WALKED {
        match reader.byte(at)? {
            0 => return Ok(at + 1),
            length => at += 1 + u64::from(length),
        }
    }
    Err(Stop::Wrong("one of its blocks has no end"))
}
