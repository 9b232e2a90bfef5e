//! Results as Avro in Confluent's wire format, by the schemas of `schemas/`.

use super::Topics;
use crate::config::Pipeline;
use crate::registry::{Registry, RegistryError};
use crate::sink::{ModelVersion, Score, SegmentMeta, SinkError};

const EMBEDDING: &str = include_str!("../../../schemas/embedding.avsc");
const ANOMALY: &str = include_str!("../../../schemas/anomaly.avsc");

/// First byte of Confluent's wire format; the schema's id follows.
const MAGIC: u8 = 0;

/// Ids of the schemas in the registry; 0 where there is no topic for it.
pub(super) struct SchemaIds {
    pub embedding: u32,
    pub anomaly: u32,
}

impl SchemaIds {
    /// Registers the schemas of the topics, or looks them up. A topic's subject is
    /// `TOPIC-value`.
    pub fn ask(pipeline: &Pipeline, topics: &Topics) -> Result<Self, SinkError> {
        let Some(config) = &pipeline.registry else {
            let reason = "a schema registry is needed, [registry]".to_owned();
            return Err(SinkError::Registry(RegistryError::Settings { key: "url", reason }));
        };
        let registry = Registry::new(config)?;
        let id = |topic: &Option<String>, file: &'static str, schema: &str| {
            let Some(topic) = topic else { return Ok(0) };
            let subject = format!("{topic}-value");
            let schema = compact(schema);
            let found = match config.register {
                true => registry.register(&subject, &schema),
                false => registry.lookup(&subject, &schema),
            };
            found.map_err(|error| match error {
                RegistryError::Unknown { url, .. } => {
                    SinkError::MissingSchema { subject, registry: url, schema: file }
                }
                error => SinkError::Registry(error),
            })
        };
        Ok(Self {
            embedding: id(&topics.embeddings, "schemas/embedding.avsc", EMBEDDING)?,
            anomaly: id(&topics.anomalies, "schemas/anomaly.avsc", ANOMALY)?,
        })
    }
}

/// A schema as it is sent: without the blanks of its file.
fn compact(schema: &str) -> String {
    let mut in_text = false;
    let mut escaped = false;
    let kept = schema.chars().filter(|letter| {
        let keep = in_text || !letter.is_ascii_whitespace();
        in_text ^= *letter == '"' && !escaped;
        escaped = *letter == '\\' && !escaped;
        keep
    });
    kept.collect()
}

/// Appends the record of `schemas/embedding.avsc`.
pub(super) fn embedding(
    message: &mut Vec<u8>,
    schema: u32,
    pipeline: &str,
    segment: &SegmentMeta,
    model: ModelVersion,
    embedding: &[f32],
) {
    head(message, schema, pipeline, segment);
    long(message, model.steps.cast_signed());
    if !embedding.is_empty() {
        long(message, embedding.len() as i64);
        message.extend(embedding.iter().flat_map(|value| value.to_le_bytes()));
    }
    long(message, 0);
    text(message, &segment.lane.topic);
    long(message, segment.lane.partition.into());
    long(message, segment.first_offset);
    long(message, segment.last_offset);
    long(message, 1);
    message.extend(model.wander.to_le_bytes());
}

/// Appends the record of `schemas/anomaly.avsc`.
pub(super) fn anomaly(
    message: &mut Vec<u8>,
    schema: u32,
    pipeline: &str,
    segment: &SegmentMeta,
    model: ModelVersion,
    score: &Score,
) {
    head(message, schema, pipeline, segment);
    message.extend(score.score.to_le_bytes());
    message.extend(score.p_value.to_le_bytes());
    message.extend(score.surprise.to_le_bytes());
    message.extend(score.distance.to_le_bytes());
    message.extend(score.residual.to_le_bytes());
    message.push(score.alert.into());
    match &score.alert_id {
        None => long(message, 0),
        Some(id) => {
            long(message, 1);
            text(message, id);
        }
    }
    block(message, &score.causes, |message, cause| {
        text(message, &cause.channel);
        message.extend(cause.share.to_le_bytes());
    });
    block(message, &score.missing, |message, channel| text(message, channel));
    long(message, model.steps.cast_signed());
    message.push(score.warm.into());
    long(message, 1);
    message.push(score.turn.into());
}

