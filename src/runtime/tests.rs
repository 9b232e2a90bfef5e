//! The service between a source and a sink in memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};

use rdkafka::consumer::ConsumerGroupMetadata;

use super::*;
use crate::decode::{DeadLetter, Decoded, records_schema};
use crate::sink::StagedFile;
use crate::source::{Assignment, Commit, Event, Lane, Payload, SourceBatch};

/// Segments of 4 records every 2, and a model that is quick to train.
fn pipeline() -> config::Pipeline {
    let text = r#"
        name = "plant"
        source = { kind = "file", path = "unused" }
        records = { key = "machine", time = "ts", channels = ["c"] }
        windows = { length = 4, stride = 2, lateness = "0s" }
        model = { encoder = "mlp", embedding = 8, projection = [8], queue = 64 }
        training = { batch = 8, every = 4 }
        checkpoint = { interval = "1h" }
    "#;
    config::Pipeline::from_toml(text, "plant.toml", &[]).expect("a valid pipeline")
}

/// What source, sink and committer saw, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, entry: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a [`Script`] does at a poll.
enum Act {
    Tell(Event),
    Fail(SourceError),
    Stop,
}

/// A source that follows a script, and ends with it.
struct Script {
    acts: VecDeque<Act>,
    status: Arc<Status>,
    log: Log,
    committer: Option<Committer>,
    paused: bool,
    polled_while_paused: Arc<AtomicUsize>,
}

impl Script {
    fn new(acts: impl IntoIterator<Item = Act>, status: &Arc<Status>, log: &Log) -> Self {
        Self {
            acts: acts.into_iter().collect(),
            status: Arc::clone(status),
            log: log.clone(),
            committer: None,
            paused: false,
            polled_while_paused: Arc::default(),
        }
    }
}

impl Source for Script {
    fn poll(&mut self, timeout: Duration) -> Result<Event, SourceError> {
        if self.paused {
            self.polled_while_paused.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(timeout);
            return Ok(Event::Idle);
        }
        match self.acts.pop_front() {
            None => Ok(Event::End),
            Some(Act::Tell(event)) => Ok(event),
            Some(Act::Fail(error)) => Err(error),
            Some(Act::Stop) => {
                self.status.stop();
                Ok(Event::Idle)
            }
        }
    }

    fn pause(&mut self, paused: bool) -> Result<(), SourceError> {
        self.paused = paused;
        Ok(())
    }

    fn release(&mut self) -> Result<(), SourceError> {
        self.log.add(format!("release, ready: {}", self.status.is_ready()));
        Ok(())
    }

    fn committer(&self) -> Option<Box<dyn Commit>> {
        self.committer.clone().map(|committer| Box::new(committer) as Box<dyn Commit>)
    }
}

/// Commits to the log, once it has failed often enough.
#[derive(Clone)]
struct Committer {
    log: Log,
    failures: Arc<AtomicUsize>,
    retryable: bool,
}

impl Committer {
    fn failing(log: &Log, failures: usize, retryable: bool) -> Self {
        Self { log: log.clone(), failures: Arc::new(failures.into()), retryable }
    }
}

impl Commit for Committer {
    fn commit(&self, positions: &[(Lane, i64)], _: &str) -> Result<(), SourceError> {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 {
            self.failures.store(failures - 1, Ordering::Relaxed);
            self.log.add("commit failed".to_owned());
            let reason = "no coordinator".to_owned();
            return Err(SourceError::Kafka { reason, retryable: self.retryable });
        }
        let positions: Vec<String> =
            positions.iter().map(|(lane, offset)| format!("{}@{offset}", lane.topic)).collect();
        self.log.add(format!("commit {}", positions.join(" ")));
        Ok(())
    }

    fn group(&self) -> Option<ConsumerGroupMetadata> {
        None
    }

    fn committed_metadata(&self) -> Result<BTreeSet<String>, SourceError> {
        Ok(BTreeSet::new())
    }
}

/// A sink that tells the log, fails where it is told to, and may wait for a source that is paused.
#[derive(Default)]
struct Memory {
    log: Log,
    /// Whether entries tell all bits of the results.
    bits: bool,
    fails_to_write: bool,
    fails_to_flush: bool,
    until_polled: Option<Arc<AtomicUsize>>,
}

