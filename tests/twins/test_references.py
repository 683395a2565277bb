"""The networks of the references, written again here in plain torch functions.

An implementation of its own, driven by the names in a state alone: it shares nothing
with ``resnet_torch`` but the names of the weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  the name that everyone gives it
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import parity
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import G1_FORWARD
from resnet_spec import get_config
from tests.support.networks import random_torch

State = dict[str, Tensor]


def _conv(s: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    groups = x.shape[1] // weight.shape[1]
    padding = [n // 2 for n in weight.shape[2:]]
    return F.conv2d(x, weight, s.get(f"{key}.bias"), stride, padding, groups=groups)


def _norm(s: State, key: str, x: Tensor, eps: float) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (s[f"{key}.{name}"] for name in names)
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def _plain_block(s: State, key: str, x: Tensor, strides: list[int], eps: float):
    for i, stride in enumerate(strides, 1):
        x = _norm(s, f"{key}.bn{i}", _conv(s, f"{key}.conv{i}", x, stride), eps)
        if i < len(strides):
            x = F.relu(x)
    return x


def _shortcut(s: State, key: str, x: Tensor, like: Tensor, option: str, eps: float):
    stride = -(-x.shape[3] // like.shape[3])
    if f"{key}.downsample.0.weight" in s:
        x = _conv(s, f"{key}.downsample.0", x, stride)
        return _norm(s, f"{key}.downsample.1", x, eps)
    if option == "none":
        return torch.zeros_like(like)
    out = torch.zeros_like(like)  # option A, by assignment
    out[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
    return out


def reference(
    s: State, x: Tensor, *, option: str, v1: bool, pool: bool, eps: float
) -> Tensor:
    """Runs a network up to the last stage."""
    x = F.relu(_norm(s, "bn1", _conv(s, "conv1", x, 2 if pool else 1), eps))
    if pool:
        x = F.max_pool2d(x, 3, 2, 1)
    stage = 1
    while f"layer{stage}.0.conv1.weight" in s:
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in s:
            key = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            strides = [stride, 1]
            if f"{key}.conv3.weight" in s:
                strides = [stride, 1, 1] if v1 else [1, stride, 1]
            y = _plain_block(s, key, x, strides, eps)
            x = F.relu(y + _shortcut(s, key, x, y, option, eps))
            block += 1
        stage += 1
    return x


def _linear(s: State, key: str, x: Tensor) -> Tensor:
    return x @ s[f"{key}.weight"].T + s[f"{key}.bias"]


def _linear_head(s: State, x: Tensor) -> Tensor:
    return _linear(s, "fc", x.mean((2, 3)))


def _signal_head(s: State, x: Tensor) -> Tensor:
    x = F.avg_pool2d(x, (1, 4), (1, 4))
    return _linear(s, "fc", x.reshape(len(x), -1)).reshape(len(x), 1, 1, -1)


def _conv_head(s: State, x: Tensor) -> Tensor:
    x = _conv(s, "conv2", F.max_pool2d(x, 3, 2, 1))
    return _linear(s, "fc2", _linear(s, "fc1", x.reshape(len(x), -1)))


CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("resnet18", {}, (2, 3, 65, 48)),
    ("resnet50_v1", {}, (2, 3, 64, 49)),
    ("resnet50", {"conv_bias": True, "norm_eps": 1.001e-5}, (2, 3, 65, 48)),
    ("resnet50_v1", {"conv_bias": True}, (2, 3, 65, 48)),
    ("resnet18", {"shortcut": "A"}, (2, 3, 65, 48)),
    ("resnet18", {"shortcut": "C"}, (2, 3, 65, 48)),
    ("resnet50", {"shortcut": "A"}, (2, 3, 65, 48)),
    ("resnet50", {"shortcut": "C"}, (2, 3, 64, 49)),
    ("resnet50", {"shortcut": "none"}, (2, 3, 64, 49)),
    ("resnext50_32x4d", {"shortcut": "C"}, (2, 3, 64, 49)),
    ("plain18", {}, (2, 3, 65, 48)),
    ("plain34", {}, (2, 3, 64, 49)),
    ("cifar_resnet20", {}, (2, 3, 32, 32)),
    ("cifar_resnet20", {}, (2, 3, 33, 30)),
    ("cifar_resnet20", {"shortcut": "B"}, (2, 3, 32, 31)),
    ("cifar_plain32", {}, (2, 3, 32, 32)),
    ("cifar_resnet110", {}, (2, 3, 32, 32)),
    ("resnet18_1d", {}, (2, 1, 1, 1000)),
    ("resnet18_1d", {}, (2, 1, 1, 985)),
    ("resnet18_1d", {"signal_width": 333}, (2, 1, 1, 333)),
    ("resnet18_conv_head", {}, (1, 3, 384, 512)),
    ("resnet18_conv_head", {}, (1, 3, 256, 768)),
    ("resnet50_conv_head", {"num_classes": 5}, (1, 3, 512, 384)),
]


@pytest.mark.parametrize(("name", "settings", "shape"), CASES)
def test_the_torch_twin_is_the_reference(
    name: str, settings: dict[str, Any], shape: tuple[int, ...]
):
    config = get_config(name).replace(**settings)
    model = random_torch(config).double().eval()
    s = {key: value.detach() for key, value in model.state_dict().items()}
    x = torch.randn(shape, dtype=torch.float64)
    head = {"linear": _linear_head, "signal": _signal_head, "conv": _conv_head}
    expected = head[config.head](
        s,
        reference(
            s,
            x,
            option=config.shortcut,
            v1=config.stride_on == "1x1",
            pool=config.stem == "7x7",
            eps=config.norm_eps,
        ),
    )
    with torch.no_grad():
        found = model(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD


@pytest.mark.parametrize("name", ["resnet50d", "resnet18", "resnet50"])
def test_timms_network_has_the_same_keys_and_numbers(name: str):
    theirs, ours = timm.create_model(name), resnet_torch.create_model(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert parity.entries(ours) == parity.entries(theirs)
    state = parity.random_state(parity.entries(theirs), seed=0)
    for model in (theirs, ours):
        parity.load_state_dict(model, state)
        model.double().eval()
    for size in ((64, 48), (65, 49), (97, 130)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            found = deviation(ours(x).numpy(), theirs(x).numpy())
        assert found.l2 <= G1_FORWARD
    with FlopCounterMode(display=False) as counter:
        theirs(torch.empty(1, 3, 224, 224, dtype=torch.float64))
    total = sum(layer.multiply_adds for layer in parity.layers(ours, (3, 224, 224)))
    assert counter.get_total_flops() == 2 * total


_D = {"stem": "deep", "shortcut": "D"}

ANTI_ALIASED: dict[str, tuple[str, dict[str, Any]]] = {
    "resnetblur18": ("resnet18", {"anti_alias": "blur"}),
    "resnetblur50": ("resnet50", {"anti_alias": "blur"}),
    "resnetblur50d": ("resnet50", {"anti_alias": "blur", **_D}),
    "resnetblur101d": ("resnet101", {"anti_alias": "blur", **_D}),
    "resnetaa34d": ("resnet34", {"anti_alias": "average", **_D}),
    "resnetaa50": ("resnet50", {"anti_alias": "average"}),
    "resnetaa50d": ("resnet50", {"anti_alias": "average", **_D}),
    "resnetaa101d": ("resnet101", {"anti_alias": "average", **_D}),
}
"""timm's names, and what they are here."""


