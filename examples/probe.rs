//! What embeddings are worth: a linear classifier on the trajectories of labelled series.
//!
//! ```sh
//! cargo run --release --example probe -- FOLDER [--passes N] [--only NAME,NAME] \
//!     [--windows PART,PART] [KEY=VALUE]…
//! ```
//!
//! The folder has a folder per collection, with `train.csv` and `test.csv` (`scripts/series` writes
//! them): the columns `series`, `label`, `time` and one per channel, the rows of a series in the
//! order of time. The training series are streamed once, each a key of its own, through windows and
//! learner as the service does, without their labels. Then the model, frozen, embeds all series from
//! their beginning, and each becomes one vector: its trajectory, with its extremes. Ridge regression is
//! fitted to the training series' vectors and labels, and asked about the others.
//!
//! All collections have the same settings. Two models learn side by side, as two services on one topic
//! would, of windows that are half and a sixteenth as long as the shortest training series, and a
//! series' vector is made of both: `--windows 2` is the long ones alone. `KEY=VALUE` changes a key of
//! the pipeline: `training.learning_rate=1e-30` leaves the encoders as they were drawn at random.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use contrastream::config::{self, Pipeline};
use contrastream::keys::Keys;
use contrastream::learner::{KeyState, Learner};
use contrastream::source::{Event, FileSource, Payload, Source};
use contrastream::trajectory::{Gathered, Pool};
use contrastream::window::{Segmenter, Segments, WindowShape};

/// Accuracies that Yue et al. (2022, "TS2Vec: Towards Universal Representation of Time Series")
/// published, with a support vector machine on embeddings of length 320.
const PUBLISHED: [(&str, f64); 6] = [
    ("GunPoint", 0.980),
    ("ArrowHead", 0.857),
    ("ItalyPowerDemand", 0.925),
    ("OSULeaf", 0.851),
    ("BasicMotions", 0.975),
    ("JapaneseVowels", 0.984),
];

/// How many windows of each model the shortest series is as long as.
const WINDOWS: [usize; 2] = [2, 16];
/// Windows that overlap with the next by all but this part of them.
const STRIDES: usize = 8;
/// Samples of a window, at least.
const SHORTEST_WINDOW: usize = 4;

fn main() -> anyhow::Result<()> {
    let usage =
        "usage: probe FOLDER [--passes N] [--only NAME,NAME] [--windows PART,PART] [KEY=VALUE]…";
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut passes, mut only, mut overrides) = (None, 1, None, Vec::new());
    let mut parts = WINDOWS.to_vec();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--passes" => passes = arguments.next().context(usage)?.parse()?,
            "--only" => only = Some(arguments.next().context(usage)?),
            "--windows" => {
                let list = arguments.next().context(usage)?;
                parts = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            _ if argument.contains('=') => overrides.push(argument),
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let folder = folder.context(usage)?;
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|o| o == name));
    let mut collections: Vec<(String, Option<f64>)> =
        PUBLISHED.iter().map(|(name, accuracy)| ((*name).to_owned(), Some(*accuracy))).collect();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if collections.iter().all(|(known, _)| *known != name) {
            collections.push((name, None));
        }
    }
    collections[PUBLISHED.len()..].sort_by(|one, other| one.0.cmp(&other.0));

    println!(
        "{:<22} {:>8} {:>9} {:>6} {:>8} {:>6} {:>7} {:>6} {:>6}",
        "COLLECTION",
        "ACCURACY",
        "PUBLISHED",
        "WINDOW",
        "SEGMENTS",
        "STEPS",
        "STEPS/S",
        "LOSS",
        "RANK"
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (name, published) in collections.iter().filter(|(name, _)| wanted(name)) {
        let files = ["train", "test"].map(|part| folder.join(name).join(format!("{part}.csv")));
        if !files.iter().all(|file| file.exists()) {
            continue;
        }
        let [train, test] = files.map(|file| Split::read(&file));
        let (train, test) = (train?, test?);
        let (mut of_train, mut of_test, mut models) = (Vec::new(), Vec::new(), Vec::new());
        for part in &parts {
            let pipeline = pipeline(&train, *part, &overrides)?;
            let (learner, seconds) = learn(&pipeline, &train, passes)?;
            of_train.push(vectors(&pipeline, &learner, &train)?);
            of_test.push(vectors(&pipeline, &learner, &test)?);
            let (loss, rank) =
                learner.last_step().map_or((0.0, 0.0), |step| (step.loss, step.health.rank));
            models.push(format!(
                "{:>6} {:>8} {:>6} {:>7.0} {loss:>6.3} {rank:>6.1}",
                pipeline.windows.length_samples(),
                learner.seen(),
                learner.version(),
                learner.version() as f64 / seconds,
            ));
        }
        let (of_train, of_test) = (Vectors::beside(&of_train), Vectors::beside(&of_test));
        let accuracy = Ridge::fit(&of_train).accuracy(&of_test);
        let published_too = published.map_or(String::new(), |accuracy| format!("{accuracy:.3}"));
        println!("{name:<22} {accuracy:>8.3} {published_too:>9} {}", models[0]);
        for model in &models[1..] {
            println!("{:<41} {model}", "");
        }
        if let Some(published) = published {
            ours.push(accuracy);
            theirs.push(*published);
        }
    }
    ensure!(!ours.is_empty(), "{}: no folder such as GunPoint", folder.display());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    println!("{:<22} {:>8.3} {:>9.3}", "mean of published", mean(&ours), mean(&theirs));
    Ok(())
}

