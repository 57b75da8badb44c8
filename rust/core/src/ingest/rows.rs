//! The rows of one block, growing: checked samples become columns, others rejected records.

use std::borrow::Cow;
use std::path::{Component, Path};
use std::sync::Arc;

use super::container::{Context, Facts, Parsed, id_of};
use super::images::key;
use super::picture::Picture;
use super::record::{Draft, Refusal, Sample};
use super::reject::{Rejected, Rejection};
use super::split::Place;
use super::table::Columns;
use super::turns::Role;
use crate::{Error, Result};

pub(super) struct Rows<'a> {
    context: &'a Context<'a>,
    columns: Columns,
    facts: Vec<Facts>,
    rejected: Vec<Rejected>,
}

impl<'a> Rows<'a> {
    /// Makes room for `records` records of about `bytes` in all.
    pub(super) fn new(context: &'a Context<'a>, records: usize, bytes: usize) -> Self {
        Self {
            context,
            columns: Columns::with_capacity(records, bytes),
            facts: Vec::with_capacity(records),
            rejected: Vec::new(),
        }
    }

    /// Checks what a record says and adds it as a sample or as a rejected record.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if it names an image file and there is no images folder; that of a store of images.
    pub(super) fn add(&mut self, draft: Draft<'_>, place: Place) -> Result<()> {
        let images = self.context.images;
        match draft.check(self.context.rules, |picture| {
            images.check(picture, self.context)
        }) {
            Ok(sample) => self.push(&sample, place),
            Err(Refusal::Rejected(rejection)) => self.reject(rejection, place),
            Err(Refusal::NeedsImages(path)) => return Err(self.needs_images(place, &path)),
            Err(Refusal::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    /// Sets a record aside that cannot be read as far as a draft.
    pub(super) fn reject(&mut self, rejection: Rejection, place: Place) {
        self.rejected.push(rejection.at(&self.context.shown, place));
    }

    pub(super) fn finish(self) -> Parsed {
        Parsed {
            rows: self.columns.finish(self.context),
            facts: self.facts,
            rejected: self.rejected,
            input: Arc::clone(&self.context.shown),
        }
    }

    fn push(&mut self, sample: &Sample<'_>, place: Place) {
        let id = match &sample.id {
            Some(id) => Cow::Borrowed(id.as_ref()),
            None => Cow::Owned(id_of(self.context.first_record + place.record)),
        };
        self.columns
            .push(&id, source(sample, self.context), sample, &place);
        let is_answer = |(role, _): &&(Role, Cow<str>)| *role == Role::Assistant;
        self.facts.push(Facts {
            place,
            id: key(id.as_bytes()),
            has_id: sample.id.is_some(),
            answers: sample.turns.iter().filter(is_answer).count(),
            images: sample
                .images
                .iter()
                .map(|image| image.key(self.context.file))
                .collect(),
        });
    }

    fn needs_images(&self, place: Place, path: &str) -> Error {
        Error::Argument(format!(
            "{}: record {} (byte {}) names the image '{path}': give the folder of the images with --images DIR",
            self.context.shown, place.record, place.offset
        ))
    }
}

/// The input's source, else the record's own, else the option's, else the first folder of the first image,
/// else the file's name.
fn source<'a>(sample: &'a Sample<'_>, context: &'a Context<'_>) -> &'a str {
    let first_folder = || match sample.images.first()? {
        Picture::Path(path, _) => first_folder(path),
        Picture::Bytes { .. } | Picture::Range { .. } => None,
    };
    context
        .input_source
        .or(sample.source.as_deref())
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
