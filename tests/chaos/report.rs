//! What a run did, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::plan::Blow;
use crate::tally::{Fault, Tally};

pub struct Report {
    pub seed: u64,
    /// Processes killed, by a signal or at a step.
    pub kills: u64,
    /// How often processes died at each step.
    pub steps: Vec<(&'static str, u64)>,
    pub blows: BTreeMap<Blow, u64>,
    pub starts: u64,
    pub rewinds: u64,
    /// What was written, and how many segments it makes.
    pub records: u64,
    pub segments: u64,
    pub letters: u64,
    /// By place: segments of two topics and of files, dead letters of a topic and of files.
    pub tallies: Vec<(&'static str, Tally)>,
    pub files: usize,
    /// Files of results that lie about still, and files in the store.
    pub staged: usize,
    pub checkpoints: usize,
    /// Longest time without a result while nothing was disturbed.
    pub stall: Duration,
    pub wall: Duration,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.tallies.iter().all(|(_, tally)| tally.is_clean())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |what: &dyn fmt::Display, value: &dyn fmt::Display| {
            writeln!(formatter, "| {what} | {value} |")
        };
        row(&"chaos", &format_args!("seed {}", self.seed))?;
        row(&"---", &"---:")?;
        row(&"kills", &self.kills)?;
        for (blow, count) in &self.blows {
            if !matches!(blow, Blow::Step(_)) {
                row(blow, count)?;
            }
        }
        for (step, count) in &self.steps {
            row(&format_args!("killed at `{step}`"), count)?;
        }
        row(&"processes started", &self.starts)?;
        row(&"rewound in place", &self.rewinds)?;
        row(&"records", &self.records)?;
        row(&"segments", &self.segments)?;
        row(&"dead letters", &self.letters)?;
        for (place, tally) in &self.tallies {
            row(&format_args!("{place}: found"), &tally.found)?;
            for fault in Fault::ALL {
                row(&format_args!("{place}: {fault}"), &tally.count(fault))?;
            }
        }
        row(&"files published", &self.files)?;
        row(&"files left staged", &self.staged)?;
        row(&"files in the store", &self.checkpoints)?;
        row(&"longest stall, s", &format_args!("{:.1}", self.stall.as_secs_f64()))?;
        row(&"wall time, s", &format_args!("{:.0}", self.wall.as_secs_f64()))?;
        for (place, tally) in &self.tallies {
            for fault in Fault::ALL {
                if let Some(example) = tally.example(fault) {
                    writeln!(formatter, "{place}: {fault}: {example}")?;
                }
            }
        }
        Ok(())
    }
}