/// One file of labelled series.
struct Split {
    path: PathBuf,
    channels: Vec<String>,
    /// By series.
    labels: BTreeMap<String, String>,
    /// Samples of the shortest series.
    shortest: usize,
}

impl Split {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut reader =
            csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
        let channels = reader.headers()?.iter().skip(3).map(str::to_owned).collect();
        let (mut labels, mut lengths) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
        for row in reader.records() {
            let row = row?;
            labels.insert(row[0].to_owned(), row[1].to_owned());
            *lengths.entry(row[0].to_owned()).or_default() += 1;
        }
        let shortest = lengths.into_values().min();
        let shortest = shortest.with_context(|| format!("{}: no series", path.display()))?;
        Ok(Self { path: path.to_owned(), channels, labels, shortest })
    }
}

/// The one pipeline file, but for channels and the length of windows: the shortest series is as long as
/// `part` of them.
fn pipeline(train: &Split, part: usize, overrides: &[String]) -> anyhow::Result<Pipeline> {
    let length = (train.shortest / part.max(1)).max(SHORTEST_WINDOW);
    let stride = (length / STRIDES).max(1);
    let text = format!(
        "name = 'probe'
        [source]
        kind = 'file'
        path = '{}'
        [records]
        key = 'series'
        time = 'time'
        channels = {:?}
        [windows]
        length = {length}
        stride = {stride}
        lateness = '0s'
        [model]
        standardise = 'all'
        blocks = 7
        pool = 'every'
        embedding = 320
        queue = 2048
        [training]
        batch = 64
        every = 4
        learning_rate = 1e-4
        [sink.parquet]
        path = 'unused'",
        train.path.display(),
        train.channels,
    );
    Ok(Pipeline::from_toml(&text, "the probe's pipeline", overrides)?)
}

/// Streams the series `passes` times, the keys new at each, and learns; returns the seconds that
/// learning took.
fn learn(pipeline: &Pipeline, train: &Split, passes: usize) -> anyhow::Result<(Learner, f64)> {
    let (mut learner, mut learning) = (Learner::new(pipeline), Duration::ZERO);
    for _ in 0..passes {
        let mut keys: Keys<KeyState> = Keys::new(usize::MAX, None);
        stream(pipeline, train, |segments| {
            let mut start = 0;
            while start < segments.len() {
                let end = (start + learner.until_step()).min(segments.len());
                let embedded = learner.embed(&mut keys, segments, start..end);
                let began = Instant::now();
                learner.learn(&mut keys, &embedded, None);
                learning += began.elapsed();
                start = end;
            }
        })?;
    }
    Ok((learner, learning.as_secs_f64()))
}

