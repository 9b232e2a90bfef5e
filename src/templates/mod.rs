//! Lines of text become channels: each line a template, and what is telling about it as numbers.
//!
//! | file | what it is |
//! | --- | --- |
//! | `mask.rs` | a line becomes tokens, with what is surely a parameter masked |
//! | `miner.rs` | templates of lines, mined as lines come, by Drain |
//! | `channels.rs` | the numbers |
//! | `lane.rs` | [`Templates`]: all of it for one lane |
//!
//! The miner is our own. Of the crates that offer Drain, `drain3` 0.3 cannot be saved, refuses
//! further templates where it is full instead of letting old ones go, allocates for every token of
//! every line, and ends the process on a pattern that is none; `drain-rs` 0.3 never makes a
//! parameter of what differs (it compares each token with itself), grows without bound, and walks
//! hash maps in no fixed order. What is needed here is small: bounded, the same on replay, saved
//! with the lane, one setting for whatever is logged.
//!
//! Everything is prequential: a line is described by those before it, then learned from.

mod channels;
mod lane;
mod mask;
mod miner;

pub use channels::{ALARM, CHANNELS, OF_TEMPLATES, SILENCE, silence};
pub use lane::{Tag, Templates};
pub use mask::{Line, MASK};
pub use miner::{Found, MAX_TEMPLATES, Miner, Template};
