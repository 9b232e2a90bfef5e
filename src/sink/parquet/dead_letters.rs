//! Dead letters as JSON lines.

use std::fs::File;
use std::io::{BufWriter, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::super::SinkError;
use super::failed;
use super::staging::{Staged, Staging};
use crate::decode::DeadLetter;

/// Folder below the root; a leading underscore hides it from readers of data sets.
const FOLDER: &str = "_dead_letters";

/// Writes `_dead_letters/dead-letters-….jsonl`; without a dead letter there is no file.
pub(super) struct DeadLetters {
    open: Option<OpenFile>,
    roll: u64,
}

struct OpenFile {
    writer: BufWriter<File>,
    staged: Staged,
    size: u64,
}

impl DeadLetters {
    /// Files are closed at `roll` bytes.
    pub(super) fn new(roll: u64) -> Self {
        Self { open: None, roll }
    }

    pub(super) fn write(
        &mut self,
        letter: &DeadLetter,
        staging: &mut Staging,
    ) -> Result<(), SinkError> {
        let open = match &mut self.open {
            Some(open) => open,
            closed => {
                let (file, staged) = staging.create(FOLDER, "dead-letters", "jsonl")?;
                closed.insert(OpenFile { writer: BufWriter::new(file), staged, size: 0 })
            }
        };
        let mut line = serde_json::to_vec(&Line::from(letter))
            .map_err(|reason| failed(open.staged.path(), reason))?;
        line.push(b'\n');
        open.writer.write_all(&line).map_err(|reason| failed(open.staged.path(), reason))?;
        open.size += line.len() as u64;
        if open.size >= self.roll { self.finish(staging) } else { Ok(()) }
    }

    /// Syncs the open file, if there is one, and hands it to `staging`.
    pub(super) fn finish(&mut self, staging: &mut Staging) -> Result<(), SinkError> {
        let Some(OpenFile { writer, staged, .. }) = self.open.take() else { return Ok(()) };
        writer
            .into_inner()
            .map_err(|error| error.into_error())
            .and_then(|file| file.sync_all())
            .map_err(|reason| failed(staged.path(), reason))?;
        staging.keep(staged);
        Ok(())
    }
}

/// A dead letter as it is written. Bytes that are UTF-8 are text; others are null, and base64 in
/// the field of the same name with `_base64`.
#[derive(Serialize)]
struct Line<'a> {
    stage: &'a str,
    reason: &'a str,
    topic: &'a str,
    partition: i32,
    offset: i64,
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    headers: Vec<HeaderLine<'a>>,
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    name: &'a str,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl<'a> From<&'a DeadLetter> for Line<'a> {
    fn from(letter: &'a DeadLetter) -> Self {
        let (key, key_base64) = text_or_base64(letter.key.as_deref());
        let (payload, payload_base64) = text_or_base64(Some(&letter.payload));
        let headers = letter.headers.iter().map(|(name, value)| {
            let (value, value_base64) = text_or_base64(value.as_deref());
            HeaderLine { name, value, value_base64 }
        });
        Self {
            stage: letter.stage,
            reason: &letter.reason,
            topic: &letter.lane.topic,
            partition: letter.lane.partition,
            offset: letter.offset,
            key,
            key_base64,
            payload,
            payload_base64,
            headers: headers.collect(),
        }
    }
}

fn text_or_base64(bytes: Option<&[u8]>) -> (Option<&str>, Option<String>) {
    match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text), None),
        Some((bytes, Err(_))) => (None, Some(STANDARD.encode(bytes))),
    }
}
