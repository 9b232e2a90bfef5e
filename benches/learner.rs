//! The learner alone: training steps and embeddings of segments of 8 channels and 64 samples.
//!
//! `cargo bench --bench learner [-- FILTER]` prints one line a case, `name microseconds`: the median
//! of 31 runs (`RUNS`) after 5. A step is 256 pairs against a queue of 4096 and everything that belongs to it:
//! drawing and augmenting, both encoders, the loss, the gradient, Adam, the momentum update.
//! `scripts/peers/learner.py` does the same with others.

use std::hint::black_box;
use std::time::Instant;

use contrastream::config::Pipeline;
use contrastream::keys::Keys;
use contrastream::learner::{KeyState, Learner};
use contrastream::sink::SegmentMeta;
use contrastream::source::Lane;
use contrastream::window::Segments;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64Mcg;

const CHANNELS: usize = 8;
const LENGTH: usize = 64;
const KEYS: u64 = 64;

fn pipeline(encoder: &str) -> Pipeline {
    let text = format!(
        "name = 'bench'\n[source]\nkind = 'generator'\n\
         [records]\nkey = 'machine'\ntime = 'ts'\n\
         channels = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']\n\
         [windows]\nlength = {LENGTH}\nstride = 8\n\
         [model]\nencoder = '{encoder}'\nqueue = 4096\n[training]\nbatch = 256\nevery = 1000000"
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

/// Whether a case, or all cases whose names begin so, are wanted.
fn is_wanted(name: &str) -> bool {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    wanted.is_none_or(|wanted| name.contains(&wanted) || wanted.starts_with(name))
}

fn measure(name: &str, mut run: impl FnMut()) {
    if !is_wanted(name) {
        return;
    }
    let runs = std::env::var("RUNS").map_or(31, |runs| runs.parse().expect("a number"));
    let mut times: Vec<f64> = (0..runs + 5)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64() * 1e6
        })
        .skip(5)
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name} {:.1}", times[times.len() / 2]);
}

fn main() {
    let segments = segments(64);
    for encoder in ["mlp", "tcn"].into_iter().filter(|encoder| is_wanted(encoder)) {
        let mut learner = Learner::new(&pipeline(encoder));
        let mut keys: Keys<KeyState> = Keys::new(1000, None);
        let embedded = learner.embed(&mut keys, &segments, 0..segments.len());
        learner.learn(&mut keys, &embedded, false);
        // Until the queue is full.
        (0..20).for_each(|_| learner.step());
        measure(&format!("{encoder}-step"), || learner.step());
        for batch in [1, 32, 256] {
            let values = &embedded.values[..batch * CHANNELS * LENGTH];
            measure(&format!("{encoder}-embed-{batch}"), || {
                black_box(learner.embed_standardised(black_box(values)));
            });
        }
    }
}
