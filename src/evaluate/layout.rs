//! How labelled recordings lie in files, and how their scores are written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDateTime};
use csv::StringRecord;

use super::EvaluateError;
use super::measures::change::Labelled;
use super::measures::nab;
use crate::config::{self, Csv, Format, Pipeline, Records, Source, TimeUnit};

mod lines;
mod table;

/// Name of the label column of SKAB's and of plain recordings.
const LABEL: &str = "anomaly";
/// Column of SKAB's change points, 0 or 1.
const CHANGE_POINT: &str = "changepoint";
/// Rows at the start of SKAB's recordings that are its training part.
const SKAB_TRAINING_ROWS: usize = 400;

/// A collection's way of laying out series: one file each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Numenta Anomaly Benchmark: `timestamp,value`; labels are windows in a JSON file.
    Nab,
    /// Skoltech Anomaly Benchmark: `;`-separated `datetime`, channels, `anomaly`, `changepoint`.
    Skab,
    /// The pipeline's own `[records]`, in CSV or Parquet files; labels are a column `anomaly` or a
    /// JSON file like NAB's.
    Csv,
    /// Lines of text in `.log` files, taken apart by the pipeline's `source.log.patterns`; a group
    /// `label` holds `-`, `0` or nothing where a line is normal.
    Log,
}

/// A series found under a data path, not read yet.
#[derive(Clone, Debug)]
pub struct Series {
    /// Where its file is.
    pub path: PathBuf,
    /// Path relative to the data path, with `/` between folders; the file's name where the data
    /// path is the file itself.
    pub name: String,
    layout: Layout,
    records: Records,
    csv: Csv,
    log: config::Log,
    /// First and last time of each labelled window, where a labels file has the series.
    windows: Option<Vec<[String; 2]>>,
}

/// A series as it was read, all rows in the order of the file.
#[derive(Clone, Debug)]
pub struct Recording {
    /// `[records]` of a pipeline that reads it: the file's name is the key.
    pub records: Records,
    /// How its file is encoded.
    pub format: Format,
    /// `[source.csv]` of a pipeline that reads it.
    pub csv: Csv,
    /// Each row's time as it stands in the file.
    pub times: Vec<String>,
    /// Number of the line at which each row begins, or of the row where there are no lines; the
    /// first of a file is 1.
    pub lines: Vec<i64>,
    /// Whether each row is anomalous, where that is labelled.
    pub labels: Option<Vec<bool>>,
    /// Rows of each labelled window, in order, where a labels file has the series.
    pub windows: Option<Vec<Range<usize>>>,
    /// Where the series changes, where that is labelled.
    pub change_points: Option<Labelled>,
}

/// A labels file in NAB's form: windows (first and last time) by the series' relative path.
type Labels = BTreeMap<String, Vec<[String; 2]>>;

impl Layout {
    /// The series under `data`, a folder (with its subfolders) or a single file, by name.
    ///
    /// A series takes its windows from the entry of the labels file that its path ends with.
    /// Series without an entry are not labelled; entries without a series are passed over.
    ///
    /// # Errors
    /// If `data` cannot be read or holds no file of the layout, the scores of two series would go into
    /// one file, the labels file is malformed, or it names none of the series.
    pub fn series(
        self,
        data: &Path,
        labels: Option<&Path>,
        pipeline: &Pipeline,
    ) -> Result<Vec<Series>, EvaluateError> {
        let labels_by_name = labels.map(read_labels).transpose()?;
        let mut series = Vec::new();
        for path in files(data, self.extensions())? {
            let windows = labels_by_name.as_ref().and_then(|all| windows_of(&path, all));
            series.push(Series {
                name: relative_name(data, &path)?,
                windows,
                layout: self,
                records: pipeline.records.clone(),
                csv: csv_dialect(&pipeline.source),
                log: pipeline.encoding().log,
                path,
            });
        }
        let Some(first) = series.first() else {
            let expected = self.extensions().join(" or .");
            return Err(EvaluateError::file(data, format!("no .{expected} file")));
        };
        refuse_shared_results(&series)?;
        if let (Some(path), Some(all)) = (labels, &labels_by_name)
            && !series.iter().any(|one| one.windows.is_some())
        {
            let named = all.keys().next().map_or("no series", String::as_str);
            let reason = format!(
                "expected labels of the series under {}, such as {}; found {named}",
                data.display(),
                first.name
            );
            return Err(EvaluateError::file(path, reason));
        }
        Ok(series)
    }

