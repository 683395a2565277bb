"""How maps are halved: SAME padding and anti-aliasing, in both twins."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import lax

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS, FLOAT64_BUFFERS, G1_FORWARD
from resnet_flax import pooling
from resnet_flax.layers import AvgPool2d, BlurPool2d
from resnet_flax.layers import Conv2d as FlaxConv2d
from resnet_spec import ResNetConfig
from resnet_torch.layers import Conv2d, MaxPool2d
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    flax_like,
    images,
    random_torch,
    run_flax,
)

FLOAT32 = CEILINGS["float32"].ceiling

PLACES = ("stem", "block", "pool")
SAME: dict[str, Any] = {f"{place}_padding": "same" for place in PLACES}
DEEP = TINY_BOTTLENECK.replace(stem="deep", shortcut="D")
SIZES = [(64, 96), (9, 50)]


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (7, 7), (1, 3)])
def test_a_convolution_padded_same_is_xlas(size: tuple[int, int], dilation: int):
    conv = Conv2d(3, 4, size, stride=2, dilation=dilation).double()
    for height, width in ((1, 3), (2, 4), (7, 8), (8, 13)):
        x = _draw(2, 3, height, width)
        with jax.enable_x64(True):
            expected = lax.conv_general_dilated(
                jnp.asarray(x),
                jnp.asarray(conv.weight.detach().numpy()),
                (2, 2),
                "SAME",
                rhs_dilation=(dilation, dilation),
            )
        expected = np.asarray(expected) + conv.bias.detach().numpy()[:, None, None]  # type: ignore[union-attr]
        found = conv(torch.from_numpy(x)).detach().numpy()
        assert found.shape == expected.shape
        assert deviation(found, expected).l2 <= G1_FORWARD


@pytest.mark.parametrize("size", [(3, 3), (1, 3)])
def test_a_pool_padded_same_is_xlas_with_its_gradient(size: tuple[int, int]):
    pool: Any = MaxPool2d(size, stride=(2, 2))
    traced = torch.fx.symbolic_trace(nn_of(pool))
    for height, width in ((1, 3), (2, 4), (7, 8), (8, 12)):
        x = np.round(2 * _draw(2, 3, height, width)) - 9  # with ties, and no zero
        with jax.enable_x64(True):
            y = jnp.asarray(x)
            window, strides = (1, 1, *size), (1, 1, 2, 2)
            expected = lax.reduce_window(y, -jnp.inf, lax.max, window, strides, "SAME")
            weights = _draw(*expected.shape)

            def loss(y: jax.Array, weights: np.ndarray = weights) -> jax.Array:
                y = y.transpose(0, 2, 3, 1)
                found = pooling.max_pool(y, size, (2, 2), "SAME")
                return (found.transpose(0, 3, 1, 2) * weights).sum()

            gradient = np.asarray(jax.grad(loss)(y))
        for module in (pool, traced):
            given = torch.from_numpy(x).requires_grad_()
            found = module(given)
            np.testing.assert_array_equal(found.detach().numpy(), expected)
            (found * torch.from_numpy(weights)).sum().backward()
            np.testing.assert_array_equal(given.grad, gradient)


def nn_of(module: torch.nn.Module) -> torch.nn.Module:
    """Puts a module into another: fx looks into what it is not given itself."""
    return torch.nn.Sequential(module)


class Reference:
    """A network of plain operations of XLA, driven by the names in a state."""

    def __init__(self, state: dict[str, np.ndarray], same: frozenset[str]) -> None:
        self.state = {name: jnp.asarray(value) for name, value in state.items()}
        self.same = same

    def conv(self, key: str, x: jax.Array, stride: int, place: str) -> jax.Array:
        kernel = self.state[f"{key}.weight"]
        around = [(n // 2, n // 2) for n in kernel.shape[2:]]
        return lax.conv_general_dilated(
            *(x, kernel, (stride, stride)),
            "SAME" if place in self.same else around,
            feature_group_count=x.shape[1] // kernel.shape[1],
        )

    def norm(self, key: str, x: jax.Array) -> jax.Array:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (
            self.state[f"{key}.{name}"][None, :, None, None] for name in names
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    def block(self, key: str, x: jax.Array, stride: int) -> jax.Array:
        y = x
        last = 3 if f"{key}.conv3.weight" in self.state else 2
        for i in range(1, last + 1):
            by = stride if i == last - 1 else 1
            y = self.norm(f"{key}.bn{i}", self.conv(f"{key}.conv{i}", y, by, "block"))
            y = nnx.relu(y) if i < last else y
        if f"{key}.downsample.0.weight" in self.state:
            x = self.conv(f"{key}.downsample.0", x, stride, "")
            x = self.norm(f"{key}.downsample.1", x)
        return nnx.relu(x + y)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = nnx.relu(self.norm("bn1", self.conv("conv1", jnp.asarray(x), 2, "stem")))
        around = [(0, 0), (0, 0), (1, 1), (1, 1)]
        pads = "SAME" if "pool" in self.same else around
        window, strides = (1, 1, 3, 3), (1, 1, 2, 2)
        y = lax.reduce_window(y, -jnp.inf, lax.max, window, strides, pads)
        for key, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1)):
            y = self.block(key, y, stride)
        return np.asarray(
            y.mean((2, 3)) @ self.state["fc.weight"].T + self.state["fc.bias"][None]
        )


def _logits(config: ResNetConfig, x: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns the state, and what both twins make of images in float64."""
    model = random_torch(config).double().eval()
    with torch.no_grad():
        found = model(torch.from_numpy(x)).numpy()
    twin = flax_like(model, "float64")
    twin.eval()
    return parity.state_dict(model), found, run_flax(twin, x)[0]


