//! State per key: bounded in memory, and saved by what changed.
//!
//! [`Keys`] holds the state of the keys that were seen last. The others are evicted: their states
//! are in the checkpoint store, or soon will be, and come back bit for bit when they are needed.
//! Without a store they are dropped.
//!
//! ```text
//! fetch   a batch's evicted keys come back, in one go
//! touch   each key's state is found, or begun; nothing is evicted while slots are in use
//!         (a whole batch's at once, so that waits for memory overlap)
//! shrink  the least recently seen keys beyond the capacity are evicted
//! save    what was touched since the last time is added to a part of the store
//! ```

mod compact;
mod index;
mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::ops::{BitXor, Range};
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::compact::CompactMap;
use self::index::Index;
use self::name::Name;
use crate::checkpoint::{Checkpoint, CheckpointError, Part, SavedIndex, SavedKeys, Store};
use crate::source::Lane;

/// What can be kept per key.
pub trait State: Serialize + DeserializeOwned {
    /// Whether the end of the stream would still make something of it.
    fn is_open(&self) -> bool {
        false
    }

    /// Forgets what only makes sense with the model that it was made with: it is another's now.
    fn leave_model(&mut self) {}
}

/// State per key, in memory for at most `capacity` keys between two batches.
///
/// After an error, states may be missing: whoever owns it goes back to what was saved.
#[derive(Clone, Debug)]
pub struct Keys<V> {
    capacity: usize,
    store: Option<Store>,
    index: Index,
    slots: Vec<Slot<V>>,
    /// The slot of the key that was seen last.
    newest: u32,
    /// The least recently seen keys, the very least last, as of when they were listed.
    leaving: Vec<Leaving>,
    /// How often keys were seen: the next one's number.
    seen: u64,
    /// What is looked up together: hash and, maybe, slot of each name.
    found: Vec<(u64, u32)>,
    evicted: CompactMap<Evicted>,
    /// Bytes of evicted states that are in no part yet.
    waiting: usize,
    /// Parts that hold a state which is still the last of its key, by the order of writing.
    parts: BTreeMap<u32, Held>,
    limits: Limits,
}

/// A key in memory: first what every record asks of it, so that little of it is waited for.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
struct Slot<V> {
    /// As much of the key as tells it from others, in most cases all: its text lies elsewhere.
    name: Name,
    /// When it was last seen: a number of its own.
    seen: u64,
    /// Whether it was saved and not touched since: `place` says where.
    is_saved: bool,
    /// Its place among those that leave next, if it is one of them.
    leaving: u32,
    value: V,
    key: Arc<str>,
    place: Place,
}

/// A key that is to make room, if it was not seen since.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    seen: u64,
    slot: u32,
}

/// A key whose state is not in memory, or only as bytes.
#[derive(Clone, Debug)]
struct Evicted {
    seen: u64,
    open: bool,
    bytes: Saved,
}

#[derive(Clone, Debug)]
enum Saved {
    Waiting(Box<[u8]>),
    At(Place),
}

/// Where a state is: in which of the parts, and where after its base. Every evicted key has one, so
/// it is packed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(Rust, packed(4))]
struct Place {
    part: u32,
    offset: u64,
    length: u32,
    crc: u32,
}

/// A key that comes back.
struct Taken<V> {
    key: Arc<str>,
    value: V,
    seen: u64,
    saved: Option<Place>,
}

/// A part, as far as it is these keys'.
#[derive(Clone, Debug)]
struct Held {
    part: Part,
    index: SavedIndex,
    /// Bytes that were written, and those of states which are still the last of their keys.
    written: u64,
    live: u64,
}

/// Bounds of what waits in memory and of what one save does.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bytes of evicted states beyond which they become a part of their own.
    waiting: usize,
    /// Parts beyond which the smallest are written anew together.
    parts: usize,
    /// Bytes that one save moves out of parts that are mostly outdated.
    moved: u64,
}

/// A key in an index.
#[derive(Serialize, Deserialize)]
struct Entry {
    key: Arc<str>,
    seen: u64,
    open: bool,
    offset: u64,
    length: u32,
    crc: u32,
}

/// States on their way into a part, back to back.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// No slot.
const NONE: u32 = u32::MAX;
/// Keys beyond which their states are not in the processor's nearest caches.
const CACHED: usize = 512;
/// Of all keys, the part whose order of leaving is worked out at once.
const LEAVING: usize = 4;
/// Evicted keys that are brought back at once where all are visited.
const VISITED: usize = 1024;
const WRONG_STATE: &str = "the checksum of a key's state does not match";
const LIMITS: Limits = Limits { waiting: 16 << 20, parts: 64, moved: 16 << 20 };

impl<V: State> Keys<V> {
    /// Without keys; a capacity of 0 counts as 1. Evicted keys go to `store`, or are dropped where
    /// there is none.
    pub fn new(capacity: usize, store: Option<Store>) -> Self {
        Self {
            capacity: bounded(capacity),
            store,
            index: Index::default(),
            slots: Vec::new(),
            newest: NONE,
            leaving: Vec::new(),
            seen: 0,
            found: Vec::new(),
            evicted: CompactMap::new(),
            waiting: 0,
            parts: BTreeMap::new(),
            limits: LIMITS,
        }
    }

    /// Lets keys that are evicted from now on go to `store`.
    pub fn with_store(self, store: Option<Store>) -> Self {
        Self { store, ..self }
    }

