//! A bounded map from record keys to what a stage keeps for each.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::source::Lane;

/// A number for a key of a lane, the same in every process and version: FNV-1a over both, mixed
/// as in MurmurHash3.
pub fn number_of(lane: &Lane, key: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    // No text holds 0xff: where the topic ends is part of what is hashed.
    let lane = lane.topic.bytes().chain([0xff]).chain(lane.partition.to_le_bytes());
    let mut hash = lane
        .chain(key.bytes())
        .fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// State per key, for at most `capacity` keys: the least recently seen one makes room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyMap<V> {
    capacity: usize,
    index: FxHashMap<Arc<str>, u32>,
    slots: Vec<Slot<V>>,
    /// Ends of the list from the most to the least recently seen key.
    newest: u32,
    oldest: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot<V> {
    key: Arc<str>,
    value: V,
    newer: u32,
    older: u32,
}

/// Past the ends of the list of slots.
const NONE: u32 = u32::MAX;

impl<V> KeyMap<V> {
    /// A map without keys; a capacity of 0 counts as 1.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: bounded(capacity),
            index: FxHashMap::default(),
            slots: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// Changes the capacity. Keys beyond a smaller one stay; a new key replaces one of them.
    pub fn limit(&mut self, capacity: usize) {
        self.capacity = bounded(capacity);
    }

    /// Number of keys held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The slot of `key`, which becomes the most recently seen. A new key gets `make()`, called
    /// with the value that had to make room for it, if any.
    pub fn touch(&mut self, key: &str, make: impl FnOnce(Option<&V>) -> V) -> usize {
        if let Some(&slot) = self.index.get(key) {
            if slot != self.newest {
                self.unlink(slot);
                self.link_newest(slot);
            }
            return slot as usize;
        }
        let key: Arc<str> = key.into();
        let slot = if self.slots.len() >= self.capacity {
            let slot = self.oldest;
            let value = make(Some(&self.slots[slot as usize].value));
            self.unlink(slot);
            let evicted = &mut self.slots[slot as usize];
            self.index.remove(&evicted.key);
            evicted.key = Arc::clone(&key);
            evicted.value = value;
            slot
        } else {
            let value = make(None);
            self.slots.push(Slot { key: Arc::clone(&key), value, newer: NONE, older: NONE });
            (self.slots.len() - 1) as u32
        };
        self.link_newest(slot);
        self.index.insert(key, slot);
        slot as usize
    }

    /// Key and value at a slot that [`KeyMap::touch`] returned.
    ///
    /// # Panics
    /// If no such slot was returned.
    pub fn at(&mut self, slot: usize) -> (&Arc<str>, &mut V) {
        let Slot { key, value, .. } = &mut self.slots[slot];
        (key, value)
    }

    /// Visits all keys, the least recently seen first.
    pub fn for_each(&mut self, mut visit: impl FnMut(&Arc<str>, &mut V)) {
        let mut slot = self.oldest;
        while slot != NONE {
            let Slot { key, value, newer, .. } = &mut self.slots[slot as usize];
            visit(key, value);
            slot = *newer;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, .. } = self.slots[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let older = self.newest;
        self.slots[slot as usize].older = older;
        self.slots[slot as usize].newer = NONE;
        match older {
            NONE => self.oldest = slot,
            older => self.slots[older as usize].newer = slot,
        }
        self.newest = slot;
    }
}

fn bounded(capacity: usize) -> usize {
    capacity.clamp(1, NONE as usize - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_number_of_its_own_that_never_changes() {
        let number = |topic: &str, partition, key| number_of(&Lane::new(topic, partition), key);
        let numbers = [
            number("plant", 0, "m"),
            number("plant", 0, "n"),
            number("plant", 1, "m"),
            number("plan", 0, "tm"),
        ];
        let expected = [
            6_542_164_013_640_902_846,
            3_712_632_922_841_081_700,
            11_143_279_979_677_726_417,
            13_426_782_688_866_835_950,
        ];
        assert_eq!(numbers, expected);
    }

    fn order(map: &mut KeyMap<u32>) -> Vec<(String, u32)> {
        let mut seen = Vec::new();
        map.for_each(|key, value| seen.push((key.to_string(), *value)));
        seen
    }

    #[test]
    fn the_least_recently_seen_key_makes_room() {
        let mut map = KeyMap::new(2);
        map.touch("a", |_| 1);
        map.touch("b", |_| 2);
        map.touch("a", |_| unreachable!("a is held"));
        map.touch("c", |evicted| {
            assert_eq!(evicted, Some(&2));
            3
        });
        assert_eq!(order(&mut map), [("a".to_owned(), 1), ("c".to_owned(), 3)]);
    }

    #[test]
    fn a_slot_stays_with_its_key_while_others_come_and_go() {
        let mut map = KeyMap::new(3);
        let held = map.touch("held", |_| 0);
        for other in 0..20_u32 {
            map.touch(&other.to_string(), |_| other);
            assert_eq!(map.touch("held", |_| unreachable!("held is held")), held);
            assert_eq!(map.at(held).0.as_ref(), "held");
        }
        assert_eq!(map.len(), 3);
    }

    #[test]
    fn a_limit_lets_more_keys_in_and_never_drops_one_by_itself() {
        let mut map = KeyMap::new(1);
        map.touch("a", |_| 1);
        map.limit(2);
        map.touch("b", |evicted| {
            assert_eq!(evicted, None);
            2
        });
        map.limit(1);
        map.touch("c", |evicted| {
            assert_eq!(evicted, Some(&1));
            3
        });
        assert_eq!(order(&mut map), [("b".to_owned(), 2), ("c".to_owned(), 3)]);
    }

    #[test]
    fn one_key_is_replaced_again_and_again_at_capacity_one() {
        let mut map = KeyMap::new(0);
        for key in ["a", "b", "a"] {
            map.touch(key, |_| 7);
            assert_eq!(order(&mut map), [(key.to_owned(), 7)]);
        }
    }
}
