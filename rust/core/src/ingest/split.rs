//! Cuts the input into blocks of whole records, reading it once in windows of bounded size.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::container::{self, Container};
use super::format::Framing;
use super::scan::Scanner;
use crate::compression::TextFile;
use crate::{Error, Observer, Result};

/// Sizes that bound the memory of ingest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes read from the file at once.
    pub(super) window: usize,
    /// A block ends at the first record that reaches so many bytes,
    pub(super) block_bytes: usize,
    /// or so many records; a block becomes one record batch.
    pub(super) block_records: usize,
    /// Longer records, white space up to the next line included, are set aside and not held in memory.
    pub(super) record_bytes: u64,
}

pub(super) const LIMITS: Limits = Limits {
    window: 1 << 20,
    block_bytes: 4 << 20,
    block_records: 8192,
    record_bytes: 64 << 20,
};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where a record stands in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its number, from 0.
    pub(super) record: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Place {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Consecutive records and their bytes.
#[derive(Debug)]
pub(super) struct Block {
    /// Where `bytes` begins in the input, and how many of them are the block's.
    offset: u64,
    length: usize,
    bytes: Vec<u8>,
    pub(super) places: Vec<Place>,
    /// Bytes of the input up to the end of this block that no earlier block has counted.
    pub(super) advance: u64,
    record_bytes: u64,
    /// Where the buffer goes when the block is done with.
    spare: Spare,
}

/// Buffers to be used again: fresh memory costs more than reading into it.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

const MOST_SPARE: usize = 32 << 20;

impl Drop for Block {
    fn drop(&mut self) {
        // One that has grown for a huge record would be kept for nothing.
        if self.bytes.capacity() <= MOST_SPARE {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.push(mem::take(&mut self.bytes));
        }
    }
}

impl Block {
    /// Returns the number of bytes held.
    pub(super) fn size(&self) -> usize {
        self.length
    }

    /// Returns a record's bytes, or None for one over the size limit.
    pub(super) fn record(&self, place: &Place) -> Option<&[u8]> {
        if place.length > self.record_bytes {
            return None;
        }
        // A record that has been let go begins before the block.
        let start = place.offset.checked_sub(self.offset)? as usize;
        Some(&self.bytes[start..start + place.length as usize])
    }
}

/// The blocks of a file, in order. Where they are cut depends on the file alone.
pub(super) struct Blocks {
    path: PathBuf,
    file: TextFile,
    limits: Limits,
    scanner: Scanner,
    /// A buffer whose first `filled` bytes are read but not yet handed out; `base` is where they begin in the
    /// input.
    pending: Vec<u8>,
    filled: usize,
    base: u64,
    /// Records found but not yet handed out.
    found: Vec<Place>,
    /// Bytes of the file, which may be compressed, that have been handed out or let go.
    counted: u64,
    spare: Spare,
    at_end: bool,
    failure: Option<Error>,
}

impl Blocks {
    /// Opens a pool.
    pub(super) fn open(path: &Path, framing: Framing, limits: Limits) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            file: TextFile::open(path)?,
            limits,
            scanner: Scanner::new(framing),
            pending: Vec::new(),
            filled: 0,
            base: 0,
            found: Vec::new(),
            counted: 0,
            spare: Spare::default(),
            at_end: false,
            failure: None,
        })
    }

    /// Returns the next block, or None after the last.
    ///
    /// What was read before a fault goes out first, for its own faults come earlier in the file.
    pub(super) fn next_block(&mut self, observer: &Observer) -> Result<Option<Block>> {
        loop {
            observer.check()?;
            if let Some(records) = self.full_block() {
                return Ok(Some(self.cut(records)));
            }
            if !self.at_end {
                self.failure = self.read_window().err();
                self.at_end |= self.failure.is_some();
                self.drop_overlong(observer);
                continue;
            }
            if !self.found.is_empty() {
                return Ok(Some(self.cut(self.found.len())));
            }
            return self.failure.take().map_or(Ok(None), Err);
        }
    }

    /// Returns how many of the found records make a block: all that fit into it, but at least one.
    fn full_block(&self) -> Option<usize> {
        if self.found.is_empty() {
            return None;
        }
        let limit = self.base + self.limits.block_bytes as u64;
        let fit = self.found.partition_point(|place| place.end() <= limit);
        let is_full = self.filled >= self.limits.block_bytes || fit >= self.limits.block_records;
        is_full.then_some(fit.clamp(1, self.limits.block_records))
    }

    /// Hands out the first `records` found records with the bytes up to their end.
    fn cut(&mut self, records: usize) -> Block {
        let rest = self.found.split_off(records);
        let places = mem::replace(&mut self.found, rest);
        let end = places.last().map_or(self.base, Place::end).max(self.base);
        let held = (end - self.base) as usize;
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut next = spare.unwrap_or_default();
        let tail = self.filled - held;
        grow(&mut next, tail);
        next[..tail].copy_from_slice(&self.pending[held..self.filled]);
        self.filled = tail;
        let block = Block {
            offset: self.base,
            length: held,
            bytes: mem::replace(&mut self.pending, next),
            places,
            advance: self.count(end),
            record_bytes: self.limits.record_bytes,
            spare: Arc::clone(&self.spare),
        };
        self.base = end;
        block
    }

    /// Counts the file up to where the text has been handed out; of a compressed one, what has been read.
    fn count(&mut self, end: u64) -> u64 {
        let before = self.counted;
        self.counted = self.file.compressed_position().unwrap_or(end);
        self.counted - before
    }

    /// Reads and scans one more window.
    fn read_window(&mut self) -> Result<()> {
        let before = self.filled;
        let window = self.limits.window.max(BYTE_ORDER_MARK.len());
        grow(&mut self.pending, before + window);
        let read = self.file.read(&mut self.pending[before..before + window])?;
        self.filled = before + read;
        self.at_end = read < window;
        let is_first = self.base == 0 && before == 0;
        if is_first && self.pending[..read].starts_with(BYTE_ORDER_MARK) {
            self.pending.copy_within(BYTE_ORDER_MARK.len()..read, 0);
            self.filled -= BYTE_ORDER_MARK.len();
            self.base = BYTE_ORDER_MARK.len() as u64;
        }
        let position = self.base + before as u64;
        let mut outcome = self.scanner.scan(
            &self.pending[before..self.filled],
            position,
            &mut self.found,
        );
        if self.at_end && outcome.is_ok() {
            outcome = self
                .scanner
                .finish(self.base + self.filled as u64, &mut self.found);
        }
        outcome.map_err(|text| Error::Pool(format!("{}: {text}", self.path.display())))
    }

    /// Lets go of white space, and of an unfinished record that is already over the limit.
    fn drop_overlong(&mut self, observer: &Observer) {
        let end = self.base + self.filled as u64;
        let start = self.scanner.open_record().unwrap_or(0);
        if self.found.is_empty() && end - start > self.limits.record_bytes {
            observer.advance(self.count(end));
            self.base = end;
            self.filled = 0;
        }
    }
}

