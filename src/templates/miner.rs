//! Templates of lines, mined as lines come.
//!
//! Drain (He et al. 2017, "Drain: An Online Log Parsing Approach with Fixed Depth Tree"): a line is
//! led by its number of tokens and its first tokens to a few templates, and belongs to the most
//! similar one if that is similar enough; where the two differ, the template has a parameter from
//! then on. Two things are other than in the paper. Positions where both line and template have
//! nothing but a parameter say nothing about whether they are alike and do not count. And templates
//! are bounded in number: beyond it, the one that was met least recently goes.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

use super::mask::{Line, MASK, Token, hash, mixed};

/// Templates of a lane; the least recently met ones beyond it are forgotten.
pub const MAX_TEMPLATES: usize = 2048;
/// First tokens that lead a line to its templates.
const DEPTH: usize = 2;
/// Different tokens at one place of the way; further ones go where parameters go.
const MAX_CHILDREN: usize = 100;
/// Least share of the positions that tell anything at which line and template agree.
const SIMILARITY: f64 = 0.65;

const MASK_HASH: u64 = hash(MASK.as_bytes());
/// Lines after which one counts `1/e` of what it did.
const HORIZON: f64 = 16_384.0;
/// The same, for what is frequent of late.
const BURST_HORIZON: f64 = 16.0;
/// A template that was not met of late counts as this many lines.
const BURST_PRIOR: f64 = 0.1;
/// Weight of the last parameter in a template's share of new values, and the least such share.
const RECENT_VALUE: f32 = 0.05;
const FEWEST_NEW: f32 = 0.01;

/// The templates of one lane.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Saved", into = "Saved")]
pub struct Miner {
    saved: Saved,
    /// Templates by the way to them.
    leaves: FxHashMap<u64, Vec<usize>>,
    /// Per place on the way, the tokens that lead on from there and the templates behind each.
    children: FxHashMap<u64, FxHashMap<u64, usize>>,
    by_id: FxHashMap<u64, usize>,
}

/// What the rest of a [`Miner`] follows from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// Lines read.
    lines: u64,
    /// Id of the next template.
    next: u64,
    templates: Vec<Template>,
}

/// What is known of a template.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Template {
    /// Its number, the first of its lane being 0. No other template of the lane ever has it.
    pub id: u64,
    /// Lines that belonged to it.
    pub count: u64,
    tokens: Vec<Box<str>>,
    #[serde(skip)]
    hashes: Vec<u64>,
    /// First tokens that were led where parameters go, though they are none.
    detours: [bool; DEPTH],
    /// Number of its first line and of its last one.
    first: u64,
    last: u64,
    /// Lines, those longer ago counting less, as of the last one.
    weight: f64,
    /// The same, for bursts.
    recent: f64,
    /// Values of parameters that were met, each a bit.
    values: [u64; 4],
    /// Share of parameters with a new value, of late.
    new_values: f32,
}

/// What a line is, by all lines before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Id of the template that it belongs to.
    pub id: u64,
    /// `-ln` of the template's share of late.
    pub rarity: f32,
    /// `ln` of how many times as old as the template the lane is, in lines.
    pub novelty: f32,
    /// Number of parameters.
    pub parameters: usize,
    /// `-ln` of how often a parameter of the template has a new value, where one has; else 0.
    pub new_parameter: f32,
    /// `ln` of how many times as frequent the template is of late as usual, 0 where it is not more
    /// so.
    pub burst: f32,
}

impl Miner {
    /// Finds the template of a line, or begins one; then learns from the line.
    pub fn read(&mut self, line: &Line) -> Found {
        let (leaf, detours) = self.way(line.tokens());
        let slot = self.most_similar(leaf, line).unwrap_or_else(|| self.begin(line, detours));
        let now = self.saved.lines;
        self.saved.lines += 1;
        let template = &mut self.saved.templates[slot];
        let absent = now.saturating_sub(template.last) as f64;
        let weight = template.weight * (-absent / HORIZON).exp();
        let recent = template.recent * (-absent / BURST_HORIZON).exp();
        let total = HORIZON * (1.0 - (-(now as f64) / HORIZON).exp());
        let age = now.saturating_sub(template.first);
        template.generalise(line);
        let (parameters, new_parameter) = template.meet_values(line.tokens());
        template.weight = weight + 1.0;
        template.recent = recent + 1.0;
        // A template that was never met counts as half a line.
        let share = (weight + 0.5) / (total + 1.0);
        template.last = now;
        template.count += 1;
        Found {
            id: template.id,
            rarity: (-share.ln()).max(0.0) as f32,
            burst: ((recent + BURST_PRIOR) / (BURST_HORIZON * share)).ln().max(0.0) as f32,
            novelty: ((1 + now) as f64 / (1 + age) as f64).ln() as f32,
            parameters,
            new_parameter,
        }
    }

