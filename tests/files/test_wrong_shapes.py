"""Entries that hold a network's values in another shape, and what no shape can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import parity
from parity.errors import CheckpointError
from parity.weights.dialects import DIALECTS
from parity.weights.dialects import dialect as dialects
from parity.weights.digest import differing_bits
from parity.weights.twins import abstract_flax, abstract_torch
from resnet_spec import ResNetConfig
from tests.support.networks import TINY, TINY_BOTTLENECK, random_torch

SQUARE = TINY_BOTTLENECK.replace(num_classes=64)


def _said(path: Path, config: ResNetConfig | str | None = None) -> str:
    """Converts a bad file: one line, and nothing but it is there afterwards."""
    with pytest.raises(CheckpointError) as error:
        parity.convert(path, path.with_name("out.safetensors"), config=config)
    assert [*path.parent.iterdir()] == [path]
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert ". " in text
    return text


def _saved(path: Path, tensors: dict[str, torch.Tensor], **more: torch.Tensor) -> Path:
    torch.save(tensors | more, path)
    return path


@pytest.fixture(scope="module")
def square() -> dict[str, torch.Tensor]:
    """Of a network whose head has as many classes as features."""
    return random_torch(SQUARE).state_dict()


@pytest.mark.parametrize("config", [None, TINY])
@pytest.mark.parametrize("name", ["bn1.bias", "layer2.1.bn2.running_mean", "fc.bias"])
def test_row_85_a_vector_that_would_be_broadcast_or_flattened(
    path: Path, tensors, name: str, config: ResNetConfig | None
):
    vector = tensors[name]
    size = len(vector)
    shapes: list[torch.Tensor] = [vector[:1], vector[0], vector[None], vector[:, None]]
    shapes += [vector[None, :, None, None], vector.repeat(2)[: size + 1]]
    if size % 2 == 0:
        shapes.append(vector.reshape(2, -1))
    for odd in shapes:
        _saved(path, {**tensors, name: odd})
        found = f"wrong shape: {name} {tuple(odd.shape)}, expected ({size},)"
        said = _said(path, config)
        assert found in said
        assert "num_classes" not in said  # the head has as many rows as it should


@pytest.mark.parametrize("name", DIALECTS)
def test_no_dialect_takes_one_shape_of_a_norm_for_another(tmp_path: Path, name: str):
    dialect = DIALECTS[name]
    config = ResNetConfig(block="bottleneck", layers=(1, 1), widths=(32, 64))
    config = config.replace(**{s: v[0] for s, v in dialect.allowed.items()})
    state = parity.random_state(parity.entries(abstract_torch(config)), seed=0)
    written = dialects.write(dialect, config, state)
    norm = next(n for n, p in dialect.table(config).items() if p.role == "norm")
    there = dialect.names(config, dialect.scope(config))[norm]
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(written, path)
    parity.convert(path, tmp_path / "good.npz", dialect=name, to="torchvision")
    (tmp_path / "good.npz").unlink()
    values = written[there]
    for odd in (values.reshape(2, -1), values.reshape(-1, 1), values.reshape(1, -1)):
        safetensors.numpy.save_file({**written, there: odd}, path)
        with pytest.raises(CheckpointError) as error:
            parity.convert(path, tmp_path / "out.npz", dialect=name)
        assert str(odd.shape) in str(error.value)
        assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer1.0.conv1.weight", lambda kernel: kernel.reshape(8, -1)),
        ("layer1.0.conv1.weight", lambda kernel: kernel[None]),
        ("layer1.0.conv1.weight", lambda kernel: kernel[:4]),
        ("layer2.0.conv2.weight", lambda kernel: kernel.permute(2, 3, 1, 0)),
        ("layer2.0.downsample.0.weight", lambda kernel: kernel[:, :, 0, 0]),
        ("fc.weight", lambda weight: weight.t()),
        ("fc.weight", lambda weight: weight[:, :, None, None]),
        ("fc.weight", lambda weight: weight[0]),
    ],
)
def test_rows_82_and_83_a_kernel_of_another_layout_is_named(
    path: Path, tensors, name: str, change: Any
):
    odd = change(tensors[name]).contiguous()
    _saved(path, {**tensors, name: odd})
    for config in (None, TINY):
        said = _said(path, config)
        assert f"{name} {tuple(odd.shape)}" in said or (
            f"{name} is {tuple(odd.shape)} beside " in said and config is None
        )


def test_rows_83_and_84_a_square_kernel_transposed_is_known_by_its_digest_alone(
    tmp_path: Path, square
):
    names = ("layer1.0.conv1.weight", "fc.weight", "layer1.1.conv2.weight")
    names = [
        n for n in names if n in square and square[n].shape[0] == square[n].size(1)
    ]
    assert "fc.weight" in names
    path, target = tmp_path / "w.safetensors", tmp_path / "out.npz"
    parity.save(path, {n: t.numpy() for n, t in square.items()}, config=SQUARE)
    whole = path.read_bytes()
    for name in names:
        kernel = square[name].numpy()
        turned = np.ascontiguousarray(kernel.swapaxes(0, 1))
        damaged = whole.replace(kernel.tobytes(), turned.tobytes())
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not those that were written"):
            parity.convert(path, target)
        # A file of others has the same names and shapes either way: it is read as it
        # is, bit for bit, and said to be unverified.
        other = {n: t.numpy() for n, t in square.items()} | {name: turned}
        safetensors.numpy.save_file(other, tmp_path / "other.safetensors")
        done = parity.convert(tmp_path / "other.safetensors", target)
        assert "it has no checksums; its values are unverified" in done.notes
        assert differing_bits(parity.load(target), other) == {}
        target.unlink()


def test_row_86_one_input_channel_says_what_would_fit(path: Path, tensors):
    _saved(path, {**tensors, "conv1.weight": tensors["conv1.weight"][:, :1]})
    said = _said(path, TINY)
    assert "conv1.weight (8, 1, 7, 7), expected (8, 3, 7, 7)" in said
    assert "Make the model with in_channels=1" in said
    done = parity.convert(path, path.with_name("gray.safetensors"))
    assert done.config == TINY.replace(in_channels=1)


def test_row_87_a_kernel_of_other_groups(path: Path):
    state = random_torch(TINY_BOTTLENECK).state_dict()
    name = "layer2.1.conv2.weight"
    kernel = state[name]
    for odd in (torch.cat([kernel, kernel], 1), kernel[:, :8], kernel[:, :5]):
        _saved(path, {**state, name: odd})
        found = f"wrong shape: {name} {tuple(odd.shape)}, expected (32, 16, 3, 3)"
        for config in (None, TINY_BOTTLENECK):
            assert found in _said(path, config)
    all_of_one = TINY_BOTTLENECK.replace(groups=4, width_per_group=32)
    _saved(path, random_torch(all_of_one).state_dict())
    assert "wrong shape: layer1.0.conv2.weight (16, 4, 3, 3)" in _said(
        path, TINY_BOTTLENECK
    )


@pytest.mark.parametrize(
    ("stem", "name"),
    [("deep", "conv1.0.weight"), ("tiered", "conv1.0.weight"), ("3x3", "conv1.weight")],
)
def test_row_88_another_stem_is_not_taken_for_the_usual_one(
    path: Path, tensors, stem: Any, name: str
):
    other = TINY.replace(stem=stem)
    state = random_torch(other).state_dict()
    _saved(path, state)
    said = _said(path, TINY)
    assert name in said
    assert tuple(state[name].shape)[2:] == (3, 3)
    done = parity.convert(path, path.with_name("out.safetensors"))
    assert done.config == other
    path.with_name("out.safetensors").unlink()
    if stem == "3x3":  # the body tells nothing of the stem, the kernel all
        _saved(path, {**tensors, name: tensors[name][:, :, 2:5, 2:5]})
        assert "conv1.weight (8, 3, 3, 3), expected (8, 3, 7, 7)" in _said(path, TINY)
    else:
        _saved(path, {**state, **tensors})
        assert name in _said(path, TINY)


@pytest.mark.parametrize("abstract", [abstract_torch, abstract_flax])
def test_nothing_of_a_wrong_shape_reaches_either_twin(tensors, abstract: Any):
    model = random_torch(TINY)
    before = parity.digest_of(model)
    for name in ("bn1.bias", "fc.bias", "layer1.0.bn1.running_var"):
        for odd in (tensors[name][None], tensors[name][:1], tensors[name][0]):
            for other in (model, abstract(TINY)):
                with pytest.raises(CheckpointError, match=f"wrong shape: {name}"):
                    parity.load_state_dict(other, {**tensors, name: odd})
    assert parity.digest_of(model) == before
