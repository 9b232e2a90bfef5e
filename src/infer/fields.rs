//! What the fields of a sample are: the time, the key, channels, and what is none of these.
//!
//! Three kinds of evidence are weighed: what a field holds, how it goes with the others (a key makes
//! times unique, a code goes with values of another size), and what it is called.

use rustc_hash::{FxHashMap, FxHashSet};

use super::table::{Table, Value};
use super::time::Clock;
use crate::config::{Layout, TimeUnit};

/// Share of values that must be of a kind for a field to be of it.
const MOST: f64 = 0.99;
/// Different values of a field that are counted.
const MOST_DISTINCT: usize = 2_000;
/// Channels that a long layout is given.
const MOST_CODES: usize = 64;

const TIME_NAMES: &[&str] = &[
    "time",
    "timestamp",
    "ts",
    "datetime",
    "date",
    "t",
    "when",
    "eventtime",
    "charttime",
    "effectivedatetime",
    "measurementtime",
    "seconds",
    "secs",
    "elapsed",
    "ms",
    "us",
    "ns",
];
/// Times of something else than the measurement.
const OTHER_TIME_NAMES: &[&str] = &[
    "birth",
    "dob",
    "received",
    "ingest",
    "ingested",
    "processed",
    "updated",
    "created",
    "stored",
    "end",
    "until",
    "expires",
    "discharge",
    "install",
];
const SAMPLE_NAMES: &[&str] =
    &["sample", "samples", "index", "idx", "tick", "frame", "step", "n", "i", "unnamed", "cycle"];
const KEY_NAMES: &[&str] = &[
    "id",
    "key",
    "uid",
    "uuid",
    "guid",
    "machine",
    "device",
    "sensor",
    "host",
    "hostname",
    "patient",
    "subject",
    "asset",
    "equipment",
    "node",
    "station",
    "meter",
    "vehicle",
    "engine",
    "serial",
    "mac",
    "instance",
    "pump",
    "turbine",
    "motor",
    "plant",
    "site",
    "user",
    "account",
    "customer",
    "service",
    "unit",
    "name",
    "entity",
    "object",
    "stay",
    "encounter",
    "person",
];
const CODE_NAMES: &[&str] = &[
    "code",
    "metric",
    "parameter",
    "param",
    "item",
    "itemid",
    "signal",
    "tag",
    "channel",
    "variable",
    "measurement",
    "field",
    "loinc",
    "attribute",
    "property",
    "quantity",
    "test",
    "analyte",
    "vital",
    "kind",
    "name",
    "type",
];
const VALUE_NAMES: &[&str] =
    &["value", "val", "reading", "result", "valuenum", "number", "measure", "y", "v"];
const UNIT_NAMES: &[&str] = &["unit", "units", "uom", "valueuom"];
const LABEL_NAMES: &[&str] = &[
    "label",
    "labels",
    "anomaly",
    "anomalies",
    "anomalous",
    "isanomaly",
    "changepoint",
    "outlier",
    "attack",
    "target",
    "class",
    "truth",
    "groundtruth",
    "gt",
    "isfraud",
    "fault",
    "failure",
];
const COUNTER_NAMES: &[&str] = &[
    "unnamed", "index", "idx", "row", "rownum", "seq", "sequence", "offset", "line", "lineid",
    "no", "nr", "id", "record", "",
];
const MESSAGE_NAMES: &[&str] =
    &["message", "msg", "log", "text", "line", "content", "body", "event", "description"];
const SEVERITY_NAMES: &[&str] = &["severity", "level", "loglevel", "lvl", "priority", "levelname"];
/// Words that tell a state, not who it is the state of.
const STATE_NAMES: &[&str] = &[
    "status",
    "state",
    "level",
    "severity",
    "quality",
    "flag",
    "version",
    "message",
    "msg",
    "comment",
    "mode",
    "unit",
    "units",
    "uom",
    "schema",
    "resourcetype",
];

/// What the fields of a sample are.
#[derive(Clone, Debug, PartialEq)]
pub struct Roles {
    pub layout: Layout,
    /// Field of the time with the way in which it tells it; `None`: the messages' own.
    pub time: Option<(String, Clock)>,
    /// Field of the key; `None`: the messages' own, or the file's name.
    pub key: Option<String>,
    /// Names of channels: fields, or codes of a long layout.
    pub channels: Vec<String>,
    /// Of a long layout: fields of the code and the value, and of the unit.
    pub code: Option<(String, String)>,
    pub unit: Option<String>,
    /// Of a log: fields of the text and the severity.
    pub message: Option<String>,
    pub severity: Option<String>,
    /// What is none of these, and why.
    pub left_out: Vec<LeftOut>,
    /// What a person should look at.
    pub doubts: Vec<String>,
}

