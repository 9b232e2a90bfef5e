//! The pipeline file: one typed table per room, unknown keys refused, every key with a default
//! where one makes sense.
//!
//! [`Pipeline::load`] reads a file, applies `--set` overrides, fills `${VAR}` from the environment
//! and checks fields against each other. Errors name the file, the line, the key, what was
//! expected and the nearest valid name. Printed, a pipeline shows no secrets.

mod check;
mod encoding;
mod load;
mod location;
mod properties;
mod records;
mod secret;
mod tree;
mod units;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::Conflict;
pub use encoding::{Avro, Csv, Encoding, Envelope, Format, Framing, Json, Log};
pub use load::ConfigError;
pub use location::Location;
pub use properties::Properties;
pub use records::{Channel, Group, Groups, Inputs, Layout, Records, TimeUnit};
pub use secret::Secret;
pub use tree::Place;
pub use units::{ByteSize, FalseAlarms, Span, Temperature, TimeSpan, WindowLength};

/// A pipeline: where records come from, what is learned from them, where results go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Prefix of default topic names and the `pipeline` field of every output.
    pub name: String,
    pub source: Source,
    pub records: Records,
    #[serde(default)]
    pub windows: Windows,
    #[serde(default)]
    pub pairs: Pairs,
    #[serde(default)]
    pub model: Model,
    #[serde(default)]
    pub training: Training,
    #[serde(default)]
    pub scores: Scores,
    /// Where labels come from, if any are taken.
    #[serde(default)]
    pub feedback: Option<Feedback>,
    #[serde(default)]
    pub sink: Sink,
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Where Avro schemas are, if any are asked for or written.
    #[serde(default)]
    pub registry: Option<Registry>,
    #[serde(default)]
    pub http: Http,
}

/// `[source]`: where records come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    Kafka(KafkaSource),
    File(FileSource),
    Generator(GeneratorSource),
}

/// `[source]` with `kind = "kafka"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Bootstrap servers, `host:port,host:port`.
    pub brokers: String,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Consumer group; `contrastream-<name>` when left out.
    pub group: Option<String>,
    /// Where a lane without a committed offset starts: `earliest` or `latest`.
    #[serde(default)]
    pub start: Start,
    /// How message values are encoded.
    #[serde(default)]
    pub format: Format,
    /// How `format = "csv"` is read.
    #[serde(default)]
    pub csv: Csv,
    /// How `format = "json"` is read.
    #[serde(default)]
    pub json: Json,
    /// How `format = "avro"` is read.
    #[serde(default)]
    pub avro: Avro,
    /// How `format = "log"` is read.
    #[serde(default)]
    pub log: Log,
    /// Most messages of one partition handed on together. Up to 16 such batches, of all
    /// partitions, are under way at once, and a commit waits for those before it.
    #[serde(default = "defaults::batch_messages")]
    pub batch_messages: usize,
    /// Longest a message waits for others of its batch.
    #[serde(default = "defaults::linger")]
    pub linger: TimeSpan,
    /// Any librdkafka property: `security.protocol`, `sasl.*`, `ssl.*`, …. Used by the consumer
    /// and, where `[sink.kafka]` names no brokers of its own, by the producer.
    #[serde(default)]
    pub properties: Properties,
}

/// Where a lane without a committed offset starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

/// `[source]` with `kind = "file"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// A file, or a folder whose files (recursively, by name) are one lane each.
    pub path: PathBuf,
    /// When left out, each file's extension decides: `.json`, `.jsonl` and `.ndjson` (a record a
    /// line), `.csv`, `.parquet`, `.avro`, `.arrow` and `.arrows`, `.log`. Text may be compressed:
    /// `.gz`, `.zst`.
    pub format: Option<Format>,
    /// How CSV files are read.
    #[serde(default)]
    pub csv: Csv,
    /// How JSON files are read.
    #[serde(default)]
    pub json: Json,
    /// How Avro files are read.
    #[serde(default)]
    pub avro: Avro,
    /// How log files are read.
    #[serde(default)]
    pub log: Log,
    /// Event time that passes per second of real time, to replay a recording as it happened; 0: as
    /// fast as records are taken.
    #[serde(default)]
    pub speed: f64,
    /// Most rows of one file handed on together.
    #[serde(default = "defaults::batch_messages")]
    pub batch_rows: usize,
}

