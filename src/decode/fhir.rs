//! HL7 FHIR R4 in JSON: an `Observation`, or a `Bundle` of them, a message.
//!
//! An observation is one row of the long layout for each value whose code is asked for: its own,
//! and that of each of its components (blood pressure). A waveform (`SampledData`) is a row a
//! sample.
//!
//! | row | from |
//! | --- | --- |
//! | key | `subject.reference`, or the path that `records.key` names |
//! | time | `effectiveDateTime`, `effectiveInstant`, `effectivePeriod` (its end, where the value is known; its start for a waveform), the first event of `effectiveTiming`, else `issued`; or the path that `records.time` names |
//! | code | the first of `code.coding` that a channel names, LOINC's first; else `code.text` |
//! | value | `valueQuantity`, `valueInteger`, `valueSampledData`; a value with a comparator (`<`, `>`) counts as the bound that it gives |
//! | unit | `valueQuantity.code` if its system is UCUM, else `valueQuantity.unit` |
//!
//! Left out and counted: other resources, codes that nobody asked for, observations that were
//! entered in error or cancelled, values with a `dataAbsentReason`. A fault costs the observation
//! or component that it is in, and names its place in the message.

use std::borrow::Cow;
use std::cell::Cell as Counter;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::Refusal;
use super::columns::{Cell, Row, RowBuilder, RowRules, Rows};
use crate::config::{Layout, Records, TimeUnit};
use crate::source::Messages;

/// Most rows of one message: 45 minutes of a waveform at 360 Hz.
const MAX_ROWS: usize = 1_000_000;
/// Most values within one resource, and their deepest nesting.
const MAX_VALUES: usize = 100_000;
const MAX_DEPTH: usize = 16;
/// Most reasons that are written out for one message.
const MAX_REASONS: usize = 16;

const LOINC: &str = "http://loinc.org";
const UCUM: &str = "http://unitsofmeasure.org";

/// Positions in [`RowRules::fields`] of the records that [`records`] makes.
const TIME: usize = 0;
const CODE: usize = 1;
const VALUE: usize = 2;
const UNIT: usize = 3;
const KEY: usize = 4;

/// `[records]` with the fields that the standard has.
pub(super) fn records(records: &Records) -> Records {
    Records {
        layout: Layout::Long,
        key: Some(records.key.clone().unwrap_or_else(|| "subject.reference".to_owned())),
        time: Some(records.time.clone().unwrap_or_else(|| "effective".to_owned())),
        code: "code".to_owned(),
        value: "value".to_owned(),
        unit: Some("unit".to_owned()),
        time_unit: TimeUnit::Auto,
        time_format: None,
        sample_rate: None,
        ..records.clone()
    }
}

/// Decodes messages that are an `Observation` or a `Bundle` each.
pub(super) struct Fhir {
    rules: Arc<RowRules>,
    /// Where in a resource its key is.
    key: Vec<String>,
    /// Where its time is, if not where the standard has it.
    time: Option<Vec<String>>,
}

impl Fhir {
    /// `rules` are those of [`records`], of the same `[records]`.
    pub fn new(rules: Arc<RowRules>, records: &Records) -> Self {
        let path = |path: &String| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        Self { key: path(&rules.fields()[KEY]), time: records.time.as_ref().map(path), rules }
    }

    /// The rows of the messages in `range`.
    pub fn decode(&mut self, messages: &Messages, range: Range<usize>) -> Result<Rows, Refusal> {
        let mut rows = RowBuilder::with_capacity(&self.rules, range.len());
        for index in range {
            rows.of_message(index);
            let mut out = Output { rows: &mut rows, room: MAX_ROWS, faults: 0 };
            if let Err(reason) = self.message(messages.get(index).payload, &mut out) {
                out.refuse(&reason);
            }
        }
        Ok(rows.finish())
    }

    fn message(&self, payload: &[u8], out: &mut Output<'_, '_>) -> Result<(), String> {
        let text = std::str::from_utf8(payload)
            .map_err(|_| "expected a FHIR resource, found text that is not UTF-8".to_owned())?;
        // Checks the whole message for its form, so that nothing of one that is cut off is kept.
        let [kind, entries] = members(text, ["resourceType", "entry"]).map_err(no_resource)?;
        if kind.is_none_or(|kind| kind.get() != "\"Bundle\"") {
            return self.resource("", text, out);
        }
        let Some(entries) = entries else { return Ok(()) };
        if !entries.get().starts_with('[') {
            let found = parse(entries.get(), &|_| true).map_err(no_resource)?;
            return Err(format!("entry: expected a list, found {}", found.cell()));
        }
        for_each_element(entries.get(), |index, entry| {
            if let Err(reason) = self.entry(index, entry.get(), out) {
                out.refuse(&reason);
            }
        })
        .map_err(no_resource)
    }

    /// What an entry of a bundle holds, which may be nothing (a search's outcome, a deletion).
    fn entry(&self, index: usize, entry: &str, out: &mut Output<'_, '_>) -> Result<(), String> {
        let place = |error| format!("entry[{index}]: expected an entry of a Bundle: {error}");
        let [resource] = members(entry, ["resource"]).map_err(place)?;
        match resource {
            Some(resource) => {
                self.resource(&format!("entry[{index}].resource."), resource.get(), out)
            }
            None => Ok(()),
        }
    }