    /// Rows at the start of a series of `rows` rows that row-wise measures leave out: NAB's
    /// probation, SKAB's training part.
    pub fn skipped_rows(self, rows: usize) -> usize {
        match self {
            Self::Nab => nab::probation(rows),
            Self::Skab => SKAB_TRAINING_ROWS,
            Self::Csv | Self::Log => 0,
        }
    }

    /// Extensions of the files that are series.
    fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Nab | Self::Skab => &["csv"],
            Self::Csv => &["csv", "parquet"],
            Self::Log => &["log"],
        }
    }
}

/// What a file says of its rows.
#[derive(Debug, Default)]
struct Rows {
    times: Vec<String>,
    lines: Vec<i64>,
    labels: Option<Vec<bool>>,
    /// Rows at which the series changes, where that is labelled.
    change_points: Option<Vec<usize>>,
    /// Columns that hold numbers, by name.
    numeric: Vec<String>,
}

impl Series {
    /// Reads the series.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column, has no rows, a malformed label, or no row
    /// within a labelled window.
    pub fn load(&self) -> Result<Recording, EvaluateError> {
        let format = self.format();
        let rows = match format {
            Format::Parquet => table::read(&self.path, self.time_column())?,
            Format::Log => lines::read(&self.path, self.time_column(), &self.log)?,
            _ => self.read_csv()?,
        };
        if rows.times.is_empty() {
            return Err(EvaluateError::file(&self.path, "no rows"));
        }
        let windows = match &self.windows {
            Some(windows) => Some(self.rows_of_windows(windows, &self.instants(&rows)?)?),
            None => None,
        };
        let instants = match rows.change_points {
            Some(_) => self.instants(&rows)?,
            None => Vec::new(),
        };
        let change_points = rows.change_points.map(|rows| Labelled { instants, rows });
        let labels = match &windows {
            Some(windows) => Some(rows_within(windows, rows.times.len())),
            None => rows.labels,
        };
        Ok(Recording {
            records: self.records(rows.numeric)?,
            format,
            csv: self.dialect(),
            times: rows.times,
            lines: rows.lines,
            labels,
            windows,
            change_points,
        })
    }

    fn read_csv(&self) -> Result<Rows, EvaluateError> {
        let bytes =
            fs::read(&self.path).map_err(|reason| EvaluateError::file(&self.path, reason))?;
        let mut reader = self.reader(&bytes)?;
        let header = if self.dialect().columns.is_empty() {
            reader.headers().map_err(|reason| self.malformed(&reason))?.clone()
        } else {
            StringRecord::from(self.dialect().columns)
        };
        let column = |name: &str| header.iter().position(|column| column == name);
        let time_name = self.time_column();
        let Some(time) = column(time_name) else {
            return Err(no_column(&self.path, time_name, header.iter()));
        };
        let is_channel = |name: &str| self.layout == Layout::Csv && self.has_channel(name);
        let label = column(LABEL).filter(|_| self.layout != Layout::Nab && !is_channel(LABEL));
        let change_point = column(CHANGE_POINT).filter(|_| self.layout == Layout::Skab);

        let mut rows = Rows::default();
        let mut lines = Lines { bytes: &bytes, at: 0, number: 1 };
        let mut labels = Vec::new();
        let mut change_points = Vec::new();
        let mut numeric = vec![None; header.len()];
        for row in reader.records() {
            let row = row.map_err(|reason| self.malformed(&reason))?;
            let malformed = |reason| EvaluateError::line(&self.path, line_of(&row), reason);
            if row.len() != header.len() {
                let (expected, found) = (header.len(), row.len());
                return Err(malformed(format!("expected {expected} columns, found {found}")));
            }
            rows.times.push(row[time].to_owned());
            rows.lines.push(lines.number_of(&row));
            let is_labelled = |column: usize| {
                let text = &row[column];
                parse_label(text).ok_or_else(|| {
                    let name = &header[column];
                    malformed(format!("column {name}: expected 0 or 1, found \"{text}\""))
                })
            };
            if let Some(label) = label {
                labels.push(is_labelled(label)?);
            }
            if let Some(change_point) = change_point
                && is_labelled(change_point)?
            {
                change_points.push(rows.times.len() - 1);
            }
            for (is_numeric, value) in numeric.iter_mut().zip(&row) {
                if is_numeric.is_none() && !value.trim().is_empty() {
                    *is_numeric = Some(value.trim().parse::<f64>().is_ok());
                }
            }
        }
        let channels = header.iter().zip(numeric);
        let channels = channels.filter(|(_, is_numeric)| *is_numeric == Some(true));
        rows.numeric = channels.map(|(name, _)| name.to_owned()).collect();
        rows.labels = label.map(|_| labels);
        rows.change_points = change_point.map(|_| change_points);
        Ok(rows)
    }

