//! Trajectories: one embedding for a whole day or stay of a key.
//!
//! A trajectory gathers the embeddings of a key's segments and pools them. It ends in event time: a
//! day (UTC, by the windows' ends) with the first segment of another day, a stay with the first
//! segment after a silence longer than `stay_gap`. A key of which nothing more comes is ended by
//! the clock of its lane, the latest window's end of all its keys: once it went on for so long that
//! the key's day or stay must be over. A trajectory that has ended is never amended.
//!
//! What is open is part of the state of its key: it is saved, evicted and moved with it.

mod pool;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use pool::{Gathered, Pool};

use crate::config;
use crate::sink::{Score, SegmentMeta};

const MICROS_PER_HOUR: i64 = 3_600_000_000;
const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// Time of a lane's clock between two looks for silent keys, and beyond a day's end before it is
/// ended for a key that is silent.
const PATIENCE: i64 = MICROS_PER_HOUR;

/// What a trajectory is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A day in UTC.
    Day,
    /// Until a silence.
    Stay,
    /// All there is of a key.
    Key,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Stay => "stay",
            Self::Key => "key",
        }
    }
}

impl From<config::Trajectory> for Kind {
    fn from(kind: config::Trajectory) -> Self {
        match kind {
            config::Trajectory::Day => Self::Day,
            config::Trajectory::Stay => Self::Stay,
        }
    }
}

/// Which trajectories there are, and when they end.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub kinds: Vec<Kind>,
    /// Longest silence within a stay, microseconds.
    pub stay_gap: i64,
    pub pool: Pool,
}

impl Rules {
    /// What `[sink.parquet]` asks for.
    pub fn new(pipeline: &config::Pipeline) -> Self {
        let sink = pipeline.sink.parquet.as_ref();
        let kinds = sink.map(|sink| sink.trajectories.iter().copied().map(Kind::from).collect());
        let stay_gap = sink.map_or(i64::MAX, |sink| sink.stay_gap.micros());
        Self { kinds: kinds.unwrap_or_default(), stay_gap, pool: Pool::Mean }
    }

    /// Whether the clock went on to where silent keys are to be looked for.
    pub fn is_time_to_look(before: i64, now: i64) -> bool {
        before.div_euclid(PATIENCE) < now.div_euclid(PATIENCE)
    }
}

/// A trajectory that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    pub key: Arc<str>,
    pub kind: Kind,
    /// Event time of the first and the last sample, microseconds since the epoch.
    pub start: i64,
    pub end: i64,
    pub segments: u64,
    /// Sequence numbers of the first and the last segment.
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Version of the model that made the last segment's embedding.
    pub model_version: u64,
    /// Of unit length.
    pub embedding: Vec<f32>,
    /// The highest score, and the number of alerts that began, where segments were scored.
    pub max_score: Option<f64>,
    pub alerts: Option<u64>,
}

/// A segment with what was made of it.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub segment: &'a SegmentMeta,
    /// Of unit length.
    pub embedding: &'a [f32],
    pub model_version: u64,
    pub score: Option<&'a Score>,
}

/// What is open of one key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// The lane's clock as of the key's last segment, microseconds since the epoch.
    clock: i64,
    open: Vec<Gathering>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Gathering {
    kind: Kind,
    start: i64,
    end: i64,
    segments: u64,
    first_sequence: u64,
    last_sequence: u64,
    model_version: u64,
    gathered: Gathered,
    max_score: Option<f64>,
    alerts: Option<u64>,
    /// Its embeddings are another model's: nothing may be added.
    foreign: bool,
}

impl Open {
    /// The lane's clock as of the key's last segment.
    pub fn clock(&self) -> i64 {
        self.clock
    }

    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// What is open was made with a model that is another's now: it ends as it is.
    pub fn leave_model(&mut self) {
        self.open.iter_mut().for_each(|gathering| gathering.foreign = true);
    }

    /// Adds the key's next segment, which came when the lane's clock was `clock`; `ended` gets what
    /// it ends.
    pub fn add(&mut self, rules: &Rules, part: Part<'_>, clock: i64, ended: &mut Vec<Trajectory>) {
        self.clock = clock;
        for kind in &rules.kinds {
            let at = self.open.iter().position(|gathering| gathering.kind == *kind);
            match at {
                Some(at) if self.open[at].goes_on_with(rules, part.segment) => {
                    self.open[at].add(part);
                    continue;
                }
                Some(at) => ended.push(self.open.remove(at).end(&part.segment.key)),
                None => {}
            }
            self.open.push(Gathering::begin(*kind, rules.pool, part));
        }
    }

