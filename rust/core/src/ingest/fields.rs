//! What the rows of a record batch say, in the columns and types that training frameworks use.

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::DataType;

use super::cells::{Bytes, Lists, NotText, Outside, Texts, whole_number};
use super::format::Names;
use super::picture::Picture;
use super::record::{Conversations, Draft, Field, IMAGE_MARK, Images, Turn};
use super::reject::{Reason, Rejection, shown};

/// Why a row cannot be read as far as a draft.
pub(super) enum Fault {
    Rejected(Rejection),
    /// The file is damaged.
    Outside,
}

impl From<Outside> for Fault {
    fn from(_: Outside) -> Self {
        Self::Outside
    }
}

impl From<Rejection> for Fault {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// The columns of a batch that say something of a sample.
pub(super) struct Fields<'a> {
    id: Option<Ids<'a>>,
    source: Option<Texts<'a>>,
    system: Option<Texts<'a>>,
    turns: Turns<'a>,
    image: Option<Pictures<'a>>,
    images: Option<Pictures<'a>>,
    /// Where in memory the file is mapped, if it is.
    mapped: Option<Range<usize>>,
}

impl<'a> Fields<'a> {
    /// Finds the columns.
    ///
    /// # Errors
    ///
    /// In words: a column that is missing or of a type that cannot be read, and what is allowed.
    pub(super) fn of(
        batch: &'a RecordBatch,
        names: &Names,
        mapped: Option<Range<usize>>,
    ) -> Result<Self, String> {
        let turn_names = [Some(&names.turns), names.other_turns.as_ref()];
        let turn_names = turn_names.into_iter().flatten();
        let turns = turn_names
            .clone()
            .find_map(|name| Some((name, batch.column_by_name(name)?)));
        let Some((name, turns)) = turns else {
            let columns = batch.schema_ref().fields().iter();
            let columns: Vec<_> = columns.map(|field| field.name().as_str()).collect();
            let wanted: Vec<_> = turn_names.map(|name| format!("'{name}'")).collect();
            return Err(format!(
                "there is no column {} (of those to read there are: {}); name it with --columns messages=COLUMN",
                wanted.join(" or "),
                columns.join(", ")
            ));
        };
        let rows = 0..batch.num_rows();
        let pictures = |name: &str| {
            let column = batch.column_by_name(name);
            column
                .map(|column| Pictures::of(name, column, &rows))
                .transpose()
        };
        let texts = |name: &str| Texts::of_text(batch.column_by_name(name)?, &rows);
        Ok(Self {
            id: batch
                .column_by_name(&names.id)
                .map(|column| Ids::of(column, &rows)),
            source: texts(&names.source),
            system: texts(&names.system),
            turns: Turns::of(name, turns, names, &rows)?,
            // A name that the user gives is that of both.
            image: match names.image == names.images {
                true => None,
                false => pictures(&names.image)?,
            },
            images: pictures(&names.images)?,
            mapped,
        })
    }

