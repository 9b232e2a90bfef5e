//! Units of measurement: values in any of them become values in one.
//!
//! Units are written in UCUM, the Unified Code for Units of Measure (case-sensitive form): an
//! atom such as `g`, `L` or `mm[Hg]`, with a prefix where it takes one, in products, quotients and
//! powers: `umol/L`, `10*9/L`, `mL/min/{1.73_m2}`. Where a spelling is not UCUM, or means something
//! else there than the channel can hold, the customs of laboratories and monitors are tried:
//! `mmHg`, `bpm`, `MG/DL`, `K/uL`.
//!
//! A unit is `base = scale * value + offset` over powers of base units; two with the same powers
//! convert into each other. Mass, amount of substance and equivalents convert too where a LOINC
//! code says of what.

use rustc_hash::FxHashMap;

/// From any unit to the one of a channel.
#[derive(Debug)]
pub(crate) struct Conversion {
    target: Unit,
    analyte: Option<&'static Analyte>,
    /// What common spellings convert by, so that they need no parsing.
    known: FxHashMap<&'static str, Line>,
}

impl Conversion {
    /// Converts to `target`; `None` if that is no unit. The first of `substances`, LOINC codes or
    /// names, that is known tells how mass and amount of substance convert into each other.
    pub fn new(target: &str, substances: &[&str]) -> Option<Self> {
        let unit = Reading::ALL.iter().find_map(|reading| reading.parse(target))?;
        let analyte = substances.iter().find_map(|code| Analyte::of(code));
        let mut conversion = Self { target: unit, analyte, known: FxHashMap::default() };
        for spelling in COMMON {
            if let Some(line) = conversion.line(spelling) {
                conversion.known.insert(spelling, line);
            }
        }
        Some(conversion)
    }

    /// `value`, which is in `from`, in the target unit. `None` if `from` is no unit, or one that
    /// the target cannot be had from.
    pub fn convert(&self, value: f64, from: &str) -> Option<f64> {
        let line = match self.known.get(from) {
            Some(line) => *line,
            None => self.line(from)?,
        };
        let converted = value * line.factor + line.offset;
        converted.is_finite().then_some(converted)
    }

    /// How `from` converts to the target, in the first reading of it that does.
    fn line(&self, from: &str) -> Option<Line> {
        Reading::ALL
            .iter()
            .filter_map(|reading| reading.parse(from))
            .find_map(|unit| unit.to(&self.target, self.analyte))
    }
}

/// `y = factor * x + offset`.
#[derive(Clone, Copy, Debug)]
struct Line {
    factor: f64,
    offset: f64,
}

/// Longest spelling of a unit that is looked at, in bytes.
const MAX_BYTES: usize = 64;

/// Base units whose powers make up a unit.
const BASES: usize = 9;
const LENGTH: usize = 0;
const MASS: usize = 1;
const TIME: usize = 2;
const CURRENT: usize = 3;
const TEMPERATURE: usize = 4;
const AMOUNT: usize = 5;
/// Charge or base of ions, told apart from their amount: calcium has two equivalents a mole.
const EQUIVALENTS: usize = 6;
/// International units: of each substance its own.
const ARBITRARY: usize = 7;
const LIGHT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    powers: [i8; BASES],
    scale: f64,
    /// Of temperatures that do not begin at absolute zero.
    offset: f64,
}

impl Unit {
    const ONE: Self = Self { powers: [0; BASES], scale: 1.0, offset: 0.0 };

    const fn number(scale: f64) -> Self {
        Self { scale, ..Self::ONE }
    }

    /// `scale` times a product of powers.
    const fn of(scale: f64, factors: &[(usize, i8)]) -> Self {
        let mut powers = [0; BASES];
        let mut at = 0;
        while at < factors.len() {
            powers[factors[at].0] = factors[at].1;
            at += 1;
        }
        Self { powers, scale, offset: 0.0 }
    }

    /// This unit `exponent` times. A temperature with an offset has no powers.
    fn power(self, exponent: i8) -> Option<Self> {
        if exponent == 1 {
            return Some(self);
        }
        if self.offset != 0.0 {
            return None;
        }
        let mut powers = self.powers;
        for power in &mut powers {
            *power = power.checked_mul(exponent)?;
        }
        Some(Self { powers, scale: self.scale.powi(i32::from(exponent)), offset: 0.0 })
    }

    /// The product. A temperature with an offset is a unit only by itself.
    fn times(self, other: Self) -> Option<Self> {
        if self == Self::ONE {
            return Some(other);
        }
        if other == Self::ONE {
            return Some(self);
        }
        if self.offset != 0.0 || other.offset != 0.0 {
            return None;
        }
        let mut powers = self.powers;
        for (power, more) in powers.iter_mut().zip(other.powers) {
            *power = power.checked_add(more)?;
        }
        Some(Self { powers, scale: self.scale * other.scale, offset: 0.0 })
    }

