//! Samples that wait for the watermark.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::words::{HEAD, halves, numbers, whole, words};
use crate::templates::Tag;

/// Words of a template's id and weight.
const TAG: usize = 3;

/// Samples ahead of the watermark, by (time, arrival): a ring of rows, each of which holds all of a
/// sample, so that one that comes and goes costs no allocation and little memory is touched.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// `[room, width]`: values, time and offset, and of lines the template.
    rows: Box<[f32]>,
    room: u32,
    /// Row of the first sample.
    first: u32,
    count: u32,
    /// Values of a sample.
    channels: u32,
    has_tags: bool,
}

/// A sample but for its values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub time: i64,
    pub offset: i64,
    pub tag: Option<Tag>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the first sample is at or before `watermark`.
    pub fn is_due(&self, watermark: i64) -> bool {
        self.count > 0 && self.time(0) <= watermark
    }

    /// Adds a sample behind those that are not later. All samples have as many values, and either
    /// all of them or none a template.
    pub fn insert(&mut self, head: Head, values: &[f32]) {
        if self.count == self.room {
            self.grow(values.len() as u32, head.tag.is_some());
        }
        let mut at = self.count;
        self.count += 1;
        if at > 0 && self.time(at - 1) > head.time {
            at = self.make_room(head.time);
        }
        let row = self.row_mut(at);
        let (sample, rest) = row.split_at_mut(values.len());
        sample.copy_from_slice(values);
        rest[..HEAD].copy_from_slice(&words(head.time, head.offset));
        if let Some(Tag { template, weight }) = head.tag {
            let [low, high] = halves(template as i64);
            rest[HEAD..].copy_from_slice(&[low, high, weight]);
        }
    }

    /// Takes the first sample, if it is at or before `watermark`, and hands it to `take` with its
    /// values; returns whether there was one.
    pub fn pop(&mut self, watermark: i64, take: impl FnOnce(Head, &mut [f32])) -> bool {
        if !self.is_due(watermark) {
            return false;
        }
        let (channels, has_tags) = (self.channels as usize, self.has_tags);
        let (values, rest) = self.row_mut(0).split_at_mut(channels);
        take(head(rest, has_tags), values);
        self.first = if self.first + 1 == self.room { 0 } else { self.first + 1 };
        self.count -= 1;
        true
    }

    /// Reads of memory what the next sample and the first one need.
    pub fn preview(&self) -> u32 {
        let width = self.width();
        let read = |at: u32| {
            let start = self.place(at) * width;
            let words = [start, start + width.max(1) - 1].map(|word| self.rows.get(word));
            words.into_iter().flatten().fold(0, |read, word| read ^ word.to_bits())
        };
        read(0) ^ read(self.count)
    }

    /// Words of a sample.
    fn width(&self) -> usize {
        self.channels as usize + HEAD + if self.has_tags { TAG } else { 0 }
    }

    /// The row of sample `at`.
    fn place(&self, at: u32) -> usize {
        let row = self.first + at;
        (if row < self.room { row } else { row - self.room }) as usize
    }

    fn row(&self, at: u32) -> &[f32] {
        let (row, width) = (self.place(at), self.width());
        &self.rows[row * width..(row + 1) * width]
    }

    fn row_mut(&mut self, at: u32) -> &mut [f32] {
        let (row, width) = (self.place(at), self.width());
        &mut self.rows[row * width..(row + 1) * width]
    }

    fn time(&self, at: u32) -> i64 {
        let words = &self.row(at)[self.channels as usize..];
        whole([words[0], words[1]])
    }

    /// Room for half as many samples again.
    fn grow(&mut self, channels: u32, has_tags: bool) {
        let count = self.count;
        let mut larger = Self { channels, has_tags, ..Self::default() };
        let room = count + (count / 2).max(2);
        let words = room as usize * larger.width();
        let mut rows = Vec::with_capacity(words);
        (0..count).for_each(|at| rows.extend_from_slice(self.row(at)));
        rows.resize(words, 0.0);
        (larger.rows, larger.room, larger.count) = (rows.into(), room, count);
        *self = larger;
    }

    /// Moves samples on, of those before or behind it the fewer, so that there is a row for one of
    /// `time` where the last is vacant; returns the number of that row.
    fn make_room(&mut self, time: i64) -> u32 {
        let last = self.count - 1;
        let (mut low, mut high) = (0, last);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.time(middle) <= time {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low <= last / 2 {
            self.first = self.first.checked_sub(1).unwrap_or(self.room - 1);
            (0..low).for_each(|at| self.copy_row(at + 1, at));
        } else {
            (low..last).rev().for_each(|at| self.copy_row(at, at + 1));
        }
        low
    }

    fn copy_row(&mut self, from: u32, to: u32) {
        let (from, to, width) = (self.place(from), self.place(to), self.width());
        self.rows.copy_within(from * width..(from + 1) * width, to * width);
    }
}

