//! A key's own measure of a statistic.

use pulp::Simd;
use serde::{Deserialize, Serialize};

use super::lanes::{Group, Lanes};

/// Running centre and spread, robust to outliers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ruler {
    center: f32,
    spread: f32,
    seen: u32,
}

/// Rulers of a group of channels side by side.
pub struct Rulers<S: Simd> {
    center: Lanes<S>,
    spread: Lanes<S>,
    seen: Lanes<S>,
}

/// Values over which it forgets.
const HORIZON: u32 = 1000;
/// Deviations beyond this many spreads count as this many.
const WINSOR: f32 = 4.0;
/// Values before there is anything to bound by.
const FEW: u32 = 8;

impl Ruler {
    /// `value` in spreads from the centre. The first few values of a key say little about its
    /// spread: it is taken to be wider then, by up to a factor of two.
    pub fn measure(&self, value: f32) -> f32 {
        if self.seen == 0 {
            return 0.0;
        }
        let doubt = 1.0 + 8.0 / (self.seen as f32 + 8.0);
        (value - self.center) / (doubt * self.resolved_spread())
    }

    fn resolved_spread(&self) -> f32 {
        self.spread.max(self.noise())
    }

    /// The spread that is taken for noise around the centre: a statistic that has been constant so far may
    /// yet begin to vary.
    fn noise(&self) -> f32 {
        (1e-3 * self.center.abs()).max(1e-6)
    }

    /// Learns a value; one that is not finite says nothing. The first beside the only one so far begins
    /// anew: by spreads of nothing, winsorised, it would take thousands of them to grow one.
    pub fn learn(&mut self, value: f32) {
        if !value.is_finite() {
            return;
        }
        let deviation = value - self.center;
        let noise = self.noise();
        if self.seen > FEW && self.spread <= noise && deviation.abs() > WINSOR * noise {
            let spread = deviation.abs().min(f32::MAX);
            *self = Self { center: value, spread, seen: 2 };
            return;
        }
        self.seen = (self.seen + 1).min(HORIZON);
        let rate = 1.0 / self.seen as f32;
        // Until a few are known, there is nothing to bound by.
        let bound = if self.seen > FEW { WINSOR * self.resolved_spread() } else { f32::MAX };
        let bound = bound.min(f32::MAX);
        let bounded = deviation.clamp(-bound, bound);
        self.center += rate * bounded;
        if self.seen > 1 {
            let rate = 1.0 / (self.seen - 1) as f32;
            self.spread += rate * (bounded.abs() - self.spread);
        }
    }
}

impl<S: Simd> Rulers<S> {
    /// Rows of a state that they take.
    pub const ROWS: usize = 3;

    /// From the rows `[ROWS, channels]` from `row` on; as they are at first where these are 0.
    #[inline(always)]
    pub fn load(group: Group<S>, state: &[f32], row: usize) -> Self {
        let [center, spread, seen] = [0, 1, 2].map(|at| group.load(state, row + at));
        Self { center, spread, seen }
    }

    #[inline(always)]
    pub fn store(self, group: Group<S>, state: &mut [f32], row: usize) {
        for (at, lanes) in [self.center, self.spread, self.seen].into_iter().enumerate() {
            group.store(state, row + at, lanes);
        }
    }

    /// As [`Ruler::measure`].
    #[inline(always)]
    pub fn measure(&self, value: Lanes<S>) -> Lanes<S> {
        let constant = |number| value.constant(number);
        let doubt = constant(1.0) + constant(8.0) / (self.seen + constant(8.0));
        let measured = (value - self.center) / (doubt * self.resolved_spread());
        self.seen.greater(constant(0.0)).choose(measured, constant(0.0))
    }

    #[inline(always)]
    fn resolved_spread(&self) -> Lanes<S> {
        self.spread.max(self.noise())
    }

    #[inline(always)]
    fn noise(&self) -> Lanes<S> {
        let noise = self.spread.constant(1e-3) * self.center.abs();
        noise.max(noise.constant(1e-6))
    }

