//! From a file to a checked [`Pipeline`].
//!
//! In this order: parse, apply `--set` overrides, fill `${VAR}` from the environment, read into
//! types, check fields against each other.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::{Conflict, check};
use super::tree::{self, Misfit, MisfitKind, Node, Place, Table, Value, join, quoted_list};
use super::{FileSource, GeneratorSource, KafkaSource, Pipeline, Properties, Source};

/// Tables whose keys are librdkafka's and contain dots.
const PROPERTIES: [&[&str]; 2] = [&["source", "properties"], &["sink", "kafka", "properties"]];

/// Why a pipeline file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read { path: PathBuf, reason: std::io::Error },
    /// The file is not TOML.
    #[error("{place}: {reason}")]
    Syntax { place: Place, reason: String },
    /// A `--set` that is not `key=value`, or whose key leads through something else than tables.
    #[error("--set {text}: {reason}")]
    Override { text: String, reason: String },
    /// A `${VAR}` without a value.
    #[error(
        "{place}: {key} needs the environment variable {variable}, which is not set \
         (a default can be given: ${{{variable}:-…}})"
    )]
    Variable { place: Place, key: String, variable: String },
    /// A `${` that is not followed by a name and a brace.
    #[error(
        "{place}: {key}: expected ${{VAR}} or ${{VAR:-default}}, found {found:?} \
         ($${{ stands for a literal ${{)"
    )]
    Placeholder { place: Place, key: String, found: String },
    /// A key that means nothing.
    #[error("{place}: unknown key {key}{}; valid here: {}", Nearest(nearest), valid.join(", "))]
    UnknownKey {
        place: Place,
        key: String,
        nearest: Option<&'static str>,
        valid: &'static [&'static str],
    },
    /// A name that is none of a fixed set.
    #[error(
        "{place}: {key}: expected one of {}, found {found:?}{}",
        quoted_list(valid),
        Nearest(nearest)
    )]
    UnknownName {
        place: Place,
        key: String,
        found: String,
        nearest: Option<&'static str>,
        valid: &'static [&'static str],
    },
    /// A key without a default that was left out.
    #[error("{place}: {key} is missing")]
    Missing { place: Place, key: String },
    /// A value of the wrong kind.
    #[error("{place}: {key}: expected {expected}, found {found}")]
    WrongType { place: Place, key: String, expected: String, found: String },
    /// A value of the right kind that cannot be read.
    #[error("{place}: {key}: {reason}")]
    Invalid { place: Place, key: String, reason: String },
    /// A value out of range, or values that do not go together.
    #[error("{place}: {conflict}")]
    Conflict { place: Place, conflict: Conflict },
}

/// `, nearest is NAME`, or nothing.
struct Nearest<'a>(&'a Option<&'static str>);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, ", nearest is {name}"),
            None => Ok(()),
        }
    }
}

impl Pipeline {
    /// Reads a pipeline file and applies `--set key=value` overrides.
    ///
    /// # Errors
    /// If the file cannot be read, or anything in it does not stand up; the first such thing.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
        read(&text, &path.display().to_string(), overrides, &environment)
    }

    /// Reads the text of a pipeline file, as [`Pipeline::load`] does; errors call it `file`.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn from_toml(text: &str, file: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        read(text, file, overrides, &environment)
    }

    /// The same pipeline with `***` for every secret: what may be shown and logged.
    pub fn redacted(&self) -> Self {
        let mut redacted = self.clone();
        for properties in redacted.properties_mut() {
            *properties = properties.redacted();
        }
        let registry = redacted.registry.iter_mut();
        let secrets = registry
            .flat_map(|registry| [&mut registry.password, &mut registry.token])
            .chain([&mut redacted.records.key_hash]);
        for secret in secrets.flatten() {
            *secret = secret.redacted();
        }
        redacted
    }

    fn properties_mut(&mut self) -> impl Iterator<Item = &mut Properties> {
        let source = match &mut self.source {
            Source::Kafka(kafka) => Some(&mut kafka.properties),
            Source::File(_) | Source::Generator(_) => None,
        };
        source.into_iter().chain(self.sink.kafka.as_mut().map(|kafka| &mut kafka.properties))
    }
}

