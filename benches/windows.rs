//! Windowing of records of 8 channels into segments of 64 samples, a stride of 8: time, memory and
//! allocations a record, by the number of keys.
//!
//! `cargo bench --bench windows [-- FILTER]` prints for each case, `keys` and `lateness` apart:
//! `name/ns cpu wall` and `name/rate` (millions of records a second of one core, by the processor's
//! time), `name/allocations` (calls of the allocator a record), `name/memory` (nanoseconds of the
//! processor a record for the bare traffic: rows are written in the same order, and whole windows
//! copied after each stride; and the time a record by it), `name/growth` (time a record by that at
//! 100 keys) and, for most keys, `name/resident` (MB, and by the bytes that the samples of all keys
//! take). Medians over the passes (`PASSES`, 7): in each, every key has a stride of records or more,
//! in an order of keys that is not that of memory, in batches of 4096 records. Before them, every
//! window is filled.

mod measure;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMicrosecondArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use contrastream::decode::records_schema;
use contrastream::source::Lane;
use contrastream::window::{Segmenter, WindowShape};
use cpu_time::ThreadTime;
use measure::{count, median, wanted};
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

const CHANNELS: usize = 8;
const LENGTH: usize = 64;
const STRIDE: usize = 8;
const BATCH: usize = 4096;
const SECOND: i64 = 1_000_000;
/// Least records of a measured pass.
const LEAST: usize = 1 << 18;
/// Words of 4 bytes that a key's window must hold of a sample: values, a time, an offset.
const SAMPLE: usize = CHANNELS + 2 + 2;
const SAMPLE_BYTES: usize = SAMPLE * 4;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

// SAFETY: all is done by the system's allocator; a counter without a destructor is all there is
// beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The stream: one record of every key after the other, a second apart.
struct Stream {
    schema: SchemaRef,
    keys: StringArray,
    values: Vec<ArrayRef>,
    order: Vec<u32>,
    /// Records so far.
    at: usize,
}

impl Stream {
    fn new(keys: usize) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let names = (0..keys).map(|key| format!("machine-{key:06}"));
        let mut order: Vec<u32> = (0..keys as u32).collect();
        order.shuffle(&mut rng);
        let mut noise = || (0..BATCH).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
        let channels: Vec<String> = (0..CHANNELS).map(|channel| channel.to_string()).collect();
        Self {
            schema: records_schema(&channels),
            keys: StringArray::from_iter_values(names),
            values: (0..CHANNELS)
                .map(|_| Arc::new(Float32Array::new(noise(), None)) as _)
                .collect(),
            order,
            at: 0,
        }
    }

    fn batch(&mut self) -> RecordBatch {
        let (numbers, keys) = (self.at..self.at + BATCH, self.order.len());
        self.at = numbers.end;
        let places = UInt32Array::from_iter_values(numbers.clone().map(|n| self.order[n % keys]));
        let times = numbers.clone().map(|number| (number / keys) as i64 * SECOND);
        let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
        let offsets = Int64Array::from_iter_values(numbers.map(|number| number as i64));
        let mut columns: Vec<ArrayRef> = vec![
            take(&self.keys, &places, None).expect("keys of the stream"),
            Arc::new(times),
            Arc::new(offsets),
        ];
        columns.extend(self.values.iter().cloned());
        RecordBatch::try_new(Arc::clone(&self.schema), columns).expect("columns of the schema")
    }
}

/// Of one pass, a record: nanoseconds of the processor and of the wall, calls of the allocator.
#[derive(Clone, Copy)]
struct Pass {
    cpu: f64,
    wall: f64,
    allocations: f64,
}

