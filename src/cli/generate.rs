//! `contrastream generate`: records for trials, tests and benchmarks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use serde::Serialize;

use super::{Usage, demo};
use crate::config::{
    Format, GeneratorSource as GeneratorConfig, Properties, Records, Source as Origin, TimeSpan,
};
use crate::kafka;
use crate::source::generator::{
    FhirMessages, GeneratorSource, LogLines, MessageFolder, MessageStream, RecordFolder, RowFormat,
    RowMessages, Schedule, json_messages,
};
use crate::source::{Event, Payload, Source, SourceError};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What kind of records.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Where to: `kafka://HOST:PORT,HOST:PORT/TOPIC`, or a folder.
    #[arg(long)]
    to: String,
    /// Records a second; 0: as fast as they are taken.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Records in all; 0: without end (Kafka only).
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Machines in the plant, hosts, or beds of the ward.
    #[arg(long, default_value_t = 8)]
    machines: usize,
    /// Event time between two faults of one machine, host or patient; `0s`: none [default: 1h, of
    /// patients 2 days].
    #[arg(long)]
    fault_every: Option<TimeSpan>,
    /// The same seed makes the same records.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Rows in this format: those of sensors in a folder [default: json]; those of patients, which
    /// are FHIR messages otherwise.
    #[arg(long, value_enum)]
    format: Option<RecordFormat>,
    /// File for the injected faults, a JSON object a line; a folder has them as `_faults.jsonl`.
    #[arg(long)]
    faults: Option<PathBuf>,
}

/// Kinds of records.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Kind {
    /// Machines of a plant with five sensors each, a reading a second.
    #[default]
    Sensor,
    /// Log lines of hosts, about one a second each.
    Logs,
    /// Vital signs and laboratory values of patients, every few minutes and hours.
    Medical,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RecordFormat {
    Json,
    Csv,
}

/// Time between two faults where none is named: of machines and hosts, and of patients.
const HOUR: TimeSpan = TimeSpan::from_secs(3_600);
const TWO_DAYS: TimeSpan = TimeSpan::from_secs(2 * 86_400);
/// Longest wait for records that are due before the next look.
const POLL: Duration = Duration::from_millis(100);

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // The demo's plant; its fields and channels are those of pipelines/sensor.toml.
    let pipeline = demo::pipeline()?;
    let Origin::Generator(defaults) = pipeline.source else {
        bail!("the demo's source is not a generator");
    };
    let generator = GeneratorConfig {
        machines: arguments.machines,
        rate: arguments.rate,
        count: arguments.count,
        fault_every: arguments.fault_every.unwrap_or(HOUR),
        seed: arguments.seed,
        ..defaults
    };
    let began = Instant::now();
    let written = match arguments.kind {
        Kind::Sensor => sensors(arguments, &generator, &pipeline.records)?,
        Kind::Logs => messages(arguments, LogLines::new(&generator))?,
        Kind::Medical => patients(arguments)?,
    };
    eprintln!("wrote {written} records to {} in {:.1?}", arguments.to, began.elapsed());
    Ok(())
}

/// Writes the messages of a ward; returns their number.
fn patients(arguments: &Arguments) -> anyhow::Result<u64> {
    let (beds, seed) = (arguments.machines, arguments.seed);
    let fault_every = arguments.fault_every.unwrap_or(TWO_DAYS);
    let rows = |format| RowMessages::new(beds, fault_every, seed, format);
    match arguments.format {
        None => messages(arguments, FhirMessages::new(beds, fault_every, seed)),
        Some(RecordFormat::Json) => messages(arguments, rows(RowFormat::Json)),
        Some(RecordFormat::Csv) => messages(arguments, rows(RowFormat::Csv)),
    }
}

/// Writes the records of a plant; returns their number.
fn sensors(
    arguments: &Arguments,
    generator: &GeneratorConfig,
    records: &Records,
) -> anyhow::Result<u64> {
    let mut target = Target::open(arguments, |folder| {
        let format = match arguments.format {
            None | Some(RecordFormat::Json) => Format::Json,
            Some(RecordFormat::Csv) => Format::Csv,
        };
        RecordFolder::create(folder, records, format).map(Box::new)
    })?;
    let mut fault_file = FaultFile::of(arguments)?;
    let mut source = GeneratorSource::new(generator, &records.channels, 0);
    let faults = source.faults();
    let mut written = 0;
    loop {
        let batch = match source.poll(POLL)? {
            Event::Batch(batch) => batch,
            Event::End => break,
            Event::Assigned(_) | Event::Revoked(_) | Event::Lost(_) | Event::Idle => continue,
        };
        let Payload::Decoded(decoded) = batch.payload else { continue };
        let new_faults =
            std::mem::take(&mut *faults.lock().unwrap_or_else(PoisonError::into_inner));
        match &mut target {
            Target::Topic(topic) => {
                for (key, payload) in json_messages(&decoded.records, records) {
                    topic.send(key, &payload)?;
                }
            }
            Target::Folder(folder) => {
                folder.write(&decoded.records)?;
                folder.write_faults(&new_faults)?;
            }
        }
        if let Some(file) = &mut fault_file {
            file.write(&new_faults)?;
        }
        written += decoded.records.num_rows() as u64;
    }
    match target {
        Target::Topic(topic) => topic.finish()?,
        Target::Folder(folder) => folder.finish()?,
    }
    Ok(written)
}

