//! What must hold for any bytes whatever; the fuzz targets and the tests of the cases kept from them share it.
// Each user of this module takes one of the functions.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields};
use mllm_selector_core::ingest::{Format, IngestOptions, ingest};
use mllm_selector_core::pool::ArrowFile;
use mllm_selector_core::{Error, Observer};
use serde::de::IgnoredAny;

/// Reads the bytes as a JSON array and as JSON lines.
///
/// An error or a pool must come of it; the pool must be whole, and the place of each row a JSON object, as
/// an independent parser sees it.
pub fn ingest_json(bytes: &[u8]) {
    let folder = folder();
    let options = IngestOptions {
        pool: folder.path().join("pool"),
        format: Format::LlavaJson,
        images: Some(folder.path().to_path_buf()),
        source: None,
        threads: Some(1),
        out: folder.path().join("pool.arrow"),
        rejected: folder.path().join("rejected.jsonl"),
    };
    fs::write(&options.pool, bytes).unwrap();
    for format in [Format::LlavaJson, Format::LlavaJsonl] {
        let options = IngestOptions {
            format,
            ..options.clone()
        };
        if let Ok(summary) = ingest(&options, &Observer::default()) {
            let rows = check_places(&options.out, bytes);
            assert_eq!(rows, summary.samples);
        }
    }
}

fn check_places(pool: &Path, input: &[u8]) -> u64 {
    let columns = [("offset", DataType::UInt64), ("length", DataType::UInt64)];
    let file = ArrowFile::open(pool, &columns).unwrap();
    for index in 0..file.batches() {
        let batch = file.batch(index).unwrap();
        let column = |index: usize| batch.column(index).as_primitive::<UInt64Type>().values();
        for (&offset, &length) in column(0).iter().zip(column(1)) {
            let record = &input[offset as usize..(offset + length) as usize];
            assert_eq!(record.first(), Some(&b'{'));
            serde_json::from_slice::<IgnoredAny>(record).unwrap();
        }
    }
    read_all(pool, &pool_columns()).unwrap()
}

/// Opens the bytes as a pool file and as a part of the scores, and looks at all there is in them.
pub fn open_arrow(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("file.arrow");
    fs::write(&path, bytes).unwrap();
    let _ = read_all(&path, &pool_columns());
    let _ = read_all(&path, &score_columns());
}

/// Opens a file and looks at every value of the columns.
pub fn read_all(path: &Path, columns: &[(&str, DataType)]) -> Result<u64, Error> {
    let file = ArrowFile::open(path, columns)?;
    let mut rows = 0;
    for index in 0..file.batches() {
        let batch = file.batch(index)?;
        look_at(&batch);
        rows += batch.num_rows() as u64;
    }
    assert_eq!(rows, file.rows());
    Ok(rows)
}

fn look_at(batch: &RecordBatch) {
    for column in batch.columns() {
        // Checks again, by the definition of the format, what the file's own checks let pass.
        column.to_data().validate_full().unwrap();
        follow(column);
    }
}

/// Follows every offset and reads every byte of the nested and variable parts.
fn follow(column: &ArrayRef) {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().flatten().for_each(touch),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().flatten().for_each(touch),
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            for row in 0..list.len() {
                assert!(list.value(row).len() as i64 == list.value_length(row));
            }
            follow(list.values());
        }
        DataType::Struct(_) => column.as_struct().columns().iter().for_each(follow),
        // Formatting a fixed-width column reads its ends.
        _ => drop(format!("{column:?}")),
    }
}

fn touch(text: &str) {
    assert!(std::str::from_utf8(text.as_bytes()).is_ok());
}

pub fn pool_columns() -> Vec<(&'static str, DataType)> {
    let messages = [
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::LargeUtf8, false),
    ];
    let images = [
        Field::new("path", DataType::LargeUtf8, true),
        Field::new("bytes", DataType::LargeBinary, true),
    ];
    let list = |fields: Fields| {
        DataType::LargeList(Arc::new(Field::new("item", DataType::Struct(fields), false)))
    };
    vec![
        ("id", DataType::LargeUtf8),
        ("source", DataType::LargeUtf8),
        ("messages", list(messages.into_iter().collect())),
        ("images", list(images.into_iter().collect())),
        ("offset", DataType::UInt64),
        ("length", DataType::UInt64),
    ]
}

pub fn score_columns() -> Vec<(&'static str, DataType)> {
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    vec![
        ("embedding", DataType::FixedSizeList(item, 4)),
        ("row", DataType::UInt64),
        ("reason", DataType::Utf8),
    ]
}

/// In memory where the system has such a file system: millions of tiny files are written.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}