/// What lies behind the values of a row.
fn head(words: &[f32], has_tag: bool) -> Head {
    let (time, offset) = numbers(words);
    let tag = has_tag.then(|| Tag {
        template: whole([words[HEAD], words[HEAD + 1]]) as u64,
        weight: words[HEAD + 2],
    });
    Head { time, offset, tag }
}

/// Saved as samples with their values, in order.
impl Serialize for Pending {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((0..self.count).map(|at| {
            let (values, rest) = self.row(at).split_at(self.channels as usize);
            (head(rest, self.has_tags), values)
        }))
    }
}

impl<'de> Deserialize<'de> for Pending {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let samples: Vec<(Head, Vec<f32>)> = Deserialize::deserialize(deserializer)?;
        let kind = |(head, values): &(Head, Vec<f32>)| (head.tag.is_some(), values.len());
        if samples.windows(2).any(|two| kind(&two[0]) != kind(&two[1])) {
            return Err(D::Error::custom("samples of more than one kind"));
        }
        let mut pending = Self::default();
        samples.iter().for_each(|(head, values)| pending.insert(*head, values));
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(time: i64, offset: i64) -> Head {
        Head { time, offset, tag: None }
    }

    #[test]
    fn samples_leave_in_order_of_time_then_of_arrival_and_rows_are_used_again() {
        let mut pending = Pending::default();
        let mut left = Vec::new();
        for round in 0..5 {
            for (time, value) in [(2, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)] {
                pending.insert(at(time, round), &[value, -value]);
            }
            assert!(pending.is_due(1) && !pending.is_due(0));
            while pending.pop(2, |head, values| left.push((head.time, values.to_vec()))) {}
            while pending.pop(i64::MAX, |head, values| left.push((head.time, values.to_vec()))) {}
            assert!(pending.is_empty());
        }
        let once = [(1, 1.0), (2, 0.0), (2, 2.0), (3, 3.0)].map(|(t, v)| (t, vec![v, -v]));
        assert_eq!(left, [(); 5].map(|()| once.clone()).concat());
        assert_eq!(pending.room, 4);
    }

    proptest! {
        #[test]
        fn it_is_a_list_that_is_sorted_by_time_in_whatever_order_samples_come_and_go(
            acts in prop::collection::vec((0..30_i64, any::<bool>()), 0..100),
            has_tags in any::<bool>(),
        ) {
            let mut pending = Pending::default();
            let mut expected: Vec<(Head, Vec<f32>)> = Vec::new();
            for (number, (time, take)) in acts.into_iter().enumerate() {
                if take {
                    let mut taken = Vec::new();
                    while pending.pop(time, |head, values| taken.push((head, values.to_vec()))) {}
                    let due = expected.partition_point(|(head, _)| head.time <= time);
                    prop_assert_eq!(taken, expected.drain(..due).collect::<Vec<_>>());
                } else {
                    let number = number as f32;
                    let tag = Tag { template: u64::MAX - time as u64, weight: -number };
                    let head = Head { tag: has_tags.then_some(tag), ..at(time, -time) };
                    let at = expected.partition_point(|(head, _)| head.time <= time);
                    pending.insert(head, &[number, number + 0.5]);
                    expected.insert(at, (head, vec![number, number + 0.5]));
                }
                let saved = postcard::to_stdvec(&pending).expect("saved");
                pending = postcard::from_bytes(&saved).expect("loaded");
            }
        }
    }
}
