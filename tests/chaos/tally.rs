//! Counts what came out against what should have.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Message { partition: i32, offset: i64 },
    Row { file: Arc<str>, row: usize },
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { partition, offset } => {
                write!(formatter, "partition {partition} offset {offset}")
            }
            Self::Row { file, row } => write!(formatter, "{file} row {row}"),
        }
    }
}

impl Place {
    /// Whether things found at the two places have an order: partitions and files keep one within.
    fn is_ordered_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Message { .. }, Self::Message { .. }) => true,
            (Self::Row { file, .. }, Self::Row { file: other, .. }) => file == other,
            _ => false,
        }
    }
}

/// Sequence numbers by key, each where it was found, in the order of reading.
#[derive(Clone, Debug)]
pub struct Found {
    keys: BTreeMap<String, Vec<(u64, Place)>>,
    ordered: bool,
}

/// What can be wrong with a (key, sequence).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Lost,
    Duplicated,
    OutOfOrder,
    /// Nobody expected it.
    Strange,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Lost, Self::Duplicated, Self::OutOfOrder, Self::Strange];
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::OutOfOrder => "out of order",
            Self::Strange => "not expected",
        })
    }
}

/// What is right and what is wrong with what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Distinct (key, sequence) that were expected and found.
    pub found: u64,
    /// How many of each fault, and the first in words.
    faults: BTreeMap<Fault, (u64, String)>,
}

impl Found {
    /// Numbers of a key come in order wherever there is one.
    pub fn in_order() -> Self {
        Self { keys: BTreeMap::new(), ordered: true }
    }

    /// Numbers come in any order.
    pub fn in_any_order() -> Self {
        Self { keys: BTreeMap::new(), ordered: false }
    }

    pub fn add(&mut self, key: &str, sequence: u64, place: Place) {
        match self.keys.get_mut(key) {
            Some(of_key) => of_key.push((sequence, place)),
            None => drop(self.keys.insert(key.to_owned(), vec![(sequence, place)])),
        }
    }

    /// Against `count` sequence numbers, from 0, of each of the keys.
    pub fn tally(&self, keys: &[String], count: u64) -> Tally {
        let mut tally = Tally::default();
        for key in keys {
            let of_key = self.keys.get(key).map_or(&[][..], Vec::as_slice);
            tally.take(key, of_key, count, self.ordered);
        }
        for (key, of_key) in &self.keys {
            if !keys.contains(key) {
                tally.take(key, of_key, 0, self.ordered);
            }
        }
        tally
    }
}

impl Tally {
    fn take(&mut self, key: &str, of_key: &[(u64, Place)], count: u64, ordered: bool) {
        let mut first: BTreeMap<u64, &Place> = BTreeMap::new();
        let mut last: Option<&(u64, Place)> = None;
        for found @ (sequence, place) in of_key {
            if let Some(before) = first.get(sequence) {
                self.note(Fault::Duplicated, || format!("{key} #{sequence}: {before}; {place}"));
                continue;
            }
            first.insert(*sequence, place);
            if let Some((earlier, at)) = last
                && ordered
                && earlier > sequence
                && at.is_ordered_with(place)
            {
                let example = || format!("{key} #{earlier}: {at}; #{sequence}: {place}");
                self.note(Fault::OutOfOrder, example);
            }
            last = Some(found);
        }
        for (sequence, place) in first.range(count..) {
            self.note(Fault::Strange, || format!("{key} #{sequence}: {place}"));
        }
        self.found += first.range(..count).count() as u64;
        for sequence in (0..count).filter(|sequence| !first.contains_key(sequence)) {
            let around = |found: Option<(&u64, &&Place)>| match found {
                Some((sequence, place)) => format!("#{sequence}: {place}"),
                None => "nothing".to_owned(),
            };
            let before = around(first.range(..sequence).next_back());
            let after = around(first.range(sequence..).next());
            let example = || format!("{key} #{sequence}, between {before} and {after}");
            self.note(Fault::Lost, example);
        }
    }

    /// Counts one; keeps the words for the first.
    fn note(&mut self, fault: Fault, example: impl FnOnce() -> String) {
        self.faults.entry(fault).or_insert_with(|| (0, example())).0 += 1;
    }

    pub fn count(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).map_or(0, |(count, _)| *count)
    }

    /// The first of a fault, in words.
    pub fn example(&self, fault: Fault) -> Option<&str> {
        self.faults.get(&fault).map(|(_, example)| example.as_str())
    }

    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sequences: &[u64], mut found: Found) -> Found {
        for (offset, sequence) in sequences.iter().enumerate() {
            let place = Place::Message { partition: 2, offset: offset as i64 };
            found.add("press-1", *sequence, place);
        }
        found
    }

    fn tally(sequences: &[u64], count: u64) -> Tally {
        found(sequences, Found::in_order()).tally(&["press-1".to_owned()], count)
    }

    #[test]
    fn everything_once_and_in_order_is_clean() {
        let tally = tally(&[0, 1, 2], 3);
        assert!(tally.is_clean());
        assert_eq!(tally.found, 3);
    }

    #[test]
    fn a_duplicate_is_told_with_both_places() {
        let tally = tally(&[0, 1, 0, 1, 2], 3);
        assert_eq!((tally.found, tally.faults.len()), (3, 1));
        assert_eq!(tally.count(Fault::Duplicated), 2);
        let example = "press-1 #0: partition 2 offset 0; partition 2 offset 2";
        assert_eq!(tally.example(Fault::Duplicated), Some(example));
    }

    #[test]
    fn a_loss_is_told_with_its_neighbours() {
        let tally = tally(&[0, 3], 4);
        assert_eq!((tally.found, tally.faults.len()), (2, 1));
        assert_eq!(tally.count(Fault::Lost), 2);
        let example = "press-1 #1, between #0: partition 2 offset 0 and #3: partition 2 offset 1";
        assert_eq!(tally.example(Fault::Lost), Some(example));
    }

    #[test]
    fn a_number_before_its_predecessor_is_out_of_order() {
        let tally = tally(&[0, 2, 1, 3], 4);
        assert_eq!((tally.count(Fault::OutOfOrder), tally.faults.len()), (1, 1));
        let unordered = found(&[0, 2, 1, 3], Found::in_any_order());
        assert!(unordered.tally(&["press-1".to_owned()], 4).is_clean());
    }

    #[test]
    fn numbers_and_keys_that_nobody_expected_are_strange() {
        assert_eq!(tally(&[0, 1, 2], 2).count(Fault::Strange), 1);
        assert_eq!(found(&[0], Found::in_order()).tally(&[], 1).count(Fault::Strange), 1);
    }

    #[test]
    fn rows_have_an_order_within_a_file_only() {
        let row = |file: &str, row| Place::Row { file: file.into(), row };
        let mut found = Found::in_order();
        found.add("press-1", 1, row("b", 0));
        found.add("press-1", 0, row("a", 0));
        assert!(found.tally(&["press-1".to_owned()], 2).is_clean());
        found.add("press-1", 3, row("c", 0));
        found.add("press-1", 2, row("c", 1));
        let tally = found.tally(&["press-1".to_owned()], 4);
        assert_eq!(tally.count(Fault::OutOfOrder), 1);
    }
}
