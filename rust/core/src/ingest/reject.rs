//! Why a record is set aside.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::IntoDeserializer;
use serde::de::value::Error as NoCode;
use serde::{Deserialize, Serialize};

use super::split::Place;

/// Reason codes of `rejected.jsonl`, in the order in which the rules are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Longer than ingest holds in memory.
    TooLarge,
    /// Bytes that are not UTF-8, or an escape that is half of a surrogate pair.
    BrokenUtf8,
    /// A line that is not JSON, or a record nested too deep.
    InvalidJson,
    /// A number, string, list, ... instead of an object.
    NotAnObject,
    /// The list of turns is missing, empty or not a list.
    NoConversations,
    /// A turn without a known role or without text.
    BadTurn,
    /// No assistant turn with text.
    NoAnswer,
    /// Questions and answers that do not alternate.
    TurnOrder,
    /// `<image>` marks that do not match the images, or stand in an answer.
    ImageMarks,
    /// An image path that leaves the images folder.
    ImageOutside,
    /// An image that is not a file of the images folder.
    ImageMissing,
    /// A tar member that is a link, sparse, cut off, named twice or leads out of the archive.
    BadMember,
    /// An image file that the system does not let be read.
    ImageUnreadable,
    /// An image without a single byte.
    ImageEmpty,
    /// An image of no known kind.
    ImageUnknown,
    /// An image whose header, or with `--check-images decode` picture, is wrong.
    ImageDamaged,
    /// An image of more pixels than allowed.
    ImageTooLarge,
    /// An image that ends too early.
    ImageCutOff,
    /// An id that an earlier sample has.
    DuplicateId,
}

impl Reason {
    /// Reads a code.
    pub(super) fn from_code(code: &str) -> Option<Self> {
        Self::deserialize(IntoDeserializer::<NoCode>::into_deserializer(code)).ok()
    }

    /// The code as it stands in `rejected.jsonl`.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::BrokenUtf8 => "broken-utf8",
            Self::InvalidJson => "invalid-json",
            Self::NotAnObject => "not-an-object",
            Self::NoConversations => "no-conversations",
            Self::BadTurn => "bad-turn",
            Self::NoAnswer => "no-answer",
            Self::TurnOrder => "turn-order",
            Self::ImageMarks => "image-marks",
            Self::ImageOutside => "image-outside",
            Self::ImageMissing => "image-missing",
            Self::BadMember => "bad-member",
            Self::ImageUnreadable => "image-unreadable",
            Self::ImageEmpty => "image-empty",
            Self::ImageUnknown => "image-unknown",
            Self::ImageDamaged => "image-damaged",
            Self::ImageTooLarge => "image-too-large",
            Self::ImageCutOff => "image-cut-off",
            Self::DuplicateId => "duplicate-id",
        }
    }
}

/// The reason of one record in words.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    pub(super) id: Option<String>,
    pub(super) detail: String,
}

impl Rejection {
    pub(super) fn new(reason: Reason, id: Option<Cow<'_, str>>, detail: String) -> Self {
        Self {
            reason,
            id: id.map(Cow::into_owned),
            detail,
        }
    }

    pub(super) fn with_id(self, id: Option<Cow<'_, str>>) -> Self {
        Self {
            id: id.map(Cow::into_owned),
            ..self
        }
    }

    pub(super) fn at(self, input: &Arc<str>, place: Place) -> Rejected {
        let Place {
            record,
            offset,
            length,
        } = place;
        let Self { reason, id, detail } = self;
        Rejected {
            id,
            input: Arc::clone(input),
            record,
            offset,
            length,
            reason,
            detail,
        }
    }
}

/// A line of `rejected.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct Rejected {
    pub(super) id: Option<String>,
    pub(super) input: Arc<str>,
    pub(super) record: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) reason: Reason,
    pub(super) detail: String,
}

/// Shortens a text from the input for a message.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
