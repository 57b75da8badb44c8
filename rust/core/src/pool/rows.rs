//! Samples of a pool file, one at a time, in any order.
//!
//! Every place, length and text is checked where it is followed, and nothing else of the batch is read: a row
//! costs the same in a pool of any size.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::vec::IntoIter;

use arrow_schema::Field;

use super::ArrowFile;
use super::schema::pool_columns;
use crate::ingest::{POOL_VERSION, VERSION_KEY};
use crate::{Error, Result};

/// A pool file that ingest wrote.
pub struct PoolFile {
    file: ArrowFile,
    layouts: Vec<OnceLock<Layout>>,
}

/// One sample, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow<'a> {
    /// The record's id.
    pub id: &'a str,
    /// The data set that it came from.
    pub source: &'a str,
    /// Role and content of each turn.
    pub messages: Vec<(&'a str, &'a str)>,
    /// In the order of the marks.
    pub images: Vec<PoolImage<'a>>,
    /// Index of the record's input file.
    pub file: u32,
}

/// Where an image is: its bytes, else a range of the record's input file, else a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolImage<'a> {
    /// The file, or the name.
    pub path: Option<&'a str>,
    /// The encoded image.
    pub bytes: Option<&'a [u8]>,
    /// Offset and length.
    pub range: Option<(u64, u64)>,
}

impl PoolFile {
    /// Maps a pool file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be opened; [`Error::Pool`] if it is not a whole pool of this version.
    pub fn open(path: &Path) -> Result<Self> {
        let none: [(&str, _); 0] = [];
        let file = ArrowFile::open(path, &none)?;
        check_schema(&file, path)?;
        let names: Vec<_> = pool_columns()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        Ok(Self {
            file: file.select(&names)?,
            layouts: (0..file.batches()).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Returns the file as columns.
    pub fn columns(&self) -> &ArrowFile {
        &self.file
    }

    /// Returns one sample.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if there is no such row; [`Error::Pool`] if the file is damaged where it stands.
    pub fn row(&self, row: u64) -> Result<PoolRow<'_>> {
        let (batch, place) = self.find(row)?;
        batch.row(place).ok_or_else(|| self.damaged_at(row))
    }

    /// Returns the id of one sample; the errors are those of [`PoolFile::row`].
    pub fn id(&self, row: u64) -> Result<&str> {
        let (batch, place) = self.find(row)?;
        batch
            .text(&batch.layout.id, place)
            .ok_or_else(|| self.damaged_at(row))
    }

    fn find(&self, row: u64) -> Result<(Batch<'_>, usize)> {
        let (index, place) = self.file.locate(row).ok_or_else(|| {
            let rows = self.file.rows();
            Error::Argument(format!("row {row} is not in a pool of {rows} samples"))
        })?;
        let layout = match self.layouts[index].get() {
            Some(layout) => layout,
            None => {
                let damaged = |why: String| self.file.damaged(index, &why);
                let (buffers, nulls) = self.file.parts(index).map_err(damaged)?;
                let layout = Layout::of(buffers, nulls)
                    .ok_or_else(|| damaged("it does not have the columns of the file".into()))?;
                self.layouts[index].get_or_init(|| layout)
            }
        };
        let map = &self.file.map;
        Ok((Batch { map, layout }, place))
    }

    fn damaged_at(&self, row: u64) -> Error {
        let path = self.file.path.display();
        Error::Pool(format!(
            "{path}: row {row} is damaged; delete the file and ingest again"
        ))
    }
}

fn check_schema(file: &ArrowFile, path: &Path) -> Result<()> {
    let path = path.display();
    let version = file.metadata(VERSION_KEY).unwrap_or("nothing");
    if version != POOL_VERSION {
        return Err(Error::Pool(format!(
            "{path} is not a pool of version {POOL_VERSION} (it says {version}); run 'mllm-selector ingest' to make one"
        )));
    }
    let found = file.schema.fields();
    let expected = pool_columns();
    let is_there = |wanted: &&Field| {
        found.iter().any(|field| {
            field.name() == wanted.name()
                && field.data_type() == wanted.data_type()
                && field.is_nullable() == wanted.is_nullable()
        })
    };
    let missing: Vec<_> = expected
        .iter()
        .filter(|wanted| !is_there(wanted))
        .map(|field| field.name().as_str())
        .collect();
    let what = if !missing.is_empty() {
        format!("missing or of another type: {}", missing.join(", "))
    } else if found.len() != expected.len() {
        "it has extra ones".into()
    } else if found
        .iter()
        .zip(&expected)
        .any(|(one, other)| one.name() != other.name())
    {
        "they are in another order".into()
    } else {
        return Ok(());
    };
    Err(Error::Pool(format!(
        "{path} does not have the columns of a pool ({what}); delete the file and ingest again"
    )))
}

/// Where the columns of a batch lie in the file.
struct Layout {
    id: Variable,
    source: Variable,
    messages: Offsets,
    role: Variable,
    content: Variable,
    images: Offsets,
    path: Variable,
    bytes: Variable,
    image_offset: Fixed,
    image_length: Fixed,
    file: Fixed,
}

/// Bits that say which entries are there, if some are not.
type Validity = Option<Range<usize>>;

/// The ends of entries, 4 or 8 bytes each.
struct Offsets {
    validity: Validity,
    ends: Range<usize>,
    width: usize,
}

struct Variable {
    offsets: Offsets,
    data: Range<usize>,
}

struct Fixed {
    validity: Validity,
    values: Range<usize>,
}

/// Takes the buffers of a batch one column after another.
struct Parts {
    buffers: IntoIter<Range<usize>>,
    nulls: IntoIter<bool>,
}

impl Parts {
    fn validity(&mut self) -> Option<Validity> {
        let buffer = self.buffers.next()?;
        Some(self.nulls.next()?.then_some(buffer))
    }

    fn offsets(&mut self, width: usize) -> Option<Offsets> {
        Some(Offsets {
            validity: self.validity()?,
            ends: self.buffers.next()?,
            width,
        })
    }

    fn variable(&mut self, width: usize) -> Option<Variable> {
        Some(Variable {
            offsets: self.offsets(width)?,
            data: self.buffers.next()?,
        })
    }

    fn fixed(&mut self) -> Option<Fixed> {
        Some(Fixed {
            validity: self.validity()?,
            values: self.buffers.next()?,
        })
    }

    /// Passes the struct inside a list, which has no buffer but its validity; its entries are never null.
    fn item(&mut self) -> Option<()> {
        self.validity()?.is_none().then_some(())
    }
}

impl Layout {
    /// In the order of the schema.
    fn of(buffers: Vec<Range<usize>>, nulls: Vec<bool>) -> Option<Self> {
        let mut parts = Parts {
            buffers: buffers.into_iter(),
            nulls: nulls.into_iter(),
        };
        let (id, source) = (parts.variable(8)?, parts.variable(8)?);
        let messages = parts.offsets(8)?;
        parts.item()?;
        let (role, content) = (parts.variable(4)?, parts.variable(8)?);
        let images = parts.offsets(8)?;
        parts.item()?;
        Some(Self {
            id,
            source,
            messages,
            role,
            content,
            images,
            path: parts.variable(8)?,
            bytes: parts.variable(8)?,
            image_offset: parts.fixed()?,
            image_length: parts.fixed()?,
            file: parts.fixed()?,
        })
    }
}

/// A batch's part of the file; None is a place that is not there, or a null that may not be.
struct Batch<'a> {
    map: &'a [u8],
    layout: &'a Layout,
}

impl<'a> Batch<'a> {
    fn row(&self, row: usize) -> Option<PoolRow<'a>> {
        let layout = self.layout;
        let turn = |index| {
            Some((
                self.text(&layout.role, index)?,
                self.text(&layout.content, index)?,
            ))
        };
        Some(PoolRow {
            id: self.text(&layout.id, row)?,
            source: self.text(&layout.source, row)?,
            messages: self
                .entries(&layout.messages, row)?
                .map(turn)
                .collect::<Option<_>>()?,
            images: self
                .entries(&layout.images, row)?
                .map(|index| self.image(index))
                .collect::<Option<_>>()?,
            file: u32::from_le_bytes(self.fixed(&layout.file, row)??),
        })
    }

