//! Writes chosen records as they stand in the input, byte for byte.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{UInt32Array, UInt64Array};
use arrow_schema::DataType;

use crate::compression::{Compression, Encoder, TextFile};
use crate::files::{read_exact_at, unnamed};
use crate::ingest::{FORMAT_KEY, Format, Framing, POOL_VERSION, VERSION_KEY};
use crate::pool::ArrowFile;
use crate::{Error, Observer, Result};

/// Records are copied in pieces of this size.
const PIECE: usize = 1 << 18;

/// Copies the records of some rows of a pool from its inputs to a new file of the same format.
///
/// `inputs` are the pool's, in its order, wherever they lie now. If all are compressed in one way, so is the
/// new file. `rows` may come in any order, which is kept. The file is whole or absent. Progress is in records.
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
    let pool = Places::open(pool)?;
    let mut places: Vec<Place> = rows
        .iter()
        .map(|&row| pool.of(row, inputs.len()))
        .collect::<Result<_>>()?;
    if inputs.iter().any(|input| is_same_file(input, out)) {
        let out = out.display();
        return Err(Error::Argument(format!(
            "{out} is the pool itself; name another file for the subset"
        )));
    }
    observer.expect(rows.len() as u64);
    let compressions = compressions(inputs)?;
    let mut buffer = vec![0; PIECE];
    let mut sources = Sources::new(inputs);
    for (file, path) in inputs.iter().enumerate() {
        if compressions[file] != Compression::Plain {
            let taken = extract(path, file as u32, &mut places, out, &mut buffer, observer)?;
            sources.taken.insert(file, taken);
        }
    }
    let frame = &pool.frame;
    let mut subset = Encoder::create(out, common(&compressions))?;
    let put = |subset: &mut Encoder, bytes: &[u8]| {
        let written = subset.write_all(bytes);
        written.map_err(|source| Error::io("write", out, source))
    };
    put(&mut subset, frame.open)?;
    let mut before = frame.before_first;
    for place in &places {
        observer.check()?;
        put(&mut subset, before)?;
        before = frame.before_next;
        let copy = |piece: &[u8]| put(&mut subset, piece);
        sources
            .of(place)?
            .copy(place, frame.ends, &mut buffer, copy)?;
        put(&mut subset, frame.after_each)?;
        observer.advance(1);
    }
    put(&mut subset, frame.close)?;
    subset.commit(out)
}

/// Returns how a subset of some inputs is compressed: as they all are, else not at all.
///
/// # Errors
///
/// [`Error::Io`] if an input cannot be read.
pub fn common_compression(inputs: &[PathBuf]) -> Result<Compression> {
    Ok(common(&compressions(inputs)?))
}

fn compressions(inputs: &[PathBuf]) -> Result<Vec<Compression>> {
    inputs.iter().map(|path| Compression::of(path)).collect()
}

fn common(compressions: &[Compression]) -> Compression {
    match compressions {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => *first,
        _ => Compression::Plain,
    }
}

/// What stands around the records.
struct Frame {
    open: &'static [u8],
    before_first: &'static [u8],
    before_next: &'static [u8],
    after_each: &'static [u8],
    close: &'static [u8],
    /// What a record begins and ends with, where that can be told.
    ends: Option<(u8, u8)>,
}

impl Frame {
    /// Returns None for formats that are not copied by bytes.
    fn of(format: Format) -> Option<Self> {
        Some(match format {
            Format::Text(_, Framing::Array) => Self {
                open: b"[",
                before_first: b"\n",
                before_next: b",\n",
                after_each: b"",
                close: b"\n]\n",
                ends: Some((b'{', b'}')),
            },
            Format::Text(_, Framing::Lines) => Self {
                open: b"",
                before_first: b"",
                before_next: b"",
                after_each: b"\n",
                close: b"",
                ends: Some((b'{', b'}')),
            },
            Format::WebDataset => Self {
                open: b"",
                before_first: b"",
                before_next: b"",
                after_each: b"",
                // Two blocks of zeros end a tar.
                close: &[0; 1024],
                ends: None,
            },
            Format::Rows(_) => return None,
        })
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Where the record of a row stands: the input's number, byte offset and length.
#[derive(Clone, Copy)]
struct Place {
    row: u64,
    file: u32,
    offset: u64,
    length: u64,
}

/// The places of a pool's rows in the inputs.
struct Places {
    path: PathBuf,
    file: ArrowFile,
    frame: Frame,
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
        let frame = file
            .metadata(FORMAT_KEY)
            .and_then(|name| Format::from_name(name).ok())
            .and_then(Frame::of);
        let (Some(POOL_VERSION), Some(frame)) = (file.metadata(VERSION_KEY), frame) else {
            let pool = pool.display();
            return Err(Error::Pool(format!(
                "{pool} is not a pool of version {POOL_VERSION} whose records are copied by bytes; ingest again"
            )));
        };
        let batches = (0..file.batches()).map(|_| OnceCell::new()).collect();
        Ok(Self {
            path: pool.to_path_buf(),
            file,
            frame,
            batches,
        })
    }

    fn of(&self, row: u64, inputs: usize) -> Result<Place> {
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
        let file = files.value(position);
        if file as usize >= inputs {
            return Err(Error::Pool(format!(
                "{}: row {row} is of input {file}, but there are only {inputs}; ingest again",
                self.path.display()
            )));
        }
        Ok(Place {
            row,
            file,
            offset: offsets.value(position),
            length: lengths.value(position),
        })
    }
}

/// The inputs: what has been taken from compressed ones, and some of the others open.
struct Sources<'a> {
    paths: &'a [PathBuf],
    taken: HashMap<usize, Records<'a>>,
    open: HashMap<usize, Records<'a>>,
}