    /// How values in `self` become values in `target`.
    fn to(&self, target: &Self, analyte: Option<&Analyte>) -> Option<Line> {
        let matter = if self.powers == target.powers {
            1.0
        } else {
            let (from, to) = (self.per_mole(analyte?)?, target.per_mole(analyte?)?);
            if from.0 != to.0 {
                return None;
            }
            from.1 / to.1
        };
        let factor = self.scale * matter / target.scale;
        let offset = (self.offset - target.offset) / target.scale;
        (factor.is_finite() && factor != 0.0 && offset.is_finite())
            .then_some(Line { factor, offset })
    }

    /// Its powers with mass and equivalents of `analyte` taken for moles, and the moles that one
    /// of it is.
    fn per_mole(&self, analyte: &Analyte) -> Option<([i8; BASES], f64)> {
        let mut powers = self.powers;
        let grams = i32::from(std::mem::take(&mut powers[MASS]));
        let equivalents = i32::from(std::mem::take(&mut powers[EQUIVALENTS]));
        let moles = i32::from(powers[AMOUNT]) + grams + equivalents;
        powers[AMOUNT] = i8::try_from(moles).ok()?;
        let factor =
            analyte.grams_per_mole.powi(-grams) * analyte.equivalents_per_mole.powi(-equivalents);
        Some((powers, factor))
    }
}

/// How a spelling is read.
#[derive(Clone, Copy)]
enum Reading {
    /// As UCUM says.
    Ucum,
    /// As laboratories and monitors write.
    Custom,
    /// The same, in small letters.
    CustomInAnyCase,
}

impl Reading {
    const ALL: [Self; 3] = [Self::Ucum, Self::Custom, Self::CustomInAnyCase];

    fn parse(self, text: &str) -> Option<Unit> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let text = match self {
            Self::Ucum => return Parser { rest: text, custom: false }.whole(),
            Self::Custom => customary(text),
            // Of one letter, the case is all there is: A is no year, S no second.
            Self::CustomInAnyCase if text.len() == 1 => return None,
            Self::CustomInAnyCase => customary(text).to_lowercase(),
        };
        let unit = Parser { rest: &text, custom: true }.whole()?;
        // Thousands of nothing are no unit: K alone is kelvin.
        (unit.powers != Unit::ONE.powers || unit.scale <= 1.0).then_some(unit)
    }
}

/// `text` with its blanks and typographic signs in the letters of UCUM.
fn customary(text: &str) -> String {
    let text = text.replace(" per ", "/").replace("cmH2O", "cm[H2O]");
    let mut plain = String::with_capacity(text.len());
    for sign in text.chars().filter(|sign| !sign.is_whitespace()) {
        match sign {
            'µ' | 'μ' => plain.push('u'),
            '℃' => plain.push_str("°C"),
            '℉' => plain.push_str("°F"),
            '×' => plain.push('x'),
            '·' | '⋅' => plain.push('.'),
            '²' | '³' | '⁶' | '⁹' => {
                if plain.ends_with("10") {
                    plain.push('*');
                }
                plain.push(match sign {
                    '²' => '2',
                    '³' => '3',
                    '⁶' => '6',
                    _ => '9',
                });
            }
            sign => plain.push(sign),
        }
    }
    // Powers of ten as counters of cells print them: x10^9/L, 10E9/L, 10**9/L.
    let digits = plain.strip_prefix(['x', 'X']).unwrap_or(&plain);
    for power in ["10^", "10**", "10E", "10e"] {
        if let Some(rest) = digits.strip_prefix(power) {
            return format!("10*{rest}");
        }
    }
    if digits.starts_with("10*") {
        return digits.to_owned();
    }
    plain
}

/// Reads `term = ["/"] component (("." | "/") component)*`.
struct Parser<'a> {
    rest: &'a str,
    custom: bool,
}