/// A field, or a code, that is no channel.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    pub name: String,
    pub why: String,
}

/// What a column holds.
struct Profile {
    name: String,
    /// Values that are there.
    present: usize,
    numbers: usize,
    booleans: usize,
    /// Different values, up to [`MOST_DISTINCT`].
    distinct: usize,
    min: f64,
    max: f64,
    integers: bool,
    /// Share of the less frequent of two values.
    minority: f64,
    /// Mean length of its text.
    length: f64,
    clock: Option<Clock>,
}

impl Profile {
    fn of(name: &str, column: &[Value]) -> Self {
        let present: Vec<&Value> = column.iter().filter(|value| !value.is_null()).collect();
        let numbers: Vec<f64> = present.iter().filter_map(|value| value.number()).collect();
        let mut counts: FxHashMap<String, usize> = FxHashMap::default();
        let mut length = 0;
        for value in &present {
            let text = value.to_string();
            length += text.len();
            if counts.len() < MOST_DISTINCT || counts.contains_key(&text) {
                *counts.entry(text).or_default() += 1;
            }
        }
        let least = counts.values().min().copied().unwrap_or_default();
        let fold = |start: f64, of: fn(f64, f64) -> f64| numbers.iter().copied().fold(start, of);
        Self {
            name: name.to_owned(),
            present: present.len(),
            numbers: numbers.len(),
            booleans: present.iter().filter(|value| matches!(value, Value::Boolean(_))).count(),
            distinct: counts.len(),
            min: fold(f64::INFINITY, f64::min),
            max: fold(f64::NEG_INFINITY, f64::max),
            integers: numbers.iter().all(|number| number.fract() == 0.0),
            minority: if counts.len() == 2 { least as f64 / present.len() as f64 } else { 0.0 },
            length: length as f64 / present.len().max(1) as f64,
            clock: Clock::of_dates(column),
        }
    }

    fn is_numeric(&self) -> bool {
        self.present > 0 && self.numbers as f64 >= MOST * self.present as f64
    }

    fn is_text(&self) -> bool {
        self.present > 0 && self.numbers == 0 && self.booleans == 0
    }

    fn is_called(&self, names: &[&str]) -> bool {
        let words = name_words(&self.name);
        let joined = words.concat();
        names.contains(&joined.as_str())
            || words.last().is_some_and(|last| names.contains(&last.as_str()))
            || words.first().is_some_and(|first| names.contains(&first.as_str()))
    }

    /// Whether the name, or its last part, is one of `names`.
    fn ends_as(&self, names: &[&str]) -> bool {
        let words = name_words(&self.name);
        names.contains(&words.concat().as_str())
            || words.last().is_some_and(|last| names.contains(&last.as_str()))
    }
}

/// The words of a name, lower-case: `body.sensorId` is `sensor`, `id` after its folder.
fn name_words(name: &str) -> Vec<String> {
    let last = name.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(name);
    let mut words: Vec<String> = vec![String::new()];
    let mut before = ' ';
    for letter in last.chars() {
        let begins = letter.is_uppercase() && before.is_lowercase();
        if (begins || !letter.is_alphanumeric()) && words.last().is_some_and(|w| !w.is_empty()) {
            words.push(String::new());
        }
        if letter.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(letter.to_lowercase());
        }
        before = letter;
    }
    words.retain(|word| !word.is_empty() && word.parse::<usize>().is_err());
    words
}

/// Works out what the fields of `table` are. `messages` says that its rows are Kafka messages,
/// which have a time and perhaps a key of their own.
///
/// # Errors
/// If there is no time, or nothing to learn from: a sentence about what was looked for and found.
pub fn roles(table: &Table, messages: bool) -> Result<Roles, String> {
    let profiles: Vec<Profile> = table
        .fields()
        .iter()
        .enumerate()
        .map(|(place, name)| Profile::of(name, table.column(place)))
        .collect();
    let mut doubts = Vec::new();
    let time = time_field(table, &profiles, &mut doubts);
    if time.is_none() && !messages {
        return Err(format!(
            "expected a field that tells the time, found none among {}",
            names(table.fields())
        ));
    }
    if time.is_none() {
        doubts.push("no field tells the time: Kafka's timestamps are taken".to_owned());
    }
    let times = times_of(table, time.as_ref());
    let mut reading =
        Reading { table, profiles: &profiles, time, times, left_out: Vec::new(), doubts };
    reading.find()
}