fn disk_full() -> SinkError {
    SinkError::File { path: "out".into(), reason: "disk full".to_owned() }
}

impl Sink for Memory {
    fn write(&mut self, outputs: &Outputs) -> Result<(), SinkError> {
        if self.fails_to_write {
            return Err(disk_full());
        }
        if let Some(polled) = self.until_polled.take() {
            let began = Instant::now();
            while polled.load(Ordering::Relaxed) < 3 {
                if began.elapsed() > Duration::from_secs(60) {
                    return Err(disk_full());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let embeddings = outputs.embeddings.chunks(8);
        for ((segment, score), embedding) in
            outputs.segments.iter().zip(&outputs.scores).zip(embeddings)
        {
            let bits = if self.bits {
                let embedding: Vec<u32> = embedding.iter().map(|value| value.to_bits()).collect();
                format!(" {:x} {embedding:x?} {:?}", score.p_value.to_bits(), outputs.model_version)
            } else {
                String::new()
            };
            self.log.add(format!("{}#{}{bits}", segment.key, segment.sequence));
        }
        Ok(())
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), SinkError> {
        self.log.add(format!("dead letter {}", letter.offset));
        Ok(())
    }

    fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError> {
        if self.fails_to_flush {
            return Err(disk_full());
        }
        self.log.add("flush".to_owned());
        Ok(Vec::new())
    }
}

fn store(folder: &std::path::Path) -> Store {
    let state = Some(folder.join("state").into());
    let config = config::Checkpoint { store: state, ..config::Checkpoint::default() };
    Store::open(&config).expect("a store").expect("a folder is named")
}

fn assigned(lanes: &[(&str, Option<i64>)]) -> Act {
    let assignment = |(lane, offset): &(&str, Option<i64>)| Assignment {
        lane: Lane::new(*lane, 0),
        committed: offset.map(|offset| (offset, String::new())),
    };
    Act::Tell(Event::Assigned(lanes.iter().map(assignment).collect()))
}

/// Records at `offsets` of `lane`; its name is also their key.
fn batch(lane: &str, offsets: std::ops::Range<i64>) -> Act {
    let times = offsets.clone().map(|offset| offset * 1_000_000);
    let values = offsets.clone().map(|offset| (offset as f32 * 0.7).sin());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(offsets.clone().map(|_| lane))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(offsets.clone())),
        Arc::new(Float32Array::from_iter_values(values)),
    ];
    let records = RecordBatch::try_new(records_schema(&["c".to_owned()]), columns);
    let decoded = Decoded {
        records: records.expect("columns in the schema"),
        dead_letters: Vec::new(),
        skipped: 0,
        out_of_range: 0,
    };
    Act::Tell(Event::Batch(SourceBatch {
        lane: Lane::new(lane, 0),
        next_offset: offsets.end,
        appended_ms: None,
        payload: Payload::Decoded(decoded),
    }))
}

/// Runs acts with a committer that fails `failures` times and a sink as given.
fn run_with(
    acts: impl IntoIterator<Item = Act>,
    committer: Option<Committer>,
    sink: Memory,
) -> Result<Summary, String> {
    let status = Arc::new(Status::default());
    let source = Script { committer, ..Script::new(acts, &status, &sink.log) };
    let outcome = run(&pipeline(), opened(source, sink, None), None, &status);
    assert!(!status.is_ready());
    outcome.map_err(|error| error.to_string())
}

fn opened(source: Script, sink: Memory, resumed: Option<Checkpoint>) -> Opened {
    Opened { source: Box::new(source), sinks: vec![Box::new(sink)], resumed }
}

fn sink(log: &Log) -> Memory {
    Memory { log: log.clone(), ..Memory::default() }
}

#[test]
fn results_keep_the_order_of_the_source_whoever_works_on_them() {
    let log = Log::default();
    let lanes = ["a", "b", "c"];
    let turns = (0..20).flat_map(|turn| lanes.map(|lane| batch(lane, turn * 2..turn * 2 + 2)));
    let acts = [assigned(&lanes.map(|lane| (lane, None)))].into_iter().chain(turns);
    let summary = run_with(acts, None, sink(&log)).expect("it runs");
    let mut expected: Vec<String> =
        (0..19).flat_map(|sequence| lanes.map(|lane| format!("{lane}#{sequence}"))).collect();
    expected.push("flush".to_owned());
    assert_eq!(log.take(), expected);
    assert_eq!((summary.records, summary.segments), (120, 57));
    assert!(summary.steps > 0);
}

#[test]
fn positions_are_committed_once_what_came_from_them_is_flushed() {
    let log = Log::default();
    let acts = [assigned(&[("a", None), ("b", Some(7))]), batch("a", 0..4)];
    run_with(acts, Some(Committer::failing(&log, 0, true)), sink(&log)).expect("it runs");
    assert_eq!(log.take(), ["a#0", "flush", "commit a@4 b@7"]);
}

#[test]
fn a_source_that_always_has_records_is_committed_in_time_too() {
    let log = Log::default();
    let status = Arc::new(Status::default());
    let mut pipeline = pipeline();
    pipeline.checkpoint.interval = config::TimeSpan::from_millis(0);
    let acts = (0..50).map(|turn| batch("a", turn * 2..turn * 2 + 2));
    let acts = [assigned(&[("a", None)])].into_iter().chain(acts);
    let committer = Some(Committer::failing(&log, 0, true));
    let source = Script { committer, ..Script::new(acts, &status, &log) };
    run(&pipeline, opened(source, sink(&log), None), None, &status).expect("it runs");

    let log = log.take();
    let commits: Vec<_> = log.iter().filter(|entry| entry.starts_with("commit")).collect();
    assert!(commits.len() >= 2, "{log:?}");
    assert_eq!(commits.last().map(|last| last.as_str()), Some("commit a@100"));
}

#[test]
fn a_stop_drains_and_commits_what_was_read() {
    let log = Log::default();
    let acts = [assigned(&[("a", None)]), batch("a", 0..6), Act::Stop, batch("a", 6..8)];
    run_with(acts, Some(Committer::failing(&log, 0, true)), sink(&log)).expect("it stops");
    assert_eq!(log.take(), ["a#0", "a#1", "flush", "commit a@6"]);
}

#[test]
fn a_lane_is_let_go_once_its_work_is_committed() {
    let log = Log::default();
    let acts = [
        assigned(&[("a", None), ("b", None)]),
        batch("a", 0..4),
        batch("b", 0..4),
        Act::Tell(Event::Revoked(vec![Lane::new("a", 0)])),
        batch("b", 4..6),
        Act::Tell(Event::Revoked(vec![Lane::new("b", 0)])),
    ];
    run_with(acts, Some(Committer::failing(&log, 0, true)), sink(&log)).expect("it runs");
    let one_left = ["a#0", "b#0", "flush", "commit a@4 b@4", "release, ready: true"];
    let none_left = ["b#1", "flush", "commit b@6", "release, ready: false", "flush", "commit "];
    assert_eq!(log.take(), [&one_left[..], &none_left].concat());
}

#[test]
fn a_last_commit_that_fails_for_now_is_tried_again() {
    let log = Log::default();
    let acts = || [assigned(&[("a", None)]), batch("a", 0..2)];
    run_with(acts(), Some(Committer::failing(&log, 2, true)), sink(&log)).expect("the third works");
    let failed = ["flush", "commit failed"];
    assert_eq!(log.take(), [&failed[..], &failed, &["flush", "commit a@2"]].concat());

    let error = run_with(acts(), Some(Committer::failing(&log, usize::MAX, true)), sink(&log));
    assert_eq!(error, Err("source: kafka: no coordinator".to_owned()));
}

#[test]
fn the_failure_of_any_stage_is_the_reason_why_the_service_ends() {
    let log = Log::default();
    let acts = || [assigned(&[("a", None)]), batch("a", 0..8)];
    let gone = SourceError::MissingTopic { topic: "t".to_owned(), brokers: "b".to_owned() };
    let error = run_with(acts().into_iter().chain([Act::Fail(gone)]), None, sink(&log));
    assert_eq!(error, Err("source: topic t does not exist on b".to_owned()));

    let error = run_with([batch("b", 0..8)], None, sink(&log));
    assert_eq!(error, Err("window: b[0]: records of a lane that was not taken over".to_owned()));

    let error = run_with(acts(), None, Memory { fails_to_write: true, ..sink(&log) });
    assert_eq!(error, Err("sink: out: disk full".to_owned()));
    let error = run_with(acts(), None, Memory { fails_to_flush: true, ..sink(&log) });
    assert_eq!(error, Err("sink: out: disk full".to_owned()));

    let error = run_with(acts(), Some(Committer::failing(&log, 1, false)), sink(&log));
    assert_eq!(error, Err("source: kafka: no coordinator".to_owned()));
}

#[test]
fn a_source_that_fails_for_now_is_tried_again() {
    let log = Log::default();
    let silence =
        SourceError::Unreachable { brokers: "b".to_owned(), reason: "silence".to_owned() };
    let acts = [assigned(&[("a", None)]), Act::Fail(silence), batch("a", 0..4)];
    run_with(acts, None, sink(&log)).expect("it runs");
    assert_eq!(log.take(), ["a#0", "flush"]);
}

#[test]
fn a_source_that_is_paused_for_a_stuck_sink_is_still_polled() {
    let log = Log::default();
    let status = Arc::new(Status::default());
    let turns = (0..200).map(|turn| batch("a", turn * 4..turn * 4 + 4));
    let source = Script::new([assigned(&[("a", None)])].into_iter().chain(turns), &status, &log);
    let until_polled = Some(Arc::clone(&source.polled_while_paused));
    let sink = Memory { until_polled, ..sink(&log) };
    let summary = run(&pipeline(), opened(source, sink, None), None, &status);
    assert_eq!(summary.expect("it runs").segments, 399);
    assert_eq!(log.take().len(), 400);
}

#[test]
fn a_stop_and_a_resume_give_the_bits_of_one_run() {
    let lanes = ["a", "b"];
    let turns = |from: i64, to: i64| {
        (from..to).flat_map(move |turn| lanes.map(|lane| batch(lane, turn * 5..turn * 5 + 5)))
    };
    let pipeline = pipeline();
    let log = Log::default();
    let results = |acts: Vec<Act>, checkpoints: (Option<&Store>, Option<Checkpoint>)| {
        let status = Arc::new(Status::default());
        let source = Script::new(acts, &status, &log);
        let sink = Memory { bits: true, ..sink(&log) };
        let (store, resumed) = checkpoints;
        run(&pipeline, opened(source, sink, resumed), store, &status).expect("it runs");
        let mut entries = log.take();
        entries.retain(|entry| entry != "flush");
        entries
    };
    let fresh = || assigned(&lanes.map(|lane| (lane, None)));
    let at_once = results([fresh()].into_iter().chain(turns(0, 20)).collect(), (None, None));

    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path());
    let first = [fresh()].into_iter().chain(turns(0, 9)).chain([Act::Stop]);
    let mut in_two = results(first.collect(), (Some(&store), None));
    let resumed = store.latest("plant", false).expect("readable").expect("a checkpoint");
    assert_eq!(resumed.positions, lanes.map(|lane| (Lane::new(lane, 0), 45)));
    let second = [assigned(&lanes.map(|lane| (lane, Some(45))))].into_iter().chain(turns(9, 20));
    in_two.extend(results(second.collect(), (Some(&store), Some(resumed))));

