//! Kinds of faults, when they come and how large they are.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rand::RngExt;
use rand_distr::Exp1;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use crate::config;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// One to three samples far off.
    Spike,
    /// The channel's level moves and moves back.
    LevelShift,
    /// The channel's seasons run several times as fast.
    ChangedFrequency,
    /// The channel repeats its last value.
    StuckSensor,
    /// The channel follows a load of its own instead of the machine's.
    LostCorrelation,
}

impl FaultKind {
    /// Every kind; the last one needs a machine of several channels.
    pub const ALL: [Self; 5] = [
        Self::Spike,
        Self::LevelShift,
        Self::ChangedFrequency,
        Self::StuckSensor,
        Self::LostCorrelation,
    ];

    /// Samples it lasts. A season or a correlation must be seen for a while to be seen to change.
    fn samples(self) -> RangeInclusive<u64> {
        match self {
            Self::Spike => 1..=3,
            Self::LevelShift | Self::StuckSensor => 30..=120,
            Self::ChangedFrequency | Self::LostCorrelation => 60..=120,
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spike => "spike",
            Self::LevelShift => "level shift",
            Self::ChangedFrequency => "changed frequency",
            Self::StuckSensor => "stuck sensor",
            Self::LostCorrelation => "lost correlation",
        })
    }
}

/// An injected fault: the truth that alerts are measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The machine.
    pub key: Arc<str>,
    /// Index of the channel in `records.channels`.
    pub channel: usize,
    pub kind: FaultKind,
    /// Event time of the first sample it touches, microseconds since the epoch.
    pub from: i64,
    /// Event time of the last sample it touches, microseconds since the epoch.
    pub to: i64,
    /// Spike: standard deviations of the channel's noise. Level shift: standard deviations of the
    /// channel. Changed frequency: the factor. Others: 0.
    pub size: f32,
}

/// The onset of a fault, in samples of its machine.
pub(super) struct Onset {
    pub channel: usize,
    pub kind: FaultKind,
    pub samples: u64,
    pub size: f64,
}

/// Draws a machine's faults, never two at a time.
pub(super) struct FaultPlan {
    /// Apart from the signal's, so that a plant without faults is the same plant.
    rng: Pcg64Mcg,
    channels: usize,
    /// Mean number of samples from one onset to the next; `None`: no faults.
    mean_samples: Option<f64>,
    next: u64,
}

impl FaultPlan {
    pub fn new(config: &config::GeneratorSource, channels: usize, rng: Pcg64Mcg) -> Self {
        let period = config.period.micros().max(1) as f64;
        let mean_samples = config.fault_every.micros() as f64 / period;
        let mut plan = Self {
            rng,
            channels,
            mean_samples: (mean_samples > 0.0 && channels > 0).then_some(mean_samples),
            next: (config.fault_after.micros() as f64 / period).ceil() as u64,
        };
        plan.next = plan.next.saturating_add(plan.interval());
        plan
    }

    /// The fault that begins at `sample`, if one does.
    pub fn onset(&mut self, sample: u64) -> Option<Onset> {
        if sample < self.next || self.mean_samples.is_none() {
            return None;
        }
        let kinds = FaultKind::ALL.len() - usize::from(self.channels == 1);
        let kind = FaultKind::ALL[self.rng.random_range(0..kinds)];
        let onset = Onset {
            channel: self.rng.random_range(0..self.channels),
            kind,
            samples: self.rng.random_range(kind.samples()),
            size: self.size(kind),
        };
        // A fault drawn while another lasts follows it after one good sample.
        self.next = sample.saturating_add(self.interval().max(onset.samples + 1));
        Some(onset)
    }

    pub fn rng(&mut self) -> &mut Pcg64Mcg {
        &mut self.rng
    }

    fn interval(&mut self) -> u64 {
        let mean = self.mean_samples.unwrap_or(f64::INFINITY);
        (self.rng.sample::<f64, _>(Exp1) * mean).round() as u64
    }

