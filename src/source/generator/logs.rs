//! Log lines of a few hosts, with injected, recorded faults.
//!
//! A host runs one service. It writes lines of that service's templates, the frequent ones often,
//! more by day than by night, and now and then the lines of a task that comes at regular times.
//! Every line is `TIME HOST SEVERITY message`, the time as RFC 3339 with milliseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::f64::consts::TAU;
use std::fmt::Write;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use rand::{RngExt, SeedableRng};
use rand_distr::Exp1;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use super::EPOCH;
use super::messages::MessageStream;
use crate::config;

/// A kind of line: how often it comes among others, its severity, and its text, in which `{n}` is a
/// number, `{x}` a hexadecimal one, `{ip}` an address, `{u}` a name and `{p}` a path.
type Template = (u32, &'static str, &'static str);

/// What a service writes: its usual lines; those of its regular task, one after the other; its
/// rare complaint, of which a storm is made; what it never wrote before.
struct Service {
    name: &'static str,
    usual: &'static [Template],
    task: &'static [Template],
    complaint: Template,
    unseen: &'static [Template],
}

const SERVICES: [Service; 4] = [
    Service {
        name: "web",
        usual: &[
            (40, "INFO", "nginx: {ip} GET /api/orders/{n} 200 {n}ms"),
            (25, "INFO", "nginx: {ip} POST /api/orders 201 {n}ms"),
            (15, "INFO", "nginx: {ip} GET /static{p} 304 {n}ms"),
            (6, "INFO", "app: session {x} opened for user {u}"),
            (6, "INFO", "app: session {x} closed after {n} requests"),
            (2, "WARN", "nginx: {ip} GET /api/orders/{n} 404 {n}ms"),
        ],
        task: &[
            (1, "INFO", "app: cache sweep started"),
            (1, "INFO", "app: cache sweep finished, {n} entries dropped"),
        ],
        complaint: (1, "ERROR", "nginx: upstream timed out while reading response from {ip}:{n}"),
        unseen: &[
            (1, "ERROR", "app: template engine panicked at {p} line {n}"),
            (1, "FATAL", "nginx: worker process {n} exited on signal {n}"),
        ],
    },
    Service {
        name: "db",
        usual: &[
            (35, "DEBUG", "postgres: statement {x} executed in {n} ms"),
            (20, "INFO", "postgres: connection received: host={ip} port={n}"),
            (20, "INFO", "postgres: connection authorized: user={u} database=orders"),
            (15, "INFO", "postgres: disconnection: session time {n} s user={u}"),
            (3, "WARN", "postgres: process {n} still waiting for ShareLock after {n} ms"),
        ],
        task: &[
            (1, "INFO", "postgres: checkpoint starting: time"),
            (1, "INFO", "postgres: checkpoint complete: wrote {n} buffers in {n} s"),
            (1, "DEBUG", "postgres: automatic vacuum of table {u}: {n} pages removed"),
        ],
        complaint: (1, "ERROR", "postgres: could not serialize access due to concurrent update"),
        unseen: &[
            (1, "ERROR", "kernel: EXT4-fs error (device sda{n}): inode {n} has bad checksum"),
            (1, "FATAL", "postgres: PANIC: could not write to file {p}: No space left on device"),
        ],
    },
    Service {
        name: "auth",
        usual: &[
            (30, "INFO", "sshd: Accepted publickey for {u} from {ip} port {n} ssh2"),
            (30, "INFO", "sshd: Received disconnect from {ip}: {n}: disconnected by user"),
            (20, "INFO", "pam: session opened for user {u}"),
            (20, "INFO", "pam: session closed for user {u}"),
            (4, "WARN", "sshd: Failed password for {u} from {ip} port {n} ssh2"),
        ],
        task: &[
            (1, "INFO", "cron: ({u}) CMD ({p})"),
            (1, "DEBUG", "token: {n} expired tokens removed"),
        ],
        complaint: (1, "ERROR", "ldap: server {ip} did not answer within {n} ms"),
        unseen: &[
            (1, "CRITICAL", "sshd: host key {p} has been replaced"),
            (1, "ERROR", "audit: backlog limit exceeded, {n} events lost"),
        ],
    },
    Service {
        name: "queue",
        usual: &[
            (40, "INFO", "worker: job {x} of type invoice done in {n} ms"),
            (30, "INFO", "worker: job {x} taken from {u}"),
            (10, "DEBUG", "worker: heartbeat {n} sent to {ip}"),
            (3, "WARN", "worker: job {x} is retried, attempt {n}"),
        ],
        task: &[
            (1, "INFO", "broker: log segment {n} of partition {n} rolled"),
            (1, "INFO", "broker: deleted segment {p} older than {n} h"),
        ],
        complaint: (1, "ERROR", "worker: job {x} failed: connection to {ip}:{n} refused"),
        unseen: &[
            (1, "ERROR", "broker: partition {n} lost its leader, electing among {n} replicas"),
            (1, "FATAL", "worker: out of memory: cannot allocate {n} bytes"),
        ],
    },
];

