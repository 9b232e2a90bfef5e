//! Sudden changes: what is new in a segment, at several time scales, channel by channel.
//!
//! A small embedding does not see a single spike in one channel, and is slow to see a new level. The
//! mean of the newest samples against the mean of those before them sees both: the newest sample
//! against its predecessor, and a short and a longer mean against the rest of the segment (a
//! two-window test of a change in mean, as in Basseville & Nikiforov 1993). Each is measured in
//! its own typical size for the channel, robust to outliers, and then by how often the channel, of
//! any key, changes as much: a laboratory's value that jumps twice a day is not to hide a pulse that
//! never does.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::lanes::{Group, Lanes, Mask, Samples, clear};
use super::tail::Tail;

/// Number of time scales.
pub const SCALES: usize = 3;
/// Changes over which the typical size forgets.
const HORIZON: f32 = 5000.0;
/// Changes beyond this many typical sizes count as this many in what is typical.
const WINSOR: f32 = 3.0;
/// Before as many changes are known, there is nothing to bound by.
const FEW: f32 = 8.0;
/// Changes of a channel, of all keys, among which another is rare or not.
const REMEMBERED: usize = 1024;

/// The typical sizes of a key's changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Per time scale, running mean sizes and the number of changes in them: `[2 scales, channels]`.
    typical: Vec<f32>,
}

impl Changes {
    /// Takes raw `samples` (NaN where missing), of which the `fresh` last are new, and looks at the
    /// time scales of `scales`, of which 0 is the shortest. Writes per channel and scale the largest
    /// change that ends in a new one, in typical sizes of earlier ones; 0 where nothing can be said.
    pub fn push(
        &mut self,
        samples: &Samples,
        fresh: usize,
        scales: Range<usize>,
        found: &mut Vec<[f32; SCALES]>,
    ) {
        let channels = samples.channels();
        found.clear();
        found.resize(channels, [0.0; SCALES]);
        self.typical.resize(2 * SCALES * channels, 0.0);
        let typical = &mut self.typical;
        Arch::new().dispatch(Push { typical, samples, fresh, scales, found });
    }

    /// Forgets the typical sizes of a channel's changes.
    pub fn begin_anew(&mut self, channel: usize, channels: usize) {
        clear(&mut self.typical, channel, channels);
    }
}

/// How often each channel, of all keys, changes as much. Keys lend their measure, as everywhere; of these
/// probabilities the rarest is a statistic of the segment, calibrated in turn. Where channels are
/// grouped, those at the same place of their groups are one here, as they are to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rarity {
    channels: Vec<[Tail; SCALES]>,
}

impl Rarity {
    /// Writes `-ln p` of each of a segment's `changes`, as [`Changes::push`] finds them; 0 where nothing
    /// can be said.
    pub fn of(&self, changes: &[[f32; SCALES]], rarities: &mut Vec<[f32; SCALES]>) {
        rarities.clear();
        rarities.resize(changes.len(), [0.0; SCALES]);
        for ((rarities, changes), tails) in rarities.iter_mut().zip(changes).zip(&self.channels) {
            for ((rarity, change), tail) in rarities.iter_mut().zip(changes).zip(tails) {
                *rarity = -tail.p_value(*change).ln() as f32;
            }
        }
    }

    /// Learns the changes of a normal segment. One of 0, or not known, is none, and teaches nothing.
    pub fn learn(&mut self, changes: &[[f32; SCALES]]) {
        let tails = || std::array::from_fn(|_| Tail::of_last(REMEMBERED));
        self.channels.resize_with(changes.len(), tails);
        for (changes, tails) in changes.iter().zip(&mut self.channels) {
            for (change, tail) in changes.iter().zip(tails).filter(|(change, _)| **change > 0.0) {
                tail.learn(*change);
            }
        }
    }
}

/// Samples whose mean is compared with those before, per time scale, in segments of `time`.
fn recent_samples(time: usize) -> [usize; SCALES] {
    [1, (time / 12).max(2), (time / 4).max(3)]
}

struct Push<'a> {
    typical: &'a mut [f32],
    samples: &'a Samples,
    fresh: usize,
    scales: Range<usize>,
    found: &'a mut [[f32; SCALES]],
}

