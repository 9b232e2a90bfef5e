//! Samples that wait for the watermark.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::templates::Tag;

/// Samples ahead of the watermark. Their values lie in rows that are used again, so that a sample
/// that comes and goes costs no allocation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Pending {
    /// By (time, arrival).
    heads: VecDeque<Head>,
    /// `[rows, channels]`: a row for each head, in any order, and vacant ones.
    values: Vec<f32>,
    vacant: Vec<u32>,
}

/// A sample but for its values.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub time: i64,
    pub offset: i64,
    pub tag: Option<Tag>,
    row: u32,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Whether the first sample is at or before `watermark`.
    pub fn is_due(&self, watermark: i64) -> bool {
        self.heads.front().is_some_and(|head| head.time <= watermark)
    }

    /// Adds a sample behind those that are not later.
    pub fn insert(&mut self, time: i64, offset: i64, values: &[f32], tag: Option<Tag>) {
        let row = match self.vacant.pop() {
            Some(row) => {
                self.row(row, values.len()).copy_from_slice(values);
                row
            }
            None => {
                self.values.extend_from_slice(values);
                self.heads.len() as u32
            }
        };
        let head = Head { time, offset, tag, row };
        if self.heads.back().is_none_or(|last| last.time <= time) {
            self.heads.push_back(head);
        } else {
            let at = self.heads.partition_point(|head| head.time <= time);
            self.heads.insert(at, head);
        }
    }

    /// Takes the first sample, if it is at or before `watermark`, and hands it to `take` with its
    /// values; returns whether there was one. All of them are of `channels` values.
    pub fn pop(
        &mut self,
        watermark: i64,
        channels: usize,
        take: impl FnOnce(Head, &mut [f32]),
    ) -> bool {
        let Some(head) = self.heads.pop_front_if(|head| head.time <= watermark) else {
            return false;
        };
        take(head, self.row(head.row, channels));
        self.vacant.push(head.row);
        true
    }

    /// Reads of memory what the next sample and the first one need.
    pub fn preview(&self, channels: usize) -> u32 {
        let front = self.heads.front().map_or(0, |head| head.row as usize * channels);
        let vacant = self.vacant.last().copied().unwrap_or(0);
        self.values.get(front).map_or(0, |value| value.to_bits()) ^ vacant
    }

    fn row(&mut self, row: u32, channels: usize) -> &mut [f32] {
        let start = row as usize * channels;
        &mut self.values[start..start + channels]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_leave_in_order_of_time_then_of_arrival_and_rows_are_used_again() {
        let mut pending = Pending::default();
        let mut left = Vec::new();
        for round in 0..5 {
            for (time, value) in [(2, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)] {
                pending.insert(time, round, &[value, -value], None);
            }
            assert!(pending.is_due(1) && !pending.is_due(0));
            while pending.pop(2, 2, |head, values| left.push((head.time, values.to_vec()))) {}
            while pending.pop(i64::MAX, 2, |head, values| left.push((head.time, values.to_vec()))) {
            }
            assert!(pending.is_empty());
        }
        let once = [(1, 1.0), (2, 0.0), (2, 2.0), (3, 3.0)].map(|(t, v)| (t, vec![v, -v]));
        assert_eq!(left, [(); 5].map(|()| once.clone()).concat());
        assert_eq!(pending.values.len(), 4 * 2);
    }
}