/// A vector per series, and its label.
struct Vectors {
    /// `[series, width]`.
    values: Vec<f64>,
    width: usize,
    labels: Vec<String>,
}

impl Vectors {
    /// One vector per series, made of those of several models.
    fn beside(models: &[Self]) -> Self {
        let series = models[0].labels.len();
        let of_series = |at: usize| models.iter().flat_map(move |m| row(&m.values, at, m.width));
        Self {
            values: (0..series).flat_map(of_series).copied().collect(),
            width: models.iter().map(|model| model.width).sum(),
            labels: models[0].labels.clone(),
        }
    }
}

/// Embeds all series with the model as it is. A series shorter than a window is all zeros.
fn vectors(pipeline: &Pipeline, learner: &Learner, split: &Split) -> anyhow::Result<Vectors> {
    let (pool, embedding) = (Pool::Extremes, pipeline.model.embedding);
    let of = |series: &String| (series.clone(), Gathered::new(pool, embedding));
    let mut gathered: BTreeMap<String, Gathered> = split.labels.keys().map(of).collect();
    let mut keys: Keys<KeyState> = Keys::new(usize::MAX, None);
    stream(pipeline, split, |segments| {
        if segments.is_empty() {
            return;
        }
        let embedded = learner.embed(&mut keys, segments, 0..segments.len());
        let rows = embedded.embeddings.chunks_exact(embedding);
        for (meta, row) in segments.meta.iter().zip(rows) {
            if let Some(gathered) = gathered.get_mut(&*meta.key) {
                gathered.add(row);
            }
        }
    })?;
    let pooled = gathered.values().flat_map(Gathered::pooled);
    Ok(Vectors {
        values: pooled.map(f64::from).collect(),
        width: pool.parts() * embedding,
        labels: split.labels.values().cloned().collect(),
    })
}

/// Hands over the segments of a file, in the order in which they are completed.
fn stream(
    pipeline: &Pipeline,
    split: &Split,
    mut take: impl FnMut(&Segments),
) -> anyhow::Result<()> {
    let file = config::FileSource::new(split.path.clone());
    let mut source =
        FileSource::open(&file, &pipeline.records, &pipeline.encoding(), &BTreeMap::new())?;
    let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
    let mut segmenter = None;
    loop {
        match source.poll(Duration::ZERO)? {
            Event::Batch(batch) => {
                let Payload::Decoded(decoded) = batch.payload else {
                    bail!("{}: not decoded", split.path.display());
                };
                if let Some(letter) = decoded.dead_letters.first() {
                    bail!("{} at {}: {}", split.path.display(), letter.offset, letter.reason);
                }
                let segmenter = segmenter
                    .get_or_insert_with(|| Segmenter::new(batch.lane, shape.clone(), usize::MAX));
                take(&segmenter.push(&decoded.records)?);
            }
            Event::End => break,
            Event::Assigned(_) | Event::Revoked(_) | Event::Lost(_) | Event::Idle => {}
        }
    }
    if let Some(segmenter) = &mut segmenter {
        take(&segmenter.advance(i64::MAX)?);
    }
    Ok(())
}

/// Ridge regression from vectors to labels, one class against all others, in its dual form: there are
/// fewer series than dimensions.
struct Ridge {
    /// Of each dimension: its mean, and what it is multiplied by.
    scales: Vec<(f64, f64)>,
    /// Standardised, `[series, width]`.
    vectors: Vec<f64>,
    classes: Vec<String>,
    /// Share of each class, and of each series in each class's score: `[series, classes]`.
    shares: Vec<f64>,
    weights: Vec<f64>,
}

