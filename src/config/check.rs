//! What the types of the pipeline file cannot say: ranges, and fields that depend on each other.

use std::path::Path;

use super::{
    Channel, Csv, Device, Format, Framing, Groups, KafkaSink, Layout, Location, Mark, Model,
    OutputFormat, Pipeline, Records, Source, TimeSpan, Training, WindowLength, Windows,
};

/// Fewest bytes of `records.key_hash`: with a salt that can be guessed, so can every key.
const SHORTEST_SALT: usize = 16;
/// Longest name of a Kafka topic.
const LONGEST_TOPIC: usize = 249;
/// Longest name of a pipeline: a topic's, less the longest default ending.
const LONGEST_NAME: usize = LONGEST_TOPIC - ".dead-letters".len();

// Beyond these, memory would run out long before the first record; a typing error does not get
// that far.
const LONGEST_WINDOW: usize = 1 << 16;
const WIDEST: usize = 1 << 14;
/// Most blocks: their dilations are below this power of two.
const MOST_BLOCKS: usize = 16;
const LARGEST_BATCH: usize = 1 << 16;
const LARGEST_MEMORY: usize = 1 << 24;
const MOST_MACHINES: usize = 1_000_000;
const UNBOUNDED: usize = usize::MAX;

/// Values of a pipeline file that cannot stand, alone or beside each other.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Conflict {
    #[error("{key} = {value}: expected {expected}")]
    OutOfRange { key: &'static str, value: String, expected: String },
    #[error("{key} names {name:?} twice")]
    Twice { key: &'static str, name: String },
    #[error("{first} and {second} both name the field {name:?}")]
    SameField { first: &'static str, second: &'static str, name: String },
    #[error("source.csv.columns lacks {name:?}, which {key} names")]
    ColumnMissing { key: &'static str, name: String },
    #[error("source.format = \"csv\" needs source.csv.columns: a Kafka message has no header line")]
    CsvWithoutColumns,
    #[error("source.format = \"parquet\" needs source.kind = \"file\", not \"kafka\"")]
    ParquetFromKafka,
    #[error("{key} = {value} is a duration and needs windows.resample, which is not set")]
    DurationWithoutResample { key: &'static str, value: TimeSpan },
    #[error("{key} = {value} is shorter than windows.resample = {resample}")]
    ShorterThanResample { key: &'static str, value: TimeSpan, resample: TimeSpan },
    #[error("windows.stride = {stride} is longer than windows.length = {length}")]
    StrideBeyondLength { stride: WindowLength, length: WindowLength },
    #[error(
        "model.queue = {queue} does not suit training.batch = {batch}: expected a multiple of it, \
         or at least twice as much"
    )]
    QueueAgainstBatch { queue: usize, batch: usize },
    #[error("training.device = \"cuda\" needs a program that was built with the feature `cuda`")]
    BuiltWithoutCuda,
    #[error("pairs.pool = {pool} is smaller than training.batch = {batch}")]
    PoolBelowBatch { pool: usize, batch: usize },
    #[error("{key} names {name:?}, which is not one of records.channels")]
    NoSuchChannel { key: &'static str, name: String },
    #[error("records.channel.{channel}.{key} is for records.layout = \"{layout}\"")]
    OtherLayout { key: &'static str, channel: String, layout: &'static str },
    #[error(
        "records.groups cuts channels into groups, and records.layout = \"log\" has none to cut"
    )]
    GroupedLogs,
    #[error("scores.mark = \"line\" needs records.layout = \"log\"")]
    LineWithoutLogs,
    #[error("records.time is missing: only messages of a topic have a timestamp of their own")]
    NoTime,
    #[error(
        "records.key_hash hides keys, and without records.key they are the names of files, which \
         results tell"
    )]
    KeyInName,
    #[error(
        "records.key_hash hides keys, and templates, which records.layout = \"log\" mines and \
         results tell, are made of the text around them"
    )]
    KeyInTemplates,
    #[error("source.format = \"fhir\" has rows of codes and values: records.layout = \"long\"")]
    FhirNotLong,
    #[error("{key} needs windows.resample, which is not set")]
    CarryWithoutResample { key: &'static str },
    #[error("sink.kafka.format = \"avro\" needs [registry], where readers find the schemas")]
    AvroWithoutRegistry,
    #[error(
        "source.format = \"avro\" needs [registry] or source.avro.schema, to know what was written"
    )]
    AvroWithoutSchema,
    #[error("sink.kafka needs sink.kafka.brokers where source.kind is not \"kafka\"")]
    NoBrokers,
    #[error(
        "checkpoint.delivery = \"exactly-once\" needs checkpoint.store, where state is committed to"
    )]
    ExactlyOnceWithoutStore,
    #[error(
        "sink.kafka.brokers is not source.brokers, and no transaction spans two clusters: leave it \
         out if they are one, or set checkpoint.delivery = \"at-least-once\""
    )]
    ClustersApart,
    #[error(
        "source.properties: isolation.level = {found:?} could read positions that are not settled: \
         exactly once needs \"read_committed\", which is the default"
    )]
    ReadsUncommitted { found: String },
    #[error("{key} = {topic:?} is no legal topic name: expected up to 249 of a-z A-Z 0-9 . _ -")]
    IllegalTopic { key: &'static str, topic: String },
    #[error("{key} = {topic:?} is also in source.topics: the pipeline would read its own output")]
    OutputIsInput { key: &'static str, topic: String },
    #[error("[feedback] needs source.kind = \"kafka\", whose brokers have its topic")]
    FeedbackWithoutKafka,
    #[error("feedback.topic = {topic:?} is also in {other}: labels have a topic of their own")]
    FeedbackIsNotAlone { topic: String, other: &'static str },
    #[error("{first} and {second} both write to topic {topic:?}")]
    SharedOutput { first: &'static str, second: &'static str, topic: String },
}

impl Conflict {
    /// The key to look at first.
    pub fn key(&self) -> &'static str {
        match self {
            Self::OutOfRange { key, .. }
            | Self::Twice { key, .. }
            | Self::ColumnMissing { key, .. }
            | Self::DurationWithoutResample { key, .. }
            | Self::ShorterThanResample { key, .. }
            | Self::IllegalTopic { key, .. }
            | Self::NoSuchChannel { key, .. }
            | Self::CarryWithoutResample { key }
            | Self::OutputIsInput { key, .. } => key,
            Self::OtherLayout { .. } => "records.channel",
            Self::GroupedLogs => "records.groups",
            Self::LineWithoutLogs => "scores.mark",
            Self::NoTime => "records.time",
            Self::KeyInName | Self::KeyInTemplates => "records.key_hash",
            Self::FhirNotLong => "records.layout",
            Self::AvroWithoutRegistry => "sink.kafka.format",
            Self::AvroWithoutSchema => "source.avro",
            Self::SameField { second, .. } | Self::SharedOutput { second, .. } => second,
            Self::CsvWithoutColumns | Self::ParquetFromKafka => "source.format",
            Self::StrideBeyondLength { .. } => "windows.stride",
            Self::BuiltWithoutCuda => "training.device",
            Self::QueueAgainstBatch { .. } => "model.queue",
            Self::PoolBelowBatch { .. } => "pairs.pool",
            Self::NoBrokers => "sink.kafka",
            Self::FeedbackWithoutKafka | Self::FeedbackIsNotAlone { .. } => "feedback.topic",
            Self::ExactlyOnceWithoutStore => "checkpoint.delivery",
            Self::ClustersApart => "sink.kafka.brokers",
            Self::ReadsUncommitted { .. } => "source.properties",
        }
    }
}

/// The first thing that does not stand up, in the order of the file's tables.
pub(super) fn check(pipeline: &Pipeline) -> Result<(), Conflict> {
    check_name(&pipeline.name)?;
    check_source(&pipeline.source, &pipeline.records)?;
    check_records(&pipeline.records)?;
    check_windows(&pipeline.windows)?;
    check_carry(pipeline)?;
    check_registry(pipeline)?;
    within("pairs.max_distance", pipeline.pairs.max_distance, 1, UNBOUNDED)?;
    within("pairs.pool", pipeline.pairs.pool, 1, LARGEST_MEMORY)?;
    check_model(&pipeline.model)?;
    check_training(&pipeline.training)?;
    check_memories(pipeline)?;
    check_sinks(pipeline)?;
    check_feedback(pipeline)?;
    let looks_at_lines = pipeline.scores.mark == Mark::Line;
    ensure(!looks_at_lines || pipeline.records.layout == Layout::Log, || {
        Conflict::LineWithoutLogs
    })?;
    positive("checkpoint.interval", pipeline.checkpoint.interval)?;
    within("checkpoint.keep", pipeline.checkpoint.keep, 1, UNBOUNDED)?;
    if let Some(store) = &pipeline.checkpoint.store {
        not_nowhere("checkpoint.store", store)?;
    }
    if let Some(instance) = &pipeline.checkpoint.instance {
        not_empty("checkpoint.instance", instance)?;
    }
    check_delivery(pipeline)?;
    check_listen(&pipeline.http.listen)
}

/// One commit needs a store for what it commits, and one cluster.
fn check_delivery(pipeline: &Pipeline) -> Result<(), Conflict> {
    if !pipeline.exactly_once() {
        return Ok(());
    }
    ensure(pipeline.checkpoint.store.is_some(), || Conflict::ExactlyOnceWithoutStore)?;
    let Source::Kafka(from) = &pipeline.source else { return Ok(()) };
    if let Some(into) = pipeline.sink.kafka.as_ref().and_then(|sink| sink.brokers.as_ref()) {
        ensure(from.brokers == *into, || Conflict::ClustersApart)?;
    }
    match from.properties.get("isolation.level") {
        Some(level) if level != "read_committed" => {
            Err(Conflict::ReadsUncommitted { found: level.clone() })
        }
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), Conflict> {
    ensure(is_topic_name(name) && name.len() <= LONGEST_NAME, || {
        let expected = "up to 236 of a-z A-Z 0-9 . _ -, for it begins the names of topics";
        out_of_range("name", format!("{name:?}"), expected)
    })
}

fn check_source(source: &Source, records: &Records) -> Result<(), Conflict> {
    match source {
        Source::Kafka(kafka) => {
            not_empty("source.brokers", &kafka.brokers)?;
            ensure(!kafka.topics.is_empty(), || {
                out_of_range("source.topics", "[]", "at least one topic")
            })?;
            unique("source.topics", &kafka.topics)?;
            for topic in &kafka.topics {
                legal_topic("source.topics", topic)?;
            }
            if let Some(group) = &kafka.group {
                not_empty("source.group", group)?;
            }
            within("source.batch_messages", kafka.batch_messages, 1, UNBOUNDED)?;
            check_csv(&kafka.csv)?;
            match kafka.format {
                Format::Parquet => Err(Conflict::ParquetFromKafka),
                Format::Csv if kafka.csv.columns.is_empty() => Err(Conflict::CsvWithoutColumns),
                Format::Csv => check_columns(&kafka.csv.columns, records),
                Format::Fhir => check_fhir(records),
                Format::Json | Format::Avro | Format::Arrow | Format::Log => Ok(()),
            }
        }
        Source::File(file) => {
            not_empty_path("source.path", &file.path)?;
            within("source.batch_rows", file.batch_rows, 1, UNBOUNDED)?;
            check_csv(&file.csv)?;
            let may_be_csv = matches!(file.format, None | Some(Format::Csv));
            if may_be_csv && !file.csv.columns.is_empty() {
                check_columns(&file.csv.columns, records)?;
            }
            ensure(file.speed.is_finite() && file.speed >= 0.0, || {
                out_of_range("source.speed", file.speed, "a number, 0 or more")
            })?;
            if file.format == Some(Format::Fhir) {
                // It has a key and a time by itself.
                return check_fhir(records);
            }
            // A stream alone has timestamps of its own.
            ensure(records.time.is_some(), || Conflict::NoTime)?;
            // A file's name is told in every result.
            ensure(records.key.is_some() || records.key_hash.is_none(), || Conflict::KeyInName)
        }
        Source::Generator(generator) => {
            within("source.machines", generator.machines, 1, MOST_MACHINES)?;
            positive("source.period", generator.period)?;
            ensure(generator.rate.is_finite() && generator.rate >= 0.0, || {
                out_of_range("source.rate", generator.rate, "a number, 0 or more")
            })
        }
    }
}

fn check_csv(csv: &Csv) -> Result<(), Conflict> {
    ensure(csv.delimiter.is_ascii() && !matches!(csv.delimiter, '"' | '\n' | '\r'), || {
        let value = format!("{:?}", csv.delimiter);
        out_of_range("source.csv.delimiter", value, "one ASCII character, no quote or line break")
    })?;
    unique("source.csv.columns", &csv.columns)
}

fn check_fhir(records: &Records) -> Result<(), Conflict> {
    ensure(records.layout == Layout::Long, || Conflict::FhirNotLong)
}

fn check_columns(columns: &[String], records: &Records) -> Result<(), Conflict> {
    match fields(records).into_iter().find(|(_, name)| !columns.contains(name)) {
        Some((key, name)) => Err(Conflict::ColumnMissing { key, name: name.clone() }),
        None => Ok(()),
    }
}

/// The fields that a record is read from, with the keys that name them.
fn fields(records: &Records) -> Vec<(&'static str, &String)> {
    let mut fields: Vec<_> = records.time.iter().map(|time| ("records.time", time)).collect();
    fields.extend(records.key.iter().map(|key| ("records.key", key)));
    match records.layout {
        Layout::Wide => {
            let field = |name: &'_ String| records.channel.get(name)?.field.as_ref();
            fields.extend(
                records
                    .channels
                    .iter()
                    .map(|name| ("records.channels", field(name).unwrap_or(name))),
            );
        }
        Layout::Long => {
            fields.extend([("records.code", &records.code), ("records.value", &records.value)]);
            fields.extend(records.unit.iter().map(|unit| ("records.unit", unit)));
        }
        Layout::Log => {
            fields.push(("records.message", &records.message));
            fields.extend(records.severity.iter().map(|level| ("records.severity", level)));
        }
    }
    fields
}

fn check_records(records: &Records) -> Result<(), Conflict> {
    let fields = fields(records);
    for (at, (key, name)) in fields.iter().enumerate() {
        not_empty(key, name)?;
        for (first, other) in &fields[..at] {
            // A name that is repeated among channels is told below.
            if first != key {
                different(first, other, key, name)?;
            }
        }
    }
    check_times(records)?;
    let nothing = || out_of_range("records.channels", "[]", "at least one channel");
    let names = || {
        out_of_range(
            "records.channels",
            format!("{:?}", records.channels),
            "no channels where layout = \"log\"",
        )
    };
    match records.layout {
        Layout::Wide | Layout::Long => ensure(!records.channels.is_empty(), nothing)?,
        Layout::Log => ensure(records.channels.is_empty(), names)?,
    }
    unique("records.channels", &records.channels)?;
    for channel in &records.channels {
        not_empty("records.channels", channel)?;
    }
    for (name, channel) in &records.channel {
        ensure(records.channels.contains(name), || Conflict::NoSuchChannel {
            key: "records.channel",
            name: name.clone(),
        })?;
        check_channel(name, channel, records.layout)?;
    }
    let codes: Vec<String> =
        records.channel.values().flat_map(|channel| channel.codes.clone()).collect();
    unique("records.channel", &codes)?;
    if let Some(salt) = &records.key_hash {
        ensure(salt.reveal().len() >= SHORTEST_SALT, || {
            let bytes = format!("{} bytes", salt.reveal().len());
            out_of_range("records.key_hash", bytes, "a secret of at least 16 bytes")
        })?;
        ensure(records.layout != Layout::Log, || Conflict::KeyInTemplates)?;
    }
    match &records.groups {
        None => Ok(()),
        Some(_) if records.layout == Layout::Log => Err(Conflict::GroupedLogs),
        Some(Groups::Of(size)) => within("records.groups", *size, 1, WIDEST),
        Some(Groups::Named(groups)) => {
            ensure(!groups.is_empty(), || {
                out_of_range("records.groups", "{}", "at least one group")
            })?;
            for (name, channels) in groups {
                ensure(!name.is_empty() && !name.contains('/'), || {
                    out_of_range("records.groups", format!("{name:?}"), "names without a slash")
                })?;
                ensure(!channels.is_empty(), || {
                    out_of_range("records.groups", format!("{name} = []"), "at least one channel")
                })?;
                unique("records.groups", channels)?;
                if let Some(name) = channels.iter().find(|name| !records.channels.contains(name)) {
                    return Err(Conflict::NoSuchChannel {
                        key: "records.groups",
                        name: name.clone(),
                    });
                }
            }
            Ok(())
        }
    }
}

fn check_times(records: &Records) -> Result<(), Conflict> {
    if let Some(format) = &records.time_format {
        crate::decode::check_time_format(format)
            .map_err(|reason| out_of_range("records.time_format", format!("{format:?}"), reason))?;
    }
    if let Some(zone) = &records.time_zone {
        ensure(zone.parse::<chrono_tz::Tz>().is_ok(), || {
            out_of_range(
                "records.time_zone",
                format!("{zone:?}"),
                "an IANA name such as \"Europe/Berlin\"",
            )
        })?;
    }
    match records.sample_rate {
        Some(rate) => ensure(rate > 0.0 && rate.is_finite(), || {
            out_of_range("records.sample_rate", rate, "samples a second, above 0")
        }),
        None => Ok(()),
    }
}

fn check_channel(name: &str, channel: &Channel, layout: Layout) -> Result<(), Conflict> {
    let within_bounds = match (channel.min, channel.max) {
        (Some(min), Some(max)) => min < max,
        (Some(bound), None) | (None, Some(bound)) => !bound.is_nan(),
        (None, None) => true,
    };
    ensure(within_bounds, || {
        let value = format!("{name}.min = {:?}, max = {:?}", channel.min, channel.max);
        out_of_range("records.channel", value, "min below max")
    })?;
    let is_long = layout == Layout::Long;
    ensure(is_long || channel.codes.is_empty(), || Conflict::OtherLayout {
        key: "codes",
        channel: name.to_owned(),
        layout: "long",
    })?;
    ensure(!is_long || channel.field.is_none(), || Conflict::OtherLayout {
        key: "field",
        channel: name.to_owned(),
        layout: "wide",
    })?;
    if let Some(stuck) = channel.stuck {
        positive("records.channel", stuck)?;
    }
    if let Some(unit) = &channel.unit {
        not_empty("records.channel", unit)?;
    }
    Ok(())
}

fn check_windows(windows: &Windows) -> Result<(), Conflict> {
    if let Some(resample) = windows.resample {
        positive("windows.resample", resample)?;
    }
    for (key, extent) in [("windows.length", windows.length), ("windows.stride", windows.stride)] {
        if let WindowLength::Duration(value) = extent {
            let Some(resample) = windows.resample else {
                return Err(Conflict::DurationWithoutResample { key, value });
            };
            ensure(value >= resample, || Conflict::ShorterThanResample { key, value, resample })?;
        }
    }
    let samples = windows.length_samples();
    ensure((2..=LONGEST_WINDOW).contains(&samples), || {
        out_of_range("windows.length", windows.length, format!("2 to {LONGEST_WINDOW} samples"))
    })?;
    ensure(windows.stride_samples() <= samples, || Conflict::StrideBeyondLength {
        stride: windows.stride,
        length: windows.length,
    })?;
    if let Some(value) = windows.max_gap {
        let key = "windows.max_gap";
        positive(key, value)?;
        // Between two bins of the grid there is always one `resample`.
        if let Some(resample) = windows.resample {
            ensure(value >= resample, || Conflict::ShorterThanResample { key, value, resample })?;
        }
    }
    positive("windows.idle", windows.idle)?;
    within("windows.max_keys", windows.max_keys, 1, UNBOUNDED)
}

/// Only on a grid is there a place for what is missing.
fn check_carry(pipeline: &Pipeline) -> Result<(), Conflict> {
    let windows = &pipeline.windows;
    let per_channel = pipeline.records.channel.values().any(|channel| channel.carry.is_some());
    for (key, is_set) in [
        ("windows.carry", windows.carry.is_some()),
        ("windows.time_since_last", windows.time_since_last),
        ("records.channel", per_channel),
    ] {
        ensure(!is_set || windows.resample.is_some(), || Conflict::CarryWithoutResample { key })?;
    }
    Ok(())
}

fn check_registry(pipeline: &Pipeline) -> Result<(), Conflict> {
    if let Some(registry) = &pipeline.registry {
        let is_http = ["http://", "https://"].iter().any(|scheme| registry.url.starts_with(scheme));
        ensure(is_http, || {
            out_of_range("registry.url", format!("{:?}", registry.url), "http:// or https://")
        })?;
    }
    let has_registry = pipeline.registry.is_some();
    let sink = pipeline.sink.kafka.as_ref().map(|sink| sink.format);
    ensure(has_registry || sink != Some(OutputFormat::Avro), || Conflict::AvroWithoutRegistry)?;
    let encoding = pipeline.encoding();
    let from_topic = matches!(pipeline.source, Source::Kafka(_));
    let known = match encoding.avro.framing {
        Some(Framing::Confluent) => has_registry,
        Some(Framing::None) => encoding.avro.schema.is_some(),
        None => has_registry || encoding.avro.schema.is_some(),
    };
    let is_avro = from_topic && encoding.format == Some(Format::Avro);
    ensure(known || !is_avro, || Conflict::AvroWithoutSchema)
}

fn check_model(model: &Model) -> Result<(), Conflict> {
    within("model.hidden", model.hidden, 1, WIDEST)?;
    within("model.blocks", model.blocks, 1, MOST_BLOCKS)?;
    within("model.embedding", model.embedding, 2, WIDEST)?;
    ensure(model.projection.last().is_some_and(|width| *width >= 2), || {
        let value = format!("{:?}", model.projection);
        out_of_range("model.projection", value, "at least one width, the last of at least 2")
    })?;
    for width in &model.projection {
        within("model.projection", *width, 1, WIDEST)?;
    }
    within("model.queue", model.queue, 1, LARGEST_MEMORY)?;
    ensure((0.0..1.0).contains(&model.momentum), || {
        out_of_range("model.momentum", model.momentum, "at least 0 and below 1")
    })
}

fn check_training(training: &Training) -> Result<(), Conflict> {
    within("training.batch", training.batch, 2, LARGEST_BATCH)?;
    within("training.every", training.every, 1, UNBOUNDED)?;
    for (key, value) in [
        ("training.learning_rate", training.learning_rate),
        ("training.clip_norm", training.clip_norm),
    ] {
        ensure(value > 0.0 && value.is_finite(), || out_of_range(key, value, "above 0"))?;
    }
    ensure(training.max_share > 0.0 && training.max_share <= 1.0, || {
        out_of_range("training.max_share", training.max_share, "above 0 and at most 1")
    })?;
    ensure(training.device == Device::Cpu || cfg!(feature = "cuda"), || Conflict::BuiltWithoutCuda)
}

/// The queue of negatives and the pool of pairs must hold what a step takes.
fn check_memories(pipeline: &Pipeline) -> Result<(), Conflict> {
    let (queue, batch, pool) = (pipeline.model.queue, pipeline.training.batch, pipeline.pairs.pool);
    let suits = queue >= batch && (queue.is_multiple_of(batch) || queue / 2 >= batch);
    ensure(suits, || Conflict::QueueAgainstBatch { queue, batch })?;
    ensure(pool >= batch, || Conflict::PoolBelowBatch { pool, batch })
}

fn check_sinks(pipeline: &Pipeline) -> Result<(), Conflict> {
    if let Some(kafka) = &pipeline.sink.kafka {
        match (&kafka.brokers, &pipeline.source) {
            (Some(brokers), _) => not_empty("sink.kafka.brokers", brokers)?,
            (None, Source::Kafka(_)) => {}
            (None, Source::File(_) | Source::Generator(_)) => return Err(Conflict::NoBrokers),
        }
        check_outputs(kafka, pipeline)?;
    }
    if let Some(parquet) = &pipeline.sink.parquet {
        not_nowhere("sink.parquet.path", &parquet.path)?;
        ensure(parquet.roll.0 > 0, || out_of_range("sink.parquet.roll", parquet.roll, "above 0"))?;
        let columns = &parquet.partition_by;
        if let Some(at) = (1..columns.len()).find(|at| columns[..*at].contains(&columns[*at])) {
            let name = format!("{:?}", columns[at]).to_lowercase();
            return Err(Conflict::Twice { key: "sink.parquet.partition_by", name });
        }
    }
    Ok(())
}

/// The topics that are written to, by the key that names each; an empty one is left out.
fn outputs_of(kafka: &KafkaSink, pipeline: &str) -> [(&'static str, String); 3] {
    let named = |topic: &Option<String>, ending: &str| {
        topic.clone().unwrap_or_else(|| format!("{pipeline}.{ending}"))
    };
    [
        ("sink.kafka.embeddings", named(&kafka.embeddings, "embeddings")),
        ("sink.kafka.anomalies", named(&kafka.anomalies, "anomalies")),
        ("sink.kafka.dead_letters", named(&kafka.dead_letters, "dead-letters")),
    ]
}

fn check_outputs(kafka: &KafkaSink, pipeline: &Pipeline) -> Result<(), Conflict> {
    let outputs = outputs_of(kafka, &pipeline.name);
    for (index, (key, topic)) in outputs.iter().enumerate() {
        if topic.is_empty() && *key != "sink.kafka.dead_letters" {
            continue;
        }
        legal_topic(key, topic)?;
        if let Source::Kafka(source) = &pipeline.source {
            ensure(!source.topics.contains(topic), || Conflict::OutputIsInput {
                key,
                topic: topic.clone(),
            })?;
        }
        if let Some((first, _)) = outputs[..index].iter().find(|(_, other)| other == topic) {
            return Err(Conflict::SharedOutput { first, second: key, topic: topic.clone() });
        }
    }
    Ok(())
}

fn check_feedback(pipeline: &Pipeline) -> Result<(), Conflict> {
    let Some(feedback) = &pipeline.feedback else { return Ok(()) };
    let topic = &feedback.topic;
    legal_topic("feedback.topic", topic)?;
    let Source::Kafka(source) = &pipeline.source else {
        return Err(Conflict::FeedbackWithoutKafka);
    };
    let shares = |other| Conflict::FeedbackIsNotAlone { topic: topic.clone(), other };
    ensure(!source.topics.contains(topic), || shares("source.topics"))?;
    let Some(sink) = &pipeline.sink.kafka else { return Ok(()) };
    let outputs = outputs_of(sink, &pipeline.name);
    let same = outputs.iter().find(|(_, output)| output == topic);
    same.map_or(Ok(()), |(key, _)| Err(shares(*key)))
}

fn check_listen(listen: &str) -> Result<(), Conflict> {
    let is_address = listen
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    ensure(listen.is_empty() || is_address, || {
        let value = format!("{listen:?}");
        out_of_range("http.listen", value, "host:port, or \"\" for none")
    })
}

fn ensure(holds: bool, conflict: impl FnOnce() -> Conflict) -> Result<(), Conflict> {
    if holds { Ok(()) } else { Err(conflict()) }
}

fn out_of_range(key: &'static str, value: impl ToString, expected: impl Into<String>) -> Conflict {
    Conflict::OutOfRange { key, value: value.to_string(), expected: expected.into() }
}

fn within(key: &'static str, value: usize, least: usize, most: usize) -> Result<(), Conflict> {
    ensure(value >= least, || out_of_range(key, value, format!("at least {least}")))?;
    ensure(value <= most, || out_of_range(key, value, format!("at most {most}")))
}

fn positive(key: &'static str, value: TimeSpan) -> Result<(), Conflict> {
    ensure(value.micros() > 0, || out_of_range(key, value, "at least 1us"))
}

fn not_empty(key: &'static str, text: &str) -> Result<(), Conflict> {
    ensure(!text.trim().is_empty(), || out_of_range(key, format!("{text:?}"), "a text"))
}

fn not_empty_path(key: &'static str, path: &Path) -> Result<(), Conflict> {
    ensure(!path.as_os_str().is_empty(), || out_of_range(key, "\"\"", "a path"))
}

fn not_nowhere(key: &'static str, location: &Location) -> Result<(), Conflict> {
    location.folder().map_or(Ok(()), |folder| not_empty_path(key, folder))
}

fn unique(key: &'static str, names: &[String]) -> Result<(), Conflict> {
    match (1..names.len()).find(|at| names[..*at].contains(&names[*at])) {
        Some(at) => Err(Conflict::Twice { key, name: names[at].clone() }),
        None => Ok(()),
    }
}

fn different(
    first: &'static str,
    name: &str,
    second: &'static str,
    other: &str,
) -> Result<(), Conflict> {
    ensure(name != other, || Conflict::SameField { first, second, name: name.to_owned() })
}

fn legal_topic(key: &'static str, topic: &str) -> Result<(), Conflict> {
    ensure(is_topic_name(topic), || Conflict::IllegalTopic { key, topic: topic.to_owned() })
}

fn is_topic_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= LONGEST_TOPIC
        && !matches!(name, "." | "..")
        && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA: &str = r#"
        name = "plant"
        [source]
        kind = "kafka"
        brokers = "localhost:9092"
        topics = ["sensors"]
        [records]
        key = "machine"
        time = "ts"
        channels = ["temperature", "vibration"]
        [sink.kafka]
    "#;

    /// The conflict of [`KAFKA`] after `--set`s.
    fn conflict(overrides: &[&str]) -> String {
        checked(overrides).err().map_or("none".to_owned(), |conflict| conflict.to_string())
    }

    fn checked(overrides: &[&str]) -> Result<(), Conflict> {
        let mut text: toml::Table = KAFKA.parse().unwrap();
        for line in overrides {
            let (path, value) = line.split_once('=').unwrap();
            let value: toml::Table = format!("value = {value}").parse().unwrap();
            let (tables, key) = path.rsplit_once('.').unwrap_or(("", path));
            let mut table = &mut text;
            for name in tables.split('.').filter(|name| !name.is_empty()) {
                table = table
                    .entry(name)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                    .as_table_mut()
                    .unwrap();
            }
            table.insert(key.to_owned(), value["value"].clone());
        }
        let pipeline: Pipeline = text.try_into().unwrap();
        check(&pipeline)
    }

    #[test]
    fn a_plain_pipeline_has_no_conflict() {
        assert_eq!(conflict(&[]), "none");
    }

    #[test]
    fn labels_have_a_topic_of_their_own_on_the_brokers_of_the_source() {
        for (topic, message) in [
            ("sensors", "feedback.topic = \"sensors\" is also in source.topics"),
            (
                "plant.anomalies",
                "feedback.topic = \"plant.anomalies\" is also in sink.kafka.anomalies",
            ),
            ("a b", "feedback.topic = \"a b\" is no legal topic name"),
            ("plant.labels", "none"),
        ] {
            let found = conflict(&[&format!("feedback.topic={topic:?}")]);
            assert!(found.starts_with(message), "{found}");
        }
        let file = [
            "source={kind=\"file\", path=\"in\"}",
            "sink.kafka.brokers=\"b:1\"",
            "feedback.topic=\"labels\"",
        ];
        assert!(conflict(&file).starts_with("[feedback] needs source.kind"), "{}", conflict(&file));
    }

    #[test]
    fn every_value_out_of_range_is_refused_with_its_key_and_value() {
        for (line, message) in [
            ("name=\"a b\"", "name = \"a b\": expected up to 236 of"),
            ("source.brokers=\" \"", "source.brokers = \" \": expected a text"),
            ("source.topics=[]", "source.topics = []: expected at least one topic"),
            ("source.batch_messages=0", "source.batch_messages = 0: expected at least 1"),
            ("source.csv={delimiter=\"é\"}", "source.csv.delimiter = 'é': expected one ASCII"),
            ("records.channels=[]", "records.channels = []: expected at least one channel"),
            ("records.channels=[\"\"]", "records.channels = \"\": expected a text"),
            ("records.time=\"\"", "records.time = \"\": expected a text"),
            ("windows.resample=\"0s\"", "windows.resample = 0s: expected at least 1us"),
            ("windows.length=1", "windows.length = 1: expected 2 to 65536 samples"),
            ("windows.length=65537", "windows.length = 65537: expected 2 to 65536 samples"),
            ("windows.max_gap=\"0s\"", "windows.max_gap = 0s: expected at least 1us"),
            ("windows.idle=\"0s\"", "windows.idle = 0s: expected at least 1us"),
            ("windows.max_keys=0", "windows.max_keys = 0: expected at least 1"),
            ("pairs.max_distance=0", "pairs.max_distance = 0: expected at least 1"),
            ("model.hidden=0", "model.hidden = 0: expected at least 1"),
            ("model.blocks=40", "model.blocks = 40: expected at most 16"),
            ("model.embedding=1", "model.embedding = 1: expected at least 2"),
            ("model.projection=[]", "model.projection = []: expected at least one width"),
            ("model.projection=[0, 8]", "model.projection = 0: expected at least 1"),
            ("model.hidden=100000", "model.hidden = 100000: expected at most 16384"),
            ("model.queue=99999999", "model.queue = 99999999: expected at most 16777216"),
            ("pairs.pool=99999999", "pairs.pool = 99999999: expected at most 16777216"),
            ("training.batch=99999", "training.batch = 99999: expected at most 65536"),
            ("model.momentum=1.0", "model.momentum = 1: expected at least 0 and below 1"),
            ("model.momentum=nan", "model.momentum = NaN: expected at least 0 and below 1"),
            ("training.batch=1", "training.batch = 1: expected at least 2"),
            ("training.every=0", "training.every = 0: expected at least 1"),
            ("training.learning_rate=0.0", "training.learning_rate = 0: expected above 0"),
            ("training.clip_norm=inf", "training.clip_norm = inf: expected above 0"),
            ("training.max_share=0.0", "training.max_share = 0: expected above 0 and at most 1"),
            ("training.max_share=1.5", "training.max_share = 1.5: expected above 0 and at most 1"),
            ("sink.parquet={path=\"\"}", "sink.parquet.path = \"\": expected a path"),
            ("sink.parquet={path=\"o\",roll=\"0B\"}", "sink.parquet.roll = 0B: expected above 0"),
            ("checkpoint.interval=\"0s\"", "checkpoint.interval = 0s: expected at least 1us"),
            (
                "checkpoint.delivery=\"exactly-once\"",
                "checkpoint.delivery = \"exactly-once\" needs checkpoint.store, where state is committed to",
            ),
            ("checkpoint.instance=\"\"", "checkpoint.instance = \"\": expected a text"),
            ("checkpoint.keep=0", "checkpoint.keep = 0: expected at least 1"),
            ("http.listen=\"8080\"", "http.listen = \"8080\": expected host:port"),
        ] {
            let found = conflict(&[line]);
            assert!(found.starts_with(message), "{line}: {found}");
        }
    }

    #[test]
    fn exactly_once_takes_one_cluster_and_settled_positions() {
        let store = "checkpoint.store=\"state\"";
        let other = "sink.kafka={brokers=\"other:9092\"}";
        let unsettled = "source.properties={\"isolation.level\"=\"read_uncommitted\"}";
        assert!(conflict(&[store, other]).starts_with("sink.kafka.brokers is not source.brokers"));
        assert!(conflict(&[store, unsettled]).contains("isolation.level = \"read_uncommitted\""));
        let at_least = "checkpoint.delivery=\"at-least-once\"";
        for allowed in [&[store, other, at_least][..], &[store, unsettled, at_least], &[store]] {
            assert_eq!(checked(allowed), Ok(()), "{allowed:?}");
        }
    }

    #[test]
    fn names_may_not_stand_for_two_things() {
        assert_eq!(
            conflict(&["records.channels=[\"a\", \"b\", \"a\"]"]),
            "records.channels names \"a\" twice"
        );
        assert_eq!(
            conflict(&["records.channels=[\"a\", \"machine\"]"]),
            "records.key and records.channels both name the field \"machine\""
        );
        assert_eq!(
            conflict(&["records.key=\"ts\""]),
            "records.time and records.key both name the field \"ts\""
        );
        assert_eq!(
            conflict(&["records.layout=\"long\"", "records.code=\"ts\""]),
            "records.time and records.code both name the field \"ts\""
        );
        assert_eq!(
            conflict(&["sink.parquet={path=\"out\",partition_by=[\"date\",\"date\"]}"]),
            "sink.parquet.partition_by names \"date\" twice"
        );
    }

    #[test]
    fn csv_from_kafka_needs_columns_that_hold_every_field() {
        assert_eq!(
            conflict(&["source.format=\"csv\""]),
            "source.format = \"csv\" needs source.csv.columns: a Kafka message has no header line"
        );
        assert_eq!(
            conflict(&[
                "source.format=\"csv\"",
                "source.csv={columns=[\"machine\", \"ts\", \"temperature\"]}"
            ]),
            "source.csv.columns lacks \"vibration\", which records.channels names"
        );
        assert_eq!(
            conflict(&[
                "source.format=\"csv\"",
                "records.layout=\"long\"",
                "source.csv={columns=[\"machine\", \"ts\", \"code\", \"value\"]}"
            ]),
            "none"
        );
    }

    #[test]
    fn files_may_have_columns_that_name_no_field_only_if_they_name_every_field() {
        let file = "source={kind=\"file\",path=\"d\",csv={columns=[\"ts\"]}}";

        assert_eq!(
            conflict(&[file, "sink.kafka={brokers=\"b:1\"}"]),
            "source.csv.columns lacks \"machine\", which records.key names"
        );
    }

    #[test]
    fn parquet_comes_from_files_only() {
        assert_eq!(
            conflict(&["source.format=\"parquet\""]),
            "source.format = \"parquet\" needs source.kind = \"file\", not \"kafka\""
        );
    }

    #[test]
    fn durations_need_a_grid_and_are_no_shorter_than_its_step() {
        assert_eq!(
            conflict(&["windows.length=\"30s\""]),
            "windows.length = 30s is a duration and needs windows.resample, which is not set"
        );
        assert_eq!(
            conflict(&["windows.stride=\"500ms\"", "windows.resample=\"1s\""]),
            "windows.stride = 500ms is shorter than windows.resample = 1s"
        );
        assert_eq!(
            conflict(&["windows.max_gap=\"1s\"", "windows.resample=\"2s\""]),
            "windows.max_gap = 1s is shorter than windows.resample = 2s"
        );
        assert_eq!(
            conflict(&["windows.length=\"30s\"", "windows.stride=31", "windows.resample=\"1s\""]),
            "windows.stride = 31 is longer than windows.length = 30s"
        );
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_needs_a_program_that_was_built_for_one() {
        assert_eq!(conflict(&["training.device=\"cpu\""]), "none");
        assert_eq!(
            conflict(&["training.device=\"cuda\""]),
            "training.device = \"cuda\" needs a program that was built with the feature `cuda`"
        );
    }

    #[test]
    fn queue_and_pool_must_hold_what_a_step_takes() {
        assert_eq!(
            conflict(&["training.batch=128", "model.queue=200"]),
            "model.queue = 200 does not suit training.batch = 128: expected a multiple of it, or \
             at least twice as much"
        );
        for queue in ["128", "257"] {
            assert_eq!(conflict(&[&format!("model.queue={queue}")]), "none");
        }
        assert_eq!(
            conflict(&["pairs.pool=64"]),
            "pairs.pool = 64 is smaller than training.batch = 128"
        );
    }

    #[test]
    fn a_kafka_sink_needs_brokers_from_somewhere() {
        let generator = "source={kind=\"generator\"}";

        assert_eq!(
            conflict(&[generator]),
            "sink.kafka needs sink.kafka.brokers where source.kind is not \"kafka\""
        );
        assert_eq!(conflict(&[generator, "sink.kafka.brokers=\"b:9092\""]), "none");
    }

    #[test]
    fn outputs_are_legal_topics_apart_from_each_other_and_from_the_inputs() {
        assert_eq!(
            conflict(&["source.topics=[\"plant.anomalies\"]"]),
            "sink.kafka.anomalies = \"plant.anomalies\" is also in source.topics: the pipeline \
             would read its own output"
        );
        assert_eq!(
            conflict(&["sink.kafka.anomalies=\"plant.embeddings\""]),
            "sink.kafka.embeddings and sink.kafka.anomalies both write to topic \
             \"plant.embeddings\""
        );
        assert_eq!(
            conflict(&["sink.kafka.embeddings=\"a/b\""]),
            "sink.kafka.embeddings = \"a/b\" is no legal topic name: expected up to 249 of \
             a-z A-Z 0-9 . _ -"
        );
        assert_eq!(
            conflict(&["sink.kafka.embeddings=\"\"", "sink.kafka.anomalies=\"\""]),
            "none",
            "an empty name switches an output off"
        );
        assert!(conflict(&["sink.kafka.dead_letters=\"\""]).contains("is no legal topic name"));
    }

    #[test]
    fn the_generator_has_machines_a_period_and_a_rate() {
        for (field, message) in [
            ("machines=0", "source.machines = 0: expected at least 1"),
            ("period=\"0s\"", "source.period = 0s: expected at least 1us"),
            ("rate=-1.0", "source.rate = -1: expected a number, 0 or more"),
            ("rate=nan", "source.rate = NaN: expected a number, 0 or more"),
        ] {
            assert_eq!(
                conflict(&[
                    &format!("source={{kind=\"generator\",{field}}}"),
                    "sink.kafka.brokers=\"b:9092\""
                ]),
                message
            );
        }
    }

    #[test]
    fn what_would_tell_a_hidden_key_is_refused() {
        let salt = "records.key_hash=\"0123456789abcdef\"";
        assert_eq!(conflict(&[salt]), "none");
        assert!(conflict(&["records.key_hash=\"short\""]).contains("at least 16 bytes"));
        let log = ["records.layout=\"log\"", "records.channels=[]", salt];
        assert!(conflict(&log).contains("templates"), "{}", conflict(&log));
    }

    #[test]
    fn fhir_is_in_the_long_layout() {
        assert!(conflict(&["source.format=\"fhir\""]).contains("records.layout = \"long\""));
        assert_eq!(conflict(&["source.format=\"fhir\"", "records.layout=\"long\""]), "none");
    }
}
