//! JSON to what a record says.

use std::borrow::Cow;

use super::format::Names;
use super::json::{Cursor, Fault, MAX_DEPTH, kind};
use super::picture::Picture;
use super::record::{Conversations, Draft, Field, IMAGE_MARK, Images, Turn};
use super::reject::{Reason, Rejection, shown};

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

/// Reads the known fields of a record; texts with escapes are decoded into `room`, which is as long.
pub(super) fn record<'a>(
    bytes: &'a [u8],
    names: &Names,
    room: &'a mut [u8],
) -> Result<Draft<'a>, Unread> {
    let text = simdutf8::compat::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejection::new(
            Reason::BrokenUtf8,
            None,
            format!("byte {at} of the record is not UTF-8"),
        )
    })?;
    let mut cursor = Cursor::with_room(text, room);
    let first = cursor.peek();
    if first != Some(b'{') {
        pass(&mut cursor).map_err(Unread::NotJson)?;
        let detail = format!("the record is {}, not an object", kind(first));
        return Err(Rejection::new(Reason::NotAnObject, None, detail).into());
    }
    let draft = fields(&mut cursor, names).map_err(Unread::NotJson)?;
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

fn fields<'a>(cursor: &mut Cursor<'a>, names: &Names) -> Result<Draft<'a>, Fault> {
    let mut draft = Draft::default();
    cursor.object(|cursor, key| {
        let key = key.as_ref();
        if key == names.turns || Some(key) == names.other_turns.as_deref() {
            (draft.conversations, draft.carried) = parse_conversations(cursor, names)?;
        } else if key == names.images {
            draft.images = parse_images(cursor)?;
        } else if key == names.image {
            draft.image = parse_images(cursor)?;
        } else if key == names.id {
            draft.id = parse_id(cursor)?;
        } else if key == names.source {
            draft.source = parse_text(cursor)?;
        } else if key == names.system {
            draft.system = parse_text(cursor)?;
        } else {
            cursor.skip()?;
        }
        Ok(())
    })?;
    cursor.end()?;
    Ok(draft)
}

/// A text that is not empty; anything else is none.
fn parse_text<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, Fault> {
    Ok(parse_field(cursor)?.text().filter(|text| !text.is_empty()))
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

/// An image, a list of images, or nothing (null, an empty string or an empty list).
fn parse_images<'a>(cursor: &mut Cursor<'a>) -> Result<Images<'a>, Fault> {
    if cursor.peek() != Some(b'[') {
        return Ok(match parse_image(cursor)? {
            Ok(Some(picture)) => Images::Given(vec![picture]),
            Ok(None) => Images::None,
            Err(what) => Images::Wrong(what),
        });
    }
    let mut pictures = Vec::new();
    let mut wrong = None;
    cursor.array(|cursor| {
        // An empty string in a list is a path, if a wrong one, so that the list keeps its length.
        match parse_image(cursor)? {
            Ok(picture) => pictures.push(picture.unwrap_or_else(|| Picture::path("".into()))),
            Err(what) => wrong = wrong.or(Some(what)),
        }
        Ok(())
    })?;
    Ok(match wrong {
        Some(what) => Images::Wrong(what),
        None if pictures.is_empty() => Images::None,
        None => Images::Given(pictures),
    })
}

type Image<'a> = Result<Option<Picture<'a>>, &'static str>;

/// A path or an address, alone or as a field of an object; null and an empty string are none.
fn parse_image<'a>(cursor: &mut Cursor<'a>) -> Result<Image<'a>, Fault> {
    if cursor.peek() != Some(b'{') {
        return Ok(image_of(parse_field(cursor)?));
    }
    let mut image = Ok(None);
    cursor.object(|cursor, key| {
        if !matches!(key.as_ref(), "path" | "image" | "url" | "image_url") {
            return cursor.skip();
        }
        let given = image_of(parse_field(cursor)?);
        if !matches!(given, Ok(None)) {
            image = given;
        }
        Ok(())
    })?;
    Ok(match image {
        Ok(None) => Err("an object without a path"),
        image => image,
    })
}

