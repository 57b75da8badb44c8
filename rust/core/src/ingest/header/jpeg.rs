//! JPEG: the size is in the frame header, and EOI ends the file (ITU-T T.81, annex B).

use memchr::memmem;

use super::Picture;
use super::reader::{Reader, Step, Stop};

const EOI: [u8; 2] = [0xff, 0xd9];
/// Segments, and bytes of junk between them, before the picture's data.
const MOST_SEGMENTS: usize = 4096;
const MOST_JUNK: usize = 1 << 16;
/// How far the end is looked for where other data follows it.
const TAIL: usize = 1 << 16;
const MOST_SEARCHED: u64 = 256 << 20;

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    let mut size = None;
    let mut at = 2_u64;
    for _ in 0..MOST_SEGMENTS {
        let marker = next_marker(reader, &mut at)?;
        match marker {
            // TEM and the restart markers stand alone.
            0x01 | 0xd0..=0xd8 => continue,
            0xd9 => return Err(Stop::Wrong("it ends before its picture begins")),
            _ => {}
        }
        let length = reader.be16(at)?;
        if length < 2 {
            return Err(Stop::Wrong("one of its segments has an impossible length"));
        }
        match (marker, size) {
            // All frame headers; between them stand DHT, JPG and DAC.
            (0xc0..=0xcf, _) if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                size = Some((reader.be16(at + 5)?, reader.be16(at + 3)?));
            }
            (0xda, None) => return Err(Stop::Wrong("it has a scan before its frame")),
            (0xda, Some((width, height))) => {
                return Ok(Picture {
                    width: width.into(),
                    height: height.into(),
                    is_whole: has_end(reader, at)?,
                });
            }
            _ => {}
        }
        at += u64::from(length);
    }
    Err(Stop::Wrong("it has thousands of segments and no picture"))
}

/// Passes the next marker, and the filling or junk before it, as libjpeg does.
fn next_marker(reader: &mut Reader<'_>, at: &mut u64) -> Step<u8> {
    let mut after_ff = false;
    for _ in 0..MOST_JUNK {
        let byte = reader.byte(*at)?;
        *at += 1;
        match byte {
            0xff => after_ff = true,
            0x00 => after_ff = false,
            marker if after_ff => return Ok(marker),
            _ => {}
        }
    }
    Err(Stop::Wrong("there is no marker where one should be"))
}

/// Looks for EOI after the scan's header; the scan's data cannot hold its bytes, since an FF in it is followed
/// by 00. Padding or another file may follow EOI, as cameras write them.
fn has_end(reader: &mut Reader<'_>, scan: u64) -> Step<bool> {
    let tail = reader.tail(TAIL.min(usize::try_from(reader.len() - scan).unwrap_or(TAIL)))?;
    if memmem::rfind(&tail, &EOI).is_some() {
        return Ok(true);
    }
    let mut at = scan;
    while at < reader.len().min(scan + MOST_SEARCHED) {
        let window = reader.window(at, TAIL)?;
        if memmem::find(&window, &EOI).is_some() {
            return Ok(true);
        }
        if window.len() < TAIL {
            break;
        }
        // The marker may lie across the ends of two windows.
        at += TAIL as u64 - 1;
    }
    Ok(false)
}