    /// A resource at `place` in its message (`""`, or a path with a dot at its end).
    fn resource(&self, place: &str, text: &str, out: &mut Output<'_, '_>) -> Result<(), String> {
        let heads = [self.key.first(), self.time.as_ref().and_then(|time| time.first())];
        let is_read = |name: &str| {
            READ.contains(&name)
                || name.starts_with("value")
                || heads.iter().flatten().any(|head| *head == name)
        };
        let resource = parse(text, &is_read)
            .map_err(|error| format!("{}expected a FHIR resource: {error}", prefix(place)))?;
        let Json::Object(_) = resource else {
            return Err(format!(
                "{}expected a FHIR resource, found {}",
                prefix(place),
                resource.cell()
            ));
        };
        match resource.get("resourceType") {
            Json::Text(kind) if kind == "Observation" => self.observation(place, &resource, out),
            Json::Text(kind) if kind == "Bundle" => {
                Err(format!("{}expected an Observation, found a Bundle", prefix(place)))
            }
            Json::Text(_) => {
                out.rows.skip();
                Ok(())
            }
            found => Err(format!(
                "{place}resourceType: expected \"Observation\" or \"Bundle\", found {}",
                found.cell()
            )),
        }
    }

    fn observation(
        &self,
        place: &str,
        resource: &Json<'_>,
        out: &mut Output<'_, '_>,
    ) -> Result<(), String> {
        if let Json::Text(status) = resource.get("status")
            && matches!(status.as_ref(), "entered-in-error" | "cancelled")
        {
            out.rows.skip();
            return Ok(());
        }
        let mut parts = vec![(place.to_owned(), resource)];
        match resource.get("component") {
            Json::Absent | Json::Null => {}
            Json::List(components) => parts.extend(
                components
                    .iter()
                    .enumerate()
                    .map(|(at, part)| (format!("{place}component[{at}]."), part)),
            ),
            found => {
                return Err(format!("{place}component: expected a list, found {}", found.cell()));
            }
        }
        let mut asked_for = Vec::new();
        for (place, part) in &parts {
            match self.code(place, part) {
                Ok(Some(code)) => asked_for.push((place, *part, code)),
                Ok(None) => {}
                Err(reason) => out.refuse(&reason),
            }
        }
        if asked_for.is_empty() {
            out.rows.skip();
            return Ok(());
        }

        let key = resource.at(&self.key);
        let key = match key {
            Json::Text(key) => key.as_ref(),
            _ => {
                let path = self.key.join(".");
                return Err(format!(
                    "{place}{path}: expected a key, as text, found {}",
                    key.cell()
                ));
            }
        };
        let time = self.effective(place, resource)?;
        let mut readings = Vec::new();
        for (number, (place, part, code)) in asked_for.iter().enumerate() {
            let held = readings.len();
            let source = Source { number, place, code, time, room: out.room };
            if let Err(reason) = readings_of(source, part, &mut readings) {
                readings.truncate(held);
                out.refuse(&reason);
            } else if readings.len() == held {
                out.rows.skip();
            }
            out.room = out.room.saturating_sub(readings.len() - held);
        }
        // The channels of a waveform side by side.
        readings.sort_by_key(|reading| reading.time);
        for reading in &readings {
            let place = &prefix(asked_for[reading.part].0);
            out.rows.push(&FhirRow { key, reading, place });
        }
        Ok(())
    }

    /// The code of an observation or a component that a channel asks for.
    fn code<'a>(&self, place: &str, part: &'a Json<'_>) -> Result<Option<&'a str>, String> {
        let concept = part.get("code");
        let Json::Object(_) = concept else {
            return Err(format!("{place}code: expected an object, found {}", concept.cell()));
        };
        let codings = match concept.get("coding") {
            Json::List(codings) => codings.as_slice(),
            Json::Absent | Json::Null => &[],
            found => {
                return Err(format!("{place}code.coding: expected a list, found {}", found.cell()));
            }
        };
        let of_loinc = |coding: &&Json<'_>| matches!(coding.get("system"), Json::Text(system) if system == LOINC);
        let loinc = codings.iter().filter(|coding| of_loinc(coding));
        let others = codings.iter().filter(|coding| !of_loinc(coding));
        let codes =
            loinc.chain(others).map(|coding| coding.get("code")).chain([concept.get("text")]);
        Ok(codes
            .filter_map(|code| match code {
                Json::Text(code) => Some(code.as_ref()),
                _ => None,
            })
            .find(|code| self.rules.has_code(code)))
    }

    fn effective(&self, place: &str, resource: &Json<'_>) -> Result<Effective, String> {
        let instant = |path: &str, value: &Json<'_>| {
            self.instants(value).ok_or_else(|| {
                format!(
                    "{place}{path}: expected a FHIR dateTime from year 0 to 9999, found {}",
                    value.cell()
                )
            })
        };
        let single = |path: &str, value: &Json<'_>| {
            instant(path, value).map(|(first, _)| Effective { value: first, wave: first })
        };
        if let Some(path) = &self.time {
            return single(&path.join("."), resource.at(path));
        }
        for name in ["effectiveDateTime", "effectiveInstant"] {
            let value = resource.get(name);
            if value.is_there() {
                return single(name, value);
            }
        }
        let period = resource.get("effectivePeriod");
        let (start, end) = (period.get("start"), period.get("end"));
        if start.is_there() || end.is_there() {
            let ended = end.is_there().then(|| instant("effectivePeriod.end", end)).transpose()?;
            let began =
                start.is_there().then(|| instant("effectivePeriod.start", start)).transpose()?;
            let first = began.or(ended).map_or(0, |(first, _)| first);
            let last = ended.map_or(first, |(_, last)| last);
            return Ok(Effective { value: last, wave: first });
        }
        if let Json::List(events) = resource.get("effectiveTiming").get("event")
            && let Some(event) = events.first()
        {
            return single("effectiveTiming.event[0]", event);
        }
        single("issued", resource.get("issued"))
    }

    /// The first and the last microsecond that a FHIR dateTime stands for: a date, a month or a
    /// year is all of it, in `records.time_zone`.
    fn instants(&self, value: &Json<'_>) -> Option<(i64, i64)> {
        let Json::Text(text) = value else { return None };
        let begins =
            |date: &str| self.rules.times().micros(Cell::Text(&format!("{date}T00:00:00")));
        let number = |range: Range<usize>| -> Option<i32> {
            let digits = text.get(range)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let year = number(0..4)?;
        let (first, next) = match text.len() {
            4 => (format!("{text}-01-01"), format!("{:04}-01-01", year + 1)),
            7 => {
                let next = match number(5..7)? {
                    12 => format!("{:04}-01-01", year + 1),
                    month => format!("{year:04}-{:02}-01", month + 1),
                };
                (format!("{text}-01"), next)
            }
            10 => {
                let date: chrono::NaiveDate = text.parse().ok()?;
                (text.to_string(), date.succ_opt()?.to_string())
            }
            _ if text.as_bytes().get(4) == Some(&b'-') => {
                let micros = self.rules.times().micros(Cell::Text(text))?;
                return Some((micros, micros));
            }
            _ => return None,
        };
        let first = begins(&first)?;
        // The year 9999 has no next one.
        Some((first, begins(&next).map_or(first, |next| next - 1)))
    }
}

