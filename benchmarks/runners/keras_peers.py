"""Keras's ResNet50: the paper's v1 with biased convolutions, so it has weights apart.

Ours do not fit it. It gets random ones of its own, and the gate judges it against our
torch twin built as that network, with these weights.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import resnet_spec
from benchmarks.measuring import inputs
from benchmarks.measuring.flops import flops
from benchmarks.measuring.worker import Job, Runner
from parity.weights.dialects.dialect import write
from parity.weights.dialects.recognising import require_dialect
from parity.weights.samples import random_state
from parity.weights.state import entries
from parity.weights.twins import abstract_torch


def build(job: Job) -> Runner:
    """Makes the peer ready."""
    case = job.case
    config = resnet_spec.get_config("resnet50_v1").replace(
        conv_bias=True, norm_eps=1.001e-5
    )
    state = random_state(entries(abstract_torch(config)), seed=case.seed)
    make: Any = keras.applications.ResNet50  # its annotations know no None
    model = make(weights=None, classifier_activation=None, input_shape=(*case.size, 3))
    theirs = write(require_dialect("keras"), config, state)
    for layer in model.layers:
        for weight in layer.weights:
            leaf = weight.path.rpartition("/")[2]
            weight.assign(theirs[f"{layer.name}.{leaf}"])
    weights = job.folder / f"{job.mode.name}-weights.npz"
    np.savez(weights, allow_pickle=False, **state)
    images, _ = inputs.read_batch(job.folder, job.case)
    x = keras.ops.convert_to_tensor(images.transpose(0, 2, 3, 1))
    last: list[Any] = []
    on_jax = keras.backend.backend() == "jax"
    run = _on_jax(model) if on_jax else _on_torch(model, job)

    def call() -> None:
        last[:] = [run(x)]

    return Runner(
        call,
        lambda: {"logits": np.asarray(keras.ops.convert_to_numpy(last[0]))},
        flops=flops(config, case.task, case.batch, case.size),
        facts={"own": config.to_json()},
    )


def _on_jax(model: Any) -> Any:
    import jax

    # What predict() compiles, without its copies to numpy.
    trainable, rest = (
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
    forward = jax.jit(
        lambda trainable, rest, x: model.stateless_call(
            trainable, rest, x, training=False
        )[0]
    )
    return lambda x: forward(trainable, rest, x).block_until_ready()


def _on_torch(model: Any, job: Job) -> Any:
    import torch

    torch.set_num_threads(job.threads)

    def run(x: Any) -> Any:
        with torch.no_grad():
            return model(x, training=False)

    return run
