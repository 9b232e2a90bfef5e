//! Nearest neighbours: how many of the true ten an index finds, and how many queries a second.
//!
//! `cargo bench --bench similar [-- ROWS]`: 1.2 million embeddings of length 64 by default, unit
//! vectors around 12,000 centres of different sizes, as recurring states of machines lie.

use std::time::Instant;

use contrastream::similar::{Effort, Index, nearest};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

const WIDTH: usize = 64;
const ROWS: usize = 1_200_000;
const CENTRES: usize = 12_000;
const QUERIES: usize = 500;
const NEAREST: usize = 10;

fn unit(values: &mut [f32]) {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter_mut().for_each(|value| *value /= length);
}

fn clustered(rows: usize, rng: &mut Pcg64Mcg) -> Vec<f32> {
    let normal = |rng: &mut Pcg64Mcg| -> f32 { StandardNormal.sample(rng) };
    let centres: Vec<f32> = (0..CENTRES * WIDTH).map(|_| normal(rng)).collect();
    let mut values = Vec::with_capacity(rows * WIDTH);
    for _ in 0..rows {
        // The square makes some centres far more frequent than others.
        let share: f64 = rng.random_range(0.0..1.0);
        let centre = (share * share * CENTRES as f64) as usize;
        let first = values.len();
        for at in 0..WIDTH {
            values.push(centres[centre * WIDTH + at] + 0.5 * normal(rng));
        }
        unit(&mut values[first..]);
    }
    values
}

fn main() {
    let rows = std::env::args().filter_map(|argument| argument.parse().ok()).next();
    let rows: usize = rows.unwrap_or(ROWS);
    let mut rng = Pcg64Mcg::seed_from_u64(11);
    let values = clustered(rows, &mut rng);
    let queries: Vec<usize> = (0..QUERIES).map(|_| rng.random_range(0..rows)).collect();
    let query = |row: usize| &values[row * WIDTH..(row + 1) * WIDTH];

    let began = Instant::now();
    let one = 5;
    for row in &queries[..one] {
        nearest(&values, WIDTH, query(*row), NEAREST, |_, other| other != *row);
    }
    let seconds = began.elapsed().as_secs_f64() / one as f64;
    println!("exact, one at a time: {:.1} ms a query", seconds * 1e3);
    let began = Instant::now();
    let together: Vec<f32> = queries.iter().flat_map(|row| query(*row)).copied().collect();
    let truth = nearest(&values, WIDTH, &together, NEAREST, |at, other| other != queries[at]);
    let seconds = began.elapsed().as_secs_f64() / QUERIES as f64;
    println!("exact, {QUERIES} together: {:.2} ms a query", seconds * 1e3);

    let effort = Effort::default();
    let began = Instant::now();
    let index = Index::build(&values, WIDTH, effort, &|_| {}).expect("memory");
    println!("{effort:?}: built in {:.0} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut hits = 0;
    for (at, row) in queries.iter().enumerate() {
        let found = index.nearest(query(*row), NEAREST, |other| other != *row);
        let found = found.expect("memory");
        hits += found.iter().filter(|near| truth[at].iter().any(|t| t.row == near.row)).count();
    }
    println!(
        "recall@{NEAREST} {:.4}, {:.0} queries/s on one core",
        hits as f64 / (QUERIES * NEAREST) as f64,
        QUERIES as f64 / began.elapsed().as_secs_f64()
    );
}