/// Where values come from.
#[derive(Clone, Copy)]
struct Source<'a> {
    /// Number of the observation or component.
    number: usize,
    place: &'a str,
    code: &'a str,
    time: Effective,
    /// Values that the message may still have.
    room: usize,
}

/// Appends the values of an observation or a component.
fn readings_of<'a>(
    source: Source<'a>,
    part: &'a Json<'_>,
    readings: &mut Vec<Reading<'a>>,
) -> Result<(), String> {
    let Source { number, place, code, time, room } = source;
    if part.get("dataAbsentReason").is_there() {
        return Ok(());
    }
    let mut push = |value, unit| {
        if room == 0 {
            return Err(format!("{}expected at most {MAX_ROWS} values", prefix(place)));
        }
        readings.push(Reading { part: number, time: time.value, code, value, unit });
        Ok(())
    };
    let quantity = part.get("valueQuantity");
    if quantity.is_there() {
        let Json::Object(_) = quantity else {
            let found = quantity.cell();
            return Err(format!("{place}valueQuantity: expected an object, found {found}"));
        };
        return match quantity.get("value") {
            // A quantity may be given by an extension alone.
            Json::Absent | Json::Null => Ok(()),
            Json::Number(value) => push(*value, unit_of(quantity)),
            found => Err(format!(
                "{place}valueQuantity.value: expected a number, found {}",
                found.cell()
            )),
        };
    }
    match part.get("valueInteger") {
        Json::Absent | Json::Null => {}
        Json::Number(value) => return push(*value, None),
        found => {
            return Err(format!("{place}valueInteger: expected a number, found {}", found.cell()));
        }
    }
    let samples = part.get("valueSampledData");
    if samples.is_there() {
        return sampled(source, samples, readings);
    }
    match part.first_named("value") {
        Some(name) => Err(format!(
            "{place}value[x]: expected valueQuantity, valueInteger or valueSampledData, found \
             {name}"
        )),
        None => Ok(()),
    }
}

/// Fields of an observation that are read; those whose name begins with `value` are, too.
const READ: [&str; 11] = [
    "resourceType",
    "status",
    "code",
    "subject",
    "effectiveDateTime",
    "effectiveInstant",
    "effectivePeriod",
    "effectiveTiming",
    "issued",
    "dataAbsentReason",
    "component",
];

fn no_resource(error: serde_json::Error) -> String {
    format!("expected a FHIR resource: {error}")
}

/// A place as it stands before a reason: without the dot, with a colon.
fn prefix(place: &str) -> String {
    match place.strip_suffix('.') {
        Some(place) => format!("{place}: "),
        None => String::new(),
    }
}

/// Where the rows of a message go.
struct Output<'o, 'r> {
    rows: &'o mut RowBuilder<'r>,
    /// Rows that it may still have.
    room: usize,
    faults: usize,
}

impl Output<'_, '_> {
    fn refuse(&mut self, reason: &str) {
        self.faults += 1;
        // More are counted, but would only take room.
        self.rows.refuse(if self.faults > MAX_REASONS { "" } else { reason });
    }
}

/// When an observation was made, microseconds since the epoch.
#[derive(Clone, Copy)]
struct Effective {
    /// When its value was known.
    value: i64,
    /// When its waveform began.
    wave: i64,
}

struct Reading<'a> {
    /// Number of the observation or component that it is from.
    part: usize,
    time: i64,
    code: &'a str,
    /// NaN where it is missing.
    value: f64,
    unit: Option<&'a str>,
}

struct FhirRow<'a> {
    key: &'a str,
    reading: &'a Reading<'a>,
    place: &'a str,
}

impl Row for FhirRow<'_> {
    fn cell(&self, field: usize) -> Cell<'_> {
        match field {
            TIME => Cell::Instant(self.reading.time),
            CODE => Cell::Text(self.reading.code),
            VALUE => Cell::Float(self.reading.value),
            UNIT => self.reading.unit.map_or(Cell::Absent, Cell::Text),
            KEY => Cell::Text(self.key),
            _ => Cell::Absent,
        }
    }

    fn found(&self) -> String {
        "of an observation".to_owned()
    }

    fn place(&self) -> &str {
        self.place
    }
}

/// The code of a quantity's unit where that is UCUM, else its name.
fn unit_of<'a>(quantity: &'a Json<'_>) -> Option<&'a str> {
    let text = |name: &str| match quantity.get(name) {
        Json::Text(text) => Some(text.as_ref()),
        _ => None,
    };
    match (text("system"), text("code"), text("unit")) {
        (None | Some(UCUM), Some(code), _) => Some(code),
        (_, code, unit) => unit.or(code),
    }
}

