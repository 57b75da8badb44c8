//! Cuts the input into blocks of whole records, reading it once in windows of bounded size.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use super::Format;
use super::scan::Scanner;
use crate::{Error, Result};

/// Sizes that bound the memory of ingest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes read from the file at once.
    pub(super) window: usize,
    /// A block ends at the first record that reaches so many bytes,
    pub(super) block_bytes: usize,
    /// or so many records; a block becomes one record batch.
    pub(super) block_records: usize,
    /// Longer records are set aside and never held in memory.
    pub(super) record_bytes: u64,
}

pub(super) const LIMITS: Limits = Limits {
    window: 1 << 20,
    block_bytes: 8 << 20,
    block_records: 8192,
    record_bytes: 64 << 20,
};

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
    /// Where `bytes` begins in the input.
    offset: u64,
    bytes: Vec<u8>,
    pub(super) places: Vec<Place>,
    /// Bytes of the input up to the end of this block that no earlier block has counted.
    pub(super) advance: u64,
    record_bytes: u64,
}

impl Block {
    /// Returns a record's bytes, or None for one over the size limit.
    pub(super) fn record(&self, place: &Place) -> Option<&[u8]> {
        if place.length > self.record_bytes {
            return None;
        }
        let start = (place.offset - self.offset) as usize;
        Some(&self.bytes[start..start + place.length as usize])
    }
}

/// The blocks of a file, in order. Where they are cut depends on the file alone.
pub(super) struct Blocks {
    path: PathBuf,
    file: File,
    limits: Limits,
    scanner: Scanner,
    /// Bytes read but not yet handed out; `base` is where they begin in the input.
    pending: Vec<u8>,
    base: u64,
    /// Records found but not yet handed out.
    found: Vec<Place>,
    /// Where the last block ended.
    counted: u64,
    at_end: bool,
    failure: Option<Error>,
}

impl Blocks {
    /// Opens a pool.
    pub(super) fn open(path: &Path, format: Format, limits: Limits) -> Result<Self> {
        let (file, base) = open_text(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            limits,
            scanner: Scanner::new(format),
            pending: Vec::new(),
            base,
            found: Vec::new(),
            counted: 0,
            at_end: false,
            failure: None,
        })
    }

    /// Returns the file's size in bytes now.
    pub(super) fn size(&self) -> Result<u64> {
        match self.file.metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(source) => Err(Error::io("read", &self.path, source)),
        }
    }

    /// Returns the next block, or None after the last.
    ///
    /// What was read before a fault goes out first, for its own faults come earlier in the file.
    pub(super) fn next(&mut self) -> Result<Option<Block>> {
        loop {
            if let Some(records) = self.full_block() {
                return Ok(Some(self.cut(records)));
            }
            if !self.at_end {
                self.failure = self.read_window().err();
                self.at_end |= self.failure.is_some();
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
        let is_full =
            self.pending.len() >= self.limits.block_bytes || fit >= self.limits.block_records;
        is_full.then_some(fit.clamp(1, self.limits.block_records))
    }

    /// Hands out the first `records` found records with the bytes up to their end.
    fn cut(&mut self, records: usize) -> Block {
        let rest = self.found.split_off(records);
        let places = std::mem::replace(&mut self.found, rest);
        let end = places.last().map_or(self.base, Place::end);
        let held = (end - self.base) as usize;
        let mut tail = Vec::with_capacity(self.limits.block_bytes + self.limits.window);
        tail.extend_from_slice(&self.pending[held..]);
        self.pending.truncate(held);
        let block = Block {
            offset: self.base,
            bytes: std::mem::replace(&mut self.pending, tail),
            places,
            advance: end - self.counted,
            record_bytes: self.limits.record_bytes,
        };
        self.base = end;
        self.counted = end;
        block
    }

    /// Reads and scans one more window.
    fn read_window(&mut self) -> Result<()> {
        let before = self.pending.len();
        self.pending.resize(before + self.limits.window, 0);
        let read = read_full(&mut self.file, &mut self.pending[before..])
            .map_err(|source| Error::io("read", &self.path, source))?;
        self.pending.truncate(before + read);
        let position = self.base + before as u64;
        self.at_end = read < self.limits.window;
        let mut outcome = self
            .scanner
            .scan(&self.pending[before..], position, &mut self.found);
        if self.at_end && outcome.is_ok() {
            outcome = self.scanner.finish(position + read as u64, &mut self.found);
        }
        outcome.map_err(|text| Error::Pool(format!("{}: {text}", self.path.display())))?;
        self.drop_overlong();
        Ok(())
    }

    /// Lets go of an unfinished record that is already over the limit.
    fn drop_overlong(&mut self) {
        let held = self.base + self.pending.len() as u64;
        if self.found.is_empty()
            && let Some(start) = self.scanner.open_record()
            && held - start > self.limits.record_bytes
        {
            self.base = held;
            self.pending.clear();
        }
    }
}

/// Opens a regular file and passes a UTF-8 byte order mark; returns the file and its position.
fn open_text(path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let advice = "name the pool's file, a LLaVA JSON array or JSON lines";
    let wrong = |what: &str| Error::Argument(format!("{shown}: {what}; {advice}"));
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => wrong("there is no such file"),
        _ => Error::io("open", path, source),
    })?;
    if metadata.is_dir() {
        return Err(wrong("this is a folder"));
    }
    if !metadata.is_file() {
        return Err(wrong("this is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(Error::Pool(format!("{shown}: the file is empty; {advice}")));
    }
    let mut file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let mut mark = [0; 3];
    let read = read_full(&mut file, &mut mark).map_err(|source| Error::io("read", path, source))?;
    if mark[..read] == [0xef, 0xbb, 0xbf] {
        return Ok((file, 3));
    }
    file.rewind()
        .map_err(|source| Error::io("read", path, source))?;
    Ok((file, 0))
}

/// Fills the buffer as far as the file goes.
fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
