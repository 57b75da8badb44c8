//! One record: what it says, and the rules that it must keep.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem;

use super::images::{ImageKey, key};
use super::reject::{Reason, Rejection, shown};

const IMAGE_MARK: &str = "<image>";

static MARK_FINDER: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(IMAGE_MARK));

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// Reads LLaVA's and ShareGPT's names of the roles.
    fn parse(name: &str) -> Option<Self> {
        const NAMES: [(&str, Role); 8] = [
            ("human", Role::User),
            ("user", Role::User),
            ("gpt", Role::Assistant),
            ("assistant", Role::Assistant),
            ("chatgpt", Role::Assistant),
            ("bard", Role::Assistant),
            ("model", Role::Assistant),
            ("system", Role::System),
        ];
        NAMES
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known))
            .map(|&(_, role)| role)
    }
}

/// A record that keeps all rules.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) turns: Vec<(Role, Cow<'a, str>)>,
    pub(super) images: Vec<Picture<'a>>,
}

/// Where an image is.
#[derive(Debug)]
#[expect(
    dead_code,
    reason = "containers that carry their images make the last two"
)]
pub(super) enum Picture<'a> {
    /// A file of the images folder. The key is set once it is known to be there.
    Path(Cow<'a, str>, ImageKey),
    /// The encoded image itself.
    Bytes {
        name: Option<Cow<'a, str>>,
        bytes: Cow<'a, [u8]>,
    },
    /// Bytes of the record's own input file.
    Range {
        name: Option<Cow<'a, str>>,
        offset: u64,
        length: u64,
    },
}

impl<'a> Picture<'a> {
    /// A path as the record gives it.
    pub(super) fn path(path: Cow<'a, str>) -> Self {
        Self::Path(path, ImageKey::default())
    }

    /// Returns what tells this image from others, in input `file`.
    pub(super) fn key(&self, file: u32) -> ImageKey {
        match self {
            Self::Path(_, key) => *key,
            Self::Bytes { bytes, .. } => key(bytes),
            Self::Range { offset, .. } => {
                key([u64::from(file), *offset].map(u64::to_le_bytes).concat())
            }
        }
    }
}

/// Why a record does not become a sample.
#[derive(Debug)]
pub(super) enum Refusal {
    Rejected(Rejection),
    /// It names an image file, but there is no images folder.
    NeedsImages(String),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Refusal {
    fn with_id(self, id: Option<Cow<'_, str>>) -> Self {
        match self {
            Self::Rejected(rejection) => Self::Rejected(rejection.with_id(id)),
            other => other,
        }
    }
}

/// A record's known fields as they are; of a repeated one the last counts.
#[derive(Default)]
pub(super) struct Draft<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) image: Images<'a>,
    pub(super) images: Images<'a>,
    pub(super) conversations: Conversations<'a>,
}