/// Makes a buffer at least so long; what it holds beyond what has been read means nothing.
fn grow(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
}

impl Container for Blocks {
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn container::Block>>> {
        let block = self.next_block(observer)?;
        Ok(block.map(|block| Box::new(block) as Box<dyn container::Block>))
    }

    fn hash(&mut self) -> Result<Option<blake3::Hash>> {
        self.file.hash().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::json::tests::json;
    use super::*;

    /// The records that the blocks of a file hold; None for one over the limit.
    fn read(
        text: &[u8],
        framing: Framing,
        limits: Limits,
    ) -> Result<Vec<(Place, Option<Vec<u8>>)>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let mut blocks = Blocks::open(file.path(), framing, limits)?;
        let observer = Observer::default();
        let mut found = Vec::new();
        while let Some(block) = blocks.next_block(&observer)? {
            assert!(!block.places.is_empty() && block.places.len() <= limits.block_records);
            let kept = block
                .places
                .iter()
                .filter(|place| place.length <= limits.record_bytes);
            let size: u64 = kept.clone().map(|place| place.length).sum();
            assert!(size <= limits.block_bytes as u64 || kept.count() == 1);
            observer.advance(block.advance);
            found.extend(
                block
                    .places
                    .iter()
                    .map(|place| (*place, block.record(place).map(<[u8]>::to_vec))),
            );
        }
        let end = found.last().map_or(0, |(place, _)| place.end());
        assert!((end..=text.len() as u64).contains(&observer.progress().0));
        Ok(found)
    }

    fn error(text: &str, framing: Framing) -> String {
        read(text.as_bytes(), framing, LIMITS)
            .unwrap_err()
            .to_string()
    }

    fn tiny_limits() -> impl Strategy<Value = Limits> {
        (
            prop_oneof![1..40_usize, 64..400_usize],
            1..200_usize,
            1..5_usize,
            1..100_u64,
        )
            .prop_map(
                |(window, block_bytes, block_records, record_bytes)| Limits {
                    window,
                    block_bytes,
                    block_records,
                    record_bytes,
                },
            )
    }