struct Reading<'a> {
    table: &'a Table,
    profiles: &'a [Profile],
    time: Option<(usize, Clock)>,
    /// Microseconds, per row.
    times: Vec<Option<f64>>,
    left_out: Vec<LeftOut>,
    doubts: Vec<String>,
}

impl Reading<'_> {
    fn find(&mut self) -> Result<Roles, String> {
        let message = self.message_field();
        let key = self.key_field(message);
        let numeric = self.numeric_fields(key);
        let long = self.long_fields(key, &numeric);
        let severity =
            || self.profiles.iter().position(|p| p.is_text() && p.ends_as(SEVERITY_NAMES));
        let severity = severity();
        let is_log = message.is_some() && (numeric.is_empty() || severity.is_some());
        let mut roles = Roles {
            layout: Layout::Wide,
            time: self.time.as_ref().map(|(place, clock)| (self.name(*place), clock.clone())),
            key: key.map(|place| self.name(place)),
            channels: Vec::new(),
            code: None,
            unit: None,
            message: None,
            severity: None,
            left_out: Vec::new(),
            doubts: Vec::new(),
        };
        if let Some(message) = message.filter(|_| is_log) {
            roles.layout = Layout::Log;
            roles.message = Some(self.name(message));
            roles.severity = severity.map(|place| self.name(place));
            self.left_out.clear();
        } else if let Some((key, code, value)) = long {
            roles.layout = Layout::Long;
            roles.key = key.map(|place| self.name(place));
            roles.code = Some((self.name(code), self.name(value)));
            let unit = self.profiles.iter().find(|p| p.is_text() && p.ends_as(UNIT_NAMES));
            roles.unit = unit.map(|unit| unit.name.clone());
            self.left_out.clear();
            roles.channels = self.codes(code, value);
        } else {
            roles.channels = numeric.iter().map(|place| self.name(*place)).collect();
            self.note_doubtful_channels(&numeric);
        }
        if roles.channels.is_empty() && roles.layout != Layout::Log {
            return Err(format!(
                "expected a field of numbers that vary, found none among {}",
                names(self.table.fields())
            ));
        }
        roles.left_out = std::mem::take(&mut self.left_out);
        roles.doubts = std::mem::take(&mut self.doubts);
        Ok(roles)
    }

    fn name(&self, place: usize) -> String {
        self.profiles[place].name.clone()
    }

    fn is_time(&self, place: usize) -> bool {
        self.time.as_ref().is_some_and(|(time, _)| *time == place)
    }

    /// The text of a log, if there is one.
    fn message_field(&self) -> Option<usize> {
        let is_message = |profile: &Profile| {
            let varied = profile.distinct > 5 || profile.length > 20.0;
            profile.is_text() && profile.is_called(MESSAGE_NAMES) && varied && profile.length > 8.0
        };
        let found = self.profiles.iter().enumerate().filter(|(_, profile)| is_message(profile));
        let longest = found.max_by(|(_, one), (_, other)| one.length.total_cmp(&other.length));
        longest.map(|(place, _)| place)
    }

    fn key_field(&mut self, message: Option<usize>) -> Option<usize> {
        let repeats = self.repeated_times(|_| String::new());
        let mut best: Option<(usize, usize)> = None;
        let mut possible = Vec::new();
        for (place, profile) in self.profiles.iter().enumerate() {
            if self.is_time(place) || Some(place) == message || profile.clock.is_some() {
                continue;
            }
            let is_integer = profile.is_numeric() && profile.integers;
            let named = profile.is_called(KEY_NAMES) && !profile.ends_as(STATE_NAMES);
            let of_kind = profile.is_text() || (is_integer && named && profile.ends_as(KEY_NAMES));
            let rows = self.table.len();
            let everywhere = profile.present as f64 >= MOST * rows as f64;
            if !of_kind || !everywhere || profile.length > 128.0 {
                continue;
            }
            let is_message_key = self.is_message_key(place);
            // A key whose records do not come back has nothing to learn from.
            let comes_back = profile.distinct * 3 <= rows || is_message_key;
            let is_state = profile.ends_as(STATE_NAMES) || profile.is_called(LABEL_NAMES);
            if !comes_back || is_state {
                continue;
            }
            let mut score = 0;
            score += if is_message_key { 5 } else { 0 };
            score += if named { 3 } else { 0 };
            if repeats > 0.05 && profile.distinct > 1 {
                let within = self.repeated_times(|row| self.table.column(place)[row].to_string());
                score += if within < 0.01 { 3 } else { 0 };
                score += if within < repeats / 2.0 { 1 } else { 0 };
            }
            if score >= 3 {
                if best.is_none_or(|(most, _)| score > most) {
                    best = Some((score, place));
                }
            } else if profile.distinct > 1 && profile.distinct <= 1_000 {
                possible.push(profile.name.clone());
            }
        }
        if best.is_none() && !possible.is_empty() {
            let doubt = format!("no key was found; should it be {}?", names(&possible));
            self.doubts.push(doubt);
        }
        best.map(|(_, place)| place)
    }

    /// Share of rows that have the time of another row of the same piece and `group`.
    fn repeated_times(&self, group: impl Fn(usize) -> String) -> f64 {
        let mut seen = FxHashSet::default();
        let mut repeated = 0;
        for (row, time) in self.times.iter().enumerate() {
            let Some(time) = time else { continue };
            let piece = self.table.origins()[row].piece;
            repeated += usize::from(!seen.insert((piece, time.to_bits(), group(row))));
        }
        repeated as f64 / self.times.len().max(1) as f64
    }

    fn is_message_key(&self, place: usize) -> bool {
        let column = self.table.column(place);
        let mut rows = column.iter().zip(self.table.origins());
        !self.table.is_empty()
            && rows.all(|(value, origin)| origin.key.as_ref() == Some(&value.to_string()))
    }

    /// Fields of numbers that are neither constant nor something else than measurements.
    fn numeric_fields(&mut self, key: Option<usize>) -> Vec<usize> {
        let mut channels = Vec::new();
        let mut constants = Vec::new();
        let last = self.profiles.len().saturating_sub(1);
        for (place, profile) in self.profiles.iter().enumerate() {
            if self.is_time(place) || Some(place) == key {
                continue;
            }
            let few = profile.integers && profile.distinct <= 10;
            let why = if profile.present == 0 {
                "empty".to_owned()
            } else if profile.is_called(LABEL_NAMES) && (few || !profile.is_numeric()) {
                "looks like a label: what is to be found must not be learned from".to_owned()
            } else if profile.booleans > 0 {
                "true and false are no numbers".to_owned()
            } else if !profile.is_numeric() {
                match &profile.clock {
                    Some(_) => "another time".to_owned(),
                    None if profile.numbers > 0 => {
                        let doubt = format!(
                            "{}: {} of {} values are no numbers",
                            profile.name,
                            profile.present - profile.numbers,
                            profile.present
                        );
                        self.doubts.push(doubt);
                        "not all of it is numbers".to_owned()
                    }
                    None => "text".to_owned(),
                }
            } else if profile.min == profile.max {
                constants.push(place);
                format!("always {} in the sample", profile.min)
            } else if profile.clock.is_some() && profile.is_called(TIME_NAMES) {
                "another time".to_owned()
            } else if profile.integers && profile.ends_as(&["id", "uuid", "guid"]) {
                "looks like an id".to_owned()
            } else if (place == 0 || profile.ends_as(COUNTER_NAMES)) && self.counts_rows(place) {
                "counts the rows".to_owned()
            } else if place == last
                && profile.integers
                && profile.distinct == 2
                && profile.minority < 0.05
                && channels.len() > 1
            {
                self.doubts.push(format!("{}: a label, or a channel?", profile.name));
                "two values, one of them rare, in the last place: looks like a label".to_owned()
            } else {
                channels.push(place);
                continue;
            };
            self.left_out.push(LeftOut { name: profile.name.clone(), why });
        }
        // A series that is flat so far is a series still.
        if channels.is_empty() && !constants.is_empty() {
            channels = constants;
            let kept: Vec<String> = channels.iter().map(|place| self.name(*place)).collect();
            self.left_out.retain(|left_out| !kept.contains(&left_out.name));
            self.doubts.push(format!("{}: constant in the sample", names(&kept)));
        }
        channels
    }

    /// Whether a field goes up by one from row to row.
    fn counts_rows(&self, place: usize) -> bool {
        let rows = self.table.column(place).iter().zip(self.table.origins());
        let rows: Vec<_> = rows.map(|(value, origin)| (value.number(), origin.piece)).collect();
        let pairs = rows.windows(2).filter(|pair| pair[0].1 == pair[1].1);
        let mut steps = pairs.filter_map(|pair| Some(pair[1].0? - pair[0].0?));
        rows.len() > 2 && steps.all(|step| step == 1.0)
    }

    /// Key, code and value of a long layout, if it is one.
    fn long_fields(
        &self,
        key: Option<usize>,
        numeric: &[usize],
    ) -> Option<(Option<usize>, usize, usize)> {
        let value = match numeric {
            [only] => *only,
            _ => *numeric.iter().find(|place| self.profiles[**place].ends_as(VALUE_NAMES))?,
        };
        let is_code = |place: usize, profile: &Profile| {
            let of_kind = profile.is_text() || (profile.is_numeric() && profile.integers);
            let repeats =
                (2..=1_000).contains(&profile.distinct) && profile.distinct * 3 <= self.table.len();
            place != value && !self.is_time(place) && of_kind && repeats && profile.clock.is_none()
        };
        let candidates: Vec<usize> = (0..self.profiles.len())
            .filter(|place| is_code(*place, &self.profiles[*place]))
            .filter(|place| self.profiles[*place].ends_as(CODE_NAMES))
            .collect();
        let other = candidates.iter().copied().find(|place| Some(*place) != key);
        if let Some(code) = other {
            return Some((key, code, value));
        }
        // Names that may be either: values of another size make it a code.
        let code = candidates.first().copied()?;
        let surely = !self.profiles[code].is_called(KEY_NAMES);
        (surely || self.separation(code, value) > 0.5).then_some((None, code, value))
    }

    /// Share of the values' spread that `code` explains.
    fn separation(&self, code: usize, value: usize) -> f64 {
        let mut groups: FxHashMap<String, Vec<f64>> = FxHashMap::default();
        for (code, value) in self.table.column(code).iter().zip(self.table.column(value)) {
            if let Some(value) = value.number() {
                groups.entry(code.to_string()).or_default().push(value);
            }
        }
        let all: Vec<f64> = groups.values().flatten().copied().collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let spread = |values: &[f64], around: f64| -> f64 {
            values.iter().map(|value| (value - around).powi(2)).sum()
        };
        let within: f64 = groups.values().map(|values| spread(values, mean(values))).sum();
        1.0 - within / spread(&all, mean(&all)).max(f64::MIN_POSITIVE)
    }

    /// The codes of a long layout that are often there and vary, the most frequent first.
    fn codes(&mut self, code: usize, value: usize) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        let mut values: FxHashMap<String, Vec<Option<f64>>> = FxHashMap::default();
        for (code, value) in self.table.column(code).iter().zip(self.table.column(value)) {
            if !code.is_null() {
                let code = code.to_string();
                values
                    .entry(code.clone())
                    .or_insert_with(|| {
                        order.push(code);
                        Vec::new()
                    })
                    .push(value.number());
            }
        }
        let total: usize = values.values().map(Vec::len).sum();
        // Stable: codes of one frequency stay in the order of the sample.
        order.sort_by_key(|code| std::cmp::Reverse(values[code].len()));
        let mut channels = Vec::new();
        for code in order {
            let found = &values[&code];
            let numbers: Vec<f64> = found.iter().filter_map(|value| *value).collect();
            let varies = numbers.iter().any(|number| *number != numbers[0]);
            let why = if numbers.is_empty() {
                "no numbers".to_owned()
            } else if found.len() * 200 < total {
                format!("rare: {} of {total} rows", found.len())
            } else if !varies {
                format!("always {} in the sample", numbers[0])
            } else if channels.len() == MOST_CODES {
                format!("beyond the {MOST_CODES} most frequent codes")
            } else {
                channels.push(code);
                continue;
            };
            self.left_out.push(LeftOut { name: code, why });
        }
        channels
    }

    fn note_doubtful_channels(&mut self, channels: &[usize]) {
        for place in channels {
            let profile = &self.profiles[*place];
            let numbers: Vec<f64> =
                self.table.column(*place).iter().filter_map(Value::number).collect();
            let rising = numbers.windows(2).all(|pair| pair[1] >= pair[0]);
            if rising && numbers.len() > 20 && profile.distinct > numbers.len() / 2 {
                self.doubts.push(format!(
                    "{}: it only ever rises; of a counter, its rate says more",
                    profile.name
                ));
            }
        }
    }
}

