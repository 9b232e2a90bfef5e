//! Patients of a ward, with injected, recorded deteriorations.
//!
//! A bed has one patient after the other, each with an identity and a normal of its own. A monitor
//! takes vital signs every few minutes, the laboratory a sample every few hours; times are never
//! regular. Units are those of whoever measured: degrees Fahrenheit here, kilopascals there.
//!
//! [`FhirMessages`] writes what a hospital's interface would, vital signs as an `Observation` each
//! and a laboratory sample as a `Bundle`; [`RowMessages`] plain rows of (patient, time, code,
//! value, unit).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::f64::consts::TAU;
use std::ops::RangeInclusive;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use rand::{RngExt, SeedableRng};
use rand_distr::{Exp1, StandardNormal};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::EPOCH;
use super::messages::MessageStream;
use crate::config::TimeSpan;

/// What is measured, in the first of its units.
struct Measure {
    name: &'static str,
    /// Mean over patients and its standard deviation between them.
    mean: f64,
    between: f64,
    /// Standard deviation of a patient's own slow drift, and of a single value.
    drift: f64,
    noise: f64,
    /// Values lie within.
    range: RangeInclusive<f64>,
    /// The ways in which it is written; a patient's values all come in one.
    units: &'static [Unit],
}

/// A LOINC code, a UCUM unit, and how values get there: `factor * value + offset`.
struct Unit {
    code: &'static str,
    unit: &'static str,
    factor: f64,
    offset: f64,
    decimals: i32,
}

const fn unit(code: &'static str, unit: &'static str, decimals: i32) -> Unit {
    Unit { code, unit, factor: 1.0, offset: 0.0, decimals }
}

const fn times(code: &'static str, unit: &'static str, factor: f64, decimals: i32) -> Unit {
    Unit { code, unit, factor, offset: 0.0, decimals }
}

const HEART_RATE: usize = 0;
const RESPIRATION: usize = 1;
const OXYGEN: usize = 2;
const SYSTOLIC: usize = 3;
const DIASTOLIC: usize = 4;
const TEMPERATURE: usize = 5;
const LACTATE: usize = 6;
const CREATININE: usize = 7;
const LEUKOCYTES: usize = 8;
const PLATELETS: usize = 9;
const CRP: usize = 10;

/// What the monitor takes at each round; the temperature comes at some of them.
const VITALS: [usize; 6] = [HEART_RATE, RESPIRATION, OXYGEN, SYSTOLIC, DIASTOLIC, TEMPERATURE];
/// What the laboratory tells of a sample.
const LABS: std::ops::Range<usize> = LACTATE..MEASURES.len();