@pytest.mark.parametrize("places", [("stem",), ("block",), ("pool",), PLACES])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="basic"),
        pytest.param(TINY_BOTTLENECK, id="bottleneck", marks=pytest.mark.slow),
    ],
)
def test_each_setting_pads_its_own_layers_as_xla_does(
    config: ResNetConfig, places: tuple[str, ...]
):
    config = config.replace(**{f"{place}_padding": "same" for place in places})
    for size in SIZES:
        x = images(config, *size)
        with jax.enable_x64(True):
            state, *found = _logits(config, x)
            expected = Reference(state, frozenset(places))(x)
            for logits in found:
                assert deviation(logits, expected).l2 <= G1_FORWARD
            if size != (64, 96):
                continue
            for others in (("stem",), ("block",), ("pool",), PLACES, ()):
                if others != places:  # the comparison above sees every mistake
                    other = Reference(state, frozenset(others))(x)
                    assert deviation(found[0], other).l2 > 1e-3


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["basic", "deep"])
def test_only_maps_of_even_size_see_the_difference(config: ResNetConfig):
    model = random_torch(config).double().eval()
    same = random_torch(config.replace(**SAME)).double().eval()
    with torch.no_grad():
        x = torch.from_numpy(images(config, 64, 96))
        assert deviation(same(x).numpy(), model(x).numpy()).l2 > 1e-3
        x = torch.from_numpy(images(config, 65, 97))
        assert deviation(same(x).numpy(), model(x).numpy()).l2 <= G1_FORWARD


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["fx", "script", "trace"])
def test_in_a_graph_of_torch_the_padding_follows_the_size(how: str):
    model = random_torch(TINY.replace(**SAME)).eval()
    make: Any = {
        "fx": torch.fx.symbolic_trace,
        "script": torch.jit.script,
        "trace": lambda model: torch.jit.trace(model, torch.zeros(1, 3, 40, 33)),
    }[how]
    graph = make(model)
    for size in ((40, 33), (33, 40), (47, 66)):
        x = torch.from_numpy(images(TINY, *size).astype(np.float32))
        with torch.no_grad():
            assert torch.equal(graph(x), model(x))


CASES = {
    "same": (TINY.replace(**SAME), (40, 34)),
    "same deep": (DEEP.replace(**SAME), (64, 48)),
    "same signal": (
        TINY.replace(dimensions=1, head="signal", signal_width=130, **SAME),
        (1, 130),
    ),
    "same dilated": (
        TINY.replace(
            layers=(1, 1, 1),
            widths=(8, 8, 16),
            replace_stride_with_dilation=(True, False),
            **SAME,
        ),
        (40, 34),
    ),
    "blur": (TINY.replace(anti_alias="blur"), (41, 34)),
    "blur deep": (DEEP.replace(anti_alias="blur"), (64, 49)),
    "average": (TINY.replace(anti_alias="average"), (41, 34)),
    "average deep": (DEEP.replace(anti_alias="average"), (63, 48)),
}


@pytest.mark.parametrize("kind", CASES)
def test_training_is_equal_in_float64(kind: str):
    config, size = CASES[kind]
    x = images(config, *size, n=3)
    model = random_torch(config).double().train()
    y = torch.from_numpy(x).requires_grad_()
    output = model(y)
    (output**2).sum().backward()
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")

        @nnx.jit
        def gradients(twin: Any, x: jax.Array) -> Any:
            loss = nnx.grad(lambda twin, x: (twin(x) ** 2).sum(), argnums=(0, 1))
            return loss(twin, x)

        found, by_images = gradients(twin, jnp.asarray(x.transpose(0, 2, 3, 1)))
        nnx.update(twin, found)
        by_name = parity.state_dict(twin)
    assert y.grad is not None
    by_images = np.asarray(by_images).transpose(0, 3, 1, 2)
    assert deviation(by_images, y.grad.numpy()).l2 <= FLOAT64_BUFFERS
    for name, parameter in model.named_parameters():
        expected = parameter.grad.numpy()
        assert deviation(by_name[name], expected).l2 <= FLOAT64_BUFFERS, name


