//! Plays a plan: strikes, waits until all results are visible again, strikes again.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::broker::Outage;
use crate::common::{LATENESS, LENGTH, Plant, STRIDE, create_topic, segments_of, variable};
use crate::files::{Files, files, staged};
use crate::fleet::Fleet;
use crate::journal::Journal;
use crate::load::{Load, MACHINES, PARTITIONS};
use crate::plan::{Blow, Form, Plan, STEPS};
use crate::proxy::{Proxy, Weather};
use crate::report::Report;
use crate::tally::{Fault, Found};
use crate::witness::{self, LETTERS, TOPICS, Witness, machines};

/// `session.timeout.ms`: after it, the group gives a silent member's partitions to others.
const SESSION: Duration = Duration::from_millis(2500);
/// Longest time until everything sent is visible again, and until a process comes to its end.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(10);
/// Most replicas at once.
const REPLICAS: [&str; 3] = ["a", "b", "c"];
/// Kills between two looks at the files.
const KILLS_PER_LOOK: u64 = 20;

/// What is played, and for how long.
#[derive(Debug)]
pub struct Settings {
    pub form: Form,
    pub seed: u64,
    /// Kills and time after which it ends, with the deck.
    pub kills: u64,
    pub time: Duration,
    /// Blows left out, by name.
    pub without: Vec<String>,
}

/// The pipeline under test: small, and quick to commit and to notice that someone is gone.
pub fn plant() -> Plant {
    let mut plant = Plant::on_broker("chaos", PARTITIONS);
    create_topic(&plant.topic("dead-letters"), witness::partitions("dead-letters"), &[]);
    if let Some((listen, _)) = proxied() {
        plant.set(format!("source.brokers={listen}"));
    }
    plant.set("checkpoint.interval=200ms");
    plant.set("source.batch_messages=50");
    plant.set(format!("source.properties.session.timeout.ms={}", SESSION.as_millis()));
    plant.set("source.properties.heartbeat.interval.ms=500");
    plant.set("source.properties.reconnect.backoff.max.ms=500");
    // What a process that is gone for good had begun holds readers back for so long.
    plant.set("sink.kafka.properties.transaction.timeout.ms=10000");
    plant
}

/// Where the program believes the broker to be, and where the broker listens for it; `None` where
/// the broker is not ours to break.
fn proxied() -> Option<(String, String)> {
    let set = |name| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let (listen, target) = ("CONTRASTREAM_TEST_PROXY_LISTEN", "CONTRASTREAM_TEST_PROXY_TARGET");
    (set(listen) && set(target)).then(|| (variable(listen), variable(target)))
}

/// A run of the harness.
pub struct Run<'a> {
    settings: &'a Settings,
    plant: &'a Plant,
    journal: Journal,
    plan: Plan,
    fleet: Fleet<'a>,
    load: Option<Load>,
    witness: Witness,
    files: Files,
    proxy: Option<Proxy>,
    /// How often each blow was survived.
    survived: BTreeMap<Blow, u64>,
    kills: u64,
    looked_at: u64,
}

impl<'a> Run<'a> {
    pub fn start(settings: &'a Settings, plant: &'a Plant) -> anyhow::Result<Self> {
        let proxy = match proxied() {
            Some((listen, target)) => Some(Proxy::start(&listen, &target)?),
            None => None,
        };
        Ok(Self {
            settings,
            plant,
            journal: Journal::new(),
            plan: Plan::new(settings.form, settings.seed),
            fleet: Fleet::new(plant, plant.folder.path().join("logs"))?,
            load: Some(Load::start(plant.topic("sensors"))?),
            witness: Witness::start(plant)?,
            files: Files::new(),
            proxy,
            survived: BTreeMap::new(),
            kills: 0,
            looked_at: 0,
        })
    }

    /// Plays decks until there were kills enough and time is up.
    pub fn play(&mut self) -> anyhow::Result<()> {
        self.fleet.start(REPLICAS[0], "");
        self.calm()?;
        loop {
            let blow = self.plan.next();
            if self.is_possible(blow) {
                self.journal.note(blow);
                self.strike(blow)?;
                *self.survived.entry(blow).or_default() += 1;
                self.look_at_files()?;
            }
            let done = self.kills >= self.settings.kills
                && self.journal.began.elapsed() >= self.settings.time;
            if done && self.plan.peek().is_none() {
                return Ok(());
            }
        }
    }

