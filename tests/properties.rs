//! What holds of the stages together, whatever the records: decode, window, embed and score, learn.

use contrastream::checkpoint::{Checkpoint, Part, Store};
use contrastream::config::{self, Pipeline};
use contrastream::decode::Decoder;
use contrastream::runtime::{Core, SavedCore};
use contrastream::sink::{ModelVersion, Outputs, Score, SegmentMeta};
use contrastream::source::{Lane, Messages};
use contrastream::window::{Segmenter, Segments, WindowShape};
use proptest::prelude::*;

/// A small model that trains and may alert early.
fn pipeline() -> Pipeline {
    let text = r#"
        name = "test"
        source = { kind = "generator" }
        records = { key = "machine", time = "ts", channels = ["a", "b"] }
        windows = { length = 16, stride = 4, lateness = "2s" }
        pairs = { pool = 64 }
        model = { hidden = 8, embedding = 8, projection = [8], queue = 64 }
        training = { batch = 16, every = 16 }
        scores = { warmup = 20, parts = ["surprise", "distance", "level", "change", "residual",
                                         "texture", "novelty"] }
    "#;
    Pipeline::from_toml(text, "test.toml", &[]).unwrap()
}

/// The stages of one lane.
struct Stages {
    pipeline: Pipeline,
    shape: WindowShape,
    decoder: Decoder,
    segmenter: Segmenter,
    core: Core,
    store: Store,
    _folder: tempfile::TempDir,
}

/// Keys in memory: one fewer than there are, for another to wait in the store.
const MAX_KEYS: usize = 1;

impl Stages {
    fn new() -> Self {
        let mut pipeline = pipeline();
        pipeline.windows.max_keys = MAX_KEYS;
        let folder = tempfile::tempdir().unwrap();
        let config = config::Checkpoint {
            store: Some(folder.path().to_owned().into()),
            ..config::Checkpoint::default()
        };
        let store = Store::open(&config).unwrap().unwrap();
        let shape = WindowShape::new(&pipeline.windows, &pipeline.records);
        Self {
            decoder: Decoder::new(&pipeline.records, &Default::default()).unwrap(),
            segmenter: Segmenter::new(Lane::new("plant", 0), shape.clone(), MAX_KEYS)
                .with_store(Some(store.clone())),
            core: Core::new(&pipeline).with_store(Some(store.clone())),
            shape,
            store,
            _folder: folder,
            pipeline,
        }
    }

    fn push(&mut self, records: &[Record]) -> Results {
        let mut messages = Messages::default();
        for record in records {
            messages.push(record.offset, None, None, record.json().as_bytes(), Vec::new());
        }
        let decoded = self.decoder.decode(self.segmenter.lane(), &messages).unwrap();
        assert_eq!(decoded.dead_letters, []);
        let segments = self.segmenter.push(&decoded.records).unwrap();
        self.process(&segments)
    }

    fn finish(&mut self) -> Results {
        let segments = self.segmenter.advance(i64::MAX).unwrap();
        self.process(&segments)
    }

    fn process(&mut self, segments: &Segments) -> Results {
        let mut results = Results::default();
        let deliver = |outputs: Outputs| {
            results.versions.extend(vec![outputs.model_version; outputs.segments.len()]);
            results.segments.extend(outputs.segments);
            results.embeddings.extend(outputs.embeddings);
            results.scores.extend(outputs.scores);
        };
        self.core.process(segments, None, deliver).unwrap();
        results
    }

    /// What a process does that takes the lane over from a checkpoint.
    fn restart(&mut self) {
        let part = Part::new(Checkpoint::new_id());
        let windows = self.segmenter.save(&part).unwrap();
        let SavedCore { core, keys } = self.core.save(&part).unwrap();
        self.store.save_part(&part).unwrap();
        let lane = self.segmenter.lane().clone();
        self.segmenter =
            Segmenter::load(lane, &self.shape, MAX_KEYS, &windows, &self.store).unwrap();
        self.core = Core::load(&core, &self.pipeline).unwrap().with_store(Some(self.store.clone()));
        for (lane, keys) in keys {
            self.core.open_lane(lane, Some(&keys), true).unwrap();
        }
    }
}

/// What came of some segments, in order.
#[derive(Default)]
struct Results {
    segments: Vec<SegmentMeta>,
    /// `[segments, embedding]`.
    embeddings: Vec<f32>,
    scores: Vec<Score>,
    versions: Vec<ModelVersion>,
}