    /// Returns what a row says.
    pub(super) fn draft(&self, row: usize) -> Result<Draft<'a>, Fault> {
        let id = self.id(row)?;
        self.rest(row).map_or_else(
            |fault| match fault {
                Fault::Rejected(rejection) => Err(rejection.with_id(id.clone()).into()),
                Fault::Outside => Err(Fault::Outside),
            },
            |draft| {
                Ok(Draft {
                    id: id.clone(),
                    ..draft
                })
            },
        )
    }

    /// Returns what a row says but its id.
    fn rest(&self, row: usize) -> Result<Draft<'a>, Fault> {
        let (conversations, carried) = self.turns.get(row, self)?;
        let texts = |column: &Option<Texts<'a>>, name| match column {
            Some(column) => {
                text(column, row, name).map(|text| text.filter(|text| !text.is_empty()))
            }
            None => Ok(None),
        };
        Ok(Draft {
            id: None,
            source: texts(&self.source, "source")?,
            system: texts(&self.system, "system")?,
            image: self.pictures(self.image.as_ref(), row)?,
            images: self.pictures(self.images.as_ref(), row)?,
            carried,
            conversations,
        })
    }

    /// A text or a whole number; anything else is no id.
    fn id(&self, row: usize) -> Result<Option<Cow<'a, str>>, Fault> {
        match &self.id {
            None => Ok(None),
            Some(Ids::Texts(texts)) => Ok(text(texts, row, "id")?.filter(|id| !id.is_empty())),
            Some(Ids::Others(column)) => Ok(whole_number(column, row).map(Cow::Owned)),
        }
    }

    fn pictures(&self, column: Option<&Pictures<'a>>, row: usize) -> Result<Images<'a>, Fault> {
        let Some(column) = column else {
            return Ok(Images::None);
        };
        let items = match &column.lists {
            Some(lists) => lists.get(row)?.unwrap_or_default(),
            None => row..row + 1,
        };
        let mut given = Vec::with_capacity(items.len());
        for item in items {
            given.extend(column.item.get(item, self.mapped.as_ref())?);
        }
        Ok(if given.is_empty() {
            Images::None
        } else {
            Images::Given(given)
        })
    }
}

/// A column of ids.
enum Ids<'a> {
    Texts(Texts<'a>),
    Others(&'a ArrayRef),
}

impl<'a> Ids<'a> {
    fn of(column: &'a ArrayRef, rows: &Range<usize>) -> Self {
        Texts::of(column, rows).map_or(Self::Others(column), Self::Texts)
    }
}

/// Reads a text; None if it is null.
fn text<'a>(column: &Texts<'a>, row: usize, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
    match column.get(row)? {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(Cow::Borrowed(text))),
        Some(Err(NotText)) => {
            let detail = format!("a text in column '{name}' is not UTF-8");
            Err(Rejection::new(Reason::BrokenUtf8, None, detail).into())
        }
    }
}

fn child<'a>(structs: &'a StructArray, name: &str) -> Option<&'a ArrayRef> {
    structs.column_by_name(name)
}

/// The column of the turns: lists of structs.
struct Turns<'a> {
    name: String,
    lists: Lists<'a>,
    structs: &'a StructArray,
    /// `from` before `role`, as in records of text.
    roles: Vec<Texts<'a>>,
    contents: Vec<Content<'a>>,
}

/// A turn's text, or the parts that it is made of.
enum Content<'a> {
    Text(Texts<'a>),
    Parts(Parts<'a>),
}

impl<'a> Turns<'a> {
    fn of(
        name: &str,
        column: &'a ArrayRef,
        names: &Names,
        rows: &Range<usize>,
    ) -> Result<Self, String> {
        let [role, other_role] = &names.roles;
        let [content, other_content] = &names.contents;
        let wrong = || {
            format!(
                "column '{name}' is {}; it must be a list of structs with a role ('{role}' or '{other_role}', text) and a content ('{content}' or '{other_content}', text or a list of parts)",
                column.data_type()
            )
        };
        let lists = Lists::of(column).ok_or_else(wrong)?;
        let structs = structs(lists.items).ok_or_else(wrong)?;
        let items = lists.extent(rows);
        let children = |names: &[String; 2]| names.clone().map(|name| child(structs, &name));
        let roles: Option<Vec<_>> = children(&names.roles)
            .into_iter()
            .flatten()
            .map(|column| Texts::of_text(column, &items))
            .collect();
        let contents: Option<Vec<_>> = children(&names.contents)
            .into_iter()
            .flatten()
            .map(|column| Content::of(column, &items))
            .collect();
        match (roles, contents) {
            (Some(roles), Some(contents)) if !roles.is_empty() && !contents.is_empty() => {
                Ok(Self {
                    name: name.to_owned(),
                    lists,
                    structs,
                    roles,
                    contents,
                })
            }
            _ => Err(wrong()),
        }
    }

    /// Returns the turns of a row, and the images that their parts carry.
    fn get(
        &self,
        row: usize,
        fields: &Fields<'a>,
    ) -> Result<(Conversations<'a>, Vec<Picture<'a>>), Fault> {
        let mut carried = Vec::new();
        let Some(items) = self.lists.get(row)? else {
            return Ok((Conversations::Absent, carried));
        };
        let mut turns = Vec::with_capacity(items.len());
        for item in items {
            if self.structs.is_null(item) {
                turns.push(Turn::NotAnObject("null"));
                continue;
            }
            let role = first_of(&self.roles, |column| self.text(column, item))?;
            let content = first_of(&self.contents, |column| match column {
                Content::Text(column) => self.text(column, item),
                Content::Parts(parts) => parts.get(item, &self.name, fields, &mut carried),
            })?;
            turns.push(Turn::Fields { role, content });
        }
        Ok((Conversations::Turns(turns), carried))
    }

    fn text(&self, column: &Texts<'a>, item: usize) -> Result<Field<'a>, Fault> {
        Ok(text(column, item, &self.name)?.map_or(Field::Absent, Field::Text))
    }
}

/// Returns the first of some fields that is not null.
fn first_of<'a, T>(
    columns: &[T],
    mut read: impl FnMut(&T) -> Result<Field<'a>, Fault>,
) -> Result<Field<'a>, Fault> {
    for column in columns {
        match read(column)? {
            Field::Absent => {}
            given => return Ok(given),
        }
    }
    Ok(Field::Absent)
}

