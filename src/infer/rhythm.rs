//! How often a key's records come, and the windows that suit it.

use rustc_hash::FxHashMap;

use super::fields::{Roles, row_times};
use super::table::Table;
use crate::config::{Layout, TimeSpan};

/// Samples of a segment where no rhythm asks for another number.
const LENGTH: usize = 64;
/// Lines of a segment.
const LINES: usize = 32;
/// Longest segment that is proposed.
const LONGEST: usize = 512;
/// Records a second, over all keys, up to which every sample gets a segment of its own.
const ONE_BY_ONE: f64 = 200.0;
/// Samples in which a period is looked for.
const PERIOD_SAMPLES: usize = 8_192;

/// When records come.
#[derive(Clone, Debug, PartialEq)]
pub struct Rhythm {
    /// Keys in the sample.
    pub keys: usize,
    /// Records of the key in the middle.
    pub records_per_key: usize,
    /// Median time between two records of a key, microseconds; of a long layout, between two
    /// records of one code. `None` where no time passes.
    pub step: Option<f64>,
    /// Whether nearly all records come in that step.
    pub regular: bool,
    /// Share of records that have the time of another one of their key.
    pub repeated: f64,
    /// How far a record lies behind the newest of its key at most, microseconds.
    pub behind: f64,
    /// Longest time between two records of a key, microseconds.
    pub gap: f64,
    /// Samples after which a channel looks like itself again.
    pub period: Option<usize>,
}

/// `[windows]` that suit a rhythm.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowProposal {
    pub length: usize,
    pub stride: usize,
    pub resample: Option<TimeSpan>,
    pub max_gap: Option<TimeSpan>,
    pub lateness: TimeSpan,
}

impl Rhythm {
    /// Of `table`, whose times pass `scale` times as fast as they say.
    pub fn of(table: &Table, roles: &Roles, scale: f64) -> Self {
        let times = row_times(table, roles);
        let key = roles.key.as_ref().and_then(|key| table.place(key));
        let code = roles.code.as_ref().and_then(|(code, _)| table.place(code));
        let key_of = |row: usize| {
            let origin = &table.origins()[row];
            let name = match (key, &origin.key) {
                (Some(place), _) => table.column(place)[row].to_string(),
                (None, Some(key)) => key.clone(),
                (None, None) => String::new(),
            };
            // A key of the messages or the records is the same in every piece.
            let piece = if name.is_empty() { origin.piece } else { 0 };
            (piece, name)
        };
        let mut counts: FxHashMap<(usize, String), usize> = FxHashMap::default();
        let mut series: FxHashMap<(usize, String, String), Vec<(usize, f64)>> =
            FxHashMap::default();
        for (row, time) in times.iter().enumerate() {
            let Some(time) = time else { continue };
            let (piece, key) = key_of(row);
            *counts.entry((piece, key.clone())).or_default() += 1;
            let code = code.map(|place| table.column(place)[row].to_string()).unwrap_or_default();
            let piece = table.origins()[row].piece;
            series.entry((piece, key, code)).or_default().push((row, time * scale));
        }
        let mut per_key: Vec<usize> = counts.values().copied().collect();
        per_key.sort_unstable();

        let (mut steps, mut repeated, mut behind) = (Vec::new(), 0, 0.0_f64);
        let mut longest: &[(usize, f64)] = &[];
        for rows in series.values() {
            let mut newest = f64::NEG_INFINITY;
            for (_, time) in rows {
                if *time > newest {
                    if newest.is_finite() {
                        steps.push(time - newest);
                    }
                    newest = *time;
                } else if *time == newest {
                    repeated += 1;
                } else {
                    behind = behind.max(newest - time);
                }
            }
            let first = |rows: &[(usize, f64)]| rows.first().map(|(row, _)| *row);
            let is_longer = (rows.len(), std::cmp::Reverse(first(rows)))
                > (longest.len(), std::cmp::Reverse(first(longest)));
            if is_longer {
                longest = rows;
            }
        }
        steps.sort_unstable_by(f64::total_cmp);
        let step = steps.get(steps.len() / 2).copied();
        let regular = step.is_some_and(|step| {
            let near = steps.iter().filter(|other| (*other / step - 1.0).abs() <= 0.1).count();
            near as f64 >= 0.9 * steps.len() as f64
        });
        let total: usize = per_key.iter().sum();
        Self {
            keys: per_key.len(),
            records_per_key: per_key.get(per_key.len() / 2).copied().unwrap_or_default(),
            step,
            regular,
            repeated: repeated as f64 / total.max(1) as f64,
            behind,
            gap: steps.last().copied().unwrap_or_default(),
            period: if regular { period(table, roles, longest) } else { None },
        }
    }

