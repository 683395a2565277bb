"""timm's ResNets, every one: its own module against both twins, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx
from timm.layers.eca import EcaModule
from timm.layers.split_attn import SplitAttn
from timm.layers.squeeze_excite import SEModule

import parity
import resnet_flax
import resnet_spec
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS, FLOAT64_BUFFERS, G1_FORWARD
from parity.weights.identify import identify
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import ResNetConfig, get_config
from resnet_spec.attention import neighbours, split_squeezed, squeezed
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    few_of_timms,
    flax_like,
    images,
    random_torch,
    run_flax,
)

FLOAT32 = CEILINGS["float32"].ceiling

NAMES = tuple(name for name in resnet_spec.list_models() if timm.is_model(name))
"""timm's names."""

SHALLOW: dict[str, Any] = {"layers": (1, 2, 1, 1), "num_classes": 11}
NARROW = (32, 32, 64, 64)


def shallow(name: str, **settings: Any) -> ResNetConfig:
    """A network with all the parts of a named one, and fewer of them."""
    config = get_config(name)
    stem = {"stem_channels": config.stem_out}
    return config.replace(widths=NARROW, **stem, **SHALLOW, **settings)


def theirs_and_ours(name: str, config: ResNetConfig, **theirs: Any) -> tuple[Any, Any]:
    """timm's network and the torch twin, every entry random and the same, in float64.

    Args:
        name: timm's.
        config: ours.
        **theirs: what timm's is made with.
    """
    model = timm.create_model(name, **theirs)
    ours = resnet_torch.create_model(config)
    assert list(ours.state_dict()) == list(model.state_dict())
    assert parity.entries(ours) == parity.entries(model)
    state = parity.random_state(parity.entries(model), seed=0)
    for network in (model, ours):
        parity.load_state_dict(network, state)
        network.double().eval()
    return model, ours


def sizes(config: ResNetConfig) -> list[tuple[int, int]]:
    """An even size, and one with an odd side; not every size fits means over 2x2."""
    return [(32, 64), (33, 63) if config.anti_alias == "average" else (35, 49)]


def _few(names: tuple[str, ...]) -> list[Any]:
    """The first name of each kind; those that differ by their depth alone are slow."""
    seen: set[ResNetConfig] = set()
    found = []
    for name in names:
        again = shallow(name) in seen
        seen.add(shallow(name))
        found.append(pytest.param(name, marks=pytest.mark.slow if again else ()))
    return found


