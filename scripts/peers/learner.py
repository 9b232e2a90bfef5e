"""What `cargo bench --bench learner` measures, in JAX (jit, CPU, as many threads as it takes).

Prints `name microseconds` a case, the median of 31 runs after 5. The same models, from the same inputs:
a step is both encoders, InfoNCE against a queue of 4096 with the batch's keys in it, the gradient, Adam
and the momentum update, and gets its views drawn and augmented already. `plain` is an MLP 512-256-128-64
without a second input per value and without a projection head, batch 256.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

CHANNELS, LENGTH, BATCH, QUEUE, HIDDEN, EMBEDDING = 8, 64, 256, 4096, 32, 64
HEAD = [128, 64]
rng = np.random.default_rng(1)


def dense(inputs, outputs):
    return [jnp.asarray(rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)), jnp.float32), jnp.zeros(outputs)]


def convolution(inputs, outputs):
    weights = rng.normal(0, (2 / inputs / 3) ** 0.5, (3, inputs, outputs))
    return [jnp.asarray(weights, jnp.float32), jnp.zeros(outputs)]


def layers(parameters, x):
    for number, (weights, bias) in enumerate(parameters):
        x = x @ weights + bias
        if number + 1 < len(parameters):
            x = jax.nn.relu(x)
    return x


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def head(parameters, features):
    embeddings = unit((features - parameters["mean"]) * parameters["scale"])
    return embeddings, unit(layers(parameters["head"], embeddings))


def mlp(parameters, x):
    missing = jnp.isnan(x)
    x = jnp.concatenate([jnp.where(missing, 0.0, x), missing.astype(jnp.float32)], axis=1).reshape(len(x), -1)
    return head(parameters, layers(parameters["layers"], x))


def tcn(parameters, x):
    observed = ~jnp.isnan(x)
    x = jnp.concatenate([jnp.where(observed, x, 0.0), observed.astype(jnp.float32)], axis=1).transpose(0, 2, 1)

    def convolve(x, layer, dilation):
        out = jax.lax.conv_general_dilated(
            x, layer[0], (1,), [(dilation, dilation)], rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return out + layer[1]

    hidden = jax.nn.relu(convolve(x, parameters["lift"], 1))
    for number, block in enumerate(parameters["blocks"]):
        hidden = jax.nn.relu(convolve(hidden, block, 1 << number) + hidden)
    pooled = jnp.concatenate([hidden.mean(axis=1), hidden.max(axis=1)], axis=1)
    return head(parameters, layers([parameters["out"]], pooled))


def plain(parameters, x):
    embeddings = unit(layers(parameters["layers"], x.reshape(len(x), -1)))
    return embeddings, embeddings


def parameters_of(kind):
    size = CHANNELS * LENGTH
    if kind == "plain":
        return {"layers": [dense(size, 256), dense(256, 128), dense(128, EMBEDDING)]}
    common = {"mean": jnp.zeros(EMBEDDING), "scale": jnp.ones(EMBEDDING)}
    common["head"] = [dense(EMBEDDING, HEAD[0]), dense(HEAD[0], HEAD[1])]
    if kind == "mlp":
        return common | {"layers": [dense(2 * size, 8 * HIDDEN), dense(8 * HIDDEN, 4 * HIDDEN), dense(4 * HIDDEN, EMBEDDING)]}
    blocks = [convolution(HIDDEN, HIDDEN) for _ in range(4)]
    return common | {"lift": convolution(2 * CHANNELS, HIDDEN), "blocks": blocks, "out": dense(2 * HIDDEN, EMBEDDING)}


def step_of(forward):
    def loss(parameters, log_scale, anchors, keys, queue, same):
        queries = forward(parameters, anchors)[1]
        scale = jnp.exp(log_scale)
        positive = jnp.sum(queries * keys, axis=1) * scale
        negative = jnp.where(same, -jnp.inf, queries @ queue.T * scale)
        return jnp.mean(jax.nn.logsumexp(jnp.concatenate([positive[:, None], negative], axis=1), axis=1) - positive)

    @partial(jax.jit, donate_argnums=(0, 1, 2, 3, 4, 5, 6))
    def step(parameters, follower, first, second, log_scale, queue, number, anchors, positives, origins, queue_origins):
        keys = jax.lax.stop_gradient(forward(follower, positives)[1])
        at = (number % (QUEUE // BATCH)) * BATCH
        queue = jax.lax.dynamic_update_slice(queue, keys, (at, 0))
        same = origins[:, None] == queue_origins[None, :]
        gradients = jax.grad(loss, argnums=(0, 1))(parameters, log_scale, anchors, keys, queue, same)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / norm), gradients)
        first = jax.tree.map(lambda m, g: m + 0.1 * (g - m), first, gradients)
        second = jax.tree.map(lambda v, g: v + 0.001 * (g * g - v), second, gradients)
        n = number + 1.0
        rate = 1e-3 * jnp.sqrt(1 - 0.999**n) / (1 - 0.9**n)
        moved = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), (parameters, log_scale), first, second)
        follower = jax.tree.map(lambda w, leader: 0.995 * w + 0.005 * leader, follower, moved[0])
        return moved[0], follower, first, second, moved[1], queue, number + 1

    return step


def measure(name, run):
    if len(sys.argv) > 1 and sys.argv[1] not in name:
        return
    times = []
    for _ in range(36):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    print(f"{name} {np.median(times[5:]) * 1e6:.1f}", flush=True)


def main():
    def segments(count):
        return jnp.asarray(rng.normal(size=(count, CHANNELS, LENGTH)), jnp.float32)

    for kind, forward in [("mlp", mlp), ("tcn", tcn), ("plain", plain)]:
        parameters = parameters_of(kind)
        log_scale = jnp.float32(2.3)
        zeros = lambda: jax.tree.map(jnp.zeros_like, (parameters, log_scale))
        queue = unit(jnp.asarray(rng.normal(size=(QUEUE, HEAD[-1] if kind != "plain" else EMBEDDING)), jnp.float32))
        state = [parameters, jax.tree.map(jnp.copy, parameters), zeros(), zeros(), log_scale, queue, jnp.int32(0)]
        anchors, positives = segments(BATCH), segments(BATCH)
        origins = jnp.asarray(rng.integers(0, 4096, BATCH))
        queue_origins = jnp.asarray(rng.integers(0, 4096, QUEUE))
        step = step_of(forward)

        def run():
            state[:] = step(*state, anchors, positives, origins, queue_origins)
            jax.block_until_ready(state)

        measure(f"{kind}-step", run)
        embed = jax.jit(lambda parameters, x: forward(parameters, x)[0])
        for count in [1, 32, 256]:
            batch = segments(count)
            measure(f"{kind}-embed-{count}", lambda: jax.block_until_ready(embed(state[0], batch)))


main()