    assert_eq!(at_once.len(), 98);
    assert_eq!(in_two, at_once);
}

/// Records of twenty keys at `offsets` of the lane `a`: as each comes, some are silent for a while.
fn batch_of_many(offsets: std::ops::Range<i64>) -> Act {
    let key = |offset: i64| (offset * 7 + offset / 60) % (5 + offset / 20 % 4 * 5);
    let keys: Vec<String> = offsets.clone().map(|offset| format!("key-{}", key(offset))).collect();
    let times = offsets.clone().map(|offset| (offset - offset % 3) * 1_000_000);
    let values = offsets.clone().map(|offset| (offset as f32 * 0.7).sin());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(keys)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(offsets.clone())),
        Arc::new(Float32Array::from_iter_values(values)),
    ];
    let records = RecordBatch::try_new(records_schema(&["c".to_owned()]), columns);
    let records = records.expect("columns in the schema");
    let decoded = Decoded { records, dead_letters: Vec::new(), skipped: 0, out_of_range: 0 };
    Act::Tell(Event::Batch(SourceBatch {
        lane: Lane::new("a", 0),
        next_offset: offsets.end,
        appended_ms: None,
        payload: Payload::Decoded(decoded),
    }))
}

#[test]
fn keys_that_wait_in_the_store_give_the_bits_of_keys_in_memory() {
    let log = Log::default();
    let results = |max_keys: usize, stops: &[i64]| {
        let mut pipeline = pipeline();
        pipeline.windows.max_keys = max_keys;
        pipeline.windows.lateness = config::TimeSpan::from_secs(40);
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let mut entries = Vec::new();
        let mut start = 0;
        for (stop, last) in stops.iter().map(|stop| (*stop, false)).chain([(900, true)]) {
            let status = Arc::new(Status::default());
            let resumed = store.latest("plant", false).expect("readable");
            let batches = (start..stop).step_by(30).map(|at| batch_of_many(at..at + 30));
            let committed = (start > 0).then_some(start);
            let acts = [assigned(&[("a", committed)])].into_iter().chain(batches);
            let end = (!last).then_some(Act::Stop);
            let source = Script::new(acts.chain(end), &status, &log);
            let sink = Memory { bits: true, ..sink(&log) };
            let opened = opened(source, sink, resumed);
            run(&pipeline, opened, Some(&store), &status).expect("it runs");
            entries.extend(log.take().into_iter().filter(|entry| entry != "flush"));
            start = stop;
        }
        entries
    };
    let in_memory = results(1000, &[]);
    assert!(in_memory.len() > 300);
    assert_eq!(results(2, &[]), in_memory);
    assert_eq!(results(2, &[90, 300, 330, 600]), in_memory);
}

