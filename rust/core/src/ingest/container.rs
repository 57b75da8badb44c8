//! What an input is made of: a container yields blocks of whole records, and a block parses itself.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use super::Input;
use super::format::{Format, Names};
use super::image_checks::ImageChecks;
use super::images::ImageKey;
use super::record::Rules;
use super::reject::Rejected;
use super::split::Place;
use crate::{Error, Observer, Result};

/// The records of one input, read once from its beginning to its end.
pub(super) trait Container {
    /// Returns the next block, or None after the last.
    ///
    /// Where blocks are cut must depend on the input alone. It looks at `observer` often; whatever it passes
    /// over without a block it adds to the observer's progress.
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn Block>>>;

    /// Returns the BLAKE3 hash of the input, all of whose blocks have been taken, if reading them has told it.
    fn hash(&mut self) -> Result<Option<blake3::Hash>> {
        Ok(None)
    }
}

/// Consecutive whole records of one input, parsed apart from all others and on another thread.
pub(super) trait Block: Send {
    /// Returns the number of records, good and bad.
    fn records(&self) -> u64;

    /// Returns the bytes of the input up to the end of this block that no earlier block has counted.
    fn advance(&self) -> u64;

    /// Parses and checks the records.
    ///
    /// # Errors
    ///
    /// The first fault that ends the whole run; whatever concerns one record alone is a rejected record.
    fn parse(&self, context: &Context<'_>) -> Result<Parsed>;
}

/// What all records of one input share.
#[derive(Clone)]
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    /// The input's path as messages show it.
    pub(super) shown: Arc<str>,
    /// The input's number among the inputs.
    pub(super) file: u32,
    pub(super) format: Format,
    pub(super) names: &'a Names,
    pub(super) rules: Rules,
    pub(super) schema: SchemaRef,
    pub(super) images: &'a ImageChecks,
    /// Where the paths of images go in place of being checked.
    pub(super) wanted: Option<&'a Mutex<Vec<String>>>,
    pub(super) observer: &'a Observer,
    /// The source that the user gave to this input; it goes before the records' own.
    pub(super) input_source: Option<&'a str>,
    /// The source of records that name none.
    pub(super) source: Option<&'a str>,
    /// The input's name, the source of last resort.
    pub(super) stem: String,
    /// Records of the inputs before this one, which number records without an id.
    pub(super) first_record: u64,
}

/// The samples and rejected records of a block, in order.
pub(super) struct Parsed {
    pub(super) rows: RecordBatch,
    /// One entry a row of `rows`.
    pub(super) facts: Vec<Facts>,
    pub(super) rejected: Vec<Rejected>,
    pub(super) input: Arc<str>,
}

/// What the summary and the search for duplicate ids need of a row.
pub(super) struct Facts {
    pub(super) place: Place,
    pub(super) id: [u8; 16],
    /// Whether the record says its id; if not, it is made of the record's number.
    pub(super) has_id: bool,
    pub(super) answers: usize,
    pub(super) images: Vec<ImageKey>,
}

/// What takes the blocks of all inputs, in order.
pub(super) trait Sink: Send {
    /// Takes the samples and rejected records of the next block.
    fn add(&mut self, parsed: Parsed) -> Result<()>;
}

/// Returns the id of a record that says none.
pub(super) fn id_of(record: u64) -> String {
    format!("row-{record}")
}

/// Checks that an input is a regular file with content, and returns its size in bytes.
pub(super) fn check_file(input: &Input) -> Result<u64> {
    let path = &input.path;
    let shown = path.display();
    let advice = "name a file of the pool";
    let wrong = |what: &str| Error::Argument(format!("{shown}: {what}; {advice}"));
    let metadata: Metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => wrong("there is no such file"),
        _ => Error::io("open", path, source),
    })?;
    if metadata.is_dir() {
        return Err(wrong("this is a folder"));
    }
    if !metadata.is_file() {
        return Err(wrong("this is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(Error::Pool(format!("{shown}: the file is empty; {advice}")));
    }
    Ok(metadata.len())
}

/// Returns the name of a file without its suffixes, as a source.
///
/// The number of a shard is left out (`train-00003-of-00010`, `ocr-000017`); where nothing else is there to
/// tell data sets apart (`data-00000-of-00002`, `000017`), the folder's name is the source.
pub(super) fn stem(path: &Path) -> String {
    let is_packed = path
        .extension()
        .is_some_and(|suffix| suffix == "gz" || suffix == "zst");
    let inner = path.with_extension("");
    let stem = if is_packed { &inner } else { path }.file_stem();
    let name = stem.unwrap_or_default().to_string_lossy();
    let parts: Vec<&str> = name.split('-').collect();
    let is_number = |part: &str| part.len() >= 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let named = match parts.iter().position(|part| is_number(part)) {
        Some(number) => parts[..number].join("-"),
        None => return name.into_owned(),
    };
    if !named.is_empty() && named != "data" {
        return named;
    }
    let folder = path.parent().and_then(Path::file_name);
    folder
        .map_or(name.clone(), |folder| folder.to_string_lossy())
        .into_owned()
}

/// Names the inputs in a message.
pub(super) fn shown(inputs: &[Input]) -> String {
    let first = inputs
        .first()
        .map_or(PathBuf::new(), |input| input.path.clone());
    match inputs.len() {
        0 | 1 => first.display().to_string(),
        count => format!("{} and {} more", first.display(), count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_by_what_all_shards_share() {
        for (path, expected) in [
            ("pools/mix665k.json", "mix665k"),
            ("coco-2014.tar", "coco-2014"),
            ("sets/ocr/data-00000-of-00002.arrow", "ocr"),
            ("train-00003-of-00010.parquet", "train"),
            ("train-00003-of-00010-9f8e7d6c5b4a3210.parquet", "train"),
            ("a/text-vqa-000017.tar", "text-vqa"),
            ("wds/000017.tar", "wds"),
            ("000017.tar", "000017"),
            ("mix-000017.jsonl.gz", "mix"),
        ] {
            assert_eq!(stem(Path::new(path)), expected, "{path}");
        }
    }
}
