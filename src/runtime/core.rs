//! Learner and scorer together: segments in, results out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, Part, SavedKeys, Store};
use crate::config;
use crate::keys::{Keys, State};
use crate::learner::{self, Learner, Trainer};
use crate::score::{self, Label, Scorer};
use crate::sink::{ModelVersion, Outputs};
use crate::source::Lane;
use crate::trajectory::{self, Rules, Trajectory};
use crate::window::Segments;

/// What one thread owns: the model and what it calls normal, and what both keep of each key.
#[derive(Clone, Debug)]
pub struct Core {
    learner: Learner,
    scorer: Scorer,
    lanes: BTreeMap<Lane, Keys<KeyState>>,
    trajectories: Rules,
    /// Next offset by partition of the topic of labels.
    labels_read: BTreeMap<i32, i64>,
    /// Per lane, the latest window's end of all its keys, microseconds since the epoch.
    clocks: BTreeMap<Lane, i64>,
    /// Trajectories that have ended and were not taken yet.
    ended: Vec<Trajectory>,
    /// Keys in memory over all lanes.
    max_keys: usize,
    store: Option<Store>,
}

/// What [`Core::save`] saved.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedCore {
    /// Model and calibration.
    pub core: Vec<u8>,
    /// Per lane, what is kept of its keys.
    pub keys: Vec<(Lane, SavedKeys)>,
}

/// What was learned from the labels of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenLabels {
    /// Next offset of each partition of their topic.
    pub read: BTreeMap<i32, i64>,
    /// Segments remembered as examples of anomalies, and of what is normal.
    pub anomalies: usize,
    pub normal: usize,
}

/// What learner and scorer keep per key, and its trajectories that have not ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct KeyState {
    learner: learner::KeyState,
    scorer: score::KeyState,
    trajectories: trajectory::Open,
}

impl State for KeyState {
    fn is_open(&self) -> bool {
        self.trajectories.is_open()
    }

    fn leave_model(&mut self) {
        self.learner.leave_model();
        self.scorer.leave_model();
        self.trajectories.leave_model();
    }
}

impl AsMut<learner::KeyState> for KeyState {
    fn as_mut(&mut self) -> &mut learner::KeyState {
        &mut self.learner
    }
}

impl AsMut<score::KeyState> for KeyState {
    fn as_mut(&mut self) -> &mut score::KeyState {
        &mut self.scorer
    }
}

/// Segments whose keys are brought back at once.
const FETCHED: usize = 1024;

/// Time that a call of [`Core::process`] took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Embedding and scoring.
    pub scoring: Duration,
    /// Learning, with what a trainer needed for a step that it finished meanwhile.
    pub learning: Duration,
}

