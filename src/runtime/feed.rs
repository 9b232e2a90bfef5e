//! The source's thread: hands batches to the workers, keeps their order for the learner, asks for
//! commits.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, TrySendError};
use std::time::{Duration, Instant};

use rustc_hash::FxHasher;

use super::backoff::Backoff;
use super::ingest::{Answer, FINISHED, SavedLanes, Task};
use super::{RuntimeError, Status};
use crate::checkpoint::{Checkpoint, Part, SavedKeys, Store};
use crate::config;
use crate::sink::StagedFile;
use crate::source::{Assignment, Event, Lane, Source, SourceBatch, SourceError};
use crate::telemetry;
use crate::window::{Segmenter, WindowShape};

/// What the learner's thread gets, in the order in which the source gave it.
pub enum Ordered {
    /// A batch that a worker is busy with.
    Work(Receiver<Answer>, Freight),
    /// The model and calibration of a checkpoint, to go on with.
    Restore(Vec<u8>),
    /// A lane is taken over, with what a checkpoint has of its keys, and whether that was made with
    /// the model that this process goes on from.
    Open { lane: Lane, keys: Option<SavedKeys>, same_model: bool },
    /// A lane is let go.
    Close(Lane),
    /// What a checkpoint that a lane was committed with had staged.
    Recover(Vec<StagedFile>),
    /// No records come: time for the labels that did.
    Labels(Freight),
    /// Nothing more comes of any lane.
    Finish,
    /// Everything before this is to be made durable.
    Commit(Commit),
}

/// Bytes of messages between the source and the sinks, counted until dropped.
pub struct Freight {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Freight {
    fn new(bytes: usize, all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: Arc::clone(all) }
    }
}

impl Drop for Freight {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An epoch's end.
pub struct Commit {
    /// Per lane, the offset at which reading resumes.
    pub positions: Vec<(Lane, i64)>,
    /// From each worker, its lanes' windows as of here.
    pub windows: Vec<Receiver<SavedLanes>>,
    /// What its checkpoint adds to the store, where there is one.
    pub part: Option<Part>,
    /// Told once it is durable, or why the positions are not yet.
    pub done: Sender<Committed>,
}

/// What became of a commit whose results and state are durable: its positions may have failed for
/// now.
pub type Committed = Result<(), SourceError>;

/// What found the learner full, or is about to be handed on.
enum Held {
    Batch(SourceBatch),
    /// A lane that has been silent for long.
    Idle(Lane),
    /// A commit that is due.
    Commit,
}

/// Longest wait for the source before flags and clocks are looked at again.
const POLL: Duration = Duration::from_millis(50);
/// Pause before a full learner is tried again.
const FULL: Duration = Duration::from_millis(1);
/// A jam that lasts this long pauses the source, which makes librdkafka forget what it fetched
/// ahead; a shorter one is waited out.
const JAM: Duration = Duration::from_secs(1);
/// Bytes of messages that may be between the source and the sinks: as undecoded messages, columns,
/// segments or dead letters.
const MOST_FREIGHT: usize = 64 << 20;
/// Tries of a commit that no later one makes good.
const LAST_TRIES: usize = 10;
/// Longest pause between two tries of a source that failed for now.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// The source's side of the service.
pub struct Feed<'a> {
    pipeline: &'a config::Pipeline,
    source: Box<dyn Source>,
    workers: Vec<Sender<Task>>,
    learner: SyncSender<Ordered>,
    /// Batches that wait for the learner.
    backlog: &'a AtomicUsize,
    /// Whether the learner took labels since the last commit was asked for.
    taught: &'a AtomicBool,
    /// Bytes of all [`Freight`].
    freight: Arc<AtomicUsize>,
    store: Option<&'a Store>,
    /// The checkpoint that a source without positions of its own goes on from.
    resumed: Option<Checkpoint>,
    status: &'a Status,
    shape: WindowShape,
    lanes: BTreeMap<Lane, LaneState>,
    /// What waits for room in the learner's queue, in order, and since when it was full.
    held: VecDeque<Held>,
    jammed: Option<Instant>,
    paused: bool,
    /// Whether the model is this process's own by now, the checkpoint that it went on from, and
    /// the first one that it was saved in.
    restored: bool,
    model: Option<String>,
    first_saved: Option<String>,
    /// Whether anything happened since the last commit was asked for, when that was, and whether
    /// it is still under way.
    changed: bool,
    asked: Instant,
    committing: Option<Receiver<Committed>>,
}

