//! Online tail calibration: how rare is a value, given those seen before?
//!
//! Among the last values, a rank answers; beyond them, peaks over a threshold do: excesses follow
//! a generalised Pareto distribution (Pickands 1975; SPOT, Siffer et al. 2017), fitted here by
//! probability-weighted moments (Hosking & Wallis 1987) in closed form.

use serde::{Deserialize, Serialize};

/// The last values of a statistic, and what lies beyond them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// Ring of the last values, and the most that it holds.
    values: Vec<f32>,
    capacity: usize,
    next: usize,
    /// The same values as of the last fit, smallest first.
    sorted: Vec<f32>,
    /// Since then: those that came, and those that had to go for them.
    added: Vec<f32>,
    removed: Vec<f32>,
    until_fit: usize,
    excess: Option<Excess>,
    /// Whether the excesses are exponential of scale 1 or more, instead of generalised Pareto.
    exponential: bool,
}

/// Values above `threshold`: a share `share` of all, their excesses generalised Pareto.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Excess {
    threshold: f64,
    share: f64,
    scale: f64,
    shape: f64,
}

/// Values remembered, where nothing else is said.
const CAPACITY: usize = 16_384;
/// Fewest excesses that a fit is made from.
const FEWEST: usize = 10;
/// Share of the values that lie above the threshold, once that is [`FEWEST`] or more.
const ABOVE: f64 = 0.02;
/// A value rarer than this is an outlier: it may not widen the known range at will.
const OUTLIER: f64 = 1e-6;
/// Heaviest tail believed. Anomalies are among what is remembered, and a shape fitted to them too grows
/// with each, so that the later ones would seem less rare.
const HEAVIEST: f64 = 0.2;

impl Default for Tail {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            capacity: CAPACITY,
            next: 0,
            sorted: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            until_fit: 1,
            excess: None,
            exponential: false,
        }
    }
}

impl Tail {
    /// For a statistic that is itself `-ln p` of a p-value: exponential of scale 1 were that exact,
    /// wider where it is optimistic.
    pub fn exponential() -> Self {
        Self { exponential: true, ..Self::default() }
    }