impl WithSimd for Push<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let recent = recent_samples(self.samples.time());
        for group in Group::all(simd, self.samples.channels()) {
            for scale in self.scales.clone() {
                let size = group.load(self.typical, 2 * scale);
                let seen = group.load(self.typical, 2 * scale + 1);
                let mut typical = Typical { size, seen };
                let largest = if scale == 0 {
                    steps(self.samples, self.fresh, &mut typical, group)
                } else {
                    shifts(self.samples, self.fresh, recent[scale], &mut typical, group)
                };
                group.store(self.typical, 2 * scale, typical.size);
                group.store(self.typical, 2 * scale + 1, typical.seen);
                let found = self.found[group.range()].iter_mut();
                found.zip(largest.array()).for_each(|(found, largest)| found[scale] = largest);
            }
        }
    }
}

/// The largest change from one sample to the next.
#[inline(always)]
fn steps<S: Simd>(
    samples: &Samples,
    fresh: usize,
    typical: &mut Typical<S>,
    group: Group<S>,
) -> Lanes<S> {
    let mut largest = group.splat(0.0);
    for at in samples.time().saturating_sub(fresh).max(1)..samples.time() {
        let change = group.at(samples, at) - group.at(samples, at - 1);
        largest = largest.max(typical.measure(change, change.known().and(group.taken())));
    }
    largest
}

/// The largest change of the mean of `recent` samples from those before.
#[inline(always)]
fn shifts<S: Simd>(
    samples: &Samples,
    fresh: usize,
    recent: usize,
    typical: &mut Typical<S>,
    group: Group<S>,
) -> Lanes<S> {
    let time = samples.time();
    let mut largest = group.splat(0.0);
    // The mean before must be the steadier of the two.
    let first = (time + 1).saturating_sub(fresh).max(2 * recent);
    if first > time {
        return largest;
    }
    let level = first_observed(samples, 0, group);
    let mut before = Sum { sum: group.splat(0.0), count: group.splat(0.0), level };
    for at in 0..first - recent {
        before.add(group.at(samples, at));
    }
    let mut all = before;
    for at in first - recent..first - 1 {
        all.add(group.at(samples, at));
    }
    for end in first..=time {
        let newest = group.at(samples, end - 1);
        all.add(newest);
        let mean = before.sum / before.count;
        let change = (all.sum - before.sum) / (all.count - before.count) - mean;
        // Where there are none before, there is no mean.
        let nothing = group.splat(0.0);
        let known = before.count.greater(nothing).and(newest.known()).and(group.taken());
        largest = largest.max(typical.measure(change, known));
        before.add(group.at(samples, end - recent));
    }
    largest
}

/// The first sample from row `from` on that is not missing, 0 where all are.
#[inline(always)]
pub fn first_observed<S: Simd>(samples: &Samples, from: usize, group: Group<S>) -> Lanes<S> {
    let mut first = group.splat(f32::NAN);
    for at in from..samples.time() {
        first = first.known().choose(first, group.at(samples, at));
        if !first.known().not().any() {
            return first;
        }
    }
    first.known().choose(first, group.splat(0.0))
}

/// Of samples less one of them: where channels are far from 0, changes are not lost.
#[derive(Clone, Copy)]
struct Sum<S: Simd> {
    sum: Lanes<S>,
    count: Lanes<S>,
    level: Lanes<S>,
}

impl<S: Simd> Sum<S> {
    #[inline(always)]
    fn add(&mut self, sample: Lanes<S>) {
        let (nothing, one) = (sample.constant(0.0), sample.constant(1.0));
        let observed = sample.known();
        self.sum = self.sum + observed.choose(sample - self.level, nothing);
        self.count = self.count + observed.choose(one, nothing);
    }
}

/// Running mean sizes of changes, and the number of changes in them.
struct Typical<S: Simd> {
    size: Lanes<S>,
    seen: Lanes<S>,
}

