//! Where the keys in memory are.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

/// Slots by the hashes of their keys. It holds no key: it is small, stays in the processor's caches,
/// and is asked without a look at any slot; keys of one hash are told apart by whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    slots: HashTable<Entry>,
}

#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Entry {
    hash: u64,
    slot: u32,
}

pub(super) fn hash(key: &str) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl Index {
    /// A slot of this hash that `is_it`.
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.slots.find(hash, |entry| entry.hash == hash && is_it(entry.slot));
        found.map(|entry| entry.slot)
    }

    /// Adds a slot that is not in it.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        self.slots.insert_unique(hash, Entry { hash, slot }, |entry| entry.hash);
    }

    /// Takes a slot out.
    pub fn remove(&mut self, hash: u64, slot: u32) {
        if let Ok(found) = self.slots.find_entry(hash, |entry| entry.slot == slot) {
            found.remove();
        }
    }

    /// Puts one slot in the place of another of the same key.
    pub fn replace(&mut self, hash: u64, slot: u32, by: u32) {
        if let Some(found) = self.slots.find_mut(hash, |entry| entry.slot == slot) {
            found.slot = by;
        }
    }
}
