//! Mapped Arrow files: what is read, and that no damage whatever leads to a crash.

mod hostile;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float16Array, RecordBatch, StringArray, UInt64Array,
};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field};
use half::f16;
use hostile::{read_all, read_pool, score_columns};
use mllm_selector_core::ingest::{Dialect, Format, Framing, IngestOptions, Input, ingest};
use mllm_selector_core::pool::{ArrowFile, PoolFile};
use mllm_selector_core::{Error, Observer};
use proptest::prelude::*;

/// A score part: rows, embeddings and a column with nulls, in batches of `rows`.
fn write_scores(path: &Path, rows: &[u64]) {
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    let batch = |from: u64, count: u64| {
        let values = (0..count * 4).map(|value| f16::from_f32((from + value) as f32));
        let embedding = FixedSizeListArray::new(
            item.clone(),
            4,
            Arc::new(Float16Array::from_iter_values(values)),
            None,
        );
        let reasons = (0..count).map(|row| (row % 2 == 0).then_some("too long"));
        let columns: [(&str, ArrayRef); 3] = [
            (
                "row",
                Arc::new(UInt64Array::from_iter_values(from..from + count)),
            ),
            ("reason", Arc::new(reasons.collect::<StringArray>())),
            ("embedding", Arc::new(embedding)),
        ];
        RecordBatch::try_from_iter_with_nullable(
            columns.map(|(name, column)| (name, column, name == "reason")),
        )
        .unwrap()
    };
    let mut from = 0;
    let mut writer =
        FileWriter::try_new(File::create(path).unwrap(), &batch(0, 1).schema()).unwrap();
    for &count in rows {
        writer.write(&batch(from, count)).unwrap();
        from += count;
    }
    writer.finish().unwrap();
}

/// A pool of a few records.
fn write_pool(folder: &Path) -> PathBuf {
    let input = folder.join("input.jsonl");
    let line = r#"{"conversations":[{"from":"human","value":"é?"},{"from":"gpt","value":"a"}]}"#;
    fs::write(&input, [line; 5].join("\n")).unwrap();
    let options = IngestOptions {
        threads: Some(1),
        ..IngestOptions::new(
            vec![Input {
                path: input,
                source: None,
            }],
            Format::Text(Dialect::Llava, Framing::Lines),
            folder.join("pool.arrow"),
            folder.join("rejected.jsonl"),
        )
    };
    ingest(&options, &Observer::default()).unwrap();
    options.out
}

#[test]
fn rows_are_found_in_their_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    write_scores(&path, &[3, 1, 5]);
    let file = ArrowFile::open(&path, &score_columns()).unwrap();
    assert_eq!((file.rows(), file.batches()), (9, 3));
    for row in 0..9 {
        let (batch, position) = file.locate(row).unwrap();
        let batch = file.batch(batch).unwrap();
        // Columns come in the order asked for, not in the file's.
        assert_eq!(
            batch.column(1).as_primitive::<UInt64Type>().value(position),
            row
        );
    }
    assert_eq!(file.locate(9), None);
}

#[test]
fn columns_are_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    write_scores(&path, &[100]);
    let file = ArrowFile::open(&path, &score_columns()).unwrap();
    let address = || {
        file.batch(0)
            .unwrap()
            .column(1)
            .as_primitive::<UInt64Type>()
            .values()
            .as_ptr()
    };
    assert_eq!(address(), address());
}

