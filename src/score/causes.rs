//! Which channels an alert is about.

/// What one part of a verdict has to say about the channels.
pub struct View {
    /// How much it has to say: the part's `-ln p`.
    pub evidence: f64,
    /// Per channel, how much of it is due to that channel; negative is none.
    pub weights: Vec<f32>,
}

/// Shares of the channels in an alert, largest first, adding up to 1: each view counts as much as
/// it has to say.
pub fn causes(channels: usize, views: &[View]) -> Vec<(usize, f32)> {
    let total: f64 = views.iter().map(|view| view.evidence).sum();
    let mut causes: Vec<(usize, f32)> =
        (0..channels).map(|channel| (channel, 1.0 / channels as f32)).collect();
    if total > 0.0 {
        causes.iter_mut().for_each(|(_, share)| *share = 0.0);
        for view in views {
            let counts = (view.evidence / total) as f32;
            for ((_, share), of) in causes.iter_mut().zip(shares(&view.weights)) {
                *share += counts * of;
            }
        }
    }
    causes.sort_by(|a, b| b.1.total_cmp(&a.1));
    causes
}

/// Copies of a segment `[channels, time]`, one per channel, each with that channel missing:
/// `[channels, channels, time]`. How much nearer to normal a segment is without a channel says how
/// much that is to blame (occlusion, Zeiler & Fergus 2014).
pub fn occluded(values: &[f32], channels: usize) -> Vec<f32> {
    let time = values.len() / channels;
    let mut occluded = values.repeat(channels);
    for (channel, segment) in occluded.chunks_exact_mut(values.len()).enumerate() {
        segment[channel * time..(channel + 1) * time].fill(f32::NAN);
    }
    occluded
}

/// Scales to a sum of 1; equal shares where there is nothing to share.
fn shares(values: &[f32]) -> Vec<f32> {
    let total: f32 = values.iter().map(|value| value.max(0.0)).sum();
    if total > 0.0 && total.is_finite() {
        values.iter().map(|value| value.max(0.0) / total).collect()
    } else {
        vec![1.0 / values.len() as f32; values.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_one_with_the_odd_channel_first() {
        let views = [
            View { evidence: 9.0, weights: vec![-0.1, 0.4, 0.1] },
            View { evidence: 3.0, weights: vec![1.0, 25.0, 1.0] },
        ];
        let found = causes(3, &views);
        assert_eq!(found[0].0, 1);
        assert!((found[0].1 - (0.75 * 0.8 + 0.25 * 25.0 / 27.0)).abs() < 1e-6);
        let total: f32 = found.iter().map(|(_, share)| share).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }

    #[test]
    fn no_evidence_is_shared_equally() {
        let nothing = [View { evidence: 0.0, weights: vec![1.0, 0.0] }];
        assert_eq!(causes(2, &nothing), [(0, 0.5), (1, 0.5)]);
        let vague = [View { evidence: 1.0, weights: vec![-1.0, 0.0] }];
        assert_eq!(causes(2, &vague), [(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn each_copy_lacks_one_channel() {
        let occluded = occluded(&[0.0; 6], 3);
        assert_eq!(occluded.len(), 18);
        for (channel, segment) in occluded.chunks(6).enumerate() {
            let missing: Vec<bool> = segment.chunks(2).map(|c| c[0].is_nan()).collect();
            assert_eq!(missing.iter().position(|is| *is), Some(channel));
            assert_eq!(missing.iter().filter(|is| **is).count(), 1);
        }
    }
}
