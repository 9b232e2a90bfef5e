//! Several probabilities become one.

/// Smallest p-values that count: a fault shows in a few parts, and those that see nothing must not
/// speak for it being normal.
const SMALLEST: usize = 3;

/// Logarithm of the probability that as many independent p-values would be as small together as
/// these, by Fisher's method (1932): under the null, `s = -sum ln p` has a gamma distribution of
/// shape `k`, the number of values, with the survival function `e^-s (1 + s + ... + s^(k-1)/(k-1)!)`.
/// One rare value is enough, several moderate ones add up. 0 for none.
///
/// Of more than three, the three smallest count, as in the rank truncated product (Dudbridge &
/// Koeleman 2003), corrected for the choice by its upper bound, the number of ways to choose.
///
/// By hand: one value is itself; twice 0.1 gives `s = 4.605`, `0.01 * 5.605 = 0.0561`.
pub fn ln_p_value(p_values: impl Iterator<Item = f64>) -> f64 {
    // Smallest first.
    let mut smallest = [f64::INFINITY; SMALLEST];
    let mut all = 0;
    for mut p in p_values {
        all += 1;
        for kept in &mut smallest {
            if p < *kept {
                std::mem::swap(kept, &mut p);
            }
        }
    }
    let count = all.min(SMALLEST);
    let sum: f64 = smallest[..count].iter().map(|p| -p.ln()).sum();
    let (mut term, mut series) = (1.0, 0.0);
    for order in 0..count {
        series += term;
        term *= sum / (order + 1) as f64;
    }
    let choices: f64 = (0..count).map(|at| (all - at) as f64 / (at + 1) as f64).product();
    if count == 0 { 0.0 } else { (series.ln() - sum + choices.ln()).min(0.0) }
}

/// Logarithm of the probability that either of two would be as small as the smaller of these
/// logarithms says (Bonferroni's bound).
///
/// For the level beside all parts together: what lasts shows in the level alone once the others
/// have grown used to it, and they must not thin it out.
pub fn either(ln_p: f64, other: f64) -> f64 {
    (ln_p.min(other) + std::f64::consts::LN_2).min(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    #[test]
    fn the_examples_worked_by_hand_hold() {
        assert_eq!(ln_p_value([].into_iter()), 0.0);
        assert!((ln_p_value([0.03].into_iter()).exp() - 0.03).abs() < 1e-12);
        assert!((ln_p_value([0.1, 0.1].into_iter()).exp() - 0.056_05).abs() < 1e-4);
    }

    #[test]
    fn independent_values_combine_to_a_uniform_one() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        const TRIALS: usize = 100_000;
        let below = (0..TRIALS)
            .filter(|_| {
                let values: [f64; 3] = std::array::from_fn(|_| 1.0 - rng.random::<f64>());
                ln_p_value(values.into_iter()).exp() < 0.01
            })
            .count();
        assert!((below as f64 / TRIALS as f64 - 0.01).abs() < 0.001, "{below}");
    }

    #[test]
    fn either_of_two_is_twice_the_rarer_and_never_more_than_certain() {
        assert!((either(0.01_f64.ln(), 0.5_f64.ln()).exp() - 0.02).abs() < 1e-12);
        assert_eq!(either(0.9_f64.ln(), 0.8_f64.ln()), 0.0);
    }

    #[test]
    fn parts_that_see_nothing_do_not_hide_one_that_does() {
        let among = ln_p_value([0.5, 1e-6, 0.9, 0.4, 0.7, 1.0, 0.6].into_iter());
        // Fisher's sum of all seven would leave 2.4e-3.
        assert!(among.exp() < 1.2e-3, "{}", among.exp());
    }

    #[test]
    fn the_choice_of_the_smallest_is_paid_for() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        const TRIALS: usize = 100_000;
        let below = (0..TRIALS)
            .filter(|_| {
                let values: [f64; 6] = std::array::from_fn(|_| 1.0 - rng.random::<f64>());
                ln_p_value(values.into_iter()).exp() < 0.01
            })
            .count();
        assert!(below as f64 / TRIALS as f64 <= 0.01, "{below}");
    }

    proptest! {
        #[test]
        fn up_to_three_values_combine_as_fisher_has_it_in_any_order(
            values in prop::collection::vec(1e-9f64..=1.0, 1..4),
        ) {
            // The survival function of a gamma variable, written out.
            let s: f64 = values.iter().map(|p| -p.ln()).sum();
            let series = [1.0, 1.0 + s, 1.0 + s + s * s / 2.0][values.len() - 1];
            let expected = (series * (-s).exp()).min(1.0);
            let found = ln_p_value(values.iter().copied()).exp();
            prop_assert!((found - expected).abs() <= 1e-9 * expected, "{found} {expected}");
            let reversed = ln_p_value(values.iter().rev().copied()).exp();
            prop_assert!((found - reversed).abs() <= 1e-9 * expected);
        }

        #[test]
        fn no_value_breaks_it(values in prop::collection::vec(prop::num::f64::ANY, 0..9)) {
            prop_assert!(ln_p_value(values.iter().copied()) <= 0.0);
            let within = values.iter().map(|value| value.abs().clamp(f64::MIN_POSITIVE, 1.0));
            let usual = within.filter(|value| !value.is_nan());
            prop_assert!(ln_p_value(usual).is_finite());
        }

        #[test]
        fn a_rarer_part_never_makes_the_whole_less_rare(
            mut values in prop::collection::vec(1e-300f64..=1.0, 1..8),
        ) {
            let before = ln_p_value(values.iter().copied());
            values[0] *= 0.5;
            let after = ln_p_value(values.iter().copied());
            prop_assert!(before <= 0.0 && after <= before + 1e-9);
        }
    }
}
