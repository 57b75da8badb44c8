//! Blocks of a WebDataset shard: records are read where they stand in the tar, images stay there.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::container::{self, Container, Context, Parsed};
use super::picture::Picture;
use super::read::{self, Unread};
use super::record::{Draft, Images};
use super::reject::{Reason, Rejection, shown};
use super::rows::Rows;
use super::split::{Limits, Place};
use super::tar::{Member, TarSample, TarScanner};
use crate::files::read_exact_at;
use crate::{Error, Observer, Result};

/// The samples of one tar, cut into blocks.
pub(super) struct Shard {
    path: PathBuf,
    file: Arc<File>,
    scanner: TarScanner,
    limits: Limits,
    found: VecDeque<TarSample>,
    /// Samples handed out, and up to where.
    done: u64,
    counted: u64,
}

impl Shard {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self> {
        let open = || File::open(path).map_err(|source| Error::io("open", path, source));
        let scanner = TarScanner::new(open()?).map_err(|source| Error::io("read", path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: Arc::new(open()?),
            scanner,
            limits,
            found: VecDeque::new(),
            done: 0,
            counted: 0,
        })
    }
}

impl Container for Shard {
    fn next(&mut self, observer: &Observer) -> Result<Option<Box<dyn container::Block>>> {
        observer.check()?;
        if self.found.is_empty() {
            let path = self.path.display();
            let samples = self.scanner.next(self.limits.block_records);
            let samples = samples.map_err(|why| {
                Error::Pool(format!(
                    "{path}: {why}; get the shard again, or leave it out"
                ))
            })?;
            self.found = samples.into();
        }
        let mut samples = Vec::new();
        let mut bytes = 0;
        while let Some(sample) = self.found.front() {
            bytes += sample.record.as_ref().map_or(0, |record| record.length);
            if bytes > self.limits.block_bytes as u64 && !samples.is_empty() {
                break;
            }
            samples.extend(self.found.pop_front());
        }
        let Some(last) = samples.last() else {
            return Ok(None);
        };
        let end = last.offset + last.length;
        let block = Samples {
            file: Arc::clone(&self.file),
            first: self.done,
            advance: end - self.counted,
            most: self.limits.record_bytes,
            samples,
        };
        self.done += block.samples.len() as u64;
        self.counted = end;
        Ok(Some(Box::new(block)))
    }
}

struct Samples {
    file: Arc<File>,
    samples: Vec<TarSample>,
    /// Number of the first sample in its shard.
    first: u64,
    advance: u64,
    /// Largest record or image in bytes.
    most: u64,
}

impl container::Block for Samples {
    fn records(&self) -> u64 {
        self.samples.len() as u64
    }

    fn advance(&self) -> u64 {
        self.advance
    }

    fn parse(&self, context: &Context<'_>) -> Result<Parsed> {
        let mut rows = Rows::new(context, self.samples.len(), 0);
        let (mut text, mut room) = (Vec::new(), Vec::new());
        for (record, sample) in (self.first..).zip(&self.samples) {
            let place = Place {
                record,
                offset: sample.offset,
                length: sample.length,
            };
            if let Err(rejection) = self.check(sample) {
                rows.reject(rejection, place);
                continue;
            }
            let Some(member) = &sample.record else {
                rows.reject(no_record(sample), place);
                continue;
            };
            text.resize(member.length as usize, 0);
            room.resize(text.len(), 0);
            read_exact_at(&self.file, &mut text, member.offset)
                .map_err(|source| Error::io("read", context.shown.as_ref(), source))?;
            let rejection = match read::record(&text, context.names, &mut room) {
                Ok(draft) => match with_members(draft, sample) {
                    Ok(draft) => {
                        rows.add(draft, place)?;
                        continue;
                    }
                    Err(rejection) => rejection,
                },
                Err(Unread::Rejected(rejection)) => rejection,
                Err(Unread::NotJson(fault)) => {
                    let (at, expected) = (fault.at, fault.expected);
                    let detail = format!(
                        "byte {at} of '{}': expected {expected}",
                        shown(&member.name)
                    );
                    Rejection::new(Reason::InvalidJson, None, detail)
                }
            };
            rows.reject(rejection, place);
        }
        Ok(rows.finish())
    }
}

impl Samples {
    fn check(&self, sample: &TarSample) -> std::result::Result<(), Rejection> {
        let id = (!sample.key.is_empty()).then(|| sample.key.as_str().into());
        if let Some((reason, detail)) = &sample.fault {
            return Err(Rejection::new(*reason, id, detail.clone()));
        }
        let mut members = sample.record.iter().chain(&sample.images);
        match members.find(|member| member.length > self.most) {
            None => Ok(()),
            Some(member) => {
                let detail = format!(
                    "member '{}' has {} bytes; ingest takes at most {} MiB",
                    shown(&member.name),
                    member.length,
                    self.most >> 20
                );
                Err(Rejection::new(Reason::TooLarge, id, detail))
            }
        }
    }
}

fn no_record(sample: &TarSample) -> Rejection {
    let detail = if sample.endings.contains("txt") {
        "there is no .json member; a caption in .txt is not a conversation"
    } else {
        "there is no .json member"
    };
    let id = Some(sample.key.as_str().into());
    Rejection::new(Reason::NoConversations, id, detail.into())
}

/// Gives a record the images that stand beside it, and its key where it has no id.
fn with_members<'a>(
    mut draft: Draft<'a>,
    sample: &'a TarSample,
) -> std::result::Result<Draft<'a>, Rejection> {
    if draft.id.is_none() {
        draft.id = Some(sample.key.as_str().into());
    }
    let named = match (&draft.image, &draft.images) {
        (Images::Given(named), _) | (Images::None, Images::Given(named)) => named.as_slice(),
        (Images::Wrong(_), _) | (_, Images::Wrong(_)) => return Ok(draft),
        (Images::None, Images::None) => &[],
    };
    let names = named.iter().filter_map(|picture| match picture {
        Picture::Path(path, _) => Some(path.as_ref()),
        Picture::Bytes { .. } | Picture::Range { .. } => None,
    });
    let names: Vec<&str> = names.collect();
    let found: Vec<&Member> = names.iter().filter_map(|name| find(name, sample)).collect();
    let members = if found.len() == names.len() && !found.is_empty() {
        found
    } else if found.is_empty() && (names.is_empty() || names.len() == sample.images.len()) {
        // Names from before the images were packed: the members stand in their order.
        sample.images.iter().collect()
    } else {
        let lost = names.iter().find(|name| find(name, sample).is_none());
        let name = lost.map_or_else(String::new, |name| shown(name));
        let detail = format!("image '{name}' is no member of the sample");
        return Err(Rejection::new(Reason::ImageMissing, draft.id, detail));
    };
    draft.image = Images::None;
    draft.images = match members.as_slice() {
        [] => Images::None,
        members => Images::Given(members.iter().map(|member| picture(member)).collect()),
    };
    Ok(draft)
}

/// Finds the image member that a record means: by name, by the last part of it, or by what follows the key.
fn find<'a>(name: &str, sample: &'a TarSample) -> Option<&'a Member> {
    let last = |path: &str| path.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
    let is_meant = |member: &&Member| {
        member.name == name
            || member.name[last(&member.name)..] == name[last(name)..]
            || member
                .name
                .strip_prefix(&sample.key)
                .and_then(|rest| rest.strip_prefix('.'))
                == Some(name)
    };
    sample.images.iter().find(is_meant)
}

fn picture(member: &Member) -> Picture<'_> {
    Picture::Range {
        name: Some(member.name.as_str().into()),
        offset: member.offset,
        length: member.length,
    }
}