    fn is_possible(&self, blow: Blow) -> bool {
        let needs_our_broker = [Blow::Broker, Blow::Cut, Blow::Dark, Blow::Slow].contains(&blow);
        (self.proxy.is_some() || !needs_our_broker)
            && !self.settings.without.contains(&blow.to_string())
    }

    fn strike(&mut self, blow: Blow) -> anyhow::Result<()> {
        match blow {
            Blow::Kill => {
                let moment = self.random_millis(0, 2500);
                self.watch_for(moment)?;
                let name = self.any_replica()?;
                self.kill(&name)?;
                self.restart(&name)
            }
            Blow::Step(step) => self.die_at(step),
            Blow::Abandon => self.abandon(),
            Blow::Restart => {
                let (name, begin) = (self.any_replica()?, Instant::now());
                self.fleet.terminate(&name)?;
                self.journal.disturbed_since(begin);
                self.restart(&name)
            }
            Blow::Freeze => self.freeze(),
            Blow::Usurp => self.usurp(),
            Blow::Broker => {
                let pause = self.random_millis(0, 3000);
                let begin = self.begin_calm()?;
                let outage = Outage::begin()?;
                self.watch_for(pause)?;
                outage.end()?;
                self.journal.note("broker back");
                self.journal.disturbed_since(begin);
                self.calm()
            }
            Blow::Cut => {
                for _ in 0..self.plan.random.random_range(1..4) {
                    self.proxy.iter().for_each(Proxy::reset);
                    let pause = self.random_millis(0, 500);
                    self.watch_for(pause)?;
                }
                self.calm()
            }
            Blow::Dark => {
                // Sometimes for longer than a session, sometimes not.
                let time = self.random_millis(1000, 6000);
                self.spoil(Weather::Dark, time)
            }
            Blow::Slow => {
                let late = self.random_millis(20, 150);
                self.spoil(Weather::Slow(late), Duration::from_secs(5))
            }
            Blow::DiskFull => {
                let name = self.any_replica()?;
                self.arm(&name, "objects.put", "return(full)")?;
                let begin = Instant::now();
                let error = self.fleet.await_error(&name, PATIENCE)?;
                ensure!(error.contains("no storage space"), "a full disk is told as {error}");
                self.journal.note(format!("{name} stopped: {error}"));
                self.journal.disturbed_since(begin);
                self.restart(&name)
            }
            Blow::SlowStore => {
                let name = self.any_replica()?;
                self.arm(&name, "objects.put", "10*sleep(400)")?;
                let begin = Instant::now();
                self.watch_for(Duration::from_secs(5))?;
                self.calm()?;
                self.journal.disturbed_since(begin);
                Ok(())
            }
            Blow::FailingStore => {
                let name = self.any_replica()?;
                self.arm(&name, "objects.put", "3*return(gone)")?;
                let begin = Instant::now();
                self.until("the store failed", |run| Ok(run.fleet.log(&name).contains("gone")))?;
                self.calm()?;
                self.journal.disturbed_since(begin);
                Ok(())
            }
            Blow::Join => self.join(),
            Blow::Leave => self.leave(),
        }
    }

    /// A process dies when it comes to a step of a commit.
    fn die_at(&mut self, step: &'static str) -> anyhow::Result<()> {
        let armed = |name: &String| self.fleet.failpoints(name).starts_with(&format!("{step}="));
        let name = match self.fleet.names().into_iter().find(armed) {
            Some(name) => name,
            None => {
                let name = self.any_replica()?;
                self.kill(&name)?;
                *self.survived.entry(Blow::Kill).or_default() += 1;
                let failpoints = self.death_at(step);
                self.fleet.start(&name, &failpoints);
                name
            }
        };
        let begin = Instant::now();
        self.fleet.await_death(&name, PATIENCE)?;
        self.kills += 1;
        self.journal.disturbed_since(begin);
        self.restart(&name)
    }

    /// `FAILPOINTS` for death at a step, some commits from the start.
    fn death_at(&mut self, step: &str) -> String {
        let before = match step {
            // Not every commit comes to these.
            "publish.between" | "prune.between" => 0,
            _ => self.plan.random.random_range(0..6),
        };
        let off = if before > 0 { format!("{before}*off->") } else { String::new() };
        format!("{step}={off}return(kill)")
    }

