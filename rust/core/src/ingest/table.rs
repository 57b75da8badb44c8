//! The columns of `pool.arrow`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{LargeStringBuilder, StringBuilder};
use arrow_array::{
    Array, ArrayRef, LargeBinaryArray, LargeListArray, RecordBatch, StructArray, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Fields, Schema};

use super::record::Sample;
use super::split::Place;
use super::{FORMAT_KEY, Format, POOL_VERSION, VERSION_KEY};

/// Returns the schema of a pool file.
pub(super) fn schema(format: Format) -> Schema {
    let columns = vec![
        Field::new("id", DataType::LargeUtf8, false),
        Field::new("source", DataType::LargeUtf8, false),
        Field::new(
            "messages",
            DataType::LargeList(item(message_fields())),
            false,
        ),
        Field::new("images", DataType::LargeList(item(image_fields())), false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("length", DataType::UInt64, false),
    ];
    let metadata = [(VERSION_KEY, POOL_VERSION), (FORMAT_KEY, format.name())];
    let metadata: HashMap<_, _> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Schema::new_with_metadata(columns, metadata)
}

fn message_fields() -> Fields {
    vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::LargeUtf8, false),
    ]
    .into()
}

fn image_fields() -> Fields {
    vec![
        Field::new("path", DataType::LargeUtf8, true),
        Field::new("bytes", DataType::LargeBinary, true),
    ]
    .into()
}

fn item(fields: Fields) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(fields), false))
}

/// Rows of one record batch, growing.
pub(super) struct Columns {
    id: LargeStringBuilder,
    source: LargeStringBuilder,
    roles: StringBuilder,
    contents: LargeStringBuilder,
    turns_per_row: Vec<usize>,
    image_paths: LargeStringBuilder,
    images_per_row: Vec<usize>,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

impl Columns {
    /// Makes room for `rows` records of `bytes` in all, which hold at least as many bytes as their texts.
    pub(super) fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self {
            id: LargeStringBuilder::new(),
            source: LargeStringBuilder::new(),
            roles: StringBuilder::new(),
            contents: LargeStringBuilder::with_capacity(rows * 2, bytes),
            turns_per_row: Vec::with_capacity(rows),
            image_paths: LargeStringBuilder::new(),
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
        for (path, _) in &sample.images {
            self.image_paths.append_value(path);
        }
        self.images_per_row.push(sample.images.len());
        self.offsets.push(place.offset);
        self.lengths.push(place.length);
    }

    pub(super) fn finish(mut self, format: Format) -> RecordBatch {
        let messages: Vec<ArrayRef> = vec![
            Arc::new(self.roles.finish()),
            Arc::new(self.contents.finish()),
        ];
        let paths = self.image_paths.finish();
        let no_bytes = LargeBinaryArray::new_null(paths.len());
        let images: Vec<ArrayRef> = vec![Arc::new(paths), Arc::new(no_bytes)];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(list(message_fields(), messages, self.turns_per_row)),
            Arc::new(list(image_fields(), images, self.images_per_row)),
            Arc::new(UInt64Array::from(self.offsets)),
            Arc::new(UInt64Array::from(self.lengths)),
        ];
        RecordBatch::try_new(Arc::new(schema(format)), columns)
            .expect("the columns are built to the schema and have one entry a row")
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
