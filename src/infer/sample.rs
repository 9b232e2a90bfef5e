//! Samples: the beginning of files, the newest messages of a topic.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::json::LineDelimitedWriter;
use arrow_avro::reader::{DecoderMode, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::InferError;
use super::format::{binary_format, is_confluent};
use super::table::MOST_ROWS;
use crate::config::{Format, Properties};
use crate::kafka;
use crate::registry::Registry;

/// Bytes of text that are looked at, over all files.
const MOST_BYTES: usize = 8 << 20;
/// Files of a folder that are looked at.
const MOST_FILES: usize = 8;
/// Messages of a topic that are looked at, over all partitions.
const MOST_MESSAGES: i64 = 8_000;
/// Longest wait for them.
const PATIENCE: Duration = Duration::from_secs(15);

/// A part of a sample: of a file or a partition.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file's path, or the partition.
    pub name: String,
    /// The format that the file's extension names.
    pub named: Option<Format>,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub enum Content {
    /// Whole lines.
    Text(String),
    Messages(Vec<SampledMessage>),
    /// Columns, with the format that they were read from.
    Batches(Format, Vec<RecordBatch>),
}

/// A message of Kafka.
#[derive(Clone, Debug, Default)]
pub struct SampledMessage {
    pub key: Option<String>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    pub payload: Vec<u8>,
    /// The records within as JSON, where they are columns or Avro.
    pub as_json: Vec<String>,
}

/// The beginning of a file, or of some files of a folder.
///
/// # Errors
/// If there is nothing to read, or it is of several formats.
pub fn of_path(path: &Path) -> Result<Vec<Piece>, InferError> {
    let metadata = std::fs::metadata(path).map_err(|reason| unreadable(path, &reason))?;
    if metadata.is_file() {
        return Ok(vec![of_file(path, MOST_BYTES)?]);
    }
    let mut files = Vec::new();
    walk(path, &mut files)?;
    // What is read from a folder is what has a known extension, if anything has.
    if files.iter().any(|file| named_format(file).is_some()) {
        files.retain(|file| named_format(file).is_some());
    }
    files.sort_unstable();
    let mut formats: Vec<String> = Vec::new();
    for file in &files {
        if let Some(format) = named_format(file) {
            let format = format!("{format:?}").to_lowercase();
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
    }
    if formats.len() > 1 {
        let (path, found) = (path.display().to_string(), formats.join(" and "));
        return Err(InferError::Mixed { path, found });
    }
    if files.is_empty() {
        return Err(InferError::Empty(path.display().to_string()));
    }
    let count = files.len().min(MOST_FILES);
    let chosen = (0..count).map(|at| &files[at * files.len() / count]);
    let mut pieces = Vec::new();
    for file in chosen {
        match of_file(file, MOST_BYTES / count) {
            Ok(piece) => pieces.push(piece),
            Err(InferError::Empty(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if pieces.is_empty() {
        return Err(InferError::Empty(path.display().to_string()));
    }
    Ok(pieces)
}

/// The files below a folder that the file source would see.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), InferError> {
    let entries = std::fs::read_dir(folder).map_err(|reason| unreadable(folder, &reason))?;
    for entry in entries {
        let entry = entry.map_err(|reason| unreadable(folder, &reason))?;
        if matches!(entry.file_name().as_encoded_bytes().first(), Some(b'.' | b'_')) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(|reason| unreadable(&path, &reason))?;
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// The format that an extension names, below that of a compression.
pub fn named_format(path: &Path) -> Option<Format> {
    let extension = |path: &Path| Some(path.extension()?.to_str()?.to_ascii_lowercase());
    let mut found = extension(path)?;
    if matches!(found.as_str(), "gz" | "zst") {
        found = extension(Path::new(path.file_stem()?))?;
    }
    match found.as_str() {
        "csv" => Some(Format::Csv),
        "json" | "jsonl" | "ndjson" => Some(Format::Json),
        "parquet" => Some(Format::Parquet),
        "avro" => Some(Format::Avro),
        "arrow" | "arrows" => Some(Format::Arrow),
        "log" => Some(Format::Log),
        _ => None,
    }
}

fn of_file(path: &Path, most_bytes: usize) -> Result<Piece, InferError> {
    let name = path.display().to_string();
    let file = || File::open(path).map_err(|reason| unreadable(path, &reason));
    let mut bytes = Vec::new();
    let most = most_bytes as u64 + 1;
    let mut head = Vec::new();
    file()?.take(8).read_to_end(&mut head).map_err(|reason| unreadable(path, &reason))?;
    let content = match binary_format(&head) {
        Some(format) => {
            let batches = columns(format, file()?);
            let refuse = |reason: String| InferError::Read { path: name.clone(), reason };
            Content::Batches(format, batches.map_err(refuse)?)
        }
        None => {
            let file = file()?;
            let read = if head.starts_with(&[0x1f, 0x8b]) {
                flate2::read::MultiGzDecoder::new(file).take(most).read_to_end(&mut bytes)
            } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                zstd::Decoder::new(file)
                    .and_then(|decoder| decoder.take(most).read_to_end(&mut bytes))
            } else {
                file.take(most).read_to_end(&mut bytes)
            };
            read.map_err(|reason| unreadable(path, &reason))?;
            if bytes.len() > most_bytes {
                let end = bytes.iter().rposition(|byte| *byte == b'\n');
                bytes.truncate(end.unwrap_or(most_bytes));
            }
            Content::Text(String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}').to_owned())
        }
    };
    let is_empty = match &content {
        Content::Text(text) => text.trim().is_empty(),
        Content::Batches(_, batches) => batches.iter().all(|batch| batch.num_rows() == 0),
        Content::Messages(messages) => messages.is_empty(),
    };
    if is_empty {
        return Err(InferError::Empty(name));
    }
    Ok(Piece { name, named: named_format(path), content })
}

/// The first rows of a file of columns.
fn columns(format: Format, file: File) -> Result<Vec<RecordBatch>, String> {
    let of_batches = |batches: &mut dyn Iterator<Item = Result<RecordBatch, ArrowError>>| {
        let (mut taken, mut rows) = (Vec::new(), 0);
        while rows < MOST_ROWS
            && let Some(batch) = batches.next()
        {
            let batch = batch.map_err(|error| error.to_string())?;
            rows += batch.num_rows();
            taken.push(batch);
        }
        Ok(taken)
    };
    let said = |error: ArrowError| error.to_string();
    match format {
        Format::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file);
            let reader = builder.and_then(|builder| builder.build());
            of_batches(&mut reader.map_err(|error| error.to_string())?)
        }
        Format::Avro => {
            let reader = ReaderBuilder::new().build(BufReader::new(file));
            of_batches(&mut reader.map_err(said)?)
        }
        _ => {
            // Of a stream the file's reader finds no end.
            let mut reader = BufReader::new(file);
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            match FileReader::try_new(Cursor::new(&bytes), None) {
                Ok(mut reader) => of_batches(&mut reader),
                Err(_) => of_batches(&mut StreamReader::try_new(&bytes[..], None).map_err(said)?),
            }
        }
    }
}

/// The newest messages of a topic, a piece per partition.
///
/// # Errors
/// If the topic is not there, cannot be read, or is empty.
pub fn of_topic(
    brokers: &str,
    topic: &str,
    properties: &Properties,
) -> Result<Vec<Piece>, InferError> {
    let failed = |reason: String| InferError::Topic { topic: topic.to_owned(), reason };
    let by_kafka = |error: KafkaError| failed(error.to_string());
    let defaults = [("group.id", "contrastream-init"), ("isolation.level", "read_committed")];
    let fixed = [("enable.auto.commit", "false"), ("enable.partition.eof", "false")];
    let settings = kafka::settings(brokers, &defaults, properties, &fixed).map_err(failed)?;
    let consumer: BaseConsumer = settings.create().map_err(by_kafka)?;
    let metadata =
        consumer.fetch_metadata(Some(topic), kafka::CONNECT_TIMEOUT).map_err(by_kafka)?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .filter(|found| found.error().is_none())
        .flat_map(|found| found.partitions().iter().map(|partition| partition.id()))
        .collect();
    if partitions.is_empty() {
        return Err(failed(format!("does not exist on {brokers}")));
    }
    let each = (MOST_MESSAGES / partitions.len() as i64).max(50);
    let mut assignment = TopicPartitionList::new();
    let mut ends = Vec::new();
    for partition in &partitions {
        let (low, high) = consumer
            .fetch_watermarks(topic, *partition, kafka::CONNECT_TIMEOUT)
            .map_err(by_kafka)?;
        if high > low {
            let first = Offset::Offset(low.max(high - each));
            assignment.add_partition_offset(topic, *partition, first).map_err(by_kafka)?;
            ends.push((*partition, high));
        }
    }
    if ends.is_empty() {
        return Err(InferError::Empty(format!("topic {topic}")));
    }
    consumer.assign(&assignment).map_err(by_kafka)?;

    let mut found: Vec<(i32, Vec<SampledMessage>)> =
        ends.iter().map(|(partition, _)| (*partition, Vec::new())).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut last = Instant::now();
    // The last offsets may be marks of transactions, which are no messages: a pause ends it too.
    let pause = Duration::from_secs(2);
    while !ends.is_empty() && Instant::now() < deadline {
        let any = found.iter().any(|(_, messages)| !messages.is_empty());
        if any && last.elapsed() > pause {
            break;
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.map_err(by_kafka)?;
        last = Instant::now();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let sampled = SampledMessage {
            key: message.key().map(text),
            timestamp_ms: message.timestamp().to_millis(),
            payload: message.payload().unwrap_or_default().to_vec(),
            as_json: Vec::new(),
        };
        let partition = message.partition();
        if let Some((_, messages)) = found.iter_mut().find(|(found, _)| *found == partition) {
            messages.push(sampled);
        }
        ends.retain(|(of, end)| *of != partition || message.offset() + 1 < *end);
    }
    let pieces = found.into_iter().filter(|(_, messages)| !messages.is_empty());
    let pieces: Vec<Piece> = pieces
        .map(|(partition, messages)| Piece {
            name: format!("{topic}/{partition}"),
            named: None,
            content: Content::Messages(messages),
        })
        .collect();
    if pieces.is_empty() {
        return Err(failed(format!("no message came within {PATIENCE:?}")));
    }
    Ok(pieces)
}

/// Reads messages that are Arrow streams, or Avro in Confluent's wire format with the schemas of
/// `registry`, into JSON. Others stay as they are.
///
/// # Errors
/// If they need a registry and there is none, it does not answer, or they are not what they begin
/// like.
pub fn read_columns(
    pieces: &mut [Piece],
    mut registry: Option<Registry>,
) -> Result<(), InferError> {
    for piece in pieces {
        let Content::Messages(messages) = &mut piece.content else { continue };
        let refuse = |reason: String| InferError::Format { name: piece.name.clone(), reason };
        let Some(first) = messages.first() else { continue };
        if is_confluent(&first.payload) {
            piece.named = Some(Format::Avro);
            let Some(registry) = &mut registry else {
                let reason = "messages are Avro of a schema registry: expected --registry URL";
                return Err(refuse(reason.to_owned()));
            };
            for message in messages {
                let batch = avro_batch(&message.payload, registry).map_err(refuse)?;
                message.as_json = json_lines(&batch).map_err(|error| refuse(error.to_string()))?;
            }
        } else if binary_format(&first.payload) == Some(Format::Arrow) {
            piece.named = Some(Format::Arrow);
            for message in messages {
                let said = |error: ArrowError| refuse(error.to_string());
                let batches = StreamReader::try_new(&message.payload[..], None).map_err(said)?;
                for batch in batches {
                    message.as_json.append(&mut json_lines(&batch.map_err(said)?).map_err(said)?);
                }
            }
        }
    }
    Ok(())
}

/// The one record of a message in Confluent's wire format.
fn avro_batch(payload: &[u8], registry: &mut Registry) -> Result<RecordBatch, String> {
    let [0, a, b, c, d, datum @ ..] = payload else {
        return Err("expected Confluent's framing in every message".to_owned());
    };
    let id = u32::from_be_bytes([*a, *b, *c, *d]);
    let schema = registry.schema(id).map_err(|error| error.to_string())?;
    let of = |error: ArrowError| format!("schema {id}: {error}");
    let fingerprint = Fingerprint::Id(id);
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(fingerprint, AvroSchema::new(schema.to_string())).map_err(of)?;
    let mut decoder = ReaderBuilder::new()
        .with_decoder_mode(DecoderMode::UnframedDatum)
        .with_writer_schema_store(store)
        .with_active_fingerprint(fingerprint)
        .build_decoder()
        .map_err(of)?;
    decoder.decode(datum).map_err(|error| format!("schema {id}: {error}"))?;
    let batch = decoder.flush().map_err(|error| format!("schema {id}: {error}"))?;
    batch.ok_or_else(|| format!("schema {id}: expected a record, found none"))
}

fn json_lines(batch: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = String::from_utf8_lossy(&writer.into_inner()).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> InferError {
    InferError::Read { path: path.display().to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(piece: &Piece) -> &str {
        match &piece.content {
            Content::Text(text) => text,
            other => panic!("expected text, found {other:?}"),
        }
    }

    #[test]
    fn compressed_files_are_read_and_long_ones_end_with_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv.gz");
        let mut out = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::default(),
        );
        out.write_all(b"t,a\n1,2\n3,4\n").unwrap();
        out.finish().unwrap();
        let piece = of_file(&path, 10).unwrap();
        assert_eq!((text(&piece), piece.named), ("t,a\n1,2", Some(Format::Csv)));
        let path = folder.path().join("a.jsonl.zst");
        std::fs::write(&path, zstd::encode_all(&b"{\"a\":1}\n"[..], 0).unwrap()).unwrap();
        assert_eq!(text(&of_file(&path, 1 << 20).unwrap()), "{\"a\":1}\n");
    }

    #[test]
    fn a_folder_of_several_formats_is_refused_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(matches!(of_path(path), Err(InferError::Empty(_))));
        std::fs::write(path.join("notes.txt"), "x").unwrap();
        std::fs::write(path.join("_faults.jsonl"), "x").unwrap();
        std::fs::create_dir(path.join("deep")).unwrap();
        std::fs::write(path.join("deep/a.csv"), "t,a\n").unwrap();
        let pieces = of_path(path).unwrap();
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].name.ends_with("deep/a.csv"));
        std::fs::write(path.join("b.log"), "x").unwrap();
        let error = of_path(path).unwrap_err().to_string();
        assert!(error.contains("csv and log") || error.contains("log and csv"), "{error}");
    }
}
