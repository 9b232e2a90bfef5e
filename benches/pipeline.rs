//! Records a second through the stages, one after the other: decode, window, embed and score, train.
//!
//! The records are those of `contrastream generate`: JSON, five channels, eight machines; segments
//! of 64 samples every 8. Each figure includes the stages before it. One thread.

use std::hint::black_box;

use contrastream::config::{Pipeline, Source};
use contrastream::decode::Decoder;
use contrastream::runtime::Core;
use contrastream::source::generator::{Plant, json_messages};
use contrastream::source::{Lane, Messages};
use contrastream::window::{Segmenter, Segments, WindowShape};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Records of an iteration, and of the stream that a model has seen before it is measured.
const RECORDS: usize = 16_384;
const SEEN: usize = 131_072;
/// Records of a batch, as the Kafka source hands them out.
const BATCH: usize = 4096;

fn pipeline(encoder: &str) -> Pipeline {
    let overrides = [format!("model.encoder={encoder}")];
    Pipeline::from_toml(include_str!("../pipelines/demo.toml"), "pipelines/demo.toml", &overrides)
        .expect("the demo's pipeline is valid")
}

fn plant(pipeline: &Pipeline) -> Plant {
    match &pipeline.source {
        Source::Generator(generator) => Plant::new(generator, &pipeline.records.channels),
        _ => unreachable!("the demo's source is a generator"),
    }
}

/// Everything before the learner, with the windows of what came before.
struct Ingest {
    decoder: Decoder,
    segmenter: Segmenter,
    lane: Lane,
}

impl Ingest {
    fn new(pipeline: &Pipeline) -> Self {
        let lane = Lane::new("bench", 0);
        let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
        Self {
            decoder: Decoder::new(&pipeline.records, &Default::default())
                .expect("the demo's records can be decoded"),
            segmenter: Segmenter::new(lane.clone(), shape, pipeline.windows.max_keys),
            lane,
        }
    }

    fn segments(&mut self, batches: &[Messages]) -> Segments {
        let mut segments = Segments::default();
        for messages in batches {
            let decoded = self.decoder.decode(&self.lane, messages).expect("decodable");
            let mut cut = self.segmenter.push(&decoded.records).expect("decoded records fit");
            segments.append(&mut cut);
        }
        segments
    }
}

fn messages(plant: &mut Plant, pipeline: &Pipeline, records: usize) -> Vec<Messages> {
    (0..records / BATCH)
        .map(|_| {
            let batch = plant.next_batch(BATCH);
            let mut messages = Messages::default();
            for (offset, (key, payload)) in json_messages(&batch, &pipeline.records).enumerate() {
                messages.push(offset as i64, None, Some(key), &payload, Vec::new());
            }
            messages
        })
        .collect()
}

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Elements(RECORDS as u64)).sample_size(20);
    let base = pipeline("tcn");
    let mut plant_records = plant(&base);
    let before = messages(&mut plant_records, &base, SEEN);
    let batches = messages(&mut plant_records, &base, RECORDS);

    let mut ingest = Ingest::new(&base);
    let seen = ingest.segments(&before);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            for messages in &batches {
                let decoded = ingest.decoder.decode(&ingest.lane, messages);
                black_box(decoded).expect("decodable");
            }
        });
    });
    group.bench_function("decode, window", |bencher| {
        // Windows of a clone: time must not run backwards from one iteration to the next.
        bencher.iter_batched(
            || ingest.segmenter.clone(),
            |segmenter| {
                let mut fresh = Ingest { segmenter, ..Ingest::new(&base) };
                black_box(fresh.segments(&batches))
            },
            BatchSize::LargeInput,
        );
    });
    for encoder in ["tcn", "mlp"] {
        for (name, train) in [("embed, score", false), ("embed, score, train", true)] {
            let mut pipeline = pipeline(encoder);
            pipeline.training.enabled = train;
            let mut core = Core::new(&pipeline);
            core.process(&seen, None, |outputs| drop(black_box(outputs))).expect("no store");
            group.bench_function(format!("decode, window, {name} ({encoder})"), |bencher| {
                bencher.iter_batched(
                    || (core.clone(), ingest.segmenter.clone()),
                    |(mut core, segmenter)| {
                        let mut fresh = Ingest { segmenter, ..Ingest::new(&base) };
                        let segments = fresh.segments(&batches);
                        core.process(&segments, None, |outputs| drop(black_box(outputs)))
                            .expect("no store");
                        core
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

/// Training steps a second: batch 128, queue 4096, the segments of the plant.
fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("training");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for encoder in ["tcn", "mlp"] {
        let pipeline = pipeline(encoder);
        let mut plant = plant(&pipeline);
        let mut ingest = Ingest::new(&pipeline);
        let seen = ingest.segments(&messages(&mut plant, &pipeline, SEEN));
        let mut core = Core::new(&pipeline);
        core.process(&seen, None, |outputs| drop(black_box(outputs))).expect("no store");
        group.bench_function(format!("step ({encoder})"), |bencher| {
            bencher.iter(|| core.train());
        });
    }
    group.finish();
}

criterion_group!(benches, stages, training);
criterion_main!(benches);
