//! The learner's thread: takes the workers' segments, in the source's order, through the [`Core`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use super::core::{Core, SavedCore};
use super::deliver::{Delivery, Epoch};
use super::feed::{Commit, Freight, Ordered};
use super::ingest::Ingested;
use super::{RuntimeError, Summary};
use crate::checkpoint::{Checkpoint, Store};
use crate::config;
use crate::decode::DeadLetter;
use crate::learner::{self, Trainer};
use crate::score::Label;
use crate::sink::Outputs;
use crate::source::{LabelReader, Told};
use crate::telemetry;

/// The learner's side of the service.
pub struct Learn<'a> {
    pipeline: &'a config::Pipeline,
    core: Core,
    store: Option<&'a Store>,
    deliveries: SyncSender<Delivery>,
    /// Opened once it is known how far labels were read.
    labels: Option<LabelReader>,
    /// Batches that wait for the learner.
    backlog: &'a AtomicUsize,
    /// Set when labels were taken, which no record may follow to have a commit asked for.
    taught: &'a AtomicBool,
    /// Where records come no matter how fast this process is, so that training has to give way. A
    /// replay waits instead: what it learns must not depend on the machine's speed.
    trainer: Option<Trainer>,
    summary: Summary,
}

impl<'a> Learn<'a> {
    ///
    /// # Errors
    /// If the trainer cannot be started.
    pub fn new(
        pipeline: &'a config::Pipeline,
        store: Option<&'a Store>,
        deliveries: SyncSender<Delivery>,
        (backlog, taught): (&'a AtomicUsize, &'a AtomicBool),
    ) -> Result<Self, RuntimeError> {
        let live = match &pipeline.source {
            config::Source::Kafka(_) => true,
            config::Source::Generator(generator) => generator.rate > 0.0,
            config::Source::File(_) => false,
        };
        let config::Training { enabled, max_share, .. } = pipeline.training;
        let trainer = (live && enabled && max_share < 1.0).then(|| Trainer::start(max_share));
        let core = Core::new(pipeline).with_store(store.cloned());
        Ok(Self {
            pipeline,
            core,
            store,
            deliveries,
            labels: None,
            backlog,
            taught,
            trainer: trainer.transpose().map_err(RuntimeError::Thread)?,
            summary: Summary::default(),
        })
    }

    /// Works until nothing can come any more, with this thread as one of those that share a batch.
    pub fn run(mut self, ordered: Receiver<Ordered>) -> Result<Summary, RuntimeError> {
        let _pool = learner::share_among(learner::cores()).map_err(RuntimeError::Thread)?;
        for work in ordered {
            match work {
                Ordered::Work(answer, freight) => {
                    let freight = Arc::new(freight);
                    let waiting = self.backlog.fetch_sub(1, Ordering::Relaxed) - 1;
                    metrics::gauge!(telemetry::LEARNER_BACKLOG).set(waiting as f64);
                    let ingested = answer.recv().map_err(|_| RuntimeError::Ended)??;
                    self.take_labels(&freight)?;
                    self.process(ingested, &freight)?;
                    // A lane that is finished answers more than once.
                    for ingested in answer {
                        self.process(ingested?, &freight)?;
                    }
                }
                Ordered::Labels(freight) => self.take_labels(&Arc::new(freight))?,
                Ordered::Restore(core) => {
                    if let Some(trainer) = &mut self.trainer {
                        trainer.forget();
                    }
                    let store = self.store.cloned();
                    self.core = Core::load(&core, self.pipeline)?.with_store(store);
                    self.summary.steps = self.core.learner().version();
                    self.labels = None;
                }
                Ordered::Open { lane, keys, same_model } => {
                    self.core.open_lane(lane, keys.as_ref(), same_model)?;
                }
                Ordered::Close(lane) => self.core.close_lane(&lane)?,
                Ordered::Recover(staged) => {
                    let staged = Delivery::Recover(staged);
                    self.deliveries.send(staged).map_err(|_| RuntimeError::Ended)?;
                }
                Ordered::Finish => {
                    self.core.finish()?;
                    self.deliver_trajectories()?;
                }
                Ordered::Commit(commit) => self.commit(commit)?,
            }
        }
        Ok(self.summary)
    }

