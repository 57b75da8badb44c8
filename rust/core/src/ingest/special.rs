//! Finds what ends a plain stretch of a JSON string.

/// Returns the place of the first quote, backslash or control character.
pub(super) fn find(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<16>() {
        let found = mask(chunk);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize);
        }
        at += chunk.len();
    }
    let rest = bytes[at..].iter().position(|&byte| is_special(byte));
    rest.map(|length| at + length)
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns a bit for each special byte.
#[cfg(target_arch = "x86_64")]
fn mask(chunk: &[u8; 16]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8,
    };
    // SAFETY: every x86-64 processor has SSE2; the chunk has 16 bytes, and the load asks for no alignment.
    unsafe {
        let bytes = _mm_loadu_si128(chunk.as_ptr().cast());
        let equal = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        let special = _mm_or_si128(_mm_or_si128(equal(b'"'), equal(b'\\')), control);
        _mm_movemask_epi8(special) as u32
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn mask(chunk: &[u8; 16]) -> u32 {
    let bit = |(place, &byte): (usize, &u8)| u32::from(is_special(byte)) << place;
    chunk.iter().enumerate().map(bit).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_special_byte_is_found(plain in "[ -!#-\\[\\]-~é\u{80}😀]{0,70}", end: u8, after: Vec<u8>) {
            let mut bytes = plain.clone().into_bytes();
            prop_assert_eq!(find(&bytes), None);
            bytes.push(end);
            bytes.extend(after);
            prop_assert_eq!(find(&bytes), bytes.iter().position(|&byte| is_special(byte)));
        }
    }
}