/// Time between two runs of a host's regular task, in usual gaps between lines.
const TASK_EVERY: f64 = 240.0;
/// Share by which a host writes more at the height of the day than on average.
const RHYTHM: f64 = 0.4;
const DAY_MICROS: f64 = 86_400e6;
/// How many times as many lines come in a burst or a storm as usual.
const BURST: f64 = 4.0;
const STORM: f64 = 20.0;

/// What goes wrong with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFaultKind {
    /// Lines of a template that the host never wrote, among the usual ones.
    NewTemplate,
    /// A complaint that is rare otherwise, many times a second.
    ErrorStorm,
    /// No line at all.
    Silence,
    /// The usual lines, those often that were seldom.
    ChangedMix,
}

impl LogFaultKind {
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::NewTemplate, Self::ErrorStorm, Self::Silence, Self::ChangedMix];

    /// How long it lasts, in usual gaps between two lines.
    fn gaps(self) -> std::ops::RangeInclusive<u32> {
        match self {
            Self::NewTemplate => 20..=60,
            Self::ErrorStorm => 10..=30,
            Self::Silence => 120..=300,
            Self::ChangedMix => 150..=300,
        }
    }
}

/// An injected fault: the truth that alerts are measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogFault {
    /// The host.
    pub key: Arc<str>,
    pub kind: LogFaultKind,
    /// Event time at which it begins and ends, microseconds since the epoch.
    pub from: i64,
    pub to: i64,
    /// The text of the lines it consists of, parameters in braces, where it is made of one kind.
    pub template: Option<String>,
}

/// The lines of all hosts, in the order of time. The first lies at [`EPOCH`] or shortly after.
pub struct LogLines {
    hosts: Vec<Host>,
    /// When each host writes its next line, the earliest first.
    next: BinaryHeap<Reverse<(i64, usize)>>,
    line: String,
    faults: Vec<LogFault>,
}

struct Host {
    key: Arc<str>,
    service: &'static Service,
    rng: Pcg64Mcg,
    /// Mean time between two lines, microseconds.
    gap: f64,
    /// Where in the day it is busiest.
    phase: f64,
    /// Lines of its task that are still to come, and when the next run begins.
    task_left: usize,
    next_task: i64,
    fault: Option<Active>,
    /// Mean time between two faults, microseconds; `None`: no faults.
    fault_gap: Option<f64>,
    next_fault: i64,
}

struct Active {
    kind: LogFaultKind,
    template: Option<&'static Template>,
    until: i64,
}

impl LogLines {
    /// Hosts as `config` counts machines; `period` is the mean time between two lines of one.
    pub fn new(config: &config::GeneratorSource) -> Self {
        let mut hosts: Vec<Host> =
            (0..config.machines.max(1)).map(|index| Host::new(config, index)).collect();
        let first = hosts.iter_mut().enumerate().map(|(at, host)| {
            let gap = host.gap_until_next(EPOCH);
            Reverse((EPOCH.saturating_add(gap), at))
        });
        Self { next: first.collect(), hosts, line: String::new(), faults: Vec::new() }
    }
}

impl MessageStream for LogLines {
    type Fault = LogFault;