impl Results {
    fn append(&mut self, other: Self) {
        self.segments.extend(other.segments);
        self.embeddings.extend(other.embeddings);
        self.scores.extend(other.scores);
        self.versions.extend(other.versions);
    }
}

#[derive(Clone, Debug)]
struct Record {
    machine: u8,
    second: i64,
    offset: i64,
    channels: [Option<f32>; 2],
}

impl Record {
    fn json(&self) -> String {
        let [a, b] = self.channels.map(|value| match value {
            Some(value) => value.to_string(),
            None => "null".to_owned(),
        });
        let Self { machine, second, .. } = self;
        format!(r#"{{"machine":"m{machine}","ts":{second},"a":{a},"b":{b}}}"#)
    }
}

/// Records of two machines, a second apart, now and then out of order or after a gap.
fn stream(
    value: impl Strategy<Value = Option<f32>> + Clone,
    count: usize,
) -> impl Strategy<Value = Vec<Record>> {
    let step = prop_oneof![20 => Just(1), 1 => Just(-1), 1 => Just(60)];
    prop::collection::vec((0..2_u8, step, [value.clone(), value]), count).prop_map(|steps| {
        let mut second = 1_700_000_000;
        (0..)
            .zip(steps)
            .map(|(offset, (machine, step, channels))| {
                second += step;
                Record { machine, second, offset, channels }
            })
            .collect()
    })
}

fn usual_value() -> impl Strategy<Value = Option<f32>> + Clone {
    prop_oneof![20 => (-9f32..9.0).prop_map(Some), 1 => Just(None), 1 => Just(Some(1e4))]
}

/// Values as sensors send them that are broken, or mean something else by them.
fn extreme_value() -> impl Strategy<Value = Option<f32>> + Clone {
    let extremes = [0.0, -0.0, 1.0, f32::MAX, f32::MIN, 1e19, -1e30, f32::MIN_POSITIVE, 1e-45];
    prop_oneof![
        8 => Just(Some(0.0)),
        4 => (-9f32..9.0).prop_map(Some),
        2 => prop::sample::select(extremes.to_vec()).prop_map(Some),
        1 => any::<f32>().prop_map(Some),
        1 => Just(None),
    ]
}

fn check(outputs: &Results, dimension: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(outputs.embeddings.len(), outputs.segments.len() * dimension);
    prop_assert_eq!(outputs.scores.len(), outputs.segments.len());
    for embedding in outputs.embeddings.chunks(dimension) {
        let length = embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
        prop_assert!((length - 1.0).abs() < 1e-3, "{embedding:?}");
    }
    for score in &outputs.scores {
        prop_assert!((0.0..=1.0).contains(&score.score), "{score:?}");
        prop_assert!(score.p_value > 0.0 && score.p_value <= 1.0, "{score:?}");
        let parts = [score.surprise, score.distance, score.residual];
        prop_assert!(parts.iter().all(|value| value.is_finite()), "{score:?}");
        if score.alert {
            let total: f32 = score.causes.iter().map(|cause| cause.share).sum();
            prop_assert!((total - 1.0).abs() < 1e-3, "{score:?}");
        }
    }
    Ok(())
}

proptest! {
    // A case is a few hundred records and a model that is trained on them.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_value_of_a_channel_breaks_the_stages(
        extreme in stream(extreme_value(), 400),
        usual in stream(usual_value(), 400),
    ) {
        let mut stages = Stages::new();
        for records in extreme.chunks(50).chain(usual.chunks(50)) {
            let outputs = stages.push(records);
            check(&outputs, 8)?;
        }
        check(&stages.finish(), 8)?;
    }

    #[test]
    fn neither_batches_nor_restarts_change_a_result(
        records in stream(usual_value(), 600),
        batches in prop::collection::vec((1..120_usize, any::<bool>()), 12),
    ) {
        let mut at_once = Stages::new();
        let mut expected = at_once.push(&records);
        expected.append(at_once.finish());

        let mut in_parts = Stages::new();
        let mut found = Results::default();
        let mut rest = records.as_slice();
        for (size, restart) in batches.into_iter().chain([(records.len(), false)]) {
            let (batch, behind) = rest.split_at(size.min(rest.len()));
            found.append(in_parts.push(batch));
            if restart {
                in_parts.restart();
            }
            rest = behind;
        }
        found.append(in_parts.finish());

        prop_assert_eq!(&found.segments, &expected.segments);
        prop_assert_eq!(&found.versions, &expected.versions);
        prop_assert_eq!(&found.embeddings, &expected.embeddings);
        prop_assert_eq!(&found.scores, &expected.scores);
    }
}