    /// Windows for records that come like this. `live` says that more are to come.
    pub fn windows(&self, layout: Layout, live: bool) -> WindowProposal {
        let Some(step) = self.step else {
            let lateness = TimeSpan::from_secs(5);
            return WindowProposal {
                length: LENGTH,
                stride: 8,
                resample: None,
                max_gap: None,
                lateness,
            };
        };
        // Codes of a long layout meet on a grid; so do samples that come when they like.
        let on_grid = layout == Layout::Long
            || (layout == Layout::Wide && (!self.regular || self.repeated > 0.01));
        let mut length = match self.period {
            Some(period) => period.next_power_of_two().clamp(LENGTH, LONGEST),
            None if layout == Layout::Log => LINES,
            None => LENGTH,
        };
        // Of what is there, a key should give many segments.
        if !live {
            while length > 8 && length * 20 > self.records_per_key {
                length /= 2;
            }
        }
        let rate = self.keys as f64 * 1e6 / step;
        let stride = if layout == Layout::Log {
            (length / 8).max(1)
        } else if rate <= ONE_BY_ONE {
            1
        } else {
            (length / 8).max(1)
        };
        let lateness = if self.behind > 0.0 {
            nice(self.behind * 1.5)
        } else if live {
            TimeSpan::from_secs(5)
        } else {
            TimeSpan::default()
        };
        // Lines of a log come when they like: silence is no gap.
        let max_gap = (layout != Layout::Log).then(|| nice(10.0 * step));
        WindowProposal {
            length,
            stride,
            resample: on_grid.then(|| nice(step * 0.9)),
            max_gap,
            lateness,
        }
    }
}

/// Samples after which channels look like themselves again: the highest autocorrelation after it
/// first fell, averaged over the first channels of the longest series.
fn period(table: &Table, roles: &Roles, series: &[(usize, f64)]) -> Option<usize> {
    const CHANNELS: usize = 4;
    const SURE: f64 = 0.4;
    const FALLEN: f64 = 0.2;
    if roles.layout != Layout::Wide {
        return None;
    }
    let rows = &series[..series.len().min(PERIOD_SAMPLES)];
    let lags = LONGEST.min(rows.len() / 10);
    let mut mean_correlation = vec![0.0; lags + 1];
    let channels: Vec<&String> = roles.channels.iter().take(CHANNELS).collect();
    for channel in &channels {
        let column = table.column(table.place(channel)?);
        let values: Vec<f64> =
            rows.iter().map(|(row, _)| column[*row].number().unwrap_or(f64::NAN)).collect();
        let present = || values.iter().filter(|value| !value.is_nan());
        let mean = present().sum::<f64>() / present().count().max(1) as f64;
        let centred: Vec<f64> =
            values.iter().map(|value| if value.is_nan() { 0.0 } else { value - mean }).collect();
        let energy = centred.iter().map(|value| value * value).sum::<f64>().max(f64::MIN_POSITIVE);
        for (lag, total) in mean_correlation.iter_mut().enumerate() {
            let products = centred.iter().zip(&centred[lag..]).map(|(one, other)| one * other);
            *total += products.sum::<f64>() / energy / channels.len() as f64;
        }
    }
    let fallen = mean_correlation.iter().position(|correlation| *correlation < FALLEN)?;
    let (lag, correlation) = mean_correlation
        .iter()
        .enumerate()
        .skip(fallen)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    (*correlation >= SURE).then_some(lag)
}

/// A duration for a person, from microseconds.
pub(super) fn duration(micros: f64) -> String {
    // Beyond a second, fractions of it are noise.
    let micros = if micros >= 1e7 { (micros / 1e6).round() * 1e6 } else { micros.round() };
    TimeSpan(std::time::Duration::from_micros(micros.max(0.0) as u64)).to_string()
}

