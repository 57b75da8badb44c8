//! Reads a pool as the user has it into `pool.arrow`, and sets bad records aside.
//!
//! The inputs are read once, in order ([`reading`]), in blocks of whole records ([`container`]; for text [`split`] and
//! [`scan`], for tars [`shard`] and [`tar`], for rows [`arrow`], [`cells`] and [`fields`]). The blocks are
//! parsed in parallel ([`text`], [`read`], [`json`]) into what each record says, which is checked against the
//! rules ([`record`], [`turns`], [`images`], [`local`], [`store`], [`image_checks`], [`header`]) and becomes columns ([`rows`],
//! [`table`]); these are written in order ([`sink`]), on a thread beside the one that reads. Memory is bounded
//! by the blocks in flight, 16 bytes an id and an image, and the listings of the image folders.
//!
//! What one input says can be read apart from the others, on another machine, as a part ([`part`]); a part is read
//! back as one more kind of input.
//!
//! Another dialect is another set of names in [`format`](self::format). Another kind of input is another
//! [`container::Container`], opened in [`Format::open`]: it cuts its input into blocks, whose `parse` makes a
//! [`record::Draft`] of each record and hands it to [`rows::Rows`].

mod arrow;
mod brackets;
mod cells;
mod container;
mod fields;
mod format;
mod hashed;
mod header;
mod image_checks;
mod images;
mod json;
mod local;
mod part;
mod picture;
mod read;
mod reading;
mod recognise;
mod record;
mod reject;
mod rows;
mod scan;
mod shard;
mod sink;
mod special;
mod split;
mod store;
mod table;
mod tar;
mod text;
mod turns;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use self::arrow::RowContainer;
use self::container::Container;
use self::format::Names;
use self::part::{PartContainer, PartSink};
use self::reading::read_inputs;
use self::sink::PoolSink;
use self::split::{LIMITS, Limits};
use crate::{Error, Observer, Result};

pub use self::arrow::RowStream;
pub use self::format::{Dialect, Format, Framing};
pub use self::recognise::recognise;
pub use self::reject::Reason;
pub use self::store::ImageStore;

/// Version of the pool file's schema.
pub(crate) const POOL_VERSION: &str = "2";
pub(crate) const VERSION_KEY: &str = "mllm_selector.pool_version";
pub(crate) const FORMAT_KEY: &str = "mllm_selector.format";
pub(crate) const INPUTS_KEY: &str = "mllm_selector.inputs";

/// Pixels of an image that scoring takes at most: 256 MB as RGB.
const MAX_IMAGE_PIXELS: u64 = 89_478_485;

/// One file of a pool.
#[derive(Debug, Clone)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// The source of all of its samples, whatever the records say.
    pub source: Option<String>,
}

/// What image paths are relative to.
#[derive(Debug, Clone)]
pub enum Images {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A folder elsewhere.
    Store(Arc<dyn ImageStore>),
}

/// How closely images are looked at, each once however many samples show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckImages {
    /// Whether files are there.
    None,
    /// Their kind, size and completeness too, from their first and last bytes.
    Header,
    /// Whether they can be decoded too.
    Decode,
}

impl CheckImages {
    /// Reads a name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "header" => Ok(Self::Header),
            "decode" => Ok(Self::Decode),
            _ => Err(Error::Argument(format!(
                "check_images: '{name}' is not one of header, decode, none"
            ))),
        }
    }
}

/// What to read and where to write.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// The inputs, in the order in which their samples stand in the pool.
    pub inputs: Vec<Input>,
    /// How the records stand in each of them.
    pub format: Format,
    /// What image paths are relative to; may be missing if no record names an image.
    pub images: Option<Images>,
    /// How closely each image is looked at.
    pub check_images: CheckImages,
    /// Images of more pixels are set aside.
    pub max_image_pixels: u64,
    /// Source of records that name none.
    pub source: Option<String>,
    /// Names of fields that are not the format's own: `messages`, `images`, `id`, `source`, `system`, `role` and
    /// `content` to the name in the records.
    pub columns: BTreeMap<String, String>,
    /// Whether questions and answers must alternate.
    pub turns_alternate: bool,
    /// Whether images of a record without any mark are put before its first question; if not, it is rejected.
    /// None does what the frameworks do that read the format.
    pub inserts_marks: Option<bool>,
    /// Whether a sample with the id of an earlier one gets another; if not, it is rejected.
    pub renames_duplicates: bool,
    /// Whether the first rejected record is an error.
    pub strict: bool,
    /// Threads that parse; all processors if None.
    pub threads: Option<usize>,
    /// The pool file to write.
    pub out: PathBuf,
    /// The file of rejected records to write, JSON lines.
    pub rejected: PathBuf,
}

impl IngestOptions {
    /// Options with their defaults.
    pub fn new(inputs: Vec<Input>, format: Format, out: PathBuf, rejected: PathBuf) -> Self {
        Self {
            inputs,
            format,
            images: None,
            check_images: CheckImages::Header,
            max_image_pixels: MAX_IMAGE_PIXELS,
            source: None,
            columns: BTreeMap::new(),
            turns_alternate: true,
            inserts_marks: None,
            renames_duplicates: true,
            strict: false,
            threads: None,
            out,
            rejected,
        }
    }
}

