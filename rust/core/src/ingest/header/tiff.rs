//! TIFF 6.0 and BigTIFF: the first directory says the size and where the strips or tiles lie.

use super::Picture;
use super::reader::{Reader, Step, Stop};

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
/// Strips, then tiles.
const OFFSETS: [u16; 2] = [273, 324];
const LENGTHS: [u16; 2] = [279, 325];
/// Bytes of a value of each type, by the type's number; types 14 and 15 do not exist.
const WIDTHS: [u64; 19] = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8];
/// SHORT, LONG and LONG8.
const UNSIGNED: [u64; 3] = [3, 4, 16];
/// Tags are 16-bit numbers, each once.
const MOST_TAGS: u64 = 1 << 16;
/// Pieces whose place is checked at most.
const MOST_PIECES: u64 = 1 << 16;

pub(super) fn read(reader: &mut Reader<'_>) -> Step<Picture> {
    Tiff::open(reader)?.read()
}

struct Tiff<'a, 'b> {
    reader: &'a mut Reader<'b>,
    is_little: bool,
    is_big: bool,
    directory: u64,
}

/// A value or a list of them: how many bytes each has, how many there are, and where.
#[derive(Clone, Copy)]
struct Values {
    is_number: bool,
    width: u64,
    count: u64,
    at: u64,
}

impl<'a, 'b> Tiff<'a, 'b> {
    fn open(reader: &'a mut Reader<'b>) -> Step<Self> {
        let head: [u8; 4] = reader.bytes(0)?;
        let mut tiff = Self {
            reader,
            is_little: head[0] == b'I',
            is_big: head.contains(&43),
            directory: 0,
        };
        // In a BigTIFF, the size of a place stands before.
        let word = tiff.word();
        tiff.directory = tiff.number(word, word)?;
        Ok(tiff)
    }

    fn read(mut self) -> Step<Picture> {
        let (count_bytes, entry_bytes) = if self.is_big { (8, 20) } else { (2, 12) };
        let count = self.number(self.directory, count_bytes)?;
        let (mut width, mut height, mut offsets, mut lengths) = (None, None, None, None);
        for index in 0..count.min(MOST_TAGS) {
            let entry = place(self.directory, count_bytes + index * entry_bytes)?;
            let tag = self.number(entry, 2)? as u16;
            let values = self.values(entry)?;
            let slot = match tag {
                WIDTH => &mut width,
                HEIGHT => &mut height,
                _ if OFFSETS.contains(&tag) => &mut offsets,
                _ if LENGTHS.contains(&tag) => &mut lengths,
                _ => continue,
            };
            *slot = values.filter(|values| values.count > 0 && values.is_number);
        }
        // Readers want to know of the next directory, too.
        let end = place(
            self.directory,
            count_bytes + count.min(MOST_TAGS) * entry_bytes,
        )?;
        self.number(end, self.word())?;
        let missing = Stop::Wrong("its directory lacks the size or the place of the picture");
        let (Some(width), Some(height), Some(offsets)) = (width, height, offsets) else {
            return Err(missing);
        };
        let side = |number: u64| {
            u32::try_from(number).map_err(|_| Stop::Wrong("its size is an impossible number"))
        };
        Ok(Picture {
            width: side(self.value(width, 0)?)?,
            height: side(self.value(height, 0)?)?,
            is_whole: self.is_whole(offsets, lengths)?,
        })
    }

    /// Without lengths, as some writers leave them out for one strip, only where the strips begin is known.
    fn is_whole(&mut self, offsets: Values, lengths: Option<Values>) -> Step<bool> {
        for index in 0..offsets.count.min(MOST_PIECES) {
            let start = self.value(offsets, index)?;
            let length = match lengths {
                Some(lengths) if index < lengths.count => self.value(lengths, index)?,
                _ => 1,
            };
            if start.saturating_add(length) > self.reader.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads an entry: type, count, and the values themselves where they fit, else their place, which must lie in
    /// the file.
    fn values(&mut self, entry: u64) -> Step<Option<Values>> {
        let kind = self.number(entry + 2, 2)?;
        let Some(&width) = WIDTHS.get(kind as usize) else {
            return Ok(None);
        };
        let count = self.number(entry + 4, self.word())?;
        let inline = entry + 4 + self.word();
        let length = count.saturating_mul(width);
        let at = if length <= self.word() {
            inline
        } else {
            self.number(inline, self.word())?
        };
        if place(at, length)? > self.reader.len() {
            return Err(Stop::End);
        }
        Ok(Some(Values {
            is_number: UNSIGNED.contains(&kind),
            width,
            count,
            at,
        }))
    }

    /// Bytes of a place in the file.
    fn word(&self) -> u64 {
        if self.is_big { 8 } else { 4 }
    }

    fn value(&mut self, values: Values, index: u64) -> Step<u64> {
        self.number(place(values.at, index * values.width)?, values.width)
    }

    fn number(&mut self, at: u64, bytes: u64) -> Step<u64> {
        let mut number = 0;
        for index in 0..bytes {
            let byte = u64::from(self.reader.byte(place(at, index)?)?);
            let place = if self.is_little {
                index
            } else {
                bytes - 1 - index
            };
            number |= byte << (8 * place);
        }
        Ok(number)
    }
}

/// A place that cannot be lies behind the end.
fn place(base: u64, offset: u64) -> Step<u64> {
    base.checked_add(offset).ok_or(Stop::End)
}
