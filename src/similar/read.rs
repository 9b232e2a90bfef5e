//! Embeddings from the files that they were written to.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{By, SimilarError};

/// Rows of a batch that is read.
const BATCH_ROWS: usize = 8_192;

/// What is known of the rows, without their embeddings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// Every key once.
    keys: Vec<Arc<str>>,
    /// Per row, its place in `keys`.
    key: Vec<u32>,
    /// Microseconds since the epoch of the first and the last sample.
    start: Vec<i64>,
    end: Vec<i64>,
    /// Number of the segment, or of a trajectory's first.
    sequence: Vec<i64>,
    version: Vec<i64>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.key.len()
    }
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    path: String,
    size: u64,
    /// Microseconds since the epoch.
    modified: u64,
}

/// Embeddings with what they are of.
#[derive(Clone, Debug, Default)]
pub struct Embeddings {
    pub(super) rows: Rows,
    width: usize,
    /// `[rows, width]`, of unit length; empty where an index holds them.
    values: Vec<f32>,
}

impl Embeddings {
    /// Reads all embeddings below `folder`, in the order of the files' names. `version` leaves out
    /// those of other versions of the model.
    ///
    /// # Errors
    /// If a file cannot be read or there is none, or embeddings differ in length.
    pub fn read(folder: &Path, by: By, version: Option<u64>) -> Result<Self, SimilarError> {
        let mut embeddings = Self::default();
        let mut places = FxHashMap::default();
        for path in files(folder, by)? {
            embeddings.read_file(&path, by, version, &mut places)?;
        }
        if embeddings.is_empty() {
            return Err(SimilarError::Empty { path: folder.to_owned(), by: by.name() });
        }
        Ok(embeddings)
    }

    pub(super) fn without_values(rows: Rows, width: usize) -> Self {
        Self { rows, width, values: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.rows.key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.key.is_empty()
    }

    /// Length of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[rows, width]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn key(&self, row: usize) -> &str {
        &self.rows.keys[self.rows.key[row] as usize]
    }

    /// First and last microsecond since the epoch.
    pub fn window(&self, row: usize) -> (i64, i64) {
        (self.rows.start[row], self.rows.end[row])
    }

    pub fn sequence(&self, row: usize) -> i64 {
        self.rows.sequence[row]
    }

    pub fn version(&self, row: usize) -> i64 {
        self.rows.version[row]
    }

    /// Rows per version of the model.
    pub fn versions(&self) -> BTreeMap<i64, usize> {
        let mut versions = BTreeMap::new();
        for version in &self.rows.version {
            *versions.entry(*version).or_default() += 1;
        }
        versions
    }

    /// The row of `key` whose window holds `at`, microseconds since the epoch; of several the one
    /// whose middle is nearest. Without a time, the latest.
    pub fn find(&self, key: &str, at: Option<i64>) -> Option<usize> {
        let key = self.rows.keys.iter().position(|known| &**known == key)?;
        let rows = (0..self.len()).filter(|row| self.rows.key[*row] as usize == key);
        let Some(at) = at else { return rows.max_by_key(|row| self.rows.end[*row]) };
        rows.filter(|row| (self.rows.start[*row]..=self.rows.end[*row]).contains(&at)).min_by_key(
            |row| {
                let (start, end) = self.window(*row);
                (start.midpoint(end)).abs_diff(at)
            },
        )
    }

    /// Whether `other` may stand beside `row`: it is no part of the same time of the same key, and
    /// of another key where these alone are asked for.
    pub fn is_apart(&self, row: usize, other: usize, other_keys: bool) -> bool {
        let same_key = self.rows.key[row] == self.rows.key[other];
        let (start, end) = self.window(row);
        let overlaps = self.rows.start[other] <= end && start <= self.rows.end[other];
        row != other && !(same_key && (other_keys || overlaps))
    }