impl Parser<'_> {
    fn whole(mut self) -> Option<Unit> {
        if self.rest.is_empty() {
            return None;
        }
        let unit = self.term()?;
        self.rest.is_empty().then_some(unit)
    }

    fn eat(&mut self, sign: char) -> bool {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn term(&mut self) -> Option<Unit> {
        let mut unit = if self.eat('/') { self.component()?.power(-1)? } else { self.component()? };
        loop {
            if self.eat('.') {
                unit = unit.times(self.component()?)?;
            } else if self.eat('/') {
                unit = unit.times(self.component()?.power(-1)?)?;
            } else {
                return Some(unit);
            }
        }
    }

    /// A term in parentheses, an annotation, or an atom with its exponent; the nesting is as deep
    /// as the text is long, at most [`MAX_BYTES`].
    fn component(&mut self) -> Option<Unit> {
        if self.eat('(') {
            let unit = self.term()?;
            return self.eat(')').then_some(unit);
        }
        if self.rest.starts_with('{') {
            self.annotation()?;
            return Some(Unit::ONE);
        }
        let unit = self.symbol()?;
        let exponent = self.exponent()?;
        let unit = unit.power(exponent)?;
        if self.rest.starts_with('{') {
            self.annotation()?;
        }
        Some(unit)
    }

    fn annotation(&mut self) -> Option<()> {
        let end = self.rest.find('}')?;
        self.rest = &self.rest[end + 1..];
        Some(())
    }

    /// A number, or an atom with its prefix.
    fn symbol(&mut self) -> Option<Unit> {
        if let Some(rest) = self.rest.strip_prefix("10*").or_else(|| self.rest.strip_prefix("10^"))
        {
            self.rest = rest;
            return Some(Unit::number(10.0));
        }
        if self.rest.starts_with(|sign: char| sign.is_ascii_digit()) {
            let end = self.rest.find(|sign: char| !sign.is_ascii_digit());
            let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
            self.rest = rest;
            let number: f64 = digits.parse().ok()?;
            return (number > 0.0).then_some(Unit::number(number));
        }
        let end = self.symbol_end();
        let (symbol, rest) = self.rest.split_at(end);
        self.rest = rest;
        atom(symbol, self.custom).or_else(|| prefixed(symbol, self.custom))
    }

    /// Where the atom at the beginning ends: before an operator, an exponent or an annotation, all
    /// of which may stand within square brackets.
    fn symbol_end(&self) -> usize {
        let mut in_brackets = false;
        for (at, sign) in self.rest.char_indices() {
            match sign {
                '[' => in_brackets = true,
                ']' => in_brackets = false,
                '.' | '/' | '(' | ')' | '{' | '+' | '-' | '0'..='9' if !in_brackets => return at,
                _ => {}
            }
        }
        self.rest.len()
    }

    /// The signed number behind an atom; 1 where there is none.
    fn exponent(&mut self) -> Option<i8> {
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let digits = self.rest[sign..].bytes().take_while(u8::is_ascii_digit).count();
        if sign + digits == 0 {
            return Some(1);
        }
        let (number, rest) = self.rest.split_at(sign + digits);
        self.rest = rest;
        number.parse().ok().filter(|exponent| (-18..=18).contains(exponent))
    }
}

fn atom(symbol: &str, custom: bool) -> Option<Unit> {
    // What is customary comes first: it is only asked for where UCUM's meaning did not fit.
    let customary = if custom { CUSTOMARY } else { &[] };
    let mut atoms = customary.iter().chain(METRIC).chain(PLAIN);
    atoms.find(|(name, _)| *name == symbol).map(|(_, unit)| *unit)
}

fn prefixed(symbol: &str, custom: bool) -> Option<Unit> {
    let prefixes = PREFIXES.iter().chain(custom.then_some(&("mc", 1e-6)));
    prefixes.into_iter().find_map(|(prefix, factor)| {
        let name = symbol.strip_prefix(prefix)?;
        let (_, unit) = METRIC.iter().find(|(atom, _)| *atom == name)?;
        (unit.offset == 0.0).then_some(Unit { scale: unit.scale * factor, ..*unit })
    })
}

const PREFIXES: [(&str, f64); 20] = [
    ("Y", 1e24),
    ("Z", 1e21),
    ("E", 1e18),
    ("P", 1e15),
    ("T", 1e12),
    ("G", 1e9),
    ("M", 1e6),
    ("k", 1e3),
    ("h", 1e2),
    ("da", 1e1),
    ("d", 1e-1),
    ("c", 1e-2),
    ("m", 1e-3),
    ("u", 1e-6),
    ("n", 1e-9),
    ("p", 1e-12),
    ("f", 1e-15),
    ("a", 1e-18),
    ("z", 1e-21),
    ("y", 1e-24),
];

const PASCAL: &[(usize, i8)] = &[(LENGTH, -1), (MASS, 1), (TIME, -2)];
const JOULE: &[(usize, i8)] = &[(LENGTH, 2), (MASS, 1), (TIME, -2)];
const WATT: &[(usize, i8)] = &[(LENGTH, 2), (MASS, 1), (TIME, -3)];
const VOLT: &[(usize, i8)] = &[(LENGTH, 2), (MASS, 1), (TIME, -3), (CURRENT, -1)];
const OHM: &[(usize, i8)] = &[(LENGTH, 2), (MASS, 1), (TIME, -3), (CURRENT, -2)];
const SIEMENS: &[(usize, i8)] = &[(LENGTH, -2), (MASS, -1), (TIME, 3), (CURRENT, 2)];
const FARAD: &[(usize, i8)] = &[(LENGTH, -2), (MASS, -1), (TIME, 4), (CURRENT, 2)];
const TESLA: &[(usize, i8)] = &[(MASS, 1), (TIME, -2), (CURRENT, -1)];
const HENRY: &[(usize, i8)] = &[(LENGTH, 2), (MASS, 1), (TIME, -2), (CURRENT, -2)];
const NEWTON: &[(usize, i8)] = &[(LENGTH, 1), (MASS, 1), (TIME, -2)];

