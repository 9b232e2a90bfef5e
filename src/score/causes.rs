//! Which channels an alert is about.

/// Shares of the channels in an alert, largest first, adding up to 1. `values` is the standardised
/// segment `[channels, time]`, `errors` each channel's forecast error, `parts` the tail
/// probabilities of surprise, distance and residual. `drop_of` gets the segment once per channel,
/// `[channels, channels, time]`, with that channel missing, and returns how much nearer to normal
/// it is without (occlusion, Zeiler & Fergus 2014).
pub fn causes(
    values: &[f32],
    channels: usize,
    errors: &[f32],
    parts: &[f64; 3],
    drop_of: impl FnOnce(&[f32]) -> Vec<f32>,
) -> Vec<(usize, f32)> {
    if channels == 1 {
        return vec![(0, 1.0)];
    }
    let time = values.len() / channels;
    let mut occluded = values.repeat(channels);
    for (channel, segment) in occluded.chunks_exact_mut(values.len()).enumerate() {
        segment[channel * time..(channel + 1) * time].fill(f32::NAN);
    }
    let by_occlusion = shares(drop_of(&occluded).iter().map(|drop| drop.max(0.0)));
    let by_error = shares(errors.iter().map(|error| error.powi(2)));
    // Each view counts as much as its part has to say.
    let embedding = (-(parts[0].min(parts[1])).ln()) as f32;
    let residual = (-parts[2].ln()) as f32;
    let share = if embedding + residual > 0.0 { residual / (embedding + residual) } else { 0.5 };
    let mut causes: Vec<(usize, f32)> = by_error
        .iter()
        .zip(&by_occlusion)
        .map(|(error, occlusion)| share * error + (1.0 - share) * occlusion)
        .enumerate()
        .collect();
    causes.sort_by(|a, b| b.1.total_cmp(&a.1));
    causes
}

/// Scales to a sum of 1; equal shares where there is nothing to share.
fn shares(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let values: Vec<f32> = values.collect();
    let total: f32 = values.iter().sum();
    if total > 0.0 && total.is_finite() {
        values.iter().map(|value| value / total).collect()
    } else {
        vec![1.0 / values.len() as f32; values.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_one_with_the_odd_channel_first() {
        let found = causes(&[0.0; 6], 3, &[1.0, 5.0, 1.0], &[0.5, 1e-4, 1e-6], |occluded| {
            assert_eq!(occluded.len(), 18);
            for (channel, segment) in occluded.chunks(6).enumerate() {
                let missing: Vec<bool> = segment.chunks(2).map(|c| c[0].is_nan()).collect();
                assert_eq!(missing.iter().position(|is| *is), Some(channel));
                assert_eq!(missing.iter().filter(|is| **is).count(), 1);
            }
            vec![-0.1, 0.4, 0.1]
        });
        assert_eq!(found[0].0, 1);
        let total: f32 = found.iter().map(|(_, share)| share).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }

    #[test]
    fn the_only_channel_is_the_cause_and_no_evidence_is_shared_equally() {
        assert_eq!(causes(&[1.0], 1, &[0.0], &[1.0; 3], |_| unreachable!()), [(0, 1.0)]);
        let equal = causes(&[0.0; 2], 2, &[0.0; 2], &[1.0; 3], |_| vec![0.0; 2]);
        assert_eq!(equal, [(0, 0.5), (1, 0.5)]);
    }
}
