//! What one input says, as a file: written on the machine that has read it, read on the one that makes the pool.
//!
//! A part is an Arrow file with a batch of one row for each block of the input: how many records the block
//! holds, its samples and its rejected records, both as lists. So the blocks of a part are those of its input,
//! and become the batches of the pool that they would have become without it. What a sample owes to other
//! inputs is left open: the number of its input, and the id of a record that says none.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{LargeStringBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{
    Array, ArrayRef, BooleanArray, LargeListArray, LargeStringArray, RecordBatch, StructArray,
    UInt32Array, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};

use super::container::{Block, Container, Context, Facts, Parsed, Sink, id_of};
use super::images::{ImageKey, key};
use super::picture::Picture;
use super::reject::{Reason, Rejected, Rejection};
use super::sink::{arrow_error, refused};
use super::split::{LIMITS, Place};
use super::turns::Role;
use crate::pool::ArrowFile;
use crate::pool::schema::{item, pool_columns};
use crate::{Error, Observer, Result};

/// The BLAKE3 hash of the input. It stands at the end of the file, for it is known when all has been read.
const HASH_KEY: &str = "mllm_selector.input_hash";

/// Columns of the samples by their place: those of the pool come first, then what is of no use in it.
const ID: usize = 0;
const MESSAGES: usize = 2;
const IMAGES: usize = 3;
const FILE: usize = 4;
const OFFSET: usize = 5;
const LENGTH: usize = 6;
const POOL_COLUMNS: usize = 7;
const RECORD: usize = POOL_COLUMNS;
const HAS_ID: usize = POOL_COLUMNS + 1;

fn sample_fields() -> Fields {
    let more = [
        Field::new("record", DataType::UInt64, false),
        Field::new("has_id", DataType::Boolean, false),
    ];
    pool_columns().into_iter().chain(more).collect()
}

fn rejected_fields() -> Fields {
    vec![
        Field::new("id", DataType::LargeUtf8, true),
        Field::new("record", DataType::UInt64, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("length", DataType::UInt64, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::LargeUtf8, false),
    ]
    .into()
}

/// The columns of a part by name.
fn columns() -> [(&'static str, DataType); 3] {
    [
        ("records", DataType::UInt64),
        ("samples", DataType::LargeList(item(sample_fields()))),
        ("rejected", DataType::LargeList(item(rejected_fields()))),
    ]
}

/// Writes the blocks of one input.
pub(super) struct PartSink<W: Write> {
    schema: SchemaRef,
    file: FileWriter<BufWriter<W>>,
    strict: bool,
}

impl<W: Write> PartSink<W> {
    pub(super) fn create(out: W, strict: bool) -> Result<Self> {
        let fields = columns().map(|(name, data_type)| Field::new(name, data_type, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let out = BufWriter::with_capacity(1 << 20, out);
        Ok(Self {
            file: FileWriter::try_new(out, &schema).map_err(|error| arrow_error(error, shown()))?,
            schema,
            strict,
        })
    }

    /// Writes the end of the file.
    pub(super) fn finish(mut self, input_hash: &str) -> Result<()> {
        self.file.write_metadata(HASH_KEY, input_hash);
        let out = self.file.into_inner();
        out.map_err(|error| arrow_error(error, shown()))?
            .flush()
            .map_err(|source| Error::io("write", shown(), source))
    }
}

/// A part that is being written has no name here.
fn shown() -> PathBuf {
    "a part of the pool".into()
}

impl<W: Write + Send> Sink for PartSink<W> {
    fn add(&mut self, parsed: Parsed) -> Result<()> {
        if let Some(first) = parsed.rejected.first().filter(|_| self.strict) {
            return Err(refused(first));
        }
        let records = parsed.facts.len() + parsed.rejected.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(vec![records as u64])),
            Arc::new(as_row(samples(&parsed.rows, &parsed.facts))),
            Arc::new(as_row(rejected(&parsed.rejected))),
        ];
        let block = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .expect("the columns are built to the schema");
        self.file
            .write(&block)
            .map_err(|error| arrow_error(error, shown()))
    }
}

fn samples(rows: &RecordBatch, facts: &[Facts]) -> StructArray {
    let mut columns = rows.columns().to_vec();
    let records = facts.iter().map(|row| row.place.record);
    columns.push(Arc::new(UInt64Array::from_iter_values(records)));
    let has_id: Vec<bool> = facts.iter().map(|row| row.has_id).collect();
    columns.push(Arc::new(BooleanArray::from(has_id)));
    StructArray::new(sample_fields(), columns, None)
}

fn rejected(records: &[Rejected]) -> StructArray {
    let numbers = |of: fn(&Rejected) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(records.iter().map(of)))
    };
    let mut ids = LargeStringBuilder::new();
    let mut reasons = StringBuilder::new();
    let mut details = LargeStringBuilder::new();
    for record in records {
        ids.append_option(record.id.as_deref());
        reasons.append_value(record.reason.code());
        details.append_value(&record.detail);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        numbers(|record| record.record),
        numbers(|record| record.offset),
        numbers(|record| record.length),
        Arc::new(reasons.finish()),
        Arc::new(details.finish()),
    ];
    StructArray::new(rejected_fields(), columns, None)
}