@pytest.mark.parametrize(
    "theirs",
    [
        pytest.param(name, marks=pytest.mark.slow if "101" in name else ())
        for name in ANTI_ALIASED
    ],
)
def test_timms_anti_aliased_network_has_the_same_keys_and_numbers(theirs: str):
    name, settings = ANTI_ALIASED[theirs]
    model = timm.create_model(theirs)
    config = get_config(name).replace(**settings)
    ours = resnet_torch.create_model(config)
    plain = resnet_torch.create_model(config.replace(anti_alias="none"))
    assert list(ours.state_dict()) == list(model.state_dict())
    state = parity.random_state(parity.entries(model), seed=0)
    for network in (model, ours, plain):
        parity.load_state_dict(network, state)
        network.double().eval()
    for size in ((64, 64), (96, 97)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = model(x).numpy()
            assert deviation(ours(x).numpy(), expected).l2 <= G1_FORWARD
            assert deviation(plain(x).numpy(), expected).l2 > 1e-3
    for network in (model, ours):
        network.train()
    x = torch.randn(2, 3, 66, 63, dtype=torch.float64)
    with torch.no_grad():
        found = deviation(ours(x).numpy(), model(x).numpy())
    assert found.l2 <= G1_FORWARD


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("resnet18_1d", (1, 1, 1, 984), "width 985 to 1016 fit"),
        ("resnet18_1d", (1, 1, 1, 1017), "width 985 to 1016 fit"),
        ("resnet18_1d", (1, 1, 9, 1000), "signals of height 1"),
        ("resnet18_1d", (1, 1, 248, 32), "signals of height 1"),
        ("resnet18_conv_head", (1, 3, 224, 224), "384x512, 512x384, 256x768"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_both_with_what_fits(
    name: str, shape: tuple[int, int, int, int], said: str
):
    import jax.numpy as jnp

    from tests.support.networks import flax_like

    model = random_torch(name).eval()
    twin = flax_like(model)
    with pytest.raises(ValueError, match=said):
        model(torch.zeros(shape))
    n, c, h, w = shape
    with pytest.raises(ValueError, match=said):
        twin(jnp.zeros((n, h, w, c)))
