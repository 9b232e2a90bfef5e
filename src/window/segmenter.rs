//! All keys of one lane.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};
use serde::{Deserialize, Serialize};

use super::key_window::{Cut, KeyWindow};
use super::{Segments, WindowShape};
use crate::decode::{FIRST_CHANNEL_COLUMN, KEY_COLUMN, OFFSET_COLUMN, TIME_COLUMN};
use crate::keys::KeyMap;
use crate::source::Lane;

/// A batch that is not in [`crate::decode::records_schema`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{lane}: expected columns key, time, offset and {channels} channels, found {found}")]
pub struct WindowError {
    lane: Lane,
    channels: usize,
    found: String,
}

/// What happened to records since the last [`Segmenter::take_stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowStats {
    /// Records behind their key's watermark, left out.
    pub late: u64,
    /// Runs ended by a gap longer than `max_gap`.
    pub gaps: u64,
    /// Keys whose clock was set back for good.
    pub clock_resets: u64,
    /// Keys dropped to make room.
    pub evicted: u64,
}

/// Cuts keyed record batches of one lane into event-time segments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segmenter {
    lane: Lane,
    shape: WindowShape,
    keys: KeyMap<KeyWindow>,
    /// Sequence number from which a new key counts: beyond those of all evicted keys, so that a
    /// key that comes back never repeats one.
    first_sequence: u64,
    /// Newest event time over all keys.
    max_time: Option<i64>,
    #[serde(skip)]
    stats: WindowStats,
}

impl Segmenter {
    /// A segmenter without keys. `max_keys` is at least 1.
    pub fn new(lane: Lane, shape: WindowShape, max_keys: usize) -> Self {
        Self {
            lane,
            shape,
            keys: KeyMap::new(max_keys),
            first_sequence: 0,
            max_time: None,
            stats: WindowStats::default(),
        }
    }

    /// Adds one batch in [`crate::decode::records_schema`]; returns the segments it completed.
    ///
    /// # Errors
    /// If the batch has other columns.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<Segments, WindowError> {
        let mismatch = || WindowError {
            lane: self.lane.clone(),
            channels: self.shape.channels,
            found: batch
                .schema()
                .fields()
                .iter()
                .map(|f| f.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        };
        if batch.num_columns() != FIRST_CHANNEL_COLUMN + self.shape.channels {
            return Err(mismatch());
        }
        let keys = batch.column(KEY_COLUMN).as_string_opt::<i32>().ok_or_else(mismatch)?;
        let times = batch
            .column(TIME_COLUMN)
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(mismatch)?
            .values();
        let offsets = batch
            .column(OFFSET_COLUMN)
            .as_primitive_opt::<Int64Type>()
            .ok_or_else(mismatch)?
            .values();
        let columns = batch.columns()[FIRST_CHANNEL_COLUMN..]
            .iter()
            .map(|column| column.as_primitive_opt::<Float32Type>().ok_or_else(mismatch))
            .collect::<Result<Vec<_>, _>>()?;

        let mut out = Segments::default();
        let mut sample = vec![f32::NAN; self.shape.channels];
        let mut previous: Option<(&str, usize)> = None;
        for row in 0..batch.num_rows() {
            for (value, column) in sample.iter_mut().zip(&columns) {
                *value = if column.is_valid(row) { column.value(row) } else { f32::NAN };
            }
            let key = keys.value(row);
            let slot = match previous {
                Some((same, slot)) if same == key => slot,
                _ => self.slot_of(key),
            };
            previous = Some((key, slot));
            let time = times[row];
            self.max_time = Some(self.max_time.map_or(time, |max| max.max(time)));
            let (key, window) = self.keys.at(slot);
            let cut = Cut { shape: &self.shape, lane: &self.lane, key };
            window.push(&cut, time, offsets[row], &sample, &mut out, &mut self.stats);
        }
        Ok(out)
    }

    /// Declares every record at or before `watermark` (microseconds) to have come: what a silent
    /// lane does once others have gone on without it. `i64::MAX` ends the stream.
    pub fn advance(&mut self, watermark: i64) -> Segments {
        let mut out = Segments::default();
        let Self { lane, shape, stats, .. } = self;
        self.keys.for_each(|key, window| {
            window.advance(&Cut { shape, lane, key }, watermark, &mut out, stats);
        });
        out
    }

    /// Newest event time seen less the lateness, microseconds.
    pub fn watermark(&self) -> Option<i64> {
        self.max_time.map(|time| time.saturating_sub(self.shape.lateness))
    }

    /// Number of keys held.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The lane served.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The shape it cuts to.
    pub fn shape(&self) -> &WindowShape {
        &self.shape
    }

    /// Counts since the last call.
    pub fn take_stats(&mut self) -> WindowStats {
        std::mem::take(&mut self.stats)
    }

    /// The slot of `key`, made the most recently seen; a new key may evict the oldest.
    fn slot_of(&mut self, key: &str) -> usize {
        let Self { keys, shape, first_sequence, stats, .. } = self;
        keys.touch(key, |evicted| {
            if let Some(window) = evicted {
                *first_sequence = (*first_sequence).max(window.next_sequence());
                stats.evicted += 1;
            }
            KeyWindow::new(shape, *first_sequence)
        })
    }
}