/// Makes all entries the list of a single row.
fn as_row(entries: StructArray) -> LargeListArray {
    LargeListArray::new(
        item(entries.fields().clone()),
        OffsetBuffer::from_lengths([entries.len()]),
        Arc::new(entries),
        None,
    )
}

/// The blocks of a part.
pub(super) struct PartContainer {
    file: ArrowFile,
    /// The same with the number of records alone.
    counts: ArrowFile,
    hash: blake3::Hash,
    /// Size of the input in bytes.
    size: u64,
    next: usize,
    counted: u64,
}

impl PartContainer {
    /// Maps a part of an input of `size` bytes.
    pub(super) fn open(path: &Path, size: u64) -> Result<Self> {
        let file = ArrowFile::open(path, &columns())?;
        let hash = file
            .note(HASH_KEY)
            .and_then(|hash| blake3::Hash::from_hex(hash).ok());
        Ok(Self {
            counts: file.select(&["records"])?,
            hash: hash.ok_or_else(|| file.damaged_file("it does not name its input's hash"))?,
            file,
            size,
            next: 0,
            counted: 0,
        })
    }
}

impl Container for PartContainer {
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn Block>>> {
        observer.check()?;
        let batches = self.file.batches();
        if self.next == batches {
            return Ok(None);
        }
        let index = self.next;
        self.next += 1;
        let counts = self.counts.batch(index)?;
        let records = match counts.column(0).as_primitive::<UInt64Type>().values()[..] {
            [records] if records <= LIMITS.block_records as u64 => records,
            _ => return Err(self.file.damaged(index, "it is not a block of records")),
        };
        let passed = (self.size as f64 * self.next as f64 / batches as f64) as u64;
        let passed = passed.clamp(self.counted, self.size);
        let advance = passed - self.counted;
        self.counted = passed;
        Ok(Some(Box::new(PartBlock {
            file: self.file.clone(),
            index,
            records,
            advance,
        })))
    }

    fn hash(&mut self) -> Result<Option<blake3::Hash>> {
        Ok(Some(self.hash))
    }
}

struct PartBlock {
    file: ArrowFile,
    index: usize,
    records: u64,
    advance: u64,
}

impl Block for PartBlock {
    fn records(&self) -> u64 {
        self.records
    }

    fn advance(&self) -> u64 {
        self.advance
    }

    fn parse(&self, context: &Context<'_>) -> Result<Parsed> {
        let block = self.file.batch(self.index)?;
        self.read(&block, context)
            .ok_or_else(|| self.file.damaged(self.index, "its samples are none"))
    }
}

impl PartBlock {
    /// Reads a block whose offsets and texts are sound; None if it does not say what a block says.
    fn read(&self, block: &RecordBatch, context: &Context<'_>) -> Option<Parsed> {
        let is_row = block
            .columns()
            .iter()
            .all(|column| column.null_count() == 0);
        if block.num_rows() != 1 || !is_row {
            return None;
        }
        let entries = |column: usize| block.column(column).as_list::<i64>().value(0);
        let (samples, rejected) = (entries(1), entries(2));
        let (samples, rejected) = (samples.as_struct(), rejected.as_struct());
        if (samples.len() + rejected.len()) as u64 != self.records {
            return None;
        }
        let ids = ids(samples, context.first_record)?;
        let mut columns = samples.columns()[..POOL_COLUMNS].to_vec();
        columns[FILE] = Arc::new(UInt32Array::from(vec![context.file; samples.len()]));
        let facts = facts(samples, &ids, context.file)?;
        columns[ID] = Arc::new(ids);
        Some(Parsed {
            rows: RecordBatch::try_new(Arc::clone(&context.schema), columns).ok()?,
            facts,
            rejected: rejections(rejected, &context.shown)?,
            input: Arc::clone(&context.shown),
        })
    }
}

