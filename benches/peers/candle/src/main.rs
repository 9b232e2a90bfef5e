//! What `cargo bench --bench learner` measures, in candle on the CPU, with as many threads as it takes.
//!
//! `cargo run --release [-- FILTER]` prints `name microseconds` a case, the median of 31 runs (`RUNS`)
//! after 5. The same models, from the same inputs: a step is both encoders, InfoNCE against a queue of
//! 4096 with the batch's keys in it, the gradient, Adam and the momentum update, and gets its views drawn
//! and augmented already. `plain` is an MLP 512-256-128-64 without a second input per value and without a
//! projection head, batch 256. Layers, gradients and Adam are candle's own. `yardstick` is a product of
//! two matrices of 256 x 256.

#[path = "../../../measure/mod.rs"]
mod measure;

use std::collections::HashMap;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{
    AdamW, Conv1d, Conv1dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap,
    conv1d, linear,
};

use measure::{count, median, wanted};

const CPU: Device = Device::Cpu;
const CHANNELS: usize = 8;
const LENGTH: usize = 64;
const BATCH: usize = 256;
const QUEUE: usize = 4096;
const HIDDEN: usize = 32;
const EMBEDDING: usize = 64;
const PROJECTION: [usize; 2] = [128, 64];
const MOMENTUM: f64 = 0.995;
const GRADIENT_NORM: f64 = 1.0;

/// Standardised segments `[segments, channels, time]` to features `[segments, embedding]`.
enum Encoder {
    /// Dense layers over values and, unless it is plain, over which of them are missing.
    Mlp { layers: Vec<Linear>, masked: bool },
    /// Dilated convolutions with residual connections, mean and maximum over time, a dense layer.
    Tcn { lift: Conv1d, blocks: Vec<Conv1d>, out: Linear },
}

impl Encoder {
    fn new(kind: &str, from: VarBuilder) -> Result<Self> {
        let size = CHANNELS * LENGTH;
        if kind == "tcn" {
            let convolution = |name: &str, inputs, dilation| {
                let shape = Conv1dConfig { padding: dilation, dilation, ..Conv1dConfig::default() };
                conv1d(inputs, HIDDEN, 3, shape, from.pp(name))
            };
            return Ok(Self::Tcn {
                lift: convolution("lift", 2 * CHANNELS, 1)?,
                blocks: (0..4)
                    .map(|number| convolution(&format!("block.{number}"), HIDDEN, 1 << number))
                    .collect::<Result<_>>()?,
                out: linear(2 * HIDDEN, EMBEDDING, from.pp("out"))?,
            });
        }
        let masked = kind != "plain";
        let sizes = [if masked { 2 * size } else { size }, 8 * HIDDEN, 4 * HIDDEN, EMBEDDING];
        Ok(Self::Mlp { layers: dense(&sizes, from.pp("layers"))?, masked })
    }

    fn forward(&self, segments: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mlp { layers, masked } => {
                let inputs = if *masked { beside_mask(segments, false)? } else { segments.clone() };
                forward(layers, inputs.flatten_from(1)?)
            }
            Self::Tcn { lift, blocks, out } => {
                let mut hidden = lift.forward(&beside_mask(segments, true)?)?.relu()?;
                for block in blocks {
                    hidden = (block.forward(&hidden)? + &hidden)?.relu()?;
                }
                let pooled = Tensor::cat(&[hidden.mean(D::Minus1)?, hidden.max(D::Minus1)?], 1)?;
                out.forward(&pooled)
            }
        }
    }
}

/// Values with 0 for what is missing, and as many channels that are 1 where a value is `observed`, or
/// where it is not.
fn beside_mask(segments: &Tensor, observed: bool) -> Result<Tensor> {
    // Only NaN differs from itself.
    let known = segments.eq(segments)?;
    let values = known.where_cond(segments, &segments.zeros_like()?)?;
    let mask = if observed { known } else { segments.ne(segments)? };
    Tensor::cat(&[values, mask.to_dtype(DType::F32)?], 1)
}

fn dense(sizes: &[usize], from: VarBuilder) -> Result<Vec<Linear>> {
    let sizes = sizes.iter().zip(&sizes[1..]).enumerate();
    sizes.map(|(number, (inputs, outputs))| linear(*inputs, *outputs, from.pp(number))).collect()
}

/// Dense layers with rectifiers between them.
fn forward(layers: &[Linear], mut x: Tensor) -> Result<Tensor> {
    for (number, layer) in layers.iter().enumerate() {
        x = layer.forward(&x)?;
        if number + 1 < layers.len() {
            x = x.relu()?;
        }
    }
    Ok(x)
}

/// Rows of length 1.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)
}

struct Model {
    weights: VarMap,
    encoder: Encoder,
    centre: Tensor,
    spread: Tensor,
    /// None of a plain model.
    projection: Option<Vec<Linear>>,
}

impl Model {
    fn new(kind: &str) -> Result<Self> {
        let weights = VarMap::new();
        let from = VarBuilder::from_varmap(&weights, DType::F32, &CPU);
        let projection = (kind != "plain")
            .then(|| dense(&[EMBEDDING, PROJECTION[0], PROJECTION[1]], from.pp("projection")));
        Ok(Self {
            encoder: Encoder::new(kind, from.pp("encoder"))?,
            centre: Tensor::zeros(EMBEDDING, DType::F32, &CPU)?,
            spread: Tensor::ones(EMBEDDING, DType::F32, &CPU)?,
            projection: projection.transpose()?,
            weights,
        })
    }