const MEASURES: [Measure; 15] = [
    Measure {
        name: "Heart rate",
        mean: 78.0,
        between: 9.0,
        drift: 4.0,
        noise: 2.0,
        range: 30.0..=200.0,
        units: &[unit("8867-4", "/min", 0)],
    },
    Measure {
        name: "Respiratory rate",
        mean: 16.0,
        between: 1.5,
        drift: 1.0,
        noise: 0.8,
        range: 6.0..=45.0,
        units: &[unit("9279-1", "/min", 0)],
    },
    Measure {
        name: "Oxygen saturation by pulse oximetry",
        mean: 96.5,
        between: 1.0,
        drift: 0.5,
        noise: 0.5,
        range: 55.0..=100.0,
        units: &[unit("59408-5", "%", 0)],
    },
    Measure {
        name: "Systolic blood pressure",
        mean: 124.0,
        between: 12.0,
        drift: 5.0,
        noise: 3.0,
        range: 50.0..=230.0,
        units: &[unit("8480-6", "mm[Hg]", 0), times("8480-6", "kPa", 0.133_322_387, 1)],
    },
    Measure {
        name: "Diastolic blood pressure",
        mean: 74.0,
        between: 8.0,
        drift: 3.5,
        noise: 2.5,
        range: 25.0..=130.0,
        units: &[unit("8462-4", "mm[Hg]", 0), times("8462-4", "kPa", 0.133_322_387, 1)],
    },
    Measure {
        name: "Body temperature",
        mean: 36.8,
        between: 0.2,
        drift: 0.15,
        noise: 0.08,
        range: 33.0..=42.0,
        units: &[
            unit("8310-5", "Cel", 1),
            Unit { code: "8310-5", unit: "[degF]", factor: 1.8, offset: 32.0, decimals: 1 },
        ],
    },
    Measure {
        name: "Lactate",
        mean: 1.2,
        between: 0.25,
        drift: 0.15,
        noise: 0.08,
        range: 0.3..=20.0,
        units: &[unit("2524-7", "mmol/L", 1), times("14118-4", "mg/dL", 9.0078, 1)],
    },
    Measure {
        name: "Creatinine",
        mean: 0.95,
        between: 0.2,
        drift: 0.06,
        noise: 0.03,
        range: 0.3..=12.0,
        units: &[unit("2160-0", "mg/dL", 2), times("14682-9", "umol/L", 88.402, 0)],
    },
    Measure {
        name: "Leukocytes",
        mean: 7.5,
        between: 1.5,
        drift: 0.6,
        noise: 0.3,
        range: 0.5..=60.0,
        units: &[unit("6690-2", "10*3/uL", 1), unit("6690-2", "10*9/L", 1)],
    },
    Measure {
        name: "Platelets",
        mean: 240.0,
        between: 45.0,
        drift: 10.0,
        noise: 6.0,
        range: 5.0..=900.0,
        units: &[unit("777-3", "10*3/uL", 0), unit("777-3", "10*9/L", 0)],
    },
    Measure {
        name: "C reactive protein",
        mean: 8.0,
        between: 4.0,
        drift: 1.5,
        noise: 0.6,
        range: 0.5..=450.0,
        units: &[unit("1988-5", "mg/L", 1), times("1988-5", "mg/dL", 0.1, 2)],
    },
    Measure {
        name: "Glucose",
        mean: 108.0,
        between: 12.0,
        drift: 8.0,
        noise: 6.0,
        range: 30.0..=600.0,
        units: &[unit("2345-7", "mg/dL", 0), times("14749-6", "mmol/L", 0.055_507, 1)],
    },
    Measure {
        name: "Potassium",
        mean: 4.1,
        between: 0.25,
        drift: 0.12,
        noise: 0.06,
        range: 2.0..=8.0,
        units: &[unit("2823-3", "mmol/L", 1), unit("2823-3", "meq/L", 1)],
    },
    Measure {
        name: "Sodium",
        mean: 139.0,
        between: 2.0,
        drift: 0.9,
        noise: 0.6,
        range: 110.0..=170.0,
        units: &[unit("2951-2", "mmol/L", 0), unit("2951-2", "meq/L", 0)],
    },
    Measure {
        name: "Haemoglobin",
        mean: 13.2,
        between: 1.2,
        drift: 0.25,
        noise: 0.12,
        range: 4.0..=20.0,
        units: &[unit("718-7", "g/dL", 1), times("718-7", "g/L", 10.0, 0)],
    },
];

const MINUTE: f64 = 60e6;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
/// Mean time between two rounds of the monitor and two samples of the laboratory.
const ROUND: f64 = 5.0 * MINUTE;
const SAMPLE: f64 = 7.0 * HOUR;
/// Mean length of a stay, and time until the bed's next patient comes.
const STAY: f64 = 5.0 * DAY;
const EMPTY: f64 = 4.0 * HOUR;
/// A stay's first time without a deterioration.
const QUIET: f64 = 18.0 * HOUR;
/// How fast the slow drift forgets.
const MEMORY: f64 = 5.0 * HOUR;

/// What goes wrong with a patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeteriorationKind {
    /// Hours of rising heart rate, respiration, temperature, lactate and leukocytes, and of falling
    /// pressure.
    Sepsis,
    /// Oxygen saturation falls at once; respiration and heart rate follow.
    Desaturation,
    /// The heart rate jumps about, far above its normal.
    Arrhythmia,
    /// The probe of the pulse oximeter is off: neither saturation nor heart rate.
    ProbeOff,
}

