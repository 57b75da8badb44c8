//! Rows of Arrow record batches, whatever file they come from: each becomes what a record of text says.
//!
//! An image that lies in a memory-mapped file is not copied: its range in the file goes into the pool.

use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};

use super::Input;
use super::container::{self, Container, Context, Parsed};
use super::fields::{Fault, Fields};
use super::format::Names;
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
    batch: Option<RecordBatch>,
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

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(batch) = self.batch.take() {
            return Ok(Some(batch));
        }
        self.stream.batches.next().transpose().map_err(|error| {
            let path = self.input.path.display();
            let row = self.done;
            Error::Pool(format!("{path}: cannot be read from row {row} on: {error}"))
        })
    }
}

impl Container for RowContainer {
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn container::Block>>> {
        observer.check()?;
        let Some(batch) = self.next_batch()? else {
            return Ok(None);
        };
        let rows = batch.num_rows();
        // What a row takes on average; images in a mapped file are not copied, so they may count too much.
        let row_bytes = batch.get_array_memory_size() / rows.max(1);
        let fit = self.limits.block_bytes / row_bytes.max(1);
        let most = fit.clamp(1, self.limits.block_records).min(rows);
        if most < rows {
            self.batch = Some(batch.slice(most, rows - most));
        }
        let first = self.done;
        self.done += most as u64;
        let share = self.done as f64 / self.stream.rows.max(1) as f64;
        let passed = ((self.size as f64 * share) as u64).clamp(self.counted, self.size);
        let advance = passed - self.counted;
        self.counted = passed;
        Ok(Some(Box::new(RowBlock {
            batch: batch.slice(0, most),
            first,
            mapped: self.stream.mapped.clone(),
            advance,
        })))
    }
}

struct RowBlock {
    batch: RecordBatch,
    /// Number of the first row in its file.
    first: u64,
    mapped: Option<Range<usize>>,
    advance: u64,
}

impl container::Block for RowBlock {
    fn records(&self) -> u64 {
        self.batch.num_rows() as u64
    }

    fn advance(&self) -> u64 {
        self.advance
    }

    fn parse(&self, context: &Context<'_>) -> Result<Parsed> {
        let records = self.batch.num_rows();
        let mut rows = Rows::new(context, records, 0);
        let fields = Fields::of(&self.batch, context.names, self.mapped.clone())
            .map_err(|why| Error::Pool(format!("{}: {why}", context.shown)))?;
        for row in 0..records {
            let record = self.first + row as u64;
            let place = Place {
                record,
                offset: record,
                length: 1,
            };
            match fields.draft(row) {
                Ok(draft) => rows.add(draft, place)?,
                Err(Fault::Rejected(rejection)) => rows.reject(rejection, place),
                Err(Fault::Outside) => {
                    return Err(Error::Pool(format!(
                        "{}: row {record} is damaged: an offset in it leads out of its column",
                        context.shown
                    )));
                }
            }
        }
        Ok(rows.finish())
    }
}
