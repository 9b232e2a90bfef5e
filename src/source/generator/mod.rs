//! Generated records, with injected, recorded faults: a plant of seasonal machines, and messages
//! of other kinds.
//!
//! | file | what it is |
//! | --- | --- |
//! | `machine.rs` | the signal of one machine, and what its faults do to it |
//! | `fault.rs` | kinds of faults, when they come and how large they are |
//! | `plant.rs` | [`Plant`]: all machines interleaved, as record batches |
//! | `messages.rs` | [`MessageStream`]: kinds that are made as bytes, and a folder of them |
//! | `logs.rs` | log lines of a few hosts |
//! | `patients.rs` | patients of a ward, as FHIR or as rows |
//! | `pace.rs` | records a second in real time |
//! | `write.rs` | records as JSON messages, JSON lines and CSV |

mod fault;
mod logs;
mod machine;
mod messages;
mod pace;
mod patients;
mod plant;
mod write;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use fault::{Fault, FaultKind};
pub use logs::{LogFault, LogFaultKind, LogLines};
pub use messages::{MessageFolder, MessageStream};
pub use pace::Schedule;
pub use patients::{Deterioration, DeteriorationKind, FhirMessages, RowFormat, RowMessages};
pub use plant::{EPOCH, Plant};
pub use write::{RecordFolder, json_messages, write_csv, write_json_lines};

use super::{Assignment, Commit, Event, Lane, Payload, Source, SourceBatch, SourceError};
use crate::config;
use crate::decode::Decoded;
use pace::Pace;

/// Channels of a plant where no pipeline file names any.
pub const DEFAULT_CHANNELS: [&str; 5] =
    ["temperature", "vibration", "pressure", "current", "speed"];

/// Most records of a batch.
const BATCH: usize = 4096;
/// Most faults kept for those who ask; beyond it the oldest half is forgotten.
const MOST_FAULTS: usize = 1 << 16;

/// A generated plant as a source: one lane that is always its own, offsets from 0.
pub struct GeneratorSource {
    plant: Plant,
    lane: Lane,
    /// Records still to come; `None`: without end.
    remaining: Option<u64>,
    /// `None`: as fast as records are taken.
    pace: Option<Pace>,
    paused: bool,
    /// Handed out first, once.
    assignment: Option<Assignment>,
    /// Shared with whoever compares alerts with the truth; locked once a batch.
    faults: Arc<Mutex<Vec<Fault>>>,
}

impl GeneratorSource {
    /// A plant whose first record is the one at `start_offset`; negative counts as 0. Getting
    /// there simulates all records before, some millions a second.
    pub fn new(config: &config::GeneratorSource, channels: &[String], start_offset: i64) -> Self {
        let start = u64::try_from(start_offset).unwrap_or(0);
        let lane = Lane::new("generator", 0);
        let committed = (start > 0).then(|| (start_offset, String::new()));
        let mut plant = Plant::new(config, channels);
        plant.skip(start);
        let mut source = Self {
            plant,
            assignment: Some(Assignment { lane: lane.clone(), committed }),
            lane,
            remaining: (config.count > 0).then(|| config.count.saturating_sub(start)),
            pace: (config.rate > 0.0).then(|| Pace::new(config.rate, BATCH, Instant::now())),
            paused: false,
            faults: Arc::default(),
        };
        source.publish_faults();
        source
    }

    /// The faults injected so far, those before the start offset included. Whoever empties the
    /// list gets each fault once.
    pub fn faults(&self) -> Arc<Mutex<Vec<Fault>>> {
        Arc::clone(&self.faults)
    }

    fn publish_faults(&mut self) {
        let recent = self.plant.take_faults();
        if recent.is_empty() {
            return;
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.extend(recent);
        if faults.len() > MOST_FAULTS {
            let forgotten = faults.len() - MOST_FAULTS / 2;
            faults.drain(..forgotten);
        }
    }
}

impl Source for GeneratorSource {
    fn poll(&mut self, timeout: Duration) -> Result<Event, SourceError> {
        if let Some(assignment) = self.assignment.take() {
            return Ok(Event::Assigned(vec![assignment]));
        }
        if self.remaining == Some(0) {
            return Ok(Event::End);
        }
        if self.paused {
            std::thread::sleep(timeout);
            return Ok(Event::Idle);
        }
        let mut rows = BATCH;
        if let Some(pace) = &mut self.pace {
            let wait = pace.wait(Instant::now());
            std::thread::sleep(wait.min(timeout));
            if wait > timeout {
                return Ok(Event::Idle);
            }
            rows = pace.take(Instant::now());
        }
        if let Some(remaining) = &mut self.remaining {
            rows = rows.min(usize::try_from(*remaining).unwrap_or(usize::MAX));
            *remaining -= rows as u64;
        }
        let records = self.plant.next_batch(rows);
        self.publish_faults();
        Ok(Event::Batch(SourceBatch {
            lane: self.lane.clone(),
            next_offset: self.plant.position() as i64,
            appended_ms: now_ms(),
            payload: Payload::Decoded(Decoded {
                records,
                dead_letters: Vec::new(),
                skipped: 0,
                out_of_range: 0,
            }),
        }))
    }