/// The field of the time, and how it tells it.
fn time_field(
    table: &Table,
    profiles: &[Profile],
    doubts: &mut Vec<String>,
) -> Option<(usize, Clock)> {
    let mut best: Option<(i32, usize, Clock)> = None;
    for (place, profile) in profiles.iter().enumerate() {
        let Some(clock) = &profile.clock else { continue };
        if (profile.present as f64) < 0.95 * table.len() as f64 {
            continue;
        }
        let named = profile.is_called(TIME_NAMES);
        let in_order = share_in_order(table, place, clock) >= 0.9;
        if matches!(clock, Clock::Epoch(_)) && !named && !in_order {
            continue;
        }
        let mut score = if matches!(clock, Clock::Epoch(_)) { 3 } else { 4 };
        score += if named { 2 } else { 0 };
        score += if in_order { 1 } else { 0 };
        score -= if profile.is_called(OTHER_TIME_NAMES) { 3 } else { 0 };
        score -= if profile.distinct < 2 { 3 } else { 0 };
        if best.as_ref().is_none_or(|(most, ..)| score > *most) {
            best = Some((score, place, clock.clone()));
        }
    }
    let found = best.map(|(_, place, clock)| (place, clock));
    let (place, clock) = found.or_else(|| elapsed_field(table, profiles))?;
    let name = &profiles[place].name;
    if let Some(other) = clock.swapped()
        && table.column(place).iter().all(|value| value.is_null() || other.micros(value).is_some())
    {
        doubts.push(format!("{name}: day and month could be the other way round"));
    }
    if !clock.is_zoned() {
        doubts.push(format!("{name}: times name no zone, UTC is taken"));
    }
    if clock.is_without_year() {
        doubts.push(format!("{name}: times name no year"));
    }
    Some((place, clock))
}