impl Ridge {
    /// The penalty is the one of 10^-3 to 10^2 that errs least where each series is left out in turn
    /// (Allen 1974): with `G = K + penalty I`, by `(G⁻¹ y)ᵢ / (G⁻¹)ᵢᵢ`.
    fn fit(train: &Vectors) -> Self {
        let (rows, width) = (train.labels.len(), train.width);
        let scales: Vec<(f64, f64)> = (0..width)
            .map(|column| {
                let values = || train.values.iter().skip(column).step_by(width);
                let mean = values().sum::<f64>() / rows as f64;
                let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
                // Divided by the width, so that a penalty means the same for every width.
                let usable = variance > 1e-12;
                (mean, if usable { (variance * width as f64).sqrt().recip() } else { 0.0 })
            })
            .collect();
        let vectors = standardise(&train.values, &scales);
        let mut classes = train.labels.clone();
        classes.sort();
        classes.dedup();
        let is =
            |row: usize, class: usize| if train.labels[row] == classes[class] { 1.0 } else { 0.0 };
        let shares: Vec<f64> = (0..classes.len())
            .map(|class| (0..rows).map(|row| is(row, class)).sum::<f64>() / rows as f64)
            .collect();
        let kernel: Vec<f64> = (0..rows * rows)
            .map(|at| dot(row(&vectors, at / rows, width), row(&vectors, at % rows, width)))
            .collect();
        let candidates = (-6..=4).map(|half| 10.0_f64.powf(0.5 * f64::from(half))).map(|penalty| {
            let mut penalised = kernel.clone();
            penalised.iter_mut().step_by(rows + 1).for_each(|value| *value += penalty);
            let inverse = inverse(penalised, rows);
            let mut error = 0.0;
            let mut weights = Vec::with_capacity(rows * classes.len());
            for at in 0..rows {
                for (class, share) in shares.iter().enumerate() {
                    let inverse = row(&inverse, at, rows);
                    let weight: f64 =
                        (0..rows).map(|other| inverse[other] * (is(other, class) - share)).sum();
                    error += (weight / inverse[at]).powi(2);
                    weights.push(weight);
                }
            }
            (error, weights)
        });
        let best = candidates.min_by(|one, other| one.0.total_cmp(&other.0));
        let weights = best.map(|(_, weights)| weights).unwrap_or_default();
        Self { scales, vectors, classes, shares, weights }
    }

    /// Share of the series whose label it says.
    fn accuracy(&self, test: &Vectors) -> f64 {
        let (count, width) = (self.classes.len(), test.width);
        let values = standardise(&test.values, &self.scales);
        let right = values.chunks_exact(width).zip(&test.labels).filter(|(vector, label)| {
            let mut scores = self.shares.clone();
            let likeness = self.vectors.chunks_exact(width).map(|known| dot(known, vector));
            for (likeness, weights) in likeness.zip(self.weights.chunks_exact(count)) {
                scores.iter_mut().zip(weights).for_each(|(score, w)| *score += likeness * w);
            }
            let said = (0..count).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            said.is_some_and(|class| self.classes[class] == **label)
        });
        right.count() as f64 / test.labels.len() as f64
    }
}

fn standardise(values: &[f64], scales: &[(f64, f64)]) -> Vec<f64> {
    let scaled = values.chunks_exact(scales.len()).flat_map(|row| row.iter().zip(scales));
    scaled.map(|(value, (mean, scale))| (value - mean) * scale).collect()
}

fn row(values: &[f64], at: usize, width: usize) -> &[f64] {
    &values[at * width..(at + 1) * width]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The inverse of a symmetric, positive definite matrix `[rows, rows]`, by Gauss and Jordan: such a
/// matrix needs no pivots.
fn inverse(mut matrix: Vec<f64>, rows: usize) -> Vec<f64> {
    for pivot in 0..rows {
        let scale = matrix[pivot * rows + pivot].recip();
        matrix[pivot * rows + pivot] = 1.0;
        matrix[pivot * rows..(pivot + 1) * rows].iter_mut().for_each(|value| *value *= scale);
        let line = row(&matrix, pivot, rows).to_vec();
        for (at, other) in matrix.chunks_exact_mut(rows).enumerate() {
            if at == pivot {
                continue;
            }
            let share = std::mem::take(&mut other[pivot]);
            other.iter_mut().zip(&line).for_each(|(value, line)| *value -= share * line);
        }
    }
    matrix
}