    fn image(&self, index: usize) -> Option<PoolImage<'a>> {
        let layout = self.layout;
        let path = self.slice(&layout.path, index)?;
        let offset = self.fixed(&layout.image_offset, index)?;
        let length = self.fixed(&layout.image_length, index)?;
        Some(PoolImage {
            path: match path {
                Some(path) => Some(std::str::from_utf8(path).ok()?),
                None => None,
            },
            bytes: self.slice(&layout.bytes, index)?,
            range: offset
                .zip(length)
                .map(|(offset, length)| (u64::from_le_bytes(offset), u64::from_le_bytes(length))),
        })
    }

    fn text(&self, column: &Variable, index: usize) -> Option<&'a str> {
        std::str::from_utf8(self.slice(column, index)??).ok()
    }

    /// The inner None is a null.
    fn slice(&self, column: &Variable, index: usize) -> Option<Option<&'a [u8]>> {
        if !self.is_valid(&column.offsets.validity, index)? {
            return Some(None);
        }
        let data = self.map.get(column.data.clone())?;
        data.get(self.range(&column.offsets, index)?).map(Some)
    }

    fn fixed<const N: usize>(&self, column: &Fixed, index: usize) -> Option<Option<[u8; N]>> {
        if !self.is_valid(&column.validity, index)? {
            return Some(None);
        }
        self.number(&column.values, index).map(Some)
    }

    /// Indices of the entries of a list; they end where the columns inside the list do.
    fn entries(&self, list: &Offsets, row: usize) -> Option<Range<usize>> {
        if !self.is_valid(&list.validity, row)? {
            return None;
        }
        self.range(list, row)
    }

    fn range(&self, offsets: &Offsets, index: usize) -> Option<Range<usize>> {
        let end = |index| match offsets.width {
            4 => usize::try_from(i32::from_le_bytes(self.number(&offsets.ends, index)?)).ok(),
            _ => usize::try_from(i64::from_le_bytes(self.number(&offsets.ends, index)?)).ok(),
        };
        let range = end(index)?..end(index.checked_add(1)?)?;
        (range.start <= range.end).then_some(range)
    }

    fn is_valid(&self, validity: &Validity, index: usize) -> Option<bool> {
        let Some(bits) = validity else {
            return Some(true);
        };
        let byte = self.map.get(bits.clone())?.get(index / 8)?;
        Some(byte >> (index % 8) & 1 == 1)
    }

    fn number<const N: usize>(&self, values: &Range<usize>, index: usize) -> Option<[u8; N]> {
        let at = index.checked_mul(N)?;
        let bytes = self.map.get(values.clone())?.get(at..at.checked_add(N)?)?;
        bytes.try_into().ok()
    }
}
