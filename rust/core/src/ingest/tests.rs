use std::fs;
use std::io::Cursor;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, LargeListArray, RecordBatch, UInt64Array};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::FileWriter;
use arrow_schema::DataType;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn ingest_within(options: &IngestOptions, limits: Limits, observer: &Observer) -> Result<Summary> {
    ingest_opened(options, by_format(options, limits), observer)
}

const SMALL: Limits = Limits {
    window: 64,
    block_bytes: 700,
    block_records: 7,
    record_bytes: 10_000,
};

fn options(folder: &Path, threads: usize) -> IngestOptions {
    IngestOptions {
        threads: Some(threads),
        renames_duplicates: false,
        ..IngestOptions::new(
            vec![Input {
                path: folder.join("pool.jsonl"),
                source: None,
            }],
            Format::Text(Dialect::Llava, Framing::Lines),
            folder.join(format!("{threads}.arrow")),
            folder.join(format!("{threads}.jsonl")),
        )
    }
}

fn write_pool(folder: &Path) {
    let lines = (0..500).map(|row| {
        let id = if row % 50 == 49 { row - 45 } else { row };
        let answer = if row % 11 == 10 { "" } else { "yes" };
        format!(
            r#"{{"id":{id},"conversations":[{{"from":"human","value":"{}"}},{{"from":"gpt","value":"{answer}"}}]}}"#,
            "é\\n".repeat(row % 23)
        ) + "\n"
    });
    fs::write(folder.join("pool.jsonl"), lines.collect::<String>()).unwrap();
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    write_pool(folder.path());
    let read = |threads: usize| {
        let options = options(folder.path(), threads);
        let observer = Observer::default();
        let summary = ingest_within(&options, SMALL, &observer).unwrap();
        assert_eq!(observer.progress(), (summary.bytes, summary.bytes));
        (
            summary,
            fs::read(&options.out).unwrap(),
            fs::read(&options.rejected).unwrap(),
        )
    };
    let first = read(1);
    let rejected: Vec<_> = first.0.rejected.clone().into_iter().collect();
    // 45 of the 500 answers are blank; of the 10 repeated ids one is that of such a record.
    assert_eq!(rejected, [(Reason::NoAnswer, 45), (Reason::DuplicateId, 9)]);
    assert_eq!(first.0.samples, 446);
    for threads in [2, 8] {
        assert_eq!(read(threads), first);
    }
}

