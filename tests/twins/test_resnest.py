"""Split attention and the means around it: what is done with such networks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from flax import nnx

import parity
import resnet_flax
import resnet_torch
from parity.judging.distance import deviation
from parity.judging.tolerances import CEILINGS, FLOAT64_BUFFERS, G1_FORWARD
from parity.weights.digest import differing_bits
from parity.weights.identify import guessed, identify
from resnet_onnx import graph
from resnet_spec import ResNetConfig, get_config, timm_name
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    flax_like,
    images,
    random_torch,
    run_flax,
)
from tests.twins.test_family import shallow

FLOAT32 = CEILINGS["float32"].ceiling

SPLIT = TINY_BOTTLENECK.replace(radix=2, anti_alias="avd", shortcut="D")

CONFIGS = {
    "behind": SPLIT,
    "before": SPLIT.replace(radix=4, anti_alias="avd_first"),
    "by itself": SPLIT.replace(radix=1, anti_alias="none", conv_bias=True),
    "no split": SPLIT.replace(radix=0),
    "group norm": SPLIT.replace(norm="group", norm_groups=4, attention="se"),
    "a signal": SPLIT.replace(
        head="signal", dimensions=1, signal_width=64, stem="3x3", in_channels=1
    ),
    "dilated": SPLIT.replace(output_stride=4),
}


def _size(config: ResNetConfig, *, odd: bool = True) -> tuple[int, int]:
    return (1, 64) if config.dimensions == 1 else (40, 33) if odd else (64, 32)


@pytest.mark.parametrize("kind", CONFIGS)
def test_both_twins_and_the_graph_compute_the_same(kind: str):
    config = CONFIGS[kind]
    model = random_torch(config).eval()
    state = parity.state_dict(model)
    assert config.weight_count == sum(p.numel() for p in model.parameters())
    made = graph(config, state).SerializeToString()
    fused = parity.state_dict(resnet_torch.fuse(model))
    for weights in (made, graph(config, fused).SerializeToString()):
        session = onnxruntime.InferenceSession(
            weights, providers=["CPUExecutionProvider"]
        )
        for odd in (False, True):
            x = images(config, *_size(config, odd=odd)).astype(np.float32)
            with torch.no_grad():
                expected = model(torch.from_numpy(x)).numpy()
                again = resnet_torch.fuse(model)(torch.from_numpy(x)).numpy()
            found = np.asarray(session.run(None, {"images": x})[0])
            for ours in (found, again):
                assert deviation(ours, expected).l2 <= FLOAT32
    x = images(config, *_size(config))
    model.double()
    with jax.enable_x64(True):
        twin = flax_like(model, "float64")
        for training in (False, True):
            twin.train() if training else twin.eval()
            found, used = run_flax(twin, x)
            with torch.no_grad():
                expected = model.train(training)(torch.from_numpy(x)).numpy()
            found = found.reshape(expected.shape)
            assert deviation(found, expected).l2 <= FLOAT64_BUFFERS
        after = parity.state_dict(used)
    for key, value in parity.state_dict(model).items():
        assert deviation(after[key], value).l2 <= FLOAT64_BUFFERS, key


def test_a_mean_for_a_stride_without_splits_is_timms_too():
    config = shallow("resnest14d").replace(radix=0)
    how: dict[str, Any] = {"channels": config.widths, "layers": config.layers}
    for option, first in (("avd", False), ("avd_first", True)):
        theirs: Any = timm.create_model(
            "resnest14d",
            num_classes=11,
            block_args={"radix": 0, "avd": True, "avd_first": first},
            **how,
        )
        ours = random_torch(config.replace(anti_alias=option))
        assert parity.entries(ours) == parity.entries(theirs)
        parity.load_state_dict(theirs, parity.state_dict(ours))
        for size in ((64, 32), (35, 49)):
            x = torch.randn(2, 3, *size, dtype=torch.float64)
            with torch.no_grad():
                found, expected = (m.double().eval()(x) for m in (ours, theirs))
            assert deviation(found.numpy(), expected.numpy()).l2 <= G1_FORWARD


def test_both_twins_drop_the_same_in_front_of_the_rectifier():
    config = SPLIT.replace(
        layers=(1, 1, 1), widths=(8, 8, 8), drop_block_rate=0.3, drop_path_rate=0.2
    )
    model = random_torch(config).double().train()
    x = images(config, 97, 130, n=3)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
        kept = model.eval()(torch.from_numpy(x)).numpy()
    with jax.enable_x64(True):
        twin = flax_like(random_torch(config).double(), "float64")
        found, _ = run_flax(twin, x)
    assert deviation(found, expected).l2 <= FLOAT64_BUFFERS
    assert deviation(kept, expected).l2 > 0.01


@pytest.mark.slow
def test_the_check_passes_it_through_every_gate():
    model = random_torch(SPLIT)
    x = images(SPLIT, 40, 33).astype(np.float32)
    report = parity.check(model, flax_like(model), x)
    assert report.ok, report.verdict()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_scripted_and_compiled_like_others():
    model = random_torch(SPLIT).eval()
    x = torch.from_numpy(images(SPLIT, 40, 33).astype(np.float32))
    scripted: Any = torch.jit.script(model)
    compiled: Any = resnet_flax.compile(flax_like(model))
    with torch.no_grad():
        expected, found = model(x), scripted(x)
    assert deviation(found.numpy(), expected.numpy()).l2 <= FLOAT32
    ours = np.asarray(compiled(jnp.asarray(x.numpy().transpose(0, 2, 3, 1))))
    assert deviation(ours, expected.numpy()).l2 <= FLOAT32


def test_one_image_alone_has_no_statistics_of_means():
    model = random_torch(SPLIT).train()
    twin = flax_like(model)
    for network, x in (
        (model, torch.ones(1, 3, 40, 33)),
        (twin, jnp.ones((1, 40, 33, 3))),
    ):
        shape = re.escape(str(tuple(x.shape)))  # the images', not the means'
        with pytest.raises(ValueError, match=rf"got shape {shape}: it needs more than"):
            network(x)
        network.eval()
        network(x)
    groups = random_torch(CONFIGS["group norm"]).train()
    groups(torch.ones(1, 3, 40, 33))


def test_the_file_of_a_split_network_tells_its_radix_and_its_name_the_means(
    tmp_path: Path,
):
    config = get_config("resnest14d").replace(num_classes=3, widths=(8,) * 4)
    model = random_torch(config)
    shapes = {k: e.shape for k, e in parity.entries(model).items()}
    assert identify(shapes) == config.replace(anti_alias="none")
    assert "anti_alias" in guessed(config)
    for name, seen in (("w.pth", None), ("resnest14d-9c8fe254.pth", config)):
        path = tmp_path / name
        torch.save(model.state_dict(), path)
        assert parity.load(path).config == seen
    for framework in ("torch", "flax"):
        made = parity.create_model(config, framework, tmp_path / "w.pth")  # type: ignore[arg-type]
        assert made.config == config
        assert differing_bits(parity.state_dict(made), parity.state_dict(model)) == {}
    assert timm_name(config.replace(widths=(64, 128, 256, 512))) == "resnest14d"


@pytest.mark.parametrize("dialect", parity.DIALECTS)
def test_a_library_without_splits_refuses_them_and_others_give_them_back(
    dialect: str, tmp_path: Path
):
    model = random_torch(SPLIT.replace(shortcut="B", groups=1, num_classes=1000))
    whole = tmp_path / "whole.safetensors"
    parity.save(whole, model)
    path = tmp_path / "theirs.safetensors"
    if dialect in ("torchvision", "nnx"):
        parity.convert(whole, path, to=dialect)
        assert differing_bits(parity.load(path), parity.state_dict(model)) == {}
        return
    said = "shortcut is 'B'" if dialect == "jax-resnest" else "radix is 2, there 0"
    with pytest.raises(parity.CheckpointError, match=said):
        parity.convert(whole, path, to=dialect)
    assert not path.exists()


@pytest.mark.parametrize(
    ("config", "settings", "match"),
    [
        (TINY, {"radix": 2}, "^radix is 2; it must be 0 in a basic block"),
        (TINY, {"anti_alias": "avd"}, "'none', 'average' or 'blur' with block 'basic'"),
        (SPLIT, {"radix": -1}, "^radix is -1; it must be 0 or a positive integer"),
        (SPLIT, {"radix": True}, "^radix is True"),
        (SPLIT, {"radix": 3}, "^radix is 3; .*times 2 groups, it divides 16"),
        (SPLIT, {"reduce_first": 2}, "^reduce_first is 2; it must be 1 with a radix"),
        (SPLIT, {"anti_alias": "blur"}, "^anti_alias is 'blur'; .*avd with a radix"),
        (SPLIT, {"stride_on": "1x1"}, "^anti_alias is 'avd'; .*stride_on '1x1'"),
        (
            SPLIT,
            {"groups": 3, "width_per_group": 192},
            "^groups is 3; .*a divisor of 40 with",
        ),
        (SPLIT, {"avd": True}, "did you mean 'anti_alias'"),
    ],
)
def test_what_goes_not_together_is_refused(
    config: ResNetConfig, settings: dict[str, Any], match: str
):
    with pytest.raises(ValueError, match=match):
        config.replace(**settings)


def test_its_maps_its_head_and_its_frozen_stages_are_like_others():
    model = random_torch(SPLIT)
    twin = flax_like(model)
    before = parity.state_dict(model)
    for network in (model, twin):
        network.freeze(2)
        network.train()
    x = images(SPLIT, 40, 33).astype(np.float32)
    model(torch.from_numpy(x))
    twin(jnp.asarray(x.transpose(0, 2, 3, 1)))
    for network in (model, twin):
        assert differing_bits(parity.state_dict(network), before) == {}
    assert isinstance(twin.layer1[0].conv2, nnx.Module)
    maps = parity.create_model(SPLIT, features_only=True, out_indices=(1,))
    assert maps.config.weight_count == sum(p.numel() for p in maps.parameters())
