//! The passes of training steps on a GPU, with the feature `cuda`.
//!
//! The model stays where it is, in [`super::model`]; a device is told its weights and the batch, and
//! gives back what the batch says: [`keys`] and [`learn`], in which a step spends most of its time.
//! It keeps nothing from one call to the next, so that whatever becomes of a model between two steps
//! (rolled back, restored, dropped) does not concern it. Where the device fails, the CPU does the work.
//!
//! The passes are written once for all of dfdx's devices (`network.rs`, `lesson.rs`): without the
//! feature, tests hold them on dfdx's CPU against the learner's own kernels.

mod lesson;
mod network;
mod pass;
mod places;

use std::cell::RefCell;

use dfdx::prelude::Cache;

use self::lesson::{Answer, Made, Question};
use self::network::Plan;
use self::places::Places;
use super::graph::Graph;
use super::info_nce::InfoNce;
use super::model::{Model, Settings};
use super::network::Encoded;
use super::reach;
use super::step::{Lesson, Shard};
use crate::config;

#[cfg(feature = "cuda")]
type Device = dfdx::prelude::Cuda;
#[cfg(not(feature = "cuda"))]
type Device = dfdx::prelude::Cpu;

/// A device that cannot be used, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no CUDA device can be opened: {0}")]
    NotFound(String),
    #[error("the device failed: {0}")]
    Failed(String),
    #[error("the queue is too long for the device to tell near segments from others")]
    QueueTooLong,
}

/// A thread's device.
enum Slot {
    /// Opened when it is first needed.
    Closed,
    Open {
        device: Device,
        /// Of the last batch.
        negatives: usize,
    },
    /// It failed.
    Lost,
}

thread_local! {
    /// CUDA's contexts belong to threads, so each thread that takes steps opens one.
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot::Closed) };
}

/// The first device that there is.
///
/// # Errors
/// If there is none, or its driver does not suit.
fn open() -> Result<Device, DeviceError> {
    #[cfg(feature = "cuda")]
    let device = Device::try_build(0, 0);
    #[cfg(not(feature = "cuda"))]
    let device = Ok::<_, std::convert::Infallible>(Device::default());
    device.map_err(|error| DeviceError::NotFound(format!("{error:?}")))
}

/// Whether there is a device to train on.
///
/// # Errors
/// If there is none, or its driver does not suit.
#[cfg(feature = "cuda")]
pub fn probe() -> Result<(), DeviceError> {
    open().map(drop)
}

/// Whether this thread's steps are taken on a device.
pub fn is_used(settings: &Settings) -> bool {
    settings.training.device == config::Device::Cuda
        && SLOT.with_borrow(|slot| !matches!(slot, Slot::Lost))
}

/// What the momentum network makes of a batch's positives; `None` if the CPU has to say.
pub fn keys(model: &Model, batch: &Shard, settings: &Settings) -> Option<Encoded> {
    let pairs = batch.origins.len();
    let plan = plan(model);
    let encode = |device: &Device| {
        lesson::encode(device, &model.momentum, &batch.positives, &plan).map_err(failed)
    };
    on_device(settings, model.queue.len(), encode).map(|made| encoded(made, pairs))
}

/// What a batch says, its positives' `keys` in the queue already; `None` if the CPU has to say.
pub fn learn(model: &Model, batch: &Shard, keys: &Encoded, settings: &Settings) -> Option<Lesson> {
    let pairs = batch.origins.len();
    let plan = plan(model);
    let learn = |device: &Device| {
        let places = if settings.pairs.exclude_same_key {
            let reach = reach(&model.shape, &settings.pairs);
            let places = Places::new(&batch.origins, model.queue.origins(), reach);
            Some(places.ok_or(DeviceError::QueueTooLong)?)
        } else {
            None
        };
        let question = Question {
            anchors: &batch.anchors,
            keys: keys.projections.values(),
            negatives: model.queue.projections(),
            places,
            log_scale: model.log_scale.values()[0],
        };
        lesson::learn(device, &model.network, question, &plan).map_err(failed)
    };
    let Answer { made, loss, accuracy, gradients, log_scale } =
        on_device(settings, model.queue.len(), learn)?;
    let found = InfoNce { loss, accuracy, log_scale, queries: Vec::new() };
    Some(Lesson { encoded: encoded(made, pairs), found, gradients })
}

