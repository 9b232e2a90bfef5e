//! The whole path over TLS and SCRAM, and what must never be seen of it.

mod common;

use std::process::Command;

use common::{Machines, Message, PASSWORD, Plant, Program, is_done, parquet, produce, read};

/// A pipeline over the secured listener.
fn secured(name: &str) -> Plant {
    let mut plant = Plant::on_broker(name, 1);
    plant.as_tester();
    plant
}

#[test]
fn records_come_and_results_go_over_tls_and_scram_and_no_log_line_holds_the_password() {
    let mut plant = secured("secured");
    plant.set("source.properties.debug=all");
    plant.set("checkpoint.interval=200ms");
    let mut command = plant.command("run");
    command.env("RUST_LOG", "trace");
    let mut program = Program::start(command);
    program.wait_ready();
    let mut machines = Machines::new(3);
    produce(&plant.topic("sensors"), 1, &machines.next(60));
    program.until("everything committed", |_| {
        is_done(&plant.group(), &plant.topic("sensors"), 1).then_some(())
    });
    let ended = program.terminate().exits(0);

    let expected: Vec<_> = machines.segments().into_iter().collect();
    for kind in ["embeddings", "anomalies"] {
        let mut found: Vec<_> = read(&plant.topic(kind)).iter().map(Message::segment).collect();
        found.sort();
        assert_eq!(found, expected, "{kind}");
    }
    assert_eq!(parquet(&plant.out()).len(), expected.len());
    assert!(ended.stderr.contains("DEBUG"), "{}", ended.stderr);
    let leak = ended.stderr.lines().find(|line| line.contains(PASSWORD));
    assert_eq!(leak, None);
}

#[test]
fn check_prints_no_secret_wherever_it_came_from() {
    for password in ["${TESTER_PASSWORD}", PASSWORD] {
        let mut plant = secured("printed");
        plant.set(format!("source.properties.sasl.password={password}"));
        plant.set(format!("sink.kafka.properties.ssl.key.password={password}"));
        let mut command = plant.command("check");
        command.args(["--print"]);
        let ended = Program::start(command).wait().exits(0);

        assert!(ended.stdout.contains("tester"), "{}", ended.stdout);
        assert!(ended.stdout.contains("***"), "{}", ended.stdout);
        assert!(!ended.stdout.contains(PASSWORD), "{}", ended.stdout);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn a_wrong_password_is_refused_without_showing_it() {
    let plant = secured("refused");
    for command in ["run", "check"] {
        let mut command = plant.command(command);
        if command.get_args().next() == Some("check".as_ref()) {
            command.arg("--connect");
        }
        command.env("TESTER_PASSWORD", "guessed-wrong").env("RUST_LOG", "debug");
        let ended = Program::start(command).wait().exits(1);

        assert!(ended.error().contains("uthentication failed"), "{}", ended.error());
        assert!(ended.error().contains("refuse"), "{}", ended.error());
        assert!(!ended.stderr.contains("guessed-wrong"), "{}", ended.stderr);
    }
}

#[test]
fn a_broker_of_another_authority_is_not_trusted() {
    let mut plant = secured("untrusted");
    let (key, certificate) =
        (plant.folder.path().join("key.pem"), plant.folder.path().join("ca.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=another",
        "-keyout",
    ]);
    let made = openssl.arg(key).arg("-out").arg(&certificate).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    plant.set(format!("source.properties.ssl.ca.location={}", certificate.display()));

    let ended = plant.run().wait().exits(1);

    assert!(ended.error().contains("no broker of"), "{}", ended.error());
    assert!(ended.error().contains("certificate verify failed"), "{}", ended.error());
}