    /// As [`Ruler::learn`], where a value is finite.
    #[inline(always)]
    pub fn learn(&mut self, value: Lanes<S>) {
        let constant = |number| value.constant(number);
        let (learns, one) = (value.finite(), constant(1.0));
        let (noise, few) = (self.noise(), constant(FEW as f32));
        let deviation = value - self.center;
        let varies = deviation.abs().greater(constant(WINSOR) * noise);
        let begins = self.seen.greater(few).and(noise.reaches(self.spread)).and(varies);
        let seen = (self.seen + one).min(constant(HORIZON as f32));
        let most = constant(f32::MAX);
        let bound = constant(WINSOR) * self.resolved_spread();
        let bound = seen.greater(few).choose(bound, most).min(most);
        let bounded = deviation.min(bound).max(constant(0.0) - bound);
        let spread = self.spread + (bounded.abs() - self.spread) / (seen - one);
        let spread = begins.choose(deviation.abs().min(most), spread);
        self.spread = learns.and(seen.greater(one)).choose(spread, self.spread);
        let center = begins.choose(value, self.center + bounded / seen);
        self.center = learns.choose(center, self.center);
        self.seen = learns.choose(begins.choose(constant(2.0), seen), self.seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_different_levels_and_spreads_measure_alike() {
        let (mut low, mut high) = (Ruler::default(), Ruler::default());
        for at in 0..2000 {
            let value = ((at * 37) % 101) as f32;
            low.learn(value);
            high.learn(1000.0 + 10.0 * value);
        }
        for value in [0.0, 50.0, 100.0, 300.0] {
            let (a, b) = (low.measure(value), high.measure(1000.0 + 10.0 * value));
            assert!((a - b).abs() < 1e-2 * (1.0 + a.abs()), "{a} {b}");
        }
        assert!(low.measure(50.0).abs() < 0.1);
    }

    #[test]
    fn one_outlier_hardly_moves_it_and_constants_stay_finite() {
        let mut ruler = Ruler::default();
        for at in 0..100 {
            ruler.learn((at % 3) as f32);
        }
        let before = ruler.measure(5.0);
        ruler.learn(1e9);
        assert!((ruler.measure(5.0) - before).abs() < 0.3);
        let mut constant = Ruler::default();
        constant.learn(4.0);
        constant.learn(4.0);
        assert_eq!(constant.measure(4.0), 0.0);
        assert!(constant.measure(5.0).is_finite());
    }

    #[test]
    fn a_statistic_that_was_constant_learns_to_vary() {
        let mut ruler = Ruler::default();
        (0..100).for_each(|_| ruler.learn(4.0));
        assert!(ruler.measure(6.0) > 100.0);
        (0..20).for_each(|at| ruler.learn((at % 7) as f32));
        assert!(ruler.measure(6.0) < 2.0, "{ruler:?}");
    }

    struct Beside<'a>(&'a [f32], &'a mut Vec<(f32, f32)>);

    impl pulp::WithSimd for Beside<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let group = Group::all(simd, 1).next().expect("one channel");
            let mut rulers = Rulers::load(group, &[0.0; 3], 0);
            let mut ruler = Ruler::default();
            for value in self.0 {
                let lanes = group.splat(*value);
                self.1.push((ruler.measure(*value), rulers.measure(lanes).array()[0]));
                ruler.learn(*value);
                rulers.learn(lanes);
            }
        }
    }

    #[test]
    fn side_by_side_they_measure_as_alone() {
        let usual = (0..3000).map(|at| ((at * 37) % 101) as f32);
        let odd = [f32::NAN, 1e9, -1e9, f32::INFINITY, f32::MAX, 0.0, 3.0];
        let values: Vec<f32> = odd[..2].iter().copied().chain(usual).chain(odd).collect();
        let mut measured = Vec::new();
        pulp::Arch::new().dispatch(Beside(&values, &mut measured));
        for (alone, beside) in measured {
            let alike = (alone - beside).abs() <= 1e-4 * (1.0 + alone.abs());
            assert!(alike || alone == beside || alone.is_nan(), "{alone} {beside}");
        }
    }

    proptest! {
        #[test]
        fn no_value_breaks_it_and_a_restart_changes_nothing(
            before in prop::collection::vec(prop::num::f32::ANY, 0..40),
            after in prop::collection::vec(prop::num::f32::ANY, 0..40),
        ) {
            let mut ruler = Ruler::default();
            before.iter().for_each(|value| ruler.learn(*value));
            let saved = postcard::to_stdvec(&ruler).unwrap();
            let mut restored: Ruler = postcard::from_bytes(&saved).unwrap();
            for value in after {
                let bits = |ruler: &Ruler| ruler.measure(value).to_bits();
                prop_assert_eq!(bits(&restored), bits(&ruler));
                ruler.learn(value);
                restored.learn(value);
            }
            // Usual values make it usable again, whatever came before.
            for at in 0..100_000 {
                ruler.learn((at % 7) as f32);
            }
            prop_assert!(ruler.center.is_finite() && ruler.spread.is_finite(), "{ruler:?}");
            prop_assert!(ruler.measure(3.0).abs() < 1.0 && ruler.measure(6.0) < 2.0, "{ruler:?}");
        }
    }
}
