//! A read-only matrix in one or more pieces, so that files larger than memory are one matrix.

use std::ops::Range;

use half::f16;

use super::Simd;
use crate::{Error, Result};

/// Rows side by side in memory, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Chunk<'a> {
    /// IEEE half precision.
    F16(&'a [f16]),
    /// IEEE single precision.
    F32(&'a [f32]),
}

impl<'a> Chunk<'a> {
    fn len(self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn part(self, range: Range<usize>) -> Chunk<'a> {
        match self {
            Self::F16(values) => Chunk::F16(&values[range]),
            Self::F32(values) => Chunk::F32(&values[range]),
        }
    }

    /// Widens to float32, which is exact: float16 and float32 of the same values give the same result.
    fn widen_into(self, simd: Simd, out: &mut [f32]) {
        match self {
            Self::F16(values) => simd.widen(values, out),
            Self::F32(values) => out.copy_from_slice(values),
        }
    }
}

/// A read-only view of a matrix of embeddings.
///
/// Row `i` is the `i`-th row over all chunks, or, for a view made by [`Rows::subset`], the row that its
/// index names. Nothing is copied but the index.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    chunks: Vec<Chunk<'a>>,
    /// First row of each chunk, and the number of all rows at the end.
    starts: Vec<usize>,
    dim: usize,
    index: Option<Vec<usize>>,
    simd: Simd,
}

impl<'a> Rows<'a> {
    /// Joins chunks of `dim` columns each.
    pub fn new(chunks: impl IntoIterator<Item = Chunk<'a>>, dim: usize) -> Result<Self> {
        if dim == 0 {
            return Err(Error::Argument(
                "embeddings: the rows have no columns; give at least one".into(),
            ));
        }
        let chunks: Vec<_> = chunks.into_iter().filter(|chunk| chunk.len() > 0).collect();
        let mut starts = vec![0];
        for (number, chunk) in chunks.iter().enumerate() {
            if chunk.len() % dim != 0 {
                return Err(Error::Argument(format!(
                    "embeddings: part {number} holds {} values, which are no whole rows of {dim}",
                    chunk.len()
                )));
            }
            starts.push(starts[number] + chunk.len() / dim);
        }
        Ok(Self {
            chunks,
            starts,
            dim,
            index: None,
            simd: Simd::best(),
        })
    }

    /// Computes with the given instruction set instead of the best.
    ///
    /// # Panics
    /// If this machine lacks it.
    pub fn with_simd(self, simd: Simd) -> Self {
        assert!(
            simd.is_supported(),
            "{simd:?} is not supported by this machine"
        );
        Self { simd, ..self }
    }

    /// Returns the view of some rows, in the order of `index`.
    pub fn subset(&self, index: &[usize]) -> Result<Self> {
        let len = self.len();
        if let Some(row) = index.iter().find(|&&row| row >= len) {
            return Err(Error::Argument(format!(
                "row {row} is not one of the {len} rows"
            )));
        }
        let index = match &self.index {
            None => index.to_vec(),
            Some(outer) => index.iter().map(|&row| outer[row]).collect(),
        };
        Ok(Self {
            index: Some(index),
            ..self.clone()
        })
    }

    /// Returns a view of no rows yet, for [`Self::push`].
    pub(crate) fn without_rows(&self) -> Self {
        Self {
            index: Some(Vec::new()),
            ..self.clone()
        }
    }

    /// Adds a row of `whole`, the view that this one was made from by [`Self::without_rows`].
    pub(crate) fn push(&mut self, whole: &Self, row: usize) {
        if let Some(index) = &mut self.index {
            index.push(whole.place(row));
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.index {
            Some(index) => index.len(),
            None => self.starts[self.chunks.len()],
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The instruction set that products of these rows run on.
    pub(crate) fn simd(&self) -> Simd {
        self.simd
    }

    /// Place of a row in the whole matrix, for error messages.
    pub(crate) fn place(&self, row: usize) -> usize {
        self.index.as_ref().map_or(row, |index| index[row])
    }

    /// Writes some columns of a row to `out` as float32.
    pub(crate) fn copy_columns(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let place = self.place(row);
        let number = self.starts.partition_point(|&start| start <= place) - 1;
        let first = (place - self.starts[number]) * self.dim;
        self.chunks[number]
            .part(first + columns.start..first + columns.end)
            .widen_into(self.simd, out);
    }

    /// Writes a row to `out` as float32.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) {
        self.copy_columns(row, 0..self.dim, out);
    }

    /// Returns rows side by side as float32: the data itself where it is that already, else `buffer`.
    pub(crate) fn block<'b>(&'b self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        if self.index.is_none() && !range.is_empty() {
            let number = self.starts.partition_point(|&start| start <= range.start) - 1;
            if range.end <= self.starts[number + 1] {
                let first = (range.start - self.starts[number]) * self.dim;
                let part = self.chunks[number].part(first..first + range.len() * self.dim);
                if let Chunk::F32(values) = part {
                    return values;
                }
                buffer.resize(range.len() * self.dim, 0.0);
                part.widen_into(self.simd, buffer);
                return buffer;
            }
        }
        buffer.resize(range.len() * self.dim, 0.0);
        for (row, out) in range.zip(buffer.chunks_exact_mut(self.dim)) {
            self.copy_row(row, out);
        }
        buffer
    }
}