/// A lane that this process owns.
struct LaneState {
    /// Where reading resumes once everything handed on so far is committed.
    next_offset: Option<i64>,
    last_batch: Instant,
    idle: bool,
}

impl<'a> Feed<'a> {
    pub fn new(
        pipeline: &'a config::Pipeline,
        source: Box<dyn Source>,
        workers: Vec<Sender<Task>>,
        (learner, backlog, taught): (SyncSender<Ordered>, &'a AtomicUsize, &'a AtomicBool),
        (store, resumed): (Option<&'a Store>, Option<Checkpoint>),
        status: &'a Status,
    ) -> Self {
        Self {
            shape: WindowShape::new(&pipeline.windows, &pipeline.records),
            pipeline,
            source,
            workers,
            learner,
            backlog,
            taught,
            freight: Arc::default(),
            store,
            resumed,
            status,
            lanes: BTreeMap::new(),
            held: VecDeque::new(),
            jammed: None,
            paused: false,
            restored: false,
            model: None,
            first_saved: None,
            changed: false,
            asked: Instant::now(),
            committing: None,
        }
    }

    /// Feeds until the source ends or the service is told to stop, then commits a last time.
    pub fn run(mut self) -> Result<(), RuntimeError> {
        let mut backoff = Backoff::new(POLL, LONGEST_BACKOFF);
        while !self.status.is_stopping() {
            if !self.hand_on_held()? {
                std::thread::sleep(FULL);
                continue;
            }
            // Before the poll: a source that always has records would leave no moment after it.
            if self.held.is_empty() {
                self.advance_idle_lanes();
                self.commit_in_time()?;
            }
            let wait = if self.paused { FULL } else { POLL };
            match self.source.poll(wait) {
                Ok(Event::End) => {
                    self.finish()?;
                    break;
                }
                Ok(event) => {
                    backoff.reset();
                    self.take(event)?;
                }
                Err(error) if error.is_retryable() => {
                    let retry_in = backoff.pause();
                    tracing::warn!(%error, ?retry_in, "source failed, trying again");
                    metrics::counter!(telemetry::SOURCE_RETRIES).increment(1);
                    std::thread::sleep(retry_in);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.status.set_ready(false);
        self.settle();
        self.changed |= self.taught.swap(false, Ordering::Relaxed);
        if self.changed { Ok(self.commit()??) } else { Ok(()) }
    }

    fn take(&mut self, event: Event) -> Result<(), RuntimeError> {
        match event {
            Event::Batch(batch) => self.held.push_back(Held::Batch(batch)),
            Event::Assigned(assignments) => {
                // Lanes that come together were mostly committed together.
                let mut loaded = None;
                let share = self.share(self.lanes.len() + assignments.len());
                for assignment in assignments {
                    self.take_over(assignment, share, &mut loaded)?;
                }
                self.share_out()?;
                // A source without positions of its own assigns once.
                self.resumed = None;
                self.status.set_ready(!self.lanes.is_empty());
            }
            Event::Revoked(revoked) => {
                // What was done for these lanes is committed before another may take over; what
                // was not even begun is the other's.
                self.held.retain(|held| match held {
                    Held::Batch(SourceBatch { lane, .. }) | Held::Idle(lane) => {
                        !revoked.contains(lane)
                    }
                    Held::Commit => true,
                });
                if let Err(error) = self.commit()? {
                    if self.pipeline.exactly_once() {
                        // What is staged of these lanes would come out with the next commit, and
                        // again by whoever is next.
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "positions not committed: whoever is next repeats work");
                }
                for lane in revoked {
                    self.worker(&lane).send(Task::Close(lane.clone())).map_err(ended)?;
                    self.learner.send(Ordered::Close(lane.clone())).map_err(ended)?;
                    self.lanes.remove(&lane);
                }
                self.share_out()?;
                self.status.set_ready(!self.lanes.is_empty());
                self.source.release()?;
            }
            Event::Lost(lanes) => {
                return Err(SourceError::Lost { lanes: lanes.len() }.into());
            }
            Event::Idle => self.ask_for_labels()?,
            Event::End => {}
        }
        metrics::gauge!(telemetry::SOURCE_LANES).set(self.lanes.len() as f64);
        Ok(())
    }

    /// Opens a lane with the windows that it was committed with, and once, the model. `loaded` is
    /// the checkpoint that the lane before was committed with.
    fn take_over(
        &mut self,
        assignment: Assignment,
        max_keys: usize,
        loaded: &mut Option<Checkpoint>,
    ) -> Result<(), RuntimeError> {
        let lane = assignment.lane;
        let (next_offset, id) = assignment.committed.unzip();
        let id = id.filter(|id| !id.is_empty());
        let checkpoint = match (id, self.store) {
            (Some(id), Some(store)) => {
                if loaded.as_ref().is_none_or(|loaded| loaded.id != id) {
                    let checkpoint = store.load(&id, &lane.to_string())?;
                    let staged = Ordered::Recover(checkpoint.staged.clone());
                    self.learner.send(staged).map_err(ended)?;
                    *loaded = Some(checkpoint);
                }
                loaded.as_ref()
            }
            _ => self.resumed.as_ref(),
        };
        let (mut windows, mut keys, mut same_model) = (None, None, true);
        if let (Some(checkpoint), Some(store)) = (checkpoint, self.store) {
            if !self.restored {
                tracing::info!(checkpoint = checkpoint.id, "going on from a checkpoint");
                let core = checkpoint.core.clone();
                self.learner.send(Ordered::Restore(core)).map_err(ended)?;
                self.model = Some(checkpoint.id.clone());
            }
            let id = &checkpoint.id;
            let own = |first: &String| Checkpoint::is_since(id, first);
            same_model =
                self.model.as_ref() == Some(id) || self.first_saved.as_ref().is_some_and(own);
            if let Some((_, saved)) = checkpoint.windows.iter().find(|(saved, _)| *saved == lane) {
                let loaded = Segmenter::load(lane.clone(), &self.shape, max_keys, saved, store)?;
                windows = Some(Box::new(loaded));
            }
            keys = checkpoint.keys.iter().find(|(saved, _)| *saved == lane);
        }
        // From here on the model is ahead of any that a later assignment could bring.
        self.restored = true;
        let keys = keys.map(|(_, keys)| keys.clone());
        let open = Ordered::Open { lane: lane.clone(), keys, same_model };
        self.learner.send(open).map_err(ended)?;
        self.worker(&lane).send(Task::Open(lane.clone(), windows)).map_err(ended)?;
        // A lane without news is committed too: with the checkpoints to come, which hold its
        // windows, for older ones are dropped.
        let state = LaneState { next_offset, last_batch: Instant::now(), idle: false };
        self.lanes.insert(lane, state);
        Ok(())
    }

    /// Keys that each of `lanes` may hold in memory.
    fn share(&self, lanes: usize) -> usize {
        self.pipeline.windows.max_keys / lanes.max(1)
    }

    /// Gives each lane as many keys in memory as any other.
    fn share_out(&self) -> Result<(), RuntimeError> {
        let share = self.share(self.lanes.len());
        self.workers.iter().try_for_each(|worker| worker.send(Task::Limit(share)).map_err(ended))
    }

    /// Hands on what is held. `false` while the learner is full, but not for so long that the
    /// source must be looked after in between.
    fn hand_on_held(&mut self) -> Result<bool, RuntimeError> {
        while let Some(held) = self.held.pop_front() {
            let Some(held) = self.hand_on(held)? else { continue };
            self.held.push_front(held);
            let since = *self.jammed.get_or_insert_with(Instant::now);
            if since.elapsed() < JAM {
                return Ok(false);
            }
            // A consumer group takes silence for death: paused, but polled.
            if !std::mem::replace(&mut self.paused, true) {
                metrics::counter!(telemetry::SOURCE_PAUSES).increment(1);
                self.source.pause(true)?;
            }
            return Ok(true);
        }
        self.jammed = None;
        if std::mem::take(&mut self.paused) {
            self.source.pause(false)?;
        }
        Ok(true)
    }

    /// Gives it a place in the learner's queue, then to its worker. Returns it if the queue is
    /// full.
    fn hand_on(&mut self, held: Held) -> Result<Option<Held>, RuntimeError> {
        match held {
            Held::Batch(batch) => {
                let Some(answer) = self.try_work(batch.byte_len())? else {
                    return Ok(Some(Held::Batch(batch)));
                };
                if let Some(lane) = self.lanes.get_mut(&batch.lane) {
                    lane.next_offset = Some(batch.next_offset);
                    lane.last_batch = Instant::now();
                    lane.idle = false;
                }
                self.changed = true;
                self.worker(&batch.lane).send(Task::Batch(batch, answer)).map_err(ended)?;
            }
            Held::Idle(lane) => {
                let Some(answer) = self.try_work(0)? else { return Ok(Some(Held::Idle(lane))) };
                self.changed = true;
                self.worker(&lane).send(Task::Idle(lane.clone(), answer)).map_err(ended)?;
            }
            Held::Commit => {
                let (commit, saves, committed) = self.prepare_commit();
                match self.learner.try_send(Ordered::Commit(commit)) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => return Ok(Some(Held::Commit)),
                    Err(TrySendError::Disconnected(_)) => return Err(RuntimeError::Ended),
                }
                self.save(saves)?;
                self.committing = Some(committed);
            }
        }
        Ok(None)
    }

    /// A place in the learner's queue for what a worker answers; `None` if the queue is full, or
    /// `bytes` more would be too many. A single message that is larger goes when nothing else does.
    fn try_work(&self, bytes: usize) -> Result<Option<Sender<Answer>>, RuntimeError> {
        let under_way = self.freight.load(Ordering::Relaxed);
        if under_way > 0 && under_way + bytes > MOST_FREIGHT {
            return Ok(None);
        }
        let freight = Freight::new(bytes, &self.freight);
        let (sender, receiver) = std::sync::mpsc::channel();
        // Counted first: the learner may be done with it before this thread goes on.
        self.backlog.fetch_add(1, Ordering::Relaxed);
        match self.learner.try_send(Ordered::Work(receiver, freight)) {
            Ok(()) => Ok(Some(sender)),
            Err(TrySendError::Disconnected(_)) => Err(RuntimeError::Ended),
            Err(TrySendError::Full(_)) => {
                self.backlog.fetch_sub(1, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// Ends the stream of every lane.
    fn finish(&mut self) -> Result<(), RuntimeError> {
        while !self.held.is_empty() {
            if !self.hand_on_held()? || self.paused {
                std::thread::sleep(FULL);
            }
        }
        for lane in self.lanes.keys() {
            let (sender, receiver) = std::sync::mpsc::sync_channel(FINISHED);
            self.worker(lane).send(Task::Finish(lane.clone(), sender)).map_err(ended)?;
            self.backlog.fetch_add(1, Ordering::Relaxed);
            let freight = Freight::new(0, &self.freight);
            self.learner.send(Ordered::Work(receiver, freight)).map_err(ended)?;
        }
        self.learner.send(Ordered::Finish).map_err(ended)?;
        self.changed = true;
        Ok(())
    }

    /// Has the learner take the labels that came, though no records did. Not before there is a
    /// position to commit: what was taken is saved beside it.
    fn ask_for_labels(&mut self) -> Result<(), RuntimeError> {
        let has_position = self.lanes.values().any(|lane| lane.next_offset.is_some());
        if self.pipeline.feedback.is_none() || !self.held.is_empty() || !has_position {
            return Ok(());
        }
        match self.learner.try_send(Ordered::Labels(Freight::new(0, &self.freight))) {
            // A full learner has records, which bring labels along.
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(RuntimeError::Ended),
        }
    }

    /// Lets the windows of lanes that have been silent for long follow the others'.
    fn advance_idle_lanes(&mut self) {
        let idle = self.pipeline.windows.idle.0;
        for (lane, state) in &mut self.lanes {
            if !state.idle && state.last_batch.elapsed() >= idle {
                state.idle = true;
                self.held.push_back(Held::Idle(lane.clone()));
            }
        }
    }

    /// Asks for a commit where one is due. One at a time: a slow store is not asked for more.
    fn commit_in_time(&mut self) -> Result<(), RuntimeError> {
        match self.committing.as_ref().map(Receiver::try_recv) {
            Some(Ok(committed)) => self.settle_with(&committed),
            // Without records to hand on, this is how a failure behind is noticed.
            Some(Err(TryRecvError::Disconnected)) => return Err(RuntimeError::Ended),
            Some(Err(TryRecvError::Empty)) | None => {}
        }
        self.changed |= self.taught.swap(false, Ordering::Relaxed);
        let due = self.asked.elapsed() >= self.pipeline.checkpoint.interval.0;
        if self.changed && due && self.committing.is_none() {
            self.held.push_back(Held::Commit);
        }
        Ok(())
    }

    /// Waits for the commit that is under way, if there is one.
    fn settle(&mut self) {
        // Where a thread behind is gone, its own error says why.
        if let Some(committed) = self.committing.take().and_then(|receiver| receiver.recv().ok()) {
            self.settle_with(&committed);
        }
    }

    fn settle_with(&mut self, committed: &Committed) {
        self.committing = None;
        if let Err(error) = committed {
            tracing::warn!(%error, "positions not committed, trying again at the next commit");
            self.changed = true;
        }
    }

    /// Asks for a commit and waits until it is durable. What failed for now is tried again: no
    /// later commit makes it good.
    fn commit(&mut self) -> Result<Committed, RuntimeError> {
        // This one covers what that one would have.
        self.held.retain(|held| !matches!(held, Held::Commit));
        let mut backoff = Backoff::new(POLL, LONGEST_BACKOFF);
        let mut tries = 1;
        loop {
            let (commit, saves, committed) = self.prepare_commit();
            self.learner.send(Ordered::Commit(commit)).map_err(ended)?;
            self.save(saves)?;
            match committed.recv().map_err(ended)? {
                Err(error) if tries < LAST_TRIES => {
                    let retry_in = backoff.pause();
                    tracing::warn!(%error, ?retry_in, "positions not committed");
                    std::thread::sleep(retry_in);
                    tries += 1;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// A commit of all that was handed on so far, what the workers are to answer for it, and where
    /// it tells its outcome.
    fn prepare_commit(&mut self) -> (Commit, Vec<Task>, Receiver<Committed>) {
        let part = self.store.map(|_| Part::new(Checkpoint::new_id()));
        if let Some(part) = &part {
            self.first_saved.get_or_insert_with(|| part.id().to_owned());
        }
        let (mut saves, mut windows) = (Vec::new(), Vec::new());
        for part in part.iter().flat_map(|part| std::iter::repeat_n(part, self.workers.len())) {
            let (sender, receiver) = std::sync::mpsc::channel();
            saves.push(Task::Save(part.clone(), sender));
            windows.push(receiver);
        }
        let positions = self
            .lanes
            .iter()
            .filter_map(|(lane, state)| state.next_offset.map(|next| (lane.clone(), next)))
            .collect();
        let (done, committed) = std::sync::mpsc::channel();
        (Commit { positions, windows, part, done }, saves, committed)
    }

    /// Has the workers save their windows for a commit that was handed on.
    fn save(&mut self, saves: Vec<Task>) -> Result<(), RuntimeError> {
        for (worker, save) in self.workers.iter().zip(saves) {
            worker.send(save).map_err(ended)?;
        }
        (self.changed, self.asked) = (false, Instant::now());
        Ok(())
    }

    /// The worker that serves a lane: always the same one, so that its order holds.
    fn worker(&self, lane: &Lane) -> &Sender<Task> {
        let hash = BuildHasherDefault::<FxHasher>::default().hash_one(lane);
        &self.workers[(hash % self.workers.len() as u64) as usize]
    }
}

/// A thread behind is gone; its own error says why.
fn ended<T>(_: T) -> RuntimeError {
    RuntimeError::Ended
}
