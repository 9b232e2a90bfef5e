//! The schemas are JSON, and say what the outputs say, in their order.

use std::path::Path;

use contrastream::config::{Pipeline, Source};
use serde_json::{Value, json};

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn schema(name: &str) -> Value {
    let text = std::fs::read_to_string(file("schemas").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn names(record: &Value) -> Vec<&str> {
    let fields = record["fields"].as_array().unwrap();
    fields.iter().map(|field| field["name"].as_str().unwrap()).collect()
}

fn type_of<'a>(record: &'a Value, name: &str) -> &'a Value {
    let fields = record["fields"].as_array().unwrap();
    &fields.iter().find(|field| field["name"] == name).unwrap()["type"]
}

#[test]
fn embeddings_have_the_fields_of_the_contract_in_its_order() {
    let embedding = schema("embedding.avsc");

    assert_eq!(
        names(&embedding),
        [
            "pipeline",
            "key",
            "window_start",
            "window_end",
            "sequence",
            "model_version",
            "embedding",
            "topic",
            "partition",
            "first_offset",
            "last_offset",
            "wander",
        ]
    );
    assert_eq!(type_of(&embedding, "wander"), &json!(["null", "float"]));
    assert_eq!(type_of(&embedding, "key"), "string");
    assert_eq!(type_of(&embedding, "embedding"), &json!({"type": "array", "items": "float"}));
}

#[test]
fn anomalies_have_the_fields_of_the_contract_in_its_order() {
    let anomaly = schema("anomaly.avsc");

    assert_eq!(
        names(&anomaly),
        [
            "pipeline",
            "key",
            "window_start",
            "window_end",
            "sequence",
            "score",
            "p_value",
            "surprise",
            "distance",
            "residual",
            "alert",
            "alert_id",
            "causes",
            "missing",
            "model_version",
            "warm",
            "change_point",
        ]
    );
    assert_eq!(type_of(&anomaly, "alert_id"), &json!(["null", "string"]));
    assert_eq!(type_of(&anomaly, "change_point"), &json!(["null", "boolean"]));
    assert_eq!(names(&type_of(&anomaly, "causes")["items"]), ["channel", "share"]);
}

#[test]
fn times_are_microseconds_everywhere() {
    let micros = json!({"type": "long", "logicalType": "timestamp-micros"});

    for name in ["embedding.avsc", "anomaly.avsc"] {
        assert_eq!(type_of(&schema(name), "window_start"), &micros, "{name}");
        assert_eq!(type_of(&schema(name), "window_end"), &micros, "{name}");
    }
    assert_eq!(type_of(&schema("sensor.avsc"), "ts"), &micros);
}

#[test]
fn the_sensor_schema_has_the_fields_that_the_sensor_pipeline_reads() {
    let pipeline = Pipeline::load(&file("pipelines/sensor.toml"), &[]).unwrap();

    let mut fields = vec![pipeline.records.key.unwrap(), pipeline.records.time.unwrap()];
    fields.extend(pipeline.records.channels);
    assert_eq!(names(&schema("sensor.avsc")), fields);
}

#[test]
fn every_pipeline_of_the_repository_loads() {
    let mut loaded = Vec::new();
    for entry in std::fs::read_dir(file("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        // The one thing that has no default.
        let is_medical = path.ends_with("medical.toml");
        let salt = is_medical.then(|| "records.key_hash=0123456789abcdef".to_owned());
        let salt: Vec<String> = salt.into_iter().collect();
        let pipeline = Pipeline::load(&path, &salt).unwrap_or_else(|error| panic!("{error}"));
        let kind = match pipeline.source {
            Source::Kafka(_) => "kafka",
            Source::File(_) => "file",
            Source::Generator(_) => "generator",
        };
        loaded.push((path.file_name().unwrap().to_owned(), kind));
    }

    for known in [("sensor.toml", "kafka"), ("metrics.toml", "file"), ("demo.toml", "generator")] {
        assert!(loaded.contains(&(known.0.into(), known.1)), "{known:?} among {loaded:?}");
    }
}
