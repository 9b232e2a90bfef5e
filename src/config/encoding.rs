//! `[source]`: how records are encoded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Registry;

/// How records are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a message, or a line.
    #[default]
    Json,
    /// Comma-separated values: a row a message, or a file with a header.
    Csv,
    /// Avro: a record a message, or an object container file.
    Avro,
    /// Arrow IPC: a stream with any number of rows a message, or a file or stream.
    Arrow,
    /// Lines of text, taken apart by `log.patterns`.
    Log,
    /// HL7 FHIR R4 in JSON: an `Observation`, or a `Bundle` of them, a message or a line.
    Fhir,
    /// Parquet files (`kind = "file"` only).
    Parquet,
}

/// All that is needed to decode records.
#[derive(Clone, Debug, Default)]
pub struct Encoding {
    /// `None`: files, each by its extension.
    pub format: Option<Format>,
    pub csv: Csv,
    pub json: Json,
    pub avro: Avro,
    pub log: Log,
    pub registry: Option<Registry>,
}

/// `[source.csv]`: the dialect of CSV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Csv {
    /// One ASCII character.
    pub delimiter: char,
    /// Column names in order. Empty: the first line of each file names them (files only).
    pub columns: Vec<String>,
}

impl Default for Csv {
    fn default() -> Self {
        Self { delimiter: ',', columns: Vec::new() }
    }
}

/// `[source.json]`: what lies around a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Json {
    /// What the record is wrapped in.
    pub envelope: Envelope,
}

/// What a JSON record is wrapped in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Envelope {
    /// Nothing: the object is the record.
    #[default]
    None,
    /// `{"schema": …, "payload": record}`, as Kafka Connect's `JsonConverter` writes it with
    /// `schemas.enable=true`.
    Connect,
}

/// `[source.avro]`: whose schema counts and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Avro {
    /// File of the reader's schema (`.avsc`). Left out, each message is read by the schema it was
    /// written with.
    pub schema: Option<PathBuf>,
    /// What stands before the record in a message. Left out: `confluent` where `[registry]` is
    /// given, else `none`.
    pub framing: Option<Framing>,
}

/// What stands before an Avro record in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// A zero byte and the schema's id in the registry, four bytes.
    Confluent,
    /// Nothing: every message was written with `avro.schema`.
    None,
}

/// `[source.log]`: how lines are taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Regular expressions whose named groups, `(?<name>…)`, are the fields of `[records]`; the
    /// first that matches a line counts. Empty: the whole line is the field `message`.
    pub patterns: Vec<String>,
}
