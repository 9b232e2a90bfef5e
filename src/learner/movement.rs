//! How much the channels of a segment move, in place of where they are.
//!
//! A beat that comes too early looks like any other beat, and a baseline that wanders hides it from
//! whoever compares values. The size of a channel's steps, averaged over a short while, tells when
//! something happens, wherever the channel is, and to within that while. Of it the root is taken:
//! else how large a step is would count for more than when it comes.

/// Averages go over this share of a segment.
const SHARE: usize = 8;

/// Of each channel of a segment `[channels, time]`, the root of the mean size of the steps that lead to each
/// sample and those shortly before it. Steps from before the segment, and from or to missing
/// samples, count as none; where a sample is missing, so is its movement.
pub(super) fn movement(segment: &[f32], time: usize) -> Vec<f32> {
    let mut moved = Vec::with_capacity(segment.len());
    let span = (time / SHARE).max(1);
    for samples in segment.chunks_exact(time) {
        let step = |at: usize| match at.checked_sub(1) {
            Some(before) => (samples[at] - samples[before]).abs(),
            None => 0.0,
        };
        let size = |at: usize| Some(step(at)).filter(|step| step.is_finite()).unwrap_or(0.0);
        let mut sum = 0.0_f64;
        for (at, sample) in samples.iter().enumerate() {
            sum += f64::from(size(at));
            if at >= span {
                sum -= f64::from(size(at - span));
            }
            moved.push(if sample.is_nan() {
                f32::NAN
            } else {
                (sum / span as f64).max(0.0).sqrt() as f32
            });
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_moves_the_samples_after_it_for_an_eighth_of_the_segment() {
        let mut segment = [3.0; 32];
        segment[8..16].fill(5.0);
        segment[24] = f32::NAN;
        let moved = movement(&segment, 16);
        assert_eq!(moved[..8], [0.0; 8]);
        assert_eq!(moved[8..11], [1.0, 1.0, 0.0]);
        assert!(moved[24].is_nan());
        assert_eq!(moved[25..], [0.0; 7]);
        assert!(movement(&[f32::MAX, f32::MIN, 0.0, 1.0], 4).iter().all(|moved| moved.is_finite()));
    }
}