    /// Ends what must be over, for the lane's clock is `clock` and the key was silent meanwhile.
    pub fn look(&mut self, rules: &Rules, key: &Arc<str>, clock: i64, ended: &mut Vec<Trajectory>) {
        let silence = clock.saturating_sub(self.clock);
        let over = |gathering: &Gathering| match gathering.kind {
            Kind::Day => {
                let next_day = (day(gathering.end) + 1).saturating_mul(MICROS_PER_DAY);
                gathering.end.saturating_add(silence) > next_day.saturating_add(PATIENCE)
            }
            Kind::Stay => silence > rules.stay_gap,
            Kind::Key => false,
        };
        ended.extend(self.open.extract_if(.., |gathering| over(gathering)).map(|g| g.end(key)));
    }

    /// Ends all that is open.
    pub fn finish(&mut self, key: &Arc<str>, ended: &mut Vec<Trajectory>) {
        ended.extend(self.open.drain(..).map(|gathering| gathering.end(key)));
    }
}

impl Gathering {
    fn begin(kind: Kind, pool: Pool, part: Part<'_>) -> Self {
        let Part { segment, embedding, model_version, score } = part;
        let mut begun = Self {
            kind,
            start: segment.window_start,
            end: segment.window_end,
            segments: 0,
            first_sequence: segment.sequence,
            last_sequence: segment.sequence,
            model_version,
            gathered: Gathered::new(pool, embedding.len()),
            max_score: None,
            alerts: score.map(|_| 0),
            foreign: false,
        };
        begun.add(part);
        begun
    }

    fn goes_on_with(&self, rules: &Rules, segment: &SegmentMeta) -> bool {
        let goes_on = match self.kind {
            Kind::Day => day(self.end) == day(segment.window_end),
            Kind::Stay => segment.window_start.saturating_sub(self.end) <= rules.stay_gap,
            Kind::Key => true,
        };
        goes_on && !self.foreign
    }

    fn add(&mut self, Part { segment, embedding, model_version, score }: Part<'_>) {
        self.gathered.add(embedding);
        self.start = self.start.min(segment.window_start);
        self.end = self.end.max(segment.window_end);
        self.segments += 1;
        self.last_sequence = segment.sequence;
        self.model_version = model_version;
        if let Some(score) = score {
            self.max_score = Some(self.max_score.map_or(score.score, |max| max.max(score.score)));
            let begun = u64::from(score.begins_alert(segment));
            self.alerts = Some(self.alerts.unwrap_or_default() + begun);
        }
    }

    fn end(self, key: &Arc<str>) -> Trajectory {
        Trajectory {
            key: key.clone(),
            kind: self.kind,
            start: self.start,
            end: self.end,
            segments: self.segments,
            first_sequence: self.first_sequence,
            last_sequence: self.last_sequence,
            model_version: self.model_version,
            embedding: self.gathered.pooled(),
            max_score: self.max_score,
            alerts: self.alerts,
        }
    }
}