/// Zero degrees Celsius in kelvin.
const ICE: f64 = 273.15;
/// Standard gravity, m/s2.
const GRAVITY: f64 = 9.806_65;

const CELSIUS: Unit = Unit { offset: ICE, ..Unit::of(1.0, &[(TEMPERATURE, 1)]) };
const FAHRENHEIT: Unit =
    Unit { offset: ICE - 32.0 * 5.0 / 9.0, ..Unit::of(5.0 / 9.0, &[(TEMPERATURE, 1)]) };

/// Atoms of UCUM that take prefixes. Mass is in grams, as UCUM has it.
const METRIC: &[(&str, Unit)] = &[
    ("m", Unit::of(1.0, &[(LENGTH, 1)])),
    ("g", Unit::of(1.0, &[(MASS, 1)])),
    ("s", Unit::of(1.0, &[(TIME, 1)])),
    ("A", Unit::of(1.0, &[(CURRENT, 1)])),
    ("K", Unit::of(1.0, &[(TEMPERATURE, 1)])),
    ("Cel", CELSIUS),
    ("mol", Unit::of(1.0, &[(AMOUNT, 1)])),
    ("eq", Unit::of(1.0, &[(EQUIVALENTS, 1)])),
    ("cd", Unit::of(1.0, &[(LIGHT, 1)])),
    ("lm", Unit::of(1.0, &[(LIGHT, 1)])),
    ("lx", Unit::of(1.0, &[(LIGHT, 1), (LENGTH, -2)])),
    ("L", Unit::of(1e-3, &[(LENGTH, 3)])),
    ("l", Unit::of(1e-3, &[(LENGTH, 3)])),
    ("t", Unit::of(1e6, &[(MASS, 1)])),
    ("Hz", Unit::of(1.0, &[(TIME, -1)])),
    ("Bq", Unit::of(1.0, &[(TIME, -1)])),
    ("N", Unit::of(1e3, NEWTON)),
    ("Pa", Unit::of(1e3, PASCAL)),
    ("bar", Unit::of(1e8, PASCAL)),
    ("m[Hg]", Unit::of(133_322_387.415, PASCAL)),
    ("m[H2O]", Unit::of(1e6 * GRAVITY, PASCAL)),
    ("J", Unit::of(1e3, JOULE)),
    ("cal", Unit::of(4_184.0, JOULE)),
    ("W", Unit::of(1e3, WATT)),
    ("V", Unit::of(1e3, VOLT)),
    ("Ohm", Unit::of(1e3, OHM)),
    ("S", Unit::of(1e-3, SIEMENS)),
    ("F", Unit::of(1e-3, FARAD)),
    ("C", Unit::of(1.0, &[(CURRENT, 1), (TIME, 1)])),
    ("T", Unit::of(1e3, TESLA)),
    ("H", Unit::of(1e3, HENRY)),
    ("U", Unit::of(1e-6 / 60.0, &[(AMOUNT, 1), (TIME, -1)])),
    ("kat", Unit::of(1.0, &[(AMOUNT, 1), (TIME, -1)])),
    ("[IU]", Unit::of(1.0, &[(ARBITRARY, 1)])),
    ("[iU]", Unit::of(1.0, &[(ARBITRARY, 1)])),
];

/// Atoms of UCUM that take none.
const PLAIN: &[(&str, Unit)] = &[
    ("%", Unit::number(1e-2)),
    ("[ppth]", Unit::number(1e-3)),
    ("[ppm]", Unit::number(1e-6)),
    ("[ppb]", Unit::number(1e-9)),
    ("[pH]", Unit::ONE),
    // To UCUM a picohenry, which nobody measures.
    ("pH", Unit::ONE),
    ("rad", Unit::ONE),
    ("deg", Unit::number(std::f64::consts::PI / 180.0)),
    ("circ", Unit::number(2.0 * std::f64::consts::PI)),
    ("min", Unit::of(60.0, &[(TIME, 1)])),
    ("h", Unit::of(3_600.0, &[(TIME, 1)])),
    ("d", Unit::of(86_400.0, &[(TIME, 1)])),
    ("wk", Unit::of(604_800.0, &[(TIME, 1)])),
    ("a", Unit::of(31_557_600.0, &[(TIME, 1)])),
    ("[degF]", FAHRENHEIT),
    ("[lb_av]", Unit::of(453.592_37, &[(MASS, 1)])),
    ("[oz_av]", Unit::of(28.349_523_125, &[(MASS, 1)])),
    ("[in_i]", Unit::of(0.025_4, &[(LENGTH, 1)])),
    ("[ft_i]", Unit::of(0.304_8, &[(LENGTH, 1)])),
    ("[mi_i]", Unit::of(1_609.344, &[(LENGTH, 1)])),
    ("[psi]", Unit::of(6_894_757.293_168, PASCAL)),
    ("atm", Unit::of(101_325_000.0, PASCAL)),
    ("[g]", Unit::of(GRAVITY, &[(LENGTH, 1), (TIME, -2)])),
];

