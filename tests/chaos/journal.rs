//! What was done to the program and when, and for how long nothing came out of it.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The log of a run.
pub struct Journal {
    pub began: Instant,
    lines: Vec<String>,
    /// When something was broken, or a process that was to die still lived.
    disturbed: Vec<(Instant, Instant)>,
}

impl Journal {
    pub fn new() -> Self {
        Self { began: Instant::now(), lines: Vec::new(), disturbed: Vec::new() }
    }

    pub fn note(&mut self, what: impl Display) {
        let line = format!("{:8.2} s  {what}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        self.lines.push(line);
    }

    /// Whatever came out or did not, from then until now, is no merit or fault of the program.
    pub fn disturbed_since(&mut self, begin: Instant) {
        self.disturbed.push((begin, Instant::now()));
    }

    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// The longest time without an arrival and without a disturbance.
    pub fn longest_stall(&self, arrivals: &[Instant]) -> Duration {
        longest_calm(arrivals, &self.disturbed)
    }
}

/// The longest time between two arrivals, neighbours in time, in which nothing was disturbed.
fn longest_calm(arrivals: &[Instant], disturbed: &[(Instant, Instant)]) -> Duration {
    let mut disturbed = disturbed.to_vec();
    disturbed.sort();
    let mut longest = Duration::ZERO;
    for pair in arrivals.windows(2) {
        let [mut calm_since, end] = *pair else { continue };
        let begins_before_end = |(begin, _): &&(Instant, Instant)| *begin < end;
        for (begin, over) in disturbed.iter().filter(begins_before_end) {
            longest = longest.max(begin.saturating_duration_since(calm_since));
            calm_since = calm_since.max(*over);
        }
        longest = longest.max(end.saturating_duration_since(calm_since));
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calm(arrivals: &[u64], disturbed: &[(u64, u64)]) -> u64 {
        let zero = Instant::now();
        let at = |second: u64| zero + Duration::from_secs(second);
        let arrivals: Vec<_> = arrivals.iter().map(|second| at(*second)).collect();
        let disturbed: Vec<_> =
            disturbed.iter().map(|(begin, end)| (at(*begin), at(*end))).collect();
        longest_calm(&arrivals, &disturbed).as_secs()
    }

    #[test]
    fn the_longest_gap_between_arrivals_counts() {
        assert_eq!(calm(&[0, 2, 7, 8], &[]), 5);
    }

    #[test]
    fn time_in_which_something_was_disturbed_does_not_count() {
        assert_eq!(calm(&[0, 10], &[(1, 7)]), 3);
        assert_eq!(calm(&[0, 10], &[(4, 7)]), 4);
        assert_eq!(calm(&[0, 10, 12], &[(0, 20)]), 0);
        assert_eq!(calm(&[0, 10], &[(2, 3), (6, 7)]), 3);
    }

    #[test]
    fn a_disturbance_that_is_over_makes_no_gap_longer_or_shorter() {
        assert_eq!(calm(&[5, 9], &[(0, 3)]), 4);
        assert_eq!(calm(&[5, 9], &[(10, 30)]), 4);
    }
}