/// Returns the samples' ids, with those that their records do not say.
fn ids(samples: &StructArray, first_record: u64) -> Option<LargeStringArray> {
    let ids = samples.column(ID).as_string::<i64>();
    let has_id = samples.column(HAS_ID).as_boolean();
    if has_id.false_count() == 0 {
        return Some(ids.clone());
    }
    let records = samples.column(RECORD).as_primitive::<UInt64Type>();
    let mut all = LargeStringBuilder::with_capacity(ids.len(), ids.value_data().len());
    for row in 0..ids.len() {
        if has_id.value(row) {
            all.append_value(ids.value(row));
        } else {
            all.append_value(id_of(first_record.checked_add(records.value(row))?));
        }
    }
    Some(all.finish())
}

fn facts(samples: &StructArray, ids: &LargeStringArray, file: u32) -> Option<Vec<Facts>> {
    let numbers = |column: usize| samples.column(column).as_primitive::<UInt64Type>();
    let (records, offsets, lengths) = (numbers(RECORD), numbers(OFFSET), numbers(LENGTH));
    let has_id = samples.column(HAS_ID).as_boolean();
    let messages = samples.column(MESSAGES).as_list::<i64>();
    let roles = messages.values().as_struct().column(0).as_string::<i32>();
    let images = samples.column(IMAGES).as_list::<i64>();
    let pictures = images.values().as_struct();
    let range = |list: &LargeListArray, row: usize| {
        list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize
    };
    let fact = |row: usize| {
        let is_answer = |&turn: &usize| roles.value(turn) == Role::Assistant.as_str();
        Some(Facts {
            place: Place {
                record: records.value(row),
                offset: offsets.value(row),
                length: lengths.value(row),
            },
            id: key(ids.value(row)),
            has_id: has_id.value(row),
            answers: range(messages, row).filter(is_answer).count(),
            images: range(images, row)
                .map(|image| image_key(pictures, image, file))
                .collect::<Option<_>>()?,
        })
    };
    (0..samples.len()).map(fact).collect()
}

/// Returns what tells an image from others, as [`Picture::key`] does.
fn image_key(pictures: &StructArray, image: usize, file: u32) -> Option<ImageKey> {
    let paths = pictures.column(0).as_string::<i64>();
    let contents = pictures.column(1).as_binary::<i64>();
    let offsets = pictures.column(2).as_primitive::<UInt64Type>();
    let lengths = pictures.column(3).as_primitive::<UInt64Type>();
    let name = None;
    let picture = if contents.is_valid(image) {
        let bytes = contents.value(image).into();
        Picture::Bytes { name, bytes }
    } else if offsets.is_valid(image) && lengths.is_valid(image) {
        let (offset, length) = (offsets.value(image), lengths.value(image));
        Picture::Range {
            name,
            offset,
            length,
        }
    } else if paths.is_valid(image) {
        let path = paths.value(image);
        Picture::Path(path.into(), key(path))
    } else {
        return None;
    };
    Some(picture.key(file))
}

fn rejections(rejected: &StructArray, input: &Arc<str>) -> Option<Vec<Rejected>> {
    let numbers = |column: usize| rejected.column(column).as_primitive::<UInt64Type>();
    let (records, offsets, lengths) = (numbers(1), numbers(2), numbers(3));
    let ids = rejected.column(0).as_string::<i64>();
    let reasons = rejected.column(4).as_string::<i32>();
    let details = rejected.column(5).as_string::<i64>();
    let rejection = |row: usize| {
        let id = ids.is_valid(row).then(|| ids.value(row).into());
        let place = Place {
            record: records.value(row),
            offset: offsets.value(row),
            length: lengths.value(row),
        };
        let reason = Reason::from_code(reasons.value(row))?;
        Some(Rejection::new(reason, id, details.value(row).into()).at(input, place))
    };
    (0..rejected.len()).map(rejection).collect()
}
