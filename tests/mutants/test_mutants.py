"""The check can fail: faults of every kind, each killed by its gate and named."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from flax import nnx
from PIL import Image
from torch import nn

import parity
from parity import images
from parity.mutants import selftest
from parity.mutants.catalogue import CONTROLS, EQUIVALENTS, MUTANTS, NETWORKS, Mutant
from parity.mutants.selftest import Kill, fate
from parity.running.taps import path_of
from parity.weights import names
from parity.weights.digest import differing_bits
from parity.weights.flax_state import modules
from resnet_cli.main import main

QUICK = (
    "stem padded SAME",
    "one residual missing",
    "one tensor ×(1+1e-6)",
    "gradient ½ at 0 for ReLU",
    "a first convolution reduced twice",
    "another share of images that pass by",
)


def _marked(mutants: tuple[Mutant, ...], quick: tuple[str, ...] = QUICK) -> list[Any]:
    """Every mutant by its name; all but a few are slow."""
    return [
        pytest.param(
            m, id=m.name, marks=() if m.name in quick else pytest.mark.exhaustive
        )
        for m in mutants
    ]


# --- the Flax twin ------------------------------------------------------------------


def _settings(module: Any) -> dict[str, Any]:
    """A module's class and all that it holds, save other modules."""
    found: dict[str, Any] = {"class": type(module)}
    for name, value in vars(module).items():
        if isinstance(value, nnx.Variable):
            found[name] = np.asarray(value.get_value()).tobytes()
        elif not name.startswith("_") and not isinstance(value, nnx.Module):
            found[name] = value
    return found


def _changed(mutant: Mutant) -> set[str]:
    """The paths of the modules that a mutant changes."""
    _, right = mutant.twins()
    wrong = dict(modules(mutant.applied(right)))
    return {
        path
        for path, module in modules(right)
        if _settings(module) != _settings(wrong[path])
    }


@pytest.mark.parametrize("mutant", _marked(MUTANTS))
def test_a_mutant_is_killed_by_its_gates_and_named(mutant: Mutant):
    report = mutant.check(tuple(dict.fromkeys(("G0", *mutant.gates))))
    found = fate(mutant, report)
    # It computes, and computes something else: a mutant that raises proves nothing.
    assert not found.raised
    assert [gate.gate for gate in report.gates if not gate.ok] == list(mutant.gates)
    assert found.ok, found
    isolated = next((g for g in report.gates if "isolated" in g.gate), None)
    # No error travels: what is named is all that was changed, and nothing else is.
    # What drops at random is not run: its shares are compared.
    failures = (isolated or report.gate(mutant.gates[0])).failures
    assert {path_of(row.name) or "" for row in failures} == _changed(mutant)
    assert isolated is not None or {row.kind for row in failures} == {"dropout"}


@pytest.mark.parametrize("mutant", _marked((*CONTROLS, *EQUIVALENTS), ("no fault",)))
def test_what_changes_nothing_is_passed(mutant: Mutant):
    assert mutant.proof
    report = mutant.check(("G0", "G1", "G2", *mutant.passes))
    assert report.ok, report.verdict()


def test_every_number_of_the_list_has_a_mutant_or_a_proof():
    numbers = {mutant.number for mutant in (*MUTANTS, *EQUIVALENTS)}
    # 49 to 60 are the optimiser's, the losses' and the images'.
    assert numbers >= {*range(1, 49), *range(61, 89)}
    everything = [mutant.name for mutant in (*CONTROLS, *MUTANTS, *EQUIVALENTS)]
    assert len(everything) == len(set(everything))
    assert {mutant.network for mutant in MUTANTS} == set(NETWORKS)
    assert set(selftest.FAST) <= set(everything)


def test_a_mutant_leaves_the_twin_as_it_is():
    mutant = next(m for m in MUTANTS if m.name == "one tensor ×(1+1e-6)")
    torch_model, right = mutant.twins()
    before = parity.digest_of(right)
    assert parity.digest_of(mutant.applied(right)) != before
    assert parity.digest_of(right) == parity.digest_of(torch_model) == before


# --- a converter that is wrong in both directions -----------------------------------


def _axes(wrong: dict[int, tuple[int, ...]]) -> Callable[[int], tuple[int, ...]]:
    right = names._to_torch
    return lambda rank: wrong.get(rank) or right(rank)