    fn file(&self) -> &'static str {
        "lines.log"
    }

    fn next_message(&mut self) -> (&str, &[u8]) {
        let (time, at) = loop {
            // Each host always has a next line.
            let Reverse((time, at)) = self.next.pop().unwrap_or(Reverse((EPOCH, 0)));
            match self.hosts[at].pass_faults(time, &mut self.faults) {
                None => break (time, at),
                Some(later) => self.next.push(Reverse((later, at))),
            }
        };
        let host = &mut self.hosts[at];
        let template = host.choose(time);
        host.write(time, template, &mut self.line);
        self.next.push(Reverse((time.saturating_add(host.gap_until_next(time)), at)));
        (&host.key, self.line.as_bytes())
    }

    fn take_faults(&mut self) -> Vec<LogFault> {
        std::mem::take(&mut self.faults)
    }
}

impl Host {
    fn new(config: &config::GeneratorSource, index: usize) -> Self {
        let service = &SERVICES[index % SERVICES.len()];
        let gap = config.period.micros().max(1) as f64;
        let fault_gap = config.fault_every.micros() as f64;
        let seed = config.seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut host = Self {
            key: format!("{}-{}", service.name, index / SERVICES.len()).into(),
            service,
            gap,
            phase: rng.random_range(-0.1..0.1) * TAU,
            task_left: 0,
            next_task: EPOCH + (rng.random_range(0.0..1.0) * TASK_EVERY * gap) as i64,
            fault: None,
            fault_gap: (fault_gap > 0.0).then_some(fault_gap),
            next_fault: EPOCH.saturating_add(config.fault_after.micros()),
            rng,
        };
        host.next_fault = host.next_fault.saturating_add(host.until_fault());
        host
    }

    /// Time from a line at `time` to the next, microseconds.
    fn gap_until_next(&mut self, time: i64) -> i64 {
        if self.task_left > 0 {
            return (0.05 * self.gap) as i64 + 1;
        }
        let hour = (time as f64 % DAY_MICROS) / DAY_MICROS * TAU + self.phase;
        // The day is at its height when the sine is: at noon, or about.
        let mut rate = 1.0 - RHYTHM * hour.cos();
        match self.fault.as_ref().map(|fault| fault.kind) {
            Some(LogFaultKind::NewTemplate) => rate *= BURST,
            Some(LogFaultKind::ErrorStorm) => rate *= STORM,
            Some(LogFaultKind::Silence | LogFaultKind::ChangedMix) | None => {}
        }
        (self.rng.sample::<f64, _>(Exp1) * self.gap / rate) as i64 + 1
    }

    /// Ends and begins the faults that are due before the line at `time`; returns when the line
    /// comes instead, if the host falls silent.
    fn pass_faults(&mut self, time: i64, faults: &mut Vec<LogFault>) -> Option<i64> {
        if self.fault.as_ref().is_some_and(|fault| fault.until <= time) {
            self.fault = None;
        }
        if self.fault_gap.is_none() || time < self.next_fault || self.fault.is_some() {
            return None;
        }
        let kind = LogFaultKind::ALL[self.rng.random_range(0..LogFaultKind::ALL.len())];
        let gaps = f64::from(self.rng.random_range(kind.gaps()));
        // Whole milliseconds, as lines have them.
        let until = (time.saturating_add((gaps * self.gap) as i64) / 1000 + 1) * 1000;
        let template = match kind {
            LogFaultKind::NewTemplate => {
                Some(&self.service.unseen[self.rng.random_range(0..self.service.unseen.len())])
            }
            LogFaultKind::ErrorStorm => Some(&self.service.complaint),
            LogFaultKind::Silence | LogFaultKind::ChangedMix => None,
        };
        faults.push(LogFault {
            key: Arc::clone(&self.key),
            kind,
            from: time,
            to: until,
            template: template.map(|(_, _, text)| (*text).to_owned()),
        });
        self.next_fault = until.saturating_add(self.until_fault());
        if kind == LogFaultKind::Silence {
            return Some(until);
        }
        self.fault = Some(Active { kind, template, until });
        None
    }

    fn until_fault(&mut self) -> i64 {
        let mean = self.fault_gap.unwrap_or(0.0);
        (self.rng.sample::<f64, _>(Exp1) * mean) as i64
    }

