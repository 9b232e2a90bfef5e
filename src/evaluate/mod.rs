//! Labelled recordings: prequential scores and the measures they are judged by.

mod error;
pub mod layout;
pub mod measures;
mod plot;
mod report;
mod run;

pub use error::EvaluateError;
pub use layout::Layout;
pub use report::{Judged, Nab, Report};
pub use run::{Evaluation, run};