/// `[source]` with `kind = "generator"`: a plant of seasonal machines with injected faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorSource {
    /// Number of machines (keys).
    #[serde(default = "defaults::machines")]
    pub machines: usize,
    /// Time between two samples of a machine.
    #[serde(default = "defaults::period")]
    pub period: TimeSpan,
    /// Records made in all; 0: without end.
    #[serde(default)]
    pub count: u64,
    /// Records a second in real time; 0: as fast as they are taken.
    #[serde(default)]
    pub rate: f64,
    /// Mean event time between two faults of one machine; 0s: no faults.
    #[serde(default = "defaults::fault_every")]
    pub fault_every: TimeSpan,
    /// Event time after a machine's first sample before its first fault.
    #[serde(default = "defaults::fault_after")]
    pub fault_after: TimeSpan,
    /// Seed of all that is random in it.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
}

/// `[registry]`: a schema registry with Confluent's HTTP interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// `http://host:port` or `https://host:port`, with a path where the interface has one.
    pub url: String,
    /// User, for basic authentication.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Option<Secret>,
    /// Bearer token.
    pub token: Option<Secret>,
    /// Certificate authority, PEM, where the system's own do not do.
    pub ca: Option<PathBuf>,
    /// Whether schemas of output topics are registered when the pipeline starts; else they must be
    /// there.
    #[serde(default = "defaults::register")]
    pub register: bool,
}

/// `[windows]`: how each key's stream is cut into segments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Windows {
    /// Samples of a segment, or a duration such as `"30s"` (then `resample` must be set).
    pub length: WindowLength,
    /// Samples, or a duration, between the starts of two successive segments.
    pub stride: WindowLength,
    /// Grid onto which samples are averaged; left out, samples are taken as they come.
    pub resample: Option<TimeSpan>,
    /// A longer gap between two samples of a key starts a new run: no segment spans it.
    pub max_gap: Option<TimeSpan>,
    /// How long a channel's last value stands in for the ones that are missing after it; left out,
    /// what is missing stays missing. Needs `resample`.
    pub carry: Option<TimeSpan>,
    /// Whether the model also sees, per channel, the time since it was last observed.
    pub time_since_last: bool,
    /// How far a record may lie behind the newest of its key; later ones are counted and dropped.
    pub lateness: TimeSpan,
    /// Wall-clock silence after which a partition no longer holds the watermark back.
    pub idle: TimeSpan,
    /// Keys held in memory at once, over all partitions; the least recently seen ones make room.
    /// They come back from the checkpoint store when they are seen again; without one they begin
    /// anew.
    pub max_keys: usize,
}

/// `[pairs]`: what counts as a positive pair, and its augmentations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pairs {
    /// How far, in strides, an adjacent positive may lie.
    pub max_distance: usize,
    /// Augmentations, applied in this order to both views.
    pub augment: Vec<Augmentation>,
    /// Entries of the queue that overlap the anchor or its positive are not negatives.
    pub exclude_same_key: bool,
    /// Segments kept to draw pairs from.
    pub pool: usize,
}

/// An augmentation of `pairs.augment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Augmentation {
    /// Gaussian noise on every sample.
    Jitter,
    /// One random factor per channel.
    Scale,
    /// Random samples become missing.
    Mask,
    /// A random part of the segment stays, the rest becomes missing.
    Crop,
    /// One channel of several becomes missing.
    DropChannel,
}

/// `[model]`: the encoder and its contrastive memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    pub encoder: Encoder,
    /// What values are standardised by before the model sees them.
    pub standardise: Standardise,
    /// What the encoder sees of a channel.
    pub input: Input,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Most blocks of the `tcn`: their dilations double while they fit into the window.
    pub blocks: usize,
    /// Which of the `tcn`'s blocks an embedding is made of.
    pub pool: Pooling,
    /// Length of an embedding.
    pub embedding: usize,
    /// Widths of the projection head's layers; the last one is the space of the loss.
    pub projection: Vec<usize>,
    /// Negatives held.
    pub queue: usize,
    /// Share of the momentum encoder that stays at each step.
    pub momentum: f32,
    /// Of InfoNCE: a number, or `"auto"` to learn it.
    pub temperature: Temperature,
}

/// The encoder's architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// Dilated causal convolutions.
    #[default]
    Tcn,
    /// Dense layers over the flattened segment.
    Mlp,
}

