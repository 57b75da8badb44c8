//! One record: what it says, and the rules that it must keep.

use std::borrow::Cow;

use memchr::memchr_iter;

use super::picture::Picture;
use super::reject::{Reason, Rejection, shown};
use super::turns::{self, Role};
use crate::Error;

pub(super) const IMAGE_MARK: &str = "<image>";

/// What the user decides about records that frameworks read in different ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Questions and answers must alternate.
    pub(super) turns_alternate: bool,
    /// Images of a record without any mark are put before its first question; otherwise it is rejected.
    pub(super) inserts_marks: bool,
}

/// A record that keeps all rules.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) turns: Vec<(Role, Cow<'a, str>)>,
    pub(super) images: Vec<Picture<'a>>,
}

/// Why a record does not become a sample.
#[derive(Debug)]
pub(super) enum Refusal {
    Rejected(Rejection),
    /// It names an image file, but there is no images folder.
    NeedsImages(String),
    /// It cannot be told whether it keeps the rules.
    Failed(Error),
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
    /// A system prompt that is no turn.
    pub(super) system: Option<Cow<'a, str>>,
    pub(super) image: Images<'a>,
    pub(super) images: Images<'a>,
    /// Images that parts of turns carry themselves, in order.
    pub(super) carried: Vec<Picture<'a>>,
    pub(super) conversations: Conversations<'a>,
}

impl Draft<'_> {
    /// Returns how many bytes its texts and the images held in it take.
    pub(super) fn bytes(&self) -> u64 {
        let text = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
        let turns = match &self.conversations {
            Conversations::Turns(turns) => turns.iter().map(Turn::bytes).sum(),
            Conversations::Absent | Conversations::NotAList(_) => 0,
        };
        let given = [&self.image, &self.images].into_iter();
        let pictures = given.flat_map(Images::pictures).chain(&self.carried);
        let held: usize = pictures.map(Picture::held_bytes).sum();
        (text(&self.id) + text(&self.source) + text(&self.system) + turns + held) as u64
    }
}

#[derive(Default)]
pub(super) enum Images<'a> {
    #[default]
    None,
    Given(Vec<Picture<'a>>),
    Wrong(&'static str),
}

impl<'a> Images<'a> {
    fn pictures(&self) -> &[Picture<'a>] {
        match self {
            Self::Given(pictures) => pictures,
            Self::None | Self::Wrong(_) => &[],
        }
    }
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

impl Turn<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::NotAnObject(_) => 0,
            Self::Fields { role, content } => role.bytes() + content.bytes(),
        }
    }
}

/// A field that should be a string.
#[derive(Default)]
pub(super) enum Field<'a> {
    #[default]
    Absent,
    NotAString(&'static str),
    Text(Cow<'a, str>),
    /// A list of parts that cannot be a text, and why.
    BadParts(String),
}

impl<'a> Field<'a> {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Absent | Self::NotAString(_) | Self::BadParts(_) => 0,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        match self {
            Self::Absent => other,
            given => given,
        }
    }

    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::NotAString(_) | Self::BadParts(_) => None,
        }
    }
}

impl<'a> Draft<'a> {
    /// Checks the record against the rules, the first broken one first; at last each image by `check_image`.
    pub(super) fn check(
        mut self,
        rules: Rules,
        check_image: impl Fn(Picture<'a>) -> Result<Picture<'a>, Refusal>,
    ) -> Result<Sample<'a>, Refusal> {
        let id = self.id.take();
        match self.check_fields(rules, check_image) {
            Ok(sample) => Ok(Sample { id, ..sample }),
            Err(refusal) => Err(refusal.with_id(id)),
        }
    }

    fn check_fields(
        self,
        rules: Rules,
        check_image: impl Fn(Picture<'a>) -> Result<Picture<'a>, Refusal>,
    ) -> Result<Sample<'a>, Refusal> {
        let mut turns = turns::check(self.conversations, self.system, rules.turns_alternate)?;
        let named = match self.image {
            Images::None => self.images,
            given => given,
        };
        let named = match named {
            Images::None => Vec::new(),
            Images::Given(pictures) => pictures,
            Images::Wrong(what) => {
                let detail = format!("the image is {what}; it must be a path or a list of paths");
                return Err(Rejection::new(Reason::ImageMissing, None, detail).into());
            }
        };
        let marks = count_marks(&turns);
        // A list may repeat what the parts carry; the parts say where each stands.
        let is_carried =
            !self.carried.is_empty() && (named.is_empty() || self.carried.len() == marks.asked);
        let pictures = if is_carried { self.carried } else { named };
        if rules.inserts_marks && marks.none() && !pictures.is_empty() {
            insert_marks(&mut turns, pictures.len());
        } else {
            check_marks(marks, pictures.len())?;
        }
        Ok(Sample {
            id: None,
            source: self.source,
            turns,
            images: pictures
                .into_iter()
                .map(check_image)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Marks in questions and system prompts, and in answers.
#[derive(Clone, Copy)]
struct Marks {
    asked: usize,
    answered: usize,
}

impl Marks {
    fn none(self) -> bool {
        self.asked + self.answered == 0
    }
}

fn count_marks(turns: &[(Role, Cow<'_, str>)]) -> Marks {
    // Most texts are short, and hold no '<': it is found faster than the whole mark.
    let count = |text: &str| {
        memchr_iter(b'<', text.as_bytes())
            .filter(|&at| text.as_bytes()[at..].starts_with(IMAGE_MARK.as_bytes()))
            .count()
    };
    let mut marks = Marks {
        asked: 0,
        answered: 0,
    };
    for (role, content) in turns {
        match role {
            Role::Assistant => marks.answered += count(content),
            Role::User | Role::System | Role::Tool => marks.asked += count(content),
        }
    }
    marks
}

fn check_marks(Marks { asked, answered }: Marks, images: usize) -> Result<(), Rejection> {
    if answered == 0 && asked == images {
        return Ok(());
    }
    let detail = if answered > 0 {
        format!(
            "{answered} {IMAGE_MARK} marks in answers, where there may be none; {asked} in other turns for {images} images"
        )
    } else {
        let way_out = if asked == 0 {
            "; --missing-marks insert puts them before the first question"
        } else {
            ""
        };
        format!("{asked} {IMAGE_MARK} marks for {images} images{way_out}")
    };
    Err(Rejection::new(Reason::ImageMarks, None, detail))
}

/// Puts marks before the first question.
fn insert_marks(turns: &mut [(Role, Cow<'_, str>)], images: usize) {
    if let Some((_, content)) = turns.iter_mut().find(|(role, _)| *role == Role::User) {
        content.to_mut().insert_str(0, &IMAGE_MARK.repeat(images));
    }
}

/// Shows a role that is not known.
pub(super) fn unknown_role(name: &str) -> String {
    format!(
        "unknown role '{}'; known are human, user, gpt, assistant, system, observation, tool, function_call",
        shown(name)
    )
}