    /// When each row was, microseconds since the epoch.
    fn instants(&self, rows: &Rows) -> Result<Vec<i64>, EvaluateError> {
        let times = rows.times.iter().zip(&rows.lines);
        times
            .map(|(time, line)| {
                instant(time, self.records.time_unit).ok_or_else(|| {
                    let name = self.time_column();
                    let reason = format!("column {name}: expected a time, found \"{time}\"");
                    EvaluateError::line(&self.path, line.unsigned_abs(), reason)
                })
            })
            .collect()
    }

    /// Path of its scores, relative to where all are written.
    fn result(&self) -> PathBuf {
        Path::new(&self.name).with_extension("csv")
    }

    fn format(&self) -> Format {
        let is_parquet = self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        match self.layout {
            Layout::Log => Format::Log,
            Layout::Csv if is_parquet => Format::Parquet,
            Layout::Nab | Layout::Skab | Layout::Csv => Format::Csv,
        }
    }

    fn reader<'a>(&self, bytes: &'a [u8]) -> Result<csv::Reader<&'a [u8]>, EvaluateError> {
        let dialect = self.dialect();
        let delimiter = u8::try_from(dialect.delimiter).map_err(|_| {
            let reason = format!("delimiter '{}': expected one byte", dialect.delimiter);
            EvaluateError::file(&self.path, reason)
        })?;
        Ok(csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(dialect.columns.is_empty())
            // Rows of another length are refused with their line by `load`.
            .flexible(true)
            .from_reader(bytes))
    }

    fn dialect(&self) -> Csv {
        match self.layout {
            Layout::Nab => Csv::default(),
            Layout::Skab => Csv { delimiter: ';', columns: Vec::new() },
            Layout::Csv | Layout::Log => self.csv.clone(),
        }
    }

    fn time_column(&self) -> &str {
        match self.layout {
            Layout::Nab => "timestamp",
            Layout::Skab => "datetime",
            Layout::Csv | Layout::Log => self.records.time.as_deref().unwrap_or("time"),
        }
    }

    fn has_channel(&self, name: &str) -> bool {
        self.records.channels.iter().any(|channel| channel == name)
    }

    /// `[records]` for this file; `numeric` are the names of its numeric columns.
    fn records(&self, mut numeric: Vec<String>) -> Result<Records, EvaluateError> {
        if matches!(self.layout, Layout::Csv | Layout::Log) {
            return Ok(self.records.clone());
        }
        let time = self.time_column();
        numeric.retain(|name| name != time && name != LABEL && name != CHANGE_POINT);
        if numeric.is_empty() {
            return Err(EvaluateError::file(
                &self.path,
                "no numeric column beside time and labels",
            ));
        }
        Ok(Records {
            layout: config::Layout::Wide,
            key: None,
            time: Some(time.to_owned()),
            channels: numeric,
            ..self.records.clone()
        })
    }

    /// Rows of each window, in order; windows that share rows become one.
    fn rows_of_windows(
        &self,
        windows: &[[String; 2]],
        instants: &[i64],
    ) -> Result<Vec<Range<usize>>, EvaluateError> {
        let unit = self.records.time_unit;
        let mut found: Vec<Range<usize>> = Vec::with_capacity(windows.len());
        for [first, last] in windows {
            let failed = |reason| {
                let reason = format!("labelled window {first}..{last}: {reason}");
                EvaluateError::file(&self.path, reason)
            };
            let ends = instant(first, unit).zip(instant(last, unit));
            let (first, last) = ends.ok_or_else(|| failed("expected two times"))?;
            let rows = rows_between(instants, first, last);
            found.push(rows.ok_or_else(|| failed("no row within"))?);
        }
        found.sort_by_key(|window| window.start);
        found.dedup_by(|next, window| {
            let shares_rows = next.start < window.end;
            if shares_rows {
                window.end = window.end.max(next.end);
            }
            shares_rows
        });
        Ok(found)
    }

    fn malformed(&self, reason: &csv::Error) -> EvaluateError {
        match (reason.kind(), reason.position()) {
            (csv::ErrorKind::Io(reason), _) => EvaluateError::file(&self.path, reason),
            (csv::ErrorKind::Utf8 { err, .. }, Some(position)) => {
                EvaluateError::line(&self.path, position.line(), err)
            }
            (_, _) => EvaluateError::file(&self.path, reason),
        }
    }
}