#[test]
fn a_lane_goes_on_in_another_process_and_comes_back() {
    let log = Log::default();
    let folder = tempfile::tempdir().expect("a folder");
    let sequences = |acts: Vec<Act>| {
        let status = Arc::new(Status::default());
        let store = store(folder.path());
        let source = Script::new(acts, &status, &log);
        run(&pipeline(), opened(source, sink(&log), None), Some(&store), &status).expect("it runs");
        let entries = log.take().into_iter().filter(|entry| entry.starts_with("b#"));
        (
            entries.collect::<Vec<_>>(),
            store.latest("plant", false).expect("readable").expect("saved").id,
        )
    };
    let committed = |offset: i64, id: &str| {
        let lane = Lane::new("b", 0);
        Act::Tell(Event::Assigned(vec![Assignment {
            lane,
            committed: Some((offset, id.to_owned())),
        }]))
    };
    let both = assigned(&[("a", None), ("b", None)]);
    let (mut found, first) = sequences(vec![both, batch("a", 0..9), batch("b", 0..9)]);
    // The other has a model of its own by the time that it gets the lane.
    let other = vec![
        assigned(&[("c", None)]),
        batch("c", 0..9),
        committed(9, &first),
        batch("b", 9..20),
        batch("c", 9..20),
    ];
    let (entries, second) = sequences(other);
    found.extend(entries);
    found.extend(sequences(vec![committed(20, &second), batch("b", 20..30), Act::Stop]).0);
    let expected: Vec<String> = (0..14).map(|sequence| format!("b#{sequence}")).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_checkpoint_that_is_no_model_ends_the_service_by_name() {
    let status = Arc::new(Status::default());
    let log = Log::default();
    let acts = [assigned(&[("a", Some(4))]), batch("a", 4..8)];
    let resumed = Checkpoint {
        id: "1".to_owned(),
        pipeline: "plant".to_owned(),
        positions: Vec::new(),
        windows: Vec::new(),
        keys: Vec::new(),
        staged: Vec::new(),
        core: vec![1, 2, 3],
    };
    let source = Script::new(acts, &status, &log);
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path());
    let opened = opened(source, sink(&log), Some(resumed));
    let error = run(&pipeline(), opened, Some(&store), &status);
    let error = error.expect_err("rubbish").to_string();
    assert!(error.starts_with("checkpoint: model and calibration: "), "{error}");
    assert!(log.take().is_empty());
}

