"""Both twins take the same step: losses against torch's own, five steps in float64."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
import resnet_flax.optim
import resnet_torch.optim
from parity.judging.distance import deviation
from parity.judging.tolerances import FLOAT64_BUFFERS, G1_FORWARD, UNIT_ROUNDOFF
from resnet_spec import OptimizerConfig
from tests.support.networks import TINY, flax_like, images, random_torch
from tests.support.optimizers import STAIRS, WAVE, adamw, sgd


def logits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return 3 * rng.standard_normal((6, 11)), rng.integers(0, 11, 6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_the_loss_and_its_gradient_are_torchs(label_smoothing: float):
    x, labels = logits_and_labels()
    logits = torch.from_numpy(x).requires_grad_()
    expected = nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), label_smoothing=label_smoothing
    )
    expected.backward()
    assert logits.grad is not None
    twin = torch.from_numpy(x[:, None, None, :]).requires_grad_()
    loss = resnet_torch.optim.cross_entropy(
        twin, torch.from_numpy(labels.astype(np.int32)), label_smoothing=label_smoothing
    )
    loss.backward()
    assert loss == expected
    assert twin.grad is not None
    assert torch.equal(twin.grad.flatten(1), logits.grad)
    with jax.enable_x64(True):
        for shaped in (x, x[:, None, :, None]):
            # Traced, as a jitted step's argument is.
            loss, gradient = jax.jit(
                jax.value_and_grad(
                    lambda x, labels, s: resnet_flax.optim.cross_entropy(
                        x, labels, label_smoothing=s
                    )
                )
            )(jnp.asarray(shaped), jnp.asarray(labels), label_smoothing)
            assert (
                deviation(np.asarray(loss), expected.detach().numpy()).l2 <= G1_FORWARD
            )
            gradient = np.asarray(gradient).reshape(x.shape)
            assert deviation(gradient, logits.grad.numpy()).l2 <= G1_FORWARD


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_loss_of_half_types_is_computed_in_float32(dtype: str):
    x, labels = logits_and_labels()
    half = torch.from_numpy(x).to(getattr(torch, dtype))
    expected = nn.functional.cross_entropy(half.double(), torch.from_numpy(labels))
    loss = resnet_torch.optim.cross_entropy(half, torch.from_numpy(labels))
    found = resnet_flax.optim.cross_entropy(
        jnp.asarray(half.double().numpy().astype(np.float32)).astype(dtype),
        jnp.asarray(labels.astype(np.int32)),
    )
    assert loss.dtype == torch.float32
    assert found.dtype == jnp.float32
    for value in (loss.numpy(), np.asarray(found)):
        assert deviation(value, expected.numpy()).l2 <= 8 * UNIT_ROUNDOFF["float32"]


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((4, 5), np.zeros(1, np.int32), "(4, 5), the labels (1,); they must be (n, k)"),
        ((2, 2, 1, 5), np.zeros(2, np.int32), "the logits have shape (2, 2, 1, 5)"),
        ((4,), np.zeros(4, np.int32), "the logits have shape (4,)"),
        ((4, 5), np.zeros(4, np.float32), "float32; they must be integers"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused_by_both(
    shape: tuple[int, ...], labels: np.ndarray, message: str
):
    x = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        resnet_torch.optim.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    with pytest.raises(ValueError, match=re.escape(message)):
        resnet_flax.optim.cross_entropy(jnp.asarray(x), jnp.asarray(labels))


@pytest.mark.parametrize("label", [-100, -1, 11])
def test_a_label_that_is_no_class_never_passes_unseen(label: int):
    x, labels = logits_and_labels()
    labels[2] = label
    with pytest.raises(IndexError, match="out of bounds"):
        resnet_torch.optim.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    loss = resnet_flax.optim.cross_entropy(
        jnp.asarray(x.astype(np.float32)), jnp.asarray(labels.astype(np.int32))
    )
    assert jnp.isnan(loss)


@pytest.mark.parametrize(
    ("config", "pure"),
    [
        (sgd(schedule=WAVE, momentum=0.9, weight_decay=1e-2, nesterov=True), False),
        (adamw(schedule=STAIRS, weight_decay=0.1), True),
    ],
)
def test_five_training_steps_are_equal_in_float64(config: OptimizerConfig, pure: bool):
    model = random_torch(TINY).double().train()
    labels = np.arange(20).reshape(5, 4) * 3 % TINY.num_classes
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        twin.train()
        optimizer = resnet_flax.optim.create_optimizer(twin, config)
        graph, state = nnx.split((twin, optimizer))
        jitted = nnx.jit(resnet_flax.optim.train_step)

        @jax.jit
        def step(state: nnx.State, x: jax.Array, y: jax.Array, smoothing: float):
            both = nnx.merge(graph, state)
            train_step = resnet_flax.optim.train_step
            loss = train_step(*both, x, y, label_smoothing=smoothing)
            return loss, nnx.state(both)

        losses = []
        for seed in range(5):
            x = images(TINY, 40, 33, n=4, seed=seed).transpose(0, 2, 3, 1)
            x, y = jnp.asarray(x), jnp.asarray(labels[seed])
            if pure:
                loss, state = step(state, x, y, 0.1)
            else:
                loss = jitted(twin, optimizer, x, y, label_smoothing=0.1)
            losses.append(float(loss))
        if pure:
            nnx.update((twin, optimizer), state)
        after = parity.state_dict(twin)

    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch_optimizer = resnet_torch.optim.create_optimizer(model, config)
    expected = []
    for seed in range(5):
        x = torch.from_numpy(images(TINY, 40, 33, n=4, seed=seed))
        y = torch.from_numpy(labels[seed])
        loss = resnet_torch.optim.train_step(
            model, torch_optimizer, x, y, label_smoothing=0.1
        )
        assert not loss.requires_grad
        expected.append(float(loss))
    assert deviation(np.array(losses), np.array(expected)).max <= G1_FORWARD
    for name, value in parity.state_dict(model).items():
        assert not np.array_equal(value, before[name].numpy()), name
        assert deviation(after[name], value).l2 <= FLOAT64_BUFFERS, name