impl Core {
    /// An untrained one.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        Self::from_parts(Learner::new(pipeline), Scorer::new(pipeline), pipeline)
    }

    /// From the bytes of [`Core::save`], to go on under `pipeline`, without lanes.
    ///
    /// # Errors
    /// If the bytes are not a core, or its model is not the one that `pipeline` describes.
    pub fn load(bytes: &[u8], pipeline: &config::Pipeline) -> Result<Self, CheckpointError> {
        let (learner, scorer, labels_read): (Learner, Scorer, _) =
            postcard::from_bytes(bytes).map_err(|error| failed(error.to_string()))?;
        let learner = learner.resume(pipeline).map_err(|error| failed(error.to_string()))?;
        let core = Self::from_parts(learner, scorer.resume(pipeline), pipeline);
        Ok(Self { labels_read, ..core })
    }

    /// The model among the bytes of [`Core::save`] and what was learned from labels, to be looked at:
    /// without the pipeline that it was made for it cannot go on.
    ///
    /// # Errors
    /// If the bytes are not a core.
    pub fn look_at(bytes: &[u8]) -> Result<(Learner, TakenLabels), CheckpointError> {
        let (learner, scorer, read): (Learner, Scorer, _) =
            postcard::from_bytes(bytes).map_err(|error| failed(error.to_string()))?;
        let (anomalies, normal) = scorer.examples();
        Ok((learner, TakenLabels { read, anomalies, normal }))
    }

    fn from_parts(learner: Learner, scorer: Scorer, pipeline: &config::Pipeline) -> Self {
        let max_keys = pipeline.windows.max_keys;
        let trajectories = Rules::new(pipeline);
        let (lanes, clocks, ended) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self {
            learner,
            scorer,
            lanes,
            trajectories,
            labels_read: BTreeMap::new(),
            clocks,
            ended,
            max_keys,
            store: None,
        }
    }

    /// Lets keys beyond `windows.max_keys` wait in `store`, where they would be dropped otherwise.
    pub fn with_store(self, store: Option<Store>) -> Self {
        Self { store, ..self }
    }

    /// Adds what changed since the last time to `part`; returns all that [`Core::load`] and
    /// [`Core::open_lane`] need to go on bit for bit.
    ///
    /// # Errors
    /// If it cannot be turned into bytes, or the store fails.
    pub fn save(&mut self, part: &Part) -> Result<SavedCore, CheckpointError> {
        let Self { learner, scorer, labels_read, lanes, .. } = self;
        let core = postcard::to_stdvec(&(learner, scorer, labels_read))
            .map_err(|error| failed(error.to_string()))?;
        let keys = lanes.iter_mut().map(|(lane, keys)| Ok((lane.clone(), keys.save(part)?)));
        Ok(SavedCore { core, keys: keys.collect::<Result<_, CheckpointError>>()? })
    }

    /// Takes a lane over, with what was `saved` of its keys. `same_model` says that it was saved
    /// with the model that this one goes on from: else, what only makes sense with another model
    /// is left behind, and windows and calibration alone are gone on with.
    ///
    /// # Errors
    /// If what was saved is not there or does not verify, or the store fails.
    pub fn open_lane(
        &mut self,
        lane: Lane,
        saved: Option<&SavedKeys>,
        same_model: bool,
    ) -> Result<(), CheckpointError> {
        let share = self.share(self.lanes.len() + 1);
        let keys = match (saved, &self.store) {
            (Some(saved), Some(store)) => Keys::load(saved, share, store, !same_model)?,
            (_, store) => Keys::new(share, store.clone()),
        };
        // The key that was seen last has seen the clock as it is.
        let clock = keys.newest().map_or(i64::MIN, |state: &KeyState| state.trajectories.clock());
        self.clocks.insert(lane.clone(), clock);
        self.lanes.insert(lane, keys);
        self.share_out()
    }

    /// Lets a lane go, with all that is kept of its keys.
    ///
    /// # Errors
    /// If the store fails.
    pub fn close_lane(&mut self, lane: &Lane) -> Result<(), CheckpointError> {
        self.lanes.remove(lane);
        self.clocks.remove(lane);
        self.share_out()
    }

    /// Gives each lane as many keys in memory as any other.
    fn share_out(&mut self) -> Result<(), CheckpointError> {
        let share = self.share(self.lanes.len());
        for keys in self.lanes.values_mut() {
            keys.limit(share);
            keys.shrink(|_| {})?;
        }
        Ok(())
    }

    fn share(&self, lanes: usize) -> usize {
        self.max_keys / lanes.max(1)
    }

    /// The model.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Takes in what somebody said of segments that were scored; returns how many of them are still
    /// remembered.
    pub fn teach(&mut self, label: &Label) -> usize {
        self.scorer.teach(label)
    }

    /// Next offset of each partition of the labels' topic; saved with what was learned from them.
    pub fn labels_read(&mut self) -> &mut BTreeMap<i32, i64> {
        &mut self.labels_read
    }

    /// Goes on with the model that `trainer` has trained meanwhile, if it has; returns how long the step
    /// took.
    pub fn take_from(&mut self, trainer: &mut Trainer) -> Option<Duration> {
        self.learner.take_from(trainer)
    }

    /// Takes one training step now, whatever the schedule says: for benchmarks.
    pub fn train(&mut self) {
        self.learner.step();
    }

    /// Embeds and scores segments of one lane, then learns from them; `deliver` gets the results in
    /// order, in batches that one version of the model made. Training steps are taken where they are
    /// due, or by `trainer`, as far as it has time.
    ///
    /// The results do not depend on how many segments come at once. A lane that was not opened
    /// begins without keys.
    ///
    /// # Errors
    /// If the store fails, or what it holds of a key does not verify.
    pub fn process(
        &mut self,
        segments: &Segments,
        mut trainer: Option<&mut Trainer>,
        mut deliver: impl FnMut(Outputs),
    ) -> Result<Effort, CheckpointError> {
        let mut effort = Effort::default();
        let Some(first) = segments.meta.first() else { return Ok(effort) };
        if !self.lanes.contains_key(&first.lane) {
            self.open_lane(first.lane.clone(), None, true)?;
        }
        let Self { learner, scorer, lanes, trajectories, clocks, ended, .. } = self;
        let clock = clocks.entry(first.lane.clone()).or_insert(i64::MIN);
        let Some(keys) = lanes.get_mut(&first.lane) else { return Ok(effort) };
        let (mut start, mut fetched) = (0, 0);
        while start < segments.len() {
            if start == fetched {
                keys.shrink(|_| {})?;
                fetched = (start + FETCHED).min(segments.len());
                keys.fetch(segments.meta[start..fetched].iter().map(|meta| &*meta.key))?;
            }
            if let Some(trainer) = trainer.as_deref_mut() {
                effort.learning += learner.take_from(trainer).unwrap_or_default();
            }
            let range = start..(start + learner.until_step()).min(fetched);
            start = range.end;
            let began = Instant::now();
            let mut embedded = learner.embed(keys, segments, range.clone());
            let scores = scorer.score(keys, segments, range.clone(), &embedded, learner);
            effort.scoring += began.elapsed();
            let outputs = Outputs {
                segments: segments.meta[range].to_vec(),
                embeddings: std::mem::take(&mut embedded.embeddings),
                scores,
                model_version: ModelVersion { steps: learner.version(), wander: learner.wander() },
            };
            gather(trajectories, (keys, clock), &outputs, &embedded.slots, ended)?;
            // Before a training step, which may take many times as long as scoring did.
            deliver(outputs);
            let began = Instant::now();
            learner.learn(keys, &embedded, trainer.as_deref_mut());
            effort.learning += began.elapsed();
        }
        keys.shrink(|_| {})?;
        Ok(effort)
    }

    /// Ends all trajectories, for nothing more comes of any lane.
    ///
    /// # Errors
    /// If the store fails, or what it holds of a key does not verify.
    pub fn finish(&mut self) -> Result<(), CheckpointError> {
        for keys in self.lanes.values_mut() {
            let first = self.ended.len();
            keys.visit_open(|key, state| state.trajectories.finish(key, &mut self.ended))?;
            in_order(&mut self.ended[first..]);
        }
        Ok(())
    }

    /// The trajectories that have ended since this was last asked.
    pub fn take_trajectories(&mut self) -> Vec<Trajectory> {
        std::mem::take(&mut self.ended)
    }
}

