"""What the frameworks make of a network: scripts, exports, per-sample gradients."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import export

import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from resnet_flax.layers import BatchNorm2d
from resnet_spec import ResNetConfig
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    flax_like,
    images,
    random_torch,
)

CONFIGS = {
    "basic": (TINY, (40, 33)),
    "bottleneck": (TINY_BOTTLENECK.replace(stem="deep", shortcut="D"), (40, 33)),
    "padded": (TINY.replace(shortcut="A"), (40, 33)),
    "plain": (TINY.replace(shortcut="none"), (40, 33)),
    "signal": (
        TINY.replace(dimensions=1, head="signal", signal_width=64, stem="3x3"),
        (1, 64),
    ),
    "conv": (TINY.replace(head="conv"), (90, 120)),
    "same": (
        TINY.replace(stem_padding="same", block_padding="same", pool_padding="same"),
        (40, 34),
    ),
    "blur": (TINY.replace(anti_alias="blur"), (40, 33)),
    "average": (TINY.replace(anti_alias="average"), (40, 33)),
    "squeezed": (
        TINY.replace(
            attention="se",
            stem="tiered",
            stem_channels=16,
            stem_pool="conv",
            shortcut="B3",
            reduce_first=2,
        ),
        (40, 33),
    ),
    "in groups": (
        TINY_BOTTLENECK.replace(
            attention="eca",
            norm="group",
            norm_groups=4,
            shortcut="D",
            output_stride=4,
        ),
        (40, 33),
    ),
}
ROUNDING = 1e-5


def _images(config: ResNetConfig, size: tuple[int, int], n: int = 2) -> torch.Tensor:
    return torch.from_numpy(images(config, *size, n=n).astype(np.float32))


def _nhwc(x: torch.Tensor) -> jax.Array:
    return jnp.asarray(x.numpy().transpose(0, 2, 3, 1))


def _flax(config: ResNetConfig) -> Any:
    model = flax_like(random_torch(config))
    model.eval()
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_scripted_network_computes_the_same_and_has_the_same_keys(kind: str):
    config, size = CONFIGS[kind]
    model = random_torch(config).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    x = _images(config, size)
    with torch.no_grad():
        expected = model(x)
        assert deviation(scripted(x).numpy(), expected.numpy()).l2 < ROUNDING
    assert set(scripted.state_dict()) == set(model.state_dict())
    if config.norm == "group":  # which notes nothing
        return
    scripted.train()
    before = scripted.bn1.running_mean.clone()
    scripted(x)
    assert not torch.equal(before, scripted.bn1.running_mean)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_tracers_of_torch_take_every_network(kind: str):
    config, size = CONFIGS[kind]
    model = random_torch(config).eval()
    x = _images(config, size)
    with torch.no_grad():
        expected = model(x).numpy()
        graph: Any = torch.fx.symbolic_trace(model)
        assert deviation(graph(x).numpy(), expected).l2 < ROUNDING
        if config.head == "linear":  # the others note a size, and say so
            traced: Any = torch.jit.trace(model, x)
            assert deviation(traced(x).numpy(), expected).l2 < ROUNDING


@pytest.mark.parametrize(
    "kind", ["basic", "grouped", "same", "blur", "squeezed", "in groups"]
)
def test_torch_exports_a_network_for_images_of_any_size_and_number(kind: str):
    config = TINY_BOTTLENECK if kind == "grouped" else CONFIGS[kind][0]
    model = random_torch(config).eval()
    # A map of 1x1 would be another program to torch.
    n, h, w = (
        torch.export.Dim(name, min=least, max=512)
        for name, least in (("n", 2), ("h", 9), ("w", 9))
    )
    program = torch.export.export(
        model, (_images(config, (40, 64)),), dynamic_shapes=({0: n, 2: h, 3: w},)
    ).module()
    for count, size in ((3, (33, 47)), (5, (64, 35))):
        x = _images(config, size, n=count)
        with torch.no_grad():
            assert deviation(program(x).numpy(), model(x).numpy()).l2 < ROUNDING


@pytest.mark.parametrize(
    "kind",
    [
        *("basic", "bottleneck", "padded", "plain", "same", "blur"),
        *("squeezed", "in groups"),
    ],
)
@pytest.mark.parametrize("how", ["as it is", "fused", "winograd"])
def test_jax_exports_a_network_for_images_of_any_size_and_number(kind: str, how: str):
    config, _ = CONFIGS[kind]
    if how == "winograd":
        config = config.replace(widths=(64, 64))
    model = _flax(config)
    if how != "as it is":
        model = resnet_flax.fuse(model)
    if how == "winograd":
        model = resnet_flax.winograd(model)
    graph, state = nnx.split(model)

    def forward(x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    n, h, w = export.symbolic_shape("n, h, w")
    shape = jax.ShapeDtypeStruct((n, h, w, 3), jnp.float32)
    program = export.export(jax.jit(forward))(shape)
    program = export.deserialize(program.serialize())
    for count, size in ((1, (33, 47)), (3, (64, 35))):
        x = _nhwc(_images(config, size, n=count))
        found = program.call(x)
        assert deviation(np.asarray(found), np.asarray(model(x))).l2 < ROUNDING


@pytest.mark.parametrize(
    "kind", [pytest.param("basic", marks=pytest.mark.slow), "bottleneck"]
)
def test_gradients_of_each_image_are_those_of_the_image_alone_in_both_twins(kind: str):
    config, size = CONFIGS[kind]
    model = random_torch(config).eval()
    twin = _flax(config)
    x = _images(config, size, n=3)

    def loss(parameters: Any, image: torch.Tensor) -> torch.Tensor:
        y = torch.func.functional_call(model, parameters, (image[None],))
        return (y**2).sum()

    parameters = {k: v.detach() for k, v in model.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    graph, state, rest = nnx.split(twin, nnx.Param, ...)

    def twins_loss(state: Any, image: jax.Array) -> jax.Array:
        return (nnx.merge(graph, state, rest)(image[None]) ** 2).sum()

    theirs = jax.vmap(jax.grad(twins_loss), in_axes=(None, 0))(state, _nhwc(x))
    for index in range(3):
        alone = torch.func.grad(loss)(parameters, x[index])
        for name, value in alone.items():
            assert deviation(each[name][index].numpy(), value.numpy()).l2 < 1e-4, name
        twin_alone = jax.grad(twins_loss)(state, _nhwc(x)[index])
        pairs = zip(jax.tree.leaves(theirs), jax.tree.leaves(twin_alone), strict=True)
        for a, b in pairs:
            assert deviation(np.asarray(a[index]), np.asarray(b)).l2 < 1e-4
        mine = alone["fc.weight"].numpy().T
        other = np.asarray(theirs["fc"]["kernel"][index])
        assert deviation(other, mine).l2 < 1e-4


def _modes(model: nnx.Module) -> set[bool | None]:
    norms = (m for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm2d))
    return {norm.use_running_average for norm in norms}


def test_nnx_switches_the_norms_as_it_does_its_own():
    model = flax_like(random_torch(TINY))
    assert _modes(model) == {False}
    view = nnx.view(model, use_running_average=True)
    assert _modes(view) == {True}
    assert _modes(model) == {False}
    assert view.bn1.mean is model.bn1.mean
    view = nnx.view(model, only=nnx.BatchNorm, use_running_average=True)
    assert _modes(view) == {True}
    model.set_attributes(nnx.BatchNorm, use_running_average=True)
    assert _modes(model) == {True}
    model.set_attributes(BatchNorm2d, use_running_average=False)
    assert _modes(model) == {False}
    model.set_attributes(use_running_average=True)
    assert _modes(model) == {True}
    model.train()
    assert _modes(model) == {False}


def test_a_norm_takes_its_mode_from_the_call_as_nnxs_does():
    norm = flax_like(random_torch(TINY)).bn1
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5, 8)), jnp.float32)
    before = np.asarray(norm.mean[...])
    y = norm(x, use_running_average=True)
    assert np.array_equal(norm.mean[...], before)
    norm.eval()
    assert np.array_equal(norm(x), y)
    norm(x, use_running_average=False)
    assert not np.array_equal(norm.mean[...], before)
    assert norm.epsilon == norm.eps
    assert norm.num_features == 8


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
def test_no_function_hides_a_module_of_its_package(package: Any):
    from pathlib import Path

    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")}
    assert modules.isdisjoint(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
