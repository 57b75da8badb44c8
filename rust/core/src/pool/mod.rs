//! Arrow files, memory-mapped: validated before a pointer into them is followed, columns without a copy.

mod rows;
pub(crate) mod schema;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::{Block, MetadataVersion, root_as_footer, root_as_message};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use memmap2::Mmap;

use crate::files::read_exact_at;
use crate::{Error, Result};

pub use self::rows::{PoolFile, PoolImage, PoolRow};

const MAGIC: &[u8] = b"ARROW1";
/// The magic, padded, begins the file; the footer's length and the magic end it.
const HEADER: usize = 8;
const TRAILER: usize = 10;

/// Some columns of an Arrow IPC file, backed by the mapped file.
///
/// Opening reads the footer and each batch's header; a batch's data is checked (offsets, UTF-8, lengths) when
/// it is asked for, and only in the columns asked for.
#[derive(Clone)]
pub struct ArrowFile {
    path: PathBuf,
    map: Buffer,
    /// Of the whole file.
    schema: SchemaRef,
    version: MetadataVersion,
    /// The columns asked for.
    projection: Vec<usize>,
    blocks: Arc<[Block]>,
    /// First row of each batch, then the number of rows.
    starts: Arc<[u64]>,
    /// What whoever wrote the file noted at its end.
    notes: Arc<HashMap<String, String>>,
}

impl ArrowFile {
    /// Maps a file that must have these columns; others may be there too.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be opened; [`Error::Pool`] if it is cut off, damaged, compressed, of another
    /// byte order or without a column.
    pub fn open(path: &Path, columns: &[(&str, DataType)]) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let map = map(&file, path)?;
        Self::read(path, &file, map, columns).map_err(|why| {
            Error::Pool(format!(
                "{} is not a whole Arrow file: {why}",
                path.display()
            ))
        })
    }

    fn read(
        path: &Path,
        file: &File,
        map: Buffer,
        columns: &[(&str, DataType)],
    ) -> std::result::Result<Self, String> {
        let footer_bytes = footer_range(&map)?;
        let end = footer_bytes.start;
        // Copied, because the tables in it must be aligned and nothing pads a file's footer.
        let footer_bytes = map[footer_bytes].to_vec();
        let footer = root_as_footer(&footer_bytes)
            .map_err(|error| format!("its footer is damaged ({error})"))?;
        let fb_schema = footer.schema().ok_or("its footer holds no schema")?;
        if !fb_schema.endianness().equals_to_target_endianness() {
            return Err("it was written on a machine of another byte order".into());
        }
        let schema = Arc::new(try_fb_to_schema(fb_schema).map_err(text)?);
        let projection: Vec<usize> = columns
            .iter()
            .map(|(name, data_type)| find_column(&schema, name, data_type))
            .collect::<std::result::Result<_, _>>()?;
        let blocks: Vec<Block> = footer
            .recordBatches()
            .iter()
            .flat_map(|blocks| blocks.iter().copied())
            .collect();
        let notes = footer.custom_metadata().into_iter().flatten();
        let notes = notes.filter_map(|note| Some((note.key()?.into(), note.value()?.into())));
        let notes = notes.collect();
        let mut widths = Vec::new();
        for field in schema.fields() {
            buffer_widths(field.data_type(), &mut widths)
                .map_err(|why| format!("column '{}': {why}", field.name()))?;
        }
        let mut starts = vec![0_u64];
        let mut headers = Headers::new(file, &map[..end]);
        for (index, block) in blocks.iter().enumerate() {
            let rows = check_block(&mut headers, block, &widths)
                .map_err(|why| format!("batch {index}: {why}"))?;
            let end = starts[index].checked_add(rows);
            starts.push(end.ok_or("its batches have an impossible number of rows")?);
        }
        Ok(Self {
            path: path.to_path_buf(),
            map,
            version: footer.version(),
            schema,
            projection,
            blocks: blocks.into(),
            starts: starts.into(),
            notes: Arc::new(notes),
        })
    }

    /// Returns the same file with other columns asked for, by name; nothing is read.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if there is no such column.
    pub fn select(&self, columns: &[impl AsRef<str>]) -> Result<Self> {
        let find = |name: &str| {
            self.schema.index_of(name).map_err(|_| {
                let fields = self.schema.fields().iter();
                let names: Vec<_> = fields.map(|field| field.name().as_str()).collect();
                let names = names.join(", ");
                Error::Argument(format!("column '{name}' is not one of {names}"))
            })
        };
        let projection = columns
            .iter()
            .map(|name| find(name.as_ref()))
            .collect::<Result<_>>()?;
        Ok(Self {
            projection,
            ..self.clone()
        })
    }

    /// Returns the schema of the columns asked for.
    pub fn schema(&self) -> Schema {
        self.schema
            .project(&self.projection)
            .expect("the columns were found in this schema")
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.starts[self.blocks.len()]
    }

    /// Returns the number of record batches.
    pub fn batches(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the first row of each batch, then the number of rows.
    pub fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// Returns a value of the schema's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.schema.metadata().get(key).map(String::as_str)
    }

    /// Returns a value that stands at the end of the file, and not in its schema.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.notes.get(key).map(String::as_str)
    }

    /// Returns the batch that holds a row and the row's place in it.
    pub fn locate(&self, row: u64) -> Option<(usize, usize)> {
        if row >= self.rows() {
            return None;
        }
        let batch = self.starts.partition_point(|&start| start <= row) - 1;
        Some((batch, (row - self.starts[batch]) as usize))
    }

    /// Returns the columns asked for, in that order, of one batch.
    ///
    /// # Errors
    ///
    /// [`Error::Pool`] if the batch's data is damaged.
    pub fn batch(&self, index: usize) -> Result<RecordBatch> {
        let block = &self.blocks[index];
        let length = block.metaDataLength() as usize + block.bodyLength() as usize;
        let bytes = self.map.slice_with_length(block.offset() as usize, length);
        let decoder = FileDecoder::new(Arc::clone(&self.schema), self.version)
            .with_projection(self.projection.clone());
        match decoder.read_record_batch(block, &bytes) {
            Ok(Some(batch)) => Ok(batch),
            Ok(None) => Err(self.damaged(index, "it holds no data")),
            Err(error) => Err(self.damaged(index, &text(error))),
        }
    }

    /// Returns where the buffers of a batch lie in the file, in the order of the schema, and for each column and
    /// its inner ones whether some of its entries are null.
    fn parts(&self, index: usize) -> std::result::Result<(Vec<Range<usize>>, Vec<bool>), String> {
        let block = &self.blocks[index];
        // All of these were found to lie in the file when it was opened.
        let start = block.offset() as usize;
        let body = start + block.metaDataLength() as usize;
        let batch = header_of(&self.map[start..body])?;
        let buffers = batch.buffers().unwrap_or_default().iter().map(|buffer| {
            let start = body + buffer.offset() as usize;
            start..start + buffer.length() as usize
        });
        let nodes = batch.nodes().into_iter().flatten();
        Ok((
            buffers.collect(),
            nodes.map(|node| node.null_count() > 0).collect(),
        ))
    }

    /// Says what is wrong with a batch.
    pub(crate) fn damaged(&self, batch: usize, why: &str) -> Error {
        self.damaged_file(&format!("batch {batch} is damaged: {why}"))
    }

    /// Says what is wrong with the file.
    pub(crate) fn damaged_file(&self, why: &str) -> Error {
        Error::Pool(format!(
            "{}: {why}; delete the file and make it again",
            self.path.display()
        ))
    }
}