/// What is written in place of UCUM's atoms. Case matters only for those that would otherwise be
/// another's.
const CUSTOMARY: &[(&str, Unit)] = &[
    ("°C", CELSIUS),
    ("°c", CELSIUS),
    ("degC", CELSIUS),
    ("degc", CELSIUS),
    ("cel", CELSIUS),
    ("celsius", CELSIUS),
    ("C", CELSIUS),
    ("°F", FAHRENHEIT),
    ("°f", FAHRENHEIT),
    ("degF", FAHRENHEIT),
    ("degf", FAHRENHEIT),
    ("[degf]", FAHRENHEIT),
    ("fahrenheit", FAHRENHEIT),
    ("F", FAHRENHEIT),
    ("mmHg", Unit::of(133_322.387_415, PASCAL)),
    ("mmhg", Unit::of(133_322.387_415, PASCAL)),
    ("mm[hg]", Unit::of(133_322.387_415, PASCAL)),
    ("torr", Unit::of(133_322.368_421, PASCAL)),
    ("cm[h2o]", Unit::of(1e4 * GRAVITY, PASCAL)),
    ("kpa", Unit::of(1e6, PASCAL)),
    ("psi", Unit::of(6_894_757.293_168, PASCAL)),
    ("bpm", PER_MINUTE),
    ("rpm", PER_MINUTE),
    ("beats", Unit::ONE),
    ("breaths", Unit::ONE),
    ("resp", Unit::ONE),
    ("cells", Unit::ONE),
    ("ph", Unit::ONE),
    ("ratio", Unit::ONE),
    ("fraction", Unit::ONE),
    ("percent", Unit::number(1e-2)),
    // Of cells: thousands, millions, giga and tera particles.
    ("K", Unit::number(1e3)),
    ("k", Unit::number(1e3)),
    ("thou", Unit::number(1e3)),
    ("thousand", Unit::number(1e3)),
    ("M", Unit::number(1e6)),
    ("million", Unit::number(1e6)),
    ("G", Unit::number(1e9)),
    ("Gpt", Unit::number(1e9)),
    ("T", Unit::number(1e12)),
    ("Tpt", Unit::number(1e12)),
    ("mEq", Unit::of(1e-3, &[(EQUIVALENTS, 1)])),
    ("IU", Unit::of(1.0, &[(ARBITRARY, 1)])),
    ("iu", Unit::of(1.0, &[(ARBITRARY, 1)])),
    ("miu", Unit::of(1e-3, &[(ARBITRARY, 1)])),
    ("u", Unit::of(1e-6 / 60.0, &[(AMOUNT, 1), (TIME, -1)])),
    ("lb", Unit::of(453.592_37, &[(MASS, 1)])),
    ("lbs", Unit::of(453.592_37, &[(MASS, 1)])),
    ("oz", Unit::of(28.349_523_125, &[(MASS, 1)])),
    ("in", Unit::of(0.025_4, &[(LENGTH, 1)])),
    ("inch", Unit::of(0.025_4, &[(LENGTH, 1)])),
    ("inches", Unit::of(0.025_4, &[(LENGTH, 1)])),
    ("ft", Unit::of(0.304_8, &[(LENGTH, 1)])),
    ("sec", Unit::of(1.0, &[(TIME, 1)])),
    ("minute", Unit::of(60.0, &[(TIME, 1)])),
    ("hr", Unit::of(3_600.0, &[(TIME, 1)])),
    ("day", Unit::of(86_400.0, &[(TIME, 1)])),
    ("hz", Unit::of(1.0, &[(TIME, -1)])),
    ("v", Unit::of(1e3, VOLT)),
    ("mv", Unit::of(1.0, VOLT)),
    ("ohm", Unit::of(1e3, OHM)),
    ("°", Unit::number(std::f64::consts::PI / 180.0)),
];

const PER_MINUTE: Unit = Unit::of(1.0 / 60.0, &[(TIME, -1)]);

/// Spellings that are looked up rather than parsed.
const COMMON: [&str; 56] = [
    "/min",
    "{beats}/min",
    "{breaths}/min",
    "1/min",
    "bpm",
    "beats/min",
    "breaths/min",
    "Hz",
    "%",
    "1",
    "{fraction}",
    "Cel",
    "[degF]",
    "K",
    "degC",
    "°C",
    "mm[Hg]",
    "mmHg",
    "kPa",
    "Pa",
    "bar",
    "kg",
    "g",
    "[lb_av]",
    "cm",
    "m",
    "mm",
    "[in_i]",
    "mmol/L",
    "umol/L",
    "nmol/L",
    "meq/L",
    "mEq/L",
    "mg/dL",
    "mg/dl",
    "mg/L",
    "g/dL",
    "g/L",
    "ug/L",
    "ng/L",
    "ng/mL",
    "ug/mL",
    "pg/mL",
    "10*9/L",
    "10*3/uL",
    "10*12/L",
    "10*6/uL",
    "L/L",
    "[pH]",
    "pH",
    "mL",
    "V",
    "mV",
    "A",
    "W",
    "s",
];

