//! The inputs, one after another: read on one thread, parsed on many, taken by a sink on one more.

use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;

use arrow_schema::SchemaRef;
use rayon::ThreadPoolBuilder;

use super::container::{self, Container, Context, Parsed, Sink};
use super::format::Names;
use super::image_checks::ImageChecks;
use super::record::Rules;
use super::{IngestOptions, Input};
use crate::hash::hash_file;
use crate::{Error, Observer, Result};

/// What reading has come to.
pub(super) struct Read<S> {
    pub(super) sink: S,
    /// Size of the inputs in bytes.
    pub(super) bytes: u64,
    /// BLAKE3 hash of each in hexadecimal.
    pub(super) hashes: Vec<String>,
}

/// Reads inputs, whatever they are opened with, into a sink, which is made when the options have been checked.
pub(super) fn read_inputs<S: Sink>(
    options: &IngestOptions,
    schema: &SchemaRef,
    mut open: impl FnMut(&Input) -> Result<Box<dyn Container>>,
    create: impl FnOnce() -> Result<S>,
    observer: &Observer,
) -> Result<Read<S>> {
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
    let workers = ThreadPoolBuilder::new()
        .num_threads(options.threads.unwrap_or_else(default_threads))
        .build()
        .map_err(|error| Error::Argument(format!("threads: cannot start them: {error}")))?;
    let sink = create()?;
    let mut first_record = 0;
    let mut hashes = Vec::with_capacity(options.inputs.len());
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
                    schema: Arc::clone(schema),
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
                hashes.push(match container.hash()? {
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
    Ok(Read {
        sink,
        bytes,
        hashes,
    })
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
fn write<S: Sink>(blocks: Queue, mut sink: S, observer: &Observer) -> Result<S> {
    for (parsed, advance) in blocks {
        observer.check()?;
        // Nothing is sent where parsing has panicked, and the panic goes on in the pool.
        let parsed = parsed.recv().map_err(|_| Error::Interrupted)?;
        sink.add(parsed?)?;
        observer.advance(advance);
    }
    Ok(sink)
}
