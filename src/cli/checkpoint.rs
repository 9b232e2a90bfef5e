//! `contrastream checkpoint`: what a store holds, whether it is whole, and the model in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, Store};
use crate::config::{self, Location, Pipeline};
use crate::keys;
use crate::learner::{Learner, NamedTensor};
use crate::objects::{ObjectErrorKind, Objects};
use crate::runtime::{Core, TakenLabels};
use crate::sink::StagedFile;
use crate::templates::Template;
use crate::window::Segmenter;

use super::Usage;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the checkpoints of a store, the oldest first.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show what a checkpoint holds.
    Show {
        #[command(flatten)]
        place: Place,
        /// The checkpoint; the newest when left out.
        id: Option<String>,
    },
    /// Read every object of a store that a checkpoint needs and check its checksum.
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Write a checkpoint's model and momentum model as safetensors, with a description in JSON.
    Export {
        #[command(flatten)]
        place: Place,
        /// The checkpoint; the newest when left out.
        id: Option<String>,
        /// Folder to write to; made if need be.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// A folder, s3://bucket/prefix, or a pipeline file that names one in checkpoint.store.
    #[arg(value_name = "STORE|PIPELINE.toml")]
    place: String,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::List { place } => list(&Opened::at(place)?),
        Command::Show { place, id } => show(&Opened::at(place)?, id.as_deref()),
        Command::Verify { place } => verify(&Opened::at(place)?),
        Command::Export { place, id, to } => export(&Opened::at(place)?, id.as_deref(), to),
    }
}

/// A store with the sizes of what lies in it, bytes.
struct Opened {
    location: Location,
    store: Store,
    checkpoints: BTreeMap<String, u64>,
    parts: BTreeMap<String, u64>,
}

impl Opened {
    fn at(Place { place }: &Place) -> anyhow::Result<Self> {
        let location = if place.ends_with(".toml") {
            let pipeline = Pipeline::load(Path::new(place), &[])?;
            let location = pipeline.checkpoint.store;
            location.ok_or_else(|| Usage(format!("{place} names no checkpoint.store")))?
        } else {
            place.parse().map_err(Usage)?
        };
        // To look at a folder must not make it.
        if location.folder().is_some_and(|folder| !folder.is_dir()) {
            bail!("{location}: no such folder");
        }
        let of_kind = |suffix: &str, objects: &Objects| -> anyhow::Result<BTreeMap<String, u64>> {
            let objects = objects.list("")?.into_iter();
            let named = objects.filter_map(|object| {
                let id = object.name.strip_suffix(suffix)?;
                (!id.contains('/')).then(|| (id.to_owned(), object.size))
            });
            Ok(named.collect())
        };
        let objects = Objects::open(&location)?;
        let checkpoints = of_kind(".checkpoint", &objects)?;
        let parts = of_kind(".part", &objects)?;
        let config =
            config::Checkpoint { store: Some(location.clone()), ..config::Checkpoint::default() };
        let store = Store::open(&config)?.context("no store is named")?;
        Ok(Self { location, store, checkpoints, parts })
    }

    fn load(&self, id: &str) -> Result<Checkpoint, CheckpointError> {
        self.store.load(id, "nothing")
    }

    /// The checkpoint `id`, or the newest.
    fn find(&self, id: Option<&str>) -> anyhow::Result<Checkpoint> {
        let found = match id {
            Some(id) => self.checkpoints.get_key_value(id),
            None => self.checkpoints.last_key_value(),
        };
        let Some((id, _)) = found else {
            match id {
                Some(id) => bail!("{}: no checkpoint {id}", self.location),
                None => bail!("{}: no checkpoint", self.location),
            }
        };
        Ok(self.load(id)?)
    }

    /// Bytes of a checkpoint with the parts that it needs.
    fn size(&self, checkpoint: &Checkpoint) -> u64 {
        let own = self.checkpoints.get(&checkpoint.id).copied().unwrap_or_default();
        let parts = checkpoint.parts().into_iter().filter_map(|id| self.parts.get(id));
        own + parts.sum::<u64>()
    }
}

fn list(opened: &Opened) -> anyhow::Result<()> {
    const HEADINGS: [&str; 6] = ["ID", "TIME", "PIPELINE", "LANES", "BYTES", "OK"];
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    for (id, size) in &opened.checkpoints {
        let time = made(id).unwrap_or_default();
        rows.push(match opened.load(id) {
            Ok(checkpoint) => [
                id.clone(),
                time,
                checkpoint.pipeline.clone(),
                checkpoint.positions.len().to_string(),
                opened.size(&checkpoint).to_string(),
                "yes".to_owned(),
            ],
            Err(error) if is_damage(&error) => {
                let unknown = || "-".to_owned();
                let why = format!("no: {error}");
                [id.clone(), time, unknown(), unknown(), size.to_string(), why]
            }
            Err(error) => return Err(error.into()),
        });
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEADINGS.len() - 1).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        println!("{}{}", cells.collect::<String>(), row[HEADINGS.len() - 1]);
    }
    Ok(())
}