/// The next longer duration that a person would write, from microseconds.
pub(super) fn nice(micros: f64) -> TimeSpan {
    const MINUTE: u64 = 60_000_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const LONGER: [u64; 22] = [
        1_000_000,
        2_000_000,
        5_000_000,
        10_000_000,
        15_000_000,
        20_000_000,
        30_000_000,
        MINUTE,
        2 * MINUTE,
        5 * MINUTE,
        10 * MINUTE,
        15 * MINUTE,
        20 * MINUTE,
        30 * MINUTE,
        HOUR,
        2 * HOUR,
        3 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        7 * DAY,
    ];
    let shorter = (0..6).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    // Times of the clock are exact to a microsecond at best.
    let long_enough = |choice: &u64| *choice as f64 >= micros * (1.0 - 1e-6);
    let found = shorter.chain(LONGER).find(long_enough);
    let days = || (micros / DAY as f64).ceil().min(36_500.0) as u64 * DAY;
    TimeSpan(std::time::Duration::from_micros(found.unwrap_or_else(days)))
}

#[cfg(test)]
mod tests {
    use super::super::fields::roles;
    use super::super::table::{Origin, Value};
    use super::*;

    /// Between 0 and 0.3, without a rhythm: the last step of MurmurHash3.
    fn noise(row: usize) -> f64 {
        let mut hash = row as u64 + 1;
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        (hash >> 40) as f64 / 2_f64.powi(24) * 0.3
    }

    /// Rows of `keys` machines in turn, every `step` seconds, with a wave of `period` samples.
    fn table(rows: usize, keys: usize, step: impl Fn(usize) -> f64, period: f64) -> Table {
        let mut table = Table::default();
        for row in 0..rows {
            for key in 0..keys {
                let wave = (row as f64 * std::f64::consts::TAU / period).sin();
                let fields = [
                    ("time", Value::Number(1_704_000_000.0 + step(row))),
                    ("machine", Value::Text(format!("m{key}"))),
                    ("a", Value::Number(wave + noise(row))),
                ];
                let fields = fields.map(|(name, value)| (name.to_owned(), value));
                table.push(fields, Origin::default());
            }
        }
        table
    }

    fn rhythm(table: &Table) -> Rhythm {
        Rhythm::of(table, &roles(table, false).expect("a table of records"), 1.0)
    }

    #[test]
    fn regular_samples_need_no_grid() {
        let found = rhythm(&table(500, 3, |row| row as f64, 1e9));
        assert_eq!((found.keys, found.records_per_key), (3, 500));
        assert_eq!((found.step, found.regular, found.repeated), (Some(1e6), true, 0.0));
        let windows = found.windows(Layout::Wide, true);
        assert_eq!((windows.length, windows.stride, windows.resample), (64, 1, None));
        assert_eq!(windows.max_gap, Some(TimeSpan::from_secs(10)));
        assert_eq!(windows.lateness, TimeSpan::from_secs(5));
        // A file has no more to come: many segments of what is there, nothing to wait for.
        let windows = found.windows(Layout::Wide, false);
        assert_eq!((windows.length, windows.lateness), (16, TimeSpan::default()));
    }

    #[test]
    fn irregular_samples_are_put_on_a_grid_of_their_usual_step() {
        let found =
            rhythm(&table(500, 1, |row| row as f64 * 60.0 + (row * row * 31 % 40) as f64, 1e9));
        assert!(!found.regular);
        let resample = found.windows(Layout::Wide, true).resample.expect("a grid");
        assert!((30..=120).contains(&resample.0.as_secs()), "{resample}");
    }

    #[test]
    fn a_segment_holds_a_period_if_there_is_one() {
        let found = rhythm(&table(4000, 1, |row| row as f64 * 0.004, 200.0));
        assert!(found.period.is_some_and(|period| period.abs_diff(200) < 3), "{found:?}");
        let windows = found.windows(Layout::Wide, true);
        assert_eq!((windows.length, windows.stride), (256, 32));
        assert_eq!(rhythm(&table(4000, 1, |row| row as f64, 1e9)).period, None);
    }

    #[test]
    fn late_records_are_waited_for() {
        let late = |row: usize| if row % 10 == 9 { row as f64 - 4.5 } else { row as f64 };
        let found = rhythm(&table(500, 1, late, 1e9));
        assert!((3e6..4.5e6).contains(&found.behind), "{}", found.behind);
        assert_eq!(found.windows(Layout::Wide, false).lateness, TimeSpan::from_secs(10));
    }

    #[test]
    fn durations_are_rounded_up_to_what_people_write() {
        for (micros, expected) in [
            (2_777.0, "5ms"),
            (1e6, "1s"),
            (9e6, "10s"),
            (270e6, "5m"),
            (3_000e6, "1h"),
            (86_401e6, "2days"),
            (20.0 * 86_400e6, "20days"),
        ] {
            assert_eq!(nice(micros).to_string(), expected);
        }
    }
}