/// As TOML, every key written out, secrets hidden; read again, it is the same pipeline.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match toml::to_string_pretty(&self.redacted()) {
            Ok(text) => f.write_str(&text.replace("${", "$${")),
            Err(error) => write!(f, "# not to be written as TOML: {error}"),
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn read(
    text: &str,
    file: &str,
    overrides: &[String],
    environment: Environment<'_>,
) -> Result<Pipeline, ConfigError> {
    let mut root = tree::parse(text, file)
        .map_err(|error| ConfigError::Syntax { place: error.place, reason: error.reason })?;
    flatten_properties(&mut root);
    for text in overrides {
        apply_override(&mut root, text)?;
    }
    // What the overrides brought is flattened too.
    flatten_properties(&mut root);
    let mut filled = Vec::new();
    fill(&mut root, "", environment, &mut filled)?;

    let mut pipeline = into_pipeline(&root).map_err(|misfit| explain(misfit, &root))?;
    for key in filled {
        mark_filled(&mut pipeline, &key);
    }
    check(&pipeline).map_err(|conflict| ConfigError::Conflict {
        place: root.place_of(conflict.key()).clone(),
        conflict,
    })?;
    Ok(pipeline)
}

fn flatten_properties(root: &mut Node) {
    for keys in PROPERTIES {
        if let Some(properties) = root.table_mut(keys) {
            *properties = flat(std::mem::take(properties));
        }
    }
}

/// `ssl.ca.location = "x"` is a table in a table to TOML, and one property to librdkafka, whose
/// values are all text.
fn flat(table: Table) -> Table {
    let mut out = Table::new();
    for (name, node) in table {
        let text = match node.value {
            Value::Table(inner) => {
                out.extend(flat(inner).into_iter().map(|(key, node)| (join(&name, &key), node)));
                continue;
            }
            Value::Integer(number) => Value::Text(number.to_string()),
            Value::Float(number) => Value::Text(number.to_string()),
            Value::Boolean(flag) => Value::Text(flag.to_string()),
            other => other,
        };
        out.insert(name, Node { place: node.place, value: text });
    }
    out
}

fn apply_override(root: &mut Node, text: &str) -> Result<(), ConfigError> {
    let refuse = |reason: String| ConfigError::Override { text: text.to_owned(), reason };
    let Some((path, value)) = text.split_once('=') else {
        return Err(refuse("expected key=value".to_owned()));
    };
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse(format!("{path:?} is not a key such as windows.stride")));
    }
    let place = Place::Override(text.into());
    let value = tree::parse_value(value.trim(), &place);

    let properties =
        PROPERTIES.iter().find(|table| keys.starts_with(table)).map(|table| table.len());
    let (tables, name) = match properties {
        Some(depth) if keys.len() > depth => (&keys[..depth], keys[depth..].join(".")),
        _ => (&keys[..keys.len() - 1], keys[keys.len() - 1].to_owned()),
    };
    let mut node = root;
    for (depth, key) in tables.iter().enumerate() {
        let Value::Table(entries) = &mut node.value else {
            return Err(refuse(format!("{} is not a table", keys[..depth].join("."))));
        };
        node = entries
            .entry((*key).to_owned())
            .or_insert_with(|| Node { place: place.clone(), value: Value::Table(Table::new()) });
    }
    let Value::Table(entries) = &mut node.value else {
        return Err(refuse(format!("{} is not a table", tables.join("."))));
    };
    entries.insert(name, value);
    Ok(())
}