/// Which blocks of the temporal convolutional network are pooled over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The last one.
    #[default]
    Last,
    /// Every one and what the first one reads, side by side: hypercolumns (Hariharan et al. 2015).
    /// What is short keeps a place of its own beside what is long.
    Every,
}

/// What values are standardised by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standardise {
    /// Level and spread of each key: keys are alike but for their offsets and units.
    #[default]
    Key,
    /// Level and spread of all keys together: what they differ in has a meaning, and a key is seen
    /// by it from its first segment on.
    All,
}

/// What the encoder sees of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// Its values.
    #[default]
    Values,
    /// How much it moves: the root of the size of its steps, averaged over an eighth of a segment.
    /// For waveforms, whose rhythm tells more than their level does.
    Movement,
}

/// `[training]`: how much is learned, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// `false` freezes the model: it embeds and scores without learning. One that never learned
    /// has random weights.
    pub enabled: bool,
    /// Pairs of a step.
    pub batch: usize,
    /// Segments seen per step.
    pub every: usize,
    pub learning_rate: f32,
    /// Largest norm of a step's gradient.
    pub clip_norm: f32,
    /// Share of the time that training may take beside a live stream; steps beyond it are left out. With
    /// 1 none is: scoring waits for each.
    pub max_share: f32,
    /// Seed of weights, pairs and augmentations.
    pub seed: u64,
    /// Where training steps are taken; embedding and scoring stay on the CPU.
    pub device: Device,
}

/// What takes training steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The cores that the learner shares. The same segments give the same weights, bit for bit.
    #[default]
    Cpu,
    /// The first GPU of NVIDIA's. Needs a program built with the feature `cuda`. Sums are added up in
    /// another order from run to run: weights agree to within rounding.
    Cuda,
}

/// `[scores]`: calibration and alerts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scores {
    /// Segments of a key before its scores may raise alerts.
    pub warmup: usize,
    /// False alarms a key may raise on a normal stream, such as `"1 per week"`.
    pub false_alarms: FalseAlarms,
    /// What a score looks at.
    pub parts: Vec<Part>,
    /// Which segments of an episode a score marks. Alerts do not depend on it.
    pub mark: Mark,
}

/// `[feedback]`: what people say of alerts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    /// Topic on the source's brokers, JSON messages such as `{"key":"press-4",
    /// "from":"2026-01-01T00:00:00Z","to":"2026-01-01T00:01:00Z","label":"anomaly"}`; the label is
    /// `anomaly` or `normal`, times are RFC 3339 or, as in outputs, microseconds since 1970.
    pub topic: String,
}

/// A view of a segment that its score takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// How little it looks like its predecessor's neighbour to the model.
    Surprise,
    /// How far its embedding is from earlier ones.
    Distance,
    /// How far its shape is from those of earlier segments: what the encoder sees of it, each
    /// channel less its mean, without the encoder.
    Shape,
    /// How far the level of its channels, taken together, is from the key's normal. Lasts as long
    /// as the fault does.
    Level,
    /// Sudden changes of its newest samples.
    Change,
    /// Errors of one-step forecasts: one too large, many a little too large, or all of one sign.
    Residual,
    /// How its channels move: the size of their steps at several lags.
    Texture,
    /// How often a channel has looked like this, gone as far, or been as far off for the hour of
    /// the day, in all of the key's history. Keeps 512 to about 1,200 samples a channel.
    Novelty,
}

/// Which segments of an episode a score marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// All: a score says how abnormal the segment is.
    #[default]
    State,
    /// Its onset: a score says what is new. A segment scores 0 unless it is more extreme than
    /// every suspicious one that it shares samples with.
    Onset,
    /// What the key has hardly ever shown, by its novelty alone, whether that is one of `parts` or
    /// not. Within two windows of a mark a segment scores 0 unless it is half as new again.
    Record,
    /// Of logs: its newest lines. A score says how severe the most severe of them is against what
    /// is usual, and how frequent of late; `evaluate` gives each line its own.
    Line,
}

/// `[sink]`: where results go; each of its tables is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sink {
    pub kafka: Option<KafkaSink>,
    pub parquet: Option<ParquetSink>,
}