    /// What [`Keys::save`] saved, with the most recently seen keys in memory. `foreign` says that
    /// the states were made with the model of another process.
    ///
    /// # Errors
    /// If what was saved is not there, or does not verify.
    pub fn load(
        saved: &SavedKeys,
        capacity: usize,
        store: &Store,
        foreign: bool,
    ) -> Result<Self, CheckpointError> {
        let mut keys = Self { seen: saved.seen, ..Self::new(capacity, Some(store.clone())) };
        for index in &saved.indices {
            keys.load_index(index, store, foreign)?;
        }
        let mut known: Vec<(u64, usize)> = keys
            .evicted
            .iter()
            .enumerate()
            .map(|(position, (_, evicted))| (evicted.seen, position))
            .collect();
        known.sort_unstable();
        let newest = known.split_off(known.len().saturating_sub(keys.capacity));
        let newest: Vec<(u64, Arc<str>)> = newest
            .into_iter()
            .map(|(seen, position)| (seen, keys.evicted.at(position).0.into()))
            .collect();
        for newest in newest.chunks(VISITED) {
            for Taken { key, value, seen, saved } in keys.take(newest)? {
                keys.insert(key, value, seen, saved);
            }
        }
        Ok(keys)
    }

    fn load_index(
        &mut self,
        index: &SavedIndex,
        store: &Store,
        foreign: bool,
    ) -> Result<(), CheckpointError> {
        let part = Part::stored(index.part.clone());
        let entries = read_index(index, store)?;
        let number = self.next_part();
        let index = SavedIndex { foreign: index.foreign || foreign, ..index.clone() };
        self.parts.insert(number, Held { part, index, written: 0, live: 0 });
        for Entry { key, seen, open, offset, length, crc } in entries {
            let place = Place { part: number, offset, length, crc };
            self.hold(place);
            let evicted = Evicted { seen, open, bytes: Saved::At(place) };
            match self.evicted.insert(&key, evicted).map(|before| before.bytes) {
                Some(Saved::At(before)) => self.forget(before),
                Some(Saved::Waiting(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Changes the capacity, from the next [`Keys::shrink`] on.
    pub fn limit(&mut self, capacity: usize) {
        self.capacity = bounded(capacity);
    }

    /// Number of keys in memory.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no key is in memory.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Brings those of `keys` back that were evicted. Each must be touched before the next
    /// [`Keys::shrink`].
    ///
    /// # Errors
    /// If the store fails, or a state does not verify.
    pub fn fetch<'k>(
        &mut self,
        keys: impl IntoIterator<Item = &'k str>,
    ) -> Result<(), CheckpointError> {
        if self.evicted.is_empty() {
            return Ok(());
        }
        let mut wanted: Vec<(u64, &str)> =
            keys.into_iter().filter_map(|key| Some((self.evicted.get(key)?.seen, key))).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let wanted: Vec<(u64, Arc<str>)> =
            wanted.into_iter().map(|(seen, key)| (seen, key.into())).collect();
        for Taken { key, value, seen, saved } in self.take(&wanted)? {
            self.insert(key, value, seen, saved);
        }
        Ok(())
    }

    /// The slot of `key`, which becomes the most recently seen; a new key gets `make()`. Slots are
    /// valid until the next [`Keys::shrink`]. An evicted key must have been fetched.
    pub fn touch(&mut self, key: &str, make: impl FnOnce() -> V) -> usize {
        let hash = index::hash(key);
        match self.index.find(hash, |slot| self.slots[slot as usize].is_of(key)) {
            Some(slot) => self.see(slot),
            None => self.begin(hash, key, make),
        }
    }

    /// The slots of `keys`, as [`Keys::touch`] finds them one after the other, instead of what
    /// `slots` holds.
    ///
    /// Where keys are many, their states wait in memory that is slow to answer. What is read of all
    /// of them before any is used takes little longer than what is read of one: `preview` reads what
    /// will be needed of a key and its state beside themselves; what it returns has no meaning.
    pub fn touch_all<'k>(
        &mut self,
        keys: impl Iterator<Item = &'k str> + Clone,
        mut make: impl FnMut() -> V,
        preview: impl Fn(&Arc<str>, &V) -> u32,
        slots: &mut Vec<usize>,
    ) {
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        found.extend(keys.clone().map(|key| {
            let hash = index::hash(key);
            // Of keys of one hash, which there hardly are, one is as good as the other for now.
            (hash, self.index.find(hash, |_| true).unwrap_or(NONE))
        }));
        if self.slots.len() > CACHED {
            let slots = || found.iter().filter_map(|(_, slot)| self.slots.get(*slot as usize));
            black_box(slots().map(|slot| slot.leaving).fold(0, BitXor::bitxor));
            let read = slots().map(|slot| preview(&slot.key, &slot.value));
            black_box(read.fold(0, BitXor::bitxor));
        }
        slots.clear();
        for (key, &(hash, slot)) in keys.zip(&found) {
            slots.push(match self.slots.get(slot as usize) {
                Some(at) if at.is_of(key) => self.see(slot),
                _ => match self.index.find(hash, |slot| self.slots[slot as usize].is_of(key)) {
                    Some(slot) => self.see(slot),
                    None => self.begin(hash, key, &mut make),
                },
            });
        }
        self.found = found;
    }

    /// Key and value at a slot that [`Keys::touch`] returned.
    ///
    /// # Panics
    /// If no such slot was returned.
    pub fn at(&mut self, slot: usize) -> (&Arc<str>, &mut V) {
        let Slot { key, value, .. } = &mut self.slots[slot];
        (key, value)
    }

    /// The state of the key that was seen last.
    pub fn newest(&self) -> Option<&V> {
        self.slots.get(self.newest as usize).map(|slot| &slot.value)
    }

    /// Evicts the least recently seen keys beyond the capacity; `dropped` gets those that are lost
    /// for want of a store. Returns their number.
    ///
    /// # Errors
    /// If a state cannot be turned into bytes, or the store fails.
    pub fn shrink(&mut self, mut dropped: impl FnMut(&V)) -> Result<usize, CheckpointError> {
        let excess = self.slots.len().saturating_sub(self.capacity);
        for _ in 0..excess {
            let oldest = self.oldest();
            let Slot { key, value, seen, is_saved, place, .. } = self.remove(oldest);
            if self.store.is_none() {
                dropped(&value);
                continue;
            }
            let open = value.is_open();
            let bytes = match is_saved {
                true => Saved::At(place),
                false => self.wait(encode(&key, &value)?),
            };
            self.evicted.insert(&key, Evicted { seen, open, bytes });
        }
        self.relieve()?;
        Ok(excess)
    }

    /// Visits all keys whose state is open, in memory or not, the least recently seen first.
    ///
    /// # Errors
    /// If the store fails, or a state does not verify.
    pub fn visit_open(
        &mut self,
        mut visit: impl FnMut(&Arc<str>, &mut V),
    ) -> Result<(), CheckpointError> {
        // None is taken out or added meanwhile: positions stay what they are.
        let mut open: Vec<(u64, usize)> = self
            .evicted
            .iter()
            .enumerate()
            .filter(|(_, (_, evicted))| evicted.open)
            .map(|(position, (_, evicted))| (evicted.seen, position))
            .collect();
        open.sort_unstable();
        for some in open.chunks(VISITED) {
            for (position, key, mut value) in self.look_at(some)? {
                visit(&key, &mut value);
                let bytes = self.wait(encode(&key, &value)?);
                let evicted = self.evicted.at_mut(position);
                evicted.open = value.is_open();
                match std::mem::replace(&mut evicted.bytes, bytes) {
                    Saved::At(before) => self.forget(before),
                    Saved::Waiting(before) => self.waiting -= before.len(),
                }
            }
            self.relieve()?;
        }
        let slots = self.slots.iter().zip(0..);
        let open = slots.filter(|(slot, _)| slot.value.is_open());
        let mut open: Vec<(u64, u32)> = open.map(|(slot, at)| (slot.seen, at)).collect();
        open.sort_unstable();
        for (_, slot) in open {
            self.change(slot);
            let Slot { key, value, .. } = &mut self.slots[slot as usize];
            visit(key, value);
        }
        Ok(())
    }

    /// Adds the states that changed since the last time to `part`; returns where all are.
    ///
    /// # Errors
    /// If a state cannot be turned into bytes, or the store fails.
    pub fn save(&mut self, part: &Part) -> Result<SavedKeys, CheckpointError> {
        let outdated = self.outdated();
        let mut chunk = self.waiting_chunk()?;
        let mut budget = self.limits.moved;
        self.move_out(&outdated, &mut budget, &mut chunk)?;
        let mut saved = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            if !slot.is_saved || slot.place.moves(&outdated, &mut budget) {
                let bytes = encode(&slot.key, &slot.value)?;
                chunk.add(&slot.key, slot.seen, slot.value.is_open(), &bytes)?;
                saved.push(at as u32);
            }
        }
        let first = chunk.entries.len() - saved.len();
        let places = self.write(part, chunk)?;
        for (slot, place) in saved.into_iter().zip(&places[first..]) {
            self.change(slot);
            let slot = &mut self.slots[slot as usize];
            (slot.is_saved, slot.place) = (true, *place);
        }
        self.parts.retain(|_, held| held.live > 0);
        let indices = self.parts.values().map(|held| held.index.clone()).collect();
        Ok(SavedKeys { seen: self.seen, indices })
    }

    /// Writes evicted states to the store at once where too many wait.
    fn relieve(&mut self) -> Result<(), CheckpointError> {
        let Some(store) = self.store.clone().filter(|_| self.waiting > self.limits.waiting) else {
            return Ok(());
        };
        let part = Part::new(Checkpoint::new_id());
        let chunk = self.waiting_chunk()?;
        self.write(&part, chunk)?;
        store.save_part(&part)?;
        Ok(())
    }

    /// The evicted states that are in no part yet.
    fn waiting_chunk(&self) -> Result<Chunk, CheckpointError> {
        let mut chunk = Chunk::default();
        if self.waiting > 0 {
            for (key, evicted) in self.evicted.iter() {
                if let Saved::Waiting(bytes) = &evicted.bytes {
                    chunk.add(&key.into(), evicted.seen, evicted.open, bytes)?;
                }
            }
        }
        Ok(chunk)
    }

    /// Parts whose live states are to be written anew: those that are mostly outdated, and where
    /// there are many, the smallest.
    fn outdated(&self) -> BTreeSet<u32> {
        let mut outdated: BTreeSet<u32> = self
            .parts
            .iter()
            .filter(|(_, held)| held.live < held.written / 2)
            .map(|(number, _)| *number)
            .collect();
        if self.parts.len() > self.limits.parts {
            let mut by_size: Vec<u32> = self.parts.keys().copied().collect();
            by_size.sort_unstable_by_key(|number| self.parts[number].live);
            outdated.extend(&by_size[..by_size.len() - self.limits.parts / 2]);
        }
        outdated
    }

    /// Adds evicted states of the parts `outdated` to `chunk`.
    fn move_out(
        &self,
        outdated: &BTreeSet<u32>,
        budget: &mut u64,
        chunk: &mut Chunk,
    ) -> Result<(), CheckpointError> {
        if outdated.is_empty() {
            return Ok(());
        }
        let mut moved: Vec<(Arc<str>, u64, bool, Place)> = Vec::new();
        for (key, evicted) in self.evicted.iter() {
            if let Saved::At(place) = evicted.bytes
                && place.moves(outdated, budget)
            {
                moved.push((key.into(), evicted.seen, evicted.open, place));
            }
        }
        let places: Vec<Place> = moved.iter().map(|(.., place)| *place).collect();
        for ((key, seen, open, place), bytes) in moved.into_iter().zip(self.read(&places)?) {
            if self.is_foreign(place) {
                let value = self.decode(&key, place, &bytes)?;
                chunk.add(&key, seen, open, &encode(&key, &value)?)?;
            } else {
                chunk.add(&key, seen, open, &bytes)?;
            }
        }
        Ok(())
    }

    /// Appends states and their index to a part; returns where they are. Evicted keys among them
    /// are there from now on.
    fn write(&mut self, part: &Part, chunk: Chunk) -> Result<Vec<Place>, CheckpointError> {
        let Chunk { mut bytes, entries } = chunk;
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let number = self.next_part();
        let length = bytes.len() as u64;
        let index = postcard::to_stdvec(&entries).map_err(|error| CheckpointError::State {
            what: "index of keys".to_owned(),
            reason: error.to_string(),
        })?;
        bytes.extend_from_slice(&index);
        let base = part.append(bytes)?;
        let index = SavedIndex {
            part: part.id().to_owned(),
            base,
            offset: base + length,
            length: index.len() as u64,
            crc: crc32fast::hash(&index),
            foreign: false,
        };
        self.parts.insert(number, Held { part: part.clone(), index, written: 0, live: 0 });
        let mut places = Vec::with_capacity(entries.len());
        for Entry { key, offset, length, crc, .. } in entries {
            let place = Place { part: number, offset, length, crc };
            self.hold(place);
            if let Some(evicted) = self.evicted.get_mut(&key) {
                match std::mem::replace(&mut evicted.bytes, Saved::At(place)) {
                    Saved::Waiting(bytes) => self.waiting -= bytes.len(),
                    Saved::At(before) => self.forget(before),
                }
            }
            places.push(place);
        }
        Ok(places)
    }

    /// Takes evicted keys out, with their states.
    fn take(&mut self, keys: &[(u64, Arc<str>)]) -> Result<Vec<Taken<V>>, CheckpointError> {
        let taken: Vec<(Arc<str>, Evicted)> = keys
            .iter()
            .filter_map(|(_, key)| Some((Arc::clone(key), self.evicted.remove(key)?)))
            .collect();
        let places: Vec<Place> = taken
            .iter()
            .filter_map(|(_, evicted)| match evicted.bytes {
                Saved::At(place) => Some(place),
                Saved::Waiting(_) => None,
            })
            .collect();
        let mut read = self.read(&places)?.into_iter();
        let mut found = Vec::with_capacity(taken.len());
        for (key, Evicted { seen, bytes, .. }) in taken {
            let (value, saved) = match bytes {
                Saved::At(place) => {
                    let bytes = read.next().unwrap_or_default();
                    (self.decode(&key, place, &bytes)?, Some(place))
                }
                Saved::Waiting(bytes) => {
                    self.waiting -= bytes.len();
                    (decode(&key, &bytes)?, None)
                }
            };
            found.push(Taken { key, value, seen, saved });
        }
        Ok(found)
    }

    /// The states of evicted keys by (seen, position), each with its position and key.
    fn look_at(&self, keys: &[(u64, usize)]) -> Result<Vec<(usize, Arc<str>, V)>, CheckpointError> {
        let places: Vec<Place> = keys
            .iter()
            .filter_map(|(_, position)| match self.evicted.at(*position).1.bytes {
                Saved::At(place) => Some(place),
                Saved::Waiting(_) => None,
            })
            .collect();
        let mut read = self.read(&places)?.into_iter();
        let mut found = Vec::with_capacity(keys.len());
        for (_, position) in keys {
            let (key, evicted) = self.evicted.at(*position);
            let value = match &evicted.bytes {
                Saved::At(place) => self.decode(key, *place, &read.next().unwrap_or_default())?,
                Saved::Waiting(bytes) => decode(key, bytes)?,
            };
            found.push((*position, key.into(), value));
        }
        Ok(found)
    }

    /// The bytes of saved states, each verified.
    fn read(&self, places: &[Place]) -> Result<Vec<Bytes>, CheckpointError> {
        let mut by_part: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, place) in places.iter().enumerate() {
            by_part.entry(place.part).or_default().push(at);
        }
        let mut found = vec![Bytes::new(); places.len()];
        for (number, wanted) in by_part {
            let (Some(store), Some(Held { part, index, .. })) =
                (&self.store, self.parts.get(&number))
            else {
                return Err(CheckpointError::State {
                    what: "states of evicted keys".to_owned(),
                    reason: "no part holds them".to_owned(),
                });
            };
            let ranges: Vec<_> = wanted
                .iter()
                .map(|at| {
                    let start = index.base.saturating_add(places[*at].offset);
                    start..start.saturating_add(u64::from(places[*at].length))
                })
                .collect();
            for (at, bytes) in wanted.into_iter().zip(store.read(part, &ranges)?) {
                if crc32fast::hash(&bytes) != places[at].crc {
                    return Err(store.corrupt(part.id(), WRONG_STATE.to_owned()));
                }
                found[at] = bytes;
            }
        }
        Ok(found)
    }

    /// A state from its saved bytes.
    fn decode(&self, key: &str, place: Place, bytes: &[u8]) -> Result<V, CheckpointError> {
        let mut value: V = decode(key, bytes)?;
        if self.is_foreign(place) {
            value.leave_model();
        }
        Ok(value)
    }

    fn is_foreign(&self, place: Place) -> bool {
        self.parts.get(&place.part).is_some_and(|held| held.index.foreign)
    }

    fn next_part(&self) -> u32 {
        self.parts.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    fn wait(&mut self, bytes: Vec<u8>) -> Saved {
        self.waiting += bytes.len();
        Saved::Waiting(bytes.into())
    }

    /// Notes that a state was written.
    fn hold(&mut self, place: Place) {
        if let Some(held) = self.parts.get_mut(&place.part) {
            held.written += place.size();
            held.live += place.size();
        }
    }

    /// Notes that a state that was written is not the last of its key any more.
    fn forget(&mut self, place: Place) {
        if let Some(held) = self.parts.get_mut(&place.part) {
            held.live -= place.size();
        }
    }

    /// Notes that the state at a slot is not what was saved any more.
    fn change(&mut self, slot: u32) {
        let slot = &mut self.slots[slot as usize];
        if std::mem::take(&mut slot.is_saved) {
            let place = slot.place;
            self.forget(place);
        }
    }

    /// Notes that the key at a slot was seen.
    fn see(&mut self, slot: u32) -> usize {
        self.seen += 1;
        self.newest = slot;
        self.slots[slot as usize].seen = self.seen;
        self.change(slot);
        slot as usize
    }

    /// Adds a key that is new.
    fn begin(&mut self, hash: u64, key: &str, make: impl FnOnce() -> V) -> usize {
        debug_assert!(!self.evicted.contains(key), "{key} was not fetched");
        self.seen += 1;
        self.insert_hashed(hash, key.into(), make(), self.seen, None)
    }

    fn insert(&mut self, key: Arc<str>, value: V, seen: u64, saved: Option<Place>) {
        self.insert_hashed(index::hash(&key), key, value, seen, saved);
    }

    fn insert_hashed(
        &mut self,
        hash: u64,
        key: Arc<str>,
        value: V,
        seen: u64,
        saved: Option<Place>,
    ) -> usize {
        let slot = self.slots.len() as u32;
        self.index.insert(hash, slot);
        let (name, is_saved, place) = (Name::new(&key), saved.is_some(), saved.unwrap_or_default());
        self.slots.push(Slot { name, seen, is_saved, leaving: NONE, value, key, place });
        self.newest = slot;
        slot as usize
    }

    fn remove(&mut self, slot: u32) -> Slot<V> {
        let removed = self.slots.swap_remove(slot as usize);
        self.index.remove(index::hash(&removed.key), slot);
        // The last one has its place now.
        let last = self.slots.len() as u32;
        if let Some(moved) = self.slots.get(slot as usize) {
            self.index.replace(index::hash(&moved.key), last, slot);
            if let Some(leaving) = self.leaving.get_mut(moved.leaving as usize)
                && leaving.seen == moved.seen
            {
                leaving.slot = slot;
            }
        }
        match self.newest {
            newest if newest == slot => self.newest = NONE,
            newest if newest == last => self.newest = slot,
            _ => {}
        }
        removed
    }

    /// The slot of the key that was least recently seen; there must be one.
    ///
    /// Keys are not kept in order: to put one in its place would touch two others. What is listed
    /// here is the least recently seen part of them, which stays that, whichever are seen since.
    fn oldest(&mut self) -> u32 {
        loop {
            while let Some(Leaving { seen, slot }) = self.leaving.pop() {
                if self.slots.get(slot as usize).is_some_and(|slot| slot.seen == seen) {
                    return slot;
                }
            }
            let all = self.slots.iter().zip(0..);
            self.leaving.extend(all.map(|(Slot { seen, .. }, slot)| Leaving { seen: *seen, slot }));
            let count = self.slots.len().div_ceil(LEAVING);
            if count < self.leaving.len() {
                self.leaving.select_nth_unstable_by_key(count, |leaving| leaving.seen);
                self.leaving.truncate(count);
            }
            self.leaving.sort_unstable_by_key(|leaving| std::cmp::Reverse(leaving.seen));
            for (Leaving { slot, .. }, at) in self.leaving.iter().zip(0..) {
                self.slots[*slot as usize].leaving = at;
            }
        }
    }
}

impl<V> Slot<V> {
    fn is_of(&self, key: &str) -> bool {
        self.name.is_of(key, || &self.key)
    }
}

impl Place {
    /// Bytes of the state and, roughly, of its entry in the index.
    fn size(self) -> u64 {
        const ENTRY: u64 = 32;
        u64::from(self.length) + ENTRY
    }

    /// Whether it is to be moved, as far as the budget goes.
    fn moves(self, outdated: &BTreeSet<u32>, budget: &mut u64) -> bool {
        let moves = *budget > 0 && outdated.contains(&self.part);
        if moves {
            *budget = budget.saturating_sub(self.size());
        }
        moves
    }
}

impl Chunk {
    fn add(
        &mut self,
        key: &Arc<str>,
        seen: u64,
        open: bool,
        bytes: &[u8],
    ) -> Result<(), CheckpointError> {
        let length = u32::try_from(bytes.len()).map_err(|error| failed(key, &error))?;
        let (offset, crc) = (self.bytes.len() as u64, crc32fast::hash(bytes));
        self.bytes.extend_from_slice(bytes);
        self.entries.push(Entry { key: Arc::clone(key), seen, open, offset, length, crc });
        Ok(())
    }
}

/// A saved state: the number of its index, where in the part it is, its CRC-32.
type SavedState = (usize, Range<u64>, u32);

/// Number of keys that were saved, as their indices tell.
///
/// # Errors
/// If an index is not there, or does not verify.
pub fn count_saved(saved: &SavedKeys, store: &Store) -> Result<usize, CheckpointError> {
    Ok(saved_states(saved, store)?.len())
}

/// Reads the saved states of all keys and checks them.
///
/// # Errors
/// If an index or a state is not there, or does not verify.
pub fn verify_saved(saved: &SavedKeys, store: &Store) -> Result<(), CheckpointError> {
    let states = saved_states(saved, store)?;
    for (number, index) in saved.indices.iter().enumerate() {
        let part = Part::stored(index.part.clone());
        let of_index: Vec<&SavedState> = states.values().filter(|(of, ..)| *of == number).collect();
        for some in of_index.chunks(VISITED) {
            let ranges: Vec<_> = some.iter().map(|(_, range, _)| range.clone()).collect();
            for ((.., crc), bytes) in some.iter().zip(store.read(&part, &ranges)?) {
                if crc32fast::hash(&bytes) != *crc {
                    return Err(store.corrupt(&index.part, WRONG_STATE.to_owned()));
                }
            }
        }
    }
    Ok(())
}

/// The last saved state of each key.
fn saved_states(
    saved: &SavedKeys,
    store: &Store,
) -> Result<FxHashMap<Arc<str>, SavedState>, CheckpointError> {
    let mut states = FxHashMap::default();
    for (number, index) in saved.indices.iter().enumerate() {
        for Entry { key, offset, length, crc, .. } in read_index(index, store)? {
            let start = index.base.saturating_add(offset);
            states.insert(key, (number, start..start.saturating_add(length.into()), crc));
        }
    }
    Ok(states)
}

fn read_index(index: &SavedIndex, store: &Store) -> Result<Vec<Entry>, CheckpointError> {
    let corrupt = |reason: String| store.corrupt(&index.part, reason);
    let end = index.offset.saturating_add(index.length);
    let bytes = store.read_first(&Part::stored(index.part.clone()), index.offset..end)?;
    if crc32fast::hash(&bytes) != index.crc {
        return Err(corrupt("the checksum of an index does not match".to_owned()));
    }
    postcard::from_bytes(&bytes).map_err(|error| corrupt(error.to_string()))
}

fn encode(key: &str, value: &impl Serialize) -> Result<Vec<u8>, CheckpointError> {
    postcard::to_stdvec(value).map_err(|error| failed(key, &error))
}

fn decode<V: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<V, CheckpointError> {
    postcard::from_bytes(bytes).map_err(|error| failed(key, &error))
}

fn failed(key: &str, reason: &dyn std::fmt::Display) -> CheckpointError {
    CheckpointError::State { what: format!("state of key {key}"), reason: reason.to_string() }
}

fn bounded(capacity: usize) -> usize {
    capacity.clamp(1, NONE as usize - 1)
}

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config;

    /// All that a key was told; open if it was told an odd number last.
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Told {
        numbers: Vec<u32>,
        model: Option<u32>,
    }

    impl State for Told {
        fn is_open(&self) -> bool {
            self.numbers.last().is_some_and(|last| last % 2 == 1)
        }

        fn leave_model(&mut self) {
            self.model = None;
        }
    }

    fn store(folder: &Path) -> Store {
        let config = config::Checkpoint {
            store: Some(folder.to_owned().into()),
            ..config::Checkpoint::default()
        };
        Store::open(&config).expect("a folder can be made").expect("a folder is named")
    }

    fn keys(capacity: usize, store: Option<Store>) -> Keys<Told> {
        let limits = Limits { waiting: 60, parts: 4, moved: 300 };
        Keys { limits, ..Keys::new(capacity, store) }
    }

    fn tell(keys: &mut Keys<Told>, key: &str, number: u32) {
        keys.fetch([key]).expect("fetched");
        let slot = keys.touch(key, Told::default);
        keys.at(slot).1.numbers.push(number);
    }

    /// Saves to the store, as a checkpoint does.
    fn save(keys: &mut Keys<Told>, store: &Store) -> SavedKeys {
        let part = Part::new(Checkpoint::new_id());
        let saved = keys.save(&part).expect("saved");
        store.save_part(&part).expect("written");
        saved
    }

    fn in_memory(keys: &Keys<Told>) -> Vec<&str> {
        let mut slots: Vec<&Slot<Told>> = keys.slots.iter().collect();
        slots.sort_unstable_by_key(|slot| slot.seen);
        slots.into_iter().map(|slot| &*slot.key).collect()
    }

    #[test]
    fn the_least_recently_seen_key_makes_room() {
        let mut keys = keys(2, None);
        for (key, number) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            tell(&mut keys, key, number);
        }
        assert_eq!(in_memory(&keys), ["b", "a", "c"]);
        let mut dropped = Vec::new();
        assert_eq!(keys.shrink(|told| dropped.extend(told.numbers.clone())).expect("shrunk"), 1);
        assert_eq!(dropped, [2]);
        assert_eq!(in_memory(&keys), ["a", "c"]);
    }