/// Serves one script after another: each is what the next opening finds.
fn serve_scripts(
    scripts: Vec<Result<Vec<Act>, RuntimeError>>,
    log: &Log,
    status: &Arc<Status>,
) -> Result<Summary, String> {
    let mut scripts = scripts.into_iter();
    let open = || {
        let acts = scripts.next().expect("opened as often as expected")?;
        log.add("open".to_owned());
        let committer = Some(Committer::failing(log, 0, true));
        let source = Script { committer, ..Script::new(acts, status, log) };
        Ok(opened(source, sink(log), None))
    };
    serve(&pipeline(), None, status, open).map_err(|error| error.to_string())
}

fn lost() -> Act {
    Act::Fail(SourceError::Lost { lanes: 1 })
}

fn unreachable_brokers() -> RuntimeError {
    SourceError::Unreachable { brokers: "b".to_owned(), reason: "silence".to_owned() }.into()
}

#[test]
fn a_failure_that_may_pass_rewinds_to_the_last_commit() {
    let (log, status) = (Log::default(), Arc::new(Status::default()));
    let first = vec![
        assigned(&[("a", None)]),
        batch("a", 0..4),
        Act::Tell(Event::Revoked(Vec::new())),
        batch("a", 4..6),
        lost(),
    ];
    let second = vec![assigned(&[("a", Some(4))]), batch("a", 4..8)];
    let scripts = vec![Ok(first), Err(unreachable_brokers()), Ok(second)];
    serve_scripts(scripts, &log, &status).expect("it goes on");
    let log = log.take();
    let (before, after) = log.split_at(log.iter().rposition(|entry| entry == "open").unwrap());
    assert_eq!(before[..4], ["open", "a#0", "flush", "commit a@4"]);
    assert!(before[4..].iter().all(|entry| !entry.starts_with("commit")), "{before:?}");
    assert_eq!(after, ["open", "a#0", "flush", "commit a@8"]);
    assert_eq!((status.failure(), status.commits()), (None, 2));
}