/// A number that grows from row to row: seconds since some beginning, or samples.
fn elapsed_field(table: &Table, profiles: &[Profile]) -> Option<(usize, Clock)> {
    let grows = |place: usize, profile: &Profile| {
        let named = profile.is_called(TIME_NAMES) || profile.is_called(SAMPLE_NAMES);
        profile.is_numeric()
            && profile.present == table.len()
            && (place == 0 || named)
            && profile.distinct > 2
            && share_in_order(table, place, &Clock::Samples) >= 0.99
    };
    let found = profiles.iter().enumerate().filter(|(place, profile)| grows(*place, profile));
    let found: Vec<(usize, &Profile)> = found.collect();
    let called = |names: &[&str]| found.iter().find(|(_, profile)| profile.is_called(names));
    let (place, profile) =
        called(TIME_NAMES).or_else(|| called(SAMPLE_NAMES)).or_else(|| found.first())?;
    let clock = if profile.ends_as(&["ms", "millis", "milliseconds"]) {
        Clock::Elapsed(TimeUnit::Ms)
    } else if profile.ends_as(&["us", "micros", "microseconds"]) {
        Clock::Elapsed(TimeUnit::Us)
    } else if profile.ends_as(&["ns", "nanos", "nanoseconds"]) {
        Clock::Elapsed(TimeUnit::Ns)
    } else if profile.integers && !profile.is_called(TIME_NAMES) {
        Clock::Samples
    } else {
        Clock::Elapsed(TimeUnit::S)
    };
    Some((*place, clock))
}

