//! Rows of Arrow record batches, whatever file they come from: each becomes what a record of text says.
//!
//! An image that lies in a memory-mapped file is not copied: its range in the file goes into the pool.

use std::ops::Range;

use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, SchemaRef};

use super::Input;
use super::container::{self, Container, Context, Parsed};
use super::fields::{Fault, Fields};
use super::format::Names;
use super::record::Draft;
use super::reject::{Reason, Rejection};
use super::rows::Rows;
use super::split::{Limits, Place};
use crate::{Error, Observer, Result};

/// The rows of one file.
pub struct RowStream {
    /// Columns of the batches: `messages` or `conversations`, and if there are, `images` or `image`, `id`, `source`
    /// and `system`.
    pub schema: SchemaRef,
    /// The rows in the order of the file. Buffers must be as long as their types say; what offsets and texts
    /// hold is checked here.
    pub batches: Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>>>,
    /// Rows in all.
    pub rows: u64,
    /// Where in memory the file is mapped, if it is.
    pub mapped: Option<Range<usize>>,
}

/// The rows of one file, cut into blocks.
pub(super) struct RowContainer {
    input: Input,
    stream: RowStream,
    limits: Limits,
    /// Size of the file in bytes.
    size: u64,
    /// What is left of a batch, and the bytes that a row of it takes in the pool.
    batch: Option<(RecordBatch, usize)>,
    /// Rows handed out.
    done: u64,
    counted: u64,
}

impl RowContainer {
    pub(super) fn open(
        input: &Input,
        stream: RowStream,
        names: &Names,
        limits: Limits,
    ) -> Result<Self> {
        // Batches are of this schema too, so that their columns need no further check.
        Fields::of(&RecordBatch::new_empty(stream.schema.clone()), names, None)
            .map_err(|why| Error::Pool(format!("{}: {why}", input.path.display())))?;
        Ok(Self {
            input: input.clone(),
            size: container::check_file(input)?,
            stream,
            limits,
            batch: None,
            done: 0,
            counted: 0,
        })
    }

    fn next_batch(&mut self) -> Result<Option<(RecordBatch, usize)>> {
        if self.batch.is_some() {
            return Ok(self.batch.take());
        }
        let batch = self.stream.batches.next().transpose().map_err(|error| {
            let path = self.input.path.display();
            let row = self.done;
            Error::Pool(format!("{path}: cannot be read from row {row} on: {error}"))
        })?;
        Ok(batch.map(|batch| {
            let columns = batch.columns().iter();
            let bytes: usize = columns
                .map(|column| copied_bytes(&column.to_data(), self.stream.mapped.as_ref()))
                .sum();
            let row_bytes = bytes / batch.num_rows().max(1);
            (batch, row_bytes.max(1))
        }))
    }
}

impl Container for RowContainer {
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn container::Block>>> {
        observer.check()?;
        let mut batches = Vec::new();
        let mut bytes = 0;
        let mut room_rows = self.limits.block_records;
        let mut room_bytes = self.limits.block_bytes;
        while room_rows > 0
            && let Some((batch, row_bytes)) = self.next_batch()?
        {
            let fit = (room_bytes / row_bytes).max(usize::from(batches.is_empty()));
            let most = batch.num_rows().min(room_rows).min(fit);
            if most < batch.num_rows() {
                let rest = batch.slice(most, batch.num_rows() - most);
                self.batch = Some((rest, row_bytes));
                // The block is full.
                room_rows = most;
            }
            bytes += most * row_bytes;
            if most > 0 {
                batches.push(batch.slice(0, most));
            }
            room_rows -= most;
            room_bytes = room_bytes.saturating_sub(most * row_bytes);
        }
        if batches.is_empty() {
            return Ok(None);
        }
        let first = self.done;
        self.done += batches
            .iter()
            .map(|batch| batch.num_rows() as u64)
            .sum::<u64>();
        let share = self.done as f64 / self.stream.rows.max(1) as f64;
        let passed = ((self.size as f64 * share) as u64).clamp(self.counted, self.size);
        let advance = passed - self.counted;
        self.counted = passed;
        Ok(Some(Box::new(RowBlock {
            batches,
            // Images of a single huge row are no texts, and whole buffers count for each slice of them.
            bytes: bytes.min(self.limits.block_bytes),
            first,
            mapped: self.stream.mapped.clone(),
            most: self.limits.record_bytes,
            advance,
        })))
    }
}

/// Returns how many bytes of a column go into the pool: all but images that stay in the mapped file.
fn copied_bytes(data: &ArrayData, mapped: Option<&Range<usize>>) -> usize {
    let is_binary = matches!(data.data_type(), DataType::Binary | DataType::LargeBinary);
    let stays = |buffer: &Buffer| {
        is_binary && mapped.is_some_and(|mapped| mapped.contains(&buffer.as_ptr().addr()))
    };
    let own = data.buffers().iter().filter(|buffer| !stays(buffer));
    let children = data.child_data().iter();
    own.map(Buffer::len).sum::<usize>()
        + children
            .map(|child| copied_bytes(child, mapped))
            .sum::<usize>()
}

struct RowBlock {
    batches: Vec<RecordBatch>,
    /// About how many bytes their texts take.
    bytes: usize,
    /// Number of the first row in its file.
    first: u64,
    mapped: Option<Range<usize>>,
    /// Rows whose texts and images take more bytes are set aside.
    most: u64,
    advance: u64,
}

impl container::Block for RowBlock {
    fn records(&self) -> u64 {
        let batches = self.batches.iter();
        batches.map(|batch| batch.num_rows() as u64).sum()
    }

    fn advance(&self) -> u64 {
        self.advance
    }

    fn parse(&self, context: &Context<'_>) -> Result<Parsed> {
        let mut rows = Rows::new(context, self.records() as usize, self.bytes);
        let mut record = self.first;
        for batch in &self.batches {
            let fields = Fields::of(batch, context.names, self.mapped.clone())
                .map_err(|why| Error::Pool(format!("{}: {why}", context.shown)))?;
            for row in 0..batch.num_rows() {
                let place = Place {
                    record,
                    offset: record,
                    length: 1,
                };
                match fields.draft(row) {
                    Ok(draft) if draft.bytes() > self.most => {
                        rows.reject(too_large(draft, self.most), place);
                    }
                    Ok(draft) => rows.add(draft, place)?,
                    Err(Fault::Rejected(rejection)) => rows.reject(rejection, place),
                    Err(Fault::Outside) => {
                        return Err(Error::Pool(format!(
                            "{}: row {record} is damaged: an offset in it leads out of its column",
                            context.shown
                        )));
                    }
                }
                record += 1;
            }
        }
        Ok(rows.finish())
    }
}

fn too_large(draft: Draft<'_>, most: u64) -> Rejection {
    let detail = format!(
        "the row's texts and images have {} bytes; ingest takes at most {} MiB",
        draft.bytes(),
        most >> 20
    );
    let id = draft.id.filter(|id| id.len() as u64 <= most);
    Rejection::new(Reason::TooLarge, id, detail)
}
