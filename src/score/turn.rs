//! Where the level begins and ceases to change: change points.
//!
//! A shift is a change with a beginning and an end, and both are of interest: a valve begins to
//! close and is closed. The change of the newest samples' mean against those before (the longest
//! scale of `change.rs`) rises beyond what is usual at the one and falls back at the other.

use serde::{Deserialize, Serialize};

/// Whether the level of a key is changing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    changing: bool,
}

/// Typical sizes of a change, its mean sizes so far, beyond which the level is changing, and below
/// which it has ceased to. For normal noise a typical size is 0.8 standard deviations.
const BEGINS: f32 = 8.0;
const CEASES: f32 = 6.0;

impl Turn {
    /// Takes the largest change that ends in a segment, in typical sizes; returns whether the
    /// level has begun or ceased to change with it.
    pub fn push(&mut self, size: f32) -> bool {
        let changing = size > if self.changing { CEASES } else { BEGINS };
        std::mem::replace(&mut self.changing, changing) != changing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_turns_where_it_begins_and_where_it_ends() {
        let mut turn = Turn::default();
        let sizes = [1.0, 2.0, 7.0, 9.0, 12.0, 7.0, 9.0, 5.0, 7.0, f32::NAN];
        let turns: Vec<usize> = (0..sizes.len()).filter(|at| turn.push(sizes[*at])).collect();
        assert_eq!(turns, [3, 7]);
    }
}
