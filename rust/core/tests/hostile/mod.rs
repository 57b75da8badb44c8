//! What must hold for any bytes whatever; the fuzz targets and the tests of the cases kept from them share it.
// Each user of this module takes one of the functions.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field};
use mllm_selector_core::ingest::{
    Dialect, Format, Framing, Images, IngestOptions, Input, ingest, join_parts,
};
use mllm_selector_core::pool::{ArrowFile, PoolFile};
use mllm_selector_core::{Error, Observer};
use serde::de::IgnoredAny;

/// Reads the bytes as a JSON array and as JSON lines, of any dialect.
///
/// An error or a pool must come of it; the pool must be whole, and the place of each row a JSON object, as
/// an independent parser sees it.
pub(crate) fn ingest_json(bytes: &[u8]) {
    const DIALECTS: [Dialect; 3] = [Dialect::Llava, Dialect::ShareGpt, Dialect::Messages];
    let folder = folder();
    let input = folder.path().join("pool");
    fs::write(&input, bytes).unwrap();
    // All dialects take most records alike, so one for each input will do.
    let dialect = DIALECTS[bytes.len() % DIALECTS.len()];
    for framing in [Framing::Array, Framing::Lines] {
        let options = IngestOptions {
            images: Some(Images::Folder(folder.path().to_path_buf())),
            renames_duplicates: bytes.len().is_multiple_of(2),
            threads: Some(1),
            ..IngestOptions::new(
                vec![Input {
                    path: input.clone(),
                    source: None,
                }],
                Format::Text(dialect, framing),
                folder.path().join("pool.arrow"),
                folder.path().join("rejected.jsonl"),
            )
        };
        if let Ok(summary) = ingest(&options, &Observer::default()) {
            let pool = PoolFile::open(&options.out).unwrap();
            assert!(read_pool(&pool));
            assert_eq!(pool.columns().rows(), summary.samples);
            // The places of compressed text are not those of the file.
            if !bytes.starts_with(b"\x1f\x8b") && !bytes.starts_with(b"\x28\xb5\x2f\xfd") {
                check_places(&pool, bytes);
            }
        }
    }
}

fn check_places(pool: &PoolFile, input: &[u8]) {
    let file = pool.columns().select(&["offset", "length"]).unwrap();
    for index in 0..file.batches() {
        let batch = file.batch(index).unwrap();
        let column = |index: usize| batch.column(index).as_primitive::<UInt64Type>().values();
        for (&offset, &length) in column(0).iter().zip(column(1)) {
            let record = &input[offset as usize..(offset + length) as usize];
            assert_eq!(record.first(), Some(&b'{'));
            serde_json::from_slice::<IgnoredAny>(record).unwrap();
        }
    }
}

/// Opens the bytes as a pool file, as a part of the scores and as a part of a pool, and looks at all there is in
/// them.
pub(crate) fn open_arrow(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("file.arrow");
    fs::write(&path, bytes).unwrap();
    if let Ok(pool) = PoolFile::open(&path) {
        read_pool(&pool);
    }
    let _ = read_all(&path, &score_columns());
    if !bytes.is_empty() {
        join(folder.path(), &path);
    }
}

/// Makes a pool of a file as the only part; an error or a whole pool must come of it.
fn join(folder: &Path, part: &Path) {
    let options = IngestOptions {
        threads: Some(1),
        ..IngestOptions::new(
            vec![Input {
                path: part.to_path_buf(),
                source: None,
            }],
            Format::WebDataset,
            folder.join("pool.arrow"),
            folder.join("rejected.jsonl"),
        )
    };
    if let Ok(summary) = join_parts(&options, &[part.to_path_buf()], &Observer::default()) {
        let pool = PoolFile::open(&options.out).unwrap();
        assert!(read_pool(&pool));
        assert_eq!(pool.columns().rows(), summary.samples);
    }
}

/// Reads a pool by columns and by rows, which must agree; says whether all of it is whole.
pub(crate) fn read_pool(pool: &PoolFile) -> bool {
    /// A damaged batch may claim any number of rows.
    const MOST_ROWS: u64 = 100;
    let columns = pool.columns();
    let mut is_whole = true;
    for index in 0..columns.batches() {
        let (start, end) = (columns.starts()[index], columns.starts()[index + 1]);
        let batch = columns.batch(index);
        is_whole &= batch.is_ok();
        for row in start..end.min(start + MOST_ROWS) {
            match (&batch, pool.row(row)) {
                (Ok(batch), Ok(found)) => {
                    let at = (row - start) as usize;
                    assert_eq!(found.id, batch.column(0).as_string::<i64>().value(at));
                    assert_eq!(found.source, batch.column(1).as_string::<i64>().value(at));
                    let turns = batch.column(2).as_list::<i64>().value_length(at);
                    assert_eq!(found.messages.len() as i64, turns);
                    let images = batch.column(3).as_list::<i64>().value_length(at);
                    assert_eq!(found.images.len() as i64, images);
                }
                (Ok(_), Err(error)) => panic!("row {row} of a whole batch: {error}"),
                (Err(_), _) => {}
            }
        }
        batch.as_ref().map(look_at).ok();
    }
    is_whole
}

/// Opens a file and looks at every value of the columns.
pub(crate) fn read_all(path: &Path, columns: &[(&str, DataType)]) -> Result<u64, Error> {
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

pub(crate) fn score_columns() -> Vec<(&'static str, DataType)> {
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
