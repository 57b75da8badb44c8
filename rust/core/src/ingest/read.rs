//! JSON to what a record says.

use std::borrow::Cow;

use super::json::{Cursor, Fault, MAX_DEPTH, kind};
use super::record::{Conversations, Draft, Field, Images, Picture, Turn};
use super::reject::{Reason, Rejection};

/// Why a record cannot be read.
#[derive(Debug)]
pub(super) enum Unread {
    Rejected(Rejection),
    /// The text is not JSON.
    NotJson(Fault),
}

impl From<Rejection> for Unread {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Reads the known fields of a record.
pub(super) fn record(bytes: &[u8]) -> Result<Draft<'_>, Unread> {
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
        pass(&mut cursor).map_err(Unread::NotJson)?;
        let detail = format!("the record is {}, not an object", kind(first));
        return Err(Rejection::new(Reason::NotAnObject, None, detail).into());
    }
    let draft = fields(&mut cursor).map_err(Unread::NotJson)?;
    if cursor.lone_surrogate {
        let detail = "a '\\u' escape is half of a surrogate pair".into();
        return Err(Rejection::new(Reason::BrokenUtf8, None, detail).into());
    }
    if cursor.too_deep {
        let detail = format!("the record is nested deeper than {MAX_DEPTH} levels");
        return Err(Rejection::new(Reason::InvalidJson, draft.id, detail).into());
    }
    Ok(draft)
}

fn pass(cursor: &mut Cursor<'_>) -> Result<(), Fault> {
    cursor.skip()?;
    cursor.end()
}

fn fields<'a>(cursor: &mut Cursor<'a>) -> Result<Draft<'a>, Fault> {
    let mut draft = Draft::default();
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
            Field::Text(path) => Images::Given(vec![Picture::path(path)]),
            Field::NotAString("null") | Field::Absent => Images::None,
            Field::NotAString(what) => Images::Wrong(what),
        });
    }
    let mut paths = Vec::new();
    let mut wrong = None;
    cursor.array(|cursor| {
        match parse_field(cursor)? {
            Field::Text(path) => paths.push(Picture::path(path)),
            Field::NotAString(what) => wrong = wrong.or(Some(what)),
            Field::Absent => {}
        }
        Ok(())
    })?;
    Ok(match wrong {
        Some(what) => Images::Wrong(what),
        None if paths.is_empty() => Images::None,
        None => Images::Given(paths),
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
