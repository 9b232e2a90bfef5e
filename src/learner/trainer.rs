//! Training beside the stream: a thread that takes steps while another one scores.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::model::{Model, Settings};
use super::step::Batch;
use super::{cores, share_among};

/// Takes one training step at a time on threads of its own, which give way to all others, and rests
/// after each: training takes no more than its share of the time, however many steps are due.
#[derive(Debug)]
pub struct Trainer {
    /// Taken when there are no more.
    lessons: Option<SyncSender<Lesson>>,
    trained: Receiver<Trained>,
    thread: Option<JoinHandle<()>>,
    /// Share of the time that steps may take.
    share: f64,
    /// Whether a step is under way.
    busy: bool,
    /// When the next step may begin.
    rested: Instant,
}

/// What a step begins with.
struct Lesson {
    model: Arc<Model>,
    settings: Arc<Settings>,
    batch: Batch,
}

/// What a step has made, and when it began and ended.
struct Trained {
    model: Arc<Model>,
    began: Instant,
    ended: Instant,
}

/// How much the trainer's threads give way (`nice`): of a core that a thread of the usual priority
/// wants too they take a quarter.
const NICE: i32 = 5;

impl Trainer {
    /// A trainer that takes at most `share` of the time.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub fn start(share: f32) -> std::io::Result<Self> {
        let (lessons, to_do) = sync_channel::<Lesson>(1);
        let (done, trained) = sync_channel(1);
        let thread = thread::Builder::new().name("trainer".to_owned()).spawn(move || {
            give_way();
            // One core is left to the thread that scores.
            let _pool = match share_among(cores().saturating_sub(1).max(1)) {
                Ok(pool) => Some(pool),
                Err(error) => {
                    tracing::warn!(%error, "the trainer works alone");
                    None
                }
            };
            for Lesson { mut model, settings, batch } in to_do {
                let began = Instant::now();
                Arc::make_mut(&mut model).step(batch, &settings);
                let ended = Instant::now();
                if done.send(Trained { model, began, ended }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            lessons: Some(lessons),
            trained,
            thread: Some(thread),
            share: f64::from(share),
            busy: false,
            rested: Instant::now(),
        })
    }

    /// Whether a step may begin now.
    pub(super) fn has_time(&self) -> bool {
        !self.busy && Instant::now() >= self.rested
    }

    /// Begins a step; what it makes can be taken when it is done.
    pub(super) fn begin(&mut self, model: &Arc<Model>, settings: &Arc<Settings>, batch: Batch) {
        let (model, settings) = (Arc::clone(model), Arc::clone(settings));
        let lesson = Lesson { model, settings, batch };
        match &self.lessons {
            Some(lessons) if lessons.send(lesson).is_ok() => self.busy = true,
            _ => self.fail(),
        }
    }

    /// The model after the step that was begun, and how long it took: once, when it is done.
    pub(super) fn take(&mut self) -> Option<(Arc<Model>, Duration)> {
        self.wait(Duration::ZERO)
    }

    /// Waits for the step that is under way, and drops what it makes: the model that it began with
    /// is not the one to go on with.
    pub fn forget(&mut self) {
        while self.busy {
            self.wait(Duration::from_secs(1));
        }
    }

    fn wait(&mut self, time: Duration) -> Option<(Arc<Model>, Duration)> {
        if !self.busy {
            return None;
        }
        match self.trained.recv_timeout(time) {
            Ok(Trained { model, began, ended }) => {
                self.busy = false;
                let took = ended - began;
                self.rested = began + took.div_f64(self.share);
                Some((model, took))
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.fail(),
        }
    }

    /// Goes on with the panic that ended the trainer's thread.
    fn fail(&mut self) -> ! {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            _ => unreachable!("the trainer works as long as it is asked to"),
        }
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        self.lessons = None;
        if let Some(thread) = self.thread.take() {
            // A panic was either gone on with or comes too late to matter.
            let _ = thread.join();
        }
    }
}

/// Lowers the priority of the calling thread.
#[cfg(target_os = "linux")]
fn give_way() {
    // On Linux, a priority is a thread's own.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "training competes with scoring: its priority cannot be lowered");
    }
}

/// Elsewhere all threads of a process have one priority.
#[cfg(not(target_os = "linux"))]
fn give_way() {}