#[test]
fn a_stopped_call_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_pool(folder.path());
    let observer = Observer::default();
    observer.stop();
    let outcome = ingest_within(&options(folder.path(), 2), SMALL, &observer);
    assert!(matches!(outcome, Err(Error::Interrupted)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_earliest_fault_is_the_one_reported() {
    let folder = tempfile::tempdir().unwrap();
    let record = r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#;
    // While the input is read, and once it has been.
    for (first, second) in [(5, 15), (40, 50)] {
        let mut records = vec![record.to_owned(); 60];
        records[first] = r#"{"a":tru}"#.into();
        records[second] = r#"{"a":}"#.into();
        let text = format!("[{}] x", records.join(","));
        let mut options = options(folder.path(), 1);
        options.format = Format::Text(Dialect::Llava, Framing::Array);
        fs::write(&options.inputs[0].path, &text).unwrap();
        let found = ingest_within(&options, SMALL, &Observer::default())
            .unwrap_err()
            .to_string();
        let byte = text.find("tru").unwrap();
        let expected = format!("byte {byte}, record {first}: not JSON: found 't'");
        assert!(found.contains(&expected), "{found}");
    }
}

/// A pool of three inputs: ids that repeat within and across them, none, bad records, carried images.
fn write_inputs(folder: &Path) -> Vec<Input> {
    let image = STANDARD
        .encode(b"BM\x1e\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0\xff\xff\xff\0");
    let record = |row: usize| {
        let id = match row % 7 {
            0 => String::new(),
            1 => format!(r#""id":"row-{}","#, row - 1),
            _ => format!(r#""id":{},"#, row % 400),
        };
        let (mark, shown) = match row % 5 {
            3 => (
                "<image>",
                format!(r#""image":"data:image/bmp;base64,{image}","#),
            ),
            4 if row.is_multiple_of(2) => ("<image>", String::new()),
            _ => ("", String::new()),
        };
        let answer = if row % 11 == 10 { "" } else { "yes" };
        format!(
            r#"{{{id}{shown}"conversations":[{{"from":"human","value":"{mark}{}"}},{{"from":"gpt","value":"{answer}"}}]}}"#,
            "é\\n".repeat(row % 23)
        ) + "\n"
    };
    [0..200, 200..201, 201..450]
        .into_iter()
        .enumerate()
        .map(|(number, rows)| {
            let path = folder.join(format!("mix-{number}.jsonl"));
            fs::write(&path, rows.map(record).collect::<String>()).unwrap();
            let source = (number == 1).then(|| "given".to_owned());
            Input { path, source }
        })
        .collect()
}

fn read_parts(options: &IngestOptions, limits: Limits) -> Result<Vec<PathBuf>> {
    let inputs = options.inputs.iter().enumerate();
    inputs
        .map(|(number, input)| {
            let one = IngestOptions {
                inputs: vec![input.clone()],
                ..options.clone()
            };
            let mut part = Vec::new();
            let open = by_format(&one, limits);
            read_part_opened(&one, open, &mut part, &Observer::default())?;
            let path = options.out.with_extension(format!("{number}.part"));
            fs::write(&path, part).unwrap();
            Ok(path)
        })
        .collect()
}

#[test]
fn parts_become_the_same_pool() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = write_inputs(folder.path());
    for renames_duplicates in [true, false] {
        let whole = IngestOptions {
            inputs: inputs.clone(),
            renames_duplicates,
            ..options(folder.path(), 2)
        };
        let expected = ingest_within(&whole, SMALL, &Observer::default()).unwrap();
        assert!(expected.rejected[&Reason::NoAnswer] > 20);
        assert!(expected.rejected[&Reason::ImageMarks] > 20);
        assert_eq!(expected.images, 1);
        match renames_duplicates {
            true => assert!(expected.renamed > 60),
            false => assert!(expected.rejected[&Reason::DuplicateId] > 60),
        }
        let joined = IngestOptions {
            out: folder.path().join("joined.arrow"),
            rejected: folder.path().join("joined.jsonl"),
            ..whole.clone()
        };
        let parts = read_parts(&joined, SMALL).unwrap();
        let observer = Observer::default();
        let found = join_parts(&joined, &parts, &observer).unwrap();
        assert_eq!(found, expected);
        assert_eq!(observer.progress(), (expected.bytes, expected.bytes));
        for (one, other) in [
            (&joined.out, &whole.out),
            (&joined.rejected, &whole.rejected),
        ] {
            assert!(fs::read(one).unwrap() == fs::read(other).unwrap());
        }
    }
}

#[test]
fn a_part_of_which_something_is_wrong_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions {
        inputs: write_inputs(folder.path()),
        renames_duplicates: true,
        ..options(folder.path(), 1)
    };
    let strict = IngestOptions {
        strict: true,
        ..options.clone()
    };
    let expected = ingest(&strict, &Observer::default()).unwrap_err();
    let found = read_parts(&strict, LIMITS).unwrap_err();
    assert_eq!(found.to_string(), expected.to_string());
    // Each is whole, and that of another input, unless it is cut off or is no part at all.
    let parts = read_parts(&options, SMALL).unwrap();
    let join = |parts: &[PathBuf]| join_parts(&options, parts, &Observer::default());
    let refused = |parts: &[PathBuf]| join(parts).unwrap_err().to_string();
    assert!(refused(&parts[1..]).contains("2 parts of 3 inputs"));
    let content = fs::read(&parts[0]).unwrap();
    fs::write(&parts[0], &content[..content.len() - 9]).unwrap();
    assert!(refused(&parts).contains("0.part is not a whole Arrow file"));
    fs::write(&parts[0], content).unwrap();
    join(&parts).unwrap();
    fs::copy(&options.out, &parts[0]).unwrap();
    assert!(refused(&parts).contains("it has no column 'records'"));
}

/// Puts other columns into the only block of a part.
fn with_columns(part: &[u8], change: impl Fn(&mut Vec<ArrayRef>)) -> Vec<u8> {
    let mut reader = FileReader::try_new(Cursor::new(part), None).unwrap();
    let block = reader.next().unwrap().unwrap();
    let mut columns = block.columns().to_vec();
    change(&mut columns);
    let mut writer = FileWriter::try_new(Vec::new(), &block.schema()).unwrap();
    let hash = blake3::hash(b"").to_hex();
    writer.write_metadata("mllm_selector.input_hash", hash.as_str());
    writer
        .write(&RecordBatch::try_new(block.schema(), columns).unwrap())
        .unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn a_part_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    write_pool(folder.path());
    options.renames_duplicates = true;
    let [path] = &read_parts(&options, LIMITS).unwrap()[..] else {
        panic!("one part")
    };
    let part = fs::read(path).unwrap();
    let joined = |change: &dyn Fn(&mut Vec<ArrayRef>)| {
        fs::write(path, with_columns(&part, change)).unwrap();
        join_parts(&options, std::slice::from_ref(path), &Observer::default())
    };
    let number = |number: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![number])) };
    joined(&|_| {}).unwrap();
    for wrong in [0, 499, 501, 8193, u64::MAX] {
        let error = joined(&|columns| columns[0] = number(wrong)).unwrap_err();
        assert!(error.to_string().contains("batch 0 is damaged"), "{error}");
    }
    // Lists of fewer entries than there are, of none, and of a reason that there is not.
    for column in [1, 2] {
        let shorter = |columns: &mut Vec<ArrayRef>| {
            let list = columns[column].as_list::<i64>();
            let DataType::LargeList(item) = list.data_type() else {
                panic!("a list")
            };
            let offsets = OffsetBuffer::from_lengths([list.values().len() - 1]);
            columns[column] = Arc::new(LargeListArray::new(
                Arc::clone(item),
                offsets,
                Arc::clone(list.values()),
                None,
            ));
        };
        let error = joined(&shorter).unwrap_err().to_string();
        assert!(error.contains("its samples are none"), "{error}");
    }
}
