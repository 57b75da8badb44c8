//! The columns of `pool.arrow`.

use std::collections::HashMap;
use std::path;
use std::sync::Arc;

use arrow_array::builder::{LargeBinaryBuilder, LargeStringBuilder, StringBuilder, UInt64Builder};
use arrow_array::{ArrayRef, LargeListArray, RecordBatch, StructArray, UInt32Array, UInt64Array};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{Fields, Schema};
use serde_json::{Value, json};

use super::container::Context;
use super::picture::Picture;
use super::record::Sample;
use super::split::Place;
use super::{FORMAT_KEY, Format, INPUTS_KEY, Input, POOL_VERSION, VERSION_KEY};
use crate::pool::schema::{image_fields, item, message_fields, pool_columns};
use crate::{Error, Result};

/// Returns the schema of a pool file.
pub(super) fn schema(format: Format, inputs: &[Input]) -> Result<Schema> {
    let metadata: HashMap<_, _> = [
        (VERSION_KEY, POOL_VERSION.to_owned()),
        (FORMAT_KEY, format.name().to_owned()),
        (INPUTS_KEY, listed(inputs)?),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    Ok(Schema::new_with_metadata(pool_columns(), metadata))
}

/// Writes the inputs as JSON: absolute paths, for a later call may run in another folder.
fn listed(inputs: &[Input]) -> Result<String> {
    let entry = |input: &Input| {
        let path = &input.path;
        let absolute = path::absolute(path).map_err(|source| Error::io("find", path, source))?;
        Ok(json!({ "path": absolute.to_string_lossy(), "source": input.source }))
    };
    let entries: Vec<Value> = inputs.iter().map(entry).collect::<Result<_>>()?;
    Ok(Value::from(entries).to_string())
}

/// Rows of one record batch, growing.
pub(super) struct Columns {
    id: LargeStringBuilder,
    source: LargeStringBuilder,
    roles: StringBuilder,
    contents: LargeStringBuilder,
    turns_per_row: Vec<usize>,
    images: ImageColumns,
    images_per_row: Vec<usize>,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

impl Columns {
    /// Makes room for `rows` records of about `bytes` in all.
    pub(super) fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self {
            id: LargeStringBuilder::new(),
            source: LargeStringBuilder::new(),
            roles: StringBuilder::new(),
            contents: LargeStringBuilder::with_capacity(rows * 2, bytes),
            turns_per_row: Vec::with_capacity(rows),
            images: ImageColumns::default(),
            images_per_row: Vec::with_capacity(rows),
            offsets: Vec::with_capacity(rows),
            lengths: Vec::with_capacity(rows),
        }
    }

    pub(super) fn push(&mut self, id: &str, source: &str, sample: &Sample<'_>, place: &Place) {
        self.id.append_value(id);
        self.source.append_value(source);
        for (role, content) in &sample.turns {
            self.roles.append_value(role.as_str());
            self.contents.append_value(content);
        }
        self.turns_per_row.push(sample.turns.len());
        for image in &sample.images {
            self.images.push(image);
        }
        self.images_per_row.push(sample.images.len());
        self.offsets.push(place.offset);
        self.lengths.push(place.length);
    }

    pub(super) fn finish(mut self, context: &Context<'_>) -> RecordBatch {
        let messages: Vec<ArrayRef> = vec![
            Arc::new(self.roles.finish()),
            Arc::new(self.contents.finish()),
        ];
        let images = self.images.finish();
        let rows = self.offsets.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(list(message_fields(), messages, self.turns_per_row)),
            Arc::new(list(image_fields(), images, self.images_per_row)),
            Arc::new(UInt32Array::from(vec![context.file; rows])),
            Arc::new(UInt64Array::from(self.offsets)),
            Arc::new(UInt64Array::from(self.lengths)),
        ];
        RecordBatch::try_new(Arc::clone(&context.schema), columns)
            .expect("the columns are built to the schema and have one entry a row")
    }
}

/// The images of all rows, one after another.
#[derive(Default)]
struct ImageColumns {
    path: LargeStringBuilder,
    bytes: LargeBinaryBuilder,
    offset: UInt64Builder,
    length: UInt64Builder,
}

impl ImageColumns {
    fn push(&mut self, image: &Picture<'_>) {
        let (path, bytes, range) = match image {
            Picture::Path(path, _) => (Some(path.as_ref()), None, None),
            Picture::Bytes { name, bytes } => (name.as_deref(), Some(bytes.as_ref()), None),
            Picture::Range {
                name,
                offset,
                length,
            } => (name.as_deref(), None, Some((*offset, *length))),
        };
        self.path.append_option(path);
        self.bytes.append_option(bytes);
        self.offset.append_option(range.map(|(offset, _)| offset));
        self.length.append_option(range.map(|(_, length)| length));
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.path.finish()),
            Arc::new(self.bytes.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.length.finish()),
        ]
    }
}

fn list(fields: Fields, columns: Vec<ArrayRef>, lengths: Vec<usize>) -> LargeListArray {
    let rows = StructArray::new(fields.clone(), columns, None);
    LargeListArray::new(
        item(fields),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(rows),
        None,
    )
}