/// Fills `${VAR}` and `${VAR:-default}` in every text below `node`; notes the keys of those that
/// had any.
fn fill(
    node: &mut Node,
    key: &str,
    environment: Environment<'_>,
    filled: &mut Vec<String>,
) -> Result<(), ConfigError> {
    match &mut node.value {
        Value::Text(text) if text.contains("${") => {
            let place = node.place.clone();
            let key = key.to_owned();
            *text = fill_text(text, environment).map_err(|gap| match gap {
                Gap::Unset(variable) => ConfigError::Variable { place, key: key.clone(), variable },
                Gap::Malformed(found) => {
                    ConfigError::Placeholder { place, key: key.clone(), found }
                }
            })?;
            filled.push(key);
        }
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                fill(item, &join(key, &format!("[{index}]")), environment, filled)?;
            }
        }
        Value::Table(entries) => {
            for (name, entry) in entries {
                fill(entry, &join(key, name), environment, filled)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Why a placeholder has no value.
enum Gap {
    Unset(String),
    Malformed(String),
}

fn fill_text(text: &str, environment: Environment<'_>) -> Result<String, Gap> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(literal) = rest[..at].strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let malformed = || Gap::Malformed(rest[at..].to_owned());
        let end = at + rest[at..].find('}').ok_or_else(malformed)?;
        let inner = &rest[at + 2..end];
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if !is_variable_name(name) {
            return Err(malformed());
        }
        // As in a shell, the default also stands in for an empty value.
        match (environment(name), default) {
            (Some(value), Some(default)) if value.is_empty() => out.push_str(default),
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(Gap::Unset(name.to_owned())),
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

fn into_pipeline(root: &Node) -> Result<Pipeline, Misfit> {
    check_source(root)?;
    Pipeline::deserialize(root)
}

/// serde buffers an enum that is tagged by a key among others and so loses the keys within; read
/// on its own, without the tag, the table keeps them.
fn check_source(root: &Node) -> Result<(), Misfit> {
    let Value::Table(tables) = &root.value else { return Ok(()) };
    let Some(Node { place, value: Value::Table(source) }) = tables.get("source") else {
        return Ok(());
    };
    let mut source = source.clone();
    let Some(Node { value: Value::Text(kind), .. }) = source.remove("kind") else {
        return Ok(());
    };
    let source = Node { place: place.clone(), value: Value::Table(source) };
    match kind.as_str() {
        "kafka" => KafkaSource::deserialize(&source).map(drop),
        "file" => FileSource::deserialize(&source).map(drop),
        "generator" => GeneratorSource::deserialize(&source).map(drop),
        _ => Ok(()),
    }
    .map_err(|misfit| misfit.under("source"))
}

fn mark_filled(pipeline: &mut Pipeline, key: &str) {
    if let Some(name) = key.strip_prefix("source.properties.")
        && let Source::Kafka(kafka) = &mut pipeline.source
    {
        kafka.properties.mark_filled(name);
    }
    if let Some(name) = key.strip_prefix("sink.kafka.properties.")
        && let Some(kafka) = &mut pipeline.sink.kafka
    {
        kafka.properties.mark_filled(name);
    }
}

fn explain(misfit: Misfit, root: &Node) -> ConfigError {
    let Misfit { key, kind } = misfit;
    let place = root.place_of(&key).clone();
    match kind {
        MisfitKind::UnknownKey { valid } => {
            let name = key.rsplit('.').next().unwrap_or(&key);
            ConfigError::UnknownKey { place, nearest: nearest(name, valid), key, valid }
        }
        MisfitKind::UnknownName { found, valid } => {
            ConfigError::UnknownName { place, key, nearest: nearest(&found, valid), found, valid }
        }
        MisfitKind::Missing => ConfigError::Missing { place, key },
        MisfitKind::WrongType { expected, found } => {
            ConfigError::WrongType { place, key, expected, found }
        }
        MisfitKind::Invalid { reason } => ConfigError::Invalid { place, key, reason },
    }
}

/// The valid name that `name` may have been meant to be.
fn nearest(name: &str, valid: &'static [&'static str]) -> Option<&'static str> {
    const LEAST_LIKENESS: f64 = 0.5;
    valid
        .iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), *candidate))
        .filter(|(likeness, _)| *likeness >= LEAST_LIKENESS)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Format, TimeSpan, WindowLength};

    const PLANT: &str = r#"name = "plant"
