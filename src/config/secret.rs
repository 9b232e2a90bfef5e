//! A value that is never shown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that neither `Debug` nor the printed pipeline file shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What is shown in its place.
    pub(super) const REDACTED: &str = "***";

    /// Keeps `text` from view.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The same field without its content.
    pub(super) fn redacted(&self) -> Self {
        Self(Self::REDACTED.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}
