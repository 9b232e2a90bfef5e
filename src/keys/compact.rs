//! A map for many keys that are seldom asked for.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxBuildHasher;

/// A map from keys to `T` that takes little beside them.
///
/// A hash table has to keep much of its room free. Here keys and values lie side by side, and the
/// table holds their positions alone, four bytes each. Positions are valid until the next
/// [`CompactMap::insert`] or [`CompactMap::remove`].
#[derive(Clone, Debug)]
pub(super) struct CompactMap<T> {
    entries: Vec<(Box<str>, T)>,
    positions: HashTable<u32>,
}

impl<T> CompactMap<T> {
    pub fn new() -> Self {
        Self { entries: Vec::new(), positions: HashTable::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn get(&self, key: &str) -> Option<&T> {
        self.position(key).map(|position| &self.entries[position].1)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut T> {
        self.position(key).map(|position| &mut self.entries[position].1)
    }

    /// Key and value at a position that [`CompactMap::iter`] counted.
    pub fn at(&self, position: usize) -> (&str, &T) {
        let (key, value) = &self.entries[position];
        (key, value)
    }

    /// The value at such a position.
    pub fn at_mut(&mut self, position: usize) -> &mut T {
        &mut self.entries[position].1
    }

    /// All keys and values, by position.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// Sets the value of a key; returns the one before.
    pub fn insert(&mut self, key: &str, value: T) -> Option<T> {
        let Self { entries, positions } = self;
        let is_it = |position: &u32| *entries[*position as usize].0 == *key;
        let hash = |position: &u32| hash(&entries[*position as usize].0);
        match positions.entry(self::hash(key), is_it, hash) {
            Entry::Occupied(found) => {
                let (_, before) = &mut entries[*found.get() as usize];
                Some(std::mem::replace(before, value))
            }
            Entry::Vacant(vacant) => {
                // No memory holds as many keys as a `u32` counts.
                vacant.insert(entries.len() as u32);
                entries.push((key.into(), value));
                None
            }
        }
    }

    /// Takes a key out; the last one gets its position.
    pub fn remove(&mut self, key: &str) -> Option<T> {
        let Self { entries, positions } = self;
        let is_it = |position: &u32| *entries[*position as usize].0 == *key;
        let (position, _) = positions.find_entry(hash(key), is_it).ok()?.remove();
        let (_, value) = entries.swap_remove(position as usize);
        if let Some((moved, _)) = entries.get(position as usize) {
            let last = entries.len() as u32;
            if let Some(found) = positions.find_mut(hash(moved), |found| *found == last) {
                *found = position;
            }
        }
        Some(value)
    }

    fn position(&self, key: &str) -> Option<usize> {
        let is_it = |position: &u32| *self.entries[*position as usize].0 == *key;
        self.positions.find(hash(key), is_it).map(|position| *position as usize)
    }
}

fn hash(key: &str) -> u64 {
    FxBuildHasher.hash_one(key)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(acts in prop::collection::vec((any::<bool>(), 0..40_u32), 0..300)) {
            let (mut map, mut expected) = (CompactMap::new(), HashMap::new());
            for (number, (insert, key)) in acts.into_iter().enumerate() {
                let key = format!("key-{key}");
                if insert {
                    prop_assert_eq!(map.insert(&key, number), expected.insert(key, number));
                } else {
                    prop_assert_eq!(map.remove(&key), expected.remove(&key));
                }
            }
            for key in (0..40).map(|key| format!("key-{key}")) {
                prop_assert_eq!(map.get(&key), expected.get(&key));
                prop_assert_eq!(map.contains(&key), expected.contains_key(&key));
            }
            let found: HashMap<String, usize> =
                map.iter().map(|(key, number)| (key.to_owned(), *number)).collect();
            prop_assert_eq!(&found, &expected);
            for (position, (key, number)) in map.iter().enumerate() {
                prop_assert_eq!(map.at(position), (key, number));
            }
        }
    }
}