#[derive(Default)]
pub(super) enum Images<'a> {
    #[default]
    None,
    Given(Vec<Picture<'a>>),
    Wrong(&'static str),
}

#[derive(Default)]
pub(super) enum Conversations<'a> {
    #[default]
    Absent,
    NotAList(&'static str),
    Turns(Vec<Turn<'a>>),
}

pub(super) enum Turn<'a> {
    NotAnObject(&'static str),
    Fields { role: Field<'a>, content: Field<'a> },
}

/// A field that should be a string.
#[derive(Default)]
pub(super) enum Field<'a> {
    #[default]
    Absent,
    NotAString(&'static str),
    Text(Cow<'a, str>),
}

impl<'a> Draft<'a> {
    /// Checks the record against the rules, the first broken one first; `check_image` last, for each image.
    pub(super) fn check(
        mut self,
        check_image: impl Fn(Picture<'a>) -> Result<Picture<'a>, Refusal>,
    ) -> Result<Sample<'a>, Refusal> {
        let id = self.id.take();
        match self.check_fields(check_image) {
            Ok(sample) => Ok(Sample { id, ..sample }),
            Err(refusal) => Err(refusal.with_id(id)),
        }
    }

    fn check_fields(
        self,
        check_image: impl Fn(Picture<'a>) -> Result<Picture<'a>, Refusal>,
    ) -> Result<Sample<'a>, Refusal> {
        let turns = check_turns(self.conversations)?;
        let images_field = match self.image {
            Images::None => self.images,
            given => given,
        };
        let pictures = match images_field {
            Images::None => Vec::new(),
            Images::Given(pictures) => pictures,
            Images::Wrong(what) => {
                let detail = format!("the image is {what}; it must be a path or a list of paths");
                return Err(Rejection::new(Reason::ImageMissing, None, detail).into());
            }
        };
        check_marks(&turns, pictures.len())?;
        let images = pictures
            .into_iter()
            .map(check_image)
            .collect::<Result<_, _>>()?;
        Ok(Sample {
            id: None,
            source: self.source,
            turns,
            images,
        })
    }
}

impl<'a> Field<'a> {
    pub(super) fn or(self, other: Self) -> Self {
        match self {
            Self::Absent => other,
            given => given,
        }
    }

    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::NotAString(_) => None,
        }
    }
}

fn check_turns<'a>(
    conversations: Conversations<'a>,
) -> Result<Vec<(Role, Cow<'a, str>)>, Rejection> {
    let turns = match conversations {
        Conversations::Turns(turns) if !turns.is_empty() => turns,
        Conversations::Turns(_) => return Err(no_conversations("'conversations' is empty".into())),
        Conversations::Absent => return Err(no_conversations("'conversations' is missing".into())),
        Conversations::NotAList(what) => {
            return Err(no_conversations(format!(
                "'conversations' is {what}, not a list of turns"
            )));
        }
    };
    let turns: Vec<_> = turns
        .into_iter()
        .enumerate()
        .map(|(index, turn)| check_turn(index, turn))
        .collect::<Result<_, _>>()?;
    let is_answer =
        |(role, content): &(Role, Cow<str>)| *role == Role::Assistant && !is_blank(content);
    if !turns.iter().any(is_answer) {
        let detail = "no assistant turn has any text".into();
        return Err(Rejection::new(Reason::NoAnswer, None, detail));
    }
    Ok(turns)
}

fn no_conversations(detail: String) -> Rejection {
    Rejection::new(Reason::NoConversations, None, detail)
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

fn check_turn<'a>(index: usize, turn: Turn<'a>) -> Result<(Role, Cow<'a, str>), Rejection> {
    let bad = |what: String| Rejection::new(Reason::BadTurn, None, format!("turn {index}: {what}"));
    let (role, content) = match turn {
        Turn::NotAnObject(what) => return Err(bad(format!("it is {what}, not an object"))),
        Turn::Fields { role, content } => (role, content),
    };
    let role = match role {
        Field::Text(name) => Role::parse(&name).ok_or_else(|| {
            bad(format!(
                "unknown role '{}'; known are human, user, gpt, assistant, system",
                shown(&name)
            ))
        })?,
        Field::NotAString(what) => return Err(bad(format!("its role is {what}, not a string"))),
        Field::Absent => return Err(bad("it has no 'from' or 'role'".into())),
    };
    match content {
        Field::Text(content) => Ok((role, content)),
        Field::NotAString(what) => Err(bad(format!("its text is {what}, not a string"))),
        Field::Absent => Err(bad("it has no 'value' or 'content'".into())),
    }
}

fn check_marks(turns: &[(Role, Cow<'_, str>)], images: usize) -> Result<(), Rejection> {
    let count = |text: &str| MARK_FINDER.find_iter(text.as_bytes()).count();
    let (mut asked, mut answered) = (0, 0);
    for (role, content) in turns {
        match role {
            Role::Assistant => answered += count(content),
            Role::User | Role::System => asked += count(content),
        }
    }
    if answered == 0 && asked == images {
        return Ok(());
    }
    let detail = if answered > 0 {
        format!(
            "{answered} {IMAGE_MARK} marks in answers, where there may be none; {asked} in other turns for {images} images"
        )
    } else {
        format!("{asked} {IMAGE_MARK} marks for {images} images")
    };
    Err(Rejection::new(Reason::ImageMarks, None, detail))
}