    /// That remembers no more than the last `capacity` values.
    pub fn of_last(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Probability that a value is at least `value`, never 0.
    pub fn p_value(&self, value: f32) -> f64 {
        if let Some(excess) = self.excess.filter(|excess| f64::from(value) > excess.threshold) {
            return excess.p_value(f64::from(value));
        }
        let below = self.sorted.partition_point(|other| *other < value);
        let not_below = self.sorted.len() - below;
        (not_below + 1) as f64 / (self.sorted.len() + 1) as f64
    }

    /// Learns a value. An outlier at most doubles the range of the values above the median: one
    /// anomaly must not teach that anomalies are normal, but a lasting change does move the tail.
    pub fn learn(&mut self, value: f32) {
        if !value.is_finite() {
            return;
        }
        let value = match (self.excess, self.sorted.last()) {
            (Some(excess), Some(&largest)) if excess.is_outlier(f64::from(value)) => {
                let range = largest - self.sorted[self.sorted.len() / 2];
                let bound = (largest + range).max(excess.quantile(OUTLIER) as f32);
                // All values alike: there is no range to double.
                if range > 0.0 { value.min(bound) } else { value }
            }
            _ => value,
        };
        if self.values.len() < self.capacity {
            self.values.push(value);
        } else {
            self.removed.push(std::mem::replace(&mut self.values[self.next], value));
            self.next = (self.next + 1) % self.capacity;
        }
        self.added.push(value);
        self.until_fit -= 1;
        if self.until_fit == 0 {
            self.fit();
            // Often at first, then once in a while: a fit looks at all values.
            self.until_fit = (self.values.len() / 32).max(1);
        }
    }

    fn fit(&mut self) {
        self.added.sort_unstable_by(f32::total_cmp);
        self.removed.sort_unstable_by(f32::total_cmp);
        self.sorted = merge(&self.sorted, &self.removed, &self.added);
        self.added.clear();
        self.removed.clear();
        let above = ((self.sorted.len() as f64 * ABOVE) as usize).max(FEWEST);
        self.excess = (self.sorted.len() >= 2 * above).then(|| {
            let (body, tail) = self.sorted.split_at(self.sorted.len() - above);
            let threshold = f64::from(body[body.len() - 1]);
            let share = above as f64 / self.sorted.len() as f64;
            match self.exponential {
                true => Excess::exponential(threshold, share, tail),
                false => Excess::fit(threshold, share, tail),
            }
        });
    }
}

/// `sorted` without those `removed`, which are among them, and with those `added`; all of them
/// smallest first. What lies between is copied as it is.
fn merge(sorted: &[f32], removed: &[f32], added: &[f32]) -> Vec<f32> {
    let mut merged = Vec::with_capacity(sorted.len() + added.len());
    let (mut removed, mut added, mut rest) = (removed, added, sorted);
    loop {
        let (value, gone) = match (removed, added) {
            ([gone, others @ ..], [new, ..]) if gone.total_cmp(new).is_le() => {
                removed = others;
                (*gone, true)
            }
            (_, [new, others @ ..]) => {
                added = others;
                (*new, false)
            }
            ([gone, others @ ..], []) => {
                removed = others;
                (*gone, true)
            }
            ([], []) => break,
        };
        let (below, above) = rest.split_at(count_below(rest, value));
        merged.extend_from_slice(below);
        rest = if gone { &above[1..] } else { above };
        if !gone {
            merged.push(value);
        }
    }
    merged.extend_from_slice(rest);
    merged
}

/// How many of `sorted` are smaller than `value`, which is not far from the beginning.
fn count_below(sorted: &[f32], value: f32) -> usize {
    let mut window = 64;
    while window < sorted.len() && sorted[window - 1].total_cmp(&value).is_lt() {
        window *= 4;
    }
    sorted[..window.min(sorted.len())].partition_point(|other| other.total_cmp(&value).is_lt())
}

impl Excess {
    /// From the values above the threshold, smallest first.
    fn fit(threshold: f64, share: f64, tail: &[f32]) -> Self {
        let count = tail.len() as f64;
        let mut mean = 0.0;
        let mut weighted = 0.0;
        for (rank, value) in tail.iter().enumerate() {
            let excess = f64::from(*value) - threshold;
            mean += excess / count;
            // Expectation of excess * (1 - F(excess)), with the plotting position of the paper.
            weighted += excess / count * (1.0 - (rank as f64 + 0.65) / count);
        }
        // All excesses 0 (a constant statistic): anything above is new.
        let mean = mean.max(1e-9);
        let spread = (mean - 2.0 * weighted).max(1e-3 * mean);
        let shape = 2.0 - mean / spread;
        // At least as heavy as the predictive distribution of an exponential whose scale is known
        // from `count` excesses only (a Lomax of shape 1 / count); a tail with an end would call
        // everything past it impossible, on little evidence.
        let shape = shape.clamp(1.0 / count, HEAVIEST);
        Self { threshold, share, scale: mean * (1.0 - shape), shape }
    }

    fn exponential(threshold: f64, share: f64, tail: &[f32]) -> Self {
        let excesses = tail.iter().map(|value| f64::from(*value) - threshold);
        let mean = excesses.sum::<f64>() / tail.len() as f64;
        Self { threshold, share, scale: mean.max(1.0), shape: 0.0 }
    }

    fn is_outlier(&self, value: f64) -> bool {
        value > self.threshold && self.p_value(value) < OUTLIER
    }

    fn p_value(&self, value: f64) -> f64 {
        let excess = ((value - self.threshold) / self.scale).max(0.0);
        let beyond = if self.shape > 0.0 {
            (1.0 + self.shape * excess).powf(-1.0 / self.shape)
        } else {
            (-excess).exp()
        };
        (self.share * beyond).max(f64::MIN_POSITIVE)
    }

