//! Vectors packed as 8-bit codes, see `int8.rs`.

use super::int8::{Group, LINES, Line, Panel, PanelTerms, SHIFT, Terms, Tile, WORD, rounding};
use super::kernel::GROUP;
use super::{LANES, Simd};

/// Columns of a vector that are bounded first: the head. With the columns after it, the tail, at their worst,
/// `x.c <= head(x).head(c) + |tail(x)| |tail(c)|` rules out most pairs where only very near ones matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    words: usize,
}

impl Head {
    pub(super) const NONE: Self = Self { words: 0 };

    /// A head for scores of at least `cosine`. If the head's share of the length is `f`, a pair passes if the
    /// cosine of its heads is at least about `1 - (1 - cosine) / f`; this makes that 0.6.
    pub(super) fn for_cosine(cosine: f64, dim: usize) -> Self {
        let columns = ((1.0 - cosine) / 0.4 * dim as f64).ceil().max(32.0) as usize;
        match columns * 2 <= dim {
            true => Self {
                words: columns.div_ceil(WORD),
            },
            false => Self::NONE,
        }
    }

    fn columns(self) -> usize {
        self.words * WORD
    }

    fn tail(self, simd: Simd, vector: &[f32]) -> f32 {
        if self.words == 0 {
            return 0.0;
        }
        let tail = &vector[self.columns()..];
        simd.dot(tail, tail).sqrt() * (1.0 + rounding(vector.len()))
    }
}

/// Vectors packed for the kernel: panels of [`LANES`], interleaved by [`WORD`] columns.
#[derive(Debug)]
pub(super) struct CodePanels {
    lines: Vec<Line>,
    terms: Vec<PanelTerms>,
    head: Head,
    head_terms: Vec<PanelTerms>,
    words: usize,
    len: usize,
    codes: Vec<i8>,
}

impl Group<'_> {
    /// Only the rows' heads.
    pub(super) fn head(self, head: Head) -> Self {
        Self {
            words: &self.words[..head.words * GROUP],
            ..self
        }
    }
}

impl CodePanels {
    pub(super) fn new(dim: usize, head: Head) -> Self {
        Self {
            lines: Vec::new(),
            terms: Vec::new(),
            head,
            head_terms: Vec::new(),
            words: dim.div_ceil(WORD),
            len: 0,
            codes: vec![0; dim],
        }
    }

    /// Adds a vector whose score with a row is `scale * dot - offset`.
    pub(super) fn push(
        &mut self,
        simd: Simd,
        vector: &[f32],
        squared_norm: f32,
        score: (f32, f32),
    ) {
        let (panel, lane) = (self.len / LANES, self.len % LANES);
        let size = self.words * LINES;
        if lane == 0 {
            self.lines.resize((panel + 1) * size, Line([0; 64]));
            self.terms.push(PanelTerms::NONE);
            self.head_terms.push(PanelTerms::NONE);
        }
        let terms = simd.quantise(vector, squared_norm, &mut self.codes);
        let lines = self.lines[panel * size..].chunks_exact_mut(LINES);
        for (lines, word) in lines.zip(self.codes.chunks(WORD)) {
            let first = lane * WORD;
            lines[first / 64].0[first % 64..][..word.len()].copy_from_slice(word);
        }
        self.terms[panel].set(lane, terms, score, &self.codes);
        let terms = Terms {
            tail: self.head.tail(simd, vector),
            ..terms
        };
        let codes = &self.codes[..self.head.columns()];
        self.head_terms[panel].set(lane, terms, score, codes);
        self.len += 1;
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn panel(&self, number: usize) -> Panel<'_> {
        let size = self.words * LINES;
        Panel {
            lines: &self.lines[number * size..][..size],
            terms: &self.terms[number],
        }
    }