/// Share of rows whose time is not before that of the row before, within a piece.
fn share_in_order(table: &Table, place: usize, clock: &Clock) -> f64 {
    let rows = table.column(place).iter().zip(table.origins());
    let rows: Vec<_> = rows.map(|(value, origin)| (clock.micros(value), origin.piece)).collect();
    let pairs = rows.windows(2).filter(|pair| pair[0].1 == pair[1].1);
    let steps: Vec<f64> = pairs.filter_map(|pair| Some(pair[1].0? - pair[0].0?)).collect();
    let in_order = steps.iter().filter(|step| **step >= 0.0).count();
    if steps.is_empty() { 0.0 } else { in_order as f64 / steps.len() as f64 }
}

/// Microseconds per row.
fn times_of(table: &Table, time: Option<&(usize, Clock)>) -> Vec<Option<f64>> {
    match time {
        Some((place, clock)) => {
            table.column(*place).iter().map(|value| clock.micros(value)).collect()
        }
        None => {
            let millis = table.origins().iter().map(|origin| origin.timestamp_ms);
            millis.map(|millis| millis.map(|millis| millis as f64 * 1e3)).collect()
        }
    }
}

/// The times of rows as `roles` tells them, microseconds.
pub(super) fn row_times(table: &Table, roles: &Roles) -> Vec<Option<f64>> {
    let time = roles.time.as_ref();
    let time = time.and_then(|(name, clock)| Some((table.place(name)?, clock.clone())));
    times_of(table, time.as_ref())
}

