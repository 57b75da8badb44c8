//! Sets and maps of what is a hash already, and needs no other.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type HashedSet<K> = HashSet<K, BuildHasherDefault<First8>>;
pub(super) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<First8>>;

/// A set of hashes that does not change: asking for one that is in it touches a single line of memory, where
/// a set that may grow touches two.
pub(super) struct FixedSet {
    /// At most half full; a zero is free.
    slots: Vec<u64>,
}

impl FixedSet {
    pub(super) fn of(hashes: &[u64]) -> Self {
        let mut set = Self {
            slots: vec![0; (2 * hashes.len()).next_power_of_two()],
        };
        for &hash in hashes {
            let slot = set.slot(hash);
            set.slots[slot] = hash.max(1);
        }
        set
    }

    pub(super) fn contains(&self, hash: u64) -> bool {
        self.slots[self.slot(hash)] != 0
    }

    /// Finds where a hash stands, or would stand.
    fn slot(&self, hash: u64) -> usize {
        let (hash, last) = (hash.max(1), self.slots.len() - 1);
        let mut slot = hash as usize & last;
        while self.slots[slot] != 0 && self.slots[slot] != hash {
            slot = (slot + 1) & last;
        }
        slot
    }
}

/// Takes the first eight bytes of a key for its hash.
#[derive(Default)]
pub(super) struct First8(u64);

impl Hasher for First8 {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// The length of an array says nothing.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fixed_set_holds_what_was_put_in(
            // Many with equal last bits, which is where they are put.
            hashes in vec((0..8_u64, 0..4_u64).prop_map(|(high, low)| high << 32 | low), 1..60),
        ) {
            let set = FixedSet::of(&hashes);
            for high in 0..8 {
                for low in 0..4 {
                    let hash = high << 32 | low;
                    // Zero stands for one.
                    let expected = hashes.iter().any(|known| known.max(&1) == (&hash).max(&1));
                    prop_assert_eq!(set.contains(hash), expected);
                }
            }
        }
    }

    #[test]
    fn an_empty_set_holds_nothing() {
        assert!(!FixedSet::of(&[]).contains(7));
    }
}
