//! Representation learning on live streams.
//!
//! Records flow through the rooms of this crate in the order of this table; each room is a folder.
//!
//! | room | what happens there |
//! | --- | --- |
//! | [`source`] | messages come in from Kafka, files or the generator, one ordered [`source::Lane`] per partition |
//! | [`decode`] | bytes become Arrow columns; what cannot be decoded becomes a [`decode::DeadLetter`] |
//! | [`templates`] | lines of text become channels, each line described by its template |
//! | [`window`] | each key's records become event-time segments `[channels, time]`, missing values as NaN |
//! | [`pairs`] | temporally adjacent segments of one key become (anchor, positive) pairs and augmented views |
//! | [`learner`] | a dfdx encoder embeds every segment and is trained on the pairs with a momentum encoder and a queue of negatives |
//! | [`score`] | surprise, distance and residual become one calibrated p-value, alerts and their causes |
//! | [`sink`] | embeddings, anomalies and dead letters go to Kafka topics and Parquet |
//! | [`checkpoint`] | offsets, windows, model and calibration are saved at one commit point |
//! | [`runtime`] | threads, bounded channels, epochs and shutdown |
//!
//! Around them: [`config`] (the pipeline file), [`cli`] (the commands), [`http`] (metrics and
//! health), [`infer`] (a pipeline file for records that are looked at), [`keys`] (bounded state per
//! key), [`objects`] (what outlives the process, in a folder or a bucket), [`registry`] (schemas of
//! Avro), [`trajectory`] (embeddings of whole days and stays), [`embed`] (a history by one frozen
//! model), [`similar`] (nearest neighbours among embeddings), [`evaluate`] (labelled recordings and
//! their metrics).

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod decode;
pub mod embed;
pub mod evaluate;
mod faults;
pub mod http;
pub mod infer;
mod kafka;
pub mod keys;
pub mod learner;
pub mod objects;
pub mod pairs;
pub mod registry;
pub mod runtime;
pub mod score;
pub mod similar;
pub mod sink;
pub mod source;
pub mod telemetry;
pub mod templates;
pub mod trajectory;
pub mod window;
