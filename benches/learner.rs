//! The learner alone: training steps and embeddings of segments of 8 channels and 64 samples.
//!
//! `cargo bench --bench learner [-- FILTER]` prints one line a case, `name microseconds`: the median
//! of 31 runs (`RUNS`) after 5 (`BEFORE`). A step is 256 pairs against a queue of 4096 and everything that belongs to it:
//! drawing and augmenting, both encoders, the loss, the gradient, Adam, the momentum update.
//! With the feature `cuda`, `mlp-step-cuda` and `tcn-step-cuda` take the same steps on the first GPU.
//! `scripts/peers/learner.py` does the same in JAX. `yardstick` is a product of two matrices of 256 x 256.

mod measure;

use std::hint::black_box;
use std::time::Instant;

use contrastream::config::Pipeline;
use contrastream::keys::Keys;
use contrastream::learner::{Embedded, KeyState, Learner, Matrix, multiply};
use contrastream::sink::SegmentMeta;
use contrastream::source::Lane;
use contrastream::window::Segments;
use measure::{count, median, wanted};
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

const CHANNELS: usize = 8;
const LENGTH: usize = 64;
const KEYS: u64 = 64;

fn pipeline(encoder: &str, device: &str) -> Pipeline {
    let text = format!(
        "name = 'bench'\n[source]\nkind = 'generator'\n\
         [records]\nkey = 'machine'\ntime = 'ts'\n\
         channels = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']\n\
         [windows]\nlength = {LENGTH}\nstride = 8\n\
         [model]\nencoder = '{encoder}'\nqueue = 4096\n[training]\nbatch = 256\nevery = 1000000\n\
         device = '{device}'"
    );
    Pipeline::from_toml(&text, "bench.toml", &[]).expect("a valid pipeline")
}

/// `rounds` segments of each key, of noise.
fn segments(rounds: u64) -> Segments {
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let mut segments = Segments::default();
    for sequence in 0..rounds {
        for key in 0..KEYS {
            let noise = (0..CHANNELS * LENGTH).map(|_| rng.sample::<f32, _>(StandardNormal));
            segments.values.extend(noise);
            segments.runs.push(0);
            segments.fresh.push(8);
            segments.meta.push(SegmentMeta {
                key: format!("machine-{key}").into(),
                lane: Lane::new("bench", 0),
                sequence,
                window_start: 0,
                window_end: 0,
                first_offset: 0,
                last_offset: 0,
            });
        }
    }
    segments
}

/// A learner of these segments after `steps` steps: as many as fill the queue, or none.
fn trained(pipeline: &Pipeline, segments: &Segments, steps: usize) -> (Learner, Embedded) {
    let mut learner = Learner::new(pipeline);
    let mut keys: Keys<KeyState> = Keys::new(1000, None);
    let embedded = learner.embed(&mut keys, segments, 0..segments.len());
    learner.learn(&mut keys, &embedded, None);
    (0..steps).for_each(|_| learner.step());
    (learner, embedded)
}

/// Whether a case, or all cases whose names begin so, are wanted.
fn is_wanted(name: &str) -> bool {
    wanted().is_none_or(|wanted| {
        name.contains(&wanted)
            || wanted.starts_with(name)
            || !wanted.contains('-') && !name.contains('-')
    })
}

/// Runs before the first that counts.
const BEFORE: usize = 5;

fn time(name: &str, mut run: impl FnMut()) {
    if !is_wanted(name) {
        return;
    }
    (0..count("BEFORE", BEFORE)).for_each(|_| run());
    let times: Vec<f64> = (0..count("RUNS", 31))
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    println!("{name} {:.1}", median(times));
}

fn main() {
    // A device that is given up says so, and the figures are not its own.
    #[cfg(feature = "cuda")]
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // What the processor multiplies in a while, to hold the rest against.
    let factor = vec![0.5; 256 * 256];
    let mut product = vec![0.0; 256 * 256];
    time("yardstick", || {
        let factor = Matrix::new(black_box(&factor), 256, 256);
        multiply(&mut product, false, factor, factor);
    });
    // Fewer where every instruction is counted.
    let (rounds, steps) = if count("BEFORE", BEFORE) > 0 { (64, 20) } else { (4, 0) };
    let segments = segments(rounds);
    for encoder in ["mlp", "tcn"].into_iter().filter(|encoder| is_wanted(encoder)) {
        let (mut learner, embedded) = trained(&pipeline(encoder, "cpu"), &segments, steps);
        time(&format!("{encoder}-step"), || learner.step());
        #[cfg(feature = "cuda")]
        if is_wanted(&format!("{encoder}-step-cuda")) {
            contrastream::learner::probe().expect("a GPU");
            let (mut learner, _) = trained(&pipeline(encoder, "cuda"), &segments, steps);
            time(&format!("{encoder}-step-cuda"), || learner.step());
        }
        for batch in [1, 32, 256] {
            let values = &embedded.values[..batch * CHANNELS * LENGTH];
            time(&format!("{encoder}-embed-{batch}"), || {
                black_box(learner.embed_standardised(black_box(values)));
            });
        }
    }
}