impl<'a> Content<'a> {
    fn of(column: &'a ArrayRef, rows: &Range<usize>) -> Option<Self> {
        match Texts::of_text(column, rows) {
            Some(texts) => Some(Self::Text(texts)),
            None => Parts::of(column, rows).map(Self::Parts),
        }
    }
}

/// Content in parts: lists of structs with a `type`, a `text` and perhaps an `image`.
struct Parts<'a> {
    lists: Lists<'a>,
    kinds: Option<Texts<'a>>,
    texts: Option<Texts<'a>>,
    images: Vec<Item<'a>>,
}

impl<'a> Parts<'a> {
    fn of(column: &'a ArrayRef, rows: &Range<usize>) -> Option<Self> {
        let lists = Lists::of(column)?;
        let structs = structs(lists.items)?;
        let items = lists.extent(rows);
        let texts = |name| Texts::of_text(child(structs, name)?, &items);
        let images = ["image", "image_url"].into_iter();
        Some(Self {
            kinds: texts("type"),
            texts: texts("text"),
            images: images
                .filter_map(|name| Item::of(child(structs, name)?, &items))
                .collect(),
            lists,
        })
    }

    /// Returns the parts of a turn as one text, in which marks stand for images.
    fn get(
        &self,
        row: usize,
        name: &str,
        fields: &Fields<'a>,
        carried: &mut Vec<Picture<'a>>,
    ) -> Result<Field<'a>, Fault> {
        let Some(items) = self.lists.get(row)? else {
            return Ok(Field::Absent);
        };
        let read = |column: &Option<Texts<'a>>, item| match column {
            Some(column) => text(column, item, name),
            None => Ok(None),
        };
        let mut whole = String::new();
        for (number, item) in items.enumerate() {
            let mut pictures = Vec::new();
            for images in &self.images {
                pictures.extend(images.get(item, fields.mapped.as_ref())?);
            }
            let is_image = match read(&self.kinds, item)?.as_deref() {
                Some("text" | "input_text") => false,
                Some("image" | "image_url" | "input_image") => true,
                Some(other) => {
                    let other = shown(other);
                    return Ok(Field::BadParts(format!(
                        "part {number} is of type '{other}'; known are text, image, image_url"
                    )));
                }
                None => !pictures.is_empty(),
            };
            if is_image {
                whole += IMAGE_MARK;
                carried.extend(pictures);
                continue;
            }
            match read(&self.texts, item)? {
                Some(text) => whole += &text,
                None => return Ok(Field::BadParts(format!("part {number} has no text"))),
            }
        }
        Ok(Field::Text(Cow::Owned(whole)))
    }
}

