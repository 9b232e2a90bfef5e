//! A line becomes tokens, with what is surely a parameter masked.
//!
//! Tokens are what stands between blanks. Within a token, these become [`MASK`], whatever the
//! system that wrote them:
//!
//! | what | example | becomes |
//! | --- | --- | --- |
//! | numbers, with sign | `-17` | `<*>` |
//! | hexadecimal numbers | `0x1f`, `7fe3a9`, `ffaebbae` | `<*>` |
//! | groups of either with `.` `:` `,` `/` `-` between: addresses, times, dates, ids | `10.0.0.1:80` | `<*>` |
//! | digits in a word | `core12`, `12ms`, `blk_-17` | `core<*>`, `<*>ms`, `blk_<*>` |
//! | words that digits are all over | `x3f9q1` | `<*>` |
//! | absolute paths with digits | `/var/log/7/a.log` | `<*>` |
//!
//! Equal masked tokens in a row are one: a list of ids is the same template however long.

use std::ops::Range;

/// Stands for a parameter.
pub const MASK: &str = "<*>";
/// Tokens of a line; those beyond it become one [`MASK`].
const MAX_TOKENS: usize = 64;
/// Bytes of a token, or a few fewer; the rest is left out.
const MAX_TOKEN_BYTES: usize = 64;
/// Letters from a to f in a row that are no word.
const LONG_HEX: usize = 8;
/// What may stand between the numbers of one parameter.
const JOINTS: &[u8] = b".:,/-";

/// A line in tokens. Its buffers serve line after line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// The masked tokens, back to back.
    text: String,
    tokens: Vec<Token>,
}

/// A token of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    start: usize,
    end: usize,
    /// Of the masked text.
    pub hash: u64,
    /// Of the text as it was.
    pub raw: u64,
    /// Whether anything in it is masked.
    pub has_mask: bool,
}

impl Line {
    /// Takes `line` apart.
    pub fn read(&mut self, line: &str) {
        self.text.clear();
        self.tokens.clear();
        let mut rest = None;
        for word in line.split_whitespace() {
            if self.tokens.len() < MAX_TOKENS {
                self.push(word);
            } else {
                let raw: u64 = rest.unwrap_or_default();
                rest = Some(raw.rotate_left(1) ^ hash(word.as_bytes()));
            }
        }
        if let Some(raw) = rest {
            let start = self.text.len();
            self.text.push_str(MASK);
            let (end, hash) = (self.text.len(), hash(MASK.as_bytes()));
            self.tokens.push(Token { start, end, hash, raw, has_mask: true });
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The masked text of a token.
    pub fn text(&self, token: &Token) -> &str {
        &self.text[token.start..token.end]
    }

    fn push(&mut self, word: &str) {
        let start = self.text.len();
        let has_mask = if may_be_masked(word) {
            mask(word, &mut self.text)
        } else {
            self.text.push_str(word);
            word == MASK
        };
        if self.text.len() - start > MAX_TOKEN_BYTES {
            let mut end = start + MAX_TOKEN_BYTES;
            while !self.text.is_char_boundary(end) {
                end -= 1;
            }
            self.text.truncate(end);
        }
        let end = self.text.len();
        let token = Token {
            start,
            end,
            hash: hash(&self.text.as_bytes()[start..]),
            raw: hash(word.as_bytes()),
            has_mask,
        };
        if let Some(last) =
            self.tokens.last_mut().filter(|last| has_mask && last.hash == token.hash)
        {
            last.raw = last.raw.rotate_left(1) ^ token.raw;
            self.text.truncate(start);
        } else {
            self.tokens.push(token);
        }
    }
}

/// Whether `word` has a digit, or is long enough for a hexadecimal number without one.
fn may_be_masked(word: &str) -> bool {
    let mut hex = 0;
    word.bytes().any(|byte| {
        hex = if byte.is_ascii_hexdigit() { hex + 1 } else { 0 };
        byte.is_ascii_digit() || hex >= LONG_HEX
    })
}

/// Appends `word` with its parameters masked; returns whether it has any.
fn mask(word: &str, out: &mut String) -> bool {
    let bytes = word.as_bytes();
    let begin = out.len();
    // Where the last mask ends in `out`.
    let mut masked_to = None;
    let mut at = 0;
    while at < bytes.len() {
        let (kept, hidden) = parameter(word, at);
        at = hidden.end;
        out.push_str(&word[kept.clone()]);
        if hidden.is_empty() {
            continue;
        }
        let is_sign = |at: usize| matches!(out.as_bytes()[at], b'-' | b'+');
        let before = out.len() - 1.min(out.len());
        if kept.is_empty() && out.len() > begin {
            let is_joint = masked_to == Some(before) && JOINTS.contains(&out.as_bytes()[before]);
            let is_sign_of_number = is_sign(before)
                && (before == begin || !out.as_bytes()[before - 1].is_ascii_alphanumeric());
            if is_joint || is_sign_of_number {
                out.truncate(before);
            }
        }
        if masked_to != Some(out.len()) {
            out.push_str(MASK);
        }
        masked_to = Some(out.len());
    }
    masked_to.is_some()
}

/// What stands before the next parameter of `word` from `at` on, as far as it is looked at, and
/// the parameter; empty if there is none yet.
fn parameter(word: &str, at: usize) -> (Range<usize>, Range<usize>) {
    let bytes = word.as_bytes();
    let begins = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
    if let Some(end) = path(bytes, at).or_else(|| hex_groups(bytes, at)).filter(|_| begins) {
        return (at..at, at..end);
    }
    let is_letter = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    let end = (at..).find(|at| !is_letter(*at)).unwrap_or(at);
    if end == at {
        // Something else, which may take several bytes.
        let end = (at + 1..bytes.len()).find(|end| word.is_char_boundary(*end));
        let end = end.unwrap_or(bytes.len());
        return (at..end, end..end);
    }
    let digits = bytes[at..end].strip_prefix(b"0x").unwrap_or(&bytes[at..end]);
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let is_digit = |at: &usize| bytes[*at].is_ascii_digit();
    let Some(first) = (at..end).find(is_digit) else {
        let kept = if is_hex && digits.len() >= LONG_HEX { at } else { end };
        return (at..kept, kept..end);
    };
    let after = (first..end).find(|at| !is_digit(at)).unwrap_or(end);
    if is_hex || (after..end).any(|at| is_digit(&at)) {
        return (at..at, at..end);
    }
    (at..first, first..after)
}

/// The end of an absolute path with a digit in it that begins at `at`.
fn path(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes[at] != b'/' {
        return None;
    }
    let ends = |byte: &u8| b",;:()[]{}<>\"'=|".contains(byte);
    let end = at + bytes[at..].iter().position(ends).unwrap_or(bytes.len() - at);
    let path = &bytes[at + 1..end];
    // One name alone, or an address behind a slash, is no path.
    let is_path = path.contains(&b'/') && path.iter().any(u8::is_ascii_alphabetic);
    (is_path && path.iter().any(u8::is_ascii_digit)).then_some(end)
}

/// The end of three or more hexadecimal groups that begin at `at`, with `:` or `-` between: a UUID,
/// the address of a network card, an IPv6 address, a date.
fn hex_groups(bytes: &[u8], at: usize) -> Option<usize> {
    let belongs = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'-');
    let length = bytes[at..].iter().position(|byte| !belongs(byte)).unwrap_or(bytes.len() - at);
    let is_cut = bytes.get(at + length).is_some_and(u8::is_ascii_alphanumeric);
    let kept = bytes[at..at + length].iter().rposition(u8::is_ascii_hexdigit)? + 1;
    let groups = &bytes[at..at + kept];
    let joints = groups.iter().filter(|byte| !byte.is_ascii_hexdigit()).count();
    let is_one =
        joints >= 2 && groups[0].is_ascii_hexdigit() && groups.iter().any(u8::is_ascii_digit);
    (is_one && !is_cut).then_some(at + groups.len())
}

/// FNV-1a with a last mix: the same on every machine and in every version.
pub(super) const fn hash(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    mixed(hash)
}

/// Spreads the bits of `value` over all of the result (the finaliser of SplitMix64).
pub(super) const fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(line: &str) -> String {
        let mut read = Line::default();
        read.read(line);
        let texts: Vec<&str> = read.tokens().iter().map(|token| read.text(token)).collect();
        texts.join(" ")
    }

