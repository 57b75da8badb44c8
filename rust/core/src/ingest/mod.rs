//! Reads a pool as the user has it into `pool.arrow`, and sets bad records aside.
//!
//! The input is read once, in order, in blocks of whole records ([`split`], [`scan`]); the blocks are parsed
//! and checked in parallel ([`block`], [`record`], [`json`], [`images`]); their rows are written in order
//! ([`sink`]). Memory is bounded by the blocks in flight plus 16 bytes an id and an image.

mod block;
mod header;
mod images;
mod json;
mod record;
mod reject;
mod scan;
mod sink;
mod split;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc;

use rayon::ThreadPoolBuilder;

use self::block::{Context, Parsed, parse};
use self::images::ImageFolder;
use self::sink::Sink;
use self::split::{Blocks, LIMITS, Limits};
use crate::{Error, Observer, Result};

pub use self::reject::Reason;

/// Version of the pool file's schema.
pub(crate) const POOL_VERSION: &str = "1";
pub(crate) const VERSION_KEY: &str = "mllm_selector.pool_version";
pub(crate) const FORMAT_KEY: &str = "mllm_selector.format";

/// How the records of a pool stand in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON array of records.
    LlavaJson,
    /// A record a line.
    LlavaJsonl,
}

impl Format {
    /// The name in options and in the pool file's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlavaJson => "llava-json",
            Self::LlavaJsonl => "llava-jsonl",
        }
    }

    /// Reads a name.
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::LlavaJson, Self::LlavaJsonl]
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| {
                Error::Argument(format!(
                    "format: '{name}' is not one of llava-json, llava-jsonl"
                ))
            })
    }
}

/// What to read and where to write.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// The input.
    pub pool: PathBuf,
    /// How its records stand in it.
    pub format: Format,
    /// Folder that image paths are relative to; may be missing if no record names an image.
    pub images: Option<PathBuf>,
    /// Source of records that name none.
    pub source: Option<String>,
    /// Threads that parse; all processors if None.
    pub threads: Option<usize>,
    /// The pool file to write.
    pub out: PathBuf,
    /// The file of rejected records to write, JSON lines.
    pub rejected: PathBuf,
}

/// What a pool holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Samples in the pool file.
    pub samples: u64,
    /// Records set aside, by reason.
    pub rejected: BTreeMap<Reason, u64>,
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
    /// Size of the input.
    pub bytes: u64,
}

/// Reads a pool into an Arrow file and a list of rejected records.
///
/// Both files are the same for any number of threads, and whole or absent. Progress is in bytes.
///
/// # Errors
///
/// [`Error::Argument`] if the input or the images folder cannot be what is meant, or a record names an image
/// and there is no folder; [`Error::Pool`] with the byte offset if the input is not JSON, is cut off or holds
/// no record, and, naming the file of rejected records, which is kept, if more than half are rejected.
pub fn ingest(options: &IngestOptions, observer: &Observer) -> Result<Summary> {
    ingest_within(options, LIMITS, observer)
}

fn ingest_within(options: &IngestOptions, limits: Limits, observer: &Observer) -> Result<Summary> {
    let mut blocks = Blocks::open(&options.pool, options.format, limits)?;
    let bytes = blocks.size()?;
    observer.expect(bytes);
    let context = Context {
        path: &options.pool,
        format: options.format,
        images: options
            .images
            .as_deref()
            .map(ImageFolder::open)
            .transpose()?,
        source: options.source.as_deref(),
        stem: options
            .pool
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    let workers = ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or_else(default_threads))
        .build()
        .map_err(|error| Error::Argument(format!("threads: cannot start them: {error}")))?;
    let mut sink = Sink::create(options)?;
    // Two blocks wait, so that no worker stands idle while this thread reads and writes.
    let in_flight = workers.current_num_threads() + 2;
    workers.in_place_scope(|scope| {
        let mut queue = Queue::with_capacity(in_flight);
        let end = loop {
            let block = match blocks.next(observer) {
                Ok(Some(block)) => block,
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
            };
            if queue.len() == in_flight {
                collect(&mut queue, &mut sink, observer)?;
            }
            let (sender, receiver) = mpsc::sync_channel(1);
            queue.push_back((receiver, block.advance));
            let context = &context;
            // The receiver is gone only if this call has failed; then nobody wants the rows.
            scope.spawn(move |_| drop(sender.send(parse(&block, context))));
        };
        // The rows before a fault of the file may hold an earlier one, which is the one to report.
        while !queue.is_empty() {
            observer.check()?;
            collect(&mut queue, &mut sink, observer)?;
        }
        end
    })?;
    let summary = sink.finish(bytes)?;
    observer.advance(bytes.saturating_sub(observer.progress().0));
    Ok(summary)
}

/// Reading and writing, on one thread, keep no more than this many busy.
fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8)
}

/// Blocks being parsed, in order, with the bytes that each stands for.
type Queue = VecDeque<(mpsc::Receiver<Result<Parsed>>, u64)>;

/// Waits for the oldest block and writes its rows.
fn collect(queue: &mut Queue, sink: &mut Sink, observer: &Observer) -> Result<()> {
    let Some((receiver, advance)) = queue.pop_front() else {
        return Ok(());
    };
    let parsed = receiver.recv().expect("a worker sends what it has parsed");
    sink.add(parsed?)?;
    observer.advance(advance);
    Ok(())
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
            pool: folder.join("pool.jsonl"),
            format: Format::LlavaJsonl,
            images: None,
            source: None,
            threads: Some(threads),
            out: folder.join(format!("{threads}.arrow")),
            rejected: folder.join(format!("{threads}.jsonl")),
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
        let mut records = vec![record.to_owned(); 60];
        records[40] = r#"{"a":tru}"#.into();
        records[50] = r#"{"a":}"#.into();
        let text = format!("[{}] x", records.join(","));
        let mut options = options(folder.path(), 2);
        options.format = Format::LlavaJson;
        fs::write(&options.pool, &text).unwrap();
        let found = ingest_within(&options, SMALL, &Observer::default())
            .unwrap_err()
            .to_string();
        let byte = text.find("tru").unwrap();
        assert!(
            found.contains(&format!("byte {byte}, record 40: not JSON: found 't'")),
            "{found}"
        );
    }
}