    #[test]
    fn slots_stay_valid_until_keys_are_evicted() {
        let mut keys = keys(1, None);
        let held = keys.touch("held", Told::default);
        for other in 0..20 {
            keys.touch(&other.to_string(), Told::default);
            assert_eq!(keys.touch("held", || unreachable!("held is held")), held);
            assert_eq!(keys.at(held).0.as_ref(), "held");
        }
        keys.shrink(|_| {}).expect("shrunk");
        assert_eq!(in_memory(&keys), ["held"]);
    }

    #[test]
    fn keys_that_are_touched_together_are_touched_one_after_the_other() {
        let (mut one_by_one, mut together) = (keys(usize::MAX, None), keys(usize::MAX, None));
        let mut slots = Vec::new();
        // More than the nearest caches hold, some of them new, some twice in a batch.
        for batch in 0..20 {
            let names: Vec<String> =
                (0..100).map(|at| format!("key-{}", 50 * batch + at % 90)).collect();
            let names = || names.iter().map(String::as_str);
            together.touch_all(
                names(),
                Told::default,
                |_, told| told.numbers.len() as u32,
                &mut slots,
            );
            let expected: Vec<usize> =
                names().map(|key| one_by_one.touch(key, Told::default)).collect();
            assert_eq!(slots, expected);
            for (key, slot) in names().zip(&slots) {
                assert_eq!(&**together.at(*slot).0, key);
            }
        }
        assert_eq!(in_memory(&together), in_memory(&one_by_one));
    }