    fn read_file(
        &mut self,
        path: &Path,
        by: By,
        version: Option<u64>,
        places: &mut FxHashMap<Arc<str>, u32>,
    ) -> Result<(), SimilarError> {
        let failed = |reason: &dyn std::fmt::Display| unreadable(path, reason);
        let file = File::open(path).map_err(|error| failed(&error))?;
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&error))?;
        let names = Names::of(by);
        let wanted = [names.key, names.start, names.end, names.sequence, VERSION, EMBEDDING];
        let schema = builder.schema();
        let fields = schema.fields().iter().enumerate();
        let roots: Vec<usize> = fields
            .filter(|(_, field)| wanted.contains(&field.name().as_str()))
            .map(|(at, _)| at)
            .collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| failed(&error))?;
        for batch in reader {
            let batch = batch.map_err(|error| failed(&error))?;
            self.take(path, &batch, &names, version, places)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        path: &Path,
        batch: &RecordBatch,
        names: &Names,
        version: Option<u64>,
        places: &mut FxHashMap<Arc<str>, u32>,
    ) -> Result<(), SimilarError> {
        let column = |name: &str, kind: &DataType| {
            let column = batch.column_by_name(name);
            let column = column.ok_or_else(|| unreadable(path, &format!("no column {name}")))?;
            cast(column, kind).map_err(|error| unreadable(path, &error))
        };
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let key = column(names.key, &DataType::Utf8)?;
        let start = column(names.start, &time)?;
        let end = column(names.end, &time)?;
        let sequence = column(names.sequence, &DataType::Int64)?;
        let versions = column(VERSION, &DataType::Int64)?;
        let versions = versions.as_primitive::<Int64Type>();
        let embedding = batch
            .column_by_name(EMBEDDING)
            .and_then(|column| column.as_fixed_size_list_opt())
            .ok_or_else(|| unreadable(path, &"no column embedding of lists of one length"))?;
        let width = embedding.value_length() as usize;
        if self.width == 0 {
            self.width = width;
        }
        if width != self.width {
            let (path, expected) = (path.to_owned(), self.width);
            return Err(SimilarError::Width { path, expected, found: width });
        }
        let values = embedding
            .values()
            .as_primitive_opt::<Float32Type>()
            .ok_or_else(|| unreadable(path, &"expected embeddings of 32-bit floats"))?;
        for row in 0..batch.num_rows() {
            let of = versions.value(row);
            if version.is_some_and(|version| version.cast_signed() != of) {
                continue;
            }
            let key = key.as_string::<i32>().value(row);
            let place = match places.get(key) {
                Some(place) => *place,
                None => {
                    let key: Arc<str> = key.into();
                    self.rows.keys.push(key.clone());
                    let place = self.rows.keys.len() as u32 - 1;
                    places.insert(key, place);
                    place
                }
            };
            self.rows.key.push(place);
            self.rows.start.push(start.as_primitive::<TimestampMicrosecondType>().value(row));
            self.rows.end.push(end.as_primitive::<TimestampMicrosecondType>().value(row));
            self.rows.sequence.push(sequence.as_primitive::<Int64Type>().value(row));
            self.rows.version.push(of);
            let first = row * width;
            self.values.extend_from_slice(&values.values()[first..first + width]);
        }
        Ok(())
    }
}

const VERSION: &str = "model_version";
const EMBEDDING: &str = "embedding";

/// What the columns are called.
struct Names {
    key: &'static str,
    start: &'static str,
    end: &'static str,
    sequence: &'static str,
}

impl Names {
    fn of(by: By) -> Self {
        match by {
            By::Segment => {
                Self { key: "key", start: "window_start", end: "window_end", sequence: "sequence" }
            }
            By::Day | By::Stay | By::Key => {
                Self { key: "key", start: "start", end: "end", sequence: "first_sequence" }
            }
        }
    }
}

/// The Parquet files of segments, or of trajectories of a kind, in the order of their names.
fn files(folder: &Path, by: By) -> Result<Vec<PathBuf>, SimilarError> {
    let mut files = Vec::new();
    let below = match by {
        By::Segment => folder.to_owned(),
        _ => {
            let of_kind = folder.join("trajectories").join(format!("by={}", by.name()));
            if !of_kind.is_dir() {
                return Err(SimilarError::Empty { path: folder.to_owned(), by: by.name() });
            }
            of_kind
        }
    };
    walk(&below, by, &mut files)?;
    files.sort_unstable();
    Ok(files)
}

fn walk(folder: &Path, by: By, files: &mut Vec<PathBuf>) -> Result<(), SimilarError> {
    let failed = |reason: std::io::Error| unreadable(folder, &reason);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name(), entry.path());
        // What is staged, and an index, begin like this.
        if matches!(name.as_encoded_bytes().first(), Some(b'.' | b'_')) {
            continue;
        }
        if path.is_dir() {
            if by != By::Segment || name != "trajectories" {
                walk(&path, by, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    Ok(())
}

/// The files as they are now.
pub(super) fn seen(folder: &Path, by: By) -> Result<Vec<Seen>, SimilarError> {
    let seen = files(folder, by)?.into_iter().map(|path| {
        let metadata = path.metadata().map_err(|error| unreadable(&path, &error))?;
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let below = path.strip_prefix(folder).unwrap_or(&path);
        Ok(Seen {
            path: below.to_string_lossy().into_owned(),
            size: metadata.len(),
            modified: modified.map_or(0, |time| time.as_micros() as u64),
        })
    });
    seen.collect()
}

pub(super) fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> SimilarError {
    SimilarError::Read { path: path.to_owned(), reason: reason.to_string() }
}
