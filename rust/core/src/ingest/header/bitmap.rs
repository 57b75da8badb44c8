//! BMP: headers of several versions, told apart by their length (Microsoft, "Bitmap header types").

use super::Picture;
use super::reader::{Reader, Step};

const CORE: u32 = 12;
const RLE: [u32; 2] = [1, 2];

/// Says whether a known header follows the two letters, which alone begin many a text.
pub(super) fn is_header(head: &[u8]) -> bool {
    let length = head
        .get(14..18)
        .map(|bytes| bytes.try_into().map(u32::from_le_bytes));
    matches!(length, Some(Ok(CORE | 16 | 40 | 52 | 56 | 64 | 108 | 124)))
}

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    let start = u64::from(reader.le32(10)?);
    let (width, height, bits, compression) = if reader.le32(14)? == CORE {
        let (width, height) = (reader.le16(18)?, reader.le16(20)?);
        (width.into(), height.into(), reader.le16(24)?, 0)
    } else {
        // The first line of a negative height is the upper one.
        let width = reader.le32(18)?.cast_signed().unsigned_abs();
        let height = reader.le32(22)?.cast_signed().unsigned_abs();
        (width, height, reader.le16(28)?, reader.le32(30)?)
    };
    let length = if RLE.contains(&compression) {
        u64::from(reader.le32(34)?)
    } else {
        // Lines are filled up to four bytes; sizes are at most 2^32, so nothing overflows.
        let line = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
        line.saturating_mul(height.into())
    };
    Ok(Picture {
        width,
        height,
        is_whole: start.saturating_add(length) <= reader.len(),
    })
}