impl DeteriorationKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Sepsis, Self::Desaturation, Self::Arrhythmia, Self::ProbeOff];

    /// Hours that it lasts.
    fn hours(self) -> std::ops::Range<f64> {
        match self {
            Self::Sepsis => 8.0..16.0,
            Self::Desaturation => 0.5..2.0,
            Self::Arrhythmia => 0.5..1.5,
            Self::ProbeOff => 1.0..3.0,
        }
    }

    /// What it adds to a measure, when `progress` of it (0 to 1) has passed.
    fn effect(self, measure: usize, progress: f64) -> f64 {
        match self {
            Self::Sepsis => {
                let size = match measure {
                    HEART_RATE => 38.0,
                    RESPIRATION => 11.0,
                    OXYGEN => -4.0,
                    SYSTOLIC => -38.0,
                    DIASTOLIC => -20.0,
                    TEMPERATURE => 2.1,
                    LACTATE => 4.0,
                    CREATININE => 0.9,
                    LEUKOCYTES => 10.0,
                    PLATELETS => -80.0,
                    CRP => 150.0,
                    _ => 0.0,
                };
                // Half of it within the first third.
                size * (1.0 - (-2.0 * progress).exp()) / (1.0 - (-2.0_f64).exp())
            }
            Self::Desaturation => match measure {
                OXYGEN => -14.0,
                RESPIRATION => 8.0,
                HEART_RATE => 12.0,
                _ => 0.0,
            },
            Self::Arrhythmia | Self::ProbeOff => 0.0,
        }
    }
}

/// An injected deterioration: the truth that alerts are measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deterioration {
    /// The patient.
    pub key: Arc<str>,
    pub kind: DeteriorationKind,
    /// Event time at which it begins and ends, microseconds since the epoch.
    pub from: i64,
    pub to: i64,
}

/// One value of a patient.
struct Reading {
    measure: usize,
    /// In the unit that it is written in; `None` where the probe was off.
    value: Option<f64>,
    unit: &'static Unit,
}

/// Values that were taken together.
struct Round {
    patient: Arc<str>,
    /// Microseconds since the epoch, whole seconds.
    time: i64,
    readings: Vec<Reading>,
}

/// All beds, in the order of time. The first values lie shortly after [`EPOCH`].
struct Ward {
    beds: Vec<Bed>,
    /// When something is next taken in each bed, the earliest first.
    next: BinaryHeap<Reverse<(i64, usize, What)>>,
    faults: Vec<Deterioration>,
}

/// What is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Vitals,
    Labs,
}

struct Bed {
    rng: Pcg64Mcg,
    index: usize,
    /// Patients that it has had.
    patients: usize,
    patient: Arc<str>,
    /// When the patient came and goes.
    from: i64,
    until: i64,
    /// Per measure: the patient's mean, the present drift with its time, the way of writing.
    means: Vec<f64>,
    drifts: Vec<(f64, i64)>,
    units: Vec<usize>,
    fault: Option<Deterioration>,
    /// Mean time between two deteriorations, microseconds; `None`: none.
    fault_gap: Option<f64>,
    next_fault: f64,
}

impl Ward {
    fn new(beds: usize, fault_every: TimeSpan, seed: u64) -> Self {
        let mut beds: Vec<Bed> =
            (0..beds.max(1)).map(|index| Bed::new(index, fault_every, seed)).collect();
        let mut next = BinaryHeap::new();
        for (at, bed) in beds.iter_mut().enumerate() {
            for (what, within) in [(What::Vitals, ROUND), (What::Labs, SAMPLE)] {
                let wait = bed.rng.random_range(0.0..1.0) * within;
                next.push(Reverse((EPOCH.saturating_add(wait as i64), at, what)));
            }
        }
        Self { beds, next, faults: Vec::new() }
    }

    fn next_round(&mut self) -> Round {
        let (time, at, what) = loop {
            // Each bed always has its next rounds.
            let Reverse((time, at, what)) =
                self.next.pop().unwrap_or(Reverse((EPOCH, 0, What::Vitals)));
            let bed = &mut self.beds[at];
            if time > bed.until {
                bed.admit(time);
            }
            if time >= bed.from {
                break (time, at, what);
            }
            let wait = bed.rng.random_range(0.0..1.0) * ROUND;
            self.next.push(Reverse((bed.from.saturating_add(wait as i64), at, what)));
        };
        let bed = &mut self.beds[at];
        // As it is written, in whole seconds.
        let time = time / 1_000_000 * 1_000_000;
        bed.pass_faults(time, &mut self.faults);
        let measures: Vec<usize> = match what {
            What::Vitals => {
                let has_temperature = bed.rng.random_bool(0.2);
                VITALS.iter().copied().filter(|m| *m != TEMPERATURE || has_temperature).collect()
            }
            What::Labs => LABS.collect(),
        };
        let readings = measures.into_iter().map(|measure| bed.read(measure, time)).collect();
        let mean = if what == What::Vitals { ROUND } else { SAMPLE };
        // No sooner than a third of the usual time.
        let wait = mean * (1.0 / 3.0 + bed.rng.sample::<f64, _>(Exp1) * 2.0 / 3.0);
        self.next.push(Reverse((time.saturating_add(wait as i64), at, what)));
        Round { patient: Arc::clone(&bed.patient), time, readings }
    }
}

