//! A key's text where the key is looked up.

/// Bytes of a key that are kept beside its state: a UUID, and some more.
const BYTES: usize = 39;
/// Of a key that is longer.
const LONGER: u8 = u8::MAX;

/// The first bytes of a key, in most cases all of them: whether it is the one that is looked for is
/// told without a look at its text, which lies elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    /// Length of the key, or [`LONGER`].
    length: u8,
    bytes: [u8; BYTES],
}

impl Name {
    pub fn new(key: &str) -> Self {
        let kept = key.len().min(BYTES);
        let mut bytes = [0; BYTES];
        bytes[..kept].copy_from_slice(&key.as_bytes()[..kept]);
        Self { length: if key.len() > BYTES { LONGER } else { kept as u8 }, bytes }
    }

    /// Whether it is the name of `key`; of a longer one, `text` is the whole.
    pub fn is_of<'t>(&self, key: &str, text: impl FnOnce() -> &'t str) -> bool {
        match self.bytes.get(..usize::from(self.length)) {
            Some(whole) => *whole == *key.as_bytes(),
            None => *text() == *key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_its_key_alone_however_long() {
        let keys: Vec<String> = (0..3 * BYTES).map(|length| "x".repeat(length)).collect();
        let others = keys.iter().map(|key| key.clone() + "y");
        let all: Vec<String> = keys.iter().cloned().chain(others).collect();
        for key in &all {
            for other in &all {
                assert_eq!(Name::new(key).is_of(other, || key), key == other, "{key} {other}");
            }
        }
    }
}
