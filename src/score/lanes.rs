//! Channels side by side.
//!
//! What is reckoned for each channel of a segment is the same arithmetic, and hardly any of it can
//! be shared out among the samples of one: each waits for the last. Channels do not wait for each
//! other. A vector of the processor's takes as many of them as it has lanes; states are kept in
//! rows of one number a channel, `[rows, channels]`, however wide that is.

use std::ops::{Add, Div, Mul, Sub};

use pulp::Simd;

use crate::window::transpose;

/// One number for each of a few channels.
#[derive(Clone, Copy)]
pub struct Lanes<S: Simd> {
    simd: S,
    values: S::f32s,
}

/// What is so for some of the channels.
#[derive(Clone, Copy)]
pub struct Mask<S: Simd> {
    simd: S,
    lanes: S::m32s,
}

/// Most lanes of any vector.
pub const MOST: usize = 16;

/// Sets what rows `[rows, channels]` hold of one channel to 0.
pub fn clear(rows: &mut [f32], channel: usize, channels: usize) {
    rows.iter_mut().skip(channel).step_by(channels).for_each(|value| *value = 0.0);
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    pub fn splat(simd: S, value: f32) -> Self {
        Self { simd, values: simd.splat_f32s(value) }
    }

    /// At most as many values as there are lanes; the other lanes are 0.
    #[inline(always)]
    pub fn load(simd: S, values: &[f32]) -> Self {
        Self { simd, values: simd.partial_load_f32s(values) }
    }

    /// Writes the first lanes.
    #[inline(always)]
    pub fn store(self, into: &mut [f32]) {
        self.simd.partial_store_f32s(into, self.values);
    }

    #[inline(always)]
    pub fn array(self) -> [f32; MOST] {
        let mut values = [0.0; MOST];
        self.store(&mut values);
        values
    }

    #[inline(always)]
    fn with(self, values: S::f32s) -> Self {
        Self { values, ..self }
    }

    #[inline(always)]
    fn mask(self, lanes: S::m32s) -> Mask<S> {
        Mask { simd: self.simd, lanes }
    }

    #[inline(always)]
    pub fn constant(self, value: f32) -> Self {
        self.with(self.simd.splat_f32s(value))
    }

    /// `self * by + more`, rounded once.
    #[inline(always)]
    pub fn mul_add(self, by: Self, more: Self) -> Self {
        self.with(self.simd.mul_add_f32s(self.values, by.values, more.values))
    }

    #[inline(always)]
    pub fn abs(self) -> Self {
        self.with(self.simd.abs_f32s(self.values))
    }

    /// The larger of both; `other` where `self` is NaN.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        self.greater(other).choose(self, other)
    }

    /// The smaller of both; `other` where `self` is NaN.
    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        other.greater(self).choose(self, other)
    }

    #[inline(always)]
    pub fn greater(self, than: Self) -> Mask<S> {
        self.mask(self.simd.greater_than_f32s(self.values, than.values))
    }

    #[inline(always)]
    pub fn equals(self, other: Self) -> Mask<S> {
        self.mask(self.simd.equal_f32s(self.values, other.values))
    }

    /// Where `self` is at least `than`.
    #[inline(always)]
    pub fn reaches(self, than: Self) -> Mask<S> {
        self.mask(self.simd.greater_than_or_equal_f32s(self.values, than.values))
    }

    /// Where it is not NaN.
    #[inline(always)]
    pub fn known(self) -> Mask<S> {
        self.mask(self.simd.equal_f32s(self.values, self.values))
    }

    /// Where it is neither NaN nor infinite.
    #[inline(always)]
    pub fn finite(self) -> Mask<S> {
        self.constant(f32::MAX).reaches(self.abs())
    }

    /// The natural logarithm of positive normal numbers, to within 2 units in the last place: of
    /// the power of two and of the rest in `sqrt(1/2)..sqrt(2)`, by Cephes' polynomial (Moshier).
    #[inline(always)]
    pub fn ln(self) -> Self {
        let simd = self.simd;
        const COEFFICIENTS: [f32; 9] = [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ];
        // Bits of 1.0 and of sqrt(1/2): rounding the exponent, not down but so that the rest is
        // around 1.
        const ONE: u32 = 0x3f80_0000;
        const ROOT: u32 = 0x3f35_04f3;
        let splat = |value| simd.splat_u32s(value);
        let bits = simd.transmute_u32s_f32s(self.values);
        let shifted = simd.add_u32s(bits, splat(ONE - ROOT));
        let exponent = simd.wrapping_dyn_shr_u32s(shifted, splat(23));
        let fraction = simd.and_u32s(shifted, splat(0x007f_ffff));
        let rest = self.with(simd.transmute_f32s_u32s(simd.add_u32s(fraction, splat(ROOT))));
        // An integer below 2^23 in the low bits of 2^23 is that integer more.
        let power = simd.or_u32s(exponent, splat(0x4b00_0000));
        let power = self.with(simd.transmute_f32s_u32s(power)) - self.constant(8_388_608.0 + 127.0);

        let x = rest - self.constant(1.0);
        let square = x * x;
        let mut polynomial = self.constant(COEFFICIENTS[0]);
        for coefficient in &COEFFICIENTS[1..] {
            polynomial = polynomial.mul_add(x, self.constant(*coefficient));
        }
        let low = power.mul_add(self.constant(-2.121_944_4e-4), polynomial * square * x);
        let low = square.mul_add(self.constant(-0.5), low);
        power.mul_add(self.constant(0.693_359_4), x + low)
    }
}