impl<S: Simd> Typical<S> {
    /// The size of `change` in typical sizes so far, which it then joins, where it is `known`. The
    /// first few say little: what is typical is taken to be larger then, by up to a factor of two.
    #[inline(always)]
    fn measure(&mut self, change: Lanes<S>, known: Mask<S>) -> Lanes<S> {
        let constant = |value| change.constant(value);
        let (nothing, few) = (constant(0.0), constant(FEW));
        // Of two infinite sums there is no difference: it is as large as can be.
        let size = change.abs().min(constant(f32::MAX));
        let is_size = self.size.greater(nothing);
        let doubt = constant(1.0) + few / (self.seen + few);
        let measured = known.and(is_size).choose(size / (doubt * self.size), nothing);
        let bound = constant(WINSOR) * self.size;
        let bounded = self.seen.greater(few).and(is_size).choose(size.min(bound), size);
        let seen = (self.seen + constant(1.0)).min(constant(HORIZON));
        self.seen = known.choose(seen, self.seen);
        self.size = known.choose(self.size + (bounded - self.size) / seen, self.size);
        measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_distr::StandardNormal;
    use rand_pcg::Pcg64Mcg;

    const TIME: usize = 48;

    impl Changes {
        /// What is found in a segment of one channel.
        fn found(&mut self, segment: &[f32], fresh: usize) -> [f32; SCALES] {
            let mut found = Vec::new();
            self.push(&Samples::new(segment, segment.len()), fresh, 0..SCALES, &mut found);
            found[0]
        }
    }

    /// Noise that `changes` has learned, sample by sample, and the sizes it found.
    fn noise(changes: &mut Changes, samples: usize) -> (Vec<f32>, Vec<[f32; SCALES]>) {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let values: Vec<f32> =
            (0..samples).map(|_| 50.0 + rng.sample::<f32, _>(StandardNormal)).collect();
        let found = values.windows(TIME).map(|segment| changes.found(segment, 1)).collect();
        (values, found)
    }

    #[test]
    fn changes_of_noise_are_of_typical_size() {
        let (_, found) = noise(&mut Changes::default(), 4000);
        for scale in 0..SCALES {
            let late = found[1000..].iter().map(|sizes| sizes[scale]);
            let mean = late.sum::<f32>() / (found.len() - 1000) as f32;
            assert!((0.9..1.2).contains(&mean), "{scale}: {mean}");
        }
    }

    #[test]
    fn a_spike_stands_out_at_the_shortest_scale_and_a_new_level_at_the_longest() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        segment[TIME - 1] += 10.0;
        let spike = changes.clone().found(&segment, 1);
        assert!(spike[0] > 6.0 && spike[0] > spike[2], "{spike:?}");
        segment[TIME - 1] -= 10.0;
        segment[TIME - TIME / 4..].iter_mut().for_each(|value| *value += 3.0);
        let level = changes.found(&segment, 1);
        assert!(level[2] > 6.0 && level[2] > level[0], "{level:?}");
    }

    /// Changes of a channel that makes a large one in ten, and of one that hardly moves.
    fn of_two_channels(rng: &mut Pcg64Mcg) -> [[f32; SCALES]; 2] {
        let mut small = || 0.3 * rng.sample::<f32, _>(StandardNormal).abs();
        let (one, other) = (small(), small());
        let jumps = rng.random_bool(0.1);
        [[if jumps { 20.0 + one } else { one }; SCALES], [other; SCALES]]
    }

    #[test]
    fn a_channel_that_often_jumps_does_not_hide_one_that_never_does() {
        let mut rng = Pcg64Mcg::seed_from_u64(2);
        let mut rarity = Rarity::default();
        for _ in 0..3000 {
            rarity.learn(&of_two_channels(&mut rng));
        }
        let mut found = Vec::new();
        rarity.of(&[[20.0; SCALES], [10.0; SCALES]], &mut found);
        for (scale, (jumping, calm)) in found[0].iter().zip(found[1]).enumerate() {
            assert!((1.0..4.0).contains(jumping), "{scale}: {jumping}");
            assert!(calm > 12.0, "{scale}: {calm}");
        }
    }