/// Names for a person.
pub(super) fn names<T: AsRef<str>>(names: &[T]) -> String {
    const LISTED: usize = 12;
    let listed = names.iter().take(LISTED).map(|name| format!("\"{}\"", name.as_ref()));
    let mut text = listed.collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::table::{Origin, json_row};
    use super::*;

    /// A table of rows of JSON, one for each of 0..`rows`.
    fn table(rows: usize, json: impl Fn(usize) -> String) -> Table {
        let mut table = Table::default();
        for row in 0..rows {
            table.push(json_row(&json(row)).expect("JSON"), Origin::default());
        }
        table
    }

    /// A value between 0 and 9 that neither repeats soon nor only rises.
    fn noise(row: usize) -> f64 {
        (row * row * 31 + row * 17 % 101) as f64 % 97.0 / 10.0
    }

    fn left_out<'r>(roles: &'r Roles, name: &str) -> &'r str {
        let found = roles.left_out.iter().find(|left_out| left_out.name == name);
        &found.unwrap_or_else(|| panic!("{name} is not left out: {roles:?}")).why
    }

    #[test]
    fn a_machines_readings_have_a_key_a_time_and_channels() {
        let table = table(300, |row| {
            let (machine, second) = (row % 3, row / 3 % 60);
            let minute = row / 180;
            format!(
                r#"{{"machine":"press-{machine}","ts":"2024-01-01T00:{minute:02}:{second:02}Z",
                "body":{{"temp":{}}},"vibration":{},"firmware":"v1.2","limit":80,"seq":{row}}}"#,
                noise(row),
                noise(row + 7)
            )
            .replace('\n', "")
        });
        let roles = roles(&table, false).unwrap();
        assert_eq!(roles.layout, Layout::Wide);
        assert_eq!(roles.key.as_deref(), Some("machine"));
        assert_eq!(roles.time, Some(("ts".into(), Clock::Plain { zoned: true })));
        assert_eq!(roles.channels, ["body.temp", "vibration"]);
        assert_eq!(left_out(&roles, "limit"), "always 80 in the sample");
        assert_eq!(left_out(&roles, "seq"), "counts the rows");
        assert_eq!(left_out(&roles, "firmware"), "text");
        assert_eq!(roles.doubts, Vec::<String>::new());
    }

    #[test]
    fn labels_ids_and_other_times_are_left_out() {
        let table = table(200, |row| {
            format!(
                r#"{{"time":{},"a":{},"b":{},"order_id":{},"ingested":"2024-01-01T00:00:0{}Z",
                "anomaly":{},"changepoint":0.0}}"#,
                1_704_000_000 + row,
                noise(row),
                noise(row + 3),
                row * 7919 % 1000,
                row % 10,
                u8::from(row > 120)
            )
            .replace('\n', "")
        });
        let roles = roles(&table, false).unwrap();
        assert_eq!(roles.time, Some(("time".into(), Clock::Epoch(TimeUnit::S))));
        assert_eq!(roles.channels, ["a", "b"]);
        for name in ["anomaly", "changepoint"] {
            assert!(left_out(&roles, name).contains("label"), "{name}");
        }
        assert_eq!(left_out(&roles, "order_id"), "looks like an id");
        assert_eq!(left_out(&roles, "ingested"), "another time");
    }

    #[test]
    fn codes_beside_one_value_make_a_long_layout() {
        let table = table(600, |row| {
            let (patient, code) = (row % 2, ["hr", "spo2", "temp"][row / 2 % 3]);
            let base = [80.0, 97.0, 37.0][row / 2 % 3];
            let (minute, hour) = (row / 6 % 60, row / 360);
            format!(
                r#"{{"patient":"p{patient}","time":"2024-01-01T{hour:02}:{minute:02}:00Z",
                "code":"{code}","value":{},"unit":"x"}}"#,
                base + noise(row) / 10.0
            )
            .replace('\n', "")
        });
        let roles = roles(&table, false).unwrap();
        assert_eq!(roles.layout, Layout::Long);
        assert_eq!(roles.key.as_deref(), Some("patient"));
        assert_eq!(roles.code, Some(("code".into(), "value".into())));
        assert_eq!(roles.unit.as_deref(), Some("unit"));
        assert_eq!(roles.channels, ["hr", "spo2", "temp"]);
    }

    #[test]
    fn one_value_of_several_sensors_is_wide() {
        let table = table(300, |row| {
            let second = row / 3;
            format!(
                r#"{{"sensor":"s{}","t":{},"value":{}}}"#,
                row % 3,
                1_704_000_000 + second,
                noise(row)
            )
        });
        let roles = roles(&table, false).unwrap();
        assert_eq!((roles.layout, roles.key.as_deref()), (Layout::Wide, Some("sensor")));
        assert_eq!(roles.channels, ["value"]);
    }

    #[test]
    fn a_number_of_samples_tells_the_time_where_nothing_else_does() {
        let sampled = |name: &str, step: f64| {
            let table = table(100, |row| {
                format!(r#"{{"{name}":{},"mlii":{}}}"#, row as f64 * step, noise(row))
            });
            roles(&table, false).unwrap().time.unwrap().1
        };
        assert_eq!(sampled("sample", 1.0), Clock::Samples);
        assert_eq!(sampled("time", 0.004), Clock::Elapsed(TimeUnit::S));
        assert_eq!(sampled("time_ms", 4.0), Clock::Elapsed(TimeUnit::Ms));
    }

    #[test]
    fn messages_may_have_their_time_and_key_outside() {
        let mut table = Table::default();
        for row in 0..100 {
            let json = format!(r#"{{"id":"m{}","v":{}}}"#, row % 4, noise(row));
            let origin = Origin {
                piece: 0,
                key: Some(format!("m{}", row % 4)),
                timestamp_ms: Some(1_704_000_000_000 + row as i64 * 250),
            };
            table.push(json_row(&json).unwrap(), origin);
        }
        let found = roles(&table, true).unwrap();
        assert_eq!((found.time, found.key.as_deref()), (None, Some("id")));
        assert!(roles(&table, false).unwrap_err().contains("tells the time"));
    }

    #[test]
    fn text_with_a_severity_is_a_log() {
        let table = table(100, |row| {
            format!(
                r#"{{"@timestamp":"2024-01-01T00:00:{:02}Z","level":"info","host":"h1",
                "message":"connection {row} from 10.0.0.{row} closed","took_ms":{}}}"#,
                row % 60,
                noise(row)
            )
            .replace('\n', "")
        });
        let roles = roles(&table, false).unwrap();
        assert_eq!(roles.layout, Layout::Log);
        assert_eq!(roles.message.as_deref(), Some("message"));
        assert_eq!(roles.severity.as_deref(), Some("level"));
        assert_eq!(roles.key.as_deref(), Some("host"));
    }

    #[test]
    fn a_flat_series_is_kept_and_a_table_without_numbers_refused() {
        let time = |row: usize| format!("2024-01-01T00:{:02}:{:02}Z", row / 60, row % 60);
        let flat = table(100, |row| format!(r#"{{"time":"{}","value":45.0}}"#, time(row)));
        let found = roles(&flat, false).unwrap();
        assert_eq!(found.channels, ["value"]);
        assert!(found.doubts.iter().any(|doubt| doubt.contains("constant")));
        let text = table(100, |row| format!(r#"{{"time":"{}","word":"x"}}"#, time(row)));
        assert!(roles(&text, false).unwrap_err().contains("numbers"));
    }

    #[test]
    fn names_are_taken_apart_where_people_join_them() {
        for (name, words) in [
            ("sensorId", vec!["sensor", "id"]),
            ("body.machine_id", vec!["machine", "id"]),
            ("Unnamed: 0", vec!["unnamed"]),
            ("@timestamp", vec!["timestamp"]),
            ("readings.0", vec!["readings"]),
            ("", vec![]),
        ] {
            assert_eq!(name_words(name), words, "{name}");
        }
    }
}