@pytest.mark.parametrize("name", _few(NAMES))
def test_the_torch_twin_is_timms_network(name: str):
    config = shallow(name)
    model, ours = theirs_and_ours(name, config, channels=NARROW, **SHALLOW)
    even, odd = sizes(config)
    for mode, size in ((False, even), (False, odd), (True, odd)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            for network in (model, ours):
                network.train(mode)
            found = deviation(ours(x).numpy(), model(x).numpy())
        assert found.l2 <= G1_FORWARD
    after = parity.state_dict(ours)
    for key, value in parity.state_dict(model).items():
        assert deviation(after[key], value).l2 <= FLOAT64_BUFFERS, key


PARTS = {
    "seresnext50_32x4d": "squeeze-and-excitation",
    "ecaresnet50t": "ECA, tiered stem, pooled shortcuts",
    "resnet50_gn": "group norm",
    "resnetrs50": "a convolution for the pool, another ratio",
    "senet154": "a wide stem, 3x3 shortcuts, reduced first convolutions",
    "seresnextaa201d_32x8d": "means for strides",
    "resnetblur50d": "blurred strides",
    "seresnet18": "squeeze-and-excitation in basic blocks",
    "resnest14d": "split attention, a mean behind it for a stride",
    "resnest50d_4s2x40d": "of four splits in two groups, the mean before it",
    "resnest50d_1s4x24d": "of one split in four groups",
}
"""A name for each part."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            str(name),
            marks=()
            if name in ("resnetrs50", "ecaresnet26t", "resnest50d_4s2x40d")
            else pytest.mark.slow,
        )
        for name in (p.values[0] for p in _few(NAMES) if not p.marks)
    ],
)
def test_the_flax_twin_is_timms_network(name: str):
    config = shallow(name)
    model, ours = theirs_and_ours(name, config, channels=NARROW, **SHALLOW)
    even, odd = sizes(config)
    for mode, size in ((False, even), (False, odd), (True, even), (True, odd)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            parity.load_state_dict(model, parity.state_dict(ours))
            expected = model.train(mode)(x).numpy()
        with jax.enable_x64(True):
            twin = flax_like(ours, "float64")
            twin.train() if mode else twin.eval()
            found, used = run_flax(twin, x.numpy())
            after = parity.state_dict(used)
        assert deviation(found, expected).l2 <= FLOAT64_BUFFERS
        for key, value in parity.state_dict(model).items():
            assert deviation(after[key], value).l2 <= FLOAT64_BUFFERS, key


def _by_kind(names: tuple[str, ...]) -> list[Any]:
    """A few; in CI the first of each kind; exhaustively all."""
    quick = {param.values[0] for param in few_of_timms(names) if not param.marks}
    kinds = {param.values[0] for param in _few(names) if not param.marks}
    left = {True: pytest.mark.slow, False: pytest.mark.exhaustive}
    return [
        pytest.param(name, marks=() if name in quick else left[name in kinds])
        for name in names
    ]


@pytest.mark.parametrize("name", _by_kind(NAMES))
def test_both_twins_have_timms_keys_and_keys_tell_which_network_it_is(name: str):
    with torch.device("meta"):
        entries = parity.entries(timm.create_model(name))
    config = get_config(name)
    for abstract in (abstract_torch, abstract_flax):
        assert list(parity.entries(abstract(config)).items()) == list(entries.items())
    # Which pool there is in place of a stride has no weights.
    seen = config.replace(anti_alias="none")
    assert identify({key: entry.shape for key, entry in entries.items()}) == seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=()
            if name
            in (
                *("resnet10t", "resnetblur18", "ecaresnet26t", "resnetrs50"),
                "resnest14d",
            )
            else pytest.mark.exhaustive,
        )
        for name in NAMES
    ],
)
def test_at_full_size_the_torch_twin_is_timms_network(name: str):
    config = get_config(name)
    model, ours = theirs_and_ours(name, config)
    x = torch.randn(1, 3, 64, 97, dtype=torch.float64)
    with torch.no_grad():
        assert deviation(ours(x).numpy(), model(x).numpy()).l2 <= G1_FORWARD


NOTHING = "conv2.fc1.bias"
"""What a norm behind it takes away: of its gradient only rounding is left."""


def _is_nothing(gradients: Any, key: str) -> bool:
    own, beside = (
        np.abs(np.asarray(gradients[name])).max()
        for name in (key, key.replace("bias", "weight"))
    )
    return bool(0 < own <= FLOAT64_BUFFERS * beside)


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_timms(name: str):
    config = shallow(name)
    model, ours = theirs_and_ours(name, config, channels=NARROW, **SHALLOW)
    gradients = []
    for network in (model, ours):
        x = torch.randn(
            *(3, 3, 32, 63),
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        ).requires_grad_()
        (network.train()(x) ** 2).sum().backward()
        assert x.grad is not None
        found = {key: p.grad for key, p in network.named_parameters()}
        gradients.append({"images": x.grad, **found})
    theirs, ours = gradients
    assert theirs.keys() == ours.keys()
    for key, expected in theirs.items():
        if key.endswith(NOTHING):
            assert _is_nothing(ours, key)
            continue
        found = deviation(ours[key].numpy(), expected.numpy())
        assert found.l2 <= FLOAT64_BUFFERS, key


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=()
            if name in ("ecaresnet50t", "resnest50d_4s2x40d")
            else pytest.mark.slow,
        )
        for name in PARTS
    ],
)
def test_gradients_of_the_flax_twin_are_timms(name: str):
    config = shallow(name)
    model, ours = theirs_and_ours(name, config, channels=NARROW, **SHALLOW)

    @nnx.jit
    def gradients(twin: Any, x: jax.Array) -> tuple[nnx.State, jax.Array]:
        return nnx.grad(lambda t, y: (t(y) ** 2).sum(), argnums=(0, 1))(twin, x)

    for size in sizes(config):
        x = torch.randn(3, 3, *size, dtype=torch.float64).requires_grad_()
        model.zero_grad()
        (model.train()(x) ** 2).sum().backward()
        assert x.grad is not None
        with jax.enable_x64(True):
            twin: Any = flax_like(ours, "float64")
            twin.train()
            y = jnp.asarray(x.detach().numpy().transpose(0, 2, 3, 1))
            found, by_images = gradients(twin, y)
            nnx.update(twin, found)
            by_name = parity.state_dict(twin)
            images = np.asarray(by_images).transpose(0, 3, 1, 2)
        assert deviation(images, x.grad.numpy()).l2 <= FLOAT64_BUFFERS
        for key, parameter in model.named_parameters():
            if key.endswith(NOTHING):
                assert _is_nothing(by_name, key)
                continue
            error = deviation(by_name[key], parameter.grad.numpy())
            assert error.l2 <= FLOAT64_BUFFERS, key


@pytest.mark.parametrize("ratio", [1 / 16, 0.25, 0.1, 1.0])
def test_squeezed_channels_and_neighbours_are_timms(ratio: float):
    for channels in (*range(8, 300, 4), 512, 513, 1024, 2048, 4096):
        module: Any = SEModule(channels, rd_ratio=ratio, device="meta")
        assert squeezed(channels, ratio) == module.fc1.out_channels
        kernel = EcaModule(channels, device="meta").conv.kernel_size
        assert kernel == (neighbours(channels),)


@pytest.mark.parametrize("radix", [1, 2, 3, 4])
def test_channels_between_the_layers_of_split_attention_are_timms(radix: int):
    for channels in (*range(8, 300, 4), 143, 512, 513, 1024, 2048):
        module: Any = SplitAttn(channels * radix, radix=radix, device="meta")
        assert split_squeezed(channels * radix, radix) == module.fc1.out_channels


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_ratio", 0.25),
        ("attention", "eca"),
        ("stem_pool", "conv"),
        ("shortcut", "B"),
    ],
)
def test_another_part_gives_another_network(field: str, value: Any):
    # What the comparison above would say of a row with the wrong part.
    config = shallow("seresnet50t")
    other = config.replace(**{field: value})
    entries = [parity.entries(abstract_torch(c)) for c in (config, other)]
    assert entries[0] != entries[1]


FAST = {
    "squeezed": TINY.replace(
        attention="se", stem_pool="conv", shortcut="B3", reduce_first=2
    ),
    "in groups": TINY.replace(attention="eca", norm="group", norm_groups=4),
    "split": TINY_BOTTLENECK.replace(radix=2, anti_alias="avd_first", shortcut="D"),
}


@pytest.mark.parametrize("kind", FAST)
def test_the_fast_forms_of_the_flax_twin_compute_the_same(kind: str):
    config = FAST[kind].replace(widths=(64, 64))
    x = images(config, 40, 33)
    model = random_torch(config).eval()
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(x)).numpy()
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        fast = resnet_flax.winograd(resnet_flax.fuse(twin))
        found, _ = run_flax(fast, x)
        assert deviation(found, expected).l2 <= G1_FORWARD
    run: Any = resnet_flax.compile(flax_like(random_torch(config)))
    found = np.asarray(run(jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32)))
    assert deviation(found, expected).l2 <= FLOAT32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("kind", FAST)
def test_torchs_compiler_takes_every_part(kind: str):
    model = random_torch(FAST[kind]).eval()
    x = torch.from_numpy(images(FAST[kind], 40, 33).astype(np.float32))
    run = resnet_torch.compile(model)
    with torch.no_grad():
        assert deviation(run(x).numpy(), model(x).numpy()).l2 <= FLOAT32


@pytest.mark.parametrize("stride", [8, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=() if n in (*PARTS, "resnet18") else pytest.mark.exhaustive
        )
        for n in NAMES
    ],
)
def test_with_an_output_stride_it_is_timms_too(name: str, stride: int):
    config = shallow(name, output_stride=stride)
    assert config.output_stride == stride
    how: dict[str, Any] = {"channels": NARROW, "output_stride": stride, **SHALLOW}
    model, ours = theirs_and_ours(name, config, **how)
    size = sizes(config)[1]
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found = ours.forward_features(x)
        assert tuple(found.shape[2:]) == config.map_size(*size)
        assert deviation(found.numpy(), model.forward_features(x).numpy()).l2 <= (
            G1_FORWARD
        )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnetaa50d", marks=pytest.mark.slow),
        "senet154",
        pytest.param("resnetblur18", marks=pytest.mark.slow),
    ],
)
def test_with_an_output_stride_the_flax_twin_is_the_torch_twin(name: str):
    config = shallow(name, output_stride=8).replace(widths=(32, 32, 32, 32))
    ours = resnet_torch.create_model(config)
    state = parity.random_state(parity.entries(ours), seed=0)
    parity.load_state_dict(ours, state)
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 57))
    ours.double().eval()
    with torch.no_grad():
        expected = ours(torch.from_numpy(x)).numpy()
    with jax.enable_x64(True):
        twin = flax_like(ours, "float64")
        twin.eval()
        found, _ = run_flax(twin, x)
    assert deviation(found, expected).l2 <= G1_FORWARD