    #[test]
    fn of_channels_never_seen_to_change_nothing_is_said() {
        let mut rarity = Rarity::default();
        let mut found = vec![[7.0; SCALES]; 3];
        rarity.of(&[[9.0; SCALES]; 2], &mut found);
        assert_eq!(found, [[0.0; SCALES]; 2]);
        // No change at all, or one that is not known, teaches nothing.
        for _ in 0..100 {
            rarity.learn(&[[0.0; SCALES]; 2]);
        }
        rarity.of(&[[9.0; SCALES]; 2], &mut found);
        assert_eq!(found, [[0.0; SCALES]; 2]);
    }

    #[test]
    fn every_fresh_sample_counts() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        segment[TIME - 5] += 20.0;
        assert!(changes.clone().found(&segment, 8)[0] > 6.0);
        assert!(changes.found(&segment, 3)[0] < 6.0);
    }

    #[test]
    fn one_outlier_hardly_changes_what_is_typical() {
        let mut changes = Changes::default();
        let (values, _) = noise(&mut changes, 4000);
        let mut segment = values[values.len() - TIME..].to_vec();
        let before = changes.clone();
        segment[TIME - 1] = 1e9;
        changes.found(&segment, 1);
        for (after, before) in changes.typical.iter().zip(before.typical).step_by(2) {
            assert!(*after < 1.01 * before);
        }
    }

    #[test]
    fn changes_beyond_what_a_number_holds_do_not_blind_it() {
        let mut changes = Changes::default();
        let extremes: Vec<f32> =
            (0..TIME).map(|at| if at % 2 == 0 { f32::MAX } else { f32::MIN }).collect();
        for _ in 0..20 {
            assert!(changes.found(&extremes, 1).iter().all(|size| size.is_finite()));
        }
        let before = changes.typical[0];
        noise(&mut changes, 2000);
        assert!(changes.typical[0] < 0.9 * before, "{before} {changes:?}");
    }

    #[test]
    fn missing_and_constant_samples_make_no_change() {
        let mut changes = Changes::default();
        assert_eq!(changes.found(&[f32::NAN; TIME], TIME), [0.0; SCALES]);
        assert_eq!(changes.found(&[7.0; TIME], TIME), [0.0; SCALES]);
        let mut gap = [7.0; TIME];
        gap[TIME - 1] = f32::NAN;
        assert_eq!(changes.found(&gap, 1), [0.0; SCALES]);
        assert!(changes.found(&[7.0, 8.0, 7.0, 9.0], 4).iter().all(|size| size.is_finite()));
    }

    #[test]
    fn a_change_far_from_zero_is_as_large_as_one_near_it() {
        let mut found = [0.0, 4e6].map(|level| {
            let mut changes = Changes::default();
            let wave = |at: usize| level + if at.is_multiple_of(5) { 1.0 } else { (at % 3) as f32 };
            for at in 0..500 {
                let segment: Vec<f32> = (at..at + TIME).map(wave).collect();
                changes.found(&segment, 1);
            }
            let shifted = |at: usize| wave(at) + if at < 530 { 0.0 } else { 4.0 };
            let segment: Vec<f32> = (500..500 + TIME).map(shifted).collect();
            changes.found(&segment, 8)
        });
        found.iter_mut().for_each(|sizes| assert!(sizes[2] > 6.0));
        for (near, far) in found[0].iter().zip(found[1]) {
            assert!((near - far).abs() < 1e-3 * near, "{found:?}");
        }
    }

    #[test]
    fn a_channel_that_begins_anew_has_no_typical_changes_and_others_have() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut changes = Changes::default();
        let mut push = |changes: &mut Changes| {
            let segment: Vec<f32> = (0..2 * TIME).map(|_| rng.sample(StandardNormal)).collect();
            let mut found = Vec::new();
            changes.push(&Samples::new(&segment, TIME), 1, 0..SCALES, &mut found);
            found
        };
        for _ in 0..50 {
            push(&mut changes);
        }
        changes.begin_anew(0, 2);
        let found = push(&mut changes);
        assert_eq!(found[0], [0.0; SCALES]);
        assert!(found[1].iter().all(|size| *size > 0.0), "{found:?}");
    }
}