/// Does `work` on this thread's device; `None` from its first failure on.
fn on_device<T>(
    settings: &Settings,
    count: usize,
    work: impl FnOnce(&Device) -> Result<T, DeviceError>,
) -> Option<T> {
    if !is_used(settings) {
        return None;
    }
    SLOT.with_borrow_mut(|slot| {
        let done = slot.device(count).and_then(work);
        done.inspect_err(|error| {
            tracing::error!(%error, "the device is given up: this thread trains on the CPU");
            *slot = Slot::Lost;
        })
        .ok()
    })
}

impl Slot {
    /// The device, for a batch against a queue of `count` negatives.
    fn device(&mut self, count: usize) -> Result<&Device, DeviceError> {
        if let Self::Closed | Self::Lost = self {
            let device = open()?;
            device.try_enable_cache().map_err(failed)?;
            *self = Self::Open { device, negatives: count };
        }
        match self {
            Self::Open { device, negatives } => {
                // Memory is kept by size, and those of a queue that grows do not come again.
                if *negatives != count {
                    device.try_empty_cache().map_err(failed)?;
                    *negatives = count;
                }
                Ok(device)
            }
            Self::Closed | Self::Lost => unreachable!("it was opened"),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Failed(error.to_string())
}

fn plan(model: &Model) -> Plan {
    Plan::new(&model.network, model.shape.channels, model.shape.length)
}

fn encoded(made: Made, segments: usize) -> Encoded {
    let node = |values: Vec<f32>| {
        let columns = values.len() / segments;
        Graph::inference().constant(values, segments, columns)
    };
    Encoded {
        features: node(made.features),
        embeddings: node(made.embeddings),
        projections: node(made.projections),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;
    use crate::keys::Keys;
    use crate::learner::graph::Node;
    use crate::learner::{KeyState, Learner};
    use crate::sink::SegmentMeta;
    use crate::source::Lane;
    use crate::window::Segments;

    const LENGTH: usize = 16;

    /// A learner of 2 channels that has seen 16 segments of each of 8 machines and has not been
    /// trained yet; one in `missing` values is missing.
    fn learner(missing: Option<u32>, tables: &str) -> Learner {
        let pipeline: config::Pipeline = toml::from_str(&format!(
            "name = 'test'\n[source]\nkind = 'generator'\n\
             [records]\nkey = 'machine'\ntime = 'ts'\nchannels = ['a', 'b']\n\
             [windows]\nlength = {LENGTH}\nstride = 8\n\
             [training]\nbatch = 32\nevery = 1000\n\
             [model]\nhidden = 8\nembedding = 16\nprojection = [16, 8]\nqueue = 64\n{tables}\n"
        ))
        .expect("a valid pipeline");
        let mut rng = Pcg64Mcg::seed_from_u64(3);
        let mut segments = Segments::default();
        for sequence in 0..16 {
            for machine in 0..8 {
                let values = (0..2 * LENGTH).map(|at| {
                    let wave = (at as f32 * (0.2 + 0.1 * machine as f32)).sin();
                    let is_missing = missing.is_some_and(|of| rng.random_range(0..of) == 0);
                    if is_missing { f32::NAN } else { wave + rng.random_range(-0.2..0.2) }
                });
                segments.values.extend(values);
                segments.runs.push(0);
                segments.fresh.push(8);
                segments.meta.push(SegmentMeta {
                    key: format!("machine-{machine}").into(),
                    lane: Lane::new("test", 0),
                    sequence,
                    window_start: 0,
                    window_end: 0,
                    first_offset: 0,
                    last_offset: 0,
                });
            }
        }
        let mut learner = Learner::new(&pipeline);
        let mut keys: Keys<KeyState> = Keys::new(1000, None);
        let embedded = learner.embed(&mut keys, &segments, 0..segments.len());
        learner.learn(&mut keys, &embedded, None);
        learner
    }

    fn on_device(mut learner: Learner) -> Learner {
        Arc::make_mut(&mut learner.settings).training.device = config::Device::Cuda;
        learner
    }

    /// Holds numbers against each other, by the largest of them.
    fn assert_close(here: &[f32], there: &[f32], what: &str) {
        assert_eq!(here.len(), there.len(), "{what}");
        let largest = here.iter().fold(1e-4, |largest: f32, it| largest.max(it.abs()));
        for (here, there) in here.iter().zip(there) {
            assert!((here - there).abs() <= 1e-4 * largest, "{what}: {here} {there} of {largest}");
        }
    }

    #[test]
    fn a_batch_says_the_same_on_a_device_as_on_the_cpu() {
        let models = ["encoder = 'mlp'", "encoder = 'tcn'", "encoder = 'tcn'\npool = 'every'"];
        let near = ["exclude_same_key = true", "exclude_same_key = false"];
        let cases = models.iter().flat_map(|model| near.map(|near| (model, near)));
        for ((model, near), missing) in cases.flat_map(|case| [(case, None), (case, Some(10))]) {
            let case = format!("{model}\n[pairs]\n{near}");
            let mut learner = learner(missing, &case);
            (0..4).for_each(|_| learner.step());
            let batch = vec![Shard::join(learner.draw().expect("neighbours").0)];
            let here = Arc::clone(&learner.settings);
            let there = on_device(learner.clone()).settings;
            let model = Arc::make_mut(&mut learner.model);

            let of = |node: &Node| node.values().to_vec();
            let keys = [&here, &there].map(|settings| model.keys(&batch, settings));
            let [mine, theirs] = [&keys[0][0], &keys[1][0]];
            assert_close(&of(&mine.features), &of(&theirs.features), &case);
            assert_close(&of(&mine.embeddings), &of(&theirs.embeddings), &case);
            assert_close(&of(&mine.projections), &of(&theirs.projections), &case);

            model.queue.push(mine.projections.values(), &batch[0].origins, model.steps + 1);
            let [mine, theirs] =
                [&here, &there].map(|settings| model.lessons(&batch, &keys[0], settings));
            let (mine, theirs) = (&mine[0], &theirs[0]);
            assert_close(&of(&mine.encoded.features), &of(&theirs.encoded.features), &case);
            assert_close(&of(&mine.encoded.embeddings), &of(&theirs.encoded.embeddings), &case);
            let of = |found: &InfoNce| [found.loss, found.log_scale];
            assert_close(&of(&mine.found), &of(&theirs.found), &case);
            // A positive that is a negative too is likelier than itself where rounding says so.
            if here.pairs.exclude_same_key {
                assert_close(&[mine.found.accuracy], &[theirs.found.accuracy], &case);
            }
            assert_eq!(mine.gradients.len(), theirs.gradients.len());
            for (number, (mine, theirs)) in mine.gradients.iter().zip(&theirs.gradients).enumerate()
            {
                assert_close(mine, theirs, &format!("{case}: parameter {number}"));
            }
            assert!(is_used(&there), "the device failed");
        }
    }

    #[test]
    fn steps_on_a_device_go_as_those_on_the_cpu() {
        for tables in ["encoder = 'mlp'", "encoder = 'tcn'"] {
            let mut here = learner(Some(10), tables);
            let mut there = on_device(here.clone());
            for _ in 0..4 {
                here.step();
                there.step();
                let (mine, theirs) = (here.last_step().unwrap(), there.last_step().unwrap());
                assert!((mine.loss - theirs.loss).abs() < 1e-3, "{mine:?} {theirs:?}");
                assert!((mine.gradient_norm / theirs.gradient_norm - 1.0).abs() < 1e-2);
                assert!((mine.alignment - theirs.alignment).abs() < 1e-3);
                assert!((mine.health.rank - theirs.health.rank).abs() < 1e-2);
            }
            assert!((here.scale() - there.scale()).abs() < 1e-3);
            assert_eq!(there.version(), 4);
            assert!(is_used(&there.settings), "the device failed");
        }
    }

    #[test]
    fn a_device_that_fails_is_given_up_and_the_step_is_taken() {
        let mut learner =
            on_device(learner(None, "encoder = 'mlp'\n[pairs]\nmax_distance = 20000000"));
        let steps = move || {
            assert!(is_used(&learner.settings));
            learner.step();
            assert!(!is_used(&learner.settings));
            learner.step();
            assert_eq!(learner.version(), 2);
        };
        // On a thread of its own: the others go on with their devices.
        std::thread::spawn(steps).join().expect("no step failed");
    }
}