/// The framing, and the fields that both records begin with.
fn head(message: &mut Vec<u8>, schema: u32, pipeline: &str, segment: &SegmentMeta) {
    message.push(MAGIC);
    message.extend(schema.to_be_bytes());
    text(message, pipeline);
    text(message, &segment.key);
    long(message, segment.window_start);
    long(message, segment.window_end);
    long(message, segment.sequence.cast_signed());
}

/// A list: its items in one block, if there are any, and an empty one.
fn block<T>(message: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        long(message, items.len() as i64);
        items.iter().for_each(|each| item(message, each));
    }
    long(message, 0);
}

fn text(message: &mut Vec<u8>, text: &str) {
    long(message, text.len() as i64);
    message.extend(text.as_bytes());
}

/// A number in zigzag order, seven bits a byte, the lowest first.
fn long(message: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while left > 0x7F {
        message.push(left as u8 | 0x80);
        left >>= 7;
    }
    message.push(left as u8);
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, RecordBatch};
    use arrow::datatypes::{
        Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
    };
    use arrow_avro::reader::ReaderBuilder;
    use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};

    use super::super::tests::{MODEL, score, segment};
    use super::*;
    use crate::registry::double::Double;

    /// What a reader of the schema makes of a message.
    fn read(schema: &str, message: &[u8]) -> RecordBatch {
        let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
        store.set(Fingerprint::Id(258), AvroSchema::new(schema.to_owned())).unwrap();
        let mut decoder =
            ReaderBuilder::new().with_writer_schema_store(store).build_decoder().unwrap();
        assert_eq!(decoder.decode(message).unwrap(), message.len());
        decoder.flush().unwrap().unwrap()
    }

    #[test]
    fn an_embedding_is_read_back_by_its_schema() {
        let mut message = Vec::new();
        embedding(&mut message, 258, "plant", &segment(), MODEL, &[0.6, -0.8]);
        let batch = read(EMBEDDING, &message);
        let long = |name: &str| batch[name].as_primitive::<Int64Type>().value(0);
        let text = |name: &str| batch[name].as_string::<i32>().value(0).to_owned();
        let time = |name: &str| batch[name].as_primitive::<TimestampMicrosecondType>().value(0);
        let segment = segment();
        assert_eq!((text("pipeline"), text("key")), ("plant".into(), segment.key.to_string()));
        assert_eq!(time("window_start"), segment.window_start);
        assert_eq!(time("window_end"), segment.window_end);
        assert_eq!((long("sequence"), long("model_version")), (11, 5));
        assert_eq!((long("first_offset"), long("last_offset")), (40, 103));
        assert_eq!(text("topic"), "plant.sensors");
        assert_eq!(batch["partition"].as_primitive::<Int32Type>().value(0), 3);
        let values = batch["embedding"].as_list::<i32>().value(0);
        assert_eq!(values.as_primitive::<Float32Type>().values(), &[0.6, -0.8]);
        assert_eq!(batch["wander"].as_primitive::<Float32Type>().value(0), MODEL.wander);
    }

    #[test]
    fn an_anomaly_is_read_back_by_its_schema() {
        let calm = Score {
            alert: false,
            alert_id: None,
            causes: Vec::new(),
            missing: Vec::new(),
            surprise: f32::NAN,
            turn: false,
            ..score()
        };
        for score in [score(), calm] {
            let mut message = Vec::new();
            anomaly(&mut message, 258, "plant", &segment(), MODEL, &score);
            let batch = read(ANOMALY, &message);
            let double = |name: &str| batch[name].as_primitive::<Float64Type>().value(0);
            let float = |name: &str| batch[name].as_primitive::<Float32Type>().value(0);
            let flag = |name: &str| batch[name].as_boolean().value(0);
            assert_eq!((double("score"), double("p_value")), (score.score, score.p_value));
            assert_eq!(float("surprise").to_bits(), score.surprise.to_bits());
            assert_eq!((float("distance"), float("residual")), (score.distance, score.residual));
            assert_eq!((flag("alert"), flag("warm")), (score.alert, score.warm));
            assert_eq!(flag("change_point"), score.turn);
            let id = batch["alert_id"].as_string::<i32>();
            assert_eq!(id.is_valid(0).then(|| id.value(0)), score.alert_id.as_deref());
            let causes = batch["causes"].as_list::<i32>().value(0);
            let causes = causes.as_struct();
            let channels = causes["channel"].as_string::<i32>();
            let found: Vec<_> = channels.iter().map(Option::unwrap).collect();
            let expected: Vec<_> = score.causes.iter().map(|cause| &*cause.channel).collect();
            assert_eq!(found, expected);
            let shares = causes["share"].as_primitive::<Float32Type>().values().to_vec();
            assert_eq!(shares, score.causes.iter().map(|cause| cause.share).collect::<Vec<_>>());
            let missing = batch["missing"].as_list::<i32>().value(0);
            assert_eq!(missing.len(), score.missing.len());
            assert_eq!(batch["model_version"].as_primitive::<Int64Type>().value(0), 5);
        }
    }

    fn pipeline(url: &str, register: bool) -> Pipeline {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "name = 'plant'\nsource = {{ kind = 'generator' }}\n\
             records = {{ time = 'ts', channels = ['temperature'] }}\n\
             registry = {{ url = '{url}', register = {register} }}"
        );
        std::fs::write(file.path(), text).unwrap();
        Pipeline::load(file.path(), &[]).unwrap()
    }

    fn topics(anomalies: Option<&str>) -> Topics {
        Topics {
            embeddings: Some("e".to_owned()),
            anomalies: anomalies.map(str::to_owned),
            dead_letters: "d".to_owned(),
        }
    }

    #[test]
    fn schemas_are_registered_where_that_is_allowed_and_else_must_be_there() {
        let double = Double::with(&[]);
        let refused = SchemaIds::ask(&pipeline(&double.url, false), &topics(None)).err().unwrap();
        assert_eq!(
            refused.to_string(),
            format!(
                "subject e-value of the schema registry {} lacks schemas/embedding.avsc: register \
                 it, or set registry.register = true",
                double.url
            )
        );
        assert!(!refused.is_retryable());

        let ids = SchemaIds::ask(&pipeline(&double.url, true), &topics(Some("a"))).unwrap();
        assert_eq!((ids.embedding, ids.anomaly), (1, 2));
        let ids = SchemaIds::ask(&pipeline(&double.url, false), &topics(Some("a"))).unwrap();
        assert_eq!((ids.embedding, ids.anomaly), (1, 2));
        let asked: Vec<_> = double.asked().into_iter().map(|asked| asked.request).collect();
        assert_eq!(asked[2], "POST /registry/subjects/a-value/versions");

        double.answer_next(409, r#"{"error_code":409,"message":"incompatible"}"#);
        let rejected = SchemaIds::ask(&pipeline(&double.url, true), &topics(None)).err().unwrap();
        assert!(rejected.to_string().contains("subject e-value"), "{rejected}");
        assert!(rejected.to_string().contains("incompatible"), "{rejected}");
    }

    #[test]
    fn a_schema_without_blanks_says_the_same() {
        for schema in [EMBEDDING, ANOMALY] {
            let whole: serde_json::Value = serde_json::from_str(schema).unwrap();
            let sent = compact(schema);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&sent).unwrap(), whole);
            assert!(!sent.contains('\n') && sent.len() < schema.len());
        }
        assert_eq!(compact(r#"{ "a b" : "\" c" }"#), r#"{"a b":"\" c"}"#);
    }
}