fn show(opened: &Opened, id: Option<&str>) -> anyhow::Result<()> {
    let checkpoint = opened.find(id)?;
    let (learner, labels) = Core::look_at(&checkpoint.core)?;
    let description = Description::new(opened, &checkpoint, &learner, labels)?;
    println!("checkpoint: {}", description.id);
    println!("made: {}", description.made.as_deref().unwrap_or("unknown"));
    println!("pipeline: {}", description.pipeline);
    println!("bytes: {}", description.bytes);
    let model = &description.model;
    println!(
        "model: version {}, {} segments seen, {} steps left out, temperature {:.4}",
        model.version, model.segments, model.skipped_steps, model.temperature
    );
    println!(
        "segments: {} channels, {} samples, every {}",
        model.channels, model.length, model.stride
    );
    println!("queue: {} negatives, {:.1} steps old on average", model.queue, model.queue_age);
    if let Some(TakenLabels { read, anomalies, normal }) = &description.labels {
        let read: Vec<String> =
            read.iter().map(|(partition, next)| format!("{partition}: {next}")).collect();
        println!(
            "labels: {anomalies} segments labelled anomalous and {normal} normal remembered, next offsets {}",
            read.join(", ")
        );
    }
    println!("lanes:");
    for lane in &description.lanes {
        println!(
            "  {}: next offset {}, watermark {}, {} keys in windows, {} in the model",
            lane.lane,
            lane.next_offset.map_or("unknown".to_owned(), |offset| offset.to_string()),
            lane.watermark.as_deref().unwrap_or("none"),
            lane.window_keys,
            lane.model_keys,
        );
        for template in &lane.templates {
            println!("    template {}: {} lines, {}", template.id, template.lines, template.text);
        }
    }
    println!("staged files: {}", description.staged.len());
    for StagedFile { staged, target } in &description.staged {
        println!("  {staged} becomes {target}");
    }
    Ok(())
}