    fn embed(&self, segments: &Tensor) -> Result<Tensor> {
        let features = self.encoder.forward(segments)?;
        if self.projection.is_none() {
            return unit(&features);
        }
        unit(&features.broadcast_sub(&self.centre)?.broadcast_mul(&self.spread)?)
    }

    fn project(&self, segments: &Tensor) -> Result<Tensor> {
        let embeddings = self.embed(segments)?;
        match &self.projection {
            Some(projection) => unit(&forward(projection, embeddings)?),
            None => Ok(embeddings),
        }
    }
}

/// A model that learns, the one that follows it, and what they share.
struct Learner {
    model: Model,
    follower: Model,
    /// The follower's weights, each beside the model's.
    pairs: Vec<(Var, Var)>,
    /// Logarithm of what similarities are multiplied by.
    log_scale: Var,
    optimizer: AdamW,
    /// Keys of earlier steps `[QUEUE, projection]`.
    queue: Tensor,
    /// Whose the queue's keys are `[1, QUEUE]`.
    queue_origins: Tensor,
    /// What takes the place of similarities to keys of the anchor's own source `[BATCH, QUEUE]`.
    nothing: Tensor,
    steps: usize,
}

impl Learner {
    fn new(kind: &str) -> Result<Self> {
        let (model, follower) = (Model::new(kind)?, Model::new(kind)?);
        let leaders = model.weights.data().lock().expect("nobody else has it").clone();
        let followers: HashMap<String, Var> =
            follower.weights.data().lock().expect("nobody else has it").clone();
        let pairs: Vec<(Var, Var)> =
            followers.into_iter().map(|(name, var)| (var, leaders[&name].clone())).collect();
        for (follower, leader) in &pairs {
            follower.set(leader)?;
        }
        let log_scale = Var::new(2.3f32, &CPU)?;
        let mut learned = model.weights.all_vars();
        learned.push(log_scale.clone());
        let adam = ParamsAdamW { weight_decay: 0.0, ..ParamsAdamW::default() };
        let size = if kind == "plain" { EMBEDDING } else { PROJECTION[1] };
        Ok(Self {
            model,
            follower,
            pairs,
            log_scale,
            optimizer: AdamW::new(learned, adam)?,
            queue: unit(&Tensor::randn(0f32, 1.0, (QUEUE, size), &CPU)?)?,
            queue_origins: origins(QUEUE)?.unsqueeze(0)?,
            nothing: Tensor::full(f32::NEG_INFINITY, (BATCH, QUEUE), &CPU)?,
            steps: 0,
        })
    }

    /// Returns the loss.
    fn step(&mut self, anchors: &Tensor, positives: &Tensor, origins: &Tensor) -> Result<f32> {
        let keys = self.follower.project(positives)?.detach();
        self.queue.slice_set(&keys, 0, self.steps % (QUEUE / BATCH) * BATCH)?;
        let queries = self.model.project(anchors)?;
        let scale = self.log_scale.exp()?;
        let positive = (&queries * &keys)?.sum_keepdim(1)?.broadcast_mul(&scale)?;
        let negative = queries.matmul(&self.queue.t()?)?.broadcast_mul(&scale)?;
        let same = origins.unsqueeze(1)?.broadcast_eq(&self.queue_origins)?;
        let negative = same.where_cond(&self.nothing, &negative)?;
        let loss = (Tensor::cat(&[&positive, &negative], 1)?.log_sum_exp(1)?
            - positive.squeeze(1)?)?
        .mean_all()?;

        let mut gradients = loss.backward()?;
        let mut vars = self.model.weights.all_vars();
        vars.push(self.log_scale.clone());
        let mut squares = 0.0f64;
        for gradient in vars.iter().filter_map(|var| gradients.get(var)) {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let shorter = (GRADIENT_NORM / squares.sqrt()).min(1.0);
        for var in &vars {
            if let Some(gradient) = gradients.remove(var) {
                gradients.insert(var, (gradient * shorter)?);
            }
        }
        self.optimizer.step(&gradients)?;
        for (follower, leader) in &self.pairs {
            let moved =
                ((follower.as_tensor() * MOMENTUM)? + (leader.as_tensor() * (1.0 - MOMENTUM))?)?;
            follower.set(&moved)?;
        }
        self.steps += 1;
        loss.to_scalar()
    }
}

/// Which source each of `count` segments is of.
fn origins(count: usize) -> Result<Tensor> {
    Tensor::rand(0f32, 4096.0, count, &CPU)?.to_dtype(DType::U32)
}

fn segments(count: usize) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, (count, CHANNELS, LENGTH), &CPU)
}

fn time(name: &str, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    if wanted().is_some_and(|wanted| !name.contains(&wanted)) {
        return Ok(());
    }
    (0..5).try_for_each(|_| run())?;
    let mut times = Vec::new();
    for _ in 0..count("RUNS", 31) {
        let began = Instant::now();
        run()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    println!("{name} {:.1}", median(times));
    Ok(())
}

fn main() -> Result<()> {
    let factor = Tensor::full(0.5f32, (256, 256), &CPU)?;
    time("yardstick", || factor.matmul(&factor).map(drop))?;
    for kind in ["mlp", "tcn", "plain"] {
        let mut learner = Learner::new(kind)?;
        let (anchors, positives, origins) = (segments(BATCH)?, segments(BATCH)?, origins(BATCH)?);
        time(&format!("{kind}-step"), || {
            let loss = learner.step(&anchors, &positives, &origins)?;
            assert!(loss.is_finite());
            Ok(())
        })?;
        for count in [1, 32, 256] {
            let batch = segments(count)?;
            time(&format!("{kind}-embed-{count}"), || learner.model.embed(&batch).map(drop))?;
        }
    }
    Ok(())
}
