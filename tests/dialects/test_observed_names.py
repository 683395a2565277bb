"""Networks under the names, and in the wrappers, that libraries were seen to write.

None of these libraries comes with the tests; ``docs/dialects.md`` says how each was
run. Here what they write is made anew, by rules that share nothing with the dialects,
and computed by functions that share nothing with the twins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

import parity
from parity.weights.twins import abstract_torch
from tests.dialects.plain_network import Names, Pair, Plain

KUANGLIU = Names(
    stem=(("conv1", "bn1"),),
    block=lambda s, b, i: (
        f"layer{s + 1}.{b}.conv{i + 1}",
        f"layer{s + 1}.{b}.bn{i + 1}",
    ),
    shortcut=lambda s: (f"layer{s + 1}.0.shortcut.0", f"layer{s + 1}.0.shortcut.1"),
    head="linear",
)
BONSAI = Names(
    stem=(("stem.conv", "stem.bn"),),
    block=lambda s, b, i: (
        f"layer{s}.blocks.{b}.conv{i}",
        f"layer{s}.blocks.{b}.bn{i}",
    ),
    shortcut=lambda s: (
        f"layer{s}.blocks.0.downsample.conv",
        f"layer{s}.blocks.0.downsample.bn",
    ),
    head="fc",
)


def hub(convolutions: int, head: str) -> Names:
    """KerasHub's: blocks are counted from 0, and so is what stands on a shortcut."""

    def pair(path: str) -> Pair:
        return f"{path}_conv", f"{path}_bn"

    return Names(
        stem=tuple(pair(f"conv{i + 1}") for i in range(convolutions)),
        block=lambda s, b, i: pair(f"stack{s}_block{b}_{i + 1}"),
        shortcut=lambda s: pair(f"stack{s}_block0_0"),
        head=head,
    )


def detectron(head: str) -> Names:
    def pair(path: str) -> Pair:
        return path, f"{path}.norm"

    return Names(
        stem=(pair("stem.conv1"),),
        block=lambda s, b, i: pair(f"res{s + 2}.{b}.conv{i + 1}"),
        shortcut=lambda s: pair(f"res{s + 2}.0.shortcut"),
        head=head,
    )


def openmmlab(stem: tuple[Pair, ...], first: tuple[int, int], head: str) -> Names:
    """Their names; the projections' numbers are those of stage 1, and of others."""

    def block(s: int, b: int, i: int) -> Pair:
        path = f"layer{s + 1}.{b}"
        return f"{path}.conv{i + 1}", f"{path}.bn{i + 1}"

    def shortcut(s: int) -> Pair:
        path, number = f"layer{s + 1}.0.downsample", first[min(s, 1)]
        return f"{path}.{number}", f"{path}.{number + 1}"

    return Names(stem=stem, block=block, shortcut=shortcut, head=head)


def under(prefix: str, names: Names) -> Names:
    """The same below another module; the head is not."""

    def below(pair: Pair) -> Pair:
        return f"{prefix}.{pair[0]}", f"{prefix}.{pair[1]}"

    return Names(
        stem=tuple(below(pair) for pair in names.stem),
        block=lambda s, b, i: below(names.block(s, b, i)),
        shortcut=lambda s: below(names.shortcut(s)),
        head=names.head,
    )


MODULES = tuple((f"stem.{i}.conv", f"stem.{i}.bn") for i in range(3))
NUMBERS = tuple((f"stem.{3 * i}", f"stem.{3 * i + 1}") for i in range(3))
ONE = (("conv1", "bn1"),)


