//! The numbers that describe a line.

use std::ops::Range;

use super::mask::mixed;
use super::miner::Found;

/// Names of a line's channels:
///
/// | channel | what it is |
/// | --- | --- |
/// | `severity` | from 0 (debug) to 7 (emergency); missing where it is not known |
/// | `silence` | seconds since the key's line before; missing for its first |
/// | `rarity` | `-ln` of the share of the line's template among the lane's lines of late |
/// | `novelty` | `ln` of how many times as old as the template the lane is, in lines |
/// | `parameters` | `ln(1 + n)`, n parameters of the line |
/// | `new_parameter` | `-ln` of how often parameters of the template have a new value, where one has; else 0 |
/// | `alarm` | `-ln` of the share of the lane's lines of late that are at least as severe, and a tenth of the nats by which the template is more frequent of late than usual |
/// | `code_0` … `code_7` | where the template's words lie: templates with words in common are near each other, in every lane the same |
pub const CHANNELS: [&str; 7 + CODES] = [
    "severity",
    "silence",
    "rarity",
    "novelty",
    "parameters",
    "new_parameter",
    "alarm",
    "code_0",
    "code_1",
    "code_2",
    "code_3",
    "code_4",
    "code_5",
    "code_6",
    "code_7",
];

/// Those of [`CHANNELS`] that follow from the line's template: as causes of an alert they are the
/// templates.
pub const OF_TEMPLATES: Range<usize> = 2..CHANNELS.len();

/// Dimensions in which templates lie.
const CODES: usize = 8;

/// Position of `silence`: windows fill it in, which know what came before once records are in order.
pub const SILENCE: usize = 1;

/// Position of `alarm`.
pub const ALARM: usize = 6;

/// Weight of a burst beside severity in `alarm`: among lines that are equally severe, what comes in
/// bursts comes first, and a burst of harmless lines stays harmless.
const BURST_WEIGHT: f32 = 0.1;

/// The value of `silence` after so many microseconds. Not their root or logarithm: among other
/// channels' changes, a pause of minutes then hardly shows.
pub fn silence(micros: i64) -> f32 {
    (micros.max(0) as f64 / 1e6) as f32
}

/// The channels of a line, without `silence`. `severity` is NaN where it is not known,
/// `severe` the nats by which that is above the usual.
pub(super) fn describe(
    found: &Found,
    code: &[f32; CODES],
    severity: f32,
    severe: f32,
) -> [f32; CHANNELS.len()] {
    let mut channels = [f32::NAN; CHANNELS.len()];
    let parameters = (found.parameters as f32).ln_1p();
    channels[0] = severity;
    channels[2..6].copy_from_slice(&[found.rarity, found.novelty, parameters, found.new_parameter]);
    channels[ALARM] = severe + BURST_WEIGHT * found.burst;
    channels[ALARM + 1..].copy_from_slice(code);
    channels
}

/// Where a template lies whose words have these hashes: the sum of a vector per word, of length 1
/// and of a direction that its hash decides, over the root of their number.
pub(super) fn code(words: impl Iterator<Item = u64>) -> [f32; CODES] {
    let (mut sum, mut count) = ([0.0_f32; CODES], 0_u32);
    for word in words {
        let mut direction = [0.0_f32; CODES];
        for (at, value) in direction.iter_mut().enumerate() {
            let bits =
                mixed(word.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            // The sum of four numbers of 16 bits is normal, or near it.
            let quarters = [0, 16, 32, 48].map(|shift| f32::from((bits >> shift) as u16));
            *value = quarters.iter().sum::<f32>() - 4.0 * 32_767.5;
        }
        let length = direction.iter().map(|value| value * value).sum::<f32>().sqrt();
        if length > 0.0 {
            sum.iter_mut().zip(direction).for_each(|(sum, value)| *sum += value / length);
            count += 1;
        }
    }
    sum.map(|value| value / (count.max(1) as f32).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::mask::hash;
    use super::*;

    fn code_of(text: &str) -> [f32; CODES] {
        code(text.split(' ').map(|word| hash(word.as_bytes())))
    }

    fn distance(one: &str, other: &str) -> f32 {
        let both = code_of(one).into_iter().zip(code_of(other));
        both.map(|(one, other)| (one - other).powi(2)).sum::<f32>().sqrt()
    }

    #[test]
    fn templates_with_words_in_common_lie_near_each_other() {
        let near = distance("session opened for user", "session closed for user");
        let far = distance("session opened for user", "disk quota exceeded on");
        assert!(near < 0.8 * far, "{near} against {far}");
        assert_eq!(distance("a b", "a b"), 0.0);
        assert_eq!(code(std::iter::empty()), [0.0; CODES]);
    }

    #[test]
    fn codes_are_what_they_were_in_every_version() {
        let rounded = code_of("session opened").map(|value| (value * 1000.0).round() as i32);
        assert_eq!(rounded, [-40, -621, -344, 700, -520, -148, 98, -79]);
    }

    #[test]
    fn a_line_is_described_by_its_template_and_its_severity() {
        let found = Found {
            id: 0,
            rarity: 1.0,
            novelty: 2.0,
            parameters: 0,
            new_parameter: 0.5,
            burst: 5.0,
        };
        let channels = describe(&found, &[0.25; CODES], f32::NAN, 0.0);
        assert!(channels[0].is_nan() && channels[SILENCE].is_nan());
        assert_eq!(channels[2..8], [1.0, 2.0, 0.0, 0.5, 0.5, 0.25]);
        let severe = describe(&found, &[0.25; CODES], 3.0, 2.0);
        assert_eq!([severe[0], severe[ALARM]], [3.0, 2.5]);
        assert_eq!([silence(4_000_000), silence(-5)], [4.0, 0.0]);
    }
}
