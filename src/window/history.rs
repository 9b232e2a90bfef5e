//! What earlier values of a key's channels say about the present ones.
//!
//! A value that does not change for too long is not believed: the sensor is stuck. A value that is
//! missing for not too long is the last one carried forward, as clinical time series are filled
//! (Che et al. 2018, GRU-D), with the time since it was observed beside it, so that what is old and
//! what is new are different things to the model.

use serde::{Deserialize, Serialize};

use super::ChannelRules;

/// Values that are believed only for so long, per channel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Unchanged {
    /// Value and event time of the first of equal ones.
    since: Vec<Option<(f32, i64)>>,
}

impl Unchanged {
    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Takes values observed at `time` (microseconds) that have been the same for too long for
    /// missing; returns how many.
    pub fn doubt(&mut self, rules: &[ChannelRules], time: i64, values: &mut [f32]) -> u64 {
        self.since.resize(values.len(), None);
        let mut doubted = 0;
        for ((since, rules), value) in self.since.iter_mut().zip(rules).zip(values) {
            let Some(stuck) = rules.stuck else { continue };
            if value.is_nan() {
                continue;
            }
            match since {
                Some((known, begin)) if known.to_bits() == value.to_bits() => {
                    if time.saturating_sub(*begin) > stuck {
                        *value = f32::NAN;
                        doubted += 1;
                    }
                }
                _ => *since = Some((*value, time)),
            }
        }
        doubted
    }
}

/// The last value of each channel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Last {
    values: Vec<Option<(f32, i64)>>,
}

impl Last {
    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Puts the last values where values at `time` (microseconds) are missing, as far as `rules`
    /// let them stand in, and writes `ln(1 + seconds)` since each channel was observed to `ages`,
    /// which may be empty; NaN for one that never was.
    pub fn carry(
        &mut self,
        rules: &[ChannelRules],
        time: i64,
        values: &mut [f32],
        ages: &mut [f32],
    ) {
        self.values.resize(values.len(), None);
        ages.fill(f32::NAN);
        for (at, (last, value)) in self.values.iter_mut().zip(values).enumerate() {
            if !value.is_nan() {
                *last = Some((*value, time));
            }
            let Some((known, seen)) = *last else { continue };
            let age = time.saturating_sub(seen).max(0);
            let carry = rules.get(at).and_then(|rules| rules.carry);
            if value.is_nan() && carry.is_some_and(|carry| age <= carry) {
                *value = known;
            }
            if let Some(place) = ages.get_mut(at) {
                *place = (age as f64 / 1e6).ln_1p() as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_value_is_doubted_once_it_has_been_the_same_for_too_long() {
        let rules = [ChannelRules { stuck: Some(2 * SECOND), carry: None }, Default::default()];
        let mut unchanged = Unchanged::default();
        let mut doubted = Vec::new();
        for (second, value) in [5.0, 5.0, 5.0, 5.0, 5.0, 6.0, 5.0].into_iter().enumerate() {
            let mut values = [value, 1.0];
            unchanged.doubt(&rules, second as i64 * SECOND, &mut values);
            doubted.push(values[0].is_nan());
            assert_eq!(values[1], 1.0);
        }
        assert_eq!(doubted, [false, false, false, true, true, false, false]);
    }

    #[test]
    fn a_missing_value_is_no_change() {
        let rules = [ChannelRules { stuck: Some(SECOND), carry: None }];
        let mut unchanged = Unchanged::default();
        unchanged.doubt(&rules, 0, &mut [5.0]);
        assert_eq!(unchanged.doubt(&rules, SECOND, &mut [f32::NAN]), 0);
        assert_eq!(unchanged.doubt(&rules, 2 * SECOND, &mut [5.0]), 1);
    }

    #[test]
    fn the_last_value_stands_in_up_to_its_limit_and_its_age_is_told() {
        let rules = [ChannelRules { carry: Some(2 * SECOND), stuck: None }];
        let mut last = Last::default();
        let mut seen = Vec::new();
        for (second, value) in [f32::NAN, 7.0, f32::NAN, f32::NAN, f32::NAN, 8.0].iter().enumerate()
        {
            let (mut values, mut ages) = ([*value], [0.0]);
            last.carry(&rules, second as i64 * SECOND, &mut values, &mut ages);
            seen.push((values[0], ages[0].exp_m1().round()));
        }
        assert!(seen[0].0.is_nan() && seen[0].1.is_nan());
        assert_eq!(seen[1..4], [(7.0, 0.0), (7.0, 1.0), (7.0, 2.0)]);
        assert!(seen[4].0.is_nan());
        assert_eq!((seen[4].1, seen[5]), (3.0, (8.0, 0.0)));
    }

    #[test]
    fn without_a_limit_nothing_is_carried_though_ages_are_told() {
        let mut last = Last::default();
        last.carry(&[], 0, &mut [1.0], &mut []);
        let (mut values, mut ages) = ([f32::NAN], [0.0]);
        last.carry(&[], 3 * SECOND, &mut values, &mut ages);
        assert!(values[0].is_nan());
        assert_eq!(ages[0].exp_m1().round(), 3.0);
    }
}
