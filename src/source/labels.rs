//! Labels that people give to what was scored, from a topic of their own.
//!
//! Every process reads the whole topic, outside of the consumer group: a label is for whoever
//! scored its key, and nobody knows who that is when it is written. How far it was read is saved
//! with what was learned from it, so that each label counts once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::kafka::{lasting, unanswered};
use super::{Lane, SourceError};
use crate::config;
use crate::decode::DeadLetter;
use crate::kafka::{self, CONNECT_TIMEOUT, Reports, Trouble, error_code, trouble};
use crate::score::Label;

/// Reads labels.
pub struct LabelReader {
    consumer: BaseConsumer<Reader>,
    brokers: String,
    topic: String,
}

/// What a message of the topic holds.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub partition: i32,
    pub offset: i64,
    /// The label, or the message that is none.
    pub label: Result<Label, DeadLetter>,
}

/// Messages taken at once.
const MOST: usize = 1024;

/// Longest wait for brokers to refuse a read; of an empty topic no other answer comes.
const REFUSAL_WAIT: Duration = Duration::from_secs(2);

/// Stage of labels that cannot be read, as dead letters name it.
const STAGE: &str = "feedback";

impl LabelReader {
    /// Reads `topic` from `positions` on (next offset by partition), other partitions from their
    /// beginning. Partitions that are added later are found when it is opened again.
    ///
    /// # Errors
    /// If no broker answers within 10 seconds, the topic is missing, or the right to read it is.
    pub fn open(
        config: &config::KafkaSource,
        topic: &str,
        positions: &BTreeMap<i32, i64>,
    ) -> Result<Self, SourceError> {
        let defaults = [("isolation.level", "read_committed"), ("auto.offset.reset", "earliest")];
        // Named for the brokers' own checks; nothing is committed to it.
        let group = format!("{topic}-labels");
        let fixed = [("group.id", group.as_str()), ("enable.auto.commit", "false")];
        let settings = kafka::settings(&config.brokers, &defaults, &config.properties, &fixed)
            .map_err(|reason| SourceError::Property { reason })?;
        let consumer: BaseConsumer<Reader> =
            BaseConsumer::from_config_and_context(&settings, Reader::default()).map_err(
                |error| SourceError::Property { reason: kafka::property_reason(&error) },
            )?;
        let brokers = config.brokers.clone();
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let serve = || drop(consumer.poll(Duration::from_millis(100)));
        let reports = &consumer.context().reports;
        let partitions =
            kafka::insist(reports, deadline, serve, format_args!("topic {topic}"), |wait| {
                kafka::partitions(consumer.client(), topic, wait)
            })
            .map_err(|silence| unanswered(&config.brokers, silence))?;
        let (topic, missing) = (topic.to_owned(), brokers.clone());
        let partitions = partitions
            .ok_or_else(|| SourceError::MissingTopic { topic: topic.clone(), brokers: missing })?;
        let mut assigned = TopicPartitionList::new();
        for partition in partitions {
            let offset =
                positions.get(&partition).map_or(Offset::Beginning, |next| Offset::Offset(*next));
            let added = assigned.add_partition_offset(&topic, partition, offset);
            added.map_err(|error| lasting(&error))?;
        }
        consumer.assign(&assigned).map_err(|error| lasting(&error))?;
        Ok(Self { consumer, brokers, topic })
    }