    #[test]
    fn an_evicted_key_comes_back_before_and_after_it_is_saved() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let mut keys = Keys::<Told>::new(1, Some(store.clone()));
        tell(&mut keys, "a", 1);
        tell(&mut keys, "b", 2);
        keys.shrink(|_| unreachable!("nothing is lost")).expect("shrunk");
        let part = Part::new(Checkpoint::new_id());
        keys.save(&part).expect("saved");
        // The part is not in the store yet.
        tell(&mut keys, "a", 3);
        keys.shrink(|_| unreachable!("nothing is lost")).expect("shrunk");
        store.save_part(&part).expect("written");
        tell(&mut keys, "b", 4);
        tell(&mut keys, "a", 5);
        for (key, numbers) in [("a", &[1, 3, 5][..]), ("b", &[2, 4])] {
            let slot = keys.touch(key, || unreachable!("{key} is held"));
            assert_eq!(keys.at(slot).1.numbers, numbers);
        }
    }

    #[test]
    fn a_save_writes_what_was_touched_since_the_last_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let mut keys = keys(10, Some(store.clone()));
        for key in ["a", "b", "c", "d"] {
            tell(&mut keys, key, 0);
        }
        let written = |keys: &mut Keys<Told>| {
            let part = Part::new(Checkpoint::new_id());
            keys.save(&part).expect("saved");
            store.save_part(&part).expect("written")
        };
        let all = written(&mut keys);
        assert_eq!(written(&mut keys), 0);
        tell(&mut keys, "b", 1);
        let one = written(&mut keys);
        assert!(one > 0 && one < all, "{one} of {all}");
    }

    #[test]
    fn every_flipped_byte_of_a_part_is_detected() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let mut keys = keys(1, Some(store.clone()));
        for key in ["a", "b", "c"] {
            tell(&mut keys, key, 1);
        }
        let saved = save(&mut keys, &store);
        let path = folder.path().join(format!("{}.part", saved.indices[0].part));
        let whole = std::fs::read(&path).expect("readable");
        let load = || {
            let mut keys = Keys::<Told>::load(&saved, 1, &store, false)?;
            keys.fetch(["a", "b", "c"]).map(|()| keys.len())
        };
        assert_eq!(load().expect("whole"), 3);
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, flipped).expect("writable");
            let error = load().expect_err("flipped");
            assert!(matches!(error, CheckpointError::Corrupt { .. }), "byte {at}: {error}");
            std::fs::write(&path, &whole[..at]).expect("writable");
            let error = load().expect_err("cut off");
            assert!(matches!(error, CheckpointError::Corrupt { .. }), "{at} bytes: {error}");
        }
    }

    #[test]
    fn what_is_of_another_model_is_left_behind_wherever_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let mut first = keys(3, Some(store.clone()));
        for key in ["a", "b", "c"] {
            let slot = first.touch(key, Told::default);
            first.at(slot).1.model = Some(7);
        }
        let saved = save(&mut first, &store);
        let mut same = Keys::<Told>::load(&saved, 1, &store, false).expect("loaded");
        let mut other = Keys::<Told>::load(&saved, 1, &store, true).expect("loaded");
        // What became of it is remembered over a save.
        let saved = save(&mut other, &store);
        let mut later = Keys::<Told>::load(&saved, 1, &store, false).expect("loaded");
        for (keys, model) in [(&mut same, Some(7)), (&mut other, None), (&mut later, None)] {
            keys.fetch(["a", "b", "c"]).expect("fetched");
            assert_eq!(keys.len(), 3);
            assert!(keys.slots.iter().all(|slot| slot.value.model == model), "{keys:?}");
        }
    }

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

    /// What happens to keys.
    #[derive(Clone, Debug)]
    enum Act {
        Batch(Vec<(u8, u32)>),
        Limit(usize),
        VisitOpen,
        Save,
        Reload(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let batch = prop::collection::vec((0..20_u8, 0..100_u32), 1..12).prop_map(Act::Batch);
        let act = prop_oneof![
            8 => batch,
            1 => (0..8_usize).prop_map(Act::Limit),
            1 => Just(Act::VisitOpen),
            3 => Just(Act::Save),
            1 => (0..8_usize).prop_map(Act::Reload),
        ];
        prop::collection::vec(act, 1..60)
    }

    proptest! {
        #[test]
        fn keys_leave_in_the_order_in_which_they_were_last_seen(
            batches in prop::collection::vec(
                (prop::collection::vec(0..80_u32, 1..40), 1..60_usize),
                1..20,
            ),
        ) {
            let mut keys = keys(1, None);
            let mut naive: Vec<u32> = Vec::new();
            for (batch, capacity) in batches {
                for key in batch {
                    let slot = keys.touch(&key.to_string(), Told::default);
                    keys.at(slot).1.numbers = vec![key];
                    naive.retain(|other| *other != key);
                    naive.push(key);
                }
                keys.limit(capacity);
                let mut dropped = Vec::new();
                keys.shrink(|told| dropped.push(told.numbers[0])).expect("shrunk");
                let excess = naive.len().saturating_sub(capacity);
                prop_assert_eq!(dropped, naive.drain(..excess).collect::<Vec<u32>>());
                prop_assert_eq!(keys.newest().map(|told| told.numbers[0]), naive.last().copied());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn keys_are_an_unbounded_map_whatever_is_evicted_saved_and_loaded(acts in acts()) {
            let folder = tempfile::tempdir().expect("a folder");
            let store = store(folder.path());
            let mut bounded = keys(3, Some(store.clone()));
            // Of the naive map, the least recently seen key is the first.
            let mut naive: Vec<(String, Vec<u32>)> = Vec::new();
            for act in acts {
                match act {
                    Act::Batch(told) => {
                        let names: Vec<String> = told.iter().map(|(key, _)| key.to_string()).collect();
                        bounded.fetch(names.iter().map(String::as_str)).expect("fetched");
                        for (name, (_, number)) in names.iter().zip(&told) {
                            let slot = bounded.touch(name, Told::default);
                            let at = naive.iter().position(|(key, _)| key == name);
                            let (key, mut numbers) =
                                at.map_or((name.clone(), Vec::new()), |at| naive.remove(at));
                            prop_assert_eq!(&bounded.at(slot).1.numbers, &numbers);
                            bounded.at(slot).1.numbers.push(*number);
                            numbers.push(*number);
                            naive.push((key, numbers));
                        }
                        bounded.shrink(|_| unreachable!("nothing is lost")).expect("shrunk");
                        prop_assert!(bounded.len() <= bounded.capacity);
                        prop_assert!(bounded.waiting <= bounded.limits.waiting);
                    }
                    Act::Limit(capacity) => bounded.limit(capacity),
                    Act::VisitOpen => {
                        let mut visited = Vec::new();
                        bounded
                            .visit_open(|key, told| {
                                told.numbers.push(2);
                                visited.push(key.to_string());
                            })
                            .expect("visited");
                        let mut expected = Vec::new();
                        for (key, numbers) in &mut naive {
                            if numbers.last().is_some_and(|last| last % 2 == 1) {
                                numbers.push(2);
                                expected.push(key.clone());
                            }
                        }
                        prop_assert_eq!(visited, expected);
                    }
                    Act::Save => drop(save(&mut bounded, &store)),
                    Act::Reload(capacity) => {
                        let saved = save(&mut bounded, &store);
                        let loaded = Keys::load(&saved, capacity, &store, false).expect("loaded");
                        prop_assert!(loaded.len() <= loaded.capacity);
                        let before: Vec<u64> =
                            bounded.parts.values().map(|held| held.live).collect();
                        let after: Vec<u64> = loaded.parts.values().map(|held| held.live).collect();
                        prop_assert_eq!(before, after);
                        bounded = Keys { limits: bounded.limits, ..loaded };
                    }
                }
            }
            bounded.fetch(naive.iter().map(|(key, _)| key.as_str())).expect("fetched");
            prop_assert_eq!(bounded.len(), naive.len());
            for (key, numbers) in naive {
                let slot = bounded.touch(&key, || unreachable!("every key is held"));
                prop_assert_eq!(&bounded.at(slot).1.numbers, &numbers);
            }
        }
    }
}