impl Bed {
    fn new(index: usize, fault_every: TimeSpan, seed: u64) -> Self {
        let seed = seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let fault_gap = fault_every.micros() as f64;
        let mut bed = Self {
            rng: Pcg64Mcg::seed_from_u64(seed),
            index,
            patients: 0,
            patient: "".into(),
            from: EPOCH,
            until: EPOCH,
            means: Vec::new(),
            drifts: Vec::new(),
            units: Vec::new(),
            fault: None,
            fault_gap: (fault_gap > 0.0).then_some(fault_gap),
            next_fault: 0.0,
        };
        bed.settle(EPOCH);
        bed
    }

    /// The bed's next patient comes, some time after `time`.
    fn admit(&mut self, time: i64) {
        let empty = self.rng.sample::<f64, _>(Exp1) * EMPTY;
        self.settle(time.saturating_add(empty as i64));
    }

    /// A patient comes at `time`.
    fn settle(&mut self, time: i64) {
        let number = self.index * 1000 + self.patients + 1;
        self.patients += 1;
        self.patient = format!("Patient/{number:07}").into();
        let stay = STAY * (0.25 + 0.75 * self.rng.sample::<f64, _>(Exp1));
        self.from = time;
        self.until = time.saturating_add(stay as i64);
        self.means =
            MEASURES.iter().map(|measure| measure.mean + measure.between * self.normal()).collect();
        self.drifts =
            MEASURES.iter().map(|measure| (measure.drift * self.normal(), time)).collect();
        self.units =
            MEASURES.iter().map(|measure| self.rng.random_range(0..measure.units.len())).collect();
        self.fault = None;
        self.next_fault = time as f64 + QUIET + self.until_fault();
    }

    /// A number of the standard normal distribution.
    fn normal(&mut self) -> f64 {
        self.rng.sample(StandardNormal)
    }

    fn until_fault(&mut self) -> f64 {
        self.rng.sample::<f64, _>(Exp1) * self.fault_gap.unwrap_or(f64::INFINITY)
    }

    /// Ends and begins the deteriorations that are due before `time`.
    fn pass_faults(&mut self, time: i64, faults: &mut Vec<Deterioration>) {
        if self.fault.as_ref().is_some_and(|fault| fault.to < time) {
            self.fault = None;
        }
        if self.fault.is_some() || self.fault_gap.is_none() || (time as f64) < self.next_fault {
            return;
        }
        let kind = DeteriorationKind::ALL[self.rng.random_range(0..DeteriorationKind::ALL.len())];
        let length = self.rng.random_range(kind.hours()) * HOUR;
        let to = time.saturating_add(length as i64).min(self.until.max(time + 1));
        let fault = Deterioration { key: Arc::clone(&self.patient), kind, from: time, to };
        self.next_fault = to as f64 + self.until_fault();
        faults.push(fault.clone());
        self.fault = Some(fault);
    }

    fn read(&mut self, measure: usize, time: i64) -> Reading {
        let what = &MEASURES[measure];
        let unit = &what.units[self.units[measure]];
        let value = self.value(measure, time);
        // The usual drift and noise go on beneath a fault, so that the rest of the stream is the
        // same with and without.
        let value = match self.fault.as_ref().map(|fault| fault.kind) {
            Some(DeteriorationKind::ProbeOff) if matches!(measure, OXYGEN | HEART_RATE) => {
                return Reading { measure, value: None, unit };
            }
            Some(DeteriorationKind::Arrhythmia) if measure == HEART_RATE => {
                let spread: f64 = self.rng.random_range(0.0..1.0);
                120.0 + 50.0 * spread
            }
            _ => value,
        };
        let value = value.clamp(*what.range.start(), *what.range.end());
        let scale = 10_f64.powi(unit.decimals);
        let written = ((unit.factor * value + unit.offset) * scale).round() / scale;
        Reading { measure, value: Some(written), unit }
    }

