//! The templates of one lane, and what its lines are by them.

use serde::{Deserialize, Serialize};

use super::channels::{CHANNELS, code, describe};
use super::mask::Line;
use super::miner::{Miner, Template};

/// Lines after which one counts `1/e` of what it did, in the mean of rarities.
const HORIZON: f64 = 1024.0;
/// The same, for severities.
const SEVERITY_HORIZON: f64 = 4096.0;
/// Severities from debug to emergency.
const SEVERITIES: usize = 8;
/// Weight of a line whose template is as frequent as most.
const LEAST_WEIGHT: f32 = 0.01;
/// Most characters of a template's text that a cause shows.
const SHOWN: usize = 200;

/// Turns the lines of one lane into channels, and names their templates.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Templates {
    miner: Miner,
    /// Mean rarity of the lines of late.
    usual: f64,
    severities: Severities,
    #[serde(skip)]
    line: Line,
}

/// How many lines of late had which severity, those longer ago counting less.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Severities {
    lines: [f64; SEVERITIES],
}

/// The template of a line, and how much the line stands out by it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tag {
    /// Id of the template.
    pub template: u64,
    /// Nats by which the template is rarer than that of the usual line, and a little.
    pub weight: f32,
}

impl Templates {
    /// What the next line of the lane is, in the order of [`CHANNELS`], `silence` left open, by
    /// the lines before it; then it is learned from. `severity` is NaN where it is not known.
    pub fn read(&mut self, text: &str, severity: f32) -> ([f32; CHANNELS.len()], Tag) {
        self.line.read(text);
        let found = self.miner.read(&self.line);
        let words = self.miner.template(found.id).into_iter().flat_map(Template::words);
        let severe = self.severities.read(severity);
        let channels = describe(&found, &code(words), severity, severe);
        let weight = (found.rarity - self.usual as f32).max(LEAST_WEIGHT);
        self.usual += (f64::from(found.rarity) - self.usual) / HORIZON;
        (channels, Tag { template: found.id, weight })
    }

    /// The text of a template, or as much of it as can be shown; its number if it was forgotten.
    pub fn name(&self, id: u64) -> String {
        let Some(template) = self.miner.template(id) else { return format!("template {id}") };
        let mut text = template.text();
        if let Some((end, _)) = text.char_indices().nth(SHOWN) {
            text.truncate(end);
            text.push('…');
        }
        text
    }

    /// All templates, by their ids.
    pub fn all(&self) -> Vec<&Template> {
        self.miner.templates()
    }
}

impl Severities {
    /// `-ln` of the share of the lines before that are at least as severe as one of `severity`,
    /// which then counts, too. 0 where it is NaN: a severity says something against others only.
    fn read(&mut self, severity: f32) -> f32 {
        if severity.is_nan() {
            return 0.0;
        }
        let level = (severity.round() as usize).min(SEVERITIES - 1);
        let all: f64 = self.lines.iter().sum();
        let as_severe: f64 = self.lines[level..].iter().sum();
        self.lines.iter_mut().for_each(|lines| *lines *= 1.0 - 1.0 / SEVERITY_HORIZON);
        self.lines[level] += 1.0;
        // As if one line more and one less severe had been there.
        ((all + 2.0) / (as_severe + 1.0)).ln() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_never_came_stands_out_among_usual_ones() {
        let mut templates = Templates::default();
        for at in 0..3000 {
            templates.read(&format!("request {at} done"), 1.0);
        }
        let (usual_channels, usual) = templates.read("request 7 done", 1.0);
        let (channels, tag) = templates.read("disk quota exceeded on volume x", 4.0);
        assert_eq!((usual.template, usual.weight), (0, LEAST_WEIGHT));
        assert!(tag.template == 1 && tag.weight > 6.0, "{tag:?}");
        let of = |name: &str| CHANNELS.iter().position(|channel| *channel == name).unwrap();
        for channel in ["severity", "rarity", "novelty"] {
            assert!(channels[of(channel)] > usual_channels[of(channel)] + 2.0, "{channel}");
        }
        assert_eq!(templates.name(0), "request <*> done");
        assert_eq!(templates.name(99), "template 99");
        assert_eq!(templates.all().len(), 2);
    }

    #[test]
    fn what_is_more_severe_than_usual_alarms_and_what_is_less_does_not() {
        let mut severities = Severities::default();
        assert!(severities.read(6.0) < 1.0);
        for at in 0..2000 {
            severities.read(if at % 50 == 0 { 4.0 } else { 1.0 });
        }
        let of = |severity: f32| severities.clone().read(severity);
        assert!(of(0.0) < 0.01 && of(1.0) < 0.01 && of(f32::NAN) == 0.0);
        assert!((of(4.0) - 50.0_f32.ln()).abs() < 0.2, "{}", of(4.0));
        assert!(of(6.0) > of(4.0) + 1.0 && of(7.0) > of(6.0) && of(99.0) == of(7.0));
    }

    #[test]
    fn saved_templates_go_on_bit_for_bit() {
        let text = |at: u64| match at % 7 {
            0..4 => format!("request {} took {}ms", at, at * at % 37),
            4..6 => {
                format!("user u{} logged in from {}", at % 5, ["here", "there"][at as usize % 2])
            }
            _ => format!("{} {}", "word".repeat(at as usize % 300), at),
        };
        let mut templates = Templates::default();
        for at in 0..5000 {
            templates.read(&text(at), f32::NAN);
        }
        let saved = postcard::to_stdvec(&templates).unwrap();
        let mut loaded: Templates = postcard::from_bytes(&saved).unwrap();
        for at in 5000..9000 {
            let (one, one_tag) = templates.read(&text(at), 3.0);
            let (other, other_tag) = loaded.read(&text(at), 3.0);
            assert_eq!(one.map(f32::to_bits), other.map(f32::to_bits), "line {at}");
            assert_eq!(one_tag, other_tag);
        }
        assert_eq!(postcard::to_stdvec(&loaded).unwrap(), postcard::to_stdvec(&templates).unwrap());
    }
}