#[test]
fn a_missing_or_other_column_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    write_scores(&path, &[3]);
    for (name, data_type, expected) in [
        ("necessity", DataType::Float32, "no column 'necessity'"),
        ("row", DataType::Int64, "column 'row' is UInt64, not Int64"),
    ] {
        let error = ArrowFile::open(&path, &[(name, data_type)])
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = ArrowFile::open(&folder.path().join("none"), &[])
        .err()
        .unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let error = ArrowFile::open(folder.path(), &[])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

/// A file without batches, as a machine of the other byte order would write it.
fn foreign_file() -> Vec<u8> {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let fields = builder.create_vector::<flatbuffers::WIPOffset<arrow_ipc::Field<'_>>>(&[]);
    let mut schema = arrow_ipc::SchemaBuilder::new(&mut builder);
    schema.add_endianness(arrow_ipc::Endianness::Big);
    schema.add_fields(fields);
    let schema = schema.finish();
    let mut footer = arrow_ipc::FooterBuilder::new(&mut builder);
    footer.add_version(arrow_ipc::MetadataVersion::V5);
    footer.add_schema(schema);
    let footer = footer.finish();
    builder.finish(footer, None);
    let footer = builder.finished_data();
    let length = (footer.len() as u32).to_le_bytes();
    [b"ARROW1\0\0", footer, &length, b"ARROW1"].concat()
}

#[test]
fn another_byte_order_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreign.arrow");
    fs::write(&path, foreign_file()).unwrap();
    let error = PoolFile::open(&path).err().unwrap().to_string();
    assert!(error.contains("another byte order"), "{error}");
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    write_scores(&whole, &[3, 2]);
    let bytes = fs::read(&whole).unwrap();
    for length in 0..bytes.len() {
        fs::write(&cut, &bytes[..length]).unwrap();
        assert!(read_all(&cut, &score_columns()).is_err(), "cut at {length}");
    }
}

/// Every byte changed in several ways gives an error or other values; a panic fails the test.
fn flip_every_byte(path: &Path, is_whole: impl Fn() -> bool) {
    assert!(is_whole());
    let bytes = fs::read(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    let mut errors = 0;
    for (at, byte) in bytes.iter().enumerate() {
        for flip in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte ^ flip], at as u64).unwrap();
            errors += usize::from(!is_whole());
        }
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    assert!(is_whole());
    assert!(
        errors > bytes.len() / 10,
        "only {errors} of {} bytes are noticed",
        bytes.len()
    );
}

#[test]
fn a_flipped_byte_of_a_score_part_never_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    write_scores(&path, &[3, 2]);
    flip_every_byte(&path, || read_all(&path, &score_columns()).is_ok());
}

#[test]
fn a_flipped_byte_of_a_pool_never_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_pool(folder.path());
    flip_every_byte(&path, || {
        PoolFile::open(&path).is_ok_and(|pool| read_pool(&pool))
    });
}

#[test]
fn rows_are_read_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let pool = PoolFile::open(&write_pool(folder.path())).unwrap();
    for row in [4, 0, 3] {
        let found = pool.row(row).unwrap();
        assert_eq!(found.id, format!("row-{row}"));
        assert_eq!(found.messages, [("user", "é?"), ("assistant", "a")]);
        assert_eq!((found.source, found.file), ("input", 0));
        assert!(found.images.is_empty());
        assert_eq!(pool.id(row).unwrap(), found.id);
    }
    let error = pool.row(5).unwrap_err().to_string();
    assert!(error.contains("row 5 is not in a pool of 5"), "{error}");
}

#[test]
fn other_columns_can_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.arrow");
    write_scores(&path, &[3, 2]);
    let file = ArrowFile::open(&path, &score_columns()).unwrap();
    let selected = file.select(&["reason"]).unwrap();
    assert_eq!(selected.schema().fields().len(), 1);
    assert_eq!(selected.batch(1).unwrap().num_columns(), 1);
    let error = file.select(&["more"]).err().unwrap().to_string();
    assert!(
        error.contains("'more' is not one of row, reason, embedding"),
        "{error}"
    );
    let error = PoolFile::open(&path).err().unwrap().to_string();
    assert!(
        error.contains("is not a pool of version 2 (it says nothing)"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn several_changes_at_once_never_crash(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<i64>(), 1..9_usize), 1..4)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.arrow");
        write_scores(&path, &[3, 2]);
        let mut bytes = fs::read(&path).unwrap();
        for (at, value, width) in changes {
            let at = at.index(bytes.len() - width);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        fs::write(&path, &bytes).unwrap();
        let _ = read_all(&path, &score_columns());
    }
}