/// The samples of a waveform: `origin + factor * sample`, a period apart. `E` (no value), `U` and
/// `L` (beyond what can be measured) are missing.
fn sampled<'a>(
    source: Source<'a>,
    wave: &'a Json<'_>,
    readings: &mut Vec<Reading<'a>>,
) -> Result<(), String> {
    let Source { number, place, code, time, room } = source;
    let expected = |name: &str, what: &str, found: &Json<'_>| {
        format!("{place}valueSampledData.{name}: expected {what}, found {}", found.cell())
    };
    let origin = wave.get("origin");
    let Json::Number(zero) = origin.get("value") else {
        return Err(expected("origin.value", "a number", origin.get("value")));
    };
    let period_ms = match wave.get("period") {
        Json::Number(period) if *period > 0.0 => *period,
        found => return Err(expected("period", "milliseconds, above 0", found)),
    };
    let factor = match wave.get("factor") {
        Json::Absent | Json::Null => 1.0,
        Json::Number(factor) => *factor,
        found => return Err(expected("factor", "a number", found)),
    };
    match wave.get("dimensions") {
        Json::Number(1.0) => {}
        found => return Err(expected("dimensions", "1: a component for each lead", found)),
    }
    let data = match wave.get("data") {
        // All samples may be absent, for a reason that an extension gives.
        Json::Absent | Json::Null => return Ok(()),
        Json::Text(data) => data.as_ref(),
        found => return Err(expected("data", "text", found)),
    };
    let unit = unit_of(origin);
    for (at, sample) in data.split_ascii_whitespace().enumerate() {
        if at >= room {
            return Err(format!("{}expected at most {MAX_ROWS} values", prefix(place)));
        }
        let value = match sample {
            "E" | "U" | "L" => f64::NAN,
            text => {
                let sample: Option<f64> =
                    text.parse().ok().filter(|sample: &f64| sample.is_finite());
                let sample = sample.ok_or_else(|| {
                    expected("data", "numbers, E, U and L", &Json::Text(Cow::Borrowed(text)))
                })?;
                sample * factor + zero
            }
        };
        let since_start = (at as f64 * period_ms * 1e3).round() as i64;
        let time = time.wave.saturating_add(since_start);
        readings.push(Reading { part: number, time, code, value, unit });
    }
    Ok(())
}

/// A JSON value that borrows its text. Of names that appear twice, the last one counts.
enum Json<'a> {
    /// What a name that is not there stands for.
    Absent,
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
    /// A list or an object that is nested too deep to be read.
    Deep,
}

impl<'a> Json<'a> {
    fn get(&self, name: &str) -> &Json<'a> {
        let Json::Object(members) = self else { return &Json::Absent };
        members
            .iter()
            .rev()
            .find(|(found, _)| found == name)
            .map_or(&Json::Absent, |(_, value)| value)
    }

    /// The value at the end of a path of names, and of numbers in lists.
    fn at(&self, path: &[String]) -> &Json<'a> {
        path.iter().fold(self, |value, step| match value {
            Json::List(values) => {
                step.parse().ok().and_then(|at: usize| values.get(at)).unwrap_or(&Json::Absent)
            }
            value => value.get(step),
        })
    }

    /// Whether there is a value; null is none.
    fn is_there(&self) -> bool {
        !matches!(self, Json::Absent | Json::Null)
    }

    /// The first name that begins with `prefix`.
    fn first_named(&self, prefix: &str) -> Option<&str> {
        let Json::Object(members) = self else { return None };
        members.iter().map(|(name, _)| name.as_ref()).find(|name| name.starts_with(prefix))
    }

    /// For a person.
    fn cell(&self) -> Cell<'_> {
        match self {
            Json::Absent => Cell::Absent,
            Json::Null => Cell::Null,
            Json::Bool(true) => Cell::Other("true"),
            Json::Bool(false) => Cell::Other("false"),
            Json::Number(number) => Cell::Float(*number),
            Json::Text(text) => Cell::Text(text),
            Json::List(_) => Cell::Other("a list"),
            Json::Object(_) => Cell::Other("an object"),
            Json::Deep => Cell::Other("something nested too deep"),
        }
    }
}

/// Reads `text`, of whose members, if it is an object, only those that `is_read` says.
fn parse<'a>(text: &'a str, is_read: &dyn Fn(&str) -> bool) -> Result<Json<'a>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let room = Counter::new(MAX_VALUES);
    let value = Read { depth: 0, room: &room, is_read }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads one value at a depth, while there is room.
#[derive(Clone, Copy)]
struct Read<'r> {
    depth: usize,
    room: &'r Counter<usize>,
    is_read: &'r dyn Fn(&str) -> bool,
}

impl<'de> DeserializeSeed<'de> for Read<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        let room = self.room.get().checked_sub(1).ok_or_else(|| {
            D::Error::custom(format!("more than {MAX_VALUES} values in one resource"))
        })?;
        self.room.set(room);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Read<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        if self.depth == MAX_DEPTH {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Json::Deep);
        }
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Read { depth: self.depth + 1, ..self })? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        if self.depth == MAX_DEPTH {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Json::Deep);
        }
        let mut members = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            if self.depth == 0 && !(self.is_read)(&name) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            members.push((name, map.next_value_seed(Read { depth: self.depth + 1, ..self })?));
        }
        Ok(Json::Object(members))
    }
}