/// `[sink.kafka]`: output topics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSink {
    /// Bootstrap servers; those of a Kafka source when left out.
    pub brokers: Option<String>,
    /// Topic of embeddings; `<name>.embeddings` when left out, `""` for none.
    pub embeddings: Option<String>,
    /// Topic of anomaly scores; `<name>.anomalies` when left out, `""` for none.
    pub anomalies: Option<String>,
    /// Topic of dead letters; `<name>.dead-letters` when left out.
    pub dead_letters: Option<String>,
    /// How embeddings and anomaly scores are written.
    pub format: OutputFormat,
    /// Any librdkafka producer property.
    pub properties: Properties,
}

/// How results are written to topics; the fields are those of `schemas/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// A JSON object a message.
    #[default]
    Json,
    /// Avro in Confluent's wire format; needs `[registry]`.
    Avro,
    /// An Arrow IPC stream a message, with one or more rows of one key.
    Arrow,
}

/// `[sink.parquet]`: embeddings as files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParquetSink {
    /// Where the files go: a folder, or `s3://bucket/prefix`.
    pub path: Location,
    /// Folders below it, `name=value`: `date` (UTC day of the window's end), `key`.
    #[serde(default = "defaults::partition_by")]
    pub partition_by: Vec<PartitionColumn>,
    /// A file of this size is closed and the next one begun; so is every file at each commit
    /// (`checkpoint.interval`), for rows in an open file are not durable.
    #[serde(default = "defaults::roll")]
    pub roll: ByteSize,
    /// Embeddings of whole days and stays of a key, beside those of its segments: below
    /// `trajectories/by=day` and `trajectories/by=stay`.
    #[serde(default)]
    pub trajectories: Vec<Trajectory>,
    /// A key that is silent for longer begins a new stay.
    #[serde(default = "defaults::stay_gap")]
    pub stay_gap: TimeSpan,
}

/// A stretch of a key's stream that gets one embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trajectory {
    /// A day in UTC.
    Day,
    /// Until the key falls silent for longer than `stay_gap`.
    Stay,
}

/// A column that names folders of the Parquet output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionColumn {
    Date,
    Key,
}

/// `[checkpoint]`: where state survives a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// A folder or `s3://bucket/prefix`, of this pipeline alone; replicas share it. Left out,
    /// nothing is saved and a restart learns anew.
    pub store: Option<Location>,
    /// Time between two commits.
    pub interval: TimeSpan,
    /// Checkpoints kept beside those that committed positions name.
    pub keep: usize,
    /// What a crash may do to results. Left out: exactly once where there is a store.
    pub delivery: Option<Delivery>,
    /// Tells replicas apart and lets a restarted one end what it had left open: stays the same over
    /// restarts, and no two replicas that run at once share it. Left out: the machine's name.
    pub instance: Option<String>,
}

/// What a crash may do to results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// Nothing: results, positions and state are committed together.
    ExactlyOnce,
    /// Results since the last commit come twice.
    AtLeastOnce,
}

/// `[http]`: metrics and health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address to listen on; `""` for none.
    pub listen: String,
}

impl Pipeline {
    /// How the source's records are encoded; of files, where their extension does not say it.
    pub fn encoding(&self) -> Encoding {
        let registry = self.registry.clone();
        match &self.source {
            Source::Kafka(KafkaSource { format, csv, json, avro, log, .. }) => Encoding {
                format: Some(*format),
                csv: csv.clone(),
                json: json.clone(),
                avro: avro.clone(),
                log: log.clone(),
                registry,
            },
            Source::File(FileSource { format, csv, json, avro, log, .. }) => Encoding {
                format: *format,
                csv: csv.clone(),
                json: json.clone(),
                avro: avro.clone(),
                log: log.clone(),
                registry,
            },
            Source::Generator(_) => Encoding::default(),
        }
    }

    /// What the model sees of a key.
    pub fn inputs(&self) -> Inputs {
        Inputs::new(&self.records, self.windows.time_since_last)
    }

    /// The consumer group of a Kafka source.
    pub fn group(&self) -> String {
        match &self.source {
            Source::Kafka(KafkaSource { group: Some(group), .. }) => group.clone(),
            _ => format!("contrastream-{}", self.name),
        }
    }