fn pass(stream: &mut Stream, segmenter: &mut Segmenter) -> Pass {
    let batches = LEAST.max(STRIDE * stream.order.len()).div_ceil(BATCH);
    let mut sum = Pass { cpu: 0.0, wall: 0.0, allocations: 0.0 };
    for _ in 0..batches {
        let batch = stream.batch();
        let (before, cpu, wall) = (allocations(), ThreadTime::now(), Instant::now());
        let segments = black_box(segmenter.push(&batch)).expect("columns of the schema");
        sum.cpu += cpu.elapsed().as_secs_f64() * 1e9;
        sum.wall += wall.elapsed().as_secs_f64() * 1e9;
        sum.allocations += (allocations() - before) as f64;
        drop(segments);
    }
    let records = (batches * BATCH) as f64;
    let (cpu, wall) = (sum.cpu / records, sum.wall / records);
    Pass { cpu, wall, allocations: sum.allocations / records }
}

/// Nanoseconds of the processor that a record's bare traffic takes, the median of passes: a sample
/// is written to its window, and after each stride the window is read and its values are written
/// elsewhere, batch by batch. Nothing is looked up, checked or turned.
fn bare(order: &[u32], passes: usize) -> f64 {
    let mut windows = vec![1.0_f32; order.len() * LENGTH * SAMPLE];
    let mut pass = |number: usize| {
        let times = LEAST.div_ceil(STRIDE * order.len());
        let begin = ThreadTime::now();
        for round in 0..STRIDE * times {
            let row = (STRIDE * number + round) % LENGTH * SAMPLE;
            for batch in order.chunks(BATCH) {
                let mut out: Vec<f32> = Vec::new();
                for key in batch {
                    let window = *key as usize * LENGTH * SAMPLE;
                    let window = &mut windows[window..window + LENGTH * SAMPLE];
                    window[row..row + SAMPLE].copy_from_slice(black_box(&[2.0; SAMPLE]));
                    if round % STRIDE == STRIDE - 1 {
                        let samples = window.chunks_exact(SAMPLE);
                        samples.for_each(|sample| out.extend_from_slice(&sample[..CHANNELS]));
                    }
                }
                black_box(&out);
            }
        }
        begin.elapsed().as_secs_f64() * 1e9 / (STRIDE * times * order.len()) as f64
    };
    median((0..passes).map(&mut pass).collect::<Vec<f64>>())
}

/// Bytes of this process in memory.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("kB") * 1024.0
}

fn main() {
    let wanted = wanted();
    let passes = count("PASSES", 7);
    for lateness in [0, 5 * SECOND] {
        // Most keys first: what lies in memory is theirs alone.
        let mut figures: Vec<(String, f64)> = Vec::new();
        for keys in [100_000, 10_000, 1000, 100] {
            let name = format!("windows-{keys}-late-{}", lateness / SECOND);
            if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
                continue;
            }
            let shape = WindowShape {
                channels: CHANNELS,
                observed: CHANNELS,
                length: LENGTH,
                stride: STRIDE,
                resample: None,
                max_gap: None,
                lateness,
                time_since_last: false,
                groups: Vec::new(),
                lines: false,
            };
            let mut stream = Stream::new(keys);
            let mut segmenter = Segmenter::new(Lane::new("bench", 0), shape, keys);
            while stream.at < (LENGTH + STRIDE) * keys {
                black_box(segmenter.push(&stream.batch()).expect("columns of the schema"));
            }
            let all: Vec<Pass> = (0..passes).map(|_| pass(&mut stream, &mut segmenter)).collect();
            let cpu = median(all.iter().map(|pass| pass.cpu));
            let wall = median(all.iter().map(|pass| pass.wall));
            println!("{name}/ns {cpu:.1} {wall:.1}");
            println!("{name}/rate {:.2}", 1e3 / cpu);
            println!("{name}/allocations {:.4}", median(all.iter().map(|pass| pass.allocations)));
            if keys == 100_000 {
                let held = (keys * LENGTH * SAMPLE_BYTES) as f64;
                println!("{name}/resident {:.1} {:.3}", resident() / 1e6, resident() / held);
            }
            drop(segmenter);
            let memory = bare(&stream.order, passes);
            println!("{name}/memory {memory:.1} {:.2}", cpu / memory);
            figures.push((name, cpu));
        }
        if let Some((_, least)) = figures.last().cloned() {
            figures.iter().for_each(|(name, cpu)| println!("{name}/growth {:.2}", cpu / least));
        }
    }
}