    /// What the patient's body has, in the measure's first unit.
    fn value(&mut self, measure: usize, time: i64) -> f64 {
        let what = &MEASURES[measure];
        let (drift, at) = self.drifts[measure];
        let kept = (-((time - at) as f64) / MEMORY).exp();
        let drift = drift * kept + what.drift * (1.0 - kept * kept).max(0.0).sqrt() * self.normal();
        self.drifts[measure] = (drift, time);
        // By night the heart is slower and the body cooler.
        let hour = (time as f64 % DAY) / DAY * TAU;
        let day = match measure {
            HEART_RATE => -5.0 * hour.cos(),
            TEMPERATURE => -0.2 * hour.cos(),
            SYSTOLIC => -6.0 * hour.cos(),
            _ => 0.0,
        };
        let effect = self.fault.as_ref().map_or(0.0, |fault| {
            let length = (fault.to - fault.from).max(1) as f64;
            fault.kind.effect(measure, (time - fault.from) as f64 / length)
        });
        self.means[measure] + drift + day + effect + what.noise * self.normal()
    }
}

/// The messages of one round after the other.
struct Queue {
    ward: Ward,
    patient: Arc<str>,
    waiting: VecDeque<Vec<u8>>,
    message: Vec<u8>,
}

impl Queue {
    fn new(beds: usize, fault_every: TimeSpan, seed: u64) -> Self {
        Self {
            ward: Ward::new(beds, fault_every, seed),
            patient: "".into(),
            waiting: VecDeque::new(),
            message: Vec::new(),
        }
    }

    /// The next message, of those that `write` makes of a round.
    fn next(&mut self, mut write: impl FnMut(&Round, &mut VecDeque<Vec<u8>>)) -> (&str, &[u8]) {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                self.message = message;
                return (&self.patient, &self.message);
            }
            let round = self.ward.next_round();
            write(&round, &mut self.waiting);
            self.patient = round.patient;
        }
    }
}

/// Patients as FHIR messages.
pub struct FhirMessages {
    queue: Queue,
    /// Observations written.
    count: u64,
}

impl FhirMessages {
    /// `beds` beds, at least one, whose patients deteriorate every `fault_every` on average; `0s`:
    /// never.
    pub fn new(beds: usize, fault_every: TimeSpan, seed: u64) -> Self {
        Self { queue: Queue::new(beds, fault_every, seed), count: 0 }
    }
}

impl MessageStream for FhirMessages {
    type Fault = Deterioration;

    fn file(&self) -> &'static str {
        "observations.ndjson"
    }

    fn next_message(&mut self) -> (&str, &[u8]) {
        let count = &mut self.count;
        self.queue.next(|round, messages| write_fhir(round, count, messages))
    }

    fn take_faults(&mut self) -> Vec<Deterioration> {
        std::mem::take(&mut self.queue.ward.faults)
    }
}