/// A column of images: one a row, or lists.
struct Pictures<'a> {
    lists: Option<Lists<'a>>,
    item: Item<'a>,
}

impl<'a> Pictures<'a> {
    fn of(name: &str, column: &'a ArrayRef, rows: &Range<usize>) -> Result<Self, String> {
        let lists = Lists::of(column);
        let item = match &lists {
            Some(lists) => Item::of(lists.items, &lists.extent(rows)),
            None => Item::of(column, rows),
        };
        let item = item.ok_or_else(|| {
            format!(
                "column '{name}' is {}; it must be a path, bytes, a struct of bytes and path, or a list of one of these",
                column.data_type()
            )
        })?;
        Ok(Self { lists, item })
    }
}

/// Images in any of the types that hold one.
enum Item<'a> {
    Nothing,
    Path(Texts<'a>),
    Bytes(Bytes<'a>),
    Struct {
        structs: &'a StructArray,
        bytes: Option<Bytes<'a>>,
        path: Option<Texts<'a>>,
    },
}

impl<'a> Item<'a> {
    fn of(column: &'a ArrayRef, rows: &Range<usize>) -> Option<Self> {
        if let Some(structs) = structs(column) {
            let bytes = child(structs, "bytes").and_then(Bytes::of_binary);
            let path = ["path", "url"]
                .into_iter()
                .find_map(|name| Texts::of_text(child(structs, name)?, rows));
            let has_any = bytes.is_some() || path.is_some();
            return has_any.then_some(Self::Struct {
                structs,
                bytes,
                path,
            });
        }
        if *column.data_type() == DataType::Null {
            return Some(Self::Nothing);
        }
        match Texts::of_text(column, rows) {
            Some(path) => Some(Self::Path(path)),
            None => Bytes::of_binary(column).map(Self::Bytes),
        }
    }

    /// Returns the image of an entry: its bytes if it has any, else its path.
    fn get(&self, row: usize, mapped: Option<&Range<usize>>) -> Result<Option<Picture<'a>>, Fault> {
        let (bytes, path) = match self {
            Self::Nothing => (None, None),
            Self::Path(path) => (None, Some(path)),
            Self::Bytes(bytes) => (Some(bytes), None),
            Self::Struct { structs, .. } if structs.is_null(row) => (None, None),
            Self::Struct { bytes, path, .. } => (bytes.as_ref(), path.as_ref()),
        };
        let path = match path {
            Some(path) => text(path, row, "images")?.filter(|path| !path.is_empty()),
            None => None,
        };
        let bytes = match bytes {
            Some(bytes) => bytes.get(row)?.filter(|bytes| !bytes.is_empty()),
            None => None,
        };
        match (bytes, path) {
            (Some(bytes), name) => Ok(Some(carried(bytes, name, mapped))),
            (None, Some(path)) => Picture::from_text(path).map(Some).map_err(|what| {
                let detail = format!("the image is {what}");
                Rejection::new(Reason::ImageMissing, None, detail).into()
            }),
            (None, None) => Ok(None),
        }
    }
}

/// An image that the file itself holds: by its range if the file is mapped.
fn carried<'a>(
    bytes: &'a [u8],
    name: Option<Cow<'a, str>>,
    mapped: Option<&Range<usize>>,
) -> Picture<'a> {
    let start = bytes.as_ptr().addr();
    match mapped {
        Some(mapped) if mapped.start <= start && start + bytes.len() <= mapped.end => {
            Picture::Range {
                name,
                offset: (start - mapped.start) as u64,
                length: bytes.len() as u64,
            }
        }
        _ => Picture::Bytes {
            name,
            bytes: Cow::Borrowed(bytes),
        },
    }
}

fn structs(column: &ArrayRef) -> Option<&StructArray> {
    column.as_any().downcast_ref()
}