/// What a pool holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Samples in the pool file.
    pub samples: u64,
    /// Records set aside, by reason.
    pub rejected: BTreeMap<Reason, u64>,
    /// Samples that got another id than their record's.
    pub renamed: u64,
    /// Samples without an image, with several images, and with several assistant turns.
    pub text_only: u64,
    /// See `text_only`.
    pub multi_image: u64,
    /// See `text_only`.
    pub multi_turn: u64,
    /// Distinct images of the samples.
    pub images: u64,
    /// Samples by source.
    pub sources: BTreeMap<String, u64>,
    /// Size of the inputs.
    pub bytes: u64,
    /// BLAKE3 hash of the pool file in hexadecimal.
    pub pool_hash: String,
    /// BLAKE3 hash of each input in hexadecimal.
    pub input_hashes: Vec<String>,
}

/// Reads a pool into an Arrow file and a list of rejected records.
///
/// Both files are the same for any number of threads, and whole or absent. Progress is in bytes.
///
/// # Errors
///
/// [`Error::Argument`] if an input or the images folder cannot be what is meant, or a record names an image
/// and there is no folder; [`Error::Pool`] with the byte offset if an input is not JSON or is cut off, if the
/// inputs hold no record, if one is rejected and none may be, and, naming the file of rejected records, which
/// is kept, if more than half are rejected.
pub fn ingest(options: &IngestOptions, observer: &Observer) -> Result<Summary> {
    ingest_opened(options, by_format(options, LIMITS), observer)
}

/// Reads a pool from rows as [`ingest`] does from text; `open` is called when an input's turn comes.
///
/// # Errors
///
/// As [`ingest`]; [`Error::Pool`] too if columns are missing, of other types or damaged.
pub fn ingest_rows(
    options: &IngestOptions,
    open: impl FnMut(&Input) -> Result<RowStream>,
    observer: &Observer,
) -> Result<Summary> {
    let names = Names::new(options.format, &options.columns)?;
    ingest_opened(options, by_rows(&names, open), observer)
}

/// Reads and checks the only input as far as nothing need be known of others, and writes what it says to `out`.
///
/// Parts of all inputs of a pool, made anywhere, become with [`join_parts`] the files that [`ingest`] writes.
/// Ids are not compared. Of `options`, the files to write have no meaning.
///
/// # Errors
///
/// As [`ingest`] for what is wrong with the input itself.
pub fn read_part(
    options: &IngestOptions,
    out: impl Write + Send,
    observer: &Observer,
) -> Result<()> {
    read_part_opened(options, by_format(options, LIMITS), out, observer)
}

/// Reads a part from rows as [`read_part`] does from text.
///
/// # Errors
///
/// As [`read_part`] and [`ingest_rows`].
pub fn read_part_of_rows(
    options: &IngestOptions,
    open: impl FnMut(&Input) -> Result<RowStream>,
    out: impl Write + Send,
    observer: &Observer,
) -> Result<()> {
    let names = Names::new(options.format, &options.columns)?;
    read_part_opened(options, by_rows(&names, open), out, observer)
}

/// Makes a pool of the parts of its inputs, in their order: the files are those of [`ingest`], byte for byte.
///
/// # Errors
///
/// As [`ingest`] for what concerns the pool as a whole; [`Error::Pool`] too if a part is damaged.
pub fn join_parts(
    options: &IngestOptions,
    parts: &[PathBuf],
    observer: &Observer,
) -> Result<Summary> {
    if parts.len() != options.inputs.len() {
        return Err(Error::Argument(format!(
            "{} parts of {} inputs: one of each is needed",
            parts.len(),
            options.inputs.len()
        )));
    }
    // What the records name has been looked at.
    let options = IngestOptions {
        images: None,
        ..options.clone()
    };
    let mut parts = parts.iter();
    let open = |input: &Input| -> Result<Box<dyn Container>> {
        let part = parts.next().expect("there is one for each input");
        let size = container::check_file(input)?;
        Ok(Box::new(PartContainer::open(part, size)?))
    };
    ingest_opened(&options, open, observer)
}

fn by_format(
    options: &IngestOptions,
    limits: Limits,
) -> impl FnMut(&Input) -> Result<Box<dyn Container>> {
    move |input| options.format.open(&input.path, limits)
}

fn by_rows(
    names: &Names,
    mut open: impl FnMut(&Input) -> Result<RowStream>,
) -> impl FnMut(&Input) -> Result<Box<dyn Container>> {
    move |input| {
        let stream = open(input)?;
        Ok(Box::new(RowContainer::open(input, stream, names, LIMITS)?))
    }
}

fn ingest_opened(
    options: &IngestOptions,
    open: impl FnMut(&Input) -> Result<Box<dyn Container>>,
    observer: &Observer,
) -> Result<Summary> {
    let schema = Arc::new(table::schema(options.format, &options.inputs)?);
    let create = || PoolSink::create(options, &schema);
    let read = read_inputs(options, &schema, open, create, observer)?;
    let summary = Summary {
        input_hashes: read.hashes,
        ..read.sink.finish(read.bytes)?
    };
    observer.advance(read.bytes.saturating_sub(observer.progress().0));
    Ok(summary)
}

fn read_part_opened(
    options: &IngestOptions,
    open: impl FnMut(&Input) -> Result<Box<dyn Container>>,
    out: impl Write + Send,
    observer: &Observer,
) -> Result<()> {
    let schema = Arc::new(table::schema(options.format, &options.inputs)?);
    let create = || PartSink::create(out, options.strict);
    let read = read_inputs(options, &schema, open, create, observer)?;
    let [hash] = read.hashes.as_slice() else {
        return Err(Error::Argument("a part is that of one input".into()));
    };
    read.sink.finish(hash)
}

#[cfg(test)]
mod tests {
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

    fn ingest_within(
        options: &IngestOptions,
        limits: Limits,
        observer: &Observer,
    ) -> Result<Summary> {
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
        let record =
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#;
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
        let image = STANDARD.encode(
            b"BM\x1e\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0\xff\xff\xff\0",
        );
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
}
