//! What is done to the program, in an order drawn from a seed.

use std::fmt;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;

/// The steps of a commit at which a process is killed.
pub const STEPS: &[&str] = &[
    "commit.begin",
    "commit.prepared",
    "checkpoint.part",
    "checkpoint.manifest",
    "checkpoint.saved",
    // Offsets are in the transaction, which is not committed.
    "commit.offsets",
    // Committed, not published.
    "commit.done",
    "publish.before",
    "publish.between",
    "publish.after",
    "prune.before",
    "prune.between",
    "commit.end",
];

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL at any moment.
    Kill,
    /// Death at a step of a commit.
    Step(&'static str),
    /// SIGKILL, and nobody comes back before others have taken over.
    Abandon,
    /// SIGTERM and a new start.
    Restart,
    /// SIGSTOP for longer than the session lasts.
    Freeze,
    /// The same, and meanwhile another process of the same name goes on.
    Usurp,
    /// The broker is killed.
    Broker,
    /// Every connection is reset.
    Cut,
    /// Nothing passes the network, and nobody is told.
    Dark,
    /// Everything is late.
    Slow,
    /// The disk is full: the program stops.
    DiskFull,
    /// The store takes its time.
    SlowStore,
    /// The store fails a few times.
    FailingStore,
    /// One replica more.
    Join,
    /// One replica fewer.
    Leave,
}

impl fmt::Display for Blow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kill => "killed at a random moment",
            Self::Step(step) => step,
            Self::Abandon => "killed and replaced late",
            Self::Restart => "told to stop and restarted",
            Self::Freeze => "frozen beyond its session",
            Self::Usurp => "frozen, another of its name goes on",
            Self::Broker => "broker killed",
            Self::Cut => "connections reset",
            Self::Dark => "network black hole",
            Self::Slow => "network slow",
            Self::DiskFull => "disk full",
            Self::SlowStore => "store slow",
            Self::FailingStore => "store failing",
            Self::Join => "replica added",
            Self::Leave => "replica removed",
        })
    }
}

/// How a run is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Once through what must hold at all.
    Short,
    /// Everything, over and over.
    Long,
}

impl Form {
    /// Each step once, and what goes with them.
    fn deck(self) -> Vec<Blow> {
        use Blow::{
            Abandon, Broker, Cut, Dark, DiskFull, FailingStore, Freeze, Join, Kill, Leave, Restart,
            Slow, SlowStore, Usurp,
        };
        let mut deck: Vec<Blow> = STEPS.iter().map(|step| Blow::Step(step)).collect();
        deck.extend(match self {
            // Leaving as the only one, a replica joins first.
            Self::Short => &[Kill, Kill, Kill, Broker, Cut, Leave, DiskFull][..],
            Self::Long => &[
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Kill,
                Abandon,
                Restart,
                Freeze,
                Usurp,
                Broker,
                Cut,
                Cut,
                Dark,
                Slow,
                DiskFull,
                SlowStore,
                FailingStore,
                Join,
                Join,
                Leave,
                Leave,
            ],
        });
        deck
    }
}

/// Decks of blows, each shuffled.
pub struct Plan {
    pub random: Pcg64Mcg,
    form: Form,
    /// The next one last.
    left: Vec<Blow>,
}

impl Plan {
    pub fn new(form: Form, seed: u64) -> Self {
        Self { random: Pcg64Mcg::seed_from_u64(seed), form, left: Vec::new() }
    }

    pub fn next(&mut self) -> Blow {
        loop {
            if let Some(blow) = self.left.pop() {
                return blow;
            }
            self.left = self.form.deck();
            self.left.shuffle(&mut self.random);
        }
    }

    /// What comes next in this deck; `None` once it is played.
    pub fn peek(&self) -> Option<Blow> {
        self.left.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deck_holds_every_step_once_and_the_same_seed_the_same_order() {
        let drawn = |seed| {
            let mut plan = Plan::new(Form::Long, seed);
            let mut drawn = vec![plan.next()];
            while plan.peek().is_some() {
                drawn.push(plan.next());
            }
            drawn
        };
        let first = drawn(1);
        for step in STEPS {
            assert_eq!(first.iter().filter(|blow| **blow == Blow::Step(step)).count(), 1);
        }
        assert_eq!(first, drawn(1));
        assert_ne!(first, drawn(2));
    }
}