/// Adds results of a lane, whose keys' states are at `slots`, to the trajectories of their keys.
fn gather(
    rules: &Rules,
    (keys, clock): (&mut Keys<KeyState>, &mut i64),
    outputs: &Outputs,
    slots: &[usize],
    ended: &mut Vec<Trajectory>,
) -> Result<(), CheckpointError> {
    if rules.kinds.is_empty() {
        return Ok(());
    }
    let width = outputs.embeddings.len() / outputs.segments.len().max(1);
    let rows = outputs.segments.iter().zip(outputs.embeddings.chunks_exact(width.max(1)));
    for (((segment, embedding), score), slot) in rows.zip(&outputs.scores).zip(slots) {
        let before = std::mem::replace(clock, (*clock).max(segment.window_end));
        let (score, model_version) = (Some(score), outputs.model_version.steps);
        let part = trajectory::Part { segment, embedding, model_version, score };
        keys.at(*slot).1.trajectories.add(rules, part, *clock, ended);
        if Rules::is_time_to_look(before, *clock) {
            let first = ended.len();
            keys.visit_open(|key, state| state.trajectories.look(rules, key, *clock, ended))?;
            in_order(&mut ended[first..]);
        }
    }
    Ok(())
}

/// An order that does not depend on which keys were in memory.
fn in_order(ended: &mut [Trajectory]) {
    ended.sort_by(|one, other| (&one.key, one.kind).cmp(&(&other.key, other.kind)));
}