/// What a LOINC code measures, where mass and amount are both in use for it.
#[derive(Debug)]
struct Analyte {
    name: &'static str,
    grams_per_mole: f64,
    /// The charge of the ion; 1 where there is none.
    equivalents_per_mole: f64,
    codes: &'static [&'static str],
}

impl Analyte {
    /// By a LOINC code, or by its name.
    fn of(code: &str) -> Option<&'static Self> {
        ANALYTES.iter().find(|analyte| {
            analyte.name.eq_ignore_ascii_case(code) || analyte.codes.contains(&code)
        })
    }
}

/// Molar masses from the formulas, with the standard atomic weights of IUPAC (abridged, 2021):
/// H 1.008, C 12.011, N 14.007, O 15.999, Na 22.990, Mg 24.305, P 30.974, Cl 35.45, K 39.098,
/// Ca 40.078. Urea nitrogen counts the two nitrogen atoms of urea, phosphate its phosphorus, with
/// the mean charge it has at the pH of blood. Haemoglobin is counted by its subunit, as clinical
/// chemistry does (1 g/dL is 0.6206 mmol/L); albumin is the mature human protein (UniProt P02768,
/// 66,437 Da).
const ANALYTES: &[Analyte] = &[
    Analyte {
        name: "glucose",
        grams_per_mole: 180.156,
        equivalents_per_mole: 1.0,
        codes: &["2345-7", "2339-0", "2340-8", "41653-7", "14749-6", "15074-8", "14743-9"],
    },
    Analyte {
        name: "lactate",
        grams_per_mole: 90.078,
        equivalents_per_mole: 1.0,
        codes: &["2524-7", "32693-4", "2518-9", "2519-7", "14118-4", "59032-3"],
    },
    Analyte {
        name: "creatinine",
        grams_per_mole: 113.120,
        equivalents_per_mole: 1.0,
        codes: &["2160-0", "38483-4", "14682-9", "59826-8"],
    },
    Analyte {
        name: "urea nitrogen",
        grams_per_mole: 28.014,
        equivalents_per_mole: 1.0,
        codes: &["3094-0", "6299-2", "14937-7"],
    },
    Analyte {
        name: "urea",
        grams_per_mole: 60.056,
        equivalents_per_mole: 1.0,
        codes: &["3091-6", "22664-7"],
    },
    Analyte {
        name: "bilirubin",
        grams_per_mole: 584.673,
        equivalents_per_mole: 1.0,
        codes: &["1975-2", "1968-7", "42719-5", "14631-6", "14629-0"],
    },
    Analyte {
        name: "potassium",
        grams_per_mole: 39.098,
        equivalents_per_mole: 1.0,
        codes: &["2823-3", "6298-4"],
    },
    Analyte {
        name: "sodium",
        grams_per_mole: 22.990,
        equivalents_per_mole: 1.0,
        codes: &["2951-2", "2947-0"],
    },
    Analyte {
        name: "chloride",
        grams_per_mole: 35.45,
        equivalents_per_mole: 1.0,
        codes: &["2075-0", "2069-3"],
    },
    Analyte {
        name: "bicarbonate",
        grams_per_mole: 61.016,
        equivalents_per_mole: 1.0,
        codes: &["1963-8", "1959-6", "1960-4", "2028-9"],
    },
    Analyte {
        name: "calcium",
        grams_per_mole: 40.078,
        equivalents_per_mole: 2.0,
        codes: &["17861-6", "2000-8", "1994-3", "1995-0", "17863-2"],
    },
    Analyte {
        name: "magnesium",
        grams_per_mole: 24.305,
        equivalents_per_mole: 2.0,
        codes: &["19123-9", "2601-3"],
    },
    Analyte {
        name: "phosphate",
        grams_per_mole: 30.974,
        equivalents_per_mole: 1.8,
        codes: &["2777-1", "14879-1"],
    },
    Analyte {
        name: "haemoglobin",
        grams_per_mole: 16_114.0,
        equivalents_per_mole: 1.0,
        codes: &["718-7", "59260-0", "20509-6", "30313-1", "30350-3", "hemoglobin"],
    },
    Analyte {
        name: "albumin",
        grams_per_mole: 66_437.0,
        equivalents_per_mole: 1.0,
        codes: &["1751-7", "54347-0"],
    },
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn convert(value: f64, from: &str, to: &str, code: &str) -> Option<f64> {
        Conversion::new(to, &[code]).unwrap().convert(value, from)
    }

    /// Conversion factors as the AMA Manual of Style and the appendices of clinical textbooks print
    /// them, to their three or four digits.
    #[test]
    fn published_factors_of_laboratory_values_hold() {
        for (code, from, to, factor) in [
            ("2345-7", "mg/dL", "mmol/L", 0.0555),
            ("2524-7", "mg/dL", "mmol/L", 0.111),
            ("2160-0", "mg/dL", "umol/L", 88.4),
            ("3094-0", "mg/dL", "mmol/L", 0.357),
            ("3091-6", "mg/dL", "mmol/L", 0.1665),
            ("1975-2", "mg/dL", "umol/L", 17.104),
            ("17861-6", "mg/dL", "mmol/L", 0.2495),
            ("1994-3", "meq/L", "mmol/L", 0.5),
            ("2823-3", "meq/L", "mmol/L", 1.0),
            ("2951-2", "mEq/L", "mmol/L", 1.0),
            ("2075-0", "meq/L", "mmol/L", 1.0),
            ("1963-8", "meq/L", "mmol/L", 1.0),
            ("2601-3", "meq/L", "mmol/L", 0.5),
            ("19123-9", "mg/dL", "mmol/L", 0.4114),
            ("2777-1", "mg/dL", "mmol/L", 0.3229),
            ("718-7", "g/dL", "mmol/L", 0.6206),
            ("718-7", "g/dL", "g/L", 10.0),
            ("1751-7", "g/dL", "umol/L", 150.5),
            ("1751-7", "g/dL", "g/L", 10.0),
            ("1988-5", "mg/dL", "mg/L", 10.0),
            ("6598-7", "ng/mL", "ng/L", 1000.0),
            ("6598-7", "ug/L", "ng/L", 1000.0),
            ("26515-7", "10*3/uL", "10*9/L", 1.0),
            ("6690-2", "10*3/uL", "10*9/L", 1.0),
            ("4544-3", "%", "L/L", 0.01),
            ("2703-7", "mm[Hg]", "kPa", 0.1333),
            ("1742-6", "U/L", "ukat/L", 0.01667),
            ("29463-7", "[lb_av]", "kg", 0.4536),
            ("8302-2", "[in_i]", "cm", 2.54),
            ("3150-6", "%", "1", 0.01),
        ] {
            let found = convert(1.0, from, to, code).unwrap_or(f64::NAN);
            assert!((found / factor - 1.0).abs() < 6e-4, "{code}: 1 {from} is {found} {to}");
        }
    }

    #[test]
    fn temperatures_have_offsets() {
        for (value, from, to, expected) in [
            (98.6, "[degF]", "Cel", 37.0),
            (37.0, "Cel", "[degF]", 98.6),
            (310.15, "K", "Cel", 37.0),
            (-40.0, "[degF]", "Cel", -40.0),
            (39.5, "Cel", "K", 312.65),
            (100.4, "F", "Cel", 38.0),
            (38.0, "C", "Cel", 38.0),
        ] {
            let found = convert(value, from, to, "8310-5").unwrap();
            assert!((found - expected).abs() < 1e-9, "{value} {from} is {found} {to}");
        }
    }

    #[test]
    fn what_monitors_and_laboratories_write_in_place_of_ucum_is_understood() {
        for (spelling, to) in [
            ("bpm", "/min"),
            ("beats/min", "/min"),
            ("BPM", "/min"),
            ("{beats}/min", "/min"),
            ("breaths/min", "/min"),
            ("breaths per minute", "/min"),
            ("1/min", "/min"),
            ("mmHg", "mm[Hg]"),
            ("mm Hg", "mm[Hg]"),
            ("MMHG", "mm[Hg]"),
            ("cmH2O", "cm[H2O]"),
            ("degC", "Cel"),
            ("°C", "Cel"),
            ("℃", "Cel"),
            ("mg/dl", "mg/dL"),
            ("MG/DL", "mg/dL"),
            ("mcg/L", "ug/L"),
            ("µg/L", "ug/L"),
            ("μmol/l", "umol/L"),
            ("mEq/L", "meq/L"),
            ("MEQ/L", "meq/L"),
            ("K/uL", "10*3/uL"),
            ("K/µL", "10*9/L"),
            ("10^3/uL", "10*9/L"),
            ("x10^9/L", "10*9/L"),
            ("10E9/L", "10*9/L"),
            ("10e9/l", "10*9/L"),
            ("×10⁹/L", "10*9/L"),
            ("G/L", "10*9/L"),
            ("Gpt/l", "10*9/L"),
            ("thou/uL", "10*9/L"),
            ("10*3/mm3", "10*9/L"),
            ("{#}/nL", "10*9/L"),
            ("M/uL", "10*12/L"),
            ("percent", "%"),
            ("pH", "[pH]"),
            ("lbs", "[lb_av]"),
            ("mL/min/{1.73_m2}", "mL/min"),
            ("kg.m-2", "kg/m2"),
            ("(kg)/(m2)", "kg/m2"),
            ("m.s-2", "m/s2"),
        ] {
            let found = convert(3.0, spelling, to, "").unwrap_or(f64::NAN);
            assert!((found - 3.0).abs() < 1e-9, "3 {spelling} is {found} {to}");
        }
    }

    #[test]
    fn prefixes_scale_the_units_of_sensors() {
        for (from, to, factor) in [
            ("kPa", "Pa", 1e3),
            ("bar", "kPa", 100.0),
            ("mV", "V", 1e-3),
            ("MW", "kW", 1e3),
            ("mA", "A", 1e-3),
            ("kHz", "/s", 1e3),
            ("rpm", "Hz", 1.0 / 60.0),
            ("L/min", "m3/h", 0.06),
            ("km/h", "m/s", 1.0 / 3.6),
            ("[g]", "m/s2", 9.80665),
            ("kW.h", "MJ", 3.6),
            ("um", "mm", 1e-3),
            ("[psi]", "bar", 0.068_947_572_931_68),
            ("d", "h", 24.0),
        ] {
            let found = convert(1.0, from, to, "").unwrap_or(f64::NAN);
            assert!((found / factor - 1.0).abs() < 1e-9, "1 {from} is {found} {to}");
        }
    }

    #[test]
    fn what_is_no_unit_or_another_quantity_is_not_converted() {
        let long = "g".repeat(1000);
        for from in [
            "",
            " ",
            "furlong",
            "mg/",
            "/",
            "mg//L",
            "mg/dL)",
            "(((mg",
            "{open",
            "g-",
            "g99",
            "10*999",
            "0",
            "-1",
            "Cel2",
            "Cel/min",
            "mCel",
            "m[",
            "\u{0}",
            "mg\u{0301}",
            "毫克",
            "L",
            "mol/L",
            "/min",
            "10*18+",
            long.as_str(),
        ] {
            assert_eq!(convert(1.0, from, "mg/dL", ""), None, "{from:?}");
        }
        // Without a substance, a mass is no amount; nor is urine's rate a concentration.
        assert_eq!(convert(1.0, "mmol/L", "mg/dL", "12345-6"), None);
        assert_eq!(convert(1.0, "mmol/d", "mg/dL", "2345-7"), None);
        assert_eq!(convert(f64::MAX, "kg/dL", "mg/dL", ""), None);
    }

    #[test]
    fn the_first_code_or_name_that_is_known_tells_the_substance() {
        for (substances, expected) in [
            (["3094-0", "urea"], 0.35697),
            (["3091-6", "urea nitrogen"], 0.16651),
            (["local", "Urea"], 0.16651),
            (["local", "glucose"], 0.05551),
        ] {
            let found = Conversion::new("mmol/L", &substances).unwrap().convert(1.0, "mg/dL");
            assert!((found.unwrap() - expected).abs() < 1e-5, "{substances:?}: {found:?}");
        }
        assert!(Conversion::new("parsecs/fortnight", &[]).is_none());
    }

    #[test]
    fn every_common_spelling_is_a_unit() {
        for spelling in COMMON {
            assert!(Conversion::new(spelling, &[]).is_some(), "{spelling}");
        }
    }

    #[test]
    fn a_single_letter_is_read_in_its_own_case() {
        assert_eq!(Conversion::new("s", &[]).unwrap().convert(1.0, "A"), None);
        assert_eq!(Conversion::new("s", &[]).unwrap().convert(1.0, "S"), None);
        assert_eq!(Conversion::new("L", &[]).unwrap().convert(1.0, "l"), Some(1.0));
    }

    #[test]
    fn no_code_or_name_is_listed_twice() {
        let codes: Vec<&str> =
            ANALYTES.iter().flat_map(|analyte| analyte.codes.iter().copied()).collect();
        let unique: std::collections::BTreeSet<&str> = codes.iter().copied().collect();
        assert_eq!(unique.len(), codes.len());
    }

    proptest! {
        #[test]
        fn there_and_back_is_where_it_began(
            value in -1e6..1e6_f64,
            analyte in 0..ANALYTES.len(),
            from in 0..COMMON.len(),
            to in 0..COMMON.len(),
        ) {
            let code = ANALYTES[analyte].codes[0];
            if let Some(there) = convert(value, COMMON[from], COMMON[to], code) {
                let back = convert(there, COMMON[to], COMMON[from], code).unwrap();
                prop_assert!((back - value).abs() <= 1e-9 * value.abs().max(300.0));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-zA-Z0-9*/.(){}\\[\\]%µ° +-]{0,70}|\\PC{0,30}") {
            let _ = convert(1.0, &text, "mg/dL", "2345-7");
            let _ = Conversion::new(&text, &[]);
        }
    }
}
