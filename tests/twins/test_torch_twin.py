"""The torch twin against torchvision, which is the oracle."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import parity
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import FLOAT64_BUFFERS, G1_FORWARD
from tests.support.networks import (
    TINY,
    TORCHVISION_NAMES,
    random_torch,
    without_large_ones,
)

SIZES = [(64, 48), (65, 49)]  # on odd sizes 'SAME' padding would look right


def _meta(create, name: str, **settings) -> nn.Module:
    with torch.device("meta"):
        return create(name, **settings)


def _torchvision(name: str, **settings) -> nn.Module:
    return torchvision.models.get_model(name, **settings)


def _pair(name: str, **settings) -> tuple[Any, Any]:
    """Returns torchvision's network and ours with one random state, in float64."""
    theirs, ours = (
        _meta(create, name, **settings).to_empty(device="cpu").double()
        for create in (_torchvision, resnet_torch.create_model)
    )
    state = parity.cast(parity.random_state(parity.entries(theirs), seed=1), "float64")
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    for model in (theirs, ours):
        model.load_state_dict(tensors)
    return theirs, ours


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_keys_shapes_order_and_dtypes_are_torchvisions(name: str):
    ours, theirs = (
        [(k, v.shape, v.dtype) for k, v in _meta(create, name).state_dict().items()]
        for create in (resnet_torch.create_model, _torchvision)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_it_prints_what_torchvision_prints(name: str):
    ours, theirs = (
        str(_meta(create, name)) for create in (resnet_torch.create_model, _torchvision)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", without_large_ones(TORCHVISION_NAMES))
def test_logits_and_statistics_are_torchvisions(name: str):
    theirs, ours = _pair(name)
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected, found = theirs.eval()(x), ours.eval()(x)
            assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD
    x = torch.randn(2, 3, 65, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs.train()(x), ours.train()(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD
    after = ours.state_dict()
    for key, value in theirs.state_dict().items():
        found = deviation(after[key].numpy(), value.numpy())
        assert found.l2 <= FLOAT64_BUFFERS, key


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_large_images_give_torchvisions_logits(name: str):
    # A fixed 7x7 average pool would pass at 224.
    theirs, ours = _pair(name)
    x = torch.randn(1, 3, 288, 320, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs.eval()(x), ours.eval()(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD


@pytest.mark.parametrize(
    "dilated", [(False, False, True), (False, True, True), (True, False, True)]
)
def test_dilated_networks_give_torchvisions_logits(dilated: tuple[bool, ...]):
    theirs, ours = _pair("resnet50", replace_stride_with_dilation=dilated)
    assert str(ours) == str(theirs)
    x = torch.randn(2, 3, 65, 48, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs.eval()(x), ours.eval()(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD


def test_v1_has_the_same_keys_and_other_logits():
    v1, v15 = random_torch("resnet50_v1").eval(), random_torch("resnet50").eval()
    assert parity.digest_of(v1) == parity.digest_of(v15)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(v1(x), v15(x))
    strides = [
        (block.conv1.stride, block.conv2.stride)
        for block in (v1.layer2[0], v15.layer2[0])
    ]
    assert strides == [((2, 2), (1, 1)), ((1, 1), (2, 2))]


def test_random_weights_have_torchvisions_distributions():
    # Kolmogorov-Smirnov at about 5 sigma: distance over sqrt(2/n) stays below 3.
    torch.manual_seed(0)
    theirs, ours = _torchvision("resnet18"), resnet_torch.create_model("resnet18")
    after = ours.state_dict()
    compared = 0
    for key, value in theirs.state_dict().items():
        a, b = (np.sort(v.double().numpy().ravel()) for v in (value, after[key]))
        if len(a) > 1 and a[0] != a[-1]:
            points = np.concatenate([a, b])
            ranks = [np.searchsorted(v, points, side="right") / len(v) for v in (a, b)]
            assert np.abs(ranks[0] - ranks[1]).max() < 3 * (2 / len(a)) ** 0.5, key
            compared += 1
        else:
            assert np.array_equal(a, b), key
    assert compared == 22  # every kernel, and the linear layer's weight and bias


def test_zero_init_residual_zeroes_the_scales_that_torchvision_zeroes():
    for name in ("resnet18", "resnet50"):
        zeros = [
            {
                k
                for k, v in create(name, zero_init_residual=True).state_dict().items()
                if k.endswith("weight") and not v.any()
            }
            for create in (_torchvision, resnet_torch.create_model)
        ]
        assert zeros[0] == zeros[1]
        assert len(zeros[0]) == {"resnet18": 8, "resnet50": 16}[name]


def test_a_generator_decides_the_weights_and_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    models: list[Any] = [
        resnet_torch.create_model(TINY, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    a, b, c = models
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)


def test_without_a_generator_torchs_seed_decides():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(resnet_torch.create_model(TINY))
    assert torch.equal(models[0].conv1.weight, models[1].conv1.weight)


def test_state_goes_into_torchvision_and_back():
    ours = random_torch("resnet18")
    theirs = _torchvision("resnet18")
    theirs.load_state_dict(ours.state_dict())
    back = resnet_torch.create_model("resnet18")
    back.load_state_dict(theirs.state_dict())
    assert parity.digest_of(back) == parity.digest_of(ours)


def test_features_are_the_maps_that_the_stages_hand_on():
    theirs, ours = _pair("resnet18")
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        maps = ours.eval().features(x)
        theirs.eval()
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
            if name != "stem":
                expected = getattr(theirs, name)(expected)
            assert deviation(maps[name].numpy(), expected.numpy()).l2 <= G1_FORWARD
    assert list(maps) == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_without_top_it_ends_with_the_last_map():
    model = random_torch(TINY.replace(include_top=False)).eval()
    x = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(model(x), model.features(x)["layer2"])
    assert not [key for key in model.state_dict() if key.startswith("fc")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_computes_in_the_dtype_it_is_moved_to(dtype: torch.dtype):
    model = random_torch(TINY).to(dtype).eval()
    with torch.no_grad():
        y = model(torch.randn(2, 3, 40, 40, dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert model.bn1.num_batches_tracked.dtype == torch.int64


def test_the_usual_tools_take_it():
    model = random_torch(TINY).eval()
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(copy.deepcopy(model)(x), y)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), y)
        exported = torch.export.export(model, (x,)).module()
        assert deviation(exported(x).numpy(), y.numpy()).l2 < 1e-6


def test_a_name_may_be_a_configuration_and_settings_override_it():
    model: Any = resnet_torch.create_model(TINY, num_classes=3, norm_eps=1e-3)
    assert model.fc.out_features == 3
    assert model.config == TINY.replace(num_classes=3, norm_eps=1e-3)
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
