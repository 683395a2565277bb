"""The Flax twin in its modes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import parity
import resnet_flax
from benchmarks.measuring import inputs
from benchmarks.measuring.worker import Job, Runner
from parity.weights.twins import abstract_flax
from resnet_flax.optim import create_optimizer, train_step


def build(job: Job) -> Runner:
    """Makes the Flax twin ready."""
    half = "bfloat16" if job.mode.arithmetic == "bfloat16" else None
    model = abstract_flax(job.case.spec, dtype=half)
    before = inputs.read_weights(job.folder)
    parity.load_state_dict(model, before)
    made = "winograd" in job.mode.options or job.mode.engine
    if "fused" in job.mode.options and not made:
        model = resnet_flax.fuse(model)
    images, labels = inputs.read_batch(job.folder, job.case)
    x = jax.device_put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    if job.case.task == "training":
        return _training(job, model, x, jax.device_put(labels), before)
    return _inference(job, model, x)


def _inference(job: Job, model: Any, x: jax.Array) -> Runner:
    if "eager" in job.mode.options:
        run = model
    elif job.mode.engine is not None:
        run = resnet_flax.compile(model, engine=job.mode.engine)  # type: ignore
    elif "winograd" in job.mode.options:
        run = resnet_flax.compile(model)
    elif "nnx" in job.mode.options:
        jitted = nnx.jit(lambda model, x: model(x))

        def run(x: jax.Array) -> jax.Array:
            return jitted(model, x)
    else:
        graph, state = nnx.split(model)
        forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))

        def run(x: jax.Array) -> jax.Array:
            return forward(state, x)

    return runner(run, x)


def runner(run: Any, x: jax.Array) -> Runner:
    """Makes any function of images (n, h, w, c) ready."""
    last: list[jax.Array] = []

    def call() -> None:
        last[:] = [run(x)]

    return Runner(
        call,
        lambda: {"logits": np.asarray(last[0], np.float32)},
        wait=lambda: jax.block_until_ready(last),
    )


def _training(
    job: Job, model: Any, x: jax.Array, y: jax.Array, before: dict[str, np.ndarray]
) -> Runner:
    model.train()
    optimizer = create_optimizer(model, inputs.OPTIMIZER)
    losses: list[jax.Array] = []
    if "nnx" in job.mode.options:
        step = nnx.jit(train_step)

        def call() -> None:
            losses.append(step(model, optimizer, x, y))

        def wait() -> None:
            jax.block_until_ready((losses[-1], nnx.state((model, optimizer))))

        def trained() -> Any:
            return model
    else:
        graph, start = nnx.split((model, optimizer))
        # What is donated must be nobody else's.
        held = [jax.tree.map(jnp.copy, start)]

        def one(state: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
            model, optimizer = nnx.merge(graph, state)
            loss = train_step(model, optimizer, x, y)
            return loss, nnx.state((model, optimizer))

        donating = jax.jit(one, donate_argnums=0)

        def call() -> None:
            loss, held[0] = donating(held[0], x, y)
            losses.append(loss)

        def wait() -> None:
            jax.block_until_ready((losses[-1], held))

        def trained() -> Any:
            return nnx.merge(graph, held[0])[0]

    def results() -> dict[str, np.ndarray]:
        after = parity.state_dict(trained())
        return inputs.changes([float(loss) for loss in losses], before, after)

    return Runner(call, results, wait=wait)
