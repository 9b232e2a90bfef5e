//! Counts what came out against what should have.

use std::collections::{BTreeMap, BTreeSet};
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
#[derive(Clone, Debug, Default)]
pub struct Found {
    keys: BTreeMap<String, Vec<(u64, Place)>>,
}

/// What is wrong with what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Distinct (key, sequence) that were expected and found.
    pub found: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    /// (key, sequence) that nobody expected.
    pub strange: u64,
    /// The first of each kind, in words.
    pub examples: Vec<String>,
}

impl Found {
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
            tally.take(key, of_key, count);
        }
        for (key, of_key) in &self.keys {
            if !keys.contains(key) {
                tally.take(key, of_key, 0);
            }
        }
        tally
    }
}

impl Tally {
    fn take(&mut self, key: &str, of_key: &[(u64, Place)], count: u64) {
        let mut first: BTreeMap<u64, &Place> = BTreeMap::new();
        let mut last: Option<&(u64, Place)> = None;
        for found @ (sequence, place) in of_key {
            if let Some(before) = first.insert(*sequence, place) {
                let example = || format!("{key} #{sequence} twice: {before}, {place}");
                note(&mut self.duplicated, &mut self.examples, example);
                continue;
            }
            if let Some((earlier, at)) = last
                && earlier > sequence
                && at.is_ordered_with(place)
            {
                let example = || format!("{key} #{sequence} after #{earlier}: {at}, {place}");
                note(&mut self.out_of_order, &mut self.examples, example);
            }
            last = Some(found);
        }
        let strange: BTreeSet<u64> = first.range(count..).map(|(sequence, _)| *sequence).collect();
        for sequence in &strange {
            let example = || format!("{key} #{sequence} is not expected: {}", first[sequence]);
            note(&mut self.strange, &mut self.examples, example);
        }
        self.found += (first.len() - strange.len()) as u64;
        for sequence in (0..count).filter(|sequence| !first.contains_key(sequence)) {
            let around = |found: Option<(&u64, &&Place)>| match found {
                Some((sequence, place)) => format!("#{sequence} at {place}"),
                None => "nothing".to_owned(),
            };
            let before = around(first.range(..sequence).next_back());
            let after = around(first.range(sequence..).next());
            let example = || format!("{key} #{sequence} lost: between {before} and {after}");
            note(&mut self.lost, &mut self.examples, example);
        }
    }

    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicated, self.out_of_order, self.strange) == (0, 0, 0, 0)
    }
}

/// Counts one; keeps the words for the first.
fn note(count: &mut u64, examples: &mut Vec<String>, example: impl FnOnce() -> String) {
    if *count == 0 {
        examples.push(example());
    }
    *count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sequences: &[u64]) -> Found {
        let mut found = Found::default();
        for (offset, sequence) in sequences.iter().enumerate() {
            let place = Place::Message { partition: 2, offset: offset as i64 };
            found.add("press-1", *sequence, place);
        }
        found
    }

    fn tally(sequences: &[u64], count: u64) -> Tally {
        found(sequences).tally(&["press-1".to_owned()], count)
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
        assert_eq!((tally.found, tally.duplicated, tally.lost), (3, 2, 0));
        let example = "press-1 #0 twice: partition 2 offset 0, partition 2 offset 2";
        assert_eq!(tally.examples, [example]);
    }

    #[test]
    fn a_loss_is_told_with_its_neighbours() {
        let tally = tally(&[0, 3], 4);
        assert_eq!((tally.found, tally.lost, tally.duplicated), (2, 2, 0));
        let example = "press-1 #1 lost: between #0 at partition 2 offset 0 and #3 at partition 2 \
                       offset 1";
        assert_eq!(tally.examples, [example]);
    }

    #[test]
    fn a_number_before_its_predecessor_is_out_of_order() {
        let tally = tally(&[0, 2, 1, 3], 4);
        assert_eq!((tally.out_of_order, tally.lost, tally.duplicated), (1, 0, 0));
    }

    #[test]
    fn numbers_and_keys_that_nobody_expected_are_strange() {
        assert_eq!(tally(&[0, 1, 2], 2).strange, 1);
        assert_eq!(found(&[0]).tally(&[], 1).strange, 1);
    }

    #[test]
    fn rows_have_an_order_within_a_file_only() {
        let row = |file: &str, row| Place::Row { file: file.into(), row };
        let mut found = Found::default();
        found.add("press-1", 1, row("b", 0));
        found.add("press-1", 0, row("a", 0));
        assert_eq!(found.tally(&["press-1".to_owned()], 2).out_of_order, 0);
        found.add("press-1", 3, row("c", 0));
        found.add("press-1", 2, row("c", 1));
        assert_eq!(found.tally(&["press-1".to_owned()], 4).out_of_order, 1);
    }
}
