//! How results become messages.

use std::ops::Range;
use std::sync::Arc;

use super::Topics;
use super::arrow::{self, ArrowRows};
use super::avro::{self, SchemaIds};
use super::json::{AnomalyMessage, EmbeddingMessage};
use crate::config::{OutputFormat, Pipeline};
use crate::sink::{Outputs, Score, SegmentMeta, SinkError};

/// Writes messages into one buffer, used again and again.
pub(super) struct Encoder {
    pipeline: Arc<str>,
    format: Format,
    message: Vec<u8>,
}

enum Format {
    Json,
    Avro(SchemaIds),
    Arrow(Box<ArrowRows>),
}

/// Results that are not what they should be.
type Unfit = Box<dyn std::error::Error + Send + Sync>;

impl Encoder {
    /// An encoder of messages to `topics`.
    ///
    /// # Errors
    /// If messages are to be Avro and the registry has not their schemas.
    pub fn new(
        format: OutputFormat,
        pipeline: &Pipeline,
        topics: &Topics,
    ) -> Result<Self, SinkError> {
        let name: Arc<str> = pipeline.name.as_str().into();
        let format = match format {
            OutputFormat::Json => Format::Json,
            OutputFormat::Avro => Format::Avro(SchemaIds::ask(pipeline, topics)?),
            OutputFormat::Arrow => {
                let rows = ArrowRows::new(Arc::clone(&name), pipeline.model.embedding);
                let rows = rows.map_err(|error| super::unfit("", error))?;
                Format::Arrow(Box::new(rows))
            }
        };
        Ok(Self { pipeline: name, format, message: Vec::new() })
    }

    /// The segments from number `first` on that go into one message.
    pub fn run(&self, outputs: &Outputs, first: usize) -> Range<usize> {
        match &self.format {
            Format::Json | Format::Avro(_) => first..first + 1,
            Format::Arrow(rows) => first..first + rows.run(&outputs.segments[first..]),
        }
    }

    /// Makes [`Encoder::message`] the embeddings of the segments `run`.
    ///
    /// # Errors
    /// If `outputs` does not hold them.
    pub fn embeddings(&mut self, outputs: &Outputs, run: Range<usize>) -> Result<(), Unfit> {
        self.message.clear();
        let (pipeline, model) = (&*self.pipeline, outputs.model_version);
        match &mut self.format {
            Format::Json => {
                let (segment, embedding) = embedding(outputs, run.start)?;
                let message = EmbeddingMessage::new(pipeline, segment, model, embedding);
                Ok(serde_json::to_writer(&mut self.message, &message)?)
            }
            Format::Avro(ids) => {
                let (segment, embedding) = embedding(outputs, run.start)?;
                avro::embedding(
                    &mut self.message,
                    ids.embedding,
                    pipeline,
                    segment,
                    model,
                    embedding,
                );
                Ok(())
            }
            Format::Arrow(rows) => {
                push(rows, outputs, run)?;
                Ok(rows.write(arrow::Kind::Embeddings, &mut self.message)?)
            }
        }
    }

    /// Makes [`Encoder::message`] the scores of the segments `run`.
    ///
    /// # Errors
    /// If `outputs` does not hold them.
    pub fn anomalies(&mut self, outputs: &Outputs, run: Range<usize>) -> Result<(), Unfit> {
        self.message.clear();
        let (pipeline, model) = (&*self.pipeline, outputs.model_version);
        match &mut self.format {
            Format::Json => {
                let (segment, score) = score(outputs, run.start)?;
                let message = AnomalyMessage::new(pipeline, segment, model, score);
                Ok(serde_json::to_writer(&mut self.message, &message)?)
            }
            Format::Avro(ids) => {
                let (segment, score) = score(outputs, run.start)?;
                avro::anomaly(&mut self.message, ids.anomaly, pipeline, segment, model, score);
                Ok(())
            }
            Format::Arrow(rows) => {
                push(rows, outputs, run)?;
                Ok(rows.write(arrow::Kind::Anomalies, &mut self.message)?)
            }
        }
    }

    /// The message encoded last.
    pub fn message(&self) -> &[u8] {
        &self.message
    }
}

fn push(rows: &mut ArrowRows, outputs: &Outputs, run: Range<usize>) -> Result<(), Unfit> {
    for index in run {
        let (segment, embedding) = embedding(outputs, index)?;
        let (_, score) = score(outputs, index)?;
        rows.push(segment, embedding, score, outputs.model_version);
    }
    Ok(())
}

fn embedding(outputs: &Outputs, index: usize) -> Result<(&SegmentMeta, &[f32]), Unfit> {
    let length = outputs.embeddings.len() / outputs.segments.len().max(1);
    let segment = outputs.segments.get(index);
    let embedding = outputs.embeddings.get(index * length..(index + 1) * length);
    segment.zip(embedding).ok_or_else(|| format!("no embedding of segment {index}").into())
}

fn score(outputs: &Outputs, index: usize) -> Result<(&SegmentMeta, &Score), Unfit> {
    let segment = outputs.segments.get(index);
    let found = segment.zip(outputs.scores.get(index));
    found.ok_or_else(|| format!("no score of segment {index}").into())
}
