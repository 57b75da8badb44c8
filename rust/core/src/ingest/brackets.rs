//! Passes JSON text in chunks of 64 bytes, a bit for each byte (after Langdale and Lemire, "Parsing Gigabytes of
//! JSON per Second", 2019).

/// Where in a value a scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nesting {
    /// Brackets that are open.
    pub(super) depth: u64,
    pub(super) in_string: bool,
    /// The last byte was a backslash that escapes the next.
    pub(super) escaped: bool,
}

/// Bytes passed at once.
pub(super) const CHUNK: usize = 64;

impl Nesting {
    /// Passes the chunks from `at` in which the value cannot end; returns where the next one begins.
    pub(super) fn pass_chunks(&mut self, bytes: &[u8], mut at: usize) -> usize {
        while let Some(chunk) = bytes[at..].first_chunk() {
            let masks = Masks::of(chunk);
            let (escaped, next_is_escaped) = escaped(masks.backslash, self.escaped);
            let carried = if self.in_string { u64::MAX } else { 0 };
            let strings = up_to_each(masks.quote & !escaped) ^ carried;
            let opened = u64::from((masks.open & !strings).count_ones());
            let closed = u64::from((masks.close & !strings).count_ones());
            if closed >= self.depth {
                return at;
            }
            *self = Self {
                depth: self.depth + opened - closed,
                in_string: strings >> (CHUNK - 1) == 1,
                escaped: next_is_escaped,
            };
            at += CHUNK;
        }
        at
    }
}

/// Returns the bytes that a backslash escapes, and whether the byte after the chunk is one.
fn escaped(backslash: u64, first_is_escaped: bool) -> (u64, bool) {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let first = u64::from(first_is_escaped);
    if backslash == 0 {
        return (first, false);
    }
    // Of a run of backslashes every second one is escaped, and so is what follows an odd run. Adding a run's
    // first bit carries it to the run's end; which parity it started on tells whether the run is odd.
    let backslash = backslash & !first;
    let follows = (backslash << 1) | first;
    let odd_starts = backslash & !EVEN & !follows;
    let (even_runs, next_is_escaped) = odd_starts.overflowing_add(backslash);
    ((EVEN ^ (even_runs << 1)) & follows, next_is_escaped)
}

/// Sets the bits from each odd set bit, it included, up to the next one.
fn up_to_each(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// A bit for each byte of a kind.
#[derive(Default)]
struct Masks {
    quote: u64,
    backslash: u64,
    open: u64,
    close: u64,
}

impl Masks {
    #[cfg(target_arch = "x86_64")]
    fn of(chunk: &[u8; CHUNK]) -> Self {
        use std::arch::x86_64::{
            __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128,
            _mm_set1_epi8,
        };
        let mut masks = Self::default();
        for (index, part) in chunk.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: every x86-64 processor has SSE2; the part has 16 bytes, and the load asks for no alignment.
            unsafe {
                let bytes = _mm_loadu_si128(part.as_ptr().cast());
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                // Square brackets differ from curly ones in this bit alone.
                let folded = _mm_or_si128(bytes, all(0x20));
                let mask =
                    |equal: __m128i| u64::from(_mm_movemask_epi8(equal) as u16) << (16 * index);
                masks.quote |= mask(_mm_cmpeq_epi8(bytes, all(b'"')));
                masks.backslash |= mask(_mm_cmpeq_epi8(bytes, all(b'\\')));
                masks.open |= mask(_mm_cmpeq_epi8(folded, all(b'{')));
                masks.close |= mask(_mm_cmpeq_epi8(folded, all(b'}')));
            }
        }
        masks
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of(chunk: &[u8; CHUNK]) -> Self {
        let mask = |is: fn(u8) -> bool| {
            let bit = |(place, &byte): (usize, &u8)| u64::from(is(byte)) << place;
            chunk.iter().enumerate().map(bit).sum()
        };
        Self {
            quote: mask(|byte| byte == b'"'),
            backslash: mask(|byte| byte == b'\\'),
            open: mask(|byte| byte == b'{' || byte == b'['),
            close: mask(|byte| byte == b'}' || byte == b']'),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// The same, byte by byte.
    fn pass_bytes(mut nesting: Nesting, bytes: &[u8]) -> Nesting {
        for &byte in bytes {
            let is_escaped = mem::replace(&mut nesting.escaped, false);
            nesting.escaped = byte == b'\\' && !is_escaped;
            if byte == b'"' && !is_escaped {
                nesting.in_string = !nesting.in_string;
            } else if !nesting.in_string {
                nesting.depth += u64::from(matches!(byte, b'{' | b'['));
                nesting.depth -= u64::from(matches!(byte, b'}' | b']'));
            }
        }
        nesting
    }

    proptest! {
        #[test]
        fn chunks_are_passed_as_bytes_are(
            bytes in vec(select(b"\"\"\\\\\\{}[]a [{;".to_vec()), 0..400),
            depth in 1..60_u64, in_string: bool, escaped: bool,
        ) {
            let start = Nesting { depth, in_string, escaped };
            let mut nesting = start;
            let end = nesting.pass_chunks(&bytes, 0);
            prop_assert_eq!(end % CHUNK, 0);
            prop_assert_eq!(nesting, pass_bytes(start, &bytes[..end]));
            // It stops only at the end or where the value could.
            let rest = &bytes[end..];
            let closers = rest.iter().take(CHUNK).filter(|byte| matches!(byte, b'}' | b']')).count();
            prop_assert!(rest.len() < CHUNK || closers as u64 >= nesting.depth);
        }
    }
}