_EXCHANGED = {**names.TORCH_LEAF, "mean": "running_var", "var": "running_mean"}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("patch", "network", "culprit"),
    [
        (("_to_torch", _axes({4: (3, 2, 1, 0)})), "basic", "conv1"),
        (("_to_torch", _axes({2: (0, 1)})), "square", "fc"),
        (("TORCH_LEAF", _EXCHANGED), "basic", "bn1"),
    ],
    ids=["kernels H/W swapped", "fc transposed", "mean/var exchanged"],
)
def test_a_converter_wrong_both_ways_passes_the_weights_but_not_the_algebra(
    patch: tuple[str, Any], network: str, culprit: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(names, *patch)
    mutant = Mutant(number=0, name="", apply=lambda model: None, network=network)
    report = mutant.check(("G0", "G1 isolated", "G1"))
    assert [gate.gate for gate in report.gates if gate.ok] == ["G0"]
    assert report.culprits[0] == report.first_divergence == culprit


# --- the torch network --------------------------------------------------------------


def _hooked(path: str, factor: float) -> Callable[[Any], None]:
    def scale(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        return output * factor

    return lambda m: m.get_submodule(path).register_forward_hook(scale)


def _shifted(model: Any) -> None:
    def shift(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (given[0].roll(1, -1),)

    model.layer2[0].conv1.register_forward_pre_hook(shift)


def _scaled_gradient(model: Any) -> None:
    def scale(module: nn.Module, by_input: Any, by_output: Any) -> Any:
        return (by_input[0] * 1.001,)

    model.fc.register_full_backward_hook(scale)


def _swapped(path: str, module: nn.Module) -> Callable[[Any], None]:
    return lambda model: model.set_submodule(path, module)


def _set(path: str, **attributes: Any) -> Callable[[Any], None]:
    return lambda model: vars(model.get_submodule(path)).update(attributes)


def _stale(path: str) -> Callable[[Any], None]:
    return lambda model: model.get_submodule(path).running_mean.zero_()


QUICK_TORCH = ("a hook on a block", "relu6", "eps", "a stale buffer")
TRAINING = ("G0", "G1 training isolated")
TORCH: dict[str, tuple[Callable[[Any], Any], str, tuple[str, ...]]] = {
    "a hook on a norm": (_hooked("layer1.0.bn2", 1 + 1e-9), "layer1.0.bn2", ()),
    "a hook on a block": (_hooked("layer2.0", 1 + 1e-9), "layer2.0", ()),
    "a hook before a convolution": (_shifted, "layer2.0.conv1", ()),
    "a hook on a gradient": (_scaled_gradient, "fc", TRAINING),
    "relu6": (_swapped("relu", nn.ReLU6()), "relu", ()),
    "leaky ReLU": (_swapped("layer2.0.relu", nn.LeakyReLU()), "layer2.0.relu", ()),
    "average for max-pool": (_swapped("maxpool", nn.AvgPool2d(3, 2, 1)), "maxpool", ()),
    "max-pool in ceil mode": (_set("maxpool", ceil_mode=True), "maxpool", ()),
    "max for average": (_swapped("avgpool", nn.AdaptiveMaxPool2d(1)), "avgpool", ()),
    "eps": (_set("layer2.0.bn1", eps=1.001e-5), "layer2.0.bn1", ()),
    "momentum": (_set("layer2.0.bn1", momentum=0.2), "layer2.0.bn1", TRAINING),
    "padding by reflection": (_set("conv1", padding_mode="reflect"), "conv1", ()),
    "dilation": (
        _set("layer1.0.conv2", dilation=(2, 2), padding=(2, 2)),
        "layer1.0.conv2",
        (),
    ),
    "stride on the other convolution": (
        lambda model: [
            _set("layer2.0.conv1", stride=(1, 1))(model),
            _set("layer2.0.conv2", stride=(2, 2))(model),
        ],
        "layer2.0.conv1 layer2.0.conv2",
        (),
    ),
    "a stale buffer": (_stale("layer1.0.bn1"), "layer1.0.bn1.running_mean", ()),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(f, id=f, marks=() if f in QUICK_TORCH else pytest.mark.exhaustive)
        for f in TORCH
    ],
)
def test_a_fault_of_the_torch_network_is_named(fault: str):
    change, culprit, gates = TORCH[fault]
    pair = Mutant(number=0, name="", apply=lambda model: None)
    torch_model, flax_model = pair.twins()
    change(torch_model)
    gates = gates or ("G0", "G1 isolated")
    report = parity.check(torch_model, flax_model, pair.images(), gates=gates)
    assert not report.ok
    assert "raised" not in report.verdict()
    if report.gate("G0").ok:
        named = [path_of(call) for call in report.culprits]
        assert list(dict.fromkeys(named)) == culprit.split()
    else:
        assert [row.name for row in report.gate("G0").failures] == [culprit]
        assert report.culprits == (culprit.rpartition(".")[0],)


# --- preprocessing ------------------------------------------------------------------


def _interpolated(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    found = nn.functional.interpolate(
        pixels, size[::-1], mode="bilinear", antialias=False
    )
    return Image.fromarray(found[0].permute(1, 2, 0).round().byte().numpy())


PREPROCESSING = {
    "/256": ("np.float32(255)", "np.float32(256)"),
    "x·(1/255)": ("planes / np.float32(255)", "planes * np.float32(1 / 255)"),
    "mean and std exchanged": ("in (mean, std))", "in (std, mean))"),
    "no antialias": (
        "image.resize(size, Image.Resampling[interpolation.upper()])",
        "_interpolated(image, size)",
    ),
    "bicubic": ("interpolation.upper()", "'BICUBIC'"),
    "the long side rounded": (
        "int(resize * width / short)",
        "round(resize * width / short)",
    ),
    "the crop rounded down": ("round((width - crop) / 2)", "(width - crop) // 2"),
    "blue first": ("transpose(0, 3, 1, 2)", "transpose(0, 3, 1, 2)[:, ::-1]"),
    "in float64": ("pixels.astype(np.float32)", "pixels.astype(np.float64)"),
    "multiplied by 1/std": (") / scale", ") * (np.float32(1) / scale)"),
}


def _pictures(photo: Path) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(256, 1).repeat(3, 2)
    found = [Image.fromarray(every)]
    for size in ((500, 331), (333, 500), (1001, 257), (299, 256)):
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        found.append(Image.fromarray(pixels))
    with Image.open(photo) as image:
        return [*found, image.convert("RGB")]


def _differ(preprocess: Callable[..., np.ndarray], photo: Path) -> list[bool]:
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    return [
        differing_bits({"": preprocess(image)}, {"": theirs(image)[None].numpy()}) != {}
        for image in _pictures(photo)
    ]


@pytest.mark.parametrize("fault", PREPROCESSING)
def test_wrong_preprocessing_is_not_torchvisions(
    fault: str, photo: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not any(_differ(images.prepare, photo))
    right, wrong = PREPROCESSING[fault]
    parts = (images.prepare, images.normalised)
    source = "\n".join(map(inspect.getsource, parts))
    assert source.count(right) == 1
    space = {**vars(images), "_interpolated": _interpolated}
    exec(source.replace(right, wrong), space)
    monkeypatch.setattr(images, "prepare", space["prepare"])
    assert any(_differ(images.prepare, photo))


# --- the self-test ------------------------------------------------------------------


def _self_test(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, int]:
    with pytest.raises(SystemExit) as exit:
        main(["check", "--self-test", *arguments])
    return capsys.readouterr().out, int(exit.value.code or 0)


def test_the_self_test_prints_what_killed_whom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(selftest, "FAST", ("one key skipped", "RGB/BGR"))
    out, code = _self_test(capsys)
    assert code == 0
    lines = out.splitlines()
    assert lines[-1] == "PASS: 2 mutants killed and named, 2 equal networks passed"
    assert lines[3].split() == [
        *("12", "RGB/BGR", "G1", "isolated", "output", "G1", "isolated", "output")
    ]


def test_the_self_test_breaks_a_twin_as_often_as_the_readme_says():
    fast = [m for m in (*MUTANTS, *EQUIVALENTS) if m.name in selftest.FAST]
    assert len(fast) == len(selftest.FAST)
    harmless = [*CONTROLS, *(mutant for mutant in fast if not mutant.gates)]
    assert (len(fast) + len(CONTROLS) - len(harmless), len(harmless)) == (11, 3)
    readme = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")
    assert "breaks a twin in eleven ways" in readme
    assert "passes three pairs that are equal" in readme


@pytest.mark.exhaustive
def test_the_self_test_passes(capsys: pytest.CaptureFixture[str]):
    out, code = _self_test(capsys, "--json")
    found = json.loads(out)
    assert found["ok"] is True
    assert code == 0
    assert {row["name"] for row in found["mutants"]} > set(selftest.FAST)


@pytest.mark.parametrize(
    ("killed_by", "named", "raised"),
    [
        ("", "", ""),
        ("G1", "bn1", ""),
        ("G1 isolated", "bn2", ""),
        ("G1 isolated", "bn1", "raised TypeError: no"),
    ],
    ids=["alive", "by another gate", "with another name", "by an error"],
)
def test_a_mutant_that_lives_or_is_misnamed_fails_the_self_test(
    killed_by: str,
    named: str,
    raised: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    row = Kill(13, "eps 1e-3", "G1 isolated", "bn1", killed_by, named, raised)
    monkeypatch.setattr(selftest, "self_test", lambda **_: [row])
    out, code = _self_test(capsys)
    assert code == 1
    assert out.splitlines()[-1] == "FAIL: the check is wrong about eps 1e-3"
    found, code = _self_test(capsys, "--json")
    assert code == 1
    assert json.loads(found)["ok"] is False


def test_the_self_test_takes_numbers_and_refuses_unknown_ones():
    found = parity.self_test([64])
    assert [row.name for row in found if row.expected] == ["one key skipped"]
    with pytest.raises(ValueError, match="no mutant has the number 49"):
        parity.self_test([49])


@pytest.mark.parametrize("arguments", [[], ["resnet18", "--self-test"]])
def test_check_takes_a_network_or_the_self_test(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit:
        main(["check", *arguments])
    assert exit.value.code == 2
    expected = "check takes a network's name, --self-test or --verify FILE"
    assert expected in capsys.readouterr().err