@pytest.mark.parametrize(
    "kind",
    ["same", *(pytest.param(k, marks=pytest.mark.slow) for k in ("blur", "average"))],
)
def test_the_check_passes_the_twins_and_names_the_layer_that_pads_otherwise(kind: str):
    config, size = CASES[kind]
    model = random_torch(config).eval()
    twin = flax_like(model)
    x = images(config, *size).astype(np.float32)
    report = parity.check(model, twin, x, gates=["G1", "G1 training"])
    assert report.ok, str(report)
    if kind == "same":
        twin.maxpool.padding = ((1, 1), (1, 1))
    elif kind == "blur":
        twin.maxpool[1].__class__ = ShiftedBlur
    else:
        twin.maxpool.__class__ = ShiftedMean
    report = parity.check(model, twin, x, gates=["G1"])
    expected = {"same": "maxpool", "blur": "maxpool.1", "average": "maxpool"}[kind]
    assert report.first_divergence == expected


class ShiftedBlur(BlurPool2d):
    """Takes the other pixel of two."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools."""
        return super().__call__(jnp.roll(x, 1, 1))


class ShiftedMean(AvgPool2d):
    """Takes the means of other pairs."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools."""
        return super().__call__(jnp.roll(x, 1, 1))


@pytest.mark.parametrize("kind", CASES)
def test_layers_are_listed_alike(kind: str):
    config, size = CASES[kind]
    model = random_torch(config)
    found = parity.layers(model, (3, *size))
    assert found == parity.layers(flax_like(model), (3, *size))
    padded = {layer.name for layer in found if layer.padding == "SAME"}
    expected = {
        "same": {"conv1", "maxpool", "layer2.0.conv1"},
        "same deep": {"conv1.0", "maxpool", "layer2.0.conv2"},
        "same signal": {"conv1", "maxpool", "layer2.0.conv1"},
        "same dilated": {"conv1", "maxpool", "layer3.0.conv1"},
    }
    assert padded == expected.get(kind, set())
    assert set(parity.entries(model)) == set(
        parity.entries(random_torch(config.replace(**_plain(config))))
    )


def _plain(config: ResNetConfig) -> dict[str, Any]:
    return {**dict.fromkeys(SAME, "torch"), "anti_alias": "none"}


@pytest.mark.parametrize("kind", CASES)
def test_fast_forms_compute_the_same(kind: str):
    config, size = CASES[kind]
    config = config.replace(widths=tuple(64 for _ in config.widths))
    x = images(config, *size)
    model = random_torch(config).double().eval()
    fused = resnet_torch.fuse(model)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
        assert deviation(fused(torch.from_numpy(x)).numpy(), expected).l2 < 5e-14
    with jax.enable_x64(True):
        twin = resnet_flax.fuse(flax_like(model, "float64"))
        fast = resnet_flax.winograd(twin)
        kernels = {
            module.kernel[...].shape[:2]
            for _, module in nnx.iter_modules(fast)
            if isinstance(module, FlaxConv2d)
        }
        assert ((4, 4) in kernels) == (config.dimensions == 2 and config.groups == 1)
        for form in (twin, fast):
            found = run_flax(form, x)[0]
            assert deviation(found, expected).l2 < 5e-13
    run: Any = resnet_flax.compile(flax_like(random_torch(config)))
    found = np.asarray(run(jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32)))
    if found.ndim == 4:
        found = found.transpose(0, 3, 1, 2)
    assert deviation(found, expected).l2 <= FLOAT32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("kind", ["same", "blur", "average"])
def test_torchs_compiler_computes_the_same(kind: str):
    config, size = CASES[kind]
    x = torch.from_numpy(images(config, *size).astype(np.float32))
    model = random_torch(config).eval()
    run = resnet_torch.compile(model)
    with torch.no_grad():
        assert deviation(run(x).numpy(), model(x).numpy()).l2 <= FLOAT32


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("average", (62, 64), "multiples of 8, one pixel less, or up to two more fit"),
        ("average", (64, 67), "67 does not fit: images whose sides are multiples of 8"),
        ("average", (6, 64), "6x64 does not fit"),
        ("blur", (4, 64), "4x64 does not fit: images of more than 4 pixels a side"),
        ("blur", (64, 1), "images of more than 4 pixels a side fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_both(
    kind: str, size: tuple[int, int], said: str
):
    config, _ = CASES[kind]
    model = random_torch(config).eval()
    with pytest.raises(ValueError, match=said):
        model(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=said):
        flax_like(model)(jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("kind", ["blur", "average"])
def test_every_size_that_is_not_refused_is_computed_alike(kind: str):
    config, _ = CASES[kind]
    model = random_torch(config).eval()
    twin = flax_like(model)
    twin.eval()
    for side in (*range(1, 11), *range(14, 20)):
        try:
            config.check_size(side, 2 * side)
        except ValueError:
            continue
        x = images(config, side, 2 * side).astype(np.float32)
        with torch.no_grad():
            features = model.forward_features(torch.from_numpy(x))
        found = twin.forward_features(jnp.asarray(x.transpose(0, 2, 3, 1)))
        found = np.asarray(found).transpose(0, 3, 1, 2)
        assert features.shape[2:] == config.map_size(side, 2 * side)
        assert deviation(found, features.numpy()).l2 <= FLOAT32
