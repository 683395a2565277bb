"""Engines of others as modes of ``compile``, and the trial that chooses one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
import resnet_flax
import resnet_flax.compiling
import resnet_onnx
import resnet_onnx.engines
import resnet_torch
import resnet_torch.compiling
from parity.judging.distance import deviation
from resnet_flax.compiling import torch_state
from resnet_onnx import trials
from resnet_onnx.trials import Trials, cache_file
from resnet_spec import ResNetConfig
from tests.support.networks import (
    TINY,
    TINY_BOTTLENECK,
    flax_like,
    images,
    random_torch,
)

ENGINES = ("onnxruntime", "openvino")
SMALL = TINY.replace(layers=(1, 1), widths=(4, 8))
ROUNDING = 1e-5
CONFIGS = {
    "basic": TINY,
    "in groups": TINY_BOTTLENECK.replace(norm="group", norm_groups=4, attention="eca"),
    "deep": TINY.replace(stem="deep", shortcut="D", anti_alias="blur"),
    "without a top": TINY.replace(include_top=False),
    "conv": TINY.replace(head="conv", widths=(8, 8)),
    "signal": TINY.replace(dimensions=1, head="signal", signal_width=64, stem="3x3"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trials are written down in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_file()


def _compiled(twin: str, config: ResNetConfig, engine: Any) -> Callable[..., Any]:
    """A compiled twin as a function of numpy images (n, c, h, w)."""
    model = random_torch(config).train()
    if twin == "torch":
        run = resnet_torch.compile(model, engine)
        return lambda x: run(torch.from_numpy(x)).numpy()
    flax = resnet_flax.compile(flax_like(model), engine)

    def forward(x: np.ndarray) -> np.ndarray:
        y = flax(jnp.asarray(x.transpose(0, 2, 3, 1)))
        assert isinstance(y, jax.Array)
        y = np.asarray(y)
        return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y

    return forward


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("twin", ["torch", "flax"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_engine_computes_what_the_network_does_for_every_shape(
    kind: str, twin: str, engine: str
):
    config = CONFIGS[kind]
    run = _compiled(twin, config, engine)
    model: Any = random_torch(config).eval().double()
    natural = (config.natural_size,) * 2
    sizes = natural if config.head != "linear" else ((40, 33), (33, 47))
    for n, size in zip((2, 1), sizes, strict=True):
        x = images(config, *size, n=n).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(x.astype(np.float64))).numpy()
        found = run(x)
        assert found.dtype == np.float32
        assert deviation(found, expected).l2 < ROUNDING


@pytest.mark.parametrize(
    ("twin", "engine"),
    [
        ("torch", "openvino"),
        ("flax", "xla"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                *(("torch", "inductor"), ("torch", "onnxruntime")),
                *(("flax", "openvino"), ("flax", "onnxruntime")),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_an_engine_passes_the_gates(twin: str, engine: str):
    x = images(SMALL, 40, 33).astype(np.float32)
    run = _compiled(twin, SMALL, engine)
    report = parity.check_program(random_torch(SMALL).eval(), run, [x])
    assert report.ok, report.brief()


def test_both_twins_deploy_through_the_same_graph():
    model = random_torch(CONFIGS["in groups"])
    flax = flax_like(model)
    mine = resnet_torch.fuse(model).state_dict()
    theirs = torch_state(resnet_flax.fuse(flax))
    counters = {name for name in mine if name.endswith("num_batches_tracked")}
    assert theirs.keys() == mine.keys() - counters
    assert all(np.array_equal(mine[name].numpy(), theirs[name]) for name in theirs)
    whole = torch_state(flax)
    assert whole.keys() == model.state_dict().keys() - counters


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
def test_an_engine_that_is_none_or_not_here_is_named(
    package: Any, monkeypatch: pytest.MonkeyPatch
):
    model = random_torch(SMALL)
    own = "inductor"
    if package is resnet_flax:
        model, own = flax_like(model), "xla"
    with pytest.raises(ValueError, match=f"'tensorrt'; there are {own}, onnxruntime"):
        package.compile(model, engine="tensorrt")
    monkeypatch.setattr(resnet_onnx.engines, "find_spec", lambda name: None)
    for engine in ENGINES:
        with pytest.raises(ModuleNotFoundError, match=r"'resnet-twins\[engines\]'"):
            package.compile(model, engine=engine)


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
def test_half_types_are_no_engines_of_others(package: Any):
    model = random_torch(SMALL).to(torch.bfloat16)
    if package is resnet_flax:
        model = flax_like(model, "bfloat16")
    with pytest.raises(
        ValueError, match=r"takes float32 on a CPU; the network is .*bf"
    ):
        package.compile(model, engine="onnxruntime")


@pytest.mark.parametrize("twin", ["torch", "flax"])
def test_auto_takes_the_fastest_of_all_that_are_here_and_says_which(
    twin: str, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    model = random_torch(SMALL).eval()
    x: Any = images(SMALL, 40, 33).astype(np.float32)
    if twin == "torch":  # compiling takes its time, and is tried elsewhere
        monkeypatch.setattr(resnet_torch.compiling, "_inductor", lambda model: model)
        package, x = resnet_torch, torch.from_numpy(x)
    else:
        package, x = resnet_flax, jnp.asarray(x.transpose(0, 2, 3, 1))
        model = flax_like(model)
    run: Any = package.compile(model, engine="auto")
    assert run.trials == {}
    run(x)
    (trial,) = run.trials.values()
    assert set(trial.seconds) == {OWN[twin], *ENGINES}
    assert trial.seconds[trial.engine] == min(trial.seconds.values())
    assert not trial.remembered
    assert cache.exists()
    again: Any = package.compile(model, engine="auto")
    again(x)
    (remembered,) = again.trials.values()
    assert remembered.remembered
    assert (remembered.engine, remembered.seconds) == (trial.engine, trial.seconds)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_of_trials_is_neither_read_nor_replaced(cache: Path, kind: str):
    cache.parent.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(cache)
    elif kind == "device":
        cache.symlink_to("/dev/zero")
    else:
        cache.mkdir()
    before = cache.lstat()
    run = Trials({"a": lambda: lambda x: x}, {})
    assert run(np.ones(3)).sum() == 3
    assert not run.found[(3,)].remembered
    assert (cache.lstat().st_ino, cache.lstat().st_mode) == (
        *(before.st_ino, before.st_mode),
    )
    assert len(list(cache.parent.iterdir())) == 1


OWN = {"torch": "inductor", "flax": "xla"}


@pytest.mark.parametrize("package", [resnet_torch, resnet_flax])
def test_without_other_engines_both_defaults_and_auto_are_the_twins_own(
    package: Any, monkeypatch: pytest.MonkeyPatch
):
    model = random_torch(SMALL).eval()
    x: Any = images(SMALL, 40, 33).astype(np.float32)
    asked = []
    if package is resnet_torch:
        own, x = "_inductor", torch.from_numpy(x)
    else:
        own, x = "_xla", jnp.asarray(x.transpose(0, 2, 3, 1))
        model = flax_like(model)
        model.eval()
    monkeypatch.setattr(package.compiling, "find_spec", lambda name: None)
    monkeypatch.setattr(package.compiling, own, lambda m: asked.append(own) or m)
    for run in (package.compile(model), package.compile(model, engine="auto")):
        run(x)
        assert not run.trials
    assert asked == [own, own]


def _after(seconds: float) -> Callable[[], Callable[[Any], Any]]:
    def run(x: Any) -> Any:
        time.sleep(seconds)
        return seconds

    return lambda: run


X = np.zeros((1, 3, 8, 8), np.float32)
Y = np.zeros((2, 3, 8, 8), np.float32)


def test_a_trial_is_by_shape_and_once():
    made = []

    def make() -> Callable[[Any], Any]:
        made.append("quick")
        return _after(0.0)()

    run = Trials({"slow": _after(0.02), "quick": make}, {})
    assert [run(X), run(X), run(Y)] == [0.0, 0.0, 0.0]
    assert list(run.found) == [X.shape, Y.shape]
    assert made == ["quick"]
    assert run.found[X.shape].seconds["slow"] > 0.01


def test_an_engine_that_fails_takes_no_part_and_is_said():
    def broken() -> Callable[[Any], Any]:
        raise RuntimeError("no compiler\nhere")

    run = Trials({"broken": broken, "slow": _after(0.001)}, {})
    assert run(X) == 0.001
    assert run.found[X.shape].failed == {"broken": "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError, match="no engine runs images of shape"):
        Trials({"broken": broken}, {})(X)


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", '{"KEY": {"engine": "gone"}}', '{"KEY": 3}']
)
def test_a_damaged_or_foreign_cache_is_tried_again(text: str, cache: Path):
    engines = {"slow": _after(0.01), "quick": _after(0.0)}
    run = Trials(engines, {})
    cache.parent.mkdir(parents=True)
    cache.write_text(text.replace("KEY", run._key(X.shape)))
    run(X)
    assert not run.found[X.shape].remembered
    assert json.loads(cache.read_text())[run._key(X.shape)]["engine"] == "quick"


def test_another_network_version_or_machine_is_another_trial(
    monkeypatch: pytest.MonkeyPatch,
):
    engines = {"quick": _after(0.0)}
    key = Trials(engines, {"config": "a"})._key(X.shape)
    assert Trials(engines, {"config": "a"})._key(X.shape) == key
    others = [
        Trials(engines, {"config": "b"})._key(X.shape),
        Trials(engines, {"config": "a"})._key(Y.shape),
    ]
    monkeypatch.setattr(trials, "_version", lambda package: "9.9")
    others.append(Trials(engines, {"config": "a"})._key(X.shape))
    assert len({key, *others}) == 4


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes all")
def test_where_nothing_can_be_written_the_trial_is_good_for_this_process(cache: Path):
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o500)
    run = Trials({"quick": _after(0.0)}, {})
    assert run(X) == 0.0
