//! Messages as their owners' systems write them: not records in columns, but bytes to be decoded.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::source::SourceError;

/// Messages without end, in the order of event time, with injected, recorded faults.
pub trait MessageStream {
    /// What is recorded of a fault.
    type Fault: Serialize;

    /// Name of the file that a folder holds them in, a message a line.
    fn file(&self) -> &'static str;

    /// The first line of that file, where it is none of the messages.
    fn header(&self) -> Option<&'static str> {
        None
    }

    /// Makes the next message: its key, and its bytes without a line break.
    fn next_message(&mut self) -> (&str, &[u8]);

    /// Faults that began since the last call, in the order of their onsets.
    fn take_faults(&mut self) -> Vec<Self::Fault>;
}

/// A folder of generated messages: [`MessageStream::file`], and `_faults.jsonl` with the faults
/// that were injected into them. The underscore hides it from whoever reads the folder as records.
pub struct MessageFolder {
    path: PathBuf,
    out: BufWriter<File>,
    faults_path: PathBuf,
    faults_out: BufWriter<File>,
}

impl MessageFolder {
    /// Makes the folder, and the files in it anew.
    ///
    /// # Errors
    /// If the folder or a file cannot be made.
    pub fn create(folder: &Path, stream: &impl MessageStream) -> Result<Self, SourceError> {
        std::fs::create_dir_all(folder).map_err(file_error(folder))?;
        let (path, faults_path) = (folder.join(stream.file()), folder.join("_faults.jsonl"));
        let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(file_error(path));
        let (out, faults_out) = (create(&path)?, create(&faults_path)?);
        let mut folder = Self { path, out, faults_path, faults_out };
        match stream.header() {
            Some(header) => folder.write(header.as_bytes()).map(|()| folder),
            None => Ok(folder),
        }
    }

    /// Appends a message.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, message: &[u8]) -> Result<(), SourceError> {
        self.out
            .write_all(message)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(file_error(&self.path))
    }

    /// Appends faults, a JSON object a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_faults(&mut self, faults: &[impl Serialize]) -> Result<(), SourceError> {
        for fault in faults {
            serde_json::to_writer(&mut self.faults_out, fault)
                .map_err(io::Error::from)
                .and_then(|()| self.faults_out.write_all(b"\n"))
                .map_err(file_error(&self.faults_path))?;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish(mut self) -> Result<(), SourceError> {
        self.out.flush().map_err(file_error(&self.path))?;
        self.faults_out.flush().map_err(file_error(&self.faults_path))
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> SourceError + '_ {
    |error| SourceError::File { path: path.to_owned(), reason: error.to_string() }
}
