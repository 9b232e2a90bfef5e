//! Records from files.

/// Files merged in event time.
pub struct FileSource {}