[source]
kind = "kafka"
brokers = "${BROKERS:-localhost:9092}"
topics = ["plant.sensors"]
[source.properties]
security.protocol = "SASL_SSL"
"sasl.password" = "${PASSWORD}"
[records]
key = "machine"
time = "ts"
channels = ["temperature", "vibration"]
"#;

    fn variables(name: &str) -> Option<String> {
        match name {
            "PASSWORD" => Some("hunter2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn load(text: &str, overrides: &[&str]) -> Result<Pipeline, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        read(text, "plant.toml", &overrides, &variables)
    }

    /// The message for [`PLANT`] with a text put after it, or in place of another.
    fn refusal(text: &str, overrides: &[&str]) -> String {
        load(text, overrides).expect_err("accepted").to_string()
    }

    fn kafka(pipeline: &Pipeline) -> &KafkaSource {
        match &pipeline.source {
            Source::Kafka(kafka) => kafka,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_file_is_filled_up_with_defaults() {
        let pipeline = load(PLANT, &[]).unwrap();

        assert_eq!(kafka(&pipeline).brokers, "localhost:9092");
        assert_eq!(kafka(&pipeline).format, Format::Json);
        assert_eq!(pipeline.windows, Default::default());
        assert_eq!(pipeline.group(), "contrastream-plant");
    }

    #[test]
    fn properties_may_be_written_with_or_without_quotes_and_as_any_scalar() {
        let text =
            PLANT.replace("[records]", "linger.ms = 5\nssl.ca.location = 'ca.pem'\n[records]");

        let pipeline = load(&text, &["source.properties.enable.idempotence=true"]).unwrap();

        let properties: Vec<_> =
            kafka(&pipeline).properties.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            properties,
            [
                "enable.idempotence=true",
                "linger.ms=5",
                "sasl.password=hunter2",
                "security.protocol=SASL_SSL",
                "ssl.ca.location=ca.pem",
            ]
        );
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_name_and_all_that_are_valid() {
        assert_eq!(
            refusal(&format!("{PLANT}[windows]\nstrid = 4\n"), &[]),
            "plant.toml:14: unknown key windows.strid, nearest is stride; valid here: length, \
             stride, resample, max_gap, carry, time_since_last, lateness, idle, max_keys"
        );
    }

    #[test]
    fn an_unknown_key_of_the_source_keeps_its_line_and_the_names_of_its_kind() {
        let text = PLANT.replace("topics = ", "topic = ");

        assert_eq!(
            refusal(&text, &[]),
            "plant.toml:5: unknown key source.topic, nearest is topics; valid here: brokers, \
             topics, group, start, format, csv, json, avro, \
             log, batch_messages, linger, properties"
        );
    }

    #[test]
    fn a_key_like_no_other_is_answered_without_a_guess() {
        let message = refusal(&format!("{PLANT}[watermarks]\n"), &[]);

        assert!(message.starts_with("plant.toml:13: unknown key watermarks; valid here: name, "));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named_with_its_key_and_line() {
        let text = PLANT.replace("${PASSWORD}", "${SASL_PASSWORD}");

        assert_eq!(
            refusal(&text, &[]),
            "plant.toml:8: source.properties.sasl.password needs the environment variable \
             SASL_PASSWORD, which is not set (a default can be given: ${SASL_PASSWORD:-…})"
        );
    }

    #[test]
    fn defaults_stand_in_for_unset_and_empty_variables_and_a_second_dollar_escapes() {
        let filled = |text: &str| fill_text(text, &variables).ok();

        assert_eq!(filled("a ${NONE:-b} ${EMPTY:-c}${EMPTY}d").as_deref(), Some("a b cd"));
        assert_eq!(filled("$${NONE} costs $5").as_deref(), Some("${NONE} costs $5"));
        assert_eq!(filled("${NONE:-a:-b}").as_deref(), Some("a:-b"));
        assert_eq!(filled("${NONE"), None);
        assert_eq!(filled("${1ST:-x}"), None);
    }

    #[test]
    fn a_placeholder_without_an_end_is_shown() {
        let text = PLANT.replace("${BROKERS:-localhost:9092}", "${BROKERS");

        assert_eq!(
            refusal(&text, &[]),
            "plant.toml:4: source.brokers: expected ${VAR} or ${VAR:-default}, found \
             \"${BROKERS\" ($${ stands for a literal ${)"
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_what_was_expected_and_found() {
        assert_eq!(
            refusal(&format!("{PLANT}[windows]\nmax_keys = \"many\"\n"), &[]),
            "plant.toml:14: windows.max_keys: expected a whole number, 0 or more, found \"many\""
        );
        assert_eq!(
            refusal(&PLANT.replace("[\"plant.sensors\"]", "[\n\"a\",\n7]"), &[]),
            "plant.toml:7: source.topics[1]: expected a text in quotes, found 7"
        );
        assert_eq!(
            refusal(&format!("{PLANT}[windows]\nlateness = \"soon\"\n"), &[]),
            "plant.toml:14: windows.lateness: \"soon\" is not a duration such as \"5s\" or \
             \"10m\": expected number at 0"
        );
        assert_eq!(
            refusal(&format!("{PLANT}[windows]\nlength = 0\n"), &[]),
            "plant.toml:14: windows.length: expected a positive number of samples, or a duration \
             such as \"30s\", found 0"
        );
        assert_eq!(
            refusal(&PLANT.replace("[source.properties]", "csv = 1\n[source.properties]"), &[]),
            "plant.toml:6: source.csv: expected a table, found 1"
        );
    }

    #[test]
    fn a_name_outside_a_fixed_set_is_answered_with_the_set() {
        assert_eq!(
            refusal(&PLANT.replace("\"kafka\"", "\"kafak\""), &[]),
            "plant.toml:3: source.kind: expected one of \"kafka\", \"file\", \"generator\", found \
             \"kafak\", nearest is kafka"
        );
        assert_eq!(
            refusal(&format!("{PLANT}[model]\nencoder = \"mpl\"\n"), &[]),
            "plant.toml:14: model.encoder: expected one of \"tcn\", \"mlp\", found \"mpl\", \
             nearest is mlp"
        );
        assert_eq!(
            refusal(&format!("{PLANT}[model]\nencoder = 1\n"), &[]),
            "plant.toml:14: model.encoder: expected one of \"tcn\", \"mlp\", found 1"
        );
    }

    #[test]
    fn a_missing_key_is_named_at_its_table() {
        assert_eq!(
            refusal(&PLANT.replace("topics = [\"plant.sensors\"]\n", ""), &[]),
            "plant.toml:2: source.topics is missing"
        );
        assert_eq!(
            refusal(&PLANT.replace("kind = \"kafka\"\n", ""), &[]),
            "plant.toml:2: source.kind is missing"
        );
        assert_eq!(refusal("", &[]), "plant.toml:1: name is missing");
    }

    #[test]
    fn text_that_is_not_toml_is_refused_at_its_line() {
        let message = refusal("name = \"plant\"\n[source\n", &[]);

        assert!(message.starts_with("plant.toml:2: "), "{message}");
        assert!(refusal("a = 99999999999999999999\n", &[]).starts_with("plant.toml:1: 9999"));
    }

    #[test]
    fn fields_that_do_not_go_together_are_shown_with_both_values() {
        assert_eq!(
            refusal(&format!("{PLANT}[windows]\nlength = 16\nstride = 32\n"), &[]),
            "plant.toml:15: windows.stride = 32 is longer than windows.length = 16"
        );
        assert_eq!(
            refusal(PLANT, &["windows.stride=65"]),
            "--set windows.stride=65: windows.stride = 65 is longer than windows.length = 64"
        );
    }

    #[test]
    fn overrides_are_toml_values_or_else_text() {
        let pipeline = load(
            PLANT,
            &[
                "windows.length = 32",
                "windows.idle=2m",
                "source.topics=[\"a\", \"b\"]",
                "source.brokers=${EMPTY:-other:9092}",
                "scores.false_alarms=\"2 per week\"",
                "training.enabled=false",
                "sink.parquet.path=out",
            ],
        )
        .unwrap();

        assert_eq!(pipeline.windows.length, WindowLength::Samples(32));
        assert_eq!(pipeline.windows.idle, TimeSpan::from_secs(120));
        assert_eq!(kafka(&pipeline).topics, ["a", "b"]);
        assert_eq!(kafka(&pipeline).brokers, "other:9092");
        assert_eq!(pipeline.scores.false_alarms.count, 2.0);
        assert!(!pipeline.training.enabled);
        assert_eq!(pipeline.sink.parquet.unwrap().path.to_string(), "out");
    }

    #[test]
    fn an_override_takes_the_place_of_a_variable_that_is_not_set() {
        let text = PLANT.replace("${PASSWORD}", "${NONE}");

        let pipeline = load(&text, &["source.properties.sasl.password=typed"]).unwrap();

        assert_eq!(kafka(&pipeline).properties["sasl.password"], "typed");
    }

    #[test]
    fn a_malformed_override_is_refused_with_its_text() {
        assert_eq!(refusal(PLANT, &["windows.stride"]), "--set windows.stride: expected key=value");
        assert_eq!(
            refusal(PLANT, &["windows..stride=1"]),
            "--set windows..stride=1: \"windows..stride\" is not a key such as windows.stride"
        );
        assert_eq!(refusal(PLANT, &["name.first=1"]), "--set name.first=1: name is not a table");
        assert_eq!(
            refusal(PLANT, &["windows.strid=1"]),
            "--set windows.strid=1: unknown key windows.strid, nearest is stride; valid here: \
             length, stride, resample, max_gap, \
             carry, time_since_last, lateness, idle, max_keys"
        );
    }

    #[test]
    fn secrets_are_not_shown_in_any_printed_form() {
        let pipeline = load(
            PLANT,
            &[
                "sink.kafka.properties.sasl.password=hunter2",
                "source.properties.sasl.username=${PASSWORD}",
            ],
        )
        .unwrap();

        for printed in [pipeline.to_string(), format!("{pipeline:?}")] {
            assert!(!printed.contains("hunter2"), "{printed}");
            assert_eq!(printed.matches("***").count(), 3, "{printed}");
        }
        assert_eq!(kafka(&pipeline).properties["sasl.password"], "hunter2");
    }

    #[test]
    fn a_pipeline_written_out_loads_again_as_it_was() {
        let everything = format!(
            "{PLANT}{}",
            r#"[windows]
            length = "1m"
            stride = 4
            resample = "1500ms"
            max_gap = "1h"
            [model]
            momentum = 0.995
            temperature = 0.07
            [training]
            learning_rate = 3e-4
            [scores]
            false_alarms = "3 per month"
            [sink.kafka]
            embeddings = ""
            [sink.parquet]
            path = "out"
            partition_by = ["date", "key"]
            roll = "1.5MiB"
            [checkpoint]
            store = "state"
            instance = "$${HOST}"
            "#
        );
        for text in [PLANT, &everything] {
            let pipeline = load(text, &[]).unwrap();

            let written = pipeline.to_string();

            assert_eq!(load(&written, &[]).unwrap(), pipeline.redacted(), "{written}");
        }
    }

    #[test]
    fn text_is_read_under_the_name_it_is_given() {
        let demo = include_str!("../../pipelines/demo.toml");

        let pipeline = Pipeline::from_toml(demo, "demo.toml", &[]).unwrap();
        let error = Pipeline::from_toml("name = 1", "demo.toml", &[]).unwrap_err();

        assert_eq!(pipeline.name, "demo");
        assert_eq!(error.to_string(), "demo.toml:1: name: expected a text in quotes, found 1");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Pipeline::load(Path::new("no/such.toml"), &[]).unwrap_err();

        assert!(error.to_string().starts_with("no/such.toml: "), "{error}");
    }
}