/// Writes messages of another kind; returns their number.
fn messages<M: MessageStream>(arguments: &Arguments, mut stream: M) -> anyhow::Result<u64> {
    let mut target = Target::open(arguments, |folder| MessageFolder::create(folder, &stream))?;
    let mut fault_file = FaultFile::of(arguments)?;
    let mut schedule = Schedule::new(arguments.rate, arguments.count);
    let mut written = 0;
    while let Some(due) = schedule.wait() {
        for _ in 0..due {
            let (key, payload) = stream.next_message();
            match &mut target {
                Target::Topic(topic) => topic.send(key.as_bytes(), payload)?,
                Target::Folder(folder) => folder.write(payload)?,
            }
        }
        let new_faults = stream.take_faults();
        if let Target::Folder(folder) = &mut target {
            folder.write_faults(&new_faults)?;
        }
        if let Some(file) = &mut fault_file {
            file.write(&new_faults)?;
        }
        written += due as u64;
    }
    match target {
        Target::Topic(topic) => topic.finish()?,
        Target::Folder(folder) => folder.finish()?,
    }
    Ok(written)
}

enum Target<F> {
    Topic(RecordTopic),
    Folder(F),
}

impl<F> Target<F> {
    /// What `--to` says, where `create` makes a folder.
    fn open(
        arguments: &Arguments,
        create: impl FnOnce(&Path) -> Result<F, SourceError>,
    ) -> anyhow::Result<Self> {
        match arguments.to.strip_prefix("kafka://") {
            Some(address) => Ok(Self::Topic(RecordTopic::connect(address)?)),
            None if arguments.count == 0 => {
                bail!(Usage("--count: a folder needs an end, such as --count 100000".to_owned()));
            }
            None => Ok(Self::Folder(create(Path::new(&arguments.to))?)),
        }
    }
}

/// A topic that records are produced to.
struct RecordTopic {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
}

/// Remembers the first delivery that failed.
#[derive(Default)]
struct Deliveries {
    failure: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
    }
}

impl RecordTopic {
    /// Longest wait for the last acknowledgements.
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// `address` is `HOST:PORT,HOST:PORT/TOPIC`.
    fn connect(address: &str) -> anyhow::Result<Self> {
        let (brokers, topic) = address
            .split_once('/')
            .filter(|(brokers, topic)| !brokers.is_empty() && !topic.is_empty())
            .ok_or_else(|| {
                Usage(format!("--to kafka://{address}: expected kafka://HOST:PORT/TOPIC"))
            })?;
        let defaults = [("enable.idempotence", "true"), ("linger.ms", "5")];
        let settings =
            kafka::settings(brokers, &defaults, &Properties::new(), &[]).map_err(Usage)?;
        let producer: ThreadedProducer<Deliveries> =
            settings.create_with_context(Deliveries::default())?;
        let metadata = producer
            .client()
            .fetch_metadata(Some(topic), kafka::CONNECT_TIMEOUT)
            .with_context(|| format!("no broker of {brokers} answers"))?;
        if metadata.topics().iter().any(|found| found.error().is_some()) {
            bail!("topic {topic} does not exist on {brokers}");
        }
        Ok(Self { producer, topic: topic.to_owned() })
    }

    fn send(&self, key: &[u8], payload: &[u8]) -> anyhow::Result<()> {
        let mut record = BaseRecord::to(&self.topic).key(key).payload(payload);
        loop {
            match self.producer.send(record) {
                Ok(()) => return self.check(),
                // Room is made as brokers acknowledge.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.check()?;
                    record = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((error, _)) => return Err(self.failed(&error)),
            }
        }
    }

    /// Waits until every record is acknowledged.
    fn finish(self) -> anyhow::Result<()> {
        self.producer.flush(Self::TIMEOUT).map_err(|error| self.failed(&error))?;
        self.check()
    }

    fn check(&self) -> anyhow::Result<()> {
        let failure = &self.producer.context().failure;
        match &*failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(self.failed(error)),
            None => Ok(()),
        }
    }

    fn failed(&self, error: &KafkaError) -> anyhow::Error {
        anyhow::anyhow!("topic {}: {error}", self.topic)
    }
}

/// The injected faults, a JSON object a line.
struct FaultFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl FaultFile {
    /// What `--faults` names.
    fn of(arguments: &Arguments) -> anyhow::Result<Option<Self>> {
        arguments.faults.as_deref().map(Self::create).transpose()
    }

    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file) })
    }

    fn write(&mut self, faults: &[impl Serialize]) -> anyhow::Result<()> {
        for fault in faults {
            serde_json::to_writer(&mut self.out, fault)?;
            self.out.write_all(b"\n").with_context(|| self.path.display().to_string())?;
        }
        // Seldom, and wanted at once by whoever compares alerts with them.
        self.out.flush().with_context(|| self.path.display().to_string())
    }
}
