//! `contrastream init`: what it proposes is right, and runs.

mod common;

use std::fs;
use std::path::Path;

use common::{Finished, Program, brokers, contrastream, create_topic, finish, unique};
use contrastream::config::{Format, Layout, Pipeline, Source};

fn init(from: &str, out: &Path) -> Finished {
    finish(["init", "--from", from, "--out", out.to_str().unwrap()])
}

fn load(path: &Path) -> Pipeline {
    Pipeline::load(path, &[]).unwrap()
}

/// `contrastream COMMAND PIPELINE`, with results and state in `folder`.
fn within(folder: &Path, command: &str, pipeline: &Path) -> std::process::Command {
    let mut command = contrastream([Path::new(command), pipeline]);
    command.env("CONTRASTREAM_LISTEN", "127.0.0.1:0").env("CONTRASTREAM_OUT", folder.join("out"));
    command.env("CONTRASTREAM_STATE", folder.join("state"));
    command
}

/// Runs the pipeline of a file to its end.
fn run(pipeline: &Path, folder: &Path) -> Finished {
    Program::start(within(folder, "run", pipeline)).wait()
}

const CHANNELS: [&str; 5] = ["temperature", "vibration", "pressure", "current", "speed"];

#[test]
fn generated_files_are_understood_and_the_proposal_runs() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["json", "csv"] {
        let data = folder.path().join(format);
        let arguments = ["generate", "--to", data.to_str().unwrap(), "--format", format];
        finish(arguments.into_iter().chain(["--count", "4000", "--machines", "4"])).exits(0);
        let file = folder.path().join(format!("{format}.toml"));
        let said = init(data.to_str().unwrap(), &file).exits(0).stderr;
        assert!(said.contains("4 keys in \"machine\""), "{said}");
        let pipeline = load(&file);
        assert_eq!(pipeline.records.channels, CHANNELS);
        assert_eq!(pipeline.records.key.as_deref(), Some("machine"));
        assert_eq!(pipeline.records.time.as_deref(), Some("ts"));

        finish(["check", file.to_str().unwrap()]).exits(0);
        let ended = run(&file, &folder.path().join(format!("of-{format}"))).exits(0);
        assert_eq!((ended.total("records"), ended.total("dead_letters")), (4000, 0));
        assert!(ended.total("segments") > 1000, "{}", ended.stderr);
    }
}

#[test]
fn a_topic_is_understood_by_its_newest_messages() {
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("init");
    create_topic(&topic, 3, &[]);
    let address = format!("kafka://{}/{topic}", brokers());
    let empty = finish(["init", "--from", &address]).exits(1);
    assert!(empty.error().contains("holds no records"), "{}", empty.error());
    let absent = format!("kafka://{}/{}", brokers(), unique("absent"));
    assert!(finish(["init", "--from", &absent]).exits(1).error().contains("does not exist"));

    finish(["generate", "--to", &address, "--count", "6000", "--machines", "6"]).exits(0);
    let file = folder.path().join("topic.toml");
    init(&address, &file).exits(0);
    let pipeline = load(&file);
    let Source::Kafka(source) = &pipeline.source else { panic!("{:?}", pipeline.source) };
    assert_eq!((source.topics.as_slice(), source.format), (&[topic][..], Format::Json));
    assert_eq!(source.brokers, brokers());
    assert_eq!(pipeline.records.channels, CHANNELS);
    assert_eq!(pipeline.records.key.as_deref(), Some("machine"));
    let mut check = within(folder.path(), "check", &file);
    check.arg("--connect");
    Program::start(check).wait().exits(0);
}

#[test]
fn log_lines_are_taken_apart_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("gate.log");
    let words = ["opened", "closed", "reset"];
    let lines: String = (0..1200)
        .map(|row| {
            let (minute, second) = (row / 60 % 60, row % 60);
            let word = words[row * 7919 % 3];
            format!("Dec 10 0{}:{minute:02}:{second:02} gate sshd[{row}]: session {word} for user {row}\n", row / 3600)
        })
        .collect();
    fs::write(&log, lines).unwrap();
    let file = folder.path().join("gate.toml");
    init(log.to_str().unwrap(), &file).exits(0);
    let pipeline = load(&file);
    assert_eq!(pipeline.records.layout, Layout::Log);
    assert_eq!(pipeline.records.time_format.as_deref(), Some("%b %e %H:%M:%S"));
    let ended = run(&file, folder.path()).exits(0);
    assert_eq!((ended.total("records"), ended.total("dead_letters")), (1200, 0));
    assert!(ended.total("segments") > 100);
}

#[test]
fn nothing_is_written_over_and_what_is_not_understood_says_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("words.csv"), folder.path().join("words.toml"));
    fs::write(&file, "kept").unwrap();
    let refused = init(data.to_str().unwrap(), &file).exits(2);
    assert!(refused.error().contains("--force"), "{}", refused.error());
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");

    let other = folder.path().join("other.toml");
    init(data.to_str().unwrap(), &other).exits(2);
    fs::write(&data, "word,other\none,two\nthree,four\n").unwrap();
    let refused = init(data.to_str().unwrap(), &other).exits(1);
    assert!(refused.error().contains("tells the time"), "{}", refused.error());
    assert!(!other.exists());
}