    /// Whether results, positions and state are committed together.
    pub fn exactly_once(&self) -> bool {
        match self.checkpoint.delivery {
            Some(delivery) => delivery == Delivery::ExactlyOnce,
            None => self.checkpoint.store.is_some(),
        }
    }

    /// The name of this replica, `checkpoint.instance` or the machine's.
    pub fn instance(&self) -> String {
        let machine = || gethostname::gethostname().to_string_lossy().into_owned();
        self.checkpoint.instance.clone().unwrap_or_else(machine)
    }
}

impl FileSource {
    /// The files at `path`, all else as it is by default.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            format: None,
            csv: Csv::default(),
            json: Json::default(),
            avro: Avro::default(),
            log: Log::default(),
            speed: 0.0,
            batch_rows: defaults::batch_messages(),
        }
    }
}

impl Windows {
    /// Samples of a segment. A duration is a number of `resample` bins, at least one.
    pub fn length_samples(&self) -> usize {
        self.samples(self.length)
    }

    /// Samples between the starts of two successive segments.
    pub fn stride_samples(&self) -> usize {
        self.samples(self.stride)
    }

    fn samples(&self, extent: WindowLength) -> usize {
        match extent {
            WindowLength::Samples(samples) => samples,
            WindowLength::Duration(span) => {
                let bin = self.resample.map_or(1, TimeSpan::micros).max(1);
                usize::try_from(span.micros() / bin).unwrap_or(usize::MAX).max(1)
            }
        }
    }
}

impl Default for GeneratorSource {
    fn default() -> Self {
        Self {
            machines: defaults::machines(),
            period: defaults::period(),
            count: 0,
            rate: 0.0,
            fault_every: defaults::fault_every(),
            fault_after: defaults::fault_after(),
            seed: defaults::seed(),
        }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            length: WindowLength::Samples(64),
            stride: WindowLength::Samples(8),
            resample: None,
            max_gap: None,
            carry: None,
            time_since_last: false,
            lateness: TimeSpan::from_secs(5),
            idle: TimeSpan::from_secs(60),
            max_keys: 1_000_000,
        }
    }
}

impl Default for Pairs {
    fn default() -> Self {
        use Augmentation::{Crop, DropChannel, Jitter, Mask, Scale};
        Self {
            max_distance: 1,
            augment: vec![Jitter, Scale, Mask, Crop, DropChannel],
            exclude_same_key: true,
            pool: 4096,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            encoder: Encoder::Tcn,
            standardise: Standardise::Key,
            input: Input::Values,
            hidden: 32,
            blocks: 4,
            pool: Pooling::Last,
            embedding: 64,
            projection: vec![128, 64],
            queue: 4096,
            momentum: 0.995,
            temperature: Temperature::Auto,
        }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            enabled: true,
            batch: 128,
            every: 32,
            learning_rate: 1e-3,
            clip_norm: 1.0,
            max_share: 0.5,
            seed: 7,
            device: Device::default(),
        }
    }
}

impl Default for Scores {
    fn default() -> Self {
        Self {
            warmup: 500,
            false_alarms: FalseAlarms::default(),
            parts: vec![Part::Surprise, Part::Distance, Part::Level, Part::Residual, Part::Texture],
            mark: Mark::State,
        }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            store: None,
            interval: TimeSpan::from_secs(5),
            keep: 3,
            delivery: None,
            instance: None,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".to_owned() }
    }
}

/// Defaults that serde needs by name.
mod defaults {
    use super::{ByteSize, PartitionColumn, TimeSpan};

    pub fn batch_messages() -> usize {
        1024
    }
    pub fn linger() -> TimeSpan {
        TimeSpan::from_millis(2)
    }
    pub fn machines() -> usize {
        8
    }
    pub fn period() -> TimeSpan {
        TimeSpan::from_secs(1)
    }
    pub fn fault_every() -> TimeSpan {
        TimeSpan::from_secs(3600)
    }
    pub fn fault_after() -> TimeSpan {
        TimeSpan::from_secs(3600)
    }
    pub fn seed() -> u64 {
        7
    }
    pub fn register() -> bool {
        true
    }
    pub fn stay_gap() -> TimeSpan {
        TimeSpan::from_secs(24 * 3600)
    }
    pub fn partition_by() -> Vec<PartitionColumn> {
        vec![PartitionColumn::Date]
    }
    pub fn roll() -> ByteSize {
        ByteSize::mib(128)
    }
}