    /// The template `id`, if it is still known.
    pub fn template(&self, id: u64) -> Option<&Template> {
        self.by_id.get(&id).map(|slot| &self.saved.templates[*slot])
    }

    /// All templates, by their ids.
    pub fn templates(&self) -> Vec<&Template> {
        let mut templates: Vec<&Template> = self.saved.templates.iter().collect();
        templates.sort_unstable_by_key(|template| template.id);
        templates
    }

    /// Where a line is led, and which of its first tokens take a detour because there are too many
    /// others.
    fn way(&self, tokens: &[Token]) -> (u64, [bool; DEPTH]) {
        let mut place = first_place(tokens.len());
        let mut detours = [false; DEPTH];
        for (token, detour) in tokens.iter().zip(&mut detours) {
            let children = self.children.get(&place);
            let is_known = children.is_some_and(|children| children.contains_key(&token.hash));
            *detour = !is_known && children.is_some_and(|children| children.len() >= MAX_CHILDREN);
            place = next_place(place, if *detour { MASK_HASH } else { token.hash });
        }
        (place, detours)
    }

    /// The template that is most like `line`, if any is enough so. Of equals, the one with most
    /// parameters, then the oldest.
    fn most_similar(&self, leaf: u64, line: &Line) -> Option<usize> {
        let mut best = None;
        for &slot in self.leaves.get(&leaf)? {
            let template = &self.saved.templates[slot];
            let Some((similarity, parameters)) = template.similarity(line.tokens()) else {
                continue;
            };
            let rank = (similarity, parameters, Reverse(template.id));
            if similarity >= SIMILARITY && best.as_ref().is_none_or(|(most, _)| rank > *most) {
                best = Some((rank, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    fn begin(&mut self, line: &Line, detours: [bool; DEPTH]) -> usize {
        let tokens = line.tokens();
        let template = Template {
            id: self.saved.next,
            count: 0,
            tokens: tokens.iter().map(|token| line.text(token).into()).collect(),
            hashes: tokens.iter().map(|token| token.hash).collect(),
            detours,
            first: self.saved.lines,
            last: self.saved.lines,
            weight: 0.0,
            recent: 0.0,
            values: [0; 4],
            new_values: 1.0,
        };
        self.saved.next += 1;
        let slot = if self.saved.templates.len() < MAX_TEMPLATES {
            self.saved.templates.push(template);
            self.saved.templates.len() - 1
        } else {
            let slot = self.forget_oldest();
            self.saved.templates[slot] = template;
            slot
        };
        self.enter(slot);
        slot
    }

    /// Takes the least recently met template out of all indices; returns its slot.
    fn forget_oldest(&mut self) -> usize {
        let templates = self.saved.templates.iter().enumerate();
        let slot = templates.min_by_key(|(_, template)| template.last).map_or(0, |(slot, _)| slot);
        let template = &self.saved.templates[slot];
        self.by_id.remove(&template.id);
        let leaf = template.steps(|place, step| {
            if let Some(children) = self.children.get_mut(&place) {
                match children.get_mut(&step) {
                    Some(behind) if *behind > 1 => *behind -= 1,
                    _ => drop(children.remove(&step)),
                }
                if children.is_empty() {
                    self.children.remove(&place);
                }
            }
        });
        if let Some(slots) = self.leaves.get_mut(&leaf) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.leaves.remove(&leaf);
            }
        }
        slot
    }

    /// Enters the template at `slot` into all indices.
    fn enter(&mut self, slot: usize) {
        let template = &self.saved.templates[slot];
        self.by_id.insert(template.id, slot);
        let leaf = template.steps(|place, step| {
            *self.children.entry(place).or_default().entry(step).or_default() += 1;
        });
        self.leaves.entry(leaf).or_default().push(slot);
    }
}

impl From<Saved> for Miner {
    fn from(mut saved: Saved) -> Self {
        for template in &mut saved.templates {
            let hashes = template.tokens.iter().map(|token| hash(token.as_bytes()));
            template.hashes = hashes.collect();
        }
        let mut miner = Self { saved, ..Self::default() };
        (0..miner.saved.templates.len()).for_each(|slot| miner.enter(slot));
        miner
    }
}

impl From<Miner> for Saved {
    fn from(miner: Miner) -> Self {
        miner.saved
    }
}

impl Template {
    /// Its tokens, those that are parameters as [`MASK`], with blanks between.
    pub fn text(&self) -> String {
        self.tokens.join(" ")
    }

    /// Hashes of its tokens that are not parameters.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        self.hashes.iter().copied().filter(|hash| *hash != MASK_HASH)
    }

    /// Share of the positions that tell anything at which it agrees with a line, and the number of
    /// its parameters; `None` if they differ in length.
    fn similarity(&self, tokens: &[Token]) -> Option<(f64, usize)> {
        if self.hashes.len() != tokens.len() {
            return None;
        }
        let (mut same, mut silent, mut parameters) = (0_u32, 0, 0);
        for (own, token) in self.hashes.iter().zip(tokens) {
            let is_parameter = *own == MASK_HASH;
            parameters += usize::from(is_parameter);
            if *own == token.hash {
                same += u32::from(!is_parameter);
                silent += usize::from(is_parameter);
            }
        }
        let telling = tokens.len() - silent;
        let similarity = if telling == 0 { 1.0 } else { f64::from(same) / telling as f64 };
        Some((similarity, parameters))
    }

    /// Makes a parameter of each token that a line has not.
    fn generalise(&mut self, line: &Line) {
        for (at, token) in line.tokens().iter().enumerate() {
            if self.hashes[at] != token.hash {
                self.hashes[at] = MASK_HASH;
                self.tokens[at] = MASK.into();
            }
        }
    }

    /// Looks at the parameters of a line and keeps their values in mind. Returns their number, and
    /// how surprising the new ones are.
    fn meet_values(&mut self, tokens: &[Token]) -> (usize, f32) {
        let (mut parameters, mut surprise) = (0, 0.0_f32);
        for (at, token) in tokens.iter().enumerate() {
            if !token.has_mask && self.hashes[at] != MASK_HASH {
                continue;
            }
            parameters += 1;
            let bit = mixed(token.raw ^ at as u64) % 256;
            let word = &mut self.values[(bit / 64) as usize];
            let is_new = *word & (1 << (bit % 64)) == 0;
            *word |= 1 << (bit % 64);
            if is_new {
                surprise = surprise.max(-self.new_values.max(FEWEST_NEW).ln());
            }
            self.new_values += RECENT_VALUE * (f32::from(u8::from(is_new)) - self.new_values);
        }
        // Beyond half, bits are too often set by chance.
        if self.values.iter().map(|word| word.count_ones()).sum::<u32>() > 128 {
            self.values = [0; 4];
        }
        (parameters, surprise)
    }

    /// Tells `visit` of each step on the way to it, a place and the token that leads on; returns
    /// where the way ends.
    fn steps(&self, mut visit: impl FnMut(u64, u64)) -> u64 {
        let mut place = first_place(self.hashes.len());
        for (hash, detour) in self.hashes.iter().zip(self.detours) {
            let step = if detour { MASK_HASH } else { *hash };
            visit(place, step);
            place = next_place(place, step);
        }
        place
    }
}

fn first_place(tokens: usize) -> u64 {
    mixed(tokens as u64)
}

fn next_place(place: u64, step: u64) -> u64 {
    mixed(place.rotate_left(17) ^ step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(miner: &mut Miner, text: &str) -> Found {
        let mut line = Line::default();
        line.read(text);
        miner.read(&line)
    }

    fn texts(miner: &Miner) -> Vec<(u64, u64, String)> {
        let templates = miner.templates().into_iter();
        templates.map(|template| (template.id, template.count, template.text())).collect()
    }

    #[test]
    fn what_differs_between_lines_that_are_alike_becomes_a_parameter() {
        let mut miner = Miner::default();
        for line in [
            "Failed password for root from 10.0.0.1 port 22",
            "session closed by bob",
            "Failed password for alice from 10.0.0.2 port 2222",
            "Failed password for bob",
            "",
            "session closed by eve",
            "disk quota of x exceeded",
            "   ",
        ] {
            read(&mut miner, line);
        }
        let expected = [
            (0, 2, "Failed password for <*> from <*> port <*>"),
            (1, 2, "session closed by <*>"),
            (2, 1, "Failed password for bob"),
            (3, 2, ""),
            (4, 1, "disk quota of x exceeded"),
        ];
        assert_eq!(texts(&miner), expected.map(|(id, count, text)| (id, count, text.to_owned())));
    }

    #[test]
    fn ids_are_never_given_twice_and_the_least_recently_met_templates_go() {
        let mut miner = Miner::default();
        let name = |at: usize| -> String {
            let letter =
                |place: usize| char::from(b'a' + (at / 26_usize.pow(place as u32) % 26) as u8);
            (0..4).map(letter).collect()
        };
        for at in 0..MAX_TEMPLATES {
            // Different lengths, so that no two are alike.
            let words = vec![name(at); 1 + at % 40].join(" ");
            assert_eq!(read(&mut miner, &format!("{} {words}", name(at))).id, at as u64);
        }
        read(&mut miner, &format!("{0} {0}", name(0)));
        for at in 0..10 {
            let id = read(&mut miner, &format!("new {} thing", name(at))).id;
            assert!(id >= MAX_TEMPLATES as u64 || at > 0);
        }
        let kept: Vec<u64> = miner.templates().iter().map(|template| template.id).collect();
        assert_eq!(kept.len(), MAX_TEMPLATES);
        assert!(kept.contains(&0) && !kept.contains(&1));
        assert_eq!(*kept.last().unwrap(), miner.saved.next - 1);
    }

    #[test]
    fn indices_hold_what_is_kept_and_nothing_else() {
        let mut miner = Miner::default();
        for at in 0..3 * MAX_TEMPLATES as u64 {
            let words: String = (0..4).map(|place| letter(mixed(at) >> (8 * place))).collect();
            read(&mut miner, &format!("{words} {} x{}", "y ".repeat(at as usize % 50), at));
        }
        let rebuilt = Miner::from(miner.saved.clone());
        assert_eq!(rebuilt.children, miner.children);
        assert_eq!(rebuilt.by_id, miner.by_id);
        let sorted = |miner: &Miner| {
            let mut leaves: Vec<(u64, Vec<usize>)> =
                miner.leaves.iter().map(|(leaf, slots)| (*leaf, slots.clone())).collect();
            leaves.iter_mut().for_each(|(_, slots)| slots.sort_unstable());
            leaves.sort_unstable();
            leaves
        };
        assert_eq!(sorted(&rebuilt), sorted(&miner));
    }

    fn letter(bits: u64) -> char {
        char::from(b'a' + (bits % 26) as u8)
    }

    #[test]
    fn lines_that_begin_with_ever_other_words_share_a_template_in_the_end() {
        let mut miner = Miner::default();
        let name =
            |at: u64| -> String { (0..6).map(|place| letter(mixed(at + 7 * place))).collect() };
        for at in 0..1000 {
            read(&mut miner, &format!("{} logged in again", name(at)));
        }
        let templates = texts(&miner);
        assert!(templates.len() <= MAX_CHILDREN + 1, "{}", templates.len());
        assert_eq!(templates.last().map(|last| last.2.as_str()), Some("<*> logged in again"));
    }

    #[test]
    fn a_line_is_judged_by_the_lines_before_it() {
        let mut miner = Miner::default();
        let first = read(&mut miner, "a b c");
        assert_eq!((first.rarity, first.novelty), (2.0_f32.ln(), 0.0));
        for _ in 0..99 {
            read(&mut miner, "a b c");
        }
        let usual = read(&mut miner, "a b c");
        let new = read(&mut miner, "x y z");
        let second = read(&mut miner, "x y z");
        assert!(usual.rarity < 0.02 && usual.novelty == 0.0, "{usual:?}");
        assert!((new.rarity - 204.0_f32.ln()).abs() < 0.02, "{new:?}");
        assert_eq!(new.novelty, 102.0_f32.ln());
        assert!(second.rarity < new.rarity && second.novelty < new.novelty, "{second:?}");
    }

    #[test]
    fn a_template_that_comes_in_a_row_bursts_and_the_usual_one_does_not() {
        let mut miner = Miner::default();
        for _ in 0..1000 {
            read(&mut miner, "a b c");
        }
        let rare = read(&mut miner, "x y z").burst;
        let bursts: Vec<f32> = (0..16).map(|_| read(&mut miner, "x y z").burst).collect();
        assert!(bursts[1] > rare + 0.5 && bursts[15] > 3.0, "{rare} {bursts:?}");
        assert!(read(&mut miner, "a b c").burst < 0.1);
    }

    #[test]
    fn a_new_value_is_surprising_where_values_are_known() {
        let mut miner = Miner::default();
        for at in 0..200 {
            read(&mut miner, &format!("zone {} holds id {}", at % 4, at));
            read(&mut miner, &format!("state is {}", at % 4));
        }
        let known = read(&mut miner, "state is 3");
        let odd = read(&mut miner, "state is 77");
        let id = read(&mut miner, "zone 1 holds id 5555");
        assert_eq!((known.parameters, known.new_parameter), (1, 0.0));
        assert!(odd.new_parameter > 3.0, "{odd:?}");
        assert!(id.parameters == 2 && id.new_parameter < 1.5, "{id:?}");
    }
}
