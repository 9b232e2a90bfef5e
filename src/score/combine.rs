//! Several probabilities become one.

/// Logarithm of the probability that as many independent p-values would be as small together as
/// these, by Fisher's method (1932): under the null, `s = -sum ln p` has a gamma distribution of
/// shape `k`, the number of values, with the survival function `e^-s (1 + s + ... + s^(k-1)/(k-1)!)`.
/// One rare value is enough, several moderate ones add up. 0 for none.
///
/// By hand: one value is itself; twice 0.1 gives `s = 4.605`, `0.01 * 5.605 = 0.0561`.
pub fn ln_p_value(p_values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for p in p_values {
        sum -= p.ln();
        count += 1;
    }
    let (mut term, mut series) = (1.0, 0.0);
    for order in 0..count {
        series += term;
        term *= sum / f64::from(order + 1);
    }
    if count == 0 { 0.0 } else { (f64::ln(series) - sum).min(0.0) }
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
                let values: [f64; 4] = std::array::from_fn(|_| 1.0 - rng.random::<f64>());
                ln_p_value(values.into_iter()).exp() < 0.01
            })
            .count();
        assert!((below as f64 / TRIALS as f64 - 0.01).abs() < 0.001, "{below}");
    }

    proptest! {
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
