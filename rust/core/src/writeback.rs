//! Writes chosen records as they stand in the input, byte for byte.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{UInt32Array, UInt64Array};
use arrow_schema::DataType;

use crate::files::WholeFile;
use crate::ingest::{FORMAT_KEY, Format, POOL_VERSION, VERSION_KEY};
use crate::pool::ArrowFile;
use crate::{Error, Observer, Result};

/// Records are copied in pieces of this size.
const PIECE: usize = 1 << 18;

/// Copies the records of some rows of a pool from its inputs to a new file of the same format.
///
/// `inputs` are the pool's, in its order, wherever they lie now.
/// `rows` may come in any order, which is kept. The file is whole or absent. Progress is in records.
///
/// # Errors
///
/// [`Error::Argument`] if a row is not in the pool or `out` is an input; [`Error::Pool`] if the pool file is
/// damaged, or a place in an input does not hold a record, which means that the input has changed.
pub fn write_subset(
    pool: &Path,
    rows: &[u64],
    inputs: &[PathBuf],
    out: &Path,
    observer: &Observer,
) -> Result<()> {
    let places = Places::open(pool)?;
    let inputs: Vec<Records> = inputs
        .iter()
        .map(|path| Records::open(path))
        .collect::<Result<_>>()?;
    if inputs.iter().any(|input| is_same_file(input.path, out)) {
        let out = out.display();
        return Err(Error::Argument(format!(
            "{out} is the pool itself; name another file for the subset"
        )));
    }
    observer.expect(rows.len() as u64);
    let frame = Frame::of(places.format);
    let mut file = WholeFile::create(out)?;
    let mut buffer = vec![0; PIECE];
    put(&mut file, frame.open)?;
    for (index, &row) in rows.iter().enumerate() {
        observer.check()?;
        put(
            &mut file,
            if index == 0 {
                frame.before_first
            } else {
                frame.before_next
            },
        )?;
        let place = places.of(row)?;
        let input = inputs.get(place.file as usize).ok_or_else(|| {
            Error::Pool(format!(
                "{}: row {row} is of input {}, but there are {}; ingest again",
                pool.display(),
                place.file,
                inputs.len()
            ))
        })?;
        input.copy(row, place, &mut buffer, &mut file)?;
        put(&mut file, frame.after_each)?;
        observer.advance(1);
    }
    put(&mut file, frame.close)?;
    file.commit()
}

/// What stands around the records.
struct Frame {
    open: &'static [u8],
    before_first: &'static [u8],
    before_next: &'static [u8],
    after_each: &'static [u8],
    close: &'static [u8],
}

impl Frame {
    fn of(format: Format) -> Self {
        match format {
            Format::LlavaJson => Self {
                open: b"[",
                before_first: b"\n",
                before_next: b",\n",
                after_each: b"",
                close: b"\n]\n",
            },
            Format::LlavaJsonl => Self {
                open: b"",
                before_first: b"",
                before_next: b"",
                after_each: b"\n",
                close: b"",
            },
        }
    }
}

fn put(file: &mut WholeFile, bytes: &[u8]) -> Result<()> {
    file.write_all(bytes).map_err(|source| file.error(source))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Where a record stands: the input's number, byte offset and length.
#[derive(Clone, Copy)]
struct Place {
    file: u32,
    offset: u64,
    length: u64,
}

/// The places of a pool's rows in the inputs.
struct Places {
    file: ArrowFile,
    format: Format,
    /// Columns of the batches asked for so far, backed by the mapped file.
    batches: Vec<OnceCell<(UInt32Array, UInt64Array, UInt64Array)>>,
}

impl Places {
    fn open(pool: &Path) -> Result<Self> {
        let file = ArrowFile::open(
            pool,
            &[
                ("file", DataType::UInt32),
                ("offset", DataType::UInt64),
                ("length", DataType::UInt64),
            ],
        )?;
        let format = file
            .metadata(FORMAT_KEY)
            .and_then(|name| Format::from_name(name).ok());
        let (Some(POOL_VERSION), Some(format)) = (file.metadata(VERSION_KEY), format) else {
            let pool = pool.display();
            return Err(Error::Pool(format!(
                "{pool} is not a pool of version {POOL_VERSION} read from LLaVA JSON; ingest again"
            )));
        };
        let batches = (0..file.batches()).map(|_| OnceCell::new()).collect();
        Ok(Self {
            file,
            format,
            batches,
        })
    }

    fn of(&self, row: u64) -> Result<Place> {
        let (index, position) = self.file.locate(row).ok_or_else(|| {
            Error::Argument(format!(
                "rows: {row} is not in the pool of {} samples",
                self.file.rows()
            ))
        })?;
        let cell = &self.batches[index];
        if cell.get().is_none() {
            let batch = self.file.batch(index)?;
            let column = |number| batch.column(number).as_primitive::<UInt64Type>().clone();
            let files = batch.column(0).as_primitive::<UInt32Type>().clone();
            // Set once: this is the only thread.
            let _ = cell.set((files, column(1), column(2)));
        }
        let (files, offsets, lengths) = cell.get().expect("the batch has just been read");
        Ok(Place {
            file: files.value(position),
            offset: offsets.value(position),
            length: lengths.value(position),
        })
    }
}

/// One input.
struct Records<'a> {
    path: &'a Path,
    file: File,
    size: u64,
}

impl<'a> Records<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let metadata = file
            .metadata()
            .map_err(|source| Error::io("read", path, source))?;
        Ok(Self {
            path,
            file,
            size: metadata.len(),
        })
    }

    /// Copies a record piece by piece.
    fn copy(
        &self,
        row: u64,
        Place { offset, length, .. }: Place,
        buffer: &mut [u8],
        out: &mut WholeFile,
    ) -> Result<()> {
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= self.size && length >= 2);
        let end = end.ok_or_else(|| self.changed(row, "lies outside of the file"))?;
        let mut at = offset;
        while at < end {
            let piece = &mut buffer[..(end - at).min(PIECE as u64) as usize];
            self.file
                .read_exact_at(piece, at)
                .map_err(|source| match source.kind() {
                    ErrorKind::UnexpectedEof => self.changed(row, "lies outside of the file"),
                    _ => Error::io("read", self.path, source),
                })?;
            let begins_wrong = at == offset && !piece.starts_with(b"{");
            at += piece.len() as u64;
            if begins_wrong || (at == end && !piece.ends_with(b"}")) {
                return Err(self.changed(row, "is not an object"));
            }
            put(out, piece)?;
        }
        Ok(())
    }

    fn changed(&self, row: u64, what: &str) -> Error {
        let path = self.path.display();
        Error::Pool(format!(
            "{path}: the record of row {row} {what}: the file has changed since it was ingested; ingest again"
        ))
    }
}