/// Counts the lines of a file up to its rows.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    number: i64,
}

impl Lines<'_> {
    /// Number of the line at which `row` begins; rows come in order. The reader places a row right
    /// behind the one before, ahead of the rest of a line end and of blank lines.
    fn number_of(&mut self, row: &StringRecord) -> i64 {
        let start = row.position().map_or(0, |position| position.byte() as usize);
        let is_row = |at: usize| at >= start && !matches!(self.bytes[at], b'\r' | b'\n');
        while self.at < self.bytes.len() && !is_row(self.at) {
            self.number += i64::from(self.bytes[self.at] == b'\n');
            self.at += 1;
        }
        self.number
    }
}

/// Writes the scores of a series as CSV to the file of the same name under `out`: the time column as
/// it stands in the recording, `anomaly_score` and `is_anomaly` (0 or 1), one line per row.
///
/// # Errors
/// If there is not one score in [0, 1] and one alert per row, or the file cannot be written.
pub fn write_scores(
    out: &Path,
    series: &Series,
    recording: &Recording,
    scores: &[f64],
    alerts: &[bool],
) -> Result<(), EvaluateError> {
    let path = out.join(series.result());
    let failed = |reason: &dyn fmt::Display| EvaluateError::file(&path, reason);
    let rows = recording.times.len();
    if scores.len() != rows || alerts.len() != rows {
        let (scores, alerts) = (scores.len(), alerts.len());
        return Err(failed(&format!("{scores} scores and {alerts} alerts for {rows} rows")));
    }
    if let Some(row) = scores.iter().position(|score| !(0.0..=1.0).contains(score)) {
        let score = scores[row];
        return Err(failed(&format!("the score of row {} is {score}, expected 0..1", row + 1)));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|reason| EvaluateError::file(folder, reason))?;
    }
    if is_same_file(&path, &series.path) {
        return Err(failed(&"would overwrite the recording; choose another output folder"));
    }
    let mut writer = csv::Writer::from_path(&path).map_err(|reason| failed(&reason))?;
    let header =
        [recording.records.time.as_deref().unwrap_or("time"), "anomaly_score", "is_anomaly"];
    writer.write_record(header).map_err(|reason| failed(&reason))?;
    for ((time, score), &alert) in recording.times.iter().zip(scores).zip(alerts) {
        let score = score.to_string();
        let row = [time.as_str(), &score, if alert { "1" } else { "0" }];
        writer.write_record(row).map_err(|reason| failed(&reason))?;
    }
    writer.flush().map_err(|reason| failed(&reason))
}

/// Two series whose names differ by their extension alone would overwrite each other's scores.
fn refuse_shared_results(series: &[Series]) -> Result<(), EvaluateError> {
    let mut by_result = BTreeMap::new();
    for one in series {
        if let Some(other) = by_result.insert(one.result(), &one.path) {
            let (other, result) = (other.display(), one.result());
            let reason =
                format!("its scores and those of {other} would both be {}", result.display());
            return Err(EvaluateError::file(&one.path, reason));
        }
    }
    Ok(())
}

fn is_same_file(left: &Path, right: &Path) -> bool {
    match (fs::canonicalize(left), fs::canonicalize(right)) {
        (Ok(left), Ok(right)) => left == right,
        _ => false,
    }
}

fn no_column<'a>(
    path: &Path,
    expected: &str,
    found: impl Iterator<Item = &'a str>,
) -> EvaluateError {
    let found = found.collect::<Vec<_>>().join(", ");
    EvaluateError::file(path, format!("expected a column {expected}, found {found}"))
}

