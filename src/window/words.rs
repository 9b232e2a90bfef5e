//! Numbers of 64 bits among values of 32: a row of these holds a whole sample.

/// Words of a sample's time and offset.
pub(super) const HEAD: usize = 4;

/// Two numbers as [`HEAD`] words. They are bits that stand for no value, some of them NaN: none is
/// reckoned with, and what is only moved stays what it is.
pub(super) fn words(time: i64, offset: i64) -> [f32; HEAD] {
    let [time, time_high] = halves(time);
    let [offset, offset_high] = halves(offset);
    [time, time_high, offset, offset_high]
}

/// The numbers of such words.
pub(super) fn numbers(words: &[f32]) -> (i64, i64) {
    (whole([words[0], words[1]]), whole([words[2], words[3]]))
}

/// The lower half of a number, then the upper one.
pub(super) fn halves(number: i64) -> [f32; 2] {
    [number as u32, (number >> 32) as u32].map(f32::from_bits)
}

pub(super) fn whole([low, high]: [f32; 2]) -> i64 {
    i64::from(low.to_bits()) | i64::from(high.to_bits()) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_from_their_words() {
        // Among them all that are NaN of some kind in one half.
        let some = [0, 1, -1, i64::MIN, i64::MAX, 0x7fa0_0001_ff80_0001, -5_000_000_000];
        for number in some {
            assert_eq!(numbers(&words(number, !number)), (number, !number));
        }
    }
}
