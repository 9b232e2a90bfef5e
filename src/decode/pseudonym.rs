//! `records.key_hash`: keys leave the process as pseudonyms only.
//!
//! A pseudonym is the first half of HMAC-SHA-256 of the key under the salt, in hexadecimal: the same
//! key has the same one in every run and replica with that salt, and without the salt neither leads
//! to the other. What a person could be known by leaves with nothing else: dead letters have
//! neither payload nor headers, and of their reasons only where a fault is and what was expected
//! there.

use std::fmt;

use arrow::array::{Array, StringArray, StringBuilder};
use hmac::{Hmac, KeyInit, Mac};
use rustc_hash::FxHashMap;
use sha2::Sha256;

use super::DeadLetter;
use crate::config::Secret;

/// Bytes of a pseudonym. Of a billion keys, any two share one of this length with a probability of
/// 1e-21.
const BYTES: usize = 16;

/// Makes pseudonyms under one salt.
#[derive(Clone)]
pub(crate) struct Pseudonyms {
    /// Has taken in the salt.
    salted: Hmac<Sha256>,
}

impl Pseudonyms {
    pub fn new(salt: &Secret) -> Self {
        let salted = Hmac::new_from_slice(salt.reveal().as_bytes());
        Self { salted: salted.expect("HMAC takes a salt of any length") }
    }

    /// The pseudonym of `key`.
    pub fn of(&self, key: &[u8]) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut mac = self.salted.clone();
        mac.update(key);
        let hash = mac.finalize().into_bytes();
        let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
        hash[..BYTES].iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// The pseudonyms of `keys`, of which none is null.
    pub fn of_all(&self, keys: &StringArray) -> StringArray {
        let mut known: FxHashMap<&str, String> = FxHashMap::default();
        let mut pseudonyms = StringBuilder::with_capacity(keys.len(), 2 * BYTES * keys.len());
        for key in keys.iter().flatten() {
            let pseudonym = known.entry(key).or_insert_with(|| self.of(key.as_bytes()));
            pseudonyms.append_value(pseudonym);
        }
        pseudonyms.finish()
    }

    /// What may be told of a message that was refused.
    pub fn withhold(&self, letter: DeadLetter) -> DeadLetter {
        DeadLetter {
            key: letter.key.map(|key| self.of(&key).into_bytes()),
            payload: Vec::new(),
            headers: Vec::new(),
            reason: without_content(&letter.reason),
            ..letter
        }
    }
}

impl fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonyms")
    }
}

/// A reason without what was found. Reasons say where a fault is, then what was `expected`, and only
/// then, after `found` or a colon, anything that comes from the message.
fn without_content(reason: &str) -> String {
    const EXPECTED: &str = "expected ";
    let Some(at) = reason.find(EXPECTED) else {
        return "expected a record".to_owned();
    };
    let expectation = &reason[at + EXPECTED.len()..];
    let end = [", found ", ": ", "; "].iter().filter_map(|sign| expectation.find(sign)).min();
    let end = end.map_or(reason.len(), |end| at + EXPECTED.len() + end);
    format!("{}, found something else, which records.key_hash withholds", &reason[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Lane;

    /// RFC 4231, test case 2.
    #[test]
    fn a_pseudonym_is_the_first_half_of_the_hmac() {
        let pseudonyms = Pseudonyms::new(&Secret::new("Jefe"));
        assert_eq!(
            pseudonyms.of(b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c7"
        );
    }

    #[test]
    fn the_same_key_has_the_same_pseudonym_and_another_salt_another_one() {
        let keys = StringArray::from(vec!["Patient/1", "Patient/2", "Patient/1"]);
        let one = Pseudonyms::new(&Secret::new("one")).of_all(&keys);
        let other = Pseudonyms::new(&Secret::new("other")).of_all(&keys);
        assert_eq!(one.len(), 3);
        assert_eq!(one.value(0), one.value(2));
        assert_ne!(one.value(0), one.value(1));
        assert_ne!(one.value(0), other.value(0));
        assert!(one.iter().flatten().all(|pseudonym| pseudonym.len() == 2 * BYTES));
    }

    #[test]
    fn a_dead_letter_tells_where_and_what_was_expected_and_nothing_of_the_message() {
        let letter = |reason: &str| DeadLetter {
            lane: Lane::new("ward", 1),
            offset: 7,
            key: Some(b"MRN-4711".to_vec()),
            payload: b"MRN-4711".to_vec(),
            headers: vec![("patient".to_owned(), Some(b"MRN-4711".to_vec()))],
            stage: "decode",
            reason: reason.to_owned(),
        };
        let pseudonyms = Pseudonyms::new(&Secret::new("salt"));
        for (reason, told) in [
            ("field \"ts\": expected a time, found \"MRN-4711\"", "field \"ts\": expected a time"),
            ("expected a JSON object: MRN-4711, found MRN-4711", "expected a JSON object"),
            ("message key: expected UTF-8, found other bytes", "message key: expected UTF-8"),
            (
                "entry[3].resource.valueQuantity.value: expected a number, found \"MRN-4711\"; and \
                 2 more like it",
                "entry[3].resource.valueQuantity.value: expected a number",
            ),
            ("MRN-4711 is odd", "expected a record"),
        ] {
            let withheld = pseudonyms.withhold(letter(reason));
            assert!(withheld.reason.starts_with(told), "{}", withheld.reason);
            assert!(!format!("{withheld:?}").contains("MRN-4711"), "{withheld:?}");
            assert_eq!(withheld.key, Some(pseudonyms.of(b"MRN-4711").into_bytes()));
            assert!(withheld.payload.is_empty() && withheld.headers.is_empty());
            assert_eq!((withheld.offset, withheld.stage), (7, "decode"));
        }
        assert!(!format!("{pseudonyms:?}").contains("salt"));
    }
}