/// Vital signs as an observation each, the two pressures as one; a sample as a bundle.
fn write_fhir(round: &Round, count: &mut u64, messages: &mut VecDeque<Vec<u8>>) {
    let mut observation = |category: &str, name: &str, code: &str| {
        *count += 1;
        json!({
            "resourceType": "Observation",
            "id": format!("obs-{count}"),
            "status": "final",
            "category": [{"coding": [{
                "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                "code": category,
            }]}],
            "code": concept(name, code),
            "subject": {"reference": &*round.patient},
            "effectiveDateTime": time_text(round.time),
        })
    };
    let of = |measure: usize| round.readings.iter().find(|reading| reading.measure == measure);
    if round.readings.iter().any(|reading| LABS.contains(&reading.measure)) {
        let entries: Vec<Value> = round
            .readings
            .iter()
            .map(|reading| {
                let name = MEASURES[reading.measure].name;
                let mut resource = observation("laboratory", name, reading.unit.code);
                set_value(&mut resource, reading);
                json!({"resource": resource})
            })
            .collect();
        let bundle = json!({"resourceType": "Bundle", "type": "collection", "entry": entries});
        messages.push_back(bundle.to_string().into_bytes());
        return;
    }
    for reading in &round.readings {
        let resource = match (reading.measure, of(SYSTOLIC), of(DIASTOLIC)) {
            (SYSTOLIC, Some(systolic), Some(diastolic)) => {
                let name = "Blood pressure panel with all children optional";
                let mut panel = observation("vital-signs", name, "85354-9");
                let components = [systolic, diastolic].map(|reading| {
                    let name = MEASURES[reading.measure].name;
                    let mut component = json!({"code": concept(name, reading.unit.code)});
                    set_value(&mut component, reading);
                    component
                });
                panel["component"] = Value::from(components.to_vec());
                panel
            }
            (DIASTOLIC, Some(_), _) => continue,
            _ => {
                let name = MEASURES[reading.measure].name;
                let mut resource = observation("vital-signs", name, reading.unit.code);
                set_value(&mut resource, reading);
                resource
            }
        };
        messages.push_back(resource.to_string().into_bytes());
    }
}

fn concept(name: &str, code: &str) -> Value {
    json!({"coding": [{"system": "http://loinc.org", "code": code, "display": name}], "text": name})
}

fn set_value(part: &mut Value, reading: &Reading) {
    match reading.value {
        Some(value) => {
            let unit = reading.unit.unit;
            part["valueQuantity"] = json!({
                "value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit,
            });
        }
        None => {
            let system = "http://terminology.hl7.org/CodeSystem/data-absent-reason";
            part["dataAbsentReason"] = json!({"coding": [{"system": system, "code": "error"}]});
        }
    }
}

fn time_text(micros: i64) -> String {
    let time = DateTime::from_timestamp_micros(micros).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Patients as plain rows, a value each.
pub struct RowMessages {
    queue: Queue,
    format: RowFormat,
}

/// How a plain row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    Json,
    /// In the order of [`MessageStream::header`].
    Csv,
}

impl RowMessages {
    /// The patients of [`FhirMessages::new`].
    pub fn new(beds: usize, fault_every: TimeSpan, seed: u64, format: RowFormat) -> Self {
        Self { queue: Queue::new(beds, fault_every, seed), format }
    }
}

impl MessageStream for RowMessages {
    type Fault = Deterioration;

