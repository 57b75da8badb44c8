//! One LLaVA record: what it says, and the rules that it must keep.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem;

use super::images::{ImageFolder, ImageKey};
use super::json::{Cursor, Fault, MAX_DEPTH, kind};
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
    pub(super) images: Vec<(Cow<'a, str>, ImageKey)>,
}

/// Why a record does not become a sample.
#[derive(Debug)]
pub(super) enum Refusal {
    Rejected(Rejection),
    /// The text is not JSON.
    NotJson(Fault),
    /// It names an image, but there is no images folder.
    NeedsImages(String),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Reads a record and checks it against the rules, the first broken one first.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    images: Option<&ImageFolder>,
) -> Result<Sample<'a>, Refusal> {
    let text = simdutf8::compat::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejection::new(
            Reason::BrokenUtf8,
            None,
            format!("byte {at} of the record is not UTF-8"),
        )
    })?;
    let mut cursor = Cursor::new(text);
    let first = cursor.peek();
    if first != Some(b'{') {
        pass(&mut cursor).map_err(Refusal::NotJson)?;
        let detail = format!("the record is {}, not an object", kind(first));
        return Err(Rejection::new(Reason::NotAnObject, None, detail).into());
    }
    let draft = Draft::parse(&mut cursor).map_err(Refusal::NotJson)?;
    if cursor.lone_surrogate {
        let detail = "a '\\u' escape is half of a surrogate pair".into();
        return Err(Rejection::new(Reason::BrokenUtf8, None, detail).into());
    }
    let id = draft.id.clone();
    if cursor.too_deep {
        let detail = format!("the record is nested deeper than {MAX_DEPTH} levels");
        return Err(Rejection::new(Reason::InvalidJson, id, detail).into());
    }
    draft.check(images).map_err(|refusal| refusal.with_id(id))
}

fn pass(cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    cursor.skip()?;
    cursor.end()
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
struct Draft<'a> {
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    image: Images<'a>,
    images: Images<'a>,
    conversations: Conversations<'a>,
}