    #[test]
    fn parameters_are_masked_by_their_form() {
        for (line, expected) in [
            ("took 12 of -17 units", "took <*> of <*> units"),
            ("at 0x1f and 7fe3a9, not face", "at <*> and <*>, not face"),
            ("job ffaebbae, decade facade", "job <*>, decade facade"),
            ("from /10.0.0.1:8080 to 10.0.0.2", "from /<*> to <*>"),
            ("core.1234 node12 took 12ms", "core.<*> node<*> took <*>ms"),
            ("block blk_-6952 of blk_38", "block blk_<*> of blk_<*>"),
            ("id=b9000564-fe1a-beef-b8cc-1e88b294cd1d,", "id=<*>,"),
            ("mac aa:bb:c0:dd:ee:ff up", "mac <*> up"),
            ("on 2005-06-03-15.42.50", "on <*>"),
            ("job x3f9q1z done", "job <*> done"),
            ("open /var/log/7/a.log: failed", "open <*>: failed"),
            ("GET /index.html", "GET /index.html"),
            ("(uid=0, gid=100)", "(uid=<*>, gid=<*>)"),
            ("5.0KB/s", "<*>KB/s"),
            ("größe=7µs", "größe=<*>µs"),
            ("", ""),
        ] {
            assert_eq!(masked(line), expected, "{line}");
        }
    }

    #[test]
    fn a_list_of_ids_is_one_parameter() {
        assert_eq!(masked("delete blk_1 blk_-2 blk_3 now"), "delete blk_<*> now");
        assert_eq!(masked("no no no"), "no no no");
    }

    #[test]
    fn what_was_masked_can_be_told_apart() {
        let raw = |line: &str| {
            let mut read = Line::default();
            read.read(line);
            read.tokens()[0].raw
        };
        assert_ne!(raw("blk_1"), raw("blk_2"));
        assert_ne!(raw("blk_1 blk_2"), raw("blk_1 blk_3"));
        assert_eq!(raw("blk_1 x"), raw("blk_1 y"));
    }

    #[test]
    fn a_long_line_ends_in_one_parameter() {
        let words: Vec<String> = (0..500).map(|at| "xy".repeat(at + 1)).collect();
        let mut read = Line::default();
        read.read(&words.join(" "));
        assert_eq!(read.tokens().len(), MAX_TOKENS + 1);
        assert!(read.text.len() <= MAX_TOKENS * MAX_TOKEN_BYTES + MASK.len());
        let last = read.tokens()[MAX_TOKENS];
        assert_eq!((read.text(&last), last.has_mask), (MASK, true));
        read.read(&"é7".repeat(500_000));
        assert_eq!(read.tokens().len(), 1);
        assert!(read.text.len() <= MAX_TOKEN_BYTES);
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(line in "\\PC*", other in "[a-f0-9:/. _=é-]{0,60}") {
            for line in [line, other] {
                let read = masked(&line);
                prop_assert!(!read.bytes().any(|byte| byte.is_ascii_digit()), "{line}: {read}");
            }
        }
    }
}
