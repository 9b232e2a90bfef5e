//! Breaks the built program in every way that it must withstand while records flow, and counts
//! what comes out: nothing lost, nothing twice, everything in order, whatever is killed.
//!
//! `make test` runs a short form with a fixed seed. `make chaos` goes on until `CHAOS_KILLS`
//! processes were killed and `CHAOS_MINUTES` are over, in an order drawn from `CHAOS_SEED`.
//! `CHAOS_WITHOUT` names what is not done, as the report names it, with commas between.

mod broker;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod fleet;
mod journal;
mod load;
mod plan;
mod proxy;
mod report;
mod run;
mod tally;
mod witness;

use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plan::Form;
use run::{Run, Settings};

/// The seed of the short form.
const SEED: u64 = 7;

#[test]
fn nothing_is_lost_and_nothing_comes_twice_whatever_is_killed() {
    let settings = settings();
    println!("seed {}", settings.seed);
    let mut plant = run::plant();
    let mut run = Run::start(&settings, &plant).unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = run.play().and_then(|()| run.finish());
    let told = match outcome {
        Ok(report) => {
            println!("{report}");
            report.is_clean().then_some(()).ok_or_else(|| "see the table".to_owned())
        }
        Err(error) => Err(format!("{error:#}")),
    };
    let Err(reason) = told else { return };
    let journal = run.explain();
    drop(run);
    plant.folder.disable_cleanup(true);
    panic!(
        "seed {}: {reason}\n{journal}\nfiles and logs are kept in {}",
        settings.seed,
        plant.folder.path().display()
    );
}

fn settings() -> Settings {
    let number = |name: &str| {
        let value = env::var(name).ok().filter(|value| !value.is_empty())?;
        Some(value.parse::<u64>().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
    };
    let kills = number("CHAOS_KILLS");
    let any = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(SEED, |now| now.as_secs());
    let without = env::var("CHAOS_WITHOUT").unwrap_or_default();
    Settings {
        form: if kills.is_some() { Form::Long } else { Form::Short },
        seed: number("CHAOS_SEED").unwrap_or_else(|| kills.map_or(SEED, |_| any())),
        kills: kills.unwrap_or(0),
        time: Duration::from_secs(60 * number("CHAOS_MINUTES").unwrap_or(0)),
        without: without.split(',').map(|name| name.trim().to_owned()).collect(),
    }
}