    /// Restarts a process in order, with something arranged for its first commits but few.
    fn arm(&mut self, name: &str, step: &str, arranged: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.fleet.terminate(name)?;
        let before = self.plan.random.random_range(1..5);
        self.fleet.start(name, &format!("{step}={before}*off->{arranged}"));
        self.journal.disturbed_since(begin);
        Ok(())
    }

    fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.fleet.kill(name)?;
        self.kills += 1;
        Ok(())
    }

    /// Starts a process that is gone, armed if that is to come next. One that was killed is
    /// sometimes struck again before it is back at work.
    fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let next = self.plan.peek();
        if let Some(blow @ Blow::Step(step)) = next
            && self.is_possible(blow)
        {
            let failpoints = self.death_at(step);
            self.fleet.start(name, &failpoints);
            return Ok(());
        }
        self.fleet.start(name, "");
        if next == Some(Blow::Kill) && self.plan.random.random_bool(0.4) {
            Ok(())
        } else {
            self.calm()
        }
    }

    /// Another replica must take over from one that does not come back by itself.
    fn abandon(&mut self) -> anyhow::Result<()> {
        let alone = self.fleet.names().len() == 1;
        if alone {
            self.join()?;
        }
        let name = self.any_replica()?;
        let begin = Instant::now();
        self.kill(&name)?;
        self.calm()?;
        self.fleet.start(&name, "");
        self.journal.disturbed_since(begin);
        self.calm()?;
        if alone { self.leave() } else { Ok(()) }
    }

    /// A process that does not know that its session is over must not write.
    fn freeze(&mut self) -> anyhow::Result<()> {
        let begin = self.begin_calm()?;
        let name = self.any_replica()?;
        self.fleet.signal(&name, "STOP");
        self.watch_for(2 * SESSION)?;
        self.fleet.signal(&name, "CONT");
        self.journal.disturbed_since(begin);
        self.calm()
    }

    /// Of two processes of one name, one must stop: the one that came first, unless it takes the
    /// name back by going on from the last commit before it writes anything.
    fn usurp(&mut self) -> anyhow::Result<()> {
        let begin = self.begin_calm()?;
        let name = self.any_replica()?;
        self.fleet.signal(&name, "STOP");
        self.fleet.start(&name, "");
        self.calm()?;
        self.fleet.signal(&name, "CONT");
        let error = self.fleet.await_error(&name, PATIENCE)?;
        ensure!(error.contains("another process took over"), "being fenced is told as {error}");
        self.journal.note(format!("{name} stopped: {error}"));
        self.journal.disturbed_since(begin);
        self.calm()
    }

    fn spoil(&mut self, weather: Weather, time: Duration) -> anyhow::Result<()> {
        let begin = self.begin_calm()?;
        self.proxy.iter().for_each(|proxy| proxy.set(weather));
        self.watch_for(time)?;
        self.proxy.iter().for_each(|proxy| proxy.set(Weather::Fair));
        self.journal.disturbed_since(begin);
        self.calm()
    }

    fn join(&mut self) -> anyhow::Result<()> {
        let names = self.fleet.names();
        let free = REPLICAS.iter().find(|name| !names.iter().any(|taken| taken == *name));
        let Some(name) = free else { return self.leave() };
        self.fleet.start(name, "");
        self.until("the new replica has lanes", |run| Ok(run.fleet.lanes(name) > 0.0))?;
        self.calm()
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        if self.fleet.names().len() == 1 {
            self.join()?;
        }
        let name = self.any_replica()?;
        self.fleet.terminate(&name)?;
        self.calm()
    }

    fn any_replica(&mut self) -> anyhow::Result<String> {
        match self.fleet.names().choose(&mut self.plan.random) {
            Some(name) => Ok(name.clone()),
            None => bail!("no process runs"),
        }
    }

    fn random_millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.plan.random.random_range(from..to))
    }

    /// An error as soon as anything is wrong.
    fn watch(&mut self) -> anyhow::Result<()> {
        self.witness.expect_clean()?;
        self.load.iter().try_for_each(Load::expect_running)?;
        self.fleet.expect_running()
    }

    fn watch_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.watch()?;
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn until(
        &mut self,
        what: &str,
        mut ask: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !ask(self)? {
            self.watch()?;
            ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            thread::sleep(TICK);
        }
        Ok(())
    }

    /// Waits until results of what is sent from now on are visible, of every machine.
    fn calm(&mut self) -> anyhow::Result<()> {
        let mut sent = self.load.as_ref().map(Load::sent).unwrap_or_default();
        // The first segments take longest.
        sent.rounds = sent.rounds.max(LENGTH + LATENESS) + STRIDE;
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.watch()?;
            let missing = self.witness.missing(sent);
            if missing == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "stalled: of {sent:?}, {missing} results are not visible after {PATIENCE:?}"
            );
            thread::sleep(TICK);
        }
    }

    /// The same; returns when it was.
    fn begin_calm(&mut self) -> anyhow::Result<Instant> {
        self.calm()?;
        Ok(Instant::now())
    }

    /// Now and then, that nothing is in the files twice; what is lost shows in the end.
    fn look_at_files(&mut self) -> anyhow::Result<()> {
        if self.kills < self.looked_at + KILLS_PER_LOOK {
            return Ok(());
        }
        self.looked_at = self.kills;
        self.files.read(&self.plant.out())?;
        let told = repeated("Parquet", &self.files.rows)
            + &repeated("files of dead letters", &self.files.letters);
        ensure!(told.is_empty(), "{told}");
        Ok(())
    }

    /// Ends load and program, and reads everything once more.
    pub fn finish(&mut self) -> anyhow::Result<Report> {
        let Some(load) = self.load.take() else { bail!("ended already") };
        let sent = load.stop()?;
        self.until("the rest", |run| Ok(run.witness.missing(sent) == 0))?;
        for name in self.fleet.names() {
            self.fleet.terminate(&name)?;
        }
        self.journal.note("all is sent, all processes ended: reading everything again");

        let (keys, letters) = (machines(), [LETTERS.to_owned()]);
        let (segments, sent_letters) = (segments_of(sent.rounds), sent.letters as u64);
        let mut tallies = Vec::new();
        for kind in TOPICS {
            let found = witness::read(self.plant, kind)?;
            let tally = match kind {
                "dead-letters" => found.tally(&letters, sent_letters),
                _ => found.tally(&keys, segments),
            };
            tallies.push((kind, tally));
        }
        self.files.read(&self.plant.out())?;
        tallies.push(("Parquet", self.files.rows.tally(&keys, segments)));
        tallies.push(("files of dead letters", self.files.letters.tally(&letters, sent_letters)));
        let steps = STEPS.iter().map(|step| (*step, self.survived_at(Blow::Step(step))));
        Ok(Report {
            seed: self.settings.seed,
            kills: self.kills,
            steps: steps.collect(),
            blows: self.survived.clone(),
            starts: self.fleet.starts,
            rewinds: self.fleet.all_rewinds(),
            records: (sent.rounds * MACHINES) as u64,
            segments: segments * MACHINES as u64,
            letters: sent_letters,
            tallies,
            files: self.files.count(),
            staged: staged(&self.plant.out()),
            checkpoints: files(&self.plant.state()).len(),
            stall: self.journal.longest_stall(&self.witness.arrivals()),
            wall: self.journal.began.elapsed(),
        })
    }

    fn survived_at(&self, blow: Blow) -> u64 {
        self.survived.get(&blow).copied().unwrap_or(0)
    }

    /// What is needed to find out what went wrong.
    pub fn explain(&mut self) -> String {
        let mut text = self.journal.text();
        for kind in TOPICS {
            match witness::read(self.plant, kind) {
                Ok(found) => text += &repeated(kind, &found),
                Err(error) => text += &format!("\n{kind}: cannot be read: {error:#}"),
            }
        }
        match self.files.read(&self.plant.out()) {
            Ok(()) => {
                text += &repeated("Parquet", &self.files.rows);
                text += &repeated("files of dead letters", &self.files.letters);
            }
            Err(error) => text += &format!("\nfiles cannot be read: {error:#}"),
        }
        format!("{text}\n{}", self.fleet.last_words())
    }
}

/// The first that is there twice or before its predecessor, with its places; nothing if none is.
fn repeated(place: &str, found: &Found) -> String {
    let tally = found.tally(&[], 0);
    let told = [Fault::Duplicated, Fault::OutOfOrder].into_iter().filter_map(|fault| {
        let example = tally.example(fault)?;
        Some(format!("\n{place}: {} {fault}: {example}", tally.count(fault)))
    });
    told.collect()
}