/// Files with these extensions below a folder, or the one file, sorted.
fn files(data: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, EvaluateError> {
    let failed = |path: &Path, reason| EvaluateError::file(path, reason);
    let is_folder = fs::metadata(data).map_err(|reason| failed(data, reason))?.is_dir();
    if !is_folder {
        return Ok(vec![data.to_owned()]);
    }
    let mut files = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|reason| failed(&folder, reason))? {
            let entry = entry.map_err(|reason| failed(&folder, reason))?;
            let path = entry.path();
            // Links to folders are not followed: they may lead back here.
            let kind = entry.file_type().map_err(|reason| failed(&path, reason))?;
            if kind.is_dir() {
                folders.push(path);
            } else if let Some(found) = path.extension()
                && extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn relative_name(data: &Path, path: &Path) -> Result<String, EvaluateError> {
    let relative = match path.strip_prefix(data) {
        Ok(relative) if !relative.as_os_str().is_empty() => relative,
        _ => path.file_name().map_or(path, Path::new),
    };
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    match parts {
        Some(parts) => Ok(parts.join("/")),
        None => Err(EvaluateError::file(path, "expected a name in UTF-8")),
    }
}

fn read_labels(path: &Path) -> Result<Labels, EvaluateError> {
    let text = fs::read(path).map_err(|reason| EvaluateError::file(path, reason))?;
    serde_json::from_slice(&text).map_err(|reason| {
        let expected = "expected {\"folder/series.csv\": [[\"first time\", \"last time\"], …], …}";
        EvaluateError::line(path, reason.line() as u64, format!("{expected}: {reason}"))
    })
}

/// Windows of the longest entry that the file's path ends with.
fn windows_of(path: &Path, labels: &Labels) -> Option<Vec<[String; 2]>> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let entries = labels.iter().filter(|(name, _)| path.ends_with(name));
    entries.max_by_key(|(name, _)| name.len()).map(|(_, windows)| windows.clone())
}

fn csv_dialect(source: &Source) -> Csv {
    match source {
        Source::File(file) => file.csv.clone(),
        Source::Kafka(_) | Source::Generator(_) => Csv::default(),
    }
}

fn line_of(row: &StringRecord) -> u64 {
    row.position().map_or(0, csv::Position::line)
}

/// `0`, `1`, `0.0`, `1.0`, `true` or `false`.
fn parse_label(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        number => match number.parse::<f64>() {
            Ok(0.0) => Some(false),
            Ok(1.0) => Some(true),
            _ => None,
        },
    }
}

/// Rows from the first at `first` to the first at `last`. Where no row has that very time, the
/// window begins with the first row after `first` and ends with the last row before `last`.
/// Rows may repeat times and be out of order.
fn rows_between(instants: &[i64], first: i64, last: i64) -> Option<Range<usize>> {
    let position = |wanted: &dyn Fn(i64) -> bool| instants.iter().position(|&at| wanted(at));
    let start = position(&|at| at == first).or_else(|| position(&|at| at >= first))?;
    let rest = &instants[start..];
    let length = rest
        .iter()
        .position(|&at| at == last)
        .or_else(|| rest.iter().rposition(|&at| at <= last))?;
    Some(start..start + length + 1)
}

fn rows_within(windows: &[Range<usize>], rows: usize) -> Vec<bool> {
    let mut labels = vec![false; rows];
    for window in windows {
        labels[window.clone()].fill(true);
    }
    labels
}

