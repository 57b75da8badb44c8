//! Sets and maps of what is a hash already, and needs no other.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type HashedSet<K> = HashSet<K, BuildHasherDefault<First8>>;
pub(super) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<First8>>;

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