impl<'a> Sources<'a> {
    /// A pool may have more shards than a process may have files open.
    const MOST_OPEN: usize = 100;

    fn new(paths: &'a [PathBuf]) -> Self {
        Self {
            paths,
            taken: HashMap::new(),
            open: HashMap::new(),
        }
    }

    fn of(&mut self, place: &Place) -> Result<&Records<'a>> {
        let file = place.file as usize;
        if let Some(taken) = self.taken.get(&file) {
            return Ok(taken);
        }
        if self.open.len() == Self::MOST_OPEN && !self.open.contains_key(&file) {
            self.open.clear();
        }
        Ok(match self.open.entry(file) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(closed) => closed.insert(Records::open(&self.paths[file])?),
        })
    }
}

/// One input, or what has been taken from it.
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

    /// Hands a record over piece by piece.
    fn copy(
        &self,
        place: &Place,
        ends: Option<(u8, u8)>,
        buffer: &mut [u8],
        mut put: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Place { offset, length, .. } = *place;
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= self.size && length >= 2);
        let end = end.ok_or_else(|| outside(self.path, place))?;
        let mut at = offset;
        while at < end {
            let piece = &mut buffer[..(end - at).min(PIECE as u64) as usize];
            read_exact_at(&self.file, piece, at).map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => outside(self.path, place),
                _ => Error::io("read", self.path, source),
            })?;
            let is_first = at == offset;
            at += piece.len() as u64;
            if let Some((first, last)) = ends
                && ((is_first && !piece.starts_with(&[first]))
                    || (at == end && !piece.ends_with(&[last])))
            {
                return Err(changed(self.path, place, "is not an object"));
            }
            put(piece)?;
        }
        Ok(())
    }
}

/// Reads a compressed input once and lays the chosen records into a file without a name, from where they can be
/// copied in any order; moves their places there.
fn extract<'a>(
    path: &'a Path,
    file: u32,
    places: &mut [Place],
    out: &Path,
    buffer: &mut [u8],
    observer: &Observer,
) -> Result<Records<'a>> {
    let mut order: Vec<usize> = (0..places.len())
        .filter(|&index| places[index].file == file)
        .collect();
    order.sort_unstable_by_key(|&index| (places[index].offset, places[index].length));
    let mut text = TextFile::open(path)?;
    let mut kept = BufWriter::with_capacity(1 << 20, unnamed(out)?);
    let write_error = |source| Error::io("write", out, source);
    // Up to where the text has been read, and the file written.
    let (mut read, mut size) = (0, 0);
    let mut last: Option<(Place, u64)> = None;
    for index in order {
        let place = places[index];
        if let Some((same, start)) = last
            && (same.offset, same.length) == (place.offset, place.length)
        {
            places[index].offset = start;
            continue;
        }
        let Some(mut before) = place.offset.checked_sub(read) else {
            return Err(changed(path, &place, "begins inside another"));
        };
        while before > 0 {
            observer.check()?;
            let piece = text.read(&mut buffer[..before.min(PIECE as u64) as usize])?;
            if piece == 0 {
                return Err(outside(path, &place));
            }
            before -= piece as u64;
        }
        let start = size;
        let mut left = place.length;
        while left > 0 {
            let piece = &mut buffer[..left.min(PIECE as u64) as usize];
            if text.read(piece)? < piece.len() {
                return Err(outside(path, &place));
            }
            kept.write_all(piece).map_err(write_error)?;
            left -= piece.len() as u64;
        }
        size += place.length;
        read = place.offset + place.length;
        last = Some((place, start));
        places[index].offset = start;
    }
    let file = kept
        .into_inner()
        .map_err(|error| write_error(error.into_error()))?;
    Ok(Records { path, file, size })
}

fn outside(path: &Path, place: &Place) -> Error {
    changed(path, place, "lies outside of the file")
}

fn changed(path: &Path, place: &Place, what: &str) -> Error {
    let (path, row) = (path.display(), place.row);
    Error::Pool(format!(
        "{path}: the record of row {row} {what}: the file has changed since it was ingested; ingest again"
    ))
}