@dataclass(frozen=True)
class Observed:
    """A network of a library, and how it is written there.

    Args:
        dialect: by whose name it must be recognised.
        plain: the network.
        name: of the file.
        some: names that were seen in the library's own file, and their shapes.
        settings: of the network, where they are not the usual ones.
        wrapper: entry that has the state → what stands beside it.
        counted: whether norms have counters.
        prefix: what stands before every name.
    """

    dialect: str
    plain: Plain
    name: str
    some: dict[str, tuple[int, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    wrapper: str = ""
    counted: bool = True
    prefix: str = ""


BESIDE: dict[str, dict[str, Any]] = {
    "net": {"acc": 93.5, "epoch": 12},
    "state_dict": {"meta": {"epoch": 3, "mmengine_version": "0.10.7"}},
    "model": {"iteration": 89999},
}
DEEP = {"stem": "deep", "shortcut": "D"}

OBSERVED = {
    "kuangliu": Observed(
        "kuangliu",
        Plain(KUANGLIU, (1, 2, 1), basic=True, small=True, width=8),
        "ckpt.pth",
        {"module.layer2.0.shortcut.0.weight": (16, 8, 1, 1)},
        {"stem": "3x3"},
        wrapper="net",
        prefix="module.",
    ),
    "kuangliu bottleneck": Observed(
        "kuangliu",
        Plain(KUANGLIU, (1, 2, 1), small=True, width=8),
        "ckpt.pth",
        {"layer1.0.shortcut.1.running_var": (32,), "linear.bias": (7,)},
        {"stem": "3x3"},
        wrapper="net",
    ),
    "bonsai": Observed(
        "bonsai",
        Plain(BONSAI, (1, 2)),
        "model.safetensors",
        {
            "stem.conv.kernel": (7, 7, 3, 64),
            "layer1.blocks.1.conv0.kernel": (1, 1, 512, 128),
            "layer0.blocks.0.downsample.bn.var": (256,),
            "fc.kernel": (512, 7),
        },
    ),
    "keras-hub": Observed(
        "keras-hub",
        Plain(hub(1, ""), (1, 2), basic=True),
        "model.weights.h5",
        {"stack1_block0_0_conv": (1, 1, 64, 128), "stack0_block0_1_bn": (64,)},
    ),
    "keras-hub classifier": Observed(
        "keras-hub",
        Plain(hub(1, "predictions"), (1, 2)),
        "model.weights.h5",
        {"stack0_block0_0_conv": (1, 1, 64, 256), "predictions": (512, 7)},
    ),
    "keras-hub vd": Observed(
        "keras-hub",
        Plain(hub(3, "predictions"), (1, 2), pooled=True),
        "model.weights.h5",
        {"conv1_conv": (3, 3, 3, 32), "conv3_conv": (3, 3, 32, 64)},
        DEEP,
    ),
    "detectron2": Observed(
        "detectron2",
        Plain(detectron(""), (1, 2)),
        "model_final.pth",
        {"res3.0.shortcut.norm.running_mean": (512,)},
        wrapper="model",
        counted=False,  # FrozenBatchNorm2d has none
    ),
    "detectron2 classifier": Observed(
        "detectron2",
        Plain(detectron("linear"), (1, 2, 1), basic=True),
        "model_final.pth",
        {"stem.conv1.norm.num_batches_tracked": ()},
        wrapper="model",
    ),
    "mmpretrain": Observed(
        "mmpretrain",
        Plain(under("backbone", openmmlab(ONE, (0, 0), "head.fc")), (1, 2), basic=True),
        "epoch_100.pth",
        {"backbone.layer2.0.downsample.0.weight": (128, 64, 1, 1)},
        wrapper="state_dict",
    ),
    "mmpretrain V1c": Observed(
        "mmpretrain",
        Plain(under("backbone", openmmlab(MODULES, (0, 0), "head.fc")), (1, 2)),
        "epoch_100.pth",
        {"backbone.layer2.0.downsample.0.weight": (512, 256, 1, 1)},
        {"stem": "deep"},
        wrapper="state_dict",
    ),
    "mmpretrain V1d": Observed(
        "mmpretrain",
        Plain(
            under("backbone", openmmlab(MODULES, (0, 1), "head.fc")),
            (1, 2),
            pooled=True,
        ),
        "epoch_100.pth",
        {
            "backbone.stem.0.conv.weight": (32, 3, 3, 3),
            "backbone.stem.2.bn.running_var": (64,),
            "backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "backbone.layer2.0.downsample.1.weight": (512, 256, 1, 1),
        },
        DEEP,
        wrapper="state_dict",
    ),
    "mmdetection V1d": Observed(
        "mmdetection",
        Plain(openmmlab(NUMBERS, (1, 1), ""), (1, 2), pooled=True),
        "backbone.pth",
        {
            "stem.6.weight": (64, 32, 3, 3),
            "stem.7.running_var": (64,),
            "layer1.0.downsample.1.weight": (256, 64, 1, 1),
        },
        DEEP,
        wrapper="state_dict",
    ),
    "mmdetection V1c": Observed(
        "mmdetection",
        Plain(openmmlab(NUMBERS, (0, 0), ""), (1, 2)),
        "backbone.pth",
        {"backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1)},
        {"stem": "deep"},
        wrapper="state_dict",
        prefix="backbone.",
    ),
}

NNX = {"running_mean": "mean", "running_var": "var"}
KERAS = ("weight", "bias", "running_mean", "running_var")


def write_torch(path: Path, of: Observed, state: dict[str, np.ndarray]) -> Any:
    found = {of.prefix + name: torch.from_numpy(a) for name, a in state.items()}
    if of.counted:
        for name in [n for n in found if n.endswith(".running_var")]:
            path_, _, _ = name.rpartition(".")
            found[f"{path_}.num_batches_tracked"] = torch.tensor(11)
    torch.save({of.wrapper: found, **BESIDE[of.wrapper]}, path)
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def turned(array: np.ndarray) -> np.ndarray:
    """A kernel as HWIO, a linear weight as input by output."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return array if axes is None else np.ascontiguousarray(array.transpose(axes))


def write_nnx(path: Path, of: Observed, state: dict[str, np.ndarray]) -> Any:
    found = {}
    for name, array in state.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight":
            leaf = "kernel" if array.ndim > 1 else "scale"
        found[f"{layer}.{NNX.get(leaf, leaf)}"] = turned(array)
    safetensors.numpy.save_file(found, path)
    return {name: array.shape for name, array in found.items()}


def write_keras(path: Path, of: Observed, state: dict[str, np.ndarray]) -> Any:
    """As Keras 3 does, where a classifier holds its backbone as one of its layers."""
    layers = dict.fromkeys(name.rpartition(".")[0] for name in state)
    nested = "layers/res_net_backbone/" if of.plain.names.head else ""
    counted: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for layer in layers:
            arrays = [state[n] for leaf in KERAS if (n := f"{layer}.{leaf}") in state]
            kind = {4: "conv2d", 2: "dense", 1: "batch_normalization"}[arrays[0].ndim]
            number = counted[kind] = counted.get(kind, -1) + 1
            place = "" if kind == "dense" else nested
            ending = f"_{number}" if number else ""
            group = file.create_group(f"{place}layers/{kind}{ending}/vars")
            group.attrs["name"] = layer
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=turned(array))
        file.create_group("layers/activation/vars").attrs["name"] = "conv1_relu"
    return {layer: turned(state[f"{layer}.weight"]).shape for layer in layers}


WRITERS: dict[str, Callable[[Path, Observed, dict[str, np.ndarray]], Any]] = {
    ".pth": write_torch,
    ".safetensors": write_nnx,
    ".h5": write_keras,
}


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def of_twin(config: Any, state: Any, images: np.ndarray) -> np.ndarray:
    twin = abstract_torch(config, param_dtype="float64")
    parity.load_state_dict(twin, parity.cast(state, "float64"))
    with torch.no_grad():
        return twin(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("of", OBSERVED.values(), ids=[*OBSERVED])
def test_what_libraries_write_is_the_network_that_they_compute(
    tmp_path: Path, of: Observed
):
    path, state = tmp_path / of.name, of.plain.state()
    shapes = WRITERS[path.suffix](path, of, state)
    assert of.some.items() <= shapes.items()
    found = parity.load(path)
    config = found.config
    assert found.dialect == of.dialect
    assert config is not None
    expected: dict[str, Any] = {
        "block": "basic" if of.plain.basic else "bottleneck",
        "layers": of.plain.blocks,
        "include_top": bool(of.plain.names.head),
        **of.settings,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    for size in ((32, 32), (31, 27)):
        images = np.random.default_rng(0).standard_normal((2, 3, *size))
        there = of.plain(state, images)
        assert distance(of_twin(config, found, images), there) < 1e-12
    apart = of_twin(config.replace(norm_eps=1e-3), found, images)
    assert distance(apart, there) > 1e-5


@pytest.mark.parametrize("of", OBSERVED.values(), ids=[*OBSERVED])
def test_what_is_written_back_has_their_names_and_values(tmp_path: Path, of: Observed):
    path, state = tmp_path / of.name, of.plain.state()
    WRITERS[path.suffix](path, of, state)
    target = tmp_path / f"back{''.join(path.suffixes)}"
    source = parity.load(path)
    parity.convert(path, target, to=of.dialect, config=source.config)
    if path.suffix == ".pth":
        found = torch.load(target, weights_only=True)
        found = {n: t.numpy() for n, t in found.items() if "num_batches" not in n}
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[name], state[name]) for name in state)
    else:
        again = parity.load(target)
        assert (again.dialect, again.config) == (of.dialect, source.config)
        for name, array in source.items():
            np.testing.assert_array_equal(again[name], array, strict=True)


@pytest.mark.parametrize("name", ["detectron2", "mmpretrain", "mmdetection V1d"])
def test_where_a_bottleneck_strides_is_said_to_be_assumed(tmp_path: Path, name: str):
    of = OBSERVED[name]
    path = tmp_path / of.name
    plain = Plain(of.plain.names, of.plain.blocks, pooled=of.plain.pooled, on_1x1=True)
    write_torch(path, of, state := plain.state())
    found = parity.load(path)
    assert "stride_on" in found.guessed
    assert found.config is not None
    images = np.random.default_rng(0).standard_normal((2, 3, 33, 48))
    there = plain(state, images)
    config = found.config.replace(stride_on="1x1")
    assert distance(of_twin(config, found, images), there) < 1e-12
    assert distance(of_twin(found.config, found, images), there) > 1e-3


def test_a_projection_where_no_shape_changes_is_another_network(tmp_path: Path):
    """KerasHub's basic blocks ``vd`` project in the first stage, too."""
    of = OBSERVED["keras-hub vd"]
    plain = Plain(of.plain.names, (1, 2), basic=True, pooled=True)
    state, names = plain.state(), of.plain.names.shortcut(0)
    state[f"{names[0]}.weight"] = np.ones((64, 64, 1, 1), np.float32)
    for leaf in KERAS:
        state[f"{names[1]}.{leaf}"] = np.ones(64, np.float32)
    write_keras(tmp_path / of.name, of, state)
    said = r"no network known here .*stack0_block0_0_conv\.kernel stands where"
    with pytest.raises(parity.CheckpointError, match=said) as caught:
        parity.convert(tmp_path / of.name, tmp_path / "out.pth")
    assert "--ignore 'stack" not in str(caught.value)