    proptest! {
        #[test]
        fn records_are_found_wherever_windows_and_blocks_end(
            records in vec((json(), any::<bool>(), "[ \t\r\n]{0,3}", "[ \t\r\n]{0,3}"), 1..12),
            has_mark: bool,
            is_array: bool,
            limits in tiny_limits(),
        ) {
            let mut text = Vec::from(if has_mark { "\u{feff}" } else { "" });
            let (mut expected, mut doubtful) = (Vec::new(), Vec::new());
            text.extend_from_slice(if is_array { b" [" } else { b"\n" });
            for (record, (value, pretty, before, after)) in records.iter().enumerate() {
                if is_array && record > 0 {
                    text.push(b',');
                }
                text.extend_from_slice(before.as_bytes());
                let offset = text.len() as u64;
                // The object keeps lines from beginning with '['.
                let value = serde_json::json!({ "x": value });
                let written = if is_array && *pretty {
                    serde_json::to_string_pretty(&value).unwrap()
                } else {
                    value.to_string()
                };
                text.extend_from_slice(written.as_bytes());
                let place = Place { record: record as u64, offset, length: written.len() as u64 };
                // Within a window, white space may or may not take a line over the limit.
                let raw = place.length + if is_array { 0 } else { after.len() as u64 };
                let is_doubtful = place.length <= limits.record_bytes && raw > limits.record_bytes;
                expected.push((place, (place.length <= limits.record_bytes).then(|| written.into_bytes())));
                doubtful.push(is_doubtful);
                text.extend_from_slice(after.as_bytes());
                if !is_array {
                    text.push(b'\n');
                }
            }
            if is_array {
                text.extend_from_slice(b"]\n");
            }
            let framing = if is_array { Framing::Array } else { Framing::Lines };
            let found = read(&text, framing, limits).unwrap();
            prop_assert_eq!(found.len(), expected.len());
            for ((found, expected), is_doubtful) in found.into_iter().zip(expected).zip(doubtful) {
                prop_assert_eq!(found.0, expected.0);
                prop_assert!(found.1 == expected.1 || (is_doubtful && found.1.is_none()));
            }
        }

        #[test]
        fn no_bytes_whatever_break_the_reader(text in vec(any::<u8>(), 1..600), limits in tiny_limits()) {
            let mut array = b"[".to_vec();
            array.extend_from_slice(&text);
            let _ = read(&array, Framing::Array, limits);
            let _ = read(&text, Framing::Lines, limits);
        }
    }

    #[test]
    fn scalars_end_where_they_end() {
        let found = read(b"[1,\"a]\\\"\" ,null,[[]],-2e5]", Framing::Array, LIMITS).unwrap();
        let records: Vec<_> = found
            .iter()
            .map(|(_, bytes)| bytes.as_deref().unwrap())
            .collect();
        assert_eq!(
            records,
            [&b"1"[..], b"\"a]\\\"\"", b"null", b"[[]]", b"-2e5"]
        );
    }

    #[test]
    fn faults_of_an_array_name_the_byte_and_the_record() {
        for (text, expected) in [
            (" \n", "nothing but white space"),
            ("PAR1", "byte 0: this is not JSON: found 'P'"),
            ("\u{feff} x", "byte 4: this is not JSON: found 'x'"),
            (
                "{}",
                "byte 0: found '{' where a JSON array has '['; if these are JSON lines",
            ),
            (
                "[{}",
                "ends at byte 3 before the ']' that closes the array, after 1 records",
            ),
            (
                "[{}, {\"a\": \"b",
                "ends at byte 13 inside record 1, which begins at byte 5",
            ),
            ("[{}, ", "ends at byte 5 before the ']'"),
            (
                "[{},]",
                "byte 4, record 1: found ']' where a record should begin",
            ),
            (
                "[,{}]",
                "byte 1, record 0: found ',' where a record should begin",
            ),
            (
                "[{} {}]",
                "byte 4, after record 0: found '{' where ',' or ']' should be",
            ),
            ("[{}}]", "byte 3, after record 0: found '}'"),
            (
                "[{}]\n\0",
                "byte 5: found byte 0x00 after the ']' that closes the array of 1 records",
            ),
        ] {
            let found = error(text, Framing::Array);
            assert!(found.contains(expected), "{text:?}: {found}");
        }
        let found = error(" [1]", Framing::Lines);
        assert!(
            found.contains("byte 1: found '[' where JSON lines have '{'"),
            "{found}"
        );
        let found = error(" \n", Framing::Lines);
        assert!(found.contains("nothing but white space"), "{found}");
    }
}
