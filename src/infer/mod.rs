//! What a sample of records tells about the pipeline that they need.
//!
//! | step | what it works out |
//! | --- | --- |
//! | [`sample`] | the beginning of files, or the newest messages of a topic |
//! | [`mod@format`] | the encoding, of text its delimiter and header |
//! | [`lines`] | the head of log lines |
//! | [`table`] | rows of plain values |
//! | [`fields`] | time, key, layout and channels |
//! | [`rhythm`] | sampling, and the windows that suit it |
//! | `proposal` | the pipeline file |
//!
//! All but the first are functions of the sample: general rules, no knowledge of any collection.

pub mod fields;
pub mod format;
pub mod lines;
mod proposal;
pub mod rhythm;
pub mod sample;
pub mod table;
pub mod time;

pub use proposal::Proposal;
pub use sample::{Content, Piece, SampledMessage};

use std::str::from_utf8;

use self::fields::{Roles, names, roles};
use self::format::{TextFormat, csv_rows, text_format};
use self::lines::LinePatterns;
use self::rhythm::Rhythm;
use self::table::{Origin, Table, Value, json_row};
use self::time::Clock;
use crate::config::{Csv, Envelope, Format, Layout};

/// Lines of a key below which it is better not to cut a log up by it.
const FEW_LINES: usize = 256;

/// Why no pipeline can be proposed.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// A file or folder cannot be read.
    #[error("{path}: {reason}")]
    Read { path: String, reason: String },
    /// Nothing is there.
    #[error("{0}: holds no records")]
    Empty(String),
    /// Files of several formats, which one pipeline does not read together.
    #[error(
        "{path}: expected files of one format, found {found}; name one of them, or move them apart"
    )]
    Mixed { path: String, found: String },
    /// The format is known, but not how to read it.
    #[error("{name}: {reason}")]
    Format { name: String, reason: String },
    /// The records are read, but not understood.
    #[error("{0}")]
    Records(String),
    /// The topic cannot be read.
    #[error("topic {topic}: {reason}")]
    Topic { topic: String, reason: String },
}

/// What was worked out.
#[derive(Clone, Debug)]
pub struct Findings {
    pub format: TextFormat,
    /// Of log lines: the patterns that take them apart.
    pub patterns: Vec<String>,
    pub roles: Roles,
    /// Samples a second, where the time is a sample's number.
    pub sample_rate: Option<f64>,
    pub rhythm: Rhythm,
    /// Rows that were looked at.
    pub rows: usize,
    /// What a person should know of them, beside the doubts of [`Roles`].
    pub doubts: Vec<String>,
    /// Whether they are Kafka messages.
    pub messages: bool,
}

/// Works out what `pieces`, parts of one source, are. `sample_rate` is what a person says of
/// samples that are merely numbered; 1 a second where nobody says.
///
/// # Errors
/// If the pieces are empty or of several formats, or their records not understood.
pub fn look(pieces: &[Piece], sample_rate: Option<f64>) -> Result<Findings, InferError> {
    let first = pieces.first().ok_or_else(|| InferError::Empty("the source".to_owned()))?;
    let messages = matches!(first.content, Content::Messages(_));
    let mut doubts = Vec::new();
    let (format, patterns, table) = read(pieces, &mut doubts)?;
    if table.is_empty() {
        return Err(InferError::Empty(first.name.clone()));
    }
    let mut roles = roles(&table, messages).map_err(InferError::Records)?;
    let counted = matches!(roles.time, Some((_, Clock::Samples)));
    if counted && sample_rate.is_none() {
        doubts.push("samples are numbered, not timed: how many are taken a second?".to_owned());
    }
    let sample_rate = counted.then(|| sample_rate.unwrap_or(1.0));
    let scale = 1.0 / sample_rate.unwrap_or(1.0);
    let mut rhythm = Rhythm::of(&table, &roles, scale);
    // Lines of one program tell more together than cut up by whatever wrote them.
    if roles.layout == Layout::Log
        && rhythm.keys > 1
        && rhythm.records_per_key < FEW_LINES
        && let Some(key) = roles.key.take()
    {
        doubts.push(format!(
            "\"{key}\" could be the key, but has few lines for each of its {} values",
            rhythm.keys
        ));
        rhythm = Rhythm::of(&table, &roles, scale);
    }
    Ok(Findings {
        format,
        patterns,
        roles,
        sample_rate,
        rhythm,
        rows: table.len(),
        doubts,
        messages,
    })
}