fn map(file: &File, path: &Path) -> Result<Buffer> {
    let metadata = file
        .metadata()
        .map_err(|source| Error::io("open", path, source))?;
    if !metadata.is_file() {
        return Err(Error::Pool(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    // SAFETY: the file is read-only here, and this package never writes to a file under its final name:
    // it writes a sibling and renames it, which leaves the mapped file as it was.
    let map = unsafe { Mmap::map(file) }.map_err(|source| Error::io("map", path, source))?;
    let Some(start) = NonNull::new(map.as_ptr().cast_mut()) else {
        return Ok(Buffer::from(&[]));
    };
    let length = map.len();
    // SAFETY: `start` and `length` are the mapping's own; the buffer is immutable and keeps it alive.
    Ok(unsafe { Buffer::from_custom_allocation(start, length, Arc::new(map)) })
}

fn footer_range(map: &[u8]) -> std::result::Result<Range<usize>, String> {
    if !map.starts_with(MAGIC) {
        return Err("it does not begin as one".into());
    }
    let cut_off = || "it is cut off".to_string();
    let trailer = map.last_chunk::<TRAILER>().ok_or_else(cut_off)?;
    let length = read_footer_length(*trailer).map_err(|_| cut_off())?;
    let end = map.len() - TRAILER;
    let start = end
        .checked_sub(length)
        .filter(|&start| start >= HEADER)
        .ok_or_else(cut_off)?;
    Ok(start..end)
}

fn find_column(
    schema: &Schema,
    name: &str,
    data_type: &DataType,
) -> std::result::Result<usize, String> {
    let (index, field) = schema
        .column_with_name(name)
        .ok_or_else(|| format!("it has no column '{name}'"))?;
    if field.data_type() != data_type {
        return Err(format!(
            "column '{name}' is {}, not {data_type}",
            field.data_type()
        ));
    }
    Ok(index)
}

/// Adds the width in bytes of the entries of each buffer of a column, in the file's order; 1 for bits too.
fn buffer_widths(data_type: &DataType, widths: &mut Vec<usize>) -> std::result::Result<(), String> {
    // Which entries are null.
    widths.push(1);
    match data_type {
        DataType::Boolean => widths.push(1),
        DataType::Utf8 | DataType::Binary => widths.extend([size_of::<i32>(), 1]),
        DataType::LargeUtf8 | DataType::LargeBinary => widths.extend([size_of::<i64>(), 1]),
        DataType::List(item) => {
            widths.push(size_of::<i32>());
            buffer_widths(item.data_type(), widths)?;
        }
        DataType::LargeList(item) => {
            widths.push(size_of::<i64>());
            buffer_widths(item.data_type(), widths)?;
        }
        DataType::FixedSizeList(item, _) => buffer_widths(item.data_type(), widths)?,
        DataType::Struct(fields) => {
            for field in fields {
                buffer_widths(field.data_type(), widths)?;
            }
        }
        other => {
            let width = other.primitive_width();
            widths.push(
                width.ok_or_else(|| format!("{other} is not a type that can be mapped here"))?,
            );
        }
    }
    Ok(())
}

/// Reads the headers of batches, which lie far apart: to touch each in the map would cost a page fault each.
struct Headers<'a> {
    file: &'a File,
    /// All of the file before its footer.
    data: &'a [u8],
    buffer: Vec<u8>,
}

impl<'a> Headers<'a> {
    const USUAL: usize = 4096;

    fn new(file: &'a File, data: &'a [u8]) -> Self {
        Self {
            file,
            data,
            buffer: vec![0; Self::USUAL],
        }
    }

    /// Returns the bytes of a place in the file.
    fn read(&mut self, place: Range<usize>) -> std::result::Result<&[u8], String> {
        if place.len() > Self::USUAL {
            return Ok(&self.data[place]);
        }
        let header = &mut self.buffer[..place.len()];
        read_exact_at(self.file, header, place.start as u64)
            .map_err(|error| format!("it cannot be read ({error})"))?;
        Ok(header)
    }
}

/// Checks what the decoder takes for granted: that a batch and all of its buffers lie where the file says, and
/// that each buffer holds whole entries.
///
/// Returns the number of rows.
fn check_block(
    headers: &mut Headers<'_>,
    block: &Block,
    widths: &[usize],
) -> std::result::Result<u64, String> {
    let outside = || "it lies outside of the file".to_string();
    let size = |length: i64| usize::try_from(length).map_err(|_| outside());
    let start = size(block.offset())?;
    let header = size(block.metaDataLength().into())?;
    let body = size(block.bodyLength())?;
    let body_start = start.checked_add(header).ok_or_else(outside)?;
    let end = body_start.checked_add(body).ok_or_else(outside)?;
    // Eight bytes of marker and length stand before the header's tables.
    if end > headers.data.len() || header < 8 {
        return Err(outside());
    }
    let batch = header_of(headers.read(start..body_start)?)?;
    if batch.compression().is_some() {
        return Err("it is compressed, and cannot be mapped".into());
    }
    let buffers = batch.buffers().unwrap_or_default();
    if buffers.len() != widths.len() {
        return Err("it does not have the columns of the file".into());
    }
    for (buffer, width) in buffers.iter().zip(widths) {
        let length = size(buffer.length())?;
        let end = size(buffer.offset())?.checked_add(length);
        if end.is_none_or(|end| end > body) || length % width != 0 {
            return Err("one of its buffers does not lie in it or is cut off".into());
        }
    }
    for node in batch.nodes().iter().flatten() {
        // An entry takes at least one bit; without the bound, sizes in bytes could overflow.
        if node.null_count() < 0
            || node.null_count() > node.length()
            || node.length() as u64 > (1 << 48)
        {
            return Err("one of its columns has an impossible length".into());
        }
    }
    u64::try_from(batch.length()).map_err(|_| "it has a negative length".into())
}

/// Reads a batch's header, which marker and length precede.
fn header_of(header: &[u8]) -> std::result::Result<arrow_ipc::RecordBatch<'_>, String> {
    let prefix = if header.starts_with(&[0xff; 4]) { 8 } else { 4 };
    let message = root_as_message(&header[prefix..])
        .map_err(|error| format!("its header is damaged ({error})"))?;
    message
        .header_as_record_batch()
        .ok_or_else(|| "it is not a record batch".into())
}

fn text(error: ArrowError) -> String {
    error.to_string()
}