#[test]
fn a_failure_that_lasts_or_comes_at_the_first_opening_ends_the_service() {
    let gone = || SourceError::MissingTopic { topic: "t".to_owned(), brokers: "b".to_owned() };
    let missing = "source: topic t does not exist on b".to_owned();
    let (log, status) = (Log::default(), Arc::new(Status::default()));
    let outcome = serve_scripts(vec![Ok(vec![Act::Fail(gone())])], &log, &status);
    assert_eq!(outcome, Err(missing.clone()));
    assert_eq!(status.failure(), Some(missing.clone()));

    let outcome = serve_scripts(vec![Err(unreachable_brokers())], &log, &Arc::default());
    assert_eq!(outcome, Err("source: no broker of b answers: silence".to_owned()));

    let scripts = vec![Ok(vec![lost()]), Err(gone().into())];
    assert_eq!(serve_scripts(scripts, &log, &Arc::default()), Err(missing));
}

#[test]
fn a_service_that_is_told_to_stop_while_it_cannot_go_on_ends_well() {
    let (log, status) = (Log::default(), Arc::new(Status::default()));
    let mut first = true;
    let outcome = serve(&pipeline(), None, &status, || {
        if std::mem::take(&mut first) {
            return Ok(opened(Script::new([lost()], &status, &log), sink(&log), None));
        }
        status.stop();
        Err(unreachable_brokers())
    });
    assert_eq!(outcome.map_err(|error| error.to_string()), Ok(Summary::default()));
    assert_eq!(status.failure(), None);
}

#[test]
fn exactly_once_no_lane_is_let_go_with_work_that_is_not_committed() {
    let (log, status) = (Log::default(), Arc::new(Status::default()));
    let mut pipeline = pipeline();
    pipeline.checkpoint.delivery = Some(config::Delivery::ExactlyOnce);
    let acts = [
        assigned(&[("a", None), ("b", None)]),
        batch("a", 0..4),
        Act::Tell(Event::Revoked(vec![Lane::new("a", 0)])),
        batch("b", 0..4),
    ];
    let committer = Some(Committer::failing(&log, usize::MAX, true));
    let source = Script { committer, ..Script::new(acts, &status, &log) };
    let error = run(&pipeline, opened(source, sink(&log), None), None, &status);
    assert!(error.expect_err("not committed").may_pass());
    let log = log.take();
    assert!(!log.iter().any(|entry| entry.starts_with("release")), "{log:?}");
}