/// Microseconds since the epoch of a time as `[records]` describes it.
fn instant(text: &str, unit: TimeUnit) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    for form in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return Some(time.and_utc().timestamp_micros());
        }
    }
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
    let per_unit = match unit {
        TimeUnit::S => 1e6,
        TimeUnit::Ms => 1e3,
        TimeUnit::Us => 1.0,
        TimeUnit::Ns => 1e-3,
        TimeUnit::Auto => match number.abs() {
            size if size < 1e11 => 1e6,
            size if size < 1e14 => 1e3,
            size if size < 1e17 => 1.0,
            _ => 1e-3,
        },
    };
    Some((number * per_unit) as i64)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one window are meant")]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn pipeline() -> Pipeline {
        toml::from_str(
            r#"
            name = "plant"
            source = { kind = "file", path = "unused", csv = { delimiter = "|" } }
            records = { key = "machine", time = "ts", channels = ["temperature"] }
            "#,
        )
        .unwrap()
    }

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn load(layout: Layout, text: &str, labels: Option<&str>) -> Result<Recording, EvaluateError> {
        let folder = folder(&[("one.csv", text), ("labels.json", labels.unwrap_or("{}"))]);
        let path = folder.path().join("labels.json");
        let series =
            layout.series(folder.path(), labels.map(|_| path.as_path()), &pipeline()).unwrap();
        series[0].load()
    }

    const NAB: &str = "timestamp,value\n\
        2014-04-10 00:00:00,1\n\
        2014-04-10 00:05:00,2\n\
        2014-04-10 00:10:00,3\n\
        2014-04-10 00:15:00,4\n";

    #[test]
    fn series_are_found_in_subfolders_and_sorted_by_path() {
        let folder =
            folder(&[("b/2.csv", NAB), ("b/1.csv", NAB), ("a.CSV", NAB), ("b/labels.json", "{}")]);
        let series = Layout::Nab.series(folder.path(), None, &pipeline()).unwrap();
        let names: Vec<_> = series.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a.CSV", "b/1.csv", "b/2.csv"]);

        let file = folder.path().join("b/1.csv");
        let series = Layout::Nab.series(&file, None, &pipeline()).unwrap();
        assert_eq!((series.len(), series[0].name.as_str()), (1, "1.csv"));
    }

    #[test]
    fn a_path_without_recordings_is_an_error() {
        let folder = folder(&[("notes.txt", "")]);
        let error = Layout::Nab.series(folder.path(), None, &pipeline()).unwrap_err();
        assert!(error.to_string().ends_with("no .csv file"), "{error}");
        let absent = folder.path().join("absent");
        let error = Layout::Nab.series(&absent, None, &pipeline()).unwrap_err();
        assert!(error.to_string().starts_with(absent.to_str().unwrap()), "{error}");
    }

    #[test]
    fn nab_s_windows_become_rows_both_ends_included() {
        let labels =
            r#"{"one.csv": [["2014-04-10 00:05:00.000000", "2014-04-10 00:10:00.000000"]]}"#;
        let recording = load(Layout::Nab, NAB, Some(labels)).unwrap();
        assert_eq!(recording.windows, Some(vec![1..3]));
        assert_eq!(recording.labels, Some(vec![false, true, true, false]));
        assert_eq!(recording.times[1], "2014-04-10 00:05:00");
        assert_eq!(recording.records.time.as_deref(), Some("timestamp"));
        assert_eq!(recording.records.channels, ["value"]);
        assert_eq!(recording.records.key, None);
        assert_eq!(recording.csv, Csv::default());
    }

    #[test]
    fn an_entry_without_windows_labels_every_row_normal_and_no_entry_labels_none() {
        let recording = load(Layout::Nab, NAB, Some(r#"{"one.csv": []}"#)).unwrap();
        assert_eq!(recording.windows, Some(vec![]));
        assert_eq!(recording.labels, Some(vec![false; 4]));
        let recording = load(Layout::Nab, NAB, None).unwrap();
        assert_eq!((recording.windows, recording.labels), (None, None));
    }

    #[test]
    fn labels_are_found_by_the_end_of_the_path() {
        let labels =
            r#"{"b/1.csv": [["2014-04-10 00:05:00", "2014-04-10 00:05:00"]], "1.csv": []}"#;
        let folder =
            folder(&[("a/1.csv", NAB), ("b/1.csv", NAB), ("b/2.csv", NAB), ("labels", labels)]);
        let labels = folder.path().join("labels");
        let windows = |data: &Path| -> Vec<_> {
            let series = Layout::Nab.series(data, Some(&labels), &pipeline()).unwrap();
            series.iter().map(|one| one.load().unwrap().windows).collect()
        };
        assert_eq!(windows(folder.path()), [Some(vec![]), Some(vec![1..2]), None]);
        assert_eq!(windows(&folder.path().join("b/1.csv")), [Some(vec![1..2])]);
    }

    #[test]
    fn rows_know_the_lines_at_which_they_begin() {
        let rows = "machine|ts|temperature\n\nm|1|2\nm|2|\"a\nb\"\n\n\nm|3|4";
        for text in [rows.to_owned(), format!("\n{rows}\n"), rows.replace('\n', "\r\n")] {
            let shift = i64::from(text.starts_with('\n'));
            for mark in ["", "\u{feff}"] {
                let lines = load(Layout::Csv, &format!("{mark}{text}"), None).unwrap().lines;
                assert_eq!(lines, [3, 4, 8].map(|line| line + shift), "{mark:?}{text:?}");
            }
        }
    }

    #[test]
    fn labels_of_other_series_only_are_an_error_that_shows_both_names() {
        let folder = folder(&[("data/1.csv", NAB), ("labels", r#"{"data/2.csv": []}"#)]);
        let labels = folder.path().join("labels");
        let error = Layout::Nab.series(folder.path(), Some(&labels), &pipeline()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("data/1.csv") && error.contains("data/2.csv"), "{error}");
    }

    #[test]
    fn malformed_labels_are_named_with_their_line() {
        let folder = folder(&[("1.csv", NAB), ("labels", "{\n\"1.csv\": [7]}")]);
        let labels = folder.path().join("labels");
        let error = Layout::Nab.series(folder.path(), Some(&labels), &pipeline()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}:2: ", labels.display())), "{error}");
    }

    #[test]
    fn repeated_and_out_of_order_times_keep_their_rows() {
        let text = "timestamp,value\n\
            2014-11-02 01:50:00,1\n\
            2014-11-02 01:00:00,2\n\
            2014-11-02 01:00:00,3\n\
            2014-11-02 01:10:00,4\n\
            2014-11-02 01:10:00,5\n\
            2014-11-02 02:00:00,6\n";
        let labels = r#"{"one.csv": [["2014-11-02 01:00:00", "2014-11-02 01:10:00"]]}"#;
        let recording = load(Layout::Nab, text, Some(labels)).unwrap();
        assert_eq!(recording.times.len(), 6);
        // As in NAB's scorer, the first row with the last time ends the window.
        assert_eq!(recording.windows, Some(vec![1..4]));
    }

    #[test]
    fn windows_between_rows_take_the_rows_within_and_overlapping_ones_are_joined() {
        let labels = r#"{"one.csv": [
            ["2014-04-10T00:09:00Z", "2014-04-10T00:12:00Z"],
            ["2014-04-10 00:01:30.5", "2014-04-10 00:11:00"]
        ]}"#;
        let recording = load(Layout::Nab, NAB, Some(labels)).unwrap();
        assert_eq!(recording.windows, Some(vec![1..3]));
    }

    #[test]
    fn a_window_that_cannot_be_placed_is_an_error() {
        let failure = |window: &str| {
            let labels = format!(r#"{{"one.csv": [{window}]}}"#);
            load(Layout::Nab, NAB, Some(&labels)).unwrap_err().to_string()
        };
        let between_rows = failure(r#"["2014-04-10 00:06:00", "2014-04-10 00:09:00"]"#);
        assert!(
            between_rows.ends_with(
                "one.csv: labelled window 2014-04-10 00:06:00..2014-04-10 00:09:00: no row within"
            ),
            "{between_rows}"
        );
        let no_time = failure(r#"["noon", "2014-04-10 00:09:00"]"#);
        assert!(no_time.ends_with("expected two times"), "{no_time}");
    }

    #[test]
    fn skab_s_labels_are_a_column_and_its_other_numeric_columns_are_channels() {
        let text = "datetime;Pressure;Flow RateRMS;note;anomaly;changepoint\n\
            2020-03-01 16:59:53;0.05;;a;0.0;0.0\n\
            2020-03-01 16:59:54;0.06;74.1;b;1.0;1.0\n";
        let recording = load(Layout::Skab, text, None).unwrap();
        assert_eq!(recording.labels, Some(vec![false, true]));
        assert_eq!(recording.windows, None);
        let change_points = recording.change_points.unwrap();
        assert_eq!(change_points.rows, [1]);
        assert_eq!(change_points.instants[1] - change_points.instants[0], 1_000_000);
        assert_eq!(recording.records.time.as_deref(), Some("datetime"));
        assert_eq!(recording.records.channels, ["Pressure", "Flow RateRMS"]);
        assert_eq!(recording.csv.delimiter, ';');

        let unlabelled = "datetime;Pressure\n2020-02-08 13:30:47;0.38\n";
        assert_eq!(load(Layout::Skab, unlabelled, None).unwrap().labels, None);
    }

    #[test]
    fn plain_recordings_follow_the_pipeline_file() {
        let text = "ts|machine|temperature|anomaly\n1|a|20.5|false\n2|b|30.5|true\n";
        let recording = load(Layout::Csv, text, None).unwrap();
        assert_eq!(recording.records, pipeline().records);
        assert_eq!(recording.csv.delimiter, '|');
        assert_eq!(recording.labels, Some(vec![false, true]));
        let labels = r#"{"one.csv": [["1", "1"]]}"#;
        let recording = load(Layout::Csv, text, Some(labels)).unwrap();
        assert_eq!(recording.labels, Some(vec![true, false]));
    }

    #[test]
    fn columns_named_in_the_pipeline_file_stand_for_a_header() {
        let folder = folder(&[("one.csv", "1,20.5\n2,21.5\n")]);
        let mut pipeline = pipeline();
        if let Source::File(source) = &mut pipeline.source {
            let columns = vec!["ts".to_owned(), "temperature".to_owned()];
            source.csv = Csv { delimiter: ',', columns };
        }
        let series = Layout::Csv.series(folder.path(), None, &pipeline).unwrap();
        assert_eq!(series[0].load().unwrap().times, ["1", "2"]);
    }

    #[test]
    fn what_is_wrong_in_a_recording_is_named_with_its_line() {
        let error = |layout, text: &str| load(layout, text, None).unwrap_err().to_string();
        let found = error(Layout::Nab, "time,value\n1,2\n");
        assert!(
            found.ends_with("one.csv: expected a column timestamp, found time, value"),
            "{found}"
        );
        let found = error(Layout::Nab, "timestamp,value\n");
        assert!(found.ends_with("one.csv: no rows"), "{found}");
        let found = error(Layout::Nab, "timestamp,value\n2014-04-10 00:00:00,x\n");
        assert!(found.ends_with("no numeric column beside time and labels"), "{found}");
        let found = error(Layout::Nab, "timestamp,value\n1,2\n1,2,3\n");
        assert!(found.ends_with("one.csv:3: expected 2 columns, found 3"), "{found}");
        let found = error(Layout::Skab, "datetime;a;anomaly\n1;2;0\n1;2;maybe\n");
        assert!(
            found.ends_with("one.csv:3: column anomaly: expected 0 or 1, found \"maybe\""),
            "{found}"
        );
        let labels = Some(r#"{"one.csv": []}"#);
        let found = load(Layout::Nab, "timestamp,value\nnoon,2\n", labels).unwrap_err().to_string();
        assert!(
            found.ends_with("one.csv:2: column timestamp: expected a time, found \"noon\""),
            "{found}"
        );
    }

    #[test]
    fn scores_are_written_row_by_row_beside_the_time_as_it_was() {
        let data = folder(&[("b/one.csv", NAB)]);
        let out = TempDir::new().unwrap();
        let series = Layout::Nab.series(data.path(), None, &pipeline()).unwrap();
        let recording = series[0].load().unwrap();
        let scores = [0.0, 0.123456789, 1e-7, 1.0];
        let alerts = [false, false, false, true];
        write_scores(out.path(), &series[0], &recording, &scores, &alerts).unwrap();
        assert_eq!(
            fs::read_to_string(out.path().join("b/one.csv")).unwrap(),
            "timestamp,anomaly_score,is_anomaly\n\
            2014-04-10 00:00:00,0,0\n\
            2014-04-10 00:05:00,0.123456789,0\n\
            2014-04-10 00:10:00,0.0000001,0\n\
            2014-04-10 00:15:00,1,1\n"
        );
    }

    #[test]
    fn series_that_would_share_a_file_of_scores_are_refused_by_name() {
        let data = folder(&[("b/one.csv", NAB), ("b/one.parquet", ""), ("one.csv", NAB)]);
        let error = Layout::Csv.series(data.path(), None, &pipeline()).unwrap_err().to_string();
        for named in ["b/one.parquet: its scores", "b/one.csv would", "both be b/one.csv"] {
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(Layout::Nab.series(data.path(), None, &pipeline()).unwrap().len(), 2);
    }

    #[test]
    fn scores_that_do_not_fit_the_recording_are_refused() {
        let data = folder(&[("one.csv", NAB)]);
        let out = TempDir::new().unwrap();
        let series = &Layout::Nab.series(data.path(), None, &pipeline()).unwrap()[0];
        let recording = series.load().unwrap();
        let write = |out: &Path, scores: &[f64]| {
            write_scores(out, series, &recording, scores, &[false; 4]).unwrap_err().to_string()
        };
        let found = write(out.path(), &[0.5; 3]);
        assert!(found.ends_with("3 scores and 4 alerts for 4 rows"), "{found}");
        let found = write(out.path(), &[0.5, 0.5, f64::NAN, 0.5]);
        assert!(found.ends_with("the score of row 3 is NaN, expected 0..1"), "{found}");
        let found = write(data.path(), &[0.5; 4]);
        assert!(found.contains("would overwrite the recording"), "{found}");
        assert_eq!(fs::read_to_string(data.path().join("one.csv")).unwrap(), NAB);
    }

    #[test]
    fn times_are_understood_as_the_pipeline_file_describes_them() {
        let second = 1_397_088_000_000_000;
        for text in [
            "2014-04-10 00:00:00",
            "2014-04-10 00:00:00.000000",
            "2014-04-10T00:00:00",
            "2014-04-10T00:00:00Z",
            "2014-04-10T02:00:00+02:00",
            "1397088000",
            "1397088000000",
            "1397088000000000",
            "1397088000000000000",
        ] {
            assert_eq!(instant(text, TimeUnit::Auto), Some(second), "{text}");
        }
        assert_eq!(instant("5", TimeUnit::Ms), Some(5000));
        assert_eq!(instant("noon", TimeUnit::Auto), None);
        assert_eq!(instant("nan", TimeUnit::Auto), None);
    }
}
