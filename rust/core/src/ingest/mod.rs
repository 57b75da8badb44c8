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
mod tests;
