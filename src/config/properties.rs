//! librdkafka properties, some of which are secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

/// What is shown instead of a secret.
const REDACTED: &str = "***";

/// librdkafka properties by name.
///
/// `Debug` and [`Properties::redacted`] hide the values of properties that are named like secrets
/// and of those that were filled from the environment; serde writes them out.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Properties {
    values: BTreeMap<String, String>,
    /// Names of those whose value came from the environment.
    #[serde(skip)]
    filled: BTreeSet<String>,
}

impl Properties {
    /// No properties.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same properties with `***` for every secret.
    pub fn redacted(&self) -> Self {
        let mut redacted = self.clone();
        for (name, value) in &mut redacted.values {
            if self.filled.contains(name) || is_secret(name) {
                REDACTED.clone_into(value);
            }
        }
        redacted
    }

    /// Takes on the properties of `other`, which win over these.
    pub fn overlay(&mut self, other: &Self) {
        for (name, value) in &other.values {
            self.filled.remove(name);
            self.values.insert(name.clone(), value.clone());
        }
        self.filled.extend(other.filled.iter().cloned());
    }

    /// Notes that the value of `name` came from the environment.
    pub(super) fn mark_filled(&mut self, name: &str) {
        self.filled.insert(name.to_owned());
    }
}

/// Whether a property of this name holds what nobody should read.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passphrase", "secret", "token", "key.pem"].iter().any(|word| name.contains(word))
}

/// Where a value came from is no part of what it is.
impl PartialEq for Properties {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.redacted().values.fmt(f)
    }
}

impl Deref for Properties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.values
    }
}

impl DerefMut for Properties {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.values
    }
}

impl<const N: usize> From<[(String, String); N]> for Properties {
    fn from(values: [(String, String); N]) -> Self {
        Self { values: values.into(), filled: BTreeSet::new() }
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(values: T) -> Self {
        Self { values: values.into_iter().collect(), filled: BTreeSet::new() }
    }
}

impl IntoIterator for Properties {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.into_iter()
    }
}

impl<'a> IntoIterator for &'a Properties {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_values_from_the_environment_are_hidden_where_printed() {
        let mut properties = Properties::from([
            ("sasl.password".to_owned(), "hunter2".to_owned()),
            ("ssl.key.pem".to_owned(), "hunter2".to_owned()),
            ("sasl.oauthbearer.client.secret".to_owned(), "hunter2".to_owned()),
            ("sasl.username".to_owned(), "from-env".to_owned()),
            ("security.protocol".to_owned(), "SASL_SSL".to_owned()),
        ]);
        properties.mark_filled("sasl.username");

        let shown = format!("{properties:?}");

        assert!(!shown.contains("hunter2") && !shown.contains("from-env"), "{shown}");
        assert!(shown.contains("SASL_SSL"), "{shown}");
        assert_eq!(properties["sasl.password"], "hunter2");
    }
}
