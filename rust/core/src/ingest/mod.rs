//! Reads a pool as the user has it into `pool.arrow`, and sets bad records aside.
//!
//! The inputs are read once, in order, in blocks of whole records ([`container`]; for text [`split`] and
//! [`scan`], for tars [`shard`] and [`tar`], for rows [`arrow`], [`cells`] and [`fields`]). The blocks are
//! parsed in parallel ([`text`], [`read`], [`json`]) into what each record says, which is checked against the
//! rules ([`record`], [`turns`], [`images`], [`local`], [`store`], [`image_checks`], [`header`]) and becomes columns ([`rows`],
//! [`table`]); these are written in order ([`sink`]), on a thread beside the one that reads. Memory is bounded
//! by the blocks in flight, 16 bytes an id and an image, and the listings of the image folders.
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
mod picture;
mod read;
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
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;

use rayon::ThreadPoolBuilder;

use self::arrow::RowContainer;
use self::container::{Container, Context, Parsed};
use self::format::Names;
use self::image_checks::ImageChecks;
use self::record::Rules;
use self::sink::Sink;
use self::split::{LIMITS, Limits};
use crate::hash::hash_file;
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
    ingest_within(options, LIMITS, observer)
}

/// Reads a pool from rows as [`ingest`] does from text; `open` is called when an input's turn comes.
///
/// # Errors
///
/// As [`ingest`]; [`Error::Pool`] too if columns are missing, of other types or damaged.
pub fn ingest_rows(
    options: &IngestOptions,
    mut open: impl FnMut(&Input) -> Result<RowStream>,
    observer: &Observer,
) -> Result<Summary> {
    let names = Names::new(options.format, &options.columns)?;
    let open = |input: &Input| -> Result<Box<dyn Container>> {
        let stream = open(input)?;
        Ok(Box::new(RowContainer::open(input, stream, &names, LIMITS)?))
    };
    ingest_opened(options, open, observer)
}

fn ingest_within(options: &IngestOptions, limits: Limits, observer: &Observer) -> Result<Summary> {
    let open = |input: &Input| options.format.open(&input.path, limits);
    ingest_opened(options, open, observer)
}

/// Reads inputs whatever they are opened with.
fn ingest_opened(
    options: &IngestOptions,
    mut open: impl FnMut(&Input) -> Result<Box<dyn Container>>,
    observer: &Observer,
) -> Result<Summary> {
    let sizes: Vec<u64> = options
        .inputs
        .iter()
        .map(container::check_file)
        .collect::<Result<_>>()?;
    let bytes: u64 = sizes.iter().sum();
    observer.expect(bytes);
    let images = ImageChecks::open(options)?;
    let names = Names::new(options.format, &options.columns)?;
    let rules = Rules {
        turns_alternate: options.turns_alternate,
        inserts_marks: options
            .inserts_marks
            .unwrap_or(options.format.shows_unmarked_images_first()),
    };
    let schema = Arc::new(table::schema(options.format, &options.inputs)?);
    let workers = ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or_else(default_threads))
        .build()
        .map_err(|error| Error::Argument(format!("threads: cannot start them: {error}")))?;
    let sink = Sink::create(options, &schema)?;
    let mut first_record = 0;
    let mut input_hashes = Vec::with_capacity(options.inputs.len());
    let (read, sink) = thread::scope(|threads| {
        // Beside the block that is written and the one that has been read last.
        let (queue, blocks) = mpsc::sync_channel(workers.current_num_threads());
        let writer = threads.spawn(|| write(blocks, sink, observer));
        let read = workers.in_place_scope(|scope| {
            let mut read = |file: usize| -> Result<()> {
                let input = &options.inputs[file];
                let context = Arc::new(Context {
                    path: &input.path,
                    shown: input.path.display().to_string().into(),
                    file: file as u32,
                    format: options.format,
                    names: &names,
                    rules,
                    schema: Arc::clone(&schema),
                    images: &images,
                    wanted: None,
                    observer,
                    input_source: input.source.as_deref(),
                    source: options.source.as_deref(),
                    stem: container::stem(&input.path),
                    first_record,
                });
                let mut container = open(input)?;
                while let Some(block) = container.next(observer)? {
                    first_record += block.records();
                    let (sender, receiver) = mpsc::sync_channel(1);
                    let advance = block.advance();
                    let context = Arc::clone(&context);
                    // The receiver is gone only if the writer has failed; then nobody wants the rows.
                    scope
                        .spawn(move |_| drop(sender.send(context.images.parse(&*block, &context))));
                    if queue.send((receiver, advance)).is_err() {
                        // The writer has failed, and says why.
                        return Err(Error::Interrupted);
                    }
                }
                input_hashes.push(match container.hash()? {
                    Some(hash) => hash.to_hex().to_string(),
                    None => hash_file(&input.path)?,
                });
                Ok(())
            };
            let outcome = (0..options.inputs.len()).try_for_each(&mut read);
            drop(queue);
            outcome
        });
        (read, writer.join())
    });
    // The rows before a fault of an input may hold an earlier one, which is the one to report.
    let sink = sink.unwrap_or_else(|panic| resume_unwind(panic))?;
    read?;
    let summary = Summary {
        input_hashes,
        ..sink.finish(bytes)?
    };
    observer.advance(bytes.saturating_sub(observer.progress().0));
    Ok(summary)
}

/// Reading and writing, on a thread each, keep no more than this many busy.
fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8)
}

/// Blocks being parsed, in order, with the bytes that each stands for.
type Queue = mpsc::Receiver<(mpsc::Receiver<Result<Parsed>>, u64)>;

/// Writes the rows of all blocks.
fn write(blocks: Queue, mut sink: Sink, observer: &Observer) -> Result<Sink> {
    for (parsed, advance) in blocks {
        observer.check()?;
        // Nothing is sent where parsing has panicked, and the panic goes on in the pool.
        let parsed = parsed.recv().map_err(|_| Error::Interrupted)?;
        sink.add(parsed?)?;
        observer.advance(advance);
    }
    Ok(sink)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

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
}