/// The name of a member, borrowed where no escape is in it.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The values of the members `names` of the object `text`, unread; the last of each name.
fn members<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    struct Members<'n, const N: usize>([&'n str; N]);
    impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
        type Value = [Option<&'de RawValue>; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut values = [None; N];
            while let Some(Name(name)) = map.next_key()? {
                match self.0.iter().position(|wanted| *wanted == name) {
                    Some(at) => values[at] = Some(map.next_value()?),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(values)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let values = deserializer.deserialize_map(Members(names))?;
    deserializer.end()?;
    Ok(values)
}

/// Visits the elements of the list `text`, unread.
fn for_each_element<'a>(
    text: &'a str,
    visit: impl FnMut(usize, &'a RawValue),
) -> Result<(), serde_json::Error> {
    struct Elements<F>(F);
    impl<'de, F: FnMut(usize, &'de RawValue)> Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            let mut index = 0;
            while let Some(element) = list.next_element()? {
                (self.0)(index, element);
                index += 1;
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_seq(Elements(visit))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float32Type, TimestampMicrosecondType};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::config::{Channel, Encoding, Format, Records, Secret};
    use crate::decode::{Decoded, Decoder, FIRST_CHANNEL_COLUMN, KEY_COLUMN, TIME_COLUMN};
    use crate::source::{Lane, Messages};

    /// Midnight of 2026-01-01, microseconds.
    const MIDNIGHT: i64 = 1_767_225_600_000_000;
    const MINUTE: i64 = 60_000_000;

    /// Heart rate, systolic and diastolic pressure, glucose in mmol/L, lead I in mV.
    fn ward() -> Records {
        let channel = |codes: &[&str], unit: &str| Channel {
            codes: codes.iter().map(|code| (*code).to_owned()).collect(),
            unit: Some(unit.to_owned()),
            ..Channel::default()
        };
        let named = [
            ("heart_rate", channel(&["8867-4"], "/min")),
            ("systolic", channel(&["8480-6"], "mm[Hg]")),
            ("diastolic", channel(&["8462-4"], "mm[Hg]")),
            ("glucose", channel(&["2345-7", "15074-8"], "mmol/L")),
            ("lead_i", channel(&["131329"], "mV")),
        ];
        Records {
            channels: named.iter().map(|(name, _)| (*name).to_owned()).collect(),
            channel: named.map(|(name, rule)| (name.to_owned(), rule)).into_iter().collect(),
            ..Records::default()
        }
    }

    fn decode_as<T: AsRef<[u8]>>(records: &Records, payloads: &[T]) -> Decoded {
        let mut messages = Messages::default();
        for (offset, payload) in (100..).zip(payloads) {
            messages.push(offset, Some(0), None, payload.as_ref(), Vec::new());
        }
        let encoding = Encoding { format: Some(Format::Fhir), ..Encoding::default() };
        let mut decoder = Decoder::new(records, &encoding).unwrap();
        decoder.decode(&Lane::new("ward", 0), &messages).unwrap()
    }

    fn decode(message: &Value) -> Decoded {
        decode_as(&ward(), &[message.to_string()])
    }

    /// (key, microseconds since midnight, channels by name).
    type Record = (String, i64, BTreeMap<String, f32>);

    fn records(decoded: &Decoded) -> Vec<Record> {
        let batch = &decoded.records;
        let keys = batch.column(KEY_COLUMN).as_string::<i32>();
        let times = batch.column(TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
        (0..batch.num_rows())
            .map(|row| {
                let channels = batch.schema().fields()[FIRST_CHANNEL_COLUMN..]
                    .iter()
                    .zip(&batch.columns()[FIRST_CHANNEL_COLUMN..])
                    .map(|(field, column)| (field, column.as_primitive::<Float32Type>()))
                    .filter(|(_, column)| column.is_valid(row))
                    .map(|(field, column)| (field.name().clone(), column.value(row)))
                    .collect();
                (keys.value(row).to_owned(), times.value(row) - MIDNIGHT, channels)
            })
            .collect()
    }

    fn record(key: &str, micros: i64, channels: &[(&str, f32)]) -> Record {
        let channels = channels.iter().map(|(name, value)| ((*name).to_owned(), *value));
        (key.to_owned(), micros, channels.collect())
    }

    fn reasons(decoded: &Decoded) -> Vec<(i64, &str)> {
        decoded.dead_letters.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect()
    }

    fn reason(message: &Value) -> String {
        let decoded = decode(message);
        assert_eq!(decoded.dead_letters.len(), 1, "{:?} of {message}", records(&decoded));
        decoded.dead_letters[0].reason.clone()
    }

    fn heart_rate(patient: &str, time: &str, value: f64) -> Value {
        json!({
            "resourceType": "Observation",
            "id": "hr-1",
            "status": "final",
            "category": [{"coding": [{"code": "vital-signs"}]}],
            "code": {"coding": [
                {"system": "http://example.org/local", "code": "HR"},
                {"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"},
            ]},
            "subject": {"reference": format!("Patient/{patient}")},
            "effectiveDateTime": time,
            "valueQuantity": {
                "value": value, "unit": "beats/minute",
                "system": "http://unitsofmeasure.org", "code": "/min",
            },
        })
    }

    /// `observation` with some of its members replaced; null takes one away.
    fn with(mut observation: Value, changes: Value) -> Value {
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(observation.as_object_mut().unwrap().remove(name)),
                value => observation[name] = value.clone(),
            }
        }
        observation
    }

    fn hr() -> Value {
        heart_rate("1", "2026-01-01T00:01:00Z", 72.0)
    }

    fn bundle(kind: &str, resources: &[Value]) -> Value {
        let entries: Vec<Value> = resources
            .iter()
            .map(|resource| json!({"fullUrl": "urn:x", "resource": resource}))
            .collect();
        json!({"resourceType": "Bundle", "type": kind, "entry": entries})
    }

    #[test]
    fn an_observation_is_a_record_of_its_patient_and_time() {
        let decoded = decode(&heart_rate("1", "2026-01-01T01:01:00.5+01:00", 72.5));
        let time = MINUTE + 500_000;
        assert_eq!(records(&decoded), [record("Patient/1", time, &[("heart_rate", 72.5)])]);
        assert_eq!((decoded.skipped, decoded.dead_letters.len()), (0, 0));
    }

    #[test]
    fn components_are_channels_of_one_record() {
        let component = |code: &str, value: Value| {
            json!({
                "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                "valueQuantity": {"value": value, "unit": "kPa", "code": "kPa"},
            })
        };
        let pressure = with(
            hr(),
            json!({
                "code": {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]},
                "valueQuantity": null,
                "component": [
                    component("8480-6", json!(16)),
                    component("8462-4", json!(10.5)),
                    component("8478-0", json!(12.2)),
                ],
            }),
        );
        let decoded = decode(&pressure);
        let (found, dead) = (records(&decoded), reasons(&decoded));
        assert_eq!((found.len(), dead.len()), (1, 0), "{dead:?}");
        assert!((found[0].2["systolic"] - 120.0).abs() < 0.02, "{found:?}");
        assert!((found[0].2["diastolic"] - 78.757).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn laboratory_values_are_converted_by_what_they_measure() {
        let glucose = |code: &str, quantity: Value| {
            with(
                hr(),
                json!({
                    "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
                    "valueQuantity": quantity,
                }),
            )
        };
        let quantities = [
            ("2345-7", json!({"value": 90, "unit": "mg/dL", "code": "mg/dL"})),
            ("2345-7", json!({"value": 90, "unit": "mg/dl"})),
            ("2345-7", json!({"value": 0.9, "unit": "g/L", "system": "urn:local", "code": "17"})),
            ("15074-8", json!({"value": 4.9957, "code": "mmol/L"})),
            ("15074-8", json!({"value": 4.9957})),
            ("15074-8", json!({"value": 4.9957, "comparator": "<", "unit": "mmol/L"})),
        ];
        for (code, quantity) in quantities {
            let found = records(&decode(&glucose(code, quantity.clone())));
            assert!((found[0].2["glucose"] - 4.9957).abs() < 1e-3, "{quantity}: {found:?}");
        }
        assert_eq!(
            reason(&bundle(
                "batch",
                &[hr(), glucose("2345-7", json!({"value": 9, "unit": "furlong"}))]
            )),
            "entry[1].resource: field \"unit\": expected a unit that converts to the channel's, \
             found \"furlong\""
        );
    }

    #[test]
    fn every_kind_of_bundle_is_read_and_other_resources_are_counted() {
        for kind in ["collection", "batch", "searchset", "message", "transaction"] {
            let resources = [
                json!({"resourceType": "MessageHeader", "entry": 1, "code": []}),
                hr(),
                json!({"resourceType": "Patient", "id": "1", "name": [{"family": "Doe"}]}),
                heart_rate("2", "2026-01-01T00:02:00Z", 80.0),
                json!({"resourceType": "OperationOutcome", "issue": []}),
            ];
            let decoded = decode(&bundle(kind, &resources));
            assert_eq!(
                records(&decoded),
                [
                    record("Patient/1", MINUTE, &[("heart_rate", 72.0)]),
                    record("Patient/2", 2 * MINUTE, &[("heart_rate", 80.0)]),
                ]
            );
            assert_eq!((decoded.skipped, decoded.dead_letters.len()), (3, 0));
        }
        for empty in [
            json!({"resourceType": "Bundle", "type": "searchset", "total": 0}),
            json!({"resourceType": "Bundle", "entry": []}),
            json!({"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE"}}]}),
        ] {
            let decoded = decode(&empty);
            assert_eq!((decoded.records.num_rows(), decoded.dead_letters.len()), (0, 0));
        }
        assert_eq!(decode(&json!({"resourceType": "Patient"})).skipped, 1);
    }

    #[test]
    fn what_is_no_value_or_nobody_asked_for_is_counted_and_left_out() {
        for changes in [
            json!({"status": "entered-in-error"}),
            json!({"status": "cancelled"}),
            json!({"dataAbsentReason": {"text": "probe off"}}),
            json!({"valueQuantity": null}),
            json!({"valueQuantity": {"unit": "/min"}}),
            json!({"code": {"text": "mood"}, "effectiveDateTime": "never", "subject": null}),
            json!({"code": {"coding": [{"code": "9279-1"}]}, "valueQuantity": "many"}),
        ] {
            let decoded = decode(&with(hr(), changes.clone()));
            let found = (decoded.records.num_rows(), decoded.dead_letters.len(), decoded.skipped);
            assert_eq!(found, (0, 0, 1), "{changes}");
        }
    }

    #[test]
    fn codes_of_other_systems_and_text_count_where_loinc_has_none() {
        for code in [
            json!({"coding": [{"code": "8867-4"}]}),
            json!({"text": "8867-4"}),
            json!({"coding": null, "text": "8867-4"}),
            json!({"coding": [
                {"system": "urn:local", "code": "8480-6"},
                {"system": "http://loinc.org", "code": "8867-4"},
            ]}),
        ] {
            let found = records(&decode(&with(hr(), json!({"code": code}))));
            assert_eq!(found, [record("Patient/1", MINUTE, &[("heart_rate", 72.0)])], "{code}");
        }
    }

    #[test]
    fn integers_are_values_too() {
        let decoded = decode(&with(hr(), json!({"valueQuantity": null, "valueInteger": 71})));
        assert_eq!(records(&decoded), [record("Patient/1", MINUTE, &[("heart_rate", 71.0)])]);
    }

    #[test]
    fn time_is_that_of_the_measurement_however_it_is_told() {
        let hour = 60 * MINUTE;
        let day = 24 * hour;
        for (changes, expected) in [
            (json!({"effectiveDateTime": null, "effectiveInstant": "2026-01-01T01:00:00Z"}), hour),
            (
                json!({"effectiveDateTime": null, "effectivePeriod": {"start": "2026-01-01T01:00:00Z"}}),
                hour,
            ),
            (
                json!({"effectiveDateTime": null, "effectivePeriod":
                    {"start": "2026-01-01T01:00:00Z", "end": "2026-01-01T02:00:00Z"}}),
                2 * hour,
            ),
            (json!({"effectiveDateTime": null, "effectivePeriod": {"end": "2026-01-01"}}), day - 1),
            (
                json!({"effectiveDateTime": null, "effectivePeriod": {"end": "2026-01"}}),
                31 * day - 1,
            ),
            (json!({"effectiveDateTime": null, "effectivePeriod": {"end": "2026"}}), 365 * day - 1),
            (
                json!({"effectiveDateTime": null, "effectiveTiming":
                    {"event": ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]}}),
                hour,
            ),
            (json!({"effectiveDateTime": null, "issued": "2026-01-01T01:00:00Z"}), hour),
            (json!({"effectiveDateTime": "2026-01-02"}), day),
            (json!({"effectiveDateTime": "2026-02"}), 31 * day),
            (json!({"effectiveDateTime": "2026"}), 0),
        ] {
            let found = records(&decode(&with(hr(), changes.clone())));
            assert_eq!(
                found,
                [record("Patient/1", expected, &[("heart_rate", 72.0)])],
                "{changes}"
            );
        }
    }

    #[test]
    fn other_fields_may_hold_key_and_time() {
        let records_of = Records {
            key: Some("encounter.identifier.0.value".into()),
            time: Some("issued".into()),
            ..ward()
        };
        let message = with(
            hr(),
            json!({
                "encounter": {"identifier": [{"value": "stay-9"}]},
                "issued": "2026-01-01T00:30:00Z",
            }),
        );
        let decoded = decode_as(&records_of, &[message.to_string()]);
        assert_eq!(records(&decoded), [record("stay-9", 30 * MINUTE, &[("heart_rate", 72.0)])]);
    }

    fn lead(data: &str) -> Value {
        json!({
            "code": {"coding": [{"code": "131329"}]},
            "valueSampledData": {
                "origin": {"value": 2048, "unit": "uV", "code": "uV"},
                "period": 2.5, "factor": 1000, "dimensions": 1, "data": data,
            },
        })
    }

    #[test]
    fn a_waveform_is_a_record_a_sample() {
        let wave =
            with(hr(), json!({"valueQuantity": null, "component": [lead("0 1 E -2.048 U")]}));
        let found = records(&decode(&wave));
        let sample = |at: i64, value: Option<f32>| {
            let channels: Vec<_> = value.map(|value| ("lead_i", value)).into_iter().collect();
            record("Patient/1", MINUTE + at * 2_500, &channels)
        };
        assert_eq!(
            found,
            [
                sample(0, Some(2.048)),
                sample(1, Some(3.048)),
                sample(2, None),
                sample(3, Some(0.0)),
                sample(4, None),
            ]
        );
    }

    #[test]
    fn waveforms_of_one_observation_lie_side_by_side() {
        let mut other = lead("1 1");
        other["code"]["coding"][0]["code"] = json!("8480-6");
        other["valueSampledData"]["origin"] = json!({"value": 0});
        let wave = with(hr(), json!({"valueQuantity": null, "component": [lead("0 1"), other]}));
        let found = records(&decode(&wave));
        assert_eq!(
            found,
            [
                record("Patient/1", MINUTE, &[("lead_i", 2.048), ("systolic", 1000.0)]),
                record("Patient/1", MINUTE + 2_500, &[("lead_i", 3.048), ("systolic", 1000.0)]),
            ]
        );
    }

    #[test]
    fn faults_name_their_place_and_cost_only_what_they_are_in() {
        let component =
            |quantity: Value| json!({"code": {"text": "8480-6"}, "valueQuantity": quantity});
        let resources = [
            hr(),
            with(hr(), json!({"valueQuantity": {"value": "high"}})),
            with(
                hr(),
                json!({"component": [component(json!({"value": [1]})), component(json!({"value": 5}))]}),
            ),
            heart_rate("2", "2026-01-01T00:02:00Z", 80.0),
        ];
        let decoded = decode(&bundle("collection", &resources));
        assert_eq!(
            records(&decoded),
            [
                record("Patient/1", MINUTE, &[("heart_rate", 72.0), ("systolic", 5.0)]),
                record("Patient/2", 2 * MINUTE, &[("heart_rate", 80.0)]),
            ]
        );
        assert_eq!(
            reasons(&decoded),
            [(
                100,
                "entry[1].resource.valueQuantity.value: expected a number, found \"high\"; and 1 \
                 more like it"
            )]
        );
    }

    #[test]
    fn every_fault_has_a_reason_that_says_what_was_expected() {
        for (message, expected) in [
            (
                json!({"resourceType": "Bundle", "entry": {}}),
                "entry: expected a list, found an object",
            ),
            (
                json!({"resourceType": "Bundle", "entry": [7]}),
                "entry[0]: expected an entry of a Bundle: ",
            ),
            (
                json!({"resourceType": "Bundle", "entry": [{"resource": 7}]}),
                "entry[0].resource: expected a FHIR resource, found 7",
            ),
            (
                json!({"status": "final"}),
                "resourceType: expected \"Observation\" or \"Bundle\", found nothing",
            ),
            (
                json!({"resourceType": 7}),
                "resourceType: expected \"Observation\" or \"Bundle\", found 7",
            ),
            (
                bundle("batch", &[bundle("batch", &[hr()])]),
                "entry[0].resource: expected an Observation, found a Bundle",
            ),
            (with(hr(), json!({"code": 8867})), "code: expected an object, found 8867"),
            (
                with(hr(), json!({"code": {"coding": "8867-4"}})),
                "code.coding: expected a list, found \"8867-4\"",
            ),
            (
                with(hr(), json!({"component": "none"})),
                "component: expected a list, found \"none\"",
            ),
            (
                with(hr(), json!({"subject": null})),
                "subject.reference: expected a key, as text, found nothing",
            ),
            (
                with(hr(), json!({"subject": {"reference": 7}})),
                "subject.reference: expected a key, as text, found 7",
            ),
            (
                with(hr(), json!({"subject": {"reference": ""}})),
                "field \"subject.reference\": expected a key, found an empty one",
            ),
            (
                with(hr(), json!({"valueQuantity": 72})),
                "valueQuantity: expected an object, found 72",
            ),
            (
                with(hr(), json!({"valueQuantity": {"value": true}})),
                "valueQuantity.value: expected a number, found true",
            ),
            (
                with(hr(), json!({"valueQuantity": null, "valueInteger": "7"})),
                "valueInteger: expected a number, found \"7\"",
            ),
            (
                with(hr(), json!({"valueQuantity": null, "valueString": "fast"})),
                "value[x]: expected valueQuantity, valueInteger or valueSampledData, found valueString",
            ),
            (
                with(hr(), json!({"effectiveDateTime": null})),
                "issued: expected a FHIR dateTime from year 0 to 9999, found nothing",
            ),
        ] {
            let found = reason(&message);
            assert!(found.starts_with(expected), "{found}\n{expected}");
        }
        for date in [
            "yesterday",
            "2026-13",
            "2026-00",
            "2026-02-30",
            "202",
            "12345",
            "2026-01-01T25:00:00Z",
            "99999-01-01",
            "20260101",
            "1767225600",
            "２０２６",
        ] {
            let found = reason(&with(hr(), json!({"effectiveDateTime": date})));
            assert!(
                found.starts_with("effectiveDateTime: expected a FHIR dateTime"),
                "{date}: {found}"
            );
        }
        for (name, value) in [
            ("origin", json!({})),
            ("period", json!(0)),
            ("period", json!("2")),
            ("factor", json!("x")),
            ("dimensions", json!(2)),
            ("data", json!(1)),
            ("data", json!("1 2 x")),
            ("data", json!("1 NaN")),
        ] {
            let mut lead = lead("1 2");
            lead["valueSampledData"][name] = value;
            let found = reason(&with(hr(), json!({"valueQuantity": null, "component": [lead]})));
            let place = format!("component[0].valueSampledData.{name}");
            assert!(found.starts_with(&place), "{name}: {found}");
        }
    }

    #[test]
    fn hostile_messages_are_dead_letters_and_nothing_else_is_lost() {
        let whole = bundle("collection", &[hr(), hr()]).to_string();
        let good = hr().to_string();
        let deep = format!(
            r#"{{"resourceType":"Observation","code":{}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let ignored = good.replacen(
            '{',
            &format!(r#"{{"text":{}{},"#, "[".repeat(100_000), "]".repeat(100_000)),
            1,
        );
        let many = format!(
            r#"{{"resourceType":"Observation","component":[{}1]}}"#,
            "[],".repeat(2_000_000)
        );
        let huge = good.replacen("72.0", "1e999", 1);
        let invalid = [good.as_bytes(), b"\xff"].concat();
        let payloads: Vec<&[u8]> = vec![
            b"",
            b" ",
            b"null",
            b"[]",
            b"17",
            b"\"text",
            b"{",
            b"{}",
            b"\x00\xff",
            &whole.as_bytes()[..whole.len() - 1],
            &whole.as_bytes()[..whole.len() / 2],
            &invalid,
            deep.as_bytes(),
            many.as_bytes(),
            huge.as_bytes(),
            good.as_bytes(),
            ignored.as_bytes(),
        ];
        let decoded = decode_as(&ward(), &payloads);
        assert_eq!(decoded.dead_letters.len(), payloads.len() - 2, "{:?}", reasons(&decoded));
        for letter in &decoded.dead_letters {
            assert!(letter.reason.contains("expected "), "{}", letter.reason);
            assert!(letter.reason.len() < 300, "{}", letter.reason);
        }
        assert_eq!(decoded.records.num_rows(), 1, "both are of one time");
    }

    #[test]
    fn of_a_name_that_appears_twice_the_last_one_counts() {
        let message = hr().to_string().replacen(
            "{",
            r#"{"status":"cancelled","subject":{"reference":"Patient/9"},"#,
            1,
        );
        assert_eq!(records(&decode_as(&ward(), &[message]))[0].0, "Patient/1");
    }

    #[test]
    fn a_bundle_of_fifty_megabytes_is_read_and_its_faults_are_told_in_short() {
        let good = json!({"resource": hr()}).to_string();
        let bad =
            json!({"resource": with(hr(), json!({"valueQuantity": {"value": "x"}}))}).to_string();
        let pair = format!("{good},{bad},");
        let pairs = (50 << 20) / pair.len();
        let message =
            format!(r#"{{"resourceType":"Bundle","entry":[{}{good}]}}"#, pair.repeat(pairs));
        let decoded = decode_as(&ward(), &[message]);
        assert_eq!(decoded.records.num_rows(), 1);
        assert_eq!(
            reasons(&decoded),
            [(
                100,
                format!(
                    "entry[1].resource.valueQuantity.value: expected a number, found \"x\"; and {} \
                     more like it",
                    pairs - 1
                )
                .as_str()
            )]
        );
    }

    #[test]
    fn pseudonyms_take_the_place_of_patients_and_dead_letters_say_nothing_of_them() {
        let records_of = Records { key_hash: Some(Secret::new("salt")), ..ward() };
        let bad = with(hr(), json!({"effectiveDateTime": "Patient/1"}));
        let decoded = decode_as(&records_of, &[bundle("batch", &[hr(), bad]).to_string()]);
        let found = records(&decoded);
        assert_eq!(found.len(), 1);
        assert!(found[0].0.len() == 32 && !found[0].0.contains("Patient"), "{found:?}");
        assert_eq!(decoded.dead_letters.len(), 1);
        let told = format!("{:?}", decoded.dead_letters);
        assert!(told.contains("entry[1].resource.effectiveDateTime: expected"), "{told}");
        assert!(!told.contains("Patient"), "{told}");
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            cut in 0..400_usize,
            noise in "[\\[\\]{}\",:0-9a-z]{0,6}",
        ) {
            decode_as(&ward(), &[bytes]);
            let mut text = bundle("batch", &[hr()]).to_string();
            let cut = cut.min(text.len());
            text.insert_str(cut, &noise);
            decode_as(&ward(), &[&text, &text[..cut]]);
        }

        #[test]
        fn dates_of_any_year_are_read_or_refused(date in "[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?") {
            let decoded = decode(&with(hr(), json!({"effectiveDateTime": date})));
            prop_assert_eq!(decoded.records.num_rows() + decoded.dead_letters.len(), 1);
        }
    }
}