    fn pause(&mut self, paused: bool) -> Result<(), SourceError> {
        if let Some(pace) = self.pace.as_mut().filter(|_| self.paused && !paused) {
            pace.restart(Instant::now());
        }
        self.paused = paused;
        Ok(())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn committer(&self) -> Option<Box<dyn Commit>> {
        None
    }
}

fn now_ms() -> Option<i64> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since_epoch.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::Int64Type;

    use super::*;
    use crate::config::TimeSpan;
    use crate::decode::OFFSET_COLUMN;

    fn channels() -> Vec<String> {
        DEFAULT_CHANNELS.map(str::to_owned).to_vec()
    }

    /// A source that has handed out its lane.
    fn assigned(config: &config::GeneratorSource, start_offset: i64) -> GeneratorSource {
        let mut source = GeneratorSource::new(config, &channels(), start_offset);
        match source.poll(Duration::ZERO) {
            Ok(Event::Assigned(_)) => source,
            other => panic!("{other:?}"),
        }
    }

    /// Polls until the end; the batches and the offset after the last one.
    fn drain(source: &mut GeneratorSource) -> (Vec<RecordBatch>, i64) {
        let mut batches = Vec::new();
        let mut next = 0;
        loop {
            match source.poll(Duration::from_secs(1)).unwrap() {
                Event::Batch(batch) => {
                    next = batch.next_offset;
                    let Payload::Decoded(decoded) = batch.payload else { panic!("undecoded") };
                    batches.push(decoded.records);
                }
                Event::End => return (batches, next),
                other => panic!("{other:?}"),
            }
        }
    }

    fn offsets(batches: &[RecordBatch]) -> Vec<i64> {
        let column =
            |batch: &RecordBatch| batch.column(OFFSET_COLUMN).as_primitive::<Int64Type>().clone();
        batches.iter().flat_map(|batch| column(batch).values().to_vec()).collect()
    }

    #[test]
    fn a_bounded_plant_hands_out_its_count_and_ends() {
        let config = config::GeneratorSource { count: 10_000, ..Default::default() };
        let mut source = assigned(&config, 0);

        let (batches, next) = drain(&mut source);

        assert_eq!(offsets(&batches), (0..10_000).collect::<Vec<_>>());
        assert_eq!(next, 10_000);
        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::End)), "and stays at its end");
    }

    #[test]
    fn a_plant_goes_on_where_it_was_committed() {
        let config = config::GeneratorSource { count: 5_000, ..Default::default() };
        let (whole, _) = drain(&mut assigned(&config, 0));

        let (rest, next) = drain(&mut assigned(&config, 4_500));

        assert_eq!(next, 5_000);
        assert_eq!(rest, [whole[1].slice(4_500 - BATCH, 500)]);
    }

    #[test]
    fn the_lane_is_handed_out_first_with_the_offset_it_goes_on_from() {
        let lane = Lane::new("generator", 0);
        for (start, committed) in [(0, None), (7, Some((7, String::new())))] {
            let mut source = GeneratorSource::new(&Default::default(), &channels(), start);

            let Ok(Event::Assigned(assigned)) = source.poll(Duration::ZERO) else {
                panic!("no assignment")
            };

            assert_eq!(assigned, [Assignment { lane: lane.clone(), committed }]);
            assert!(matches!(source.poll(Duration::ZERO), Ok(Event::Batch(_))));
        }
    }

    #[test]
    fn a_start_beyond_the_count_is_the_end() {
        let config = config::GeneratorSource { count: 10, ..Default::default() };
        let mut source = assigned(&config, 11);

        assert!(matches!(source.poll(Duration::ZERO), Ok(Event::End)));
    }

    #[test]
    fn a_paced_or_paused_plant_is_idle_until_records_are_due() {
        let config = config::GeneratorSource { rate: 1e-3, ..Default::default() };
        let mut paced = assigned(&config, 0);
        let mut paused = assigned(&Default::default(), 0);
        paused.pause(true).unwrap();

        assert!(matches!(paced.poll(Duration::ZERO), Ok(Event::Idle)));
        assert!(matches!(paused.poll(Duration::ZERO), Ok(Event::Idle)));
        paused.pause(false).unwrap();
        assert!(matches!(paused.poll(Duration::ZERO), Ok(Event::Batch(_))));
    }

    #[test]
    fn faults_are_shared_as_they_are_injected() {
        let config = config::GeneratorSource {
            count: 100_000,
            fault_after: TimeSpan::from_secs(100),
            fault_every: TimeSpan::from_secs(500),
            ..Default::default()
        };
        let mut source = assigned(&config, 0);
        let faults = source.faults();
        assert!(faults.lock().unwrap().is_empty());

        drain(&mut source);

        let mut plant = Plant::new(&config, &channels());
        plant.skip(100_000);
        assert!(!plant.faults().is_empty());
        assert_eq!(*faults.lock().unwrap(), plant.faults());
    }
}