fn image_of(field: Field<'_>) -> Image<'_> {
    match field {
        Field::Text(path) if path.is_empty() => Ok(None),
        Field::Text(path) => Picture::from_text(path).map(Some),
        Field::NotAString("null") | Field::Absent | Field::BadParts(_) => Ok(None),
        Field::NotAString(what) => Err(what),
    }
}

fn parse_conversations<'a>(
    cursor: &mut Cursor<'a>,
    names: &Names,
) -> Result<(Conversations<'a>, Vec<Picture<'a>>), Fault> {
    let mut carried = Vec::new();
    let first = cursor.peek();
    if first != Some(b'[') {
        cursor.skip()?;
        return Ok((Conversations::NotAList(kind(first)), carried));
    }
    let mut turns = Vec::with_capacity(16);
    cursor.array(|cursor| {
        turns.push(parse_turn(cursor, names, &mut carried)?);
        Ok(())
    })?;
    Ok((Conversations::Turns(turns), carried))
}

/// `from` and `value`, or `role` and `content`.
fn parse_turn<'a>(
    cursor: &mut Cursor<'a>,
    names: &Names,
    carried: &mut Vec<Picture<'a>>,
) -> Result<Turn<'a>, Fault> {
    let first = cursor.peek();
    if first != Some(b'{') {
        cursor.skip()?;
        return Ok(Turn::NotAnObject(kind(first)));
    }
    let [from, role] = &names.roles;
    let [value, content] = &names.contents;
    let (mut roles, mut contents): ([Field; 2], [Field; 2]) = Default::default();
    cursor.object(|cursor, key| {
        let key = key.as_ref();
        if key == from {
            roles[0] = parse_field(cursor)?;
        } else if key == value {
            contents[0] = parse_content(cursor, carried)?;
        } else if key == role {
            roles[1] = parse_field(cursor)?;
        } else if key == content {
            contents[1] = parse_content(cursor, carried)?;
        } else {
            cursor.skip()?;
        }
        Ok(())
    })?;
    let [from, role] = roles;
    let [value, content] = contents;
    Ok(Turn::Fields {
        role: from.or(role),
        content: value.or(content),
    })
}

/// A text, or a list of parts that make one; images in it become marks.
fn parse_content<'a>(
    cursor: &mut Cursor<'a>,
    carried: &mut Vec<Picture<'a>>,
) -> Result<Field<'a>, Fault> {
    if cursor.peek() != Some(b'[') {
        return parse_field(cursor);
    }
    let mut text = String::new();
    let mut wrong = None;
    let mut number = 0;
    cursor.array(|cursor| {
        let part = parse_part(cursor)?;
        match part {
            Ok(Part::Text(more)) => text += &more,
            Ok(Part::Image(picture)) => {
                text += IMAGE_MARK;
                carried.extend(picture);
            }
            Err(why) => wrong = wrong.take().or(Some(format!("part {number} {why}"))),
        }
        number += 1;
        Ok(())
    })?;
    Ok(match wrong {
        Some(why) => Field::BadParts(why),
        None => Field::Text(Cow::Owned(text)),
    })
}

enum Part<'a> {
    Text(Cow<'a, str>),
    /// An image, which may stand in the record's list of images instead.
    Image(Option<Picture<'a>>),
}

/// One of OpenAI's content parts, or of those that TRL, ms-swift and Qwen make of them.
fn parse_part<'a>(cursor: &mut Cursor<'a>) -> Result<Result<Part<'a>, String>, Fault> {
    let first = cursor.peek();
    if first == Some(b'"') {
        return Ok(Ok(Part::Text(cursor.string()?)));
    }
    if first != Some(b'{') {
        cursor.skip()?;
        return Ok(Err(format!("is {}, not an object", kind(first))));
    }
    let mut type_ = Field::Absent;
    let mut text = Field::Absent;
    let mut image = Ok(None);
    let mut names_image = false;
    cursor.object(|cursor, key| {
        match key.as_ref() {
            "type" => type_ = parse_field(cursor)?,
            "text" => text = parse_field(cursor)?,
            "image" | "image_url" | "url" | "path" => {
                names_image |= cursor.peek() != Some(b'n');
                let given = parse_image(cursor)?;
                if !matches!(given, Ok(None)) {
                    image = given;
                }
            }
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    let type_ = type_.text();
    let is_image = match type_.as_deref() {
        Some("text" | "input_text") => false,
        Some("image" | "image_url" | "input_image") => true,
        Some(other) => {
            return Ok(Err(format!(
                "is of type '{}'; known are text, image, image_url",
                shown(other)
            )));
        }
        None => names_image,
    };
    if is_image {
        return Ok(match image {
            Ok(picture) => Ok(Part::Image(picture)),
            Err(what) => Err(format!(
                "holds an image that is {what}; it must be a path or an address"
            )),
        });
    }
    Ok(match text.text() {
        Some(text) => Ok(Part::Text(text)),
        None => Err("has no text".into()),
    })
}
