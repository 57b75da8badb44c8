//! Parses one block of records; blocks are independent of each other.

use std::borrow::Cow;
use std::path::{Component, Path};

use arrow_array::RecordBatch;

use super::Format;
use super::images::{ImageFolder, ImageKey, key};
use super::json::Fault;
use super::record::{self, Refusal, Role, Sample};
use super::reject::{Reason, Rejected, Rejection};
use super::scan::shown;
use super::split::{Block, LIMITS, Place};
use super::table::Columns;
use crate::{Error, Result};

/// What all blocks of a pool share.
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    pub(super) format: Format,
    pub(super) images: Option<ImageFolder>,
    pub(super) source: Option<&'a str>,
    /// The pool file's name, the source of last resort.
    pub(super) stem: String,
}

/// The samples and rejected records of a block, in order.
pub(super) struct Parsed {
    pub(super) rows: RecordBatch,
    /// One entry a row of `rows`.
    pub(super) facts: Vec<Facts>,
    pub(super) rejected: Vec<Rejected>,
}

/// What the summary and the search for duplicate ids need of a row.
pub(super) struct Facts {
    pub(super) place: Place,
    pub(super) id: [u8; 16],
    pub(super) answers: usize,
    pub(super) images: Vec<ImageKey>,
}

/// Parses and checks the records of a block.
///
/// # Errors
///
/// The first fault that ends the whole run: text in an array that is not JSON, or an image without a folder.
pub(super) fn parse(block: &Block, context: &Context<'_>) -> Result<Parsed> {
    let mut columns = Columns::with_capacity(block.places.len(), block.size());
    let mut facts = Vec::with_capacity(block.places.len());
    let mut rejected = Vec::new();
    for place in &block.places {
        let Some(bytes) = block.record(place) else {
            rejected.push(too_large(place));
            continue;
        };
        match record::read(bytes, context.images.as_ref()) {
            Ok(sample) => facts.push(push(&mut columns, &sample, place, context)),
            Err(Refusal::Rejected(rejection)) => rejected.push(rejection.at(*place)),
            Err(Refusal::NeedsImages(path)) => return Err(needs_images(place, &path)),
            Err(Refusal::NotJson(fault)) => rejected.push(not_json(&fault, place, bytes, context)?),
        }
    }
    Ok(Parsed {
        rows: columns.finish(context.format),
        facts,
        rejected,
    })
}

fn push(columns: &mut Columns, sample: &Sample<'_>, place: &Place, context: &Context<'_>) -> Facts {
    let id = match &sample.id {
        Some(id) => Cow::Borrowed(id.as_ref()),
        None => Cow::Owned(format!("row-{}", place.record)),
    };
    columns.push(&id, source(sample, context), sample, place);
    Facts {
        place: *place,
        id: key(&id),
        answers: sample
            .turns
            .iter()
            .filter(|(role, _)| *role == Role::Assistant)
            .count(),
        images: sample.images.iter().map(|(_, image)| *image).collect(),
    }
}

/// The record's own source, else the option's, else the first folder of the first image, else the file's name.
fn source<'a>(sample: &'a Sample<'_>, context: &'a Context<'_>) -> &'a str {
    let first_folder = || first_folder(&sample.images.first()?.0);
    sample
        .source
        .as_deref()
        .or(context.source)
        .or_else(first_folder)
        .unwrap_or(&context.stem)
}

fn first_folder(path: &str) -> Option<&str> {
    let mut names = Path::new(path)
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
    let first = names.next()?;
    names.next().map(|_| first)
}

fn too_large(place: &Place) -> Rejected {
    let detail = format!(
        "the record has {} bytes; ingest holds at most {} MiB",
        place.length,
        LIMITS.record_bytes >> 20
    );
    Rejection::new(Reason::TooLarge, None, detail).at(*place)
}

fn needs_images(place: &Place, path: &str) -> Error {
    Error::Argument(format!(
        "record {} (byte {}) names the image '{path}': give the folder of the images with --images DIR",
        place.record, place.offset
    ))
}

/// A bad line is set aside, unless it is the first: then the file is not JSON lines at all. In an array, it
/// cannot be told where the next record begins.
fn not_json(
    fault: &Fault,
    place: &Place,
    record: &[u8],
    context: &Context<'_>,
) -> Result<Rejected> {
    let found = record
        .get(fault.at)
        .map_or_else(|| "the end of the record".into(), |&byte| shown(byte));
    let byte = place.offset + fault.at as u64;
    let expected = fault.expected;
    if context.format == Format::LlavaJsonl && place.record > 0 {
        let detail = format!(
            "byte {} of the line: found {found}, expected {expected}",
            fault.at
        );
        return Ok(Rejection::new(Reason::InvalidJson, None, detail).at(*place));
    }
    let file = context.path.display();
    let hint = match context.format {
        Format::LlavaJson => "the array is damaged there",
        Format::LlavaJsonl => "the first line is not JSON, so these are not JSON lines",
    };
    Err(Error::Pool(format!(
        "{file}: byte {byte}, record {}: not JSON: found {found}, expected {expected}; {hint}",
        place.record
    )))
}