    /// Only the heads of a panel's vectors; none if heads are not looked at.
    pub(super) fn panel_head(&self, number: usize) -> Option<Panel<'_>> {
        let lines = self.head.words * LINES;
        (lines > 0).then(|| Panel {
            lines: &self.lines[number * self.words * LINES..][..lines],
            terms: &self.head_terms[number],
        })
    }
}

/// Rows packed for the kernel: groups of [`GROUP`], interleaved by [`WORD`] columns.
#[derive(Debug, Default)]
pub(crate) struct CodeRows {
    words: Vec<u32>,
    terms: Vec<Terms>,
    codes: Vec<i8>,
    dim: usize,
}

impl CodeRows {
    pub(super) fn fill(
        &mut self,
        simd: Simd,
        head: Head,
        rows: &[f32],
        dim: usize,
        squared_norms: &[f32],
    ) {
        let count = rows.len() / dim;
        let words = dim.div_ceil(WORD);
        self.dim = dim;
        self.codes.resize(words * WORD, 0);
        self.codes[dim..].fill(0);
        self.words.resize(count.div_ceil(GROUP) * GROUP * words, 0);
        self.terms.clear();
        self.terms
            .resize(count.next_multiple_of(GROUP), Terms::default());
        for (number, (row, &squared)) in rows.chunks_exact(dim).zip(squared_norms).enumerate() {
            self.terms[number] = Terms {
                tail: head.tail(simd, row),
                ..simd.quantise(row, squared, &mut self.codes[..dim])
            };
            let group = &mut self.words[number / GROUP * GROUP * words..][..GROUP * words];
            for (packed, word) in group
                .chunks_exact_mut(GROUP)
                .zip(self.codes.chunks_exact(WORD))
            {
                let shifted = |place: usize| (word[place] as u8).wrapping_add(SHIFT as u8);
                packed[number % GROUP] =
                    u32::from_le_bytes([shifted(0), shifted(1), shifted(2), shifted(3)]);
            }
        }
    }

    /// The groups in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.words
            .chunks_exact(self.dim.div_ceil(WORD) * GROUP)
            .zip(self.terms.chunks_exact(GROUP))
            .map(|(words, terms)| Group { words, terms })
    }
}

/// Vectors as their codes say, without the rests: an approximation with the same bits on every machine.
#[derive(Debug)]
pub(crate) struct Coded {
    panels: CodePanels,
    simd: Simd,
    dim: usize,
}

impl Coded {
    pub(crate) fn new(dim: usize, simd: Simd) -> Self {
        Self {
            panels: CodePanels::new(dim, Head::NONE),
            simd,
            dim,
        }
    }

    /// Adds a vector and returns the squared norm of what its codes stand for.
    pub(crate) fn push(&mut self, vector: &[f32]) -> f32 {
        self.panels.push(self.simd, vector, 0.0, (1.0, 0.0));
        let (panel, lane) = ((self.panels.len - 1) / LANES, (self.panels.len - 1) % LANES);
        let panel = &mut self.panels.terms[panel];
        (panel.length[lane], panel.error[lane]) = (0.0, 0.0);
        let square: i32 = self
            .panels
            .codes
            .iter()
            .map(|&code| i32::from(code) * i32::from(code))
            .sum();
        square as f32 * (panel.scale[lane] * panel.scale[lane])
    }

    /// Codes at most [`GROUP`] row-major vectors that others are multiplied with.
    pub(crate) fn group(&self, vectors: &[f32]) -> CodeRows {
        let mut rows = CodeRows::default();
        rows.fill(self.simd, Head::NONE, vectors, self.dim, &[0.0; GROUP]);
        rows.terms
            .iter_mut()
            .for_each(|terms| (terms.length, terms.error) = (0.0, 0.0));
        rows
    }

    /// Computes the dot products of a group with the vectors of one panel.
    pub(crate) fn multiply(&self, group: &CodeRows, panel: usize, dots: &mut Tile<f32>) {
        let group = Group {
            words: &group.words,
            terms: &group.terms,
        };
        self.simd.bound(group, self.panels.panel(panel), dots);
    }
}