#[derive(Default)]
enum Images<'a> {
    #[default]
    None,
    Paths(Vec<Cow<'a, str>>),
    Wrong(&'static str),
}

#[derive(Default)]
enum Conversations<'a> {
    #[default]
    Absent,
    NotAList(&'static str),
    Turns(Vec<Turn<'a>>),
}

enum Turn<'a> {
    NotAnObject(&'static str),
    Fields { role: Field<'a>, content: Field<'a> },
}

/// A field that should be a string.
#[derive(Default)]
enum Field<'a> {
    #[default]
    Absent,
    NotAString(&'static str),
    Text(Cow<'a, str>),
}

impl<'a> Draft<'a> {
    fn parse(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let mut draft = Self::default();
        cursor.object(|cursor, key| {
            match key.as_ref() {
                "id" => draft.id = parse_id(cursor)?,
                "source" => {
                    draft.source = parse_field(cursor)?
                        .text()
                        .filter(|source| !source.is_empty())
                }
                "image" => draft.image = parse_images(cursor)?,
                "images" => draft.images = parse_images(cursor)?,
                "conversations" => draft.conversations = parse_conversations(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        cursor.end()?;
        Ok(draft)
    }

    fn check(self, images: Option<&ImageFolder>) -> Result<Sample<'a>, Refusal> {
        let turns = check_turns(self.conversations)?;
        let images_field = match self.image {
            Images::None => self.images,
            given => given,
        };
        let paths = match images_field {
            Images::None => Vec::new(),
            Images::Paths(paths) => paths,
            Images::Wrong(what) => {
                let detail = format!("the image is {what}; it must be a path or a list of paths");
                return Err(Rejection::new(Reason::ImageMissing, None, detail).into());
            }
        };
        check_marks(&turns, paths.len())?;
        let images = check_images(paths, images)?;
        Ok(Sample {
            id: self.id,
            source: self.source,
            turns,
            images,
        })
    }
}

/// A string or a whole number; anything else is no id.
fn parse_id<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, Fault> {
    match cursor.peek() {
        Some(b'"') => Ok(Some(cursor.string()?).filter(|id| !id.is_empty())),
        Some(b'-' | b'0'..=b'9') => {
            let number = cursor.number()?;
            let is_whole = number
                .bytes()
                .skip(usize::from(number.starts_with('-')))
                .all(|b| b.is_ascii_digit());
            Ok(is_whole.then_some(Cow::Borrowed(number)))
        }
        _ => cursor.skip().map(|()| None),
    }
}

fn parse_field<'a>(cursor: &mut Cursor<'a>) -> Result<Field<'a>, Fault> {
    let first = cursor.peek();
    if first == Some(b'"') {
        return Ok(Field::Text(cursor.string()?));
    }
    cursor.skip()?;
    Ok(Field::NotAString(kind(first)))
}

/// A path, a list of paths, or nothing (null, an empty string or an empty list).
fn parse_images<'a>(cursor: &mut Cursor<'a>) -> Result<Images<'a>, Fault> {
    let first = cursor.peek();
    if first != Some(b'[') {
        return Ok(match parse_field(cursor)? {
            Field::Text(path) if path.is_empty() => Images::None,
            Field::Text(path) => Images::Paths(vec![path]),
            Field::NotAString("null") | Field::Absent => Images::None,
            Field::NotAString(what) => Images::Wrong(what),
        });
    }
    let mut paths = Vec::new();
    let mut wrong = None;
    cursor.array(|cursor| {
        match parse_field(cursor)? {
            Field::Text(path) => paths.push(path),
            Field::NotAString(what) => wrong = wrong.or(Some(what)),
            Field::Absent => {}
        }
        Ok(())
    })?;
    Ok(match wrong {
        Some(what) => Images::Wrong(what),
        None if paths.is_empty() => Images::None,
        None => Images::Paths(paths),
    })
}

fn parse_conversations<'a>(cursor: &mut Cursor<'a>) -> Result<Conversations<'a>, Fault> {
    let first = cursor.peek();
    if first != Some(b'[') {
        cursor.skip()?;
        return Ok(Conversations::NotAList(kind(first)));
    }
    let mut turns = Vec::with_capacity(4);
    cursor.array(|cursor| {
        turns.push(parse_turn(cursor)?);
        Ok(())
    })?;
    Ok(Conversations::Turns(turns))
}

/// LLaVA's `from` and `value`, or `role` and `content`.
fn parse_turn<'a>(cursor: &mut Cursor<'a>) -> Result<Turn<'a>, Fault> {
    let first = cursor.peek();
    if first != Some(b'{') {
        cursor.skip()?;
        return Ok(Turn::NotAnObject(kind(first)));
    }
    let (mut from, mut role, mut value, mut content) = Default::default();
    cursor.object(|cursor, key| {
        match key.as_ref() {
            "from" => from = parse_field(cursor)?,
            "role" => role = parse_field(cursor)?,
            "value" => value = parse_field(cursor)?,
            "content" => content = parse_field(cursor)?,
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    Ok(Turn::Fields {
        role: from.or(role),
        content: value.or(content),
    })
}

impl<'a> Field<'a> {
    fn or(self, other: Self) -> Self {
        match self {
            Self::Absent => other,
            given => given,
        }
    }

    fn text(self) -> Option<Cow<'a, str>> {
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

fn check_images<'a>(
    paths: Vec<Cow<'a, str>>,
    folder: Option<&ImageFolder>,
) -> Result<Vec<(Cow<'a, str>, ImageKey)>, Refusal> {
    let Some(first) = paths.first() else {
        return Ok(Vec::new());
    };
    let Some(folder) = folder else {
        return Err(Refusal::NeedsImages(shown(first)));
    };
    let resolve = |path| folder.resolve(path).map_err(Refusal::Rejected);
    paths.into_iter().map(resolve).collect()
}