type Read = (TextFormat, Vec<String>, Table);

fn read(pieces: &[Piece], doubts: &mut Vec<String>) -> Result<Read, InferError> {
    if let Content::Batches(format, _) = &pieces[0].content {
        let mut table = Table::default();
        for (place, piece) in pieces.iter().enumerate() {
            if let Content::Batches(_, batches) = &piece.content {
                batches.iter().for_each(|batch| table.push_batch(batch, place));
            }
        }
        return Ok((of_format(*format), Vec::new(), table));
    }
    let texts: Vec<Text<'_>> = pieces.iter().enumerate().map(Text::of).collect::<Result<_, _>>()?;
    let formats = texts.iter().zip(pieces).map(|(text, piece)| {
        let lines: Vec<&str> = text.rows.iter().map(|row| row.0).collect();
        text_format(&lines, piece.named)
    });
    let formats: Vec<TextFormat> = formats.collect();
    let format = formats[0].clone();
    if let Some(other) = formats.iter().position(|other| {
        (other.format, other.csv.delimiter) != (format.format, format.csv.delimiter)
    }) {
        return Err(InferError::Mixed {
            path: format!("{} and {}", pieces[0].name, pieces[other].name),
            found: format!("{:?} and {:?}", format.format, formats[other].format).to_lowercase(),
        });
    }
    let mut reader = TextReader::new(&format, &texts)?;
    let mut table = Table::default();
    let (mut unread, mut total) = (0, 0);
    for (text, format) in texts.iter().zip(&formats) {
        reader.begin(format);
        for (row, origin) in text.rows.iter().skip(usize::from(format.header && !text.messages)) {
            if table.is_full() {
                break;
            }
            total += 1;
            match reader.fields(row) {
                Some(fields) => table.push(fields, origin.clone()),
                None => unread += 1,
            }
        }
    }
    if unread > 0 {
        doubts.push(format!("{unread} of {total} lines are not read: they become dead letters"));
    }
    // What was read into JSON is not JSON.
    let read_from = pieces[0].named.filter(|_| texts[0].messages).unwrap_or(format.format);
    let format = TextFormat { format: read_from, ..format };
    let patterns = reader.patterns.map(|patterns| patterns.patterns).unwrap_or_default();
    let format =
        TextFormat { csv: Csv { columns: reader.columns, ..format.csv.clone() }, ..format };
    Ok((format, patterns, table))
}

fn of_format(format: Format) -> TextFormat {
    TextFormat { format, csv: Csv::default(), header: false, envelope: Envelope::None }
}

/// The lines of a file, or messages.
struct Text<'a> {
    rows: Vec<(&'a str, Origin)>,
    messages: bool,
}