    fn size(&mut self, kind: FaultKind) -> f64 {
        let up = self.rng.random_bool(0.5);
        match kind {
            // Well beyond what the noise does by itself: one sample in 64 is wider.
            FaultKind::Spike => signed(up, self.rng.random_range(12.0..24.0)),
            FaultKind::LevelShift => signed(up, self.rng.random_range(3.0..6.0)),
            FaultKind::ChangedFrequency => self.rng.random_range(3.0..6.0),
            FaultKind::StuckSensor | FaultKind::LostCorrelation => 0.0,
        }
    }
}

fn signed(positive: bool, size: f64) -> f64 {
    if positive { size } else { -size }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::config::TimeSpan;

    fn onsets(
        config: &config::GeneratorSource,
        channels: usize,
        samples: u64,
    ) -> Vec<(u64, Onset)> {
        let mut plan = FaultPlan::new(config, channels, Pcg64Mcg::seed_from_u64(1));
        (0..samples).filter_map(|at| plan.onset(at).map(|onset| (at, onset))).collect()
    }

    #[test]
    fn faults_come_as_often_as_asked_and_not_before_their_time() {
        let config = config::GeneratorSource {
            period: TimeSpan::from_millis(500),
            fault_every: TimeSpan::from_secs(1000),
            fault_after: TimeSpan::from_secs(3000),
            ..Default::default()
        };

        let onsets = onsets(&config, 5, 4_000_000);

        assert!(onsets[0].0 >= 6000);
        let mean = 4_000_000.0 / onsets.len() as f64;
        assert!((mean / 2000.0 - 1.0).abs() < 0.1, "every {mean} samples");
    }

    #[test]
    fn faults_of_one_machine_do_not_overlap() {
        let config = config::GeneratorSource {
            fault_every: TimeSpan::from_secs(20),
            fault_after: TimeSpan::default(),
            ..Default::default()
        };

        let onsets = onsets(&config, 5, 100_000);

        assert!(onsets.len() > 500);
        for pair in onsets.windows(2) {
            assert!(pair[0].0 + pair[0].1.samples < pair[1].0);
        }
    }

    #[test]
    fn every_kind_and_channel_is_drawn_within_its_bounds() {
        let config =
            config::GeneratorSource { fault_every: TimeSpan::from_secs(100), ..Default::default() };

        let onsets = onsets(&config, 3, 1_000_000);

        for kind in FaultKind::ALL {
            let sizes: Vec<f64> = onsets
                .iter()
                .filter(|(_, onset)| onset.kind == kind)
                .map(|(_, onset)| {
                    assert!(kind.samples().contains(&onset.samples));
                    onset.size.abs()
                })
                .collect();
            let bounds = match kind {
                FaultKind::Spike => 12.0..=24.0,
                FaultKind::LevelShift => 3.0..=6.0,
                FaultKind::ChangedFrequency => 3.0..=6.0,
                FaultKind::StuckSensor | FaultKind::LostCorrelation => 0.0..=0.0,
            };
            assert!(sizes.len() > 100, "{kind}");
            assert!(sizes.iter().all(|size| bounds.contains(size)), "{kind}");
        }
        for channel in 0..3 {
            assert!(onsets.iter().any(|(_, onset)| onset.channel == channel));
        }
    }

    #[test]
    fn a_single_channel_has_no_correlation_to_lose() {
        let config =
            config::GeneratorSource { fault_every: TimeSpan::from_secs(100), ..Default::default() };

        let onsets = onsets(&config, 1, 200_000);

        assert!(!onsets.is_empty());
        assert!(onsets.iter().all(|(_, onset)| onset.kind != FaultKind::LostCorrelation));
    }

    #[test]
    fn no_faults_come_where_none_are_asked_for() {
        let config = config::GeneratorSource {
            fault_every: TimeSpan::default(),
            fault_after: TimeSpan::default(),
            ..Default::default()
        };

        assert!(onsets(&config, 5, 100_000).is_empty());
    }
}
