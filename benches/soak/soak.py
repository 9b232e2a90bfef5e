"""Runs the program under a steady load and writes down, every few seconds, its memory, its lag and
its rate: does it hold, for as long as one cares to wait?

`scripts/soak` calls this with the built program and a broker. Everything it writes lies in --work;
topics keep the last minutes only, so that the disk does not fill up however long it runs.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

NAME = "soak"
INPUT = f"{NAME}.sensors"
OUTPUTS = [f"{NAME}.{kind}" for kind in ("embeddings", "anomalies", "dead-letters")]
PARTITIONS = 4
KEPT = {"retention.ms": "120000", "segment.bytes": str(64 << 20)}
START_SECONDS = 60
END_SECONDS = 120
COLUMNS = ["seconds", "rss_mib", "lag_records", "records_per_second"]


def main():
    options = parse()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    create_topics(options.brokers)
    print(f"soak: {options.rate} records/s for {options.minutes:g} minutes", flush=True)
    with Program(options) as program, Load(options) as load, Lag(options.brokers) as lag:
        program.wait_ready()
        sample(options, program, load, lag)
        load.stop()
        program.stop()
    shutil.rmtree(options.work / "out", ignore_errors=True)
    shutil.rmtree(options.work / "state", ignore_errors=True)


def parse():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", type=Path, required=True, help="the built program")
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder, emptied at the start")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=10_000, help="records a second")
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--pipeline", type=Path, default=Path("pipelines/sensor.toml"))
    parser.add_argument("--set", action="append", default=[], help="override of the pipeline file")
    return parser.parse_args()


def create_topics(brokers):
    admin = AdminClient({"bootstrap.servers": brokers})
    topics = [INPUT, *OUTPUTS]
    existing = [topic for topic in topics if topic in admin.list_topics(timeout=30).topics]
    wait_all(admin.delete_topics(existing) if existing else {})
    wait_all(admin.delete_consumer_groups([f"contrastream-{NAME}"]), may_lack=True)
    wait_for_topics(admin, lambda found: not found.intersection(topics))
    wait_all(admin.create_topics([NewTopic(t, PARTITIONS, 1, config=KEPT) for t in topics]))
    wait_for_topics(admin, lambda found: found.issuperset(topics))


def wait_for_topics(admin, are_so):
    """The broker answers before all of it knows."""
    deadline = time.monotonic() + START_SECONDS
    while not are_so(set(admin.list_topics(timeout=30).topics)):
        if time.monotonic() > deadline:
            sys.exit(f"soak: topics are not so within {START_SECONDS} s")
        time.sleep(0.5)
    # What a client is told next may come from before.
    time.sleep(2)


def wait_all(answers, may_lack=False):
    for answer in answers.values():
        try:
            answer.result(30)
        except Exception:
            if not may_lack:
                raise


class Process:
    """A process whose output goes to a file; ended with the block that began it."""

    def __init__(self, log, *command):
        self.log = log
        environment = {**os.environ, "NO_COLOR": "1"}
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def expect_running(self):
        if self.process.poll() is not None:
            self.fail(f"ended with exit code {self.process.returncode}")

    def fail(self, what):
        last = self.log.read_text(errors="replace").splitlines()[-15:]
        sys.exit("\n".join([f"soak: {self.process.args[1]} {what}", *last]))


class Program(Process):
    """`contrastream run`."""

    def __init__(self, options):
        overrides = [
            f"name={NAME}",
            f"source.brokers={options.brokers}",
            f'source.topics=["{INPUT}"]',
            "windows.stride=8",
            f"sink.parquet.path={options.work / 'out'}",
            f"checkpoint.store={options.work / 'state'}",
            "http.listen=127.0.0.1:0",
            *options.set,
        ]
        command = [options.program, "run", options.pipeline]
        for text in overrides:
            command += ["--set", text]
        super().__init__(options.work / "run.log", *command)

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.expect_running()
            found = re.search(r" address=(\S+)", self.log.read_text(errors="replace"))
            if found:
                self.metrics = f"http://{found[1]}/metrics"
                return
            time.sleep(0.2)
        self.fail(f"has no address after {START_SECONDS} s")

    def records(self):
        """Records taken so far."""
        with urllib.request.urlopen(self.metrics, timeout=30) as answer:
            text = answer.read().decode()
        lines = re.findall(r"^contrastream_source_records_total(?:{.*})? (\S+)$", text, re.M)
        return sum(map(float, lines))

    def memory_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)[1]) / 1024

    def stop(self):
        self.process.terminate()
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.fail(f"does not end within {END_SECONDS} s")
        if code != 0:
            self.fail(f"ended with exit code {code}")


class Load(Process):
    """`contrastream generate`, at the rate asked for."""

    def __init__(self, options):
        super().__init__(
            options.work / "generate.log",
            options.program,
            "generate",
            f"--to=kafka://{options.brokers}/{INPUT}",
            f"--rate={options.rate}",
            f"--machines={options.machines}",
        )

    def stop(self):
        self.expect_running()
        self.process.terminate()
        self.process.wait()


class Lag:
    """Records that are in the topic and not committed."""

    def __init__(self, brokers):
        self.consumer = Consumer(
            {"bootstrap.servers": brokers, "group.id": f"contrastream-{NAME}"}
        )
        self.lanes = [TopicPartition(INPUT, number) for number in range(PARTITIONS)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.consumer.close()

    def records(self):
        lag = 0
        for lane in self.consumer.committed(self.lanes, timeout=30):
            low, high = self.consumer.get_watermark_offsets(lane, timeout=30)
            lag += high - max(lane.offset, low)
        return lag


def sample(options, program, load, lag):
    begin = time.monotonic()
    taken_before, asked_before = program.records(), begin
    samples = []
    with open(options.work / "samples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        due = begin
        while time.monotonic() - begin < options.minutes * 60:
            due += options.every
            time.sleep(max(0, due - time.monotonic()))
            program.expect_running()
            load.expect_running()
            taken, asked = program.records(), time.monotonic()
            rate = (taken - taken_before) / (asked - asked_before)
            taken_before, asked_before = taken, asked
            row = [asked - begin, program.memory_mib(), lag.records(), rate]
            samples.append(row)
            writer.writerow(f"{value:.1f}" for value in row)
            file.flush()
    report(options, samples)


def report(options, samples):
    # The first third fills pools, queues and calibration.
    settled = samples[len(samples) // 3 :]
    half = len(settled) // 2
    mean = lambda column, rows: sum(row[column] for row in rows) / len(rows)
    print(f"soak: {mean(3, settled):.0f} records/s taken of {options.rate} sent")
    for column, unit in ((1, "MiB of memory"), (2, "records of lag")):
        early, late = mean(column, settled[:half]), mean(column, settled[half:])
        print(f"soak: {early:.0f}, later {late:.0f} {unit}")


if __name__ == "__main__":
    main()
