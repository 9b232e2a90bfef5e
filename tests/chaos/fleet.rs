//! The processes under test: replicas of one pipeline, by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::common::{Finished, Plant, Program};

const TICK: Duration = Duration::from_millis(10);
/// SIGABRT: how a process dies at an armed step.
const ABORTED: i32 = 6;
/// Lines of a log that a failure shows.
const TAIL: usize = 30;
/// What the program logs whenever it rewinds.
const REWINDS: &str = "going on from the last commit";
const LANES: &str = "contrastream_source_lanes";

/// One process.
struct Replica {
    /// `checkpoint.instance`.
    name: String,
    /// Value of `FAILPOINTS`.
    failpoints: String,
    /// The how-manieth of its name.
    number: u32,
    program: Program,
}

/// All processes of the pipeline.
pub struct Fleet<'a> {
    plant: &'a Plant,
    logs: PathBuf,
    replicas: Vec<Replica>,
    started: BTreeMap<String, u32>,
    /// Processes started, and how often those that ended had gone on in place.
    pub starts: u64,
    rewinds: u64,
}

impl<'a> Fleet<'a> {
    pub fn new(plant: &'a Plant, logs: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let (replicas, started) = (Vec::new(), BTreeMap::new());
        Ok(Self { plant, logs, replicas, started, starts: 0, rewinds: 0 })
    }

    /// Starts a process, armed with `failpoints`.
    pub fn start(&mut self, name: &str, failpoints: &str) {
        let number = self.started.entry(name.to_owned()).or_default();
        *number += 1;
        let mut command = self.plant.command("run");
        command.args(["--set", &format!("checkpoint.instance={name}")]);
        command.env("FAILPOINTS", failpoints);
        self.replicas.push(Replica {
            name: name.to_owned(),
            failpoints: failpoints.to_owned(),
            number: *number,
            program: Program::start(command),
        });
        self.starts += 1;
    }

    pub fn names(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.name.clone()).collect()
    }

    pub fn failpoints(&self, name: &str) -> &str {
        let replica = self.replicas.iter().find(|replica| replica.name == name);
        replica.map_or("", |replica| &replica.failpoints)
    }

    /// An error as soon as a process has ended by itself.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        match self.replicas.iter_mut().position(|replica| !replica.program.runs()) {
            None => Ok(()),
            Some(ended) => {
                let replica = self.replicas.remove(ended);
                let name = replica.name.clone();
                let ended = self.wait(replica)?;
                bail!("{name} ended by itself: {}", outcome(&ended));
            }
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let Replica { number, program, .. } = self.take(name)?;
        self.keep_log(name, number, &program.kill())
    }

    /// SIGTERM; the process ends in order.
    pub fn terminate(&mut self, name: &str) -> anyhow::Result<()> {
        let replica = self.take(name)?;
        replica.program.signal("TERM");
        let ended = self.wait(replica)?;
        ensure!(ended.code == Some(0), "{name} was told to stop: {}", outcome(&ended));
        Ok(())
    }

    /// Sends a signal to all processes of a name.
    pub fn signal(&self, name: &str, signal: &str) {
        let of_name = self.replicas.iter().filter(|replica| replica.name == name);
        of_name.for_each(|replica| replica.program.signal(signal));
    }

    fn take(&mut self, name: &str) -> anyhow::Result<Replica> {
        let at = self.replicas.iter().position(|replica| replica.name == name);
        Ok(self.replicas.remove(at.with_context(|| format!("no {name}"))?))
    }

    /// How many lanes a process owns.
    pub fn lanes(&self, name: &str) -> f64 {
        let replica = self.replicas.iter().find(|replica| replica.name == name);
        replica.and_then(|replica| replica.program.metric(LANES)).unwrap_or(0.0)
    }

    /// What a process logged so far.
    pub fn log(&self, name: &str) -> String {
        let replica = self.replicas.iter().find(|replica| replica.name == name);
        replica.map_or(String::new(), |replica| replica.program.log())
    }

    /// Waits until an armed process has died at its step.
    pub fn await_death(&mut self, name: &str, within: Duration) -> anyhow::Result<()> {
        let replica = self.take(name)?;
        let failpoints = replica.failpoints.clone();
        let ended = self.wait_within(replica, within)?;
        let Some(ended) = ended else { bail!("{name} never came to {failpoints}") };
        ensure!(ended.signal == Some(ABORTED), "{name} at {failpoints}: {}", outcome(&ended));
        Ok(())
    }

    /// Waits until a process of the name has stopped with a clear error, which is returned.
    pub fn await_error(&mut self, name: &str, within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        let has_ended = |replica: &mut Replica| replica.name == name && !replica.program.runs();
        let ended = loop {
            if let Some(ended) = self.replicas.iter_mut().position(has_ended) {
                let replica = self.replicas.remove(ended);
                break self.wait(replica)?;
            }
            ensure!(Instant::now() < deadline, "no {name} stops");
            thread::sleep(TICK);
        };
        let error = ended.stderr.lines().rfind(|line| line.starts_with("error: "));
        match (ended.code, error) {
            (Some(1), Some(error)) => Ok(error.to_owned()),
            _ => bail!("{name} did not stop with an error: {}", outcome(&ended)),
        }
    }

    fn wait(&mut self, replica: Replica) -> anyhow::Result<Finished> {
        let Replica { name, number, program, .. } = replica;
        let ended = program.wait();
        self.keep_log(&name, number, &ended)?;
        Ok(ended)
    }

    /// Waits for a process's end; kills it if it does not come.
    fn wait_within(
        &mut self,
        mut replica: Replica,
        within: Duration,
    ) -> anyhow::Result<Option<Finished>> {
        let deadline = Instant::now() + within;
        while replica.program.runs() {
            if Instant::now() >= deadline {
                let Replica { name, number, program, .. } = replica;
                self.keep_log(&name, number, &program.kill())?;
                return Ok(None);
            }
            thread::sleep(TICK);
        }
        self.wait(replica).map(Some)
    }

    /// Keeps what a process said; an error if it panicked.
    fn keep_log(&mut self, name: &str, number: u32, ended: &Finished) -> anyhow::Result<()> {
        fs::write(self.logs.join(format!("{name}-{number:04}.log")), &ended.stderr)?;
        self.rewinds += ended.stderr.matches(REWINDS).count() as u64;
        ensure!(!ended.stderr.contains("panicked at"), "{name} panicked: {}", tail(&ended.stderr));
        Ok(())
    }

    /// How often the running processes and those that ended went on in place.
    pub fn all_rewinds(&self) -> u64 {
        let running = self.replicas.iter().map(|replica| replica.program.log());
        self.rewinds + running.map(|log| log.matches(REWINDS).count() as u64).sum::<u64>()
    }

    /// The end of what each running process said, which is kept beside the others' logs.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for Replica { name, number, program, .. } in &self.replicas {
            let log = program.log();
            let _ = fs::write(self.logs.join(format!("{name}-{number:04}.log")), &log);
            words += &format!("--- {name}, still running:\n{}\n", tail(&log));
        }
        words
    }
}

fn outcome(ended: &Finished) -> String {
    format!("code {:?}, signal {:?}\n{}", ended.code, ended.signal, tail(&ended.stderr))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