    /// The value that is exceeded with probability `p`, for `p` below `share`.
    fn quantile(&self, p: f64) -> f64 {
        let ratio = (self.share / p).max(1.0);
        let excess =
            if self.shape > 0.0 { (ratio.powf(self.shape) - 1.0) / self.shape } else { ratio.ln() };
        self.threshold + self.scale * excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_distr::{Distribution, Exp1, Normal, StudentT};
    use rand_pcg::Pcg64Mcg;

    fn learned(count: usize, mut draw: impl FnMut(&mut Pcg64Mcg) -> f32) -> (Tail, Pcg64Mcg) {
        let mut rng = Pcg64Mcg::seed_from_u64(6);
        let mut tail = Tail::default();
        for _ in 0..count {
            tail.learn(draw(&mut rng));
        }
        (tail, rng)
    }

    /// Share of new values whose p-value is below `p`, as a multiple of `p`.
    fn excess_alarms(count: usize, p: f64, draw: impl Fn(&mut dyn Rng) -> f32) -> f64 {
        let (tail, mut rng) = learned(count, |rng| draw(rng));
        const TRIALS: usize = 400_000;
        let alarms = (0..TRIALS).filter(|_| tail.p_value(draw(&mut rng)) < p).count();
        alarms as f64 / TRIALS as f64 / p
    }

    #[test]
    fn p_values_hold_beyond_the_values_seen_for_light_and_heavy_tails() {
        let normal = Normal::new(5.0, 2.0).expect("a normal distribution");
        let student = StudentT::new(4.0).expect("a t distribution");
        let rates = [
            excess_alarms(4000, 1e-2, |mut rng| normal.sample(&mut rng)),
            excess_alarms(4000, 1e-4, |mut rng| normal.sample(&mut rng)),
            excess_alarms(4000, 1e-4, |mut rng| Exp1.sample(&mut rng)),
            excess_alarms(4000, 1e-4, |mut rng| student.sample(&mut rng)),
        ];
        // Extrapolated a decade or more beyond what 4000 values show, within a factor of four.
        for rate in rates {
            assert!((0.25..4.0).contains(&rate), "{rates:?}");
        }
        assert!((0.7..1.4).contains(&rates[0]), "{rates:?}");
    }

    #[test]
    fn what_is_sorted_is_what_is_remembered() {
        let mut rng = Pcg64Mcg::seed_from_u64(7);
        let mut tail = Tail::default();
        for at in 0..3 * CAPACITY {
            // Many alike, and now and then an outlier.
            let value: f32 = Exp1.sample(&mut rng);
            tail.learn(if at % 3 == 0 { (4.0 * value).floor() } else { value });
        }
        tail.fit();
        let mut expected = tail.values.clone();
        expected.sort_unstable_by(f32::total_cmp);
        assert_eq!(tail.sorted, expected);
        assert_eq!(tail.sorted.len(), CAPACITY);
    }

    #[test]
    fn with_few_values_nothing_is_rarer_than_their_number_allows() {
        let (tail, _) = learned(9, |rng| Exp1.sample(rng));
        assert_eq!(tail.p_value(1e9), 0.1);
        assert_eq!(Tail::default().p_value(3.0), 1.0);
    }

    #[test]
    fn anomalies_do_not_teach_that_they_are_normal() {
        let (mut tail, _) = learned(2000, |rng| Exp1.sample(rng));
        assert!(tail.p_value(25.0) < 1e-5);
        for _ in 0..5 {
            tail.learn(1000.0);
        }
        tail.fit();
        assert!(tail.p_value(25.0) < 1e-3 && tail.p_value(1000.0) < 1e-6);
    }

    #[test]
    fn a_statistic_that_was_constant_learns_to_vary() {
        let (mut tail, mut rng) = learned(200, |_| 2.0);
        for _ in 0..400 {
            tail.learn(2.0 + Distribution::<f32>::sample(&Exp1, &mut rng));
        }
        assert!(tail.p_value(4.0) > 0.05, "{}", tail.p_value(4.0));
    }

    #[test]
    fn a_constant_statistic_is_not_rare_and_anything_above_it_is() {
        let (tail, _) = learned(200, |_| 2.0);
        assert!(tail.p_value(2.0) > 0.9);
        assert!(tail.p_value(2.1) < 1e-6);
    }

    #[test]
    fn an_exponential_tail_corrects_optimistic_p_values() {
        let mut rng = Pcg64Mcg::seed_from_u64(6);
        let mut tail = Tail::exponential();
        // -ln p that is half again too large.
        for _ in 0..2000 {
            tail.learn(1.5 * Distribution::<f32>::sample(&Exp1, &mut rng));
        }
        let ln_p = tail.p_value(15.0).ln();
        assert!((-12.0..-8.0).contains(&ln_p), "{ln_p}");
    }

    #[test]
    fn p_values_of_an_unchanging_stream_are_uniform() {
        let normal = Normal::new(5.0, 2.0).expect("a normal distribution");
        let student = StudentT::new(4.0).expect("a t distribution");
        let draws: [&dyn Fn(&mut Pcg64Mcg) -> f32; 4] = [
            &|rng| normal.sample(rng),
            &|rng| student.sample(rng),
            &|rng| Exp1.sample(rng),
            // A statistic with ties: there, p-values may be larger than uniform ones.
            &|rng| (2.0 * Distribution::<f32>::sample(&Exp1, rng)).round(),
        ];
        for (at, draw) in draws.iter().enumerate() {
            let (mut tail, mut rng) = learned(2000, draw);
            let mut p_values = Vec::new();
            // As in use: each value is judged before it is learned.
            for _ in 0..100_000 {
                let value = draw(&mut rng);
                p_values.push(tail.p_value(value));
                tail.learn(value);
            }
            for p in [0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01] {
                let share = p_values.iter().filter(|found| **found <= p).count() as f64
                    / p_values.len() as f64;
                // Within a twentieth, and three standard errors of so many draws.
                let room = 0.05 * p + 3.0 * (p * (1.0 - p) / p_values.len() as f64).sqrt();
                let least = if at == 3 { 0.0 } else { p - room };
                assert!((least..p + room).contains(&share), "{at}: {share} at {p}");
            }
        }
    }

    /// Any `f32`, with more of those that are usual or extreme.
    fn any_value() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -1e3f32..1e3,
            2 => prop::num::f32::ANY,
            1 => prop::sample::select(vec![
                f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-45,
            ]),
        ]
    }

