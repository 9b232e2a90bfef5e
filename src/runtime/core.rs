//! Learner and scorer together: segments in, results out.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointError;
use crate::config;
use crate::learner::Learner;
use crate::score::Scorer;
use crate::sink::Outputs;
use crate::window::Segments;

/// What one thread owns: the model and what it calls normal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Core {
    learner: Learner,
    scorer: Scorer,
}

/// Time spent since the last [`Core::process`] began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Embedding and scoring.
    pub scoring: Duration,
    /// Learning.
    pub learning: Duration,
}

impl Core {
    /// An untrained one.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        Self { learner: Learner::new(pipeline), scorer: Scorer::new(pipeline) }
    }

    /// From the bytes of [`Core::save`], to go on under `pipeline`.
    ///
    /// # Errors
    /// If the bytes are not a core, or its model is not the one that `pipeline` describes.
    pub fn load(bytes: &[u8], pipeline: &config::Pipeline) -> Result<Self, CheckpointError> {
        let failed = |reason: String| CheckpointError::State {
            what: "model and calibration".to_owned(),
            reason,
        };
        let Self { learner, scorer } =
            postcard::from_bytes(bytes).map_err(|error| failed(error.to_string()))?;
        let learner = learner.resume(pipeline).map_err(|error| failed(error.to_string()))?;
        Ok(Self { learner, scorer: scorer.resume(pipeline) })
    }

    /// All that [`Core::load`] needs to go on bit for bit.
    ///
    /// # Errors
    /// If it cannot be turned into bytes.
    pub fn save(&self) -> Result<Vec<u8>, CheckpointError> {
        postcard::to_stdvec(self).map_err(|error| CheckpointError::State {
            what: "model and calibration".to_owned(),
            reason: error.to_string(),
        })
    }

    /// The model.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Takes one training step now, whatever the schedule says: for benchmarks.
    pub fn train(&mut self) {
        self.learner.step();
    }

    /// Embeds and scores segments, then learns from them; `deliver` gets the results in order, in
    /// batches that one version of the model made. `may_train` is asked before each training step.
    pub fn process(
        &mut self,
        segments: &Segments,
        mut may_train: impl FnMut() -> bool,
        mut deliver: impl FnMut(Outputs),
    ) -> Effort {
        let mut effort = Effort::default();
        let mut start = 0;
        while start < segments.len() {
            let range = start..(start + self.learner.until_step()).min(segments.len());
            start = range.end;
            let began = Instant::now();
            let mut embedded = self.learner.embed(segments, range.clone());
            let scores = self.scorer.score(segments, range.clone(), &embedded, &self.learner);
            let scored = Instant::now();
            effort.scoring += scored - began;
            let outputs = Outputs {
                segments: segments.meta[range.clone()].to_vec(),
                embeddings: std::mem::take(&mut embedded.embeddings),
                scores,
                model_version: self.learner.version(),
            };
            self.learner.learn(segments, range, &embedded, may_train());
            effort.learning += scored.elapsed();
            deliver(outputs);
        }
        effort
    }
}
