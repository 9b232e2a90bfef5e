//! Positive pairs: what the learner is to find similar.
//!
//! Recent standardised segments of all keys wait in a [`Pool`]. A pair is an anchor drawn from it
//! and a positive that is its temporal neighbour: a segment of the same key and run, up to
//! `pairs.max_distance` strides earlier. Both views are augmented ([`augment`]). A missing value
//! is NaN throughout, never a number.

pub mod augment;
mod pool;

pub use pool::{Origin, Pool};
