"""A Python job on the topic that `cargo bench --bench stream` fills: records a second.

    stream.py river|jax BROKERS TOPIC RECORDS

A Quix Streams application reads JSON records, scores them and writes scores to TOPIC.KIND. `river`
scores and learns every record with half-space trees, one forest a machine, with River's defaults. `jax`
cuts segments of 64 samples every 8 and embeds each with a jitted network (512-256-128-64) that was drawn at
random and does not learn. The clock runs from the first record to the last.
"""

import sys
import time

from quixstreams import Application
from quixstreams.kafka.configuration import ConnectionConfig

LENGTH, STRIDE, CHANNELS = 64, 8, [f"c{channel}" for channel in range(8)]


def river():
    from river import anomaly

    forests = {}

    def score(record):
        forest = forests.get(record["machine"])
        if forest is None:
            forest = forests[record["machine"]] = anomaly.HalfSpaceTrees(seed=1)
        values = {channel: record[channel] for channel in CHANNELS}
        found = forest.score_one(values)
        forest.learn_one(values)
        return found

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


def main():
    kind, brokers, topic, records = sys.argv[1:]
    records = int(records)
    score = {"river": river, "jax": jax}[kind]()
    application = Application(
        broker_address=ConnectionConfig(bootstrap_servers=brokers),
        consumer_group=f"{topic}-{kind}",
        auto_offset_reset="earliest",
        loglevel="WARNING",
    )
    clock = {"seen": 0}

    def timed(record):
        if clock["seen"] == 0:
            clock["began"] = time.perf_counter()
        found = score(record)
        clock["seen"] += 1
        clock["ended"] = time.perf_counter()
        return found

    frame = application.dataframe(application.topic(topic, value_deserializer="json"))
    frame = frame.apply(timed).filter(lambda found: found is not None)
    frame.to_topic(application.topic(f"{topic}.{kind}", value_serializer="json"))
    application.run(count=records, timeout=60.0)
    print(f"{kind} {clock['seen'] / (clock['ended'] - clock['began']):.0f}")


main()