fn verify(opened: &Opened) -> anyhow::Result<()> {
    let mut corrupt = Vec::new();
    for id in opened.checkpoints.keys() {
        match verify_one(opened, id) {
            Ok(()) => println!("{id}: ok"),
            Err(error) if is_damage(&error) => {
                println!("{id}: corrupt");
                corrupt.push(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    if corrupt.is_empty() {
        return Ok(());
    }
    let (bad, all) = (corrupt.len(), opened.checkpoints.len());
    bail!("{bad} of {all} checkpoints are corrupt: {}", corrupt.join("; "));
}

fn verify_one(opened: &Opened, id: &str) -> Result<(), CheckpointError> {
    let checkpoint = opened.load(id)?;
    Core::look_at(&checkpoint.core)?;
    for (_, windows) in &checkpoint.windows {
        Segmenter::saved_watermark(windows)?;
        Segmenter::saved_templates(windows)?;
        keys::verify_saved(&windows.keys, &opened.store)?;
    }
    checkpoint.keys.iter().try_for_each(|(_, saved)| keys::verify_saved(saved, &opened.store))
}

/// Whether an error is about what lies in the store, rather than the way to it.
fn is_damage(error: &CheckpointError) -> bool {
    match error {
        CheckpointError::Object(error) => error.kind == ObjectErrorKind::NotFound,
        CheckpointError::Step(_) => false,
        _ => true,
    }
}

fn export(opened: &Opened, id: Option<&str>, to: &Path) -> anyhow::Result<()> {
    let checkpoint = opened.find(id)?;
    let (learner, labels) = Core::look_at(&checkpoint.core)?;
    let description = Description::new(opened, &checkpoint, &learner, labels)?;
    let cannot_write = |path: &Path| format!("{}: cannot be written", path.display());
    fs::create_dir_all(to).with_context(|| cannot_write(to))?;
    let [model, momentum] = learner.tensors();
    let files = [
        ("model.safetensors", safetensors(&model)?),
        ("momentum.safetensors", safetensors(&momentum)?),
        ("checkpoint.json", serde_json::to_vec_pretty(&description)?),
    ];
    for (name, bytes) in files {
        let path = to.join(name);
        fs::write(&path, bytes).with_context(|| cannot_write(&path))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Tensors in the safetensors format: the length of a header in JSON as 8 bytes, the header,
/// padded with spaces to a multiple of 8, and the numbers, all little-endian.
fn safetensors(tensors: &[NamedTensor<'_>]) -> anyhow::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Entry<'t> {
        dtype: &'static str,
        shape: &'t [usize],
        data_offsets: [usize; 2],
    }
    let mut header = BTreeMap::new();
    let mut end = 0;
    for NamedTensor { name, shape, values } in tensors {
        let start = end;
        end += size_of_val(*values);
        header.insert(name, Entry { dtype: "F32", shape, data_offsets: [start, end] });
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + header.len() + end);
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    let values = tensors.iter().flat_map(|tensor| tensor.values);
    values.for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    Ok(bytes)
}

/// A checkpoint, for people and for whoever reads an export.
#[derive(Debug, Serialize)]
struct Description {
    id: String,
    /// RFC 3339.
    made: Option<String>,
    pipeline: String,
    bytes: u64,
    model: ModelDescription,
    /// Where a topic of labels was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<TakenLabels>,
    lanes: Vec<LaneDescription>,
    staged: Vec<StagedFile>,
}

#[derive(Debug, Serialize)]
struct ModelDescription {
    /// Training steps taken.
    version: u64,
    /// Segments seen.
    segments: u64,
    skipped_steps: u64,
    temperature: f32,
    channels: usize,
    /// Samples of a segment, and between the starts of two.
    length: usize,
    stride: usize,
    /// Negatives held, and their mean age in training steps.
    queue: usize,
    queue_age: f64,
}

#[derive(Debug, Serialize)]
struct LaneDescription {
    lane: String,
    next_offset: Option<i64>,
    /// RFC 3339, UTC.
    watermark: Option<String>,
    window_keys: usize,
    model_keys: usize,
    /// Templates of its lines, where records are lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    templates: Vec<TemplateDescription>,
}

#[derive(Debug, Serialize)]
struct TemplateDescription {
    id: u64,
    /// Lines that belonged to it.
    lines: u64,
    /// Parameters as `<*>`.
    text: String,
}

impl Description {
    fn new(
        opened: &Opened,
        checkpoint: &Checkpoint,
        learner: &Learner,
        labels: TakenLabels,
    ) -> Result<Self, CheckpointError> {
        let positions = checkpoint.positions.iter().map(|(lane, _)| lane);
        let windows = checkpoint.windows.iter().map(|(lane, _)| lane);
        let all = positions.chain(windows).chain(checkpoint.keys.iter().map(|(lane, _)| lane));
        let mut lanes: BTreeMap<_, LaneDescription> = BTreeMap::new();
        for lane in all {
            lanes.entry(lane).or_insert_with(|| LaneDescription {
                lane: lane.to_string(),
                next_offset: None,
                watermark: None,
                window_keys: 0,
                model_keys: 0,
                templates: Vec::new(),
            });
        }
        for (lane, offset) in &checkpoint.positions {
            if let Some(lane) = lanes.get_mut(lane) {
                lane.next_offset = Some(*offset);
            }
        }
        for (lane, windows) in &checkpoint.windows {
            if let Some(lane) = lanes.get_mut(lane) {
                lane.watermark = Segmenter::saved_watermark(windows)?.and_then(rfc3339);
                lane.window_keys = keys::count_saved(&windows.keys, &opened.store)?;
                let templates = Segmenter::saved_templates(windows)?;
                let describe = |template: &&Template| TemplateDescription {
                    id: template.id,
                    lines: template.count,
                    text: templates.name(template.id),
                };
                lane.templates = templates.all().iter().map(describe).collect();
            }
        }
        for (lane, saved) in &checkpoint.keys {
            if let Some(lane) = lanes.get_mut(lane) {
                lane.model_keys = keys::count_saved(saved, &opened.store)?;
            }
        }
        let (queue, queue_age) = learner.queue();
        let shape = learner.shape();
        Ok(Self {
            id: checkpoint.id.clone(),
            made: made(&checkpoint.id),
            pipeline: checkpoint.pipeline.clone(),
            bytes: opened.size(checkpoint),
            model: ModelDescription {
                version: learner.version(),
                segments: learner.seen(),
                skipped_steps: learner.skipped_steps(),
                temperature: 1.0 / learner.scale(),
                channels: shape.channels,
                length: shape.length,
                stride: shape.stride,
                queue,
                queue_age,
            },
            labels: Some(labels).filter(|labels| !labels.read.is_empty()),
            lanes: lanes.into_values().collect(),
            staged: checkpoint.staged.clone(),
        })
    }
}

/// When a checkpoint was made, as its id tells.
fn made(id: &str) -> Option<String> {
    rfc3339(id.split_once('-')?.0.parse().ok()?)
}

fn rfc3339(micros: i64) -> Option<String> {
    let time = DateTime::from_timestamp_micros(micros)?;
    Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_are_a_padded_header_and_the_numbers_in_the_order_of_the_offsets() {
        let tensor = |name: &str, shape: &[usize], values| NamedTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            values,
        };
        let bytes =
            safetensors(&[tensor("b", &[2, 1], &[1.0, -2.5][..]), tensor("a", &[1], &[0.5][..])])
                .unwrap();
        let (length, rest) = bytes.split_first_chunk().unwrap();
        let (header, numbers) = rest.split_at(u64::from_le_bytes(*length) as usize);
        assert_eq!(header.len() % 8, 0);
        let header: serde_json::Value = serde_json::from_slice(header).unwrap();
        assert_eq!(
            header,
            serde_json::json!({
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
                "b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            })
        );
        let numbers: Vec<f32> =
            numbers.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(numbers, [1.0, -2.5, 0.5]);
    }
}