    /// Waits until the brokers have let it read, or refused.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub fn check(&self) -> Result<(), SourceError> {
        match self.consumer.poll(REFUSAL_WAIT) {
            Some(Err(error)) => self.ride_out(&error),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// What has come since the last time, without waiting for more.
    ///
    /// # Errors
    /// If the topic cannot be read, now or ever.
    pub fn poll(&mut self) -> Result<Vec<Told>, SourceError> {
        let mut told = Vec::new();
        while told.len() < MOST {
            match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let lane = Lane::new(self.topic.as_str(), message.partition());
                    let (key, payload) = (message.key(), message.payload().unwrap_or_default());
                    let label = read(payload).map_err(|reason| DeadLetter {
                        lane,
                        offset: message.offset(),
                        key: key.map(<[u8]>::to_vec),
                        payload: payload.to_vec(),
                        headers: Vec::new(),
                        stage: STAGE,
                        reason,
                    });
                    told.push(Told {
                        partition: message.partition(),
                        offset: message.offset(),
                        label,
                    });
                }
                Some(Err(error)) => self.ride_out(&error)?,
            }
        }
        Ok(told)
    }

    /// Returns an error only if the consumer cannot go on after it.
    fn ride_out(&self, error: &KafkaError) -> Result<(), SourceError> {
        match error_code(error).map(trouble) {
            Some(Trouble::Passing) => {
                tracing::warn!(%error, topic = self.topic, "labels cannot be read now, going on");
                Ok(())
            }
            Some(Trouble::NoTopic) => Err(SourceError::MissingTopic {
                topic: self.topic.clone(),
                brokers: self.brokers.clone(),
            }),
            Some(Trouble::Refused) => {
                let reason = format!("{error} (topic {})", self.topic);
                Err(SourceError::Refused { brokers: self.brokers.clone(), reason })
            }
            _ => Err(lasting(error)),
        }
    }
}

/// Callbacks of the consumer.
#[derive(Default)]
struct Reader {
    reports: Reports,
}

impl ClientContext for Reader {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        Reports::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reports.note(&error, reason);
    }
}

impl ConsumerContext for Reader {}

/// A message as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    key: String,
    from: Time,
    to: Time,
    label: Kind,
}

/// Text, or microseconds since 1970.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Micros(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Anomaly,
    Normal,
}

impl Time {
    fn micros(&self, field: &str) -> Result<i64, String> {
        match self {
            Self::Micros(micros) => Ok(*micros),
            Self::Text(text) => DateTime::parse_from_rfc3339(text)
                .map(|time| time.timestamp_micros())
                .map_err(|reason| format!("{field}: \"{text}\" is not an RFC 3339 time: {reason}")),
        }
    }
}

fn read(payload: &[u8]) -> Result<Label, String> {
    let written: Written = serde_json::from_slice(payload).map_err(|reason| {
        format!(
            "expected {{\"key\", \"from\", \"to\", \"label\": \"anomaly\" or \"normal\"}}: {reason}"
        )
    })?;
    let (from, to) = (written.from.micros("from")?, written.to.micros("to")?);
    if from > to {
        return Err(format!("from {from} is after to {to} (microseconds since 1970)"));
    }
    let anomaly = matches!(written.label, Kind::Anomaly);
    Ok(Label { key: Arc::from(written.key), from, to, anomaly })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_have_its_times_as_text_or_as_outputs_have_them() {
        let expected = Label {
            key: "press-4".into(),
            from: 1_767_225_600_000_000,
            to: 1_767_225_660_000_000,
            anomaly: true,
        };
        for payload in [
            r#"{"key":"press-4","from":"2026-01-01T00:00:00Z","to":"2026-01-01T01:01:00+01:00","label":"anomaly"}"#,
            r#"{"key":"press-4","from":1767225600000000,"to":1767225660000000,"label":"anomaly"}"#,
        ] {
            assert_eq!(read(payload.as_bytes()), Ok(expected.clone()));
        }
    }

    #[test]
    fn what_is_no_label_says_why() {
        for (payload, reason) in [
            (r#"{"key":"m","from":1,"to":2,"label":"odd"}"#, "unknown variant `odd`"),
            (r#"{"key":"m","from":1,"label":"normal"}"#, "missing field `to`"),
            (r#"{"key":"m","from":1,"to":2,"label":"normal","by":"me"}"#, "unknown field `by`"),
            (r#"{"key":"m","from":2,"to":1,"label":"normal"}"#, "from 2 is after to 1"),
            (r#"{"key":"m","from":"noon","to":1,"label":"normal"}"#, "from: \"noon\" is not"),
            ("", "expected"),
        ] {
            let found = read(payload.as_bytes()).unwrap_err();
            assert!(found.contains(reason), "{payload}: {found}");
        }
    }
}