    fn file(&self) -> &'static str {
        match self.format {
            RowFormat::Json => "rows.jsonl",
            RowFormat::Csv => "rows.csv",
        }
    }

    fn header(&self) -> Option<&'static str> {
        (self.format == RowFormat::Csv).then_some("patient,time,code,value,unit")
    }

    fn next_message(&mut self) -> (&str, &[u8]) {
        let format = self.format;
        self.queue.next(|round, messages| {
            let time = time_text(round.time);
            messages.extend(round.readings.iter().map(|reading| {
                let (patient, Unit { code, unit, .. }) = (&*round.patient, reading.unit);
                let row = match format {
                    RowFormat::Json => json!({
                        "patient": patient, "time": time, "code": code, "value": reading.value,
                        "unit": unit,
                    })
                    .to_string(),
                    RowFormat::Csv => {
                        let value = reading.value.map(|value| value.to_string());
                        format!("{patient},{time},{code},{},{unit}", value.unwrap_or_default())
                    }
                };
                row.into_bytes()
            }));
        })
    }

    fn take_faults(&mut self) -> Vec<Deterioration> {
        std::mem::take(&mut self.queue.ward.faults)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn ward() -> Ward {
        Ward::new(20, TimeSpan::from_secs(2 * 86_400), 7)
    }

    #[test]
    fn the_same_seed_makes_the_same_messages_and_another_seed_others() {
        let messages = |seed: u64| {
            let mut stream = FhirMessages::new(3, TimeSpan::from_secs(86_400), seed);
            (0..2000).map(|_| stream.next_message().1.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(messages(1), messages(1));
        assert_ne!(messages(1), messages(2));
    }

    #[test]
    fn rounds_come_in_the_order_of_time_at_irregular_times() {
        let mut ward = ward();
        let mut last: BTreeMap<Arc<str>, i64> = BTreeMap::new();
        let mut gaps = BTreeSet::new();
        for _ in 0..20_000 {
            let round = ward.next_round();
            assert_eq!(round.time % 1_000_000, 0);
            if let Some(before) = last.insert(round.patient, round.time) {
                assert!(round.time >= before);
                gaps.insert((round.time - before) / 1_000_000);
            }
        }
        assert!(gaps.len() > 200, "{} different gaps", gaps.len());
    }

    #[test]
    fn beds_change_their_patients_and_no_two_share_one() {
        let mut ward = ward();
        let mut patients = BTreeSet::new();
        let mut newest: BTreeMap<usize, usize> = BTreeMap::new();
        for _ in 0..60_000 {
            let patient = ward.next_round().patient;
            let number: usize = patient.trim_start_matches("Patient/").parse().unwrap();
            // Whoever has gone does not come back.
            let before = newest.insert(number / 1000, number);
            assert!(before.is_none_or(|before| before <= number));
            patients.insert(patient);
        }
        assert_eq!(newest.len(), 20);
        assert!(patients.len() > 25, "{} patients", patients.len());
    }

    #[test]
    fn every_deterioration_is_recorded_and_shows() {
        let mut ward = ward();
        let mut rates: BTreeMap<Option<String>, Vec<f64>> = BTreeMap::new();
        let mut kinds = BTreeSet::new();
        for _ in 0..120_000 {
            let round = ward.next_round();
            let bed = ward.beds.iter().find(|bed| bed.patient == round.patient);
            let fault = bed.and_then(|bed| bed.fault.as_ref());
            let kind = fault.map(|fault| format!("{:?}", fault.kind));
            kinds.extend(kind.clone());
            for reading in &round.readings {
                if reading.measure == HEART_RATE {
                    rates.entry(kind.clone()).or_default().push(reading.value.unwrap_or(0.0));
                }
            }
        }
        assert_eq!(kinds.len(), DeteriorationKind::ALL.len());
        let mean = |kind: Option<&str>| {
            let rates = &rates[&kind.map(str::to_owned)];
            rates.iter().sum::<f64>() / rates.len() as f64
        };
        assert!((mean(None) - 78.0).abs() < 6.0, "{}", mean(None));
        assert!(mean(Some("Sepsis")) > mean(None) + 15.0);
        assert!(mean(Some("Arrhythmia")) > mean(None) + 50.0);
        assert!(mean(Some("ProbeOff")).abs() < f64::EPSILON);
        let faults = &ward.faults;
        assert!(faults.len() > 20);
        assert!(faults.iter().all(|fault| fault.from < fault.to));
    }

    #[test]
    fn values_come_in_several_units_and_each_patient_keeps_to_one() {
        let mut ward = ward();
        let mut units: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
        let mut of_patient: BTreeMap<(Arc<str>, usize), &str> = BTreeMap::new();
        for _ in 0..20_000 {
            let round = ward.next_round();
            for reading in &round.readings {
                units.entry(reading.measure).or_default().insert(reading.unit.unit);
                let patient = (Arc::clone(&round.patient), reading.measure);
                let first = of_patient.entry(patient).or_insert(reading.unit.unit);
                assert_eq!(*first, reading.unit.unit);
            }
        }
        assert_eq!(units.len(), MEASURES.len());
        assert!(units.values().filter(|units| units.len() == 2).count() >= 10);
    }

    #[test]
    fn rows_hold_the_values_of_the_messages() {
        let mut json = RowMessages::new(2, TimeSpan::default(), 7, RowFormat::Json);
        let mut csv = RowMessages::new(2, TimeSpan::default(), 7, RowFormat::Csv);
        assert_eq!(csv.header(), Some("patient,time,code,value,unit"));
        for _ in 0..500 {
            let (key, row) = json.next_message();
            let row: Value = serde_json::from_slice(row).unwrap();
            assert_eq!(row["patient"], key);
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            let value = row["value"].as_f64().unwrap();
            let (patient, time, code) = (text("patient"), text("time"), text("code"));
            let expected = format!("{patient},{time},{code},{value},{}", text("unit"));
            assert_eq!(String::from_utf8_lossy(csv.next_message().1), expected);
        }
    }
}