impl<S: Simd> Mask<S> {
    /// `yes` where it is so, `no` elsewhere.
    #[inline(always)]
    pub fn choose(self, yes: Lanes<S>, no: Lanes<S>) -> Lanes<S> {
        yes.with(self.simd.select_f32s(self.lanes, yes.values, no.values))
    }

    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self { lanes: self.simd.and_m32s(self.lanes, other.lanes), ..self }
    }

    #[inline(always)]
    pub fn not(self) -> Self {
        Self { lanes: self.simd.not_m32s(self.lanes), ..self }
    }

    /// Whether it is so for any channel.
    #[inline(always)]
    pub fn any(self) -> bool {
        self.simd.first_true_m32s(self.lanes) < S::F32_LANES
    }
}

macro_rules! operator {
    ($operator:ident, $method:ident, $of_simd:ident) => {
        impl<S: Simd> $operator for Lanes<S> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.with(self.simd.$of_simd(self.values, other.values))
            }
        }
    };
}

operator!(Add, add, add_f32s);
operator!(Sub, sub, sub_f32s);
operator!(Mul, mul, mul_f32s);
operator!(Div, div, div_f32s);

/// Where the channels of a group lie in a row.
#[derive(Clone, Copy)]
pub struct Group<S: Simd> {
    simd: S,
    channels: usize,
    first: usize,
    end: usize,
}

impl<S: Simd> Group<S> {
    /// The groups of a row of `channels`.
    #[inline(always)]
    pub fn all(simd: S, channels: usize) -> impl Iterator<Item = Self> {
        (0..channels).step_by(S::F32_LANES).map(move |first| {
            let end = channels.min(first + S::F32_LANES);
            Self { simd, channels, first, end }
        })
    }

    /// Indices of its channels.
    #[inline(always)]
    pub fn range(self) -> std::ops::Range<usize> {
        self.first..self.end
    }

    /// The lanes of the row at `row` of `rows`, `[rows, channels]`.
    #[inline(always)]
    pub fn load(self, rows: &[f32], row: usize) -> Lanes<S> {
        let start = row * self.channels;
        Lanes::load(self.simd, &rows[start + self.first..start + self.end])
    }

    /// The samples at a time; lanes without a channel hold some number.
    #[inline(always)]
    pub fn at(self, samples: &Samples, time: usize) -> Lanes<S> {
        self.ahead(&samples.values, time, samples.width, 0)
    }

    /// Likewise of rows that are `width` wide, at least [`MOST`] more than the last group's first
    /// channel, of the channel so far `ahead` of each.
    #[inline(always)]
    pub fn ahead(self, rows: &[f32], row: usize, width: usize, ahead: usize) -> Lanes<S> {
        let start = row * width + self.first + ahead;
        let values = S::as_simd_f32s(&rows[start..start + S::F32_LANES]).0[0];
        Lanes { simd: self.simd, values }
    }

    #[inline(always)]
    pub fn store(self, rows: &mut [f32], row: usize, lanes: Lanes<S>) {
        let start = row * self.channels;
        lanes.store(&mut rows[start + self.first..start + self.end]);
    }

    #[inline(always)]
    pub fn splat(self, value: f32) -> Lanes<S> {
        Lanes::splat(self.simd, value)
    }

    /// Where there is a channel.
    #[inline(always)]
    pub fn taken(self) -> Mask<S> {
        let ones = Lanes::load(self.simd, &[1.0; MOST][..self.end - self.first]);
        ones.greater(self.splat(0.0))
    }
}

/// Samples of a segment, a row for each time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// `[time, width]`.
    values: Vec<f32>,
    channels: usize,
    /// Channels, and room for whole vectors.
    width: usize,
    time: usize,
}

impl Samples {
    /// Takes the place of what was held: a segment `[channels, time]`.
    pub fn fill(&mut self, segment: &[f32], time: usize) {
        self.channels = segment.len() / time;
        self.width = self.channels.next_multiple_of(MOST);
        self.time = time;
        self.values.resize(self.width * time, 0.0);
        transpose(segment, (time, time), &mut self.values, self.width, 0);
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn time(&self) -> usize {
        self.time
    }

    /// The samples at a time, one per channel.
    pub fn row(&self, time: usize) -> &[f32] {
        &self.values[time * self.width..][..self.channels]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Samples {
        /// A segment `[channels, time]`.
        pub fn new(segment: &[f32], time: usize) -> Self {
            let mut samples = Self::default();
            samples.fill(segment, time);
            samples
        }
    }

    struct Logarithms<'a>(&'a mut [f32]);

    impl pulp::WithSimd for Logarithms<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for values in self.0.chunks_mut(S::F32_LANES) {
                Lanes::load(simd, values).ln().store(values);
            }
        }
    }

    #[test]
    fn logarithms_are_close_to_those_of_the_library() {
        let values: Vec<f32> = (-120..120).map(|power| 1.37f32.powi(power)).collect();
        let near_one = (0..1000).map(|at| 0.5 + at as f32 * 1e-3);
        let values: Vec<f32> = values.into_iter().chain(near_one).collect();
        let mut found = values.clone();
        pulp::Arch::new().dispatch(Logarithms(&mut found));
        for (value, found) in values.iter().zip(found) {
            let exact = f64::from(*value).ln();
            assert!((f64::from(found) - exact).abs() <= 3e-7 * exact.abs().max(0.3), "{value}");
        }
    }

    #[test]
    fn samples_by_time_are_those_by_channel_turned() {
        let samples = Samples::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        assert_eq!([0, 1, 2].map(|at| samples.row(at)), [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]);
        assert_eq!((samples.channels(), samples.time()), (2, 3));
    }
}