fn failed(reason: String) -> CheckpointError {
    CheckpointError::State { what: "model and calibration".to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::sink::{Score, SegmentMeta};

    const LENGTH: usize = 16;
    const CHANNELS: usize = 2;

    fn pipeline(encoder: &str) -> config::Pipeline {
        let text = format!(
            "name = 'test'\n[source]\nkind = 'generator'\n\
             [records]\nkey = 'machine'\ntime = 'ts'\nchannels = ['a', 'b']\n\
             [windows]\nlength = {LENGTH}\nstride = 4\n\
             [model]\nencoder = '{encoder}'\nhidden = 16\nembedding = 32\nprojection = [32, 16]\n\
             queue = 256\n[training]\nbatch = 32\n[scores]\nwarmup = 20\nfalse_alarms = '1 per minute'"
        );
        toml::from_str(&text).expect("a valid pipeline")
    }

    /// `rounds` segments of each of five machines, in turn; now and then one is wild.
    fn stream(rounds: u64) -> Segments {
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        let mut segments = Segments::default();
        for sequence in 0..rounds {
            for machine in 0..5 {
                let scale = if rng.random_bool(0.03) { 9.0 } else { 1.0 };
                for at in 0..LENGTH * CHANNELS {
                    let wave = (at as f32 * (0.2 + 0.1 * machine as f32)).sin();
                    let missing = rng.random_bool(0.02);
                    let value = scale * (wave + rng.random_range(-0.2..0.2));
                    segments.values.push(if missing { f32::NAN } else { value });
                }
                segments.runs.push(sequence / 70);
                segments.fresh.push(if sequence == 0 { LENGTH } else { 4 });
                segments.meta.push(SegmentMeta {
                    key: format!("machine-{machine}").into(),
                    lane: Lane::new("test", 0),
                    sequence,
                    window_start: sequence as i64 * 4_000_000,
                    window_end: sequence as i64 * 4_000_000 + 15_000_000,
                    first_offset: 0,
                    last_offset: 0,
                });
            }
        }
        segments
    }

    fn part(segments: &Segments, range: std::ops::Range<usize>) -> Segments {
        let size = LENGTH * CHANNELS;
        Segments {
            values: segments.values[range.start * size..range.end * size].to_vec(),
            meta: segments.meta[range.clone()].to_vec(),
            runs: segments.runs[range.clone()].to_vec(),
            fresh: segments.fresh[range].to_vec(),
            templates: Vec::new(),
        }
    }

    /// Per segment: the bits of its embedding, its score and the model's version.
    fn results(core: &mut Core, batches: &[Segments]) -> Vec<(Vec<u32>, Score, ModelVersion)> {
        let mut results = Vec::new();
        for batch in batches {
            core.process(batch, None, |outputs| {
                let embeddings = outputs.embeddings.chunks(32);
                for (embedding, score) in embeddings.zip(&outputs.scores) {
                    let bits = embedding.iter().map(|value| value.to_bits()).collect();
                    results.push((bits, score.clone(), outputs.model_version));
                }
            })
            .expect("no store is needed");
        }
        results
    }

    #[test]
    fn results_do_not_depend_on_how_many_segments_come_at_once() {
        let segments = stream(150);
        for encoder in ["tcn", "mlp"] {
            let pipeline = pipeline(encoder);
            let at_once = results(&mut Core::new(&pipeline), std::slice::from_ref(&segments));
            let one_by_one: Vec<Segments> =
                (0..segments.len()).map(|at| part(&segments, at..at + 1)).collect();
            let mut rng = Pcg64Mcg::seed_from_u64(1);
            let (mut uneven, mut start) = (Vec::new(), 0);
            while start < segments.len() {
                let end = (start + rng.random_range(1..50)).min(segments.len());
                uneven.push(part(&segments, start..end));
                start = end;
            }
            for batches in [one_by_one, uneven] {
                let found = results(&mut Core::new(&pipeline), &batches);
                let first = found.iter().zip(&at_once).position(|(one, other)| one != other);
                assert_eq!(first, None, "{encoder}, {} batches", batches.len());
            }
            assert!(at_once.iter().any(|(_, score, _)| score.alert));
            let (_, _, latest) = at_once.last().expect("a result of each segment");
            assert!(latest.steps > 5 && latest.wander > 0.0, "{latest:?}");
        }
    }

    #[test]
    fn a_lane_that_another_process_takes_over_brings_its_calibration_but_no_model() {
        let pipeline = pipeline("mlp");
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            let config = config::Checkpoint {
                store: Some(folder.path().to_owned().into()),
                ..config::Checkpoint::default()
            };
            Store::open(&config).expect("a store").expect("a folder is named")
        };
        let (store, segments) = (open(), stream(150));
        let (before, after) = (part(&segments, 0..500), part(&segments, 500..750));
        let mut first = Core::new(&pipeline).with_store(Some(store.clone()));
        results(&mut first, std::slice::from_ref(&before));
        let added = Part::new(Checkpoint::new_id());
        let SavedCore { core, keys } = first.save(&added).expect("saved");
        store.save_part(&added).expect("written");
        let [(lane, keys)] = &keys[..] else { panic!("one lane") };
        let expected = results(&mut first, std::slice::from_ref(&after));

        let mut resumed = Core::load(&core, &pipeline).expect("loaded").with_store(Some(open()));
        resumed.open_lane(lane.clone(), Some(keys), true).expect("opened");
        assert_eq!(results(&mut resumed, std::slice::from_ref(&after)), expected);

        let mut other = Core::new(&pipeline).with_store(Some(open()));
        other.open_lane(lane.clone(), Some(keys), false).expect("opened");
        let found = results(&mut other, std::slice::from_ref(&after));
        // Each key's first segment has a predecessor, but not one of this model.
        for ((_, found, _), (_, expected, _)) in found.iter().zip(&expected).take(5) {
            assert_eq!(found.residual, expected.residual);
            assert_eq!((found.warm, expected.warm), (true, true));
            assert_eq!(found.surprise, 0.0);
            assert_ne!(expected.surprise, 0.0);
        }
    }

    #[test]
    fn all_lanes_together_hold_max_keys_in_memory() {
        let mut pipeline = pipeline("mlp");
        pipeline.windows.max_keys = 4;
        let folder = tempfile::tempdir().expect("a folder");
        let config = config::Checkpoint {
            store: Some(folder.path().to_owned().into()),
            ..config::Checkpoint::default()
        };
        let store = Store::open(&config).expect("a store").expect("a folder is named");
        let mut core = Core::new(&pipeline).with_store(Some(store));
        let in_memory =
            |core: &Core| -> Vec<usize> { core.lanes.values().map(Keys::len).collect() };
        let lane = |partition| Lane::new("test", partition);
        for partition in 0..2 {
            core.open_lane(lane(partition), None, true).expect("opened");
            let mut segments = stream(2);
            segments.meta.iter_mut().for_each(|meta| meta.lane = lane(partition));
            results(&mut core, &[segments]);
        }
        assert_eq!(in_memory(&core), [2, 2]);
        core.close_lane(&lane(0)).expect("closed");
        let mut segments = stream(3);
        segments.meta.iter_mut().for_each(|meta| meta.lane = lane(1));
        results(&mut core, &[segments]);
        assert_eq!(in_memory(&core), [4]);
    }

    #[test]
    fn a_machine_that_is_off_at_first_is_scored_like_any_other_once_it_runs() {
        let mut pipeline = pipeline("mlp");
        pipeline.scores.false_alarms = "1 per hour".parse().expect("a rate");
        // Off for longer than it takes to be warm, then running, with one fault.
        const ON: usize = 400;
        const FAULT: usize = 1_500;
        for noise in [0.0, 1e-3] {
            let mut rng = Pcg64Mcg::seed_from_u64(5);
            let samples: Vec<[f32; CHANNELS]> = (0..4 * (FAULT + 100))
                .map(|at| {
                    let size = if at < 4 * ON { noise } else { 1.0 };
                    let wave = (at as f32 * 0.4).sin();
                    let shift = if at / 4 >= FAULT && at / 4 < FAULT + 10 { 8.0 } else { 0.0 };
                    let mut of = |level: f32, shift: f32| {
                        let level = if at < 4 * ON { 0.0 } else { level };
                        level + size * (wave + rng.random_range(-0.3..0.3)) + shift
                    };
                    [of(60.0, shift), of(1_400.0, 0.0)]
                })
                .collect();
            let mut segments = Segments::default();
            for (sequence, start) in (0..samples.len() - LENGTH).step_by(4).enumerate() {
                for channel in 0..CHANNELS {
                    let values = samples[start..start + LENGTH].iter().map(|row| row[channel]);
                    segments.values.extend(values);
                }
                segments.runs.push(0);
                segments.fresh.push(if sequence == 0 { LENGTH } else { 4 });
                segments.meta.push(SegmentMeta {
                    key: "machine".into(),
                    lane: Lane::new("test", 0),
                    sequence: sequence as u64,
                    window_start: start as i64 * 1_000_000,
                    window_end: (start + LENGTH) as i64 * 1_000_000,
                    first_offset: 0,
                    last_offset: 0,
                });
            }
            let scores = results(&mut Core::new(&pipeline), &[segments]);
            let alert = |at: usize| scores[at].1.alert;
            let alerts = |range: std::ops::Range<usize>| range.filter(|at| alert(*at)).count();
            assert!(alerts(FAULT - 3..FAULT + 10) > 5, "{noise}");
            assert!(alerts(ON + 100..FAULT - 3) < 20, "{noise}");
        }
    }
}