    fn process(&mut self, ingested: Ingested, freight: &Arc<Freight>) -> Result<(), RuntimeError> {
        record_ingested(&ingested);
        self.summary.records += ingested.records;
        self.summary.late_records += ingested.windows.late;
        self.summary.dead_letters += ingested.dead_letters.len() as u64;
        if !ingested.dead_letters.is_empty() {
            let letters = Delivery::DeadLetters(ingested.dead_letters, Arc::clone(freight));
            self.deliveries.send(letters).map_err(|_| RuntimeError::Ended)?;
        }
        let Self { core, deliveries, summary, trainer, .. } = self;
        let mut delivered = Ok(());
        let skipped = core.learner().skipped_steps();
        let rollbacks = core.learner().rollbacks();
        let effort = core.process(&ingested.segments, trainer.as_mut(), |outputs| {
            summary.count(&outputs);
            record_outputs(&outputs);
            if delivered.is_ok() {
                let outputs = Delivery::Outputs(outputs);
                delivered = deliveries.send(outputs).map_err(|_| RuntimeError::Ended);
            }
        })?;
        delivered?;
        self.deliver_trajectories()?;
        if !ingested.segments.is_empty() {
            let (scoring, learning) = (effort.scoring.as_secs_f64(), effort.learning.as_secs_f64());
            metrics::histogram!(telemetry::LEARNER_SCORING_SECONDS).record(scoring);
            metrics::histogram!(telemetry::LEARNER_STEP_SECONDS).record(learning);
        }
        let learner = self.core.learner();
        metrics::counter!(telemetry::LEARNER_SKIPPED_STEPS)
            .increment(learner.skipped_steps() - skipped);
        metrics::counter!(telemetry::LEARNER_ROLLBACKS).increment(learner.rollbacks() - rollbacks);
        self.record_steps();
        match ingested.appended_ms {
            Some(appended) => {
                self.deliveries.send(Delivery::BatchEnd(appended)).map_err(|_| RuntimeError::Ended)
            }
            None => Ok(()),
        }
    }

    /// Learns from the labels that came since the last time: what is scored from here on knows them.
    fn take_labels(&mut self, freight: &Arc<Freight>) -> Result<(), RuntimeError> {
        let (Some(feedback), config::Source::Kafka(source)) =
            (&self.pipeline.feedback, &self.pipeline.source)
        else {
            return Ok(());
        };
        let labels = match &mut self.labels {
            Some(labels) => labels,
            None => {
                let read = self.core.labels_read();
                self.labels.insert(LabelReader::open(source, &feedback.topic, read)?)
            }
        };
        let mut letters = Vec::new();
        for Told { partition, offset, label } in labels.poll()? {
            match label {
                Ok(label) => {
                    let segments = self.core.teach(&label);
                    metrics::counter!(telemetry::FEEDBACK_LABELS).increment(1);
                    metrics::counter!(telemetry::FEEDBACK_SEGMENTS).increment(segments as u64);
                    if segments == 0 {
                        let Label { key, from, to, .. } = &label;
                        tracing::debug!(%key, from, to, "label of segments not remembered");
                        metrics::counter!(telemetry::FEEDBACK_UNMATCHED).increment(1);
                    }
                }
                // Who writes labels may know the keys behind the pseudonyms.
                Err(letter) if self.pipeline.records.key_hash.is_some() => {
                    letters.push(DeadLetter {
                        key: None,
                        payload: Vec::new(),
                        reason: "not a label".to_owned(),
                        ..letter
                    })
                }
                Err(letter) => letters.push(letter),
            }
            self.core.labels_read().insert(partition, offset + 1);
            self.taught.store(true, Ordering::Relaxed);
        }
        if letters.is_empty() {
            return Ok(());
        }
        self.summary.dead_letters += letters.len() as u64;
        metrics::counter!(telemetry::DECODE_FAILURES).increment(letters.len() as u64);
        let letters = Delivery::DeadLetters(letters, Arc::clone(freight));
        self.deliveries.send(letters).map_err(|_| RuntimeError::Ended)
    }

    fn deliver_trajectories(&mut self) -> Result<(), RuntimeError> {
        let ended = self.core.take_trajectories();
        if ended.is_empty() {
            return Ok(());
        }
        self.deliveries.send(Delivery::Trajectories(ended)).map_err(|_| RuntimeError::Ended)
    }

