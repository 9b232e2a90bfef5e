//! What a record costs as work grows: keys, channels and partitions, ten times as many at a time.
//!
//! `cargo bench --bench scale [-- PLOT.svg]` prints a line a case, microseconds of the processor's
//! time from a JSON message to the verdicts of the segments that it completes, without training, the
//! median of `RUNS` (3) runs; where a file is named, it draws them. Segments are 64 samples every 8,
//! scored as in `pipelines/sensor.toml`; a batch is of one partition, of some 1000 records.

mod measure;

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use contrastream::config::Pipeline;
use contrastream::decode::Decoder;
use contrastream::runtime::Core;
use contrastream::source::{Lane, Messages};
use contrastream::window::{Segmenter, WindowShape};
use cpu_time::ProcessTime;
use measure::{count, median, record, wanted};
use plotters::prelude::*;

const LENGTH: usize = 64;
const STRIDE: usize = 8;
const BATCH: usize = 1000;
/// Segments that are measured, and as many that come before.
const SEGMENTS: usize = 8192;

/// How much there is to do.
#[derive(Clone, Copy)]
struct Work {
    keys: usize,
    channels: usize,
    partitions: usize,
}

const USUAL: Work = Work { keys: 1000, channels: 8, partitions: 4 };

/// What grows, how it is called, and the line of a cost that grows as it does.
type Growth = (&'static str, [usize; 3], fn(usize) -> Work, fn(f64) -> f64);

const GROWTHS: [Growth; 3] = [
    ("keys", [100, 1000, 10_000], |keys| Work { keys, ..USUAL }, |_| 1.0),
    ("channels", [1, 10, 100], |channels| Work { channels, ..USUAL }, |channels| channels),
    ("partitions", [1, 10, 100], |partitions| Work { partitions, ..USUAL }, |_| 1.0),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut found = Vec::new();
    for (name, sizes, work, _) in GROWTHS {
        let costs = sizes.map(|size| {
            let cost = median((0..count("RUNS", 3)).map(|_| microseconds(work(size))));
            println!("{name} {size}: {cost:.2}");
            cost
        });
        found.push(costs);
    }
    match wanted() {
        Some(file) => draw(Path::new(&file), &found),
        None => Ok(()),
    }
}

/// What becomes of the messages of one partition.
struct Partition {
    lane: Lane,
    segmenter: Segmenter,
    keys: Vec<usize>,
    offset: i64,
}

/// Microseconds of the processor's time a record.
fn microseconds(work: Work) -> f64 {
    let channels: Vec<String> = (0..work.channels).map(|at| format!("\"c{at}\"")).collect();
    let overrides = [
        format!("records.channels=[{}]", channels.join(",")),
        format!("windows.length={LENGTH}"),
        format!("windows.stride={STRIDE}"),
        "training.enabled=false".to_owned(),
    ];
    let text = include_str!("../pipelines/sensor.toml");
    let pipeline = Pipeline::from_toml(text, "pipelines/sensor.toml", &overrides).expect("valid");
    let mut decoder = Decoder::new(&pipeline.records, &Default::default()).expect("decodable");
    let mut core = Core::new(&pipeline);
    let partition = |number| {
        let lane = Lane::new("bench", number as i32);
        let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
        Partition {
            segmenter: Segmenter::new(lane.clone(), shape, pipeline.windows.max_keys),
            lane,
            keys: (number..work.keys).step_by(work.partitions).collect(),
            offset: 0,
        }
    };
    let mut partitions: Vec<Partition> = (0..work.partitions).map(partition).collect();
    let rounds = (SEGMENTS / work.keys).max(1) * STRIDE;
    let readings_at_once = (BATCH * work.partitions / work.keys).clamp(1, rounds);
    let before = (LENGTH + rounds).next_multiple_of(readings_at_once);
    let all = before + rounds;
    let (mut took, mut records) = (Duration::ZERO, 0);
    for first in (0..all).step_by(readings_at_once) {
        for partition in &mut partitions {
            let readings = first..(first + readings_at_once).min(all);
            for keys in partition.keys.chunks(BATCH) {
                let mut messages = Messages::default();
                for reading in readings.clone() {
                    for key in keys {
                        let ms = 1_767_225_600_000 + 1000 * reading as u128;
                        let name = format!("machine-{key}");
                        let payload = record(&name, ms, (*key, reading), work.channels);
                        messages.push(partition.offset, None, None, payload.as_bytes(), Vec::new());
                        partition.offset += 1;
                    }
                }
                let began = ProcessTime::now();
                let decoded = decoder.decode(&partition.lane, &messages).expect("decodable");
                let segments = partition.segmenter.push(&decoded.records).expect("they fit");
                core.process(&segments, None, |outputs| drop(black_box(outputs)))
                    .expect("no store");
                if first >= before {
                    took += began.elapsed();
                    records += decoded.records.num_rows();
                }
            }
        }
    }
    took.as_secs_f64() * 1e6 / records as f64
}

/// One picture a growth, both axes logarithmic, with the line of a cost that is the same for each
/// record or, of channels, for each value.
fn draw(file: &Path, found: &[[f64; 3]]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(file, (960, 300)).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, GROWTHS.len()));
    for ((panel, (name, sizes, _, line)), costs) in panels.iter().zip(GROWTHS).zip(found) {
        let sizes = sizes.map(|size| size as f64);
        let highest = costs.iter().fold(0.0_f64, |most, cost| most.max(*cost));
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("µs a record, by {name}"), ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(40)
            .build_cartesian_2d(
                (sizes[0]..sizes[2]).log_scale(),
                (1.0..2.0 * highest).log_scale(),
            )?;
        chart.configure_mesh().disable_mesh().draw()?;
        let linear = sizes.map(|size| (size, costs[0] * line(size) / line(sizes[0])));
        chart.draw_series(LineSeries::new(linear, BLACK.mix(0.3)))?;
        let points = sizes.iter().copied().zip(costs.iter().copied());
        chart.draw_series(LineSeries::new(points.clone(), BLUE))?;
        chart.draw_series(points.map(|point| Circle::new(point, 3, BLUE.filled())))?;
    }
    area.present()?;
    println!("{}", file.display());
    Ok(())
}
