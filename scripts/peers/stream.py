"""A Python job on a topic that `cargo bench --bench stream` fills: records a second.

    stream.py river|jax|bytewax|pathway BROKERS TOPIC RECORDS

`river` and `jax` are Quix Streams applications that read JSON records, score them and write scores to
TOPIC.KIND: `river` scores and learns every record with half-space trees, one forest a machine, with
River's defaults; `jax` cuts segments of 64 samples every 8 and embeds each with a jitted network
(512-256-128-64) that was drawn at random and does not learn. `bytewax` does what `river` does, as a Bytewax
dataflow. `pathway` has no model: it reads a topic that holds RECORDS, cuts the same segments as sliding
windows of event time, gathers each one's values, and writes them nowhere.

The clock runs from the first record to the last; Pathway's from its first commit to its last window, in
the mode that reads what is there and ends, as many threads as processors, without a bound on lateness:
its fastest way. All others run on one thread of Python.
"""

import json
import os
import sys
import time

LENGTH, STRIDE, CHANNELS = 64, 8, [f"c{channel}" for channel in range(8)]
EVERY_MS = 1000


class Clock:
    """Counts `records` from the first to the last."""

    def __init__(self):
        self.began = self.ended = None
        self.records = 0

    def tick(self):
        """After a record is done with."""
        self.records += 1
        self.ended = time.perf_counter()

    def begin(self):
        """Before a record."""
        if self.began is None:
            self.began = time.perf_counter()

    def tell(self, kind, records):
        if self.ended is None:
            sys.exit(f"{kind}: no record came")
        print(f"{kind} {records / (self.ended - self.began):.0f}", flush=True)


def scored(forest, record):
    """The score of a record by what the forest learned before, which then learns it."""
    values = {channel: record[channel] for channel in CHANNELS}
    score = forest.score_one(values)
    forest.learn_one(values)
    return score


def river():
    from river import anomaly

    forests = {}

    def score(record):
        forest = forests.get(record["machine"])
        if forest is None:
            forest = forests[record["machine"]] = anomaly.HalfSpaceTrees(seed=1)
        return scored(forest, record)

    return score


def jax():
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(1)
    sizes = [LENGTH * len(CHANNELS), 256, 128, 64]
    layers = [jnp.asarray(rng.normal(0, (2 / n) ** 0.5, (n, m)), jnp.float32) for n, m in zip(sizes, sizes[1:])]

    @jax.jit
    def embed(segment):
        hidden = (segment - segment.mean(axis=0)) / (segment.std(axis=0) + 1e-6)
        hidden = hidden.reshape(-1)
        for number, weights in enumerate(layers):
            hidden = hidden @ weights
            if number < 2:
                hidden = jax.nn.relu(hidden)
        return hidden / jnp.linalg.norm(hidden)

    embed(np.zeros((LENGTH, len(CHANNELS)), np.float32)).block_until_ready()
    windows = {}

    def score(record):
        window = windows.setdefault(record["machine"], [])
        window.append([record[channel] for channel in CHANNELS])
        if len(window) < LENGTH:
            return None
        found = np.asarray(embed(np.asarray(window, np.float32)))
        del window[:STRIDE]
        return found.tolist()

    return score


def run_quix(kind, brokers, topic, records):
    from quixstreams import Application
    from quixstreams.kafka.configuration import ConnectionConfig

    score = {"river": river, "jax": jax}[kind]()
    application = Application(
        broker_address=ConnectionConfig(bootstrap_servers=brokers),
        consumer_group=f"{topic}-{kind}",
        auto_offset_reset="earliest",
        loglevel="WARNING",
    )
    clock = Clock()

    def timed(record):
        clock.begin()
        found = score(record)
        clock.tick()
        return found

    frame = application.dataframe(application.topic(topic, value_deserializer="json"))
    frame = frame.apply(timed).filter(lambda found: found is not None)
    frame.to_topic(application.topic(f"{topic}.{kind}", value_serializer="json"))
    application.run(count=records, timeout=60.0)
    clock.tell(kind, clock.records)


def run_bytewax(kind, brokers, topic, records):
    from bytewax import operators as op
    from bytewax.connectors.kafka import KafkaSinkMessage
    from bytewax.connectors.kafka import operators as kafka
    from bytewax.dataflow import Dataflow
    from bytewax.testing import run_main
    from confluent_kafka.admin import AdminClient, NewTopic
    from river import anomaly

    results = f"{topic}.{kind}"
    admin = AdminClient({"bootstrap.servers": brokers})
    if results not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(results, 4, 1)])[results].result()
    clock = Clock()

    def parsed(message):
        clock.begin()
        record = json.loads(message.value)
        return record["machine"], record

    def score(forest, record):
        forest = forest or anomaly.HalfSpaceTrees(seed=1)
        return forest, scored(forest, record)

    def written(keyed):
        machine, found = keyed
        clock.tick()
        if clock.records == records:
            clock.tell(kind, records)
            # A dataflow on a topic has no end.
            os._exit(0)
        return KafkaSinkMessage(machine.encode(), json.dumps(found).encode())

    flow = Dataflow("peer")
    messages = kafka.input("read", flow, brokers=brokers.split(","), topics=[topic])
    keyed = op.map("parse", messages.oks, parsed)
    scores = op.stateful_map("score", keyed, score)
    messages = op.map("serialise", scores, written)
    kafka.output("write", messages, brokers=brokers.split(","), topic=results)
    run_main(flow)


def run_pathway(kind, brokers, topic, records):
    os.environ["PATHWAY_THREADS"] = str(os.cpu_count())
    import pathway as pw

    settings = {"bootstrap.servers": brokers, "group.id": f"{topic}-{kind}", "auto.offset.reset": "earliest"}
    table = pw.io.kafka.read(
        settings,
        topic=topic,
        schema=pw.schema_from_types(machine=str, ts=int, **{channel: float for channel in CHANNELS}),
        format="json",
        mode="static",
        autocommit_duration_ms=100,
    )
    samples = table.select(table.machine, table.ts, values=pw.make_tuple(*[table[channel] for channel in CHANNELS]))
    sliding = pw.temporal.sliding(hop=STRIDE * EVERY_MS, duration=LENGTH * EVERY_MS)
    segments = samples.windowby(samples.ts, window=sliding, instance=samples.machine).reduce(
        machine=pw.this._pw_instance,
        start=pw.this._pw_window_start,
        values=pw.reducers.sorted_tuple(pw.make_tuple(pw.this.ts, pw.this.values)),
        samples=pw.reducers.count(),
    )
    clock = Clock()
    seen = {}

    def segment(key, row, time, is_addition):
        clock.tick()
        if is_addition:
            seen[key] = row["samples"]

    firsts = table.reduce(first=pw.reducers.min(table.ts))
    pw.io.subscribe(firsts, on_change=lambda key, row, time, is_addition: clock.begin())
    pw.io.subscribe(segments, on_change=segment)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    assert LENGTH in seen.values(), "no segment is whole"
    clock.tell(kind, records)


def main():
    kind, brokers, topic, records = sys.argv[1:]
    run = {"bytewax": run_bytewax, "pathway": run_pathway}.get(kind, run_quix)
    run(kind, brokers, topic, int(records))


main()