    fn commit(&mut self, commit: Commit) -> Result<(), RuntimeError> {
        if let Some(took) = self.trainer.as_mut().and_then(|trainer| self.core.take_from(trainer)) {
            metrics::histogram!(telemetry::LEARNER_STEP_SECONDS).record(took.as_secs_f64());
            self.record_steps();
        }
        let checkpoint = match commit.part {
            None => None,
            Some(part) => {
                let mut windows = Vec::new();
                for saved in commit.windows {
                    windows.extend(saved.recv().map_err(|_| RuntimeError::Ended)??);
                }
                let SavedCore { core, keys } = self.core.save(&part)?;
                let checkpoint = Checkpoint {
                    id: part.id().to_owned(),
                    pipeline: self.pipeline.name.clone(),
                    positions: commit.positions.clone(),
                    windows,
                    keys,
                    staged: Vec::new(),
                    core,
                };
                Some((checkpoint, part))
            }
        };
        let epoch = Epoch { positions: commit.positions, checkpoint, done: commit.done };
        self.deliveries.send(Delivery::Commit(epoch)).map_err(|_| RuntimeError::Ended)
    }

    /// Notes what the training steps since the last time have made of the model.
    fn record_steps(&mut self) {
        let learner = self.core.learner();
        let taken = learner.version().saturating_sub(self.summary.steps);
        if taken == 0 {
            return;
        }
        self.summary.steps = learner.version();
        metrics::counter!(telemetry::LEARNER_STEPS).increment(taken);
        let (entries, age) = learner.queue();
        metrics::gauge!(telemetry::LEARNER_QUEUE).set(entries as f64);
        metrics::gauge!(telemetry::LEARNER_QUEUE_AGE).set(age);
        metrics::gauge!(telemetry::LEARNER_TEMPERATURE).set(f64::from(1.0 / learner.scale()));
        metrics::gauge!(telemetry::LEARNER_WANDER).set(f64::from(learner.wander()));
        if let Some(step) = learner.last_step() {
            metrics::gauge!(telemetry::LEARNER_LOSS).set(f64::from(step.loss));
            metrics::gauge!(telemetry::LEARNER_ACCURACY).set(f64::from(step.accuracy));
            metrics::gauge!(telemetry::LEARNER_GRADIENT).set(f64::from(step.gradient_norm));
            metrics::gauge!(telemetry::LEARNER_ALIGNMENT).set(f64::from(step.alignment));
            metrics::gauge!(telemetry::LEARNER_UNIFORMITY).set(f64::from(step.health.uniformity));
            metrics::gauge!(telemetry::LEARNER_RANK).set(f64::from(step.health.rank));
        }
    }
}

fn record_ingested(ingested: &Ingested) {
    let failures = ingested.dead_letters.len() as u64;
    metrics::counter!(telemetry::SOURCE_RECORDS).increment(ingested.records);
    metrics::counter!(telemetry::SOURCE_BYTES).increment(ingested.bytes);
    metrics::counter!(telemetry::DECODE_FAILURES).increment(failures);
    metrics::counter!(telemetry::DECODE_SKIPPED).increment(ingested.skipped);
    metrics::counter!(telemetry::DECODE_OUT_OF_RANGE).increment(ingested.out_of_range);
    metrics::counter!(telemetry::WINDOW_LATE).increment(ingested.windows.late);
    metrics::counter!(telemetry::WINDOW_GAPS).increment(ingested.windows.gaps);
    metrics::counter!(telemetry::WINDOW_CLOCK_RESETS).increment(ingested.windows.clock_resets);
    metrics::counter!(telemetry::WINDOW_STUCK).increment(ingested.windows.stuck);
    metrics::counter!(telemetry::WINDOW_EVICTED).increment(ingested.windows.evicted);
    metrics::counter!(telemetry::WINDOW_SEGMENTS).increment(ingested.segments.len() as u64);
    if let Some((lane, watermark)) = &ingested.watermark {
        let lag = chrono::Utc::now().timestamp_micros().saturating_sub(*watermark) as f64 / 1e6;
        let lane = lane.to_string();
        metrics::gauge!(telemetry::WINDOW_LAG, "lane" => lane.clone()).set(lag);
        metrics::gauge!(telemetry::WINDOW_KEYS, "lane" => lane).set(ingested.keys as f64);
    }
}

fn record_outputs(outputs: &Outputs) {
    for (score, segment) in outputs.scores.iter().zip(&outputs.segments) {
        metrics::histogram!(telemetry::SCORE_VALUES).record(score.score);
        if score.begins_alert(segment) {
            metrics::counter!(telemetry::SCORE_ALERTS).increment(1);
        }
    }
}