impl<'a> Text<'a> {
    fn of((place, piece): (usize, &'a Piece)) -> Result<Self, InferError> {
        let origin = |key: Option<String>, timestamp_ms: Option<i64>| Origin {
            piece: place,
            key,
            timestamp_ms,
        };
        let refuse = |reason: String| InferError::Format { name: piece.name.clone(), reason };
        match &piece.content {
            Content::Text(text) => {
                let lines = text.lines().map(|line| line.trim_end_matches('\r'));
                let rows = lines.filter(|line| !line.trim().is_empty());
                let rows = rows.map(|line| (line, origin(None, None))).collect();
                Ok(Self { rows, messages: false })
            }
            Content::Messages(messages) => {
                let rows = messages.iter().flat_map(|message| {
                    let origin = origin(message.key.clone(), message.timestamp_ms);
                    let texts: Vec<Option<&str>> = if message.as_json.is_empty() {
                        vec![from_utf8(&message.payload).ok()]
                    } else {
                        message.as_json.iter().map(|json| Some(json.as_str())).collect()
                    };
                    texts.into_iter().map(move |text| Some((text?.trim_end(), origin.clone())))
                });
                let rows: Option<Vec<_>> = rows.collect();
                let unknown =
                    || refuse("expected text, Avro or Arrow, found other bytes".to_owned());
                Ok(Self { rows: rows.ok_or_else(unknown)?, messages: true })
            }
            Content::Batches(..) => Err(refuse("expected text, as in the other files".to_owned())),
        }
    }
}

/// Takes rows of text apart.
struct TextReader {
    format: TextFormat,
    /// Of CSV without a header: names made for its columns.
    columns: Vec<String>,
    patterns: Option<LinePatterns>,
}

impl TextReader {
    fn new(format: &TextFormat, texts: &[Text<'_>]) -> Result<Self, InferError> {
        let mut reader = Self { format: format.clone(), columns: Vec::new(), patterns: None };
        match format.format {
            Format::Csv if !format.header || texts.iter().any(|text| text.messages) => {
                let first = texts.iter().flat_map(|text| &text.rows).nth(1).map_or("", |row| row.0);
                let cells = csv_rows(first, format.csv.delimiter).next().unwrap_or_default();
                let is_time = |cell: &String| Clock::of_dates(&[Value::of_text(cell)]).is_some();
                let time = cells.iter().position(is_time);
                let name = |place: usize| {
                    if Some(place) == time { "time".to_owned() } else { format!("c{}", place + 1) }
                };
                reader.columns = (0..cells.len()).map(name).collect();
            }
            Format::Log => {
                let lines: Vec<&str> =
                    texts.iter().flat_map(|text| text.rows.iter().map(|row| row.0)).collect();
                let patterns = LinePatterns::of_lines(&lines);
                if patterns.is_none() && !texts.iter().any(|text| text.messages) {
                    let found = lines.first().map_or("nothing", |line| line);
                    let found: String = found.chars().take(80).collect();
                    return Err(InferError::Records(format!(
                        "expected lines with a time in the same place each, found {found:?}"
                    )));
                }
                reader.patterns = patterns;
            }
            _ => {}
        }
        Ok(reader)
    }

    /// Begins a file of the same format, with its own header.
    fn begin(&mut self, format: &TextFormat) {
        self.format = format.clone();
    }

    /// The fields of a row; `None` if it is none.
    fn fields(&self, row: &str) -> Option<Vec<(String, Value)>> {
        match self.format.format {
            Format::Csv => {
                let cells = csv_rows(row, self.format.csv.delimiter).next()?;
                let columns =
                    if self.columns.is_empty() { &self.format.csv.columns } else { &self.columns };
                let complete = cells.len() == columns.len();
                let named = columns.iter().cloned().zip(cells.iter().map(|c| Value::of_text(c)));
                complete.then(|| named.collect())
            }
            Format::Log => match &self.patterns {
                Some(patterns) => patterns.fields(row),
                None => Some(vec![("message".to_owned(), Value::of_text(row))]),
            },
            _ => {
                let fields = json_row(row).ok()?;
                Some(match self.format.envelope {
                    Envelope::None => fields,
                    Envelope::Connect => {
                        let inner = fields.into_iter().filter_map(|(name, value)| {
                            Some((name.strip_prefix("payload.")?.to_owned(), value))
                        });
                        inner.collect()
                    }
                })
            }
        }
    }
}

impl Findings {
    /// What was seen, a sentence each.
    pub fn seen(&self) -> Vec<String> {
        let Self { rhythm, roles, .. } = self;
        let mut seen = vec![format!("{} records of {}", self.rows, self.format_in_words())];
        let layout = format!("{:?}", roles.layout).to_lowercase();
        let time = match &roles.time {
            Some((field, clock)) => format!("time in \"{field}\" ({})", clock.in_words()),
            None => "time from Kafka".to_owned(),
        };
        let key = match &roles.key {
            Some(field) => format!("{} keys in \"{field}\"", rhythm.keys),
            None if self.messages => format!("{} keys of messages", rhythm.keys),
            None => "each file a key".to_owned(),
        };
        seen.push(format!("layout {layout}, {time}, {key}"));
        if !roles.channels.is_empty() {
            let count = roles.channels.len();
            seen.push(format!("{count} channels: {}", names(&roles.channels)));
        }
        if let Some(step) = rhythm.step {
            let often =
                if rhythm.regular { "regularly every" } else { "irregularly, in the middle every" };
            let step = rhythm::duration(step);
            seen.push(format!("a key's records come {often} {step}"));
        }
        seen
    }

    fn format_in_words(&self) -> String {
        match self.format.format {
            Format::Csv => {
                let header = if self.format.header { "with" } else { "without" };
                format!("CSV, divided by {:?}, {header} a header", self.format.csv.delimiter)
            }
            Format::Json if self.format.envelope == Envelope::Connect => {
                "JSON in Kafka Connect's envelope".to_owned()
            }
            Format::Json => "JSON".to_owned(),
            Format::Log => "log lines".to_owned(),
            Format::Fhir => "FHIR".to_owned(),
            Format::Avro => "Avro".to_owned(),
            Format::Arrow => "Arrow".to_owned(),
            Format::Parquet => "Parquet".to_owned(),
        }
    }
}
