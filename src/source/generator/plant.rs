//! All machines of a plant, interleaved.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Array, Int64Array, RecordBatch, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::SchemaRef;

use super::fault::Fault;
use super::machine::Machine;
use crate::config;
use crate::decode::records_schema;

/// Event time of every machine's first sample: 2026-01-01T00:00:00Z, in microseconds.
pub const EPOCH: i64 = 1_767_225_600_000_000;

/// A plant of seasonal machines. Record `i` is sample `i / machines` of machine `i % machines`,
/// and is the same whatever the batches around it.
pub struct Plant {
    schema: SchemaRef,
    machines: Vec<Machine>,
    /// Microseconds between two samples of a machine.
    period: i64,
    /// Index of the next record.
    position: u64,
    /// The machine it comes from.
    turn: usize,
    faults: Vec<Fault>,
    /// Values of one record.
    row: Vec<f32>,
}

impl Plant {
    /// A plant at its first record; `channels` names what each machine measures. A plant without
    /// machines is given one.
    pub fn new(config: &config::GeneratorSource, channels: &[String]) -> Self {
        let machines = config.machines.max(1);
        let digits = (machines - 1).to_string().len();
        Self {
            schema: records_schema(channels),
            machines: (0..machines)
                .map(|index| {
                    let key = format!("machine-{index:0digits$}");
                    Machine::new(config, index, key.into(), channels)
                })
                .collect(),
            period: config.period.micros(),
            position: 0,
            turn: 0,
            faults: Vec::new(),
            row: vec![0.0; channels.len()],
        }
    }

    /// The next `rows` records, in [`records_schema`]; offsets count records from 0.
    pub fn next_batch(&mut self, rows: usize) -> RecordBatch {
        let key_length = self.machines[0].key().len();
        let mut keys = StringBuilder::with_capacity(rows, rows * key_length);
        let mut times = Vec::with_capacity(rows);
        let mut values = vec![Vec::with_capacity(rows); self.row.len()];
        let first_offset = self.position as i64;
        for _ in 0..rows {
            let machine = &self.machines[self.turn];
            keys.append_value(machine.key());
            times.push(event_time(self.period, machine.sample()));
            self.step();
            for (column, value) in values.iter_mut().zip(&self.row) {
                column.push(*value);
            }
        }
        let offsets = Int64Array::from_iter_values(first_offset..self.position as i64);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(keys.finish()),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
            Arc::new(offsets),
        ];
        columns.extend(values.into_iter().map(|column| Arc::new(Float32Array::from(column)) as _));
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .expect("as many columns as the schema has fields, all of `rows` values")
    }

    /// Leaves out the next `records`. Their faults are recorded.
    pub fn skip(&mut self, records: u64) {
        for _ in 0..records {
            self.step();
        }
    }

    /// Index of the next record.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Faults recorded and not yet taken, in the order of their onsets; those that still last
    /// have the end they will have.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The same faults, no longer kept.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Makes one record in `row`.
    fn step(&mut self) {
        let period = self.period;
        let machine = &mut self.machines[self.turn];
        self.faults.extend(machine.step(&mut self.row, |sample| event_time(period, sample)));
        self.position += 1;
        self.turn = if self.turn + 1 == self.machines.len() { 0 } else { self.turn + 1 };
    }
}

fn event_time(period: i64, sample: u64) -> i64 {
    let sample = i64::try_from(sample).unwrap_or(i64::MAX);
    EPOCH.saturating_add(period.saturating_mul(sample))
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::compute::concat_batches;
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

    use super::*;
    use crate::config::TimeSpan;
    use crate::decode::{KEY_COLUMN, OFFSET_COLUMN, TIME_COLUMN};

    fn plant() -> Plant {
        let config = config::GeneratorSource {
            machines: 3,
            period: TimeSpan::from_millis(250),
            fault_every: TimeSpan::from_secs(60),
            fault_after: TimeSpan::from_secs(10),
            ..Default::default()
        };
        Plant::new(&config, &["temperature".to_owned(), "flow".to_owned()])
    }

    #[test]
    fn a_record_is_the_same_whatever_the_batches_around_it() {
        let whole = plant().next_batch(5000);
        let mut plant = plant();

        let parts: Vec<_> = [1, 2, 3, 1000, 3994].map(|rows| plant.next_batch(rows)).to_vec();

        assert_eq!(concat_batches(&whole.schema(), &parts).unwrap(), whole);
    }

    #[test]
    fn skipped_records_leave_the_rest_and_the_faults_as_they_were() {
        let mut emitted = plant();
        let whole = emitted.next_batch(5000);
        let mut skipping = plant();

        skipping.skip(4321);

        assert_eq!(skipping.position(), 4321);
        assert_eq!(skipping.next_batch(679), whole.slice(4321, 679));
        assert!(!emitted.faults().is_empty());
        assert_eq!(skipping.faults(), emitted.faults());
    }

    #[test]
    fn machines_take_turns_and_share_the_clock() {
        let batch = plant().next_batch(5000);

        let keys = batch.column(KEY_COLUMN).as_string::<i32>();
        let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        let offsets = batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>();
        for row in 0..5000 {
            assert_eq!(keys.value(row), format!("machine-{}", row % 3));
            assert_eq!(times.value(row), EPOCH + row as i64 / 3 * 250_000);
            assert_eq!(offsets.value(row), row as i64);
        }
        assert_eq!(
            times.value_as_datetime(0).map(|time| time.to_string()),
            Some("2026-01-01 00:00:00".to_owned())
        );
    }

    #[test]
    fn faults_lie_on_the_event_times_of_their_machine() {
        let mut plant = plant();
        plant.skip(30_000);

        let faults = plant.take_faults();

        assert!(faults.len() > 20);
        assert!(plant.faults().is_empty());
        for fault in &faults {
            assert!(fault.from >= EPOCH + 10_000_000 && fault.to >= fault.from);
            assert_eq!((fault.from - EPOCH) % 250_000, 0);
        }
        for key in ["machine-0", "machine-1", "machine-2"] {
            assert!(faults.iter().any(|fault| *fault.key == *key), "{key}");
        }
    }
}