    proptest! {
        #[test]
        fn the_p_value_of_what_is_not_extreme_is_its_rank(
            values in prop::collection::vec((-20..20_i32).prop_map(|value| value as f32), 0..64),
            probe in -25f32..25.0,
        ) {
            // So few values are fitted anew at each.
            let mut tail = Tail::default();
            values.iter().for_each(|value| tail.learn(*value));
            if tail.excess.is_none_or(|excess| f64::from(probe) <= excess.threshold) {
                let as_large = tail.values.iter().filter(|value| **value >= probe).count();
                let rank = (as_large + 1) as f64 / (values.len() + 1) as f64;
                prop_assert_eq!(tail.p_value(probe), rank);
            }
        }

        #[test]
        fn no_value_breaks_it_and_a_restart_changes_nothing(
            exponential in any::<bool>(),
            before in prop::collection::vec(any_value(), 0..200),
            after in prop::collection::vec(any_value(), 0..200),
        ) {
            let new = if exponential { Tail::exponential() } else { Tail::default() };
            let mut tail = new;
            before.iter().for_each(|value| tail.learn(*value));
            let saved = postcard::to_stdvec(&tail).unwrap();
            let mut restored: Tail = postcard::from_bytes(&saved).unwrap();
            for value in after {
                let p = tail.p_value(value);
                prop_assert!(p > 0.0 && p <= 1.0, "{p} of {value}");
                prop_assert_eq!(restored.p_value(value), p);
                tail.learn(value);
                restored.learn(value);
            }
            prop_assert_eq!(restored, tail);
        }

        #[test]
        fn p_values_never_rise_with_the_value_and_stay_in_range(
            values in prop::collection::vec(any_value(), 1..400),
            mut probes in prop::collection::vec(any_value(), 2..40),
        ) {
            probes.retain(|probe| !probe.is_nan());
            let mut tail = Tail::default();
            for value in values {
                tail.learn(value);
            }
            probes.sort_by(f32::total_cmp);
            let p: Vec<f64> = probes.iter().map(|probe| tail.p_value(*probe)).collect();
            prop_assert!(p.iter().all(|p| *p > 0.0 && *p <= 1.0));
            prop_assert!(p.windows(2).all(|pair| pair[0] >= pair[1] * (1.0 - 1e-9)), "{p:?}");
        }
    }
}
