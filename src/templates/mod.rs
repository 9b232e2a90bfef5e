//! draft
mod mask;
mod miner;
pub use mask::{Line, MASK};
pub use miner::{Found, MAX_TEMPLATES, Miner, Template};