    /// Writes a line of `template` at `time` in place of what `line` holds.
    fn write(&mut self, time: i64, template: &Template, line: &mut String) {
        let (_, severity, text) = *template;
        line.clear();
        let time = DateTime::from_timestamp_micros(time).unwrap_or_default();
        line.push_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true));
        for word in [&*self.key, severity] {
            line.push(' ');
            line.push_str(word);
        }
        line.push(' ');
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            line.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            self.fill(name, line);
            rest = after;
        }
        line.push_str(rest);
    }

    /// What the line at `time` is made of.
    fn choose(&mut self, time: i64) -> &'static Template {
        let service = self.service;
        if let Some(Active { kind, template, .. }) = &self.fault {
            match (kind, template) {
                (LogFaultKind::ErrorStorm, Some(template)) if self.rng.random_bool(0.9) => {
                    return template;
                }
                (LogFaultKind::NewTemplate, Some(template)) if self.rng.random_bool(0.5) => {
                    return template;
                }
                (LogFaultKind::ChangedMix, _) => {
                    // The rarest are as frequent as the most frequent were.
                    let weights = service.usual.iter().rev().map(|(weight, ..)| *weight);
                    return &service.usual[self.pick(weights)];
                }
                _ => {}
            }
        }
        if self.task_left == 0 && time >= self.next_task {
            self.task_left = service.task.len();
            let until_next = self.rng.random_range(0.9..1.1) * TASK_EVERY * self.gap;
            self.next_task = time.saturating_add(until_next as i64);
        }
        if self.task_left > 0 {
            self.task_left -= 1;
            return &service.task[service.task.len() - 1 - self.task_left];
        }
        // A complaint now and then is no fault.
        if self.rng.random_bool(0.002) {
            return &service.complaint;
        }
        &service.usual[self.pick(service.usual.iter().map(|(weight, ..)| *weight))]
    }

    /// A position, as often as its weight says.
    fn pick(&mut self, weights: impl Iterator<Item = u32> + Clone) -> usize {
        let total: u32 = weights.clone().sum();
        let mut drawn = self.rng.random_range(0..total.max(1));
        for (at, weight) in weights.enumerate() {
            match drawn.checked_sub(weight) {
                Some(rest) => drawn = rest,
                None => return at,
            }
        }
        0
    }

    fn fill(&mut self, name: &str, line: &mut String) {
        const USERS: [&str; 6] = ["alice", "bob", "carol", "deploy", "erin", "root"];
        const PATHS: [&str; 5] = [
            "/var/lib/data/a.bin",
            "/etc/app/main.conf",
            "/srv/www/index.html",
            "/tmp/x",
            "/opt/run",
        ];
        let rng = &mut self.rng;
        // Writing to a string does not fail.
        let _ = match name {
            "x" => write!(line, "{:08x}", rng.random::<u32>()),
            "ip" => write!(
                line,
                "10.{}.{}.{}",
                rng.random_range(0..4),
                rng.random::<u8>(),
                rng.random::<u8>()
            ),
            "u" => line.write_str(USERS[rng.random_range(0..USERS.len())]),
            "p" => line.write_str(PATHS[rng.random_range(0..PATHS.len())]),
            _ => {
                let digits: u32 = rng.random_range(1..5);
                write!(line, "{}", rng.random_range(0..10_u32.pow(digits)))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::TimeSpan;
    use crate::templates::{Line, Miner};

    fn config(fault_every: u64) -> config::GeneratorSource {
        config::GeneratorSource {
            machines: 5,
            fault_every: TimeSpan::from_secs(fault_every),
            fault_after: TimeSpan::from_secs(600),
            ..Default::default()
        }
    }

    /// So many lines, (time, host, rest), and the faults in them.
    fn lines(
        config: &config::GeneratorSource,
        count: usize,
    ) -> (Vec<(i64, String, String)>, Vec<LogFault>) {
        let mut stream = LogLines::new(config);
        let lines = (0..count)
            .map(|_| {
                let (key, line) = stream.next_message();
                let (key, line) = (key.to_owned(), String::from_utf8(line.to_vec()).unwrap());
                let [time, host, rest] =
                    line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
                assert_eq!(host, key);
                let time = DateTime::parse_from_rfc3339(time).unwrap().timestamp_micros();
                (time, key, rest.to_owned())
            })
            .collect();
        (lines, stream.take_faults())
    }

    #[test]
    fn lines_come_in_the_order_of_time_and_are_the_same_for_the_same_seed() {
        let (first, faults) = lines(&config(900), 20_000);
        assert!(first.is_sorted_by_key(|(time, ..)| *time));
        let hosts: BTreeSet<&str> = first.iter().map(|(_, host, _)| host.as_str()).collect();
        assert_eq!(
            hosts.into_iter().collect::<Vec<_>>(),
            ["auth-0", "db-0", "queue-0", "web-0", "web-1"]
        );
        assert_eq!(lines(&config(900), 20_000), (first.clone(), faults));
        let other = config::GeneratorSource { seed: 8, ..config(900) };
        assert_ne!(lines(&other, 100).0, first[..100]);
    }

    #[test]
    fn no_line_has_a_hole_left_in_it() {
        let (lines, _) = lines(&config(600), 50_000);
        assert!(lines.iter().all(|(_, _, rest)| !rest.contains(['{', '}'])));
    }

    /// Grouping accuracy (Zhu et al. 2019): a line counts if the lines grouped with it are exactly
    /// those of its template.
    #[test]
    fn their_templates_are_mined_from_them() {
        let mut hosts: Vec<Host> = (0..4).map(|index| Host::new(&config(600), index)).collect();
        let (mut miner, mut line, mut text) = (Miner::default(), Line::default(), String::new());
        let mut lines = Vec::new();
        for at in 0..8000 {
            let host = &mut hosts[at % 4];
            let time = EPOCH + at as i64 * 250_000;
            host.pass_faults(time, &mut Vec::new());
            let template = host.choose(time);
            host.write(time, template, &mut text);
            line.read(text.splitn(4, ' ').last().unwrap());
            lines.push((template.2, miner.read(&line).id));
        }
        let right = |(truth, found): &&(&str, u64)| {
            lines.iter().all(|(other, id)| (other == truth) == (id == found))
        };
        let accuracy = lines.iter().filter(right).count() as f64 / lines.len() as f64;
        // Some cannot be told apart: a status is a number like any, and where the user differs,
        // "opened" and "closed" are one parameter more.
        assert!(accuracy > 0.75, "{accuracy}");
    }

    #[test]
    fn faults_are_as_they_are_recorded() {
        let (lines, faults) = lines(&config(600), 100_000);
        let end = lines.last().unwrap().0;
        for kind in LogFaultKind::ALL {
            let of_kind: Vec<_> =
                faults.iter().filter(|fault| fault.kind == kind && fault.to < end).collect();
            assert!(of_kind.len() > 5, "{kind:?}");
            for fault in of_kind {
                let within = |time: i64| (fault.from..fault.to).contains(&time);
                let during =
                    || lines.iter().filter(|(time, host, _)| *host == *fault.key && within(*time));
                match kind {
                    // Milliseconds are cut off.
                    LogFaultKind::Silence => {
                        assert!(during().all(|(time, ..)| *time < fault.from + 1000));
                    }
                    LogFaultKind::NewTemplate | LogFaultKind::ErrorStorm => {
                        let template = fault.template.as_deref().unwrap();
                        let start = template.split('{').next().unwrap();
                        let hits = during().filter(|(_, _, rest)| rest.contains(start)).count();
                        assert!(hits * 3 > during().count(), "{template}: {hits}");
                    }
                    LogFaultKind::ChangedMix => assert!(during().count() > 30),
                }
            }
        }
    }

    #[test]
    fn days_are_busier_than_nights() {
        let quiet = config::GeneratorSource { period: TimeSpan::from_secs(60), ..config(0) };
        let (lines, faults) = lines(&quiet, 5 * 1440 * 3);
        assert!(faults.is_empty());
        let hour = |time: i64| (time - EPOCH) / 3_600_000_000 % 24;
        let day = lines.iter().filter(|(time, ..)| (9..15).contains(&hour(*time))).count();
        let night = lines.iter().filter(|(time, ..)| !(3..21).contains(&hour(*time))).count();
        assert!(day as f64 > 1.5 * night as f64, "{day} by day, {night} by night");
    }
}
