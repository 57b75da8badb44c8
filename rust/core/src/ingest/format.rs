//! The formats of a pool: how its records stand in a file, and how they name what they hold.

use std::collections::BTreeMap;
use std::path::Path;

use super::container::Container;
use super::split::{Blocks, Limits};
use crate::{Error, Result};

/// How the records of a pool stand in its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON text, plain or compressed.
    Text(Dialect, Framing),
}

/// Which fields records of text have by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// LLaVA: `conversations` of `from` and `value`, `image`.
    Llava,
    /// ShareGPT as LLaMA-Factory reads it: `conversations` of `from` and `value`, `images`, `system`.
    ShareGpt,
    /// OpenAI's chat messages as TRL and ms-swift read them: `messages` of `role` and `content`, `images`.
    Messages,
}

/// How JSON records follow each other in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One JSON array of records.
    Array,
    /// A record a line.
    Lines,
}

const FORMATS: [(&str, Format); 6] = [
    ("llava-json", Format::Text(Dialect::Llava, Framing::Array)),
    ("llava-jsonl", Format::Text(Dialect::Llava, Framing::Lines)),
    (
        "sharegpt-json",
        Format::Text(Dialect::ShareGpt, Framing::Array),
    ),
    (
        "sharegpt-jsonl",
        Format::Text(Dialect::ShareGpt, Framing::Lines),
    ),
    (
        "messages-json",
        Format::Text(Dialect::Messages, Framing::Array),
    ),
    (
        "messages-jsonl",
        Format::Text(Dialect::Messages, Framing::Lines),
    ),
];

impl Format {
    /// The name in options and in the pool file's metadata.
    pub fn name(self) -> &'static str {
        let known = FORMATS.iter().find(|(_, format)| *format == self);
        known.expect("every format has a name").0
    }

    /// Reads a name.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = FORMATS.iter().find(|(known, _)| *known == name);
        known.map(|&(_, format)| format).ok_or_else(|| {
            let names = FORMATS.map(|(name, _)| name).join(", ");
            Error::Argument(format!("format: '{name}' is not one of {names}"))
        })
    }

    /// Opens an input of this format.
    pub(super) fn open(self, path: &Path, limits: Limits) -> Result<Box<dyn Container>> {
        match self {
            Self::Text(_, framing) => Ok(Box::new(Blocks::open(path, framing, limits)?)),
        }
    }

    /// Says whether records that name images but hold no mark are meant to show them first.
    pub(super) fn shows_unmarked_images_first(self) -> bool {
        match self {
            // TRL and ms-swift do so; LLaVA drops such images and LLaMA-Factory refuses them.
            Self::Text(dialect, _) => dialect == Dialect::Messages,
        }
    }
}

/// The names of the fields that a record is read from; the first one that holds something counts.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) id: String,
    pub(super) source: String,
    pub(super) system: String,
    pub(super) turns: String,
    pub(super) image: String,
    pub(super) images: String,
    pub(super) roles: [String; 2],
    pub(super) contents: [String; 2],
}

impl Names {
    /// Returns a format's names, with those that the user gives for others.
    pub(super) fn new(format: Format, given: &BTreeMap<String, String>) -> Result<Self> {
        let turns = match format {
            Format::Text(Dialect::Messages, _) => "messages",
            Format::Text(Dialect::Llava | Dialect::ShareGpt, _) => "conversations",
        };
        let mut names = Self {
            id: "id".into(),
            source: "source".into(),
            system: "system".into(),
            turns: turns.into(),
            image: "image".into(),
            images: "images".into(),
            roles: ["from".into(), "role".into()],
            contents: ["value".into(), "content".into()],
        };
        for (what, name) in given {
            match what.as_str() {
                "id" => names.id.clone_from(name),
                "source" => names.source.clone_from(name),
                "system" => names.system.clone_from(name),
                "messages" => names.turns.clone_from(name),
                // One column then holds them, as a string or a list.
                "images" => {
                    names.image.clone_from(name);
                    names.images.clone_from(name);
                }
                "role" => names.roles = [name.clone(), name.clone()],
                "content" => names.contents = [name.clone(), name.clone()],
                _ => {
                    return Err(Error::Argument(format!(
                        "--columns: '{what}' is not one of messages, images, id, source, system, role, content"
                    )));
                }
            }
        }
        Ok(names)
    }
}
