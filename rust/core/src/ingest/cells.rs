//! Cells of Arrow columns of the types that pools use. Offsets and UTF-8 are checked at each access, because
//! the data comes from a file and nobody has looked at it before.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, OffsetSizeTrait};
use arrow_buffer::NullBuffer;
use arrow_schema::DataType;

/// A cell that its column's offsets place outside of the column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outside;

/// A column whose entries are ranges of something: of bytes, or of another column.
pub(super) struct Ranges<'a> {
    offsets: Offsets<'a>,
    nulls: Option<&'a NullBuffer>,
    end: usize,
}

enum Offsets<'a> {
    Small(&'a [i32]),
    Large(&'a [i64]),
}

impl Ranges<'_> {
    /// Returns the range of an entry, None if it is null.
    pub(super) fn get(&self, row: usize) -> Result<Option<Range<usize>>, Outside> {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(None);
        }
        let (start, end) = match self.offsets {
            Offsets::Small(offsets) => pair(offsets, row),
            Offsets::Large(offsets) => pair(offsets, row),
        }
        .ok_or(Outside)?;
        if start > end || end > self.end {
            return Err(Outside);
        }
        Ok(Some(start..end))
    }

    /// Returns the range of some entries together, as far as the first and the last offset tell.
    fn extent(&self, rows: &Range<usize>) -> Range<usize> {
        let ends = match self.offsets {
            Offsets::Small(offsets) => ends(offsets, rows),
            Offsets::Large(offsets) => ends(offsets, rows),
        };
        match ends {
            Some((start, end)) if start <= end && end <= self.end => start..end,
            _ => 0..0,
        }
    }
}

fn ends<T: OffsetSizeTrait>(offsets: &[T], rows: &Range<usize>) -> Option<(usize, usize)> {
    Some((
        offsets.get(rows.start)?.to_usize()?,
        offsets.get(rows.end)?.to_usize()?,
    ))
}

fn pair<T: OffsetSizeTrait>(offsets: &[T], row: usize) -> Option<(usize, usize)> {
    Some((
        offsets.get(row)?.to_usize()?,
        offsets.get(row + 1)?.to_usize()?,
    ))
}

/// A column of texts or bytes.
pub(super) struct Bytes<'a> {
    ranges: Ranges<'a>,
    data: &'a [u8],
}

/// A column of texts.
pub(super) struct Texts<'a> {
    bytes: Bytes<'a>,
    /// The bytes of all that will be asked for, if they are UTF-8 together, and where they begin: checking
    /// them at once costs a fraction of checking each.
    whole: Option<(usize, &'a str)>,
}

/// A text that is not UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotText;

impl<'a> Texts<'a> {
    /// Reads a column of texts, of which `rows` will be asked for; None for others.
    pub(super) fn of_text(column: &'a ArrayRef, rows: &Range<usize>) -> Option<Self> {
        let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8);
        is_text.then(|| Self::of(column, rows)).flatten()
    }

    /// The same, of bytes that should be texts too.
    pub(super) fn of(column: &'a ArrayRef, rows: &Range<usize>) -> Option<Self> {
        let bytes = Bytes::of(column)?;
        let extent = bytes.ranges.extent(rows);
        let whole = simdutf8::basic::from_utf8(&bytes.data[extent.clone()]).ok();
        Some(Self {
            whole: whole.map(|text| (extent.start, text)),
            bytes,
        })
    }

    /// Returns a text; None if it is null.
    pub(super) fn get(&self, row: usize) -> Result<Option<Result<&'a str, NotText>>, Outside> {
        let Some(range) = self.bytes.ranges.get(row)? else {
            return Ok(None);
        };
        let within = self.whole.and_then(|(first, text)| {
            text.get(range.start.checked_sub(first)?..range.end.checked_sub(first)?)
        });
        Ok(Some(match within {
            Some(text) => Ok(text),
            None => simdutf8::basic::from_utf8(&self.bytes.data[range]).map_err(|_| NotText),
        }))
    }
}

impl<'a> Bytes<'a> {
    pub(super) fn of_binary(column: &'a ArrayRef) -> Option<Self> {
        let is_binary = matches!(column.data_type(), DataType::Binary | DataType::LargeBinary);
        is_binary.then(|| Self::of(column)).flatten()
    }

    /// Reads a column of texts or bytes; None for others.
    fn of(column: &'a ArrayRef) -> Option<Self> {
        // Values are taken as bytes: that a text is UTF-8 is not known yet.
        let (offsets, data) = match column.data_type() {
            DataType::Utf8 => {
                let column = column.as_string::<i32>();
                (Offsets::Small(column.value_offsets()), column.value_data())
            }
            DataType::LargeUtf8 => {
                let column = column.as_string::<i64>();
                (Offsets::Large(column.value_offsets()), column.value_data())
            }
            DataType::Binary => {
                let column = column.as_binary::<i32>();
                (Offsets::Small(column.value_offsets()), column.value_data())
            }
            DataType::LargeBinary => {
                let column = column.as_binary::<i64>();
                (Offsets::Large(column.value_offsets()), column.value_data())
            }
            _ => return None,
        };
        let ranges = Ranges {
            offsets,
            nulls: column.nulls(),
            end: data.len(),
        };
        Some(Self { ranges, data })
    }

    pub(super) fn get(&self, row: usize) -> Result<Option<&'a [u8]>, Outside> {
        Ok(self.ranges.get(row)?.map(|range| &self.data[range]))
    }
}

/// A column of lists.
pub(super) struct Lists<'a> {
    ranges: Ranges<'a>,
    pub(super) items: &'a ArrayRef,
}

impl<'a> Lists<'a> {
    pub(super) fn of(column: &'a ArrayRef) -> Option<Self> {
        let (offsets, items) = match column.data_type() {
            DataType::List(_) => {
                let column = column.as_list::<i32>();
                (Offsets::Small(column.value_offsets()), column.values())
            }
            DataType::LargeList(_) => {
                let column = column.as_list::<i64>();
                (Offsets::Large(column.value_offsets()), column.values())
            }
            _ => return None,
        };
        let ranges = Ranges {
            offsets,
            nulls: column.nulls(),
            end: items.len(),
        };
        Some(Self { ranges, items })
    }

    /// Returns which items are those of some rows together.
    pub(super) fn extent(&self, rows: &Range<usize>) -> Range<usize> {
        self.ranges.extent(rows)
    }

    /// Returns which items are those of a row.
    pub(super) fn get(&self, row: usize) -> Result<Option<Range<usize>>, Outside> {
        self.ranges.get(row)
    }
}

/// Returns a whole number as text; None if it is null or of another type.
pub(super) fn whole_number(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    macro_rules! number {
        ($kind:ty) => {
            column.as_primitive::<$kind>().value(row).to_string()
        };
    }
    Some(match column.data_type() {
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        _ => return None,
    })
}