/// Days since the epoch.
fn day(micros: i64) -> i64 {
    micros.div_euclid(MICROS_PER_DAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Lane;

    const KINDS: [Kind; 2] = [Kind::Day, Kind::Stay];

    fn rules() -> Rules {
        Rules { kinds: KINDS.to_vec(), stay_gap: 2 * MICROS_PER_HOUR, pool: Pool::Mean }
    }

    fn segment(sequence: u64, end_hour: i64) -> SegmentMeta {
        SegmentMeta {
            key: "bed-1".into(),
            lane: Lane::new("ward", 0),
            sequence,
            window_start: (end_hour - 1) * MICROS_PER_HOUR,
            window_end: end_hour * MICROS_PER_HOUR,
            first_offset: 0,
            last_offset: 0,
        }
    }

    /// Adds segments that end at `hours`; returns (kind, first, last sequence) of what ended.
    fn add(open: &mut Open, hours: &[i64]) -> Vec<(Kind, u64, u64)> {
        let mut ended = Vec::new();
        for (sequence, hour) in (0..).zip(hours) {
            let segment = segment(sequence, *hour);
            let part =
                Part { segment: &segment, embedding: &[1.0, 0.0], model_version: 3, score: None };
            open.add(&rules(), part, segment.window_end, &mut ended);
        }
        spans(&ended)
    }

    fn spans(ended: &[Trajectory]) -> Vec<(Kind, u64, u64)> {
        ended.iter().map(|one| (one.kind, one.first_sequence, one.last_sequence)).collect()
    }

    #[test]
    fn a_day_ends_with_the_first_segment_of_another_and_a_stay_after_a_silence() {
        let mut open = Open::default();
        // The last window of the first day ends at 23; the silence from 25 to 30 ends the stay.
        let ended = add(&mut open, &[22, 23, 24, 25, 31, 32]);
        assert_eq!(ended, [(Kind::Day, 0, 1), (Kind::Stay, 0, 3)]);
        let mut ended = Vec::new();
        open.finish(&"bed-1".into(), &mut ended);
        assert_eq!(spans(&ended), [(Kind::Day, 2, 5), (Kind::Stay, 4, 5)]);
        assert_eq!((ended[0].start, ended[0].end), (23 * MICROS_PER_HOUR, 32 * MICROS_PER_HOUR));
        assert_eq!((ended[0].segments, ended[0].model_version), (4, 3));
        assert!(!open.is_open());
    }

    #[test]
    fn the_lanes_clock_ends_what_a_silent_key_left_open() {
        let look = |hours: i64| {
            let mut open = Open::default();
            add(&mut open, &[20]);
            let mut ended = Vec::new();
            open.look(&rules(), &"bed-1".into(), hours * MICROS_PER_HOUR, &mut ended);
            spans(&ended)
        };
        assert_eq!(look(22), []);
        assert_eq!(look(23), [(Kind::Stay, 0, 0)]);
        assert_eq!(look(25), [(Kind::Stay, 0, 0)]);
        assert_eq!(look(26), [(Kind::Day, 0, 0), (Kind::Stay, 0, 0)]);
    }

    #[test]
    fn a_key_that_is_behind_its_lane_is_not_ended_while_it_moves() {
        let mut open = Open::default();
        let (lane, mut ended) = (9_000 * MICROS_PER_HOUR, Vec::new());
        for hour in 1..20 {
            let segment = segment(hour as u64, hour);
            let part =
                Part { segment: &segment, embedding: &[1.0, 0.0], model_version: 0, score: None };
            open.add(&rules(), part, lane, &mut ended);
            open.look(&rules(), &segment.key, lane + MICROS_PER_HOUR, &mut ended);
        }
        assert_eq!(ended, []);
    }

    #[test]
    fn embeddings_of_two_models_are_not_pooled() {
        let mut open = Open::default();
        assert_eq!(add(&mut open, &[1]), []);
        open.leave_model();
        assert_eq!(add(&mut open, &[2]), [(Kind::Day, 0, 0), (Kind::Stay, 0, 0)]);
    }

    #[test]
    fn scores_are_gathered_where_there_are_some() {
        let score = |score: f64, alert_id: Option<&str>| Score {
            score,
            p_value: 0.5,
            surprise: 0.0,
            distance: 0.0,
            residual: 0.0,
            alert: alert_id.is_some(),
            alert_id: alert_id.map(str::to_owned),
            causes: Vec::new(),
            missing: Vec::new(),
            turn: false,
            warm: true,
        };
        let (mut open, mut ended) = (Open::default(), Vec::new());
        let scores = [score(0.2, None), score(0.9, Some("bed-1#1")), score(0.7, Some("bed-1#1"))];
        for (sequence, score) in (0..).zip(&scores) {
            let segment = segment(sequence, 1);
            let part = Part {
                segment: &segment,
                embedding: &[1.0, 0.0],
                model_version: 0,
                score: Some(score),
            };
            open.add(&rules(), part, segment.window_end, &mut ended);
        }
        open.finish(&"bed-1".into(), &mut ended);
        assert_eq!((ended[0].max_score, ended[0].alerts), (Some(0.9), Some(1)));
    }
}
