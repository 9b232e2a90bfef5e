//! What lies in the folder of results: rows of Parquet files and lines of dead letters.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde::Deserialize;

use crate::tally::{Found, Place};
use crate::witness::{LETTERS, letter};

/// Folder of dead letters, and folder of files that are not results yet.
const DEAD_LETTERS: &str = "_dead_letters";
const STAGING: &str = "_staging";

/// Published files, each read once: they never change.
pub struct Files {
    known: BTreeSet<PathBuf>,
    pub rows: Found,
    pub letters: Found,
}

impl Files {
    pub fn new() -> Self {
        let (rows, letters) = (Found::in_order(), Found::in_any_order());
        Self { known: BTreeSet::new(), rows, letters }
    }

    /// Takes in the files that were published since the last call.
    pub fn read(&mut self, folder: &Path) -> anyhow::Result<()> {
        for path in files(folder) {
            if self.known.contains(&path) || path.starts_with(folder.join(STAGING)) {
                continue;
            }
            let read = if path.starts_with(folder.join(DEAD_LETTERS)) {
                self.read_letters(&path)
            } else {
                self.read_rows(&path)
            };
            read.with_context(|| path.display().to_string())?;
            self.known.insert(path);
        }
        Ok(())
    }

    fn read_rows(&mut self, path: &Path) -> anyhow::Result<()> {
        // The types that Parquet itself has, not those that its writer had.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let reader =
            ParquetRecordBatchReaderBuilder::try_new_with_options(File::open(path)?, options)?;
        let columns = ProjectionMask::columns(reader.parquet_schema(), ["key", "sequence"]);
        let name = name(path);
        let mut row = 0;
        for batch in reader.with_projection(columns).build()? {
            let batch = batch?;
            let column = |name| batch.column_by_name(name).with_context(|| format!("no {name}"));
            let keys = column("key")?.as_string_opt::<i32>().context("key is no text")?;
            let sequences = column("sequence")?;
            let sequences =
                sequences.as_primitive_opt::<Int64Type>().context("sequence is no number")?;
            for (key, sequence) in keys.iter().zip(sequences) {
                let (key, sequence) = key.zip(sequence).context("null in key or sequence")?;
                let place = Place::Row { file: name.as_str().into(), row };
                self.rows.add(key, u64::try_from(sequence)?, place);
                row += 1;
            }
        }
        Ok(())
    }

    fn read_letters(&mut self, path: &Path) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Line {
            payload: String,
        }
        let name = name(path);
        for (row, line) in fs::read_to_string(path)?.lines().enumerate() {
            let line: Line = serde_json::from_str(line)?;
            let place = Place::Row { file: name.as_str().into(), row };
            self.letters.add(LETTERS, letter(&line.payload)?, place);
        }
        Ok(())
    }

    /// How many files were published so far.
    pub fn count(&self) -> usize {
        self.known.len()
    }
}

/// Results that are staged still.
pub fn staged(folder: &Path) -> usize {
    let is_result = |path: &PathBuf| {
        let name = name(path);
        name.contains(".parquet") || name.contains(".jsonl")
    };
    let all = files(&folder.join(STAGING));
    all.iter().filter(|path| is_result(path)).count()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All files below a folder, by name; none if it is not there. Folders may come and go meanwhile.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}
