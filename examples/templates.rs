//! How well templates are mined: grouping accuracy on a folder of labelled logs.
//!
//! ```sh
//! cargo run --release --example templates -- FOLDER
//! ```
//!
//! The folder has files as loghub publishes them (Zhu et al. 2019, "Tools and Benchmarks for
//! Automated Log Parsing"): `NAME_2k.log`, and `NAME_2k.templates.csv` with the columns `LineId`,
//! `EventId` and `EventTemplate`. A line counts if the lines that were grouped with it are exactly
//! those of its true template. All files are read with the same settings; of each system, only what
//! its lines begin with is known.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use contrastream::templates::{Line, Miner};
use regex::Regex;

/// What the lines of each system begin with; the rest is the text. The last column is the accuracy
/// that Zhu et al. published for Drain, with settings of its own for each system.
const SYSTEMS: [(&str, &str, f64); 16] = [
    ("Android", r"^\S+ +\S+ +\d+ +\d+ \S+ .*?: ", 0.911),
    ("Apache", r"^\[.*?\] \[.*?\] ", 1.0),
    ("BGL", r"^(?:\S+ +){9}", 0.963),
    ("HDFS", r"^(?:\S+ +){4}\S+?: ", 0.998),
    ("HPC", r"^(?:\S+ +){6}", 0.887),
    ("Hadoop", r"^\S+ \S+ \S+ +\[.*?\] \S+?: ", 0.948),
    ("HealthApp", r"^[^|]*\|[^|]*\|[^|]*\|", 0.780),
    ("Linux", r"^\S+ +\S+ \S+ \S+ .*?(?:\[\d+\])?: ", 0.690),
    ("Mac", r"^\S+ +\S+ \S+ \S+ .*?\[\d+\](?: \(.*?\))?: ", 0.787),
    ("OpenSSH", r"^\S+ +\S+ \S+ \S+ \S+?: ", 0.788),
    ("OpenStack", r"^(?:\S+ +){6}\[.*?\] ", 0.733),
    ("Proxifier", r"^\[.*?\] .*? - ", 0.527),
    ("Spark", r"^\S+ \S+ \S+ \S+?: ", 0.920),
    ("Thunderbird", r"^(?:\S+ +){8}.*?: ", 0.955),
    ("Windows", r"^\S+ \S+ \S+ +\S+ +", 0.997),
    ("Zookeeper", r"^\S+ \S+ - \S+ +\[.*?\] - ", 0.967),
];

fn main() -> anyhow::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else { bail!("usage: templates FOLDER") };
    let folder = Path::new(&folder);
    println!(
        "{:<12} {:>8} {:>9} {:>9} {:>6}",
        "SYSTEM", "ACCURACY", "PUBLISHED", "TEMPLATES", "TRUE"
    );
    let mut found = 0;
    for (name, header, published) in SYSTEMS {
        let lines = folder.join(format!("{name}_2k.log"));
        if !lines.exists() {
            continue;
        }
        found += 1;
        let header = Regex::new(header)?;
        let bytes = std::fs::read(&lines).with_context(|| lines.display().to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        let truth = true_groups(&folder.join(format!("{name}_2k.templates.csv")))?;
        let (mut miner, mut line) = (Miner::default(), Line::default());
        let mut groups = Vec::new();
        for raw in text.lines().filter(|line| !line.trim().is_empty()) {
            let start = header.find(raw).map_or(0, |found| found.end());
            line.read(&raw[start..]);
            groups.push(miner.read(&line).id);
        }
        ensure!(
            groups.len() == truth.len(),
            "{name}: {} lines, {} labels",
            groups.len(),
            truth.len()
        );
        let accuracy = grouping_accuracy(&groups, &truth);
        let (mined, real) = (sizes(&groups).len(), sizes(&truth).len());
        println!("{name:<12} {accuracy:>8.3} {published:>9.3} {mined:>9} {real:>6}");
    }
    ensure!(found > 0, "{}: no file such as HDFS_2k.log", folder.display());
    Ok(())
}

/// The true template of each line, by its id.
fn true_groups(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut reader = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    let column = reader.headers()?.iter().position(|name| name == "EventId");
    let column = column.with_context(|| format!("{}: no column EventId", path.display()))?;
    reader.records().map(|row| Ok(row?.get(column).unwrap_or_default().to_owned())).collect()
}

/// Share of the lines whose group holds the same lines as their true group.
fn grouping_accuracy<T: Eq + std::hash::Hash>(groups: &[u64], truth: &[T]) -> f64 {
    let (sizes_found, sizes_true) = (sizes(groups), sizes(truth));
    let pairs: Vec<(&u64, &T)> = groups.iter().zip(truth).collect();
    let both = sizes(&pairs);
    let right = pairs.iter().filter(|pair| {
        let together = both[pair];
        together == sizes_found[pair.0] && together == sizes_true[pair.1]
    });
    right.count() as f64 / groups.len().max(1) as f64
}

/// How many lines each group has.
fn sizes<T: Eq + std::hash::Hash>(groups: &[T]) -> HashMap<&T, usize> {
    let mut sizes = HashMap::new();
    groups.iter().for_each(|group| *sizes.entry(group).or_default() += 1);
    sizes
}
