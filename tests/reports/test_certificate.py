"""A certificate is confirmed by the same check, and by no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.images import random_images
from parity.recipe import Recipe
from parity.reports.certificate import (
    differences,
    elsewhere,
    read_certificate,
    to_certificate,
)
from tests.support.command import Called
from tests.support.networks import TINY, flax_like, random_torch

GATES = ("G0", "G2", "G2 training", "G5")
RECIPE = Recipe(name="resnet18", overrides={"num_classes": 7}).to_dict()

Change = Callable[[dict[str, Any]], Any]


def _perturb(state: dict[str, np.ndarray]) -> None:
    weight = state["layer2.1.conv2.weight"]
    weight[3, 2, 1, 0] = np.nextafter(weight[3, 2, 1, 0], np.float32(9))


def _report(
    change=None, *, gates: Sequence[str] = GATES, dtype: str = "float32", config=TINY
) -> parity.Report:
    model = random_torch(config).to(getattr(torch, dtype))
    if change is not None:
        state = parity.state_dict(model)
        change(state)
        parity.load_state_dict(model, state)
    images = random_images((2, 3, 48, 64), seed=1)
    return parity.check(model, flax_like(model, dtype), images, gates=gates)


@pytest.fixture(scope="module")
def report() -> parity.Report:
    return _report()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, report: parity.Report) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "tiny.json"
    path.write_text(to_certificate(report, RECIPE), encoding="utf-8")
    return path


def test_the_same_check_confirms_every_figure(path: Path):
    again = _report()
    assert differences(read_certificate(path), again) == []
    assert elsewhere(read_certificate(path), again) == []


def test_one_unit_in_the_last_place_of_one_weight_does_not(path: Path):
    found = _report(_perturb)
    assert found.ok  # both have it: only the certificate can tell
    said = differences(read_certificate(path), found)
    assert said[0].startswith("weights.torch: ")


def _row(certificate: dict[str, Any]) -> dict[str, Any]:
    return certificate["gates"][1]["rows"][3]


def _divided(row: dict[str, Any], field: str, by: float) -> None:
    row[field] /= by


CHANGES: dict[str, Change] = {
    "error": lambda c: _divided(_row(c), "error", 1 + 1e-15),
    "limit": lambda c: _divided(_row(c), "limit", 1 + 1e-15),
    "note": lambda c: _row(c).update(note="a kink"),
    "kind": lambda c: _row(c).update(kind="loss"),
    "name": lambda c: _row(c).update(name="conv2"),
    "verdict": lambda c: _row(c).update(ok=False),
    "figures.flax.max": lambda c: _divided(_row(c)["figures"]["flax"], "max", 2),
    "figures.torch.worst": lambda c: _row(c)["figures"]["torch"].update(worst=[0]),
    "figures.more": lambda c: _row(c)["figures"].update(more=1),
    "a field of a row": lambda c: _row(c).update(more=1),
    "a row": lambda c: c["gates"][1]["rows"].pop(),
    "what a gate judges": lambda c: c["gates"][0].update(what="weights, nearly"),
    "a gate's verdict": lambda c: c["gates"][0].update(ok=False),
    "a gate": lambda c: c["gates"].append(c["gates"][0]),
    "ok": lambda c: c.update(ok=False),
    "culprits": lambda c: c.update(culprits=["conv1"]),
    "a field more": lambda c: c.update(more=1),
    "seed": lambda c: c["setting"].update(seed=False),  # equal to 0 in Python
    "steps": lambda c: c["setting"].update(steps={"steps": 20}),
    "inputs": lambda c: c["setting"]["inputs"].pop("sha256"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_else_is_falsified_is_seen(
    change: Change, path: Path, report: parity.Report
):
    certificate = read_certificate(path)
    change(certificate)
    assert elsewhere(certificate, report) == []
    assert len(differences(certificate, report)) == 1


def test_another_machine_is_named_and_may_differ_a_little(
    path: Path, report: parity.Report
):
    certificate = read_certificate(path)
    certificate["setting"]["processor"] = "another"
    certificate["setting"]["processors"] = -1
    certificate["setting"]["versions"]["jax"] = "0.0.1"
    del certificate["setting"]["torch"]["threads"]
    (said,) = elsewhere(certificate, report)
    assert said.startswith("another machine: ")
    assert 'versions.jax: "0.0.1" is certified, here it is "' in said
    assert "processors: -1 is certified" in said
    assert 'processor: "another" is certified' in said
    assert "torch.threads: nothing is certified" in said
    assert said.endswith("figures may differ tenfold")
    row = _row(certificate)
    row["error"] *= 3
    row["figures"]["use"] *= 3
    for twin in ("torch", "flax"):
        for figure in ("l2", "max", "p50", "p99"):
            row["figures"][twin][figure] *= 3
        by = row["figures"][twin]
        by["value"] = by["expected"] + 3 * (by["value"] - by["expected"])
    row["figures"]["flax"]["worst"] = [0, 0, 0, 0]
    assert differences(certificate, report) == []


FORGED: dict[str, Change] = {
    "a smaller error": lambda row: _divided(row, "error", 1000),
    "no error": lambda row: row.update(error=0),
    "a negative error": lambda row: row.update(error=-row["error"]),
    "a larger limit": lambda row: row.update(limit=9 * row["limit"]),
    "a smaller limit": lambda row: _divided(row, "limit", 9),
    "another ratio": lambda row: _divided(row["figures"], "ratio", 2),
    "another use": lambda row: _divided(row["figures"], "use", 2),
    "a smaller norm": lambda row: _divided(row["figures"]["flax"], "l2", 3),
    "quantiles in disorder": lambda row: row["figures"]["torch"].update(p50=1e-3),
    "a place that is none": lambda row: row["figures"]["flax"].update(worst=[-1]),
    "no difference there": lambda row: row["figures"]["torch"].update(
        value=1, expected=1
    ),
    "another value": lambda row: row["figures"]["flax"].update(value=1e-3),
    "twice what is expected": lambda row: _divided(
        row["figures"]["flax"], "expected", 0.5
    ),
    "a larger maximum": lambda row: row["figures"]["torch"].update(
        max=1.5 * row["figures"]["torch"]["max"]
    ),
    "a value that is not finite": lambda row: row["figures"]["torch"].update(
        value="nan"
    ),
    "all of one sign": lambda row: row["figures"]["torch"].update(scale=0.5),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_on_another_machine_a_row_that_no_check_would_write_is_seen(
    forge: Change, path: Path, report: parity.Report
):
    certificate = read_certificate(path)
    certificate["setting"]["versions"]["jax"] = "0.0.1"
    assert differences(certificate, report) == []
    forge(_row(certificate))
    assert len(differences(certificate, report)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_threads_and_instructions_confirm_a_certificate(
    tmp_path: Path, dtype: str
):
    code = (
        "import sys; from pathlib import Path\n"
        "import torch; torch.set_num_threads(2)\n"
        "from parity import GATES\n"
        "from parity.reports.certificate import to_certificate\n"
        "from tests.reports.test_certificate import RECIPE, _report\n"
        "report = _report(gates=GATES, dtype=sys.argv[2])\n"
        "Path(sys.argv[1]).write_text(to_certificate(report, RECIPE))\n"
    )
    written = tmp_path / "elsewhere.json"
    elder = {
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    }
    arguments = [sys.executable, "-c", code, str(written), dtype]
    subprocess.run(arguments, env=os.environ | elder, check=True)
    certificate = read_certificate(written)
    here = _report(gates=parity.GATES, dtype=dtype)
    assert "cpu_capability" in elsewhere(certificate, here)[0]
    assert differences(certificate, here) == []


@pytest.mark.parametrize(
    "name",
    sorted(
        CHANGES.keys() - {"error", "limit", "figures.flax.max", "figures.torch.worst"}
    ),
)
def test_on_another_machine_all_but_figures_must_agree(
    name: str, path: Path, report: parity.Report
):
    certificate = read_certificate(path)
    certificate["setting"]["python"] = "2.7"
    CHANGES[name](certificate)
    assert len(differences(certificate, report)) == 1


# --- files that are none --------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [" ", "[]", "{}", json.dumps({"format": "other"}), "[" * 100_000]
)
def test_what_is_no_certificate_is_refused_by_name(tmp_path: Path, text: str):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json is no certificate"):
        read_certificate(path)
    with pytest.raises(ValueError, match=r"none\.json: no such file. Check the path"):
        read_certificate(tmp_path / "none.json")
    (tmp_path / "empty.json").touch()
    os.mkfifo(tmp_path / "fifo.json")
    for name, said in (("empty", "is empty"), ("fifo", "is no regular file")):
        with pytest.raises(ValueError, match=rf"{name}\.json: {said}"):
            read_certificate(tmp_path / f"{name}.json")


DAMAGE: dict[str, Change] = {
    "gates is null": lambda c: c.update(gates=None),
    "gates[0] is 5": lambda c: c.update(gates=[5]),
    "gates[1].rows is missing": lambda c: c["gates"][1].pop("rows"),
    "gates[0].what is 5": lambda c: c["gates"][0].update(what=5),
    "gates[1].rows[3].error is missing": lambda c: _row(c).pop("error"),
    'gates[1].rows[3].error is "x"': lambda c: _row(c).update(error="x"),
    "gates[1].rows[3].limit is true": lambda c: _row(c).update(limit=True),
    "gates[1].rows[3].figures is []": lambda c: _row(c).update(figures=[]),
    "setting is null": lambda c: c.update(setting=None),
    "setting is missing": lambda c: c.pop("setting"),
    "ok is 1": lambda c: c.update(ok=1),
    "first_divergence is 0": lambda c: c.update(first_divergence=0),
    "culprits[0] is null": lambda c: c.update(culprits=[None]),
    "recipe is []": lambda c: c.update(recipe=[]),
    "recipe is missing": lambda c: c.pop("recipe"),
    "recipe.steps is missing": lambda c: c["recipe"].pop("steps"),
    "recipe.speed is no field": lambda c: c["recipe"].update(speed=1),
    "recipe: no network named 'x'": lambda c: c["recipe"].update(name="x"),
    "recipe: unknown setting 'self'": lambda c: c["recipe"].update(
        overrides={"self": 1}
    ),
    "recipe: num_classes is 'x'": lambda c: c["recipe"].update(
        overrides={"num_classes": "x"}
    ),
}
# Of any size that would be built for minutes, or take all memory, before it failed.
DAMAGE |= {
    f"recipe{said}": lambda c, field=field, value=value: c["recipe"].update(
        {field: value}
    )
    for said, field, value in (
        (": layers is (1000000000,", "overrides", {"layers": [10**9, 2, 2, 2]}),
        (": layers is (1, 1", "overrides", {"layers": [1] * 99, "widths": [1] * 99}),
        (
            ".overrides make a network of 1204",
            "overrides",
            {"layers": [300, 2, 2, 900]},
        ),
        (": a network of widths (9999999", "overrides", {"widths": [9999999] * 4}),
        (".overrides make a network", "overrides", {"widths": [9999] * 4}),
        (": num_classes is 1000000", "overrides", {"num_classes": 10**30}),
        (".overrides make a network", "overrides", {"num_classes": 10**6}),
        (".overrides make a network", "overrides", {"in_channels": 10**6}),
        (": norm_eps is 1000000", "overrides", {"norm_eps": 10**400}),
        (".batch and size make", "batch", 10**9),
        (".batch and size make", "size", [10**9, 10**9]),
    )
}
WRONG_FIELDS = [
    *(("name", 5), ("name", None), ("overrides", []), ("overrides", None)),
    *(("weights", 3), ("weights", None), ("key", 5), ("allow_nonfinite", 0)),
    *(("image", 5), ("size", 5), ("size", [64]), ("size", [64, "x"]), ("size", [0, 1])),
    *(("batch", 0), ("batch", 1.5), ("batch", None), ("seed", "x"), ("seed", -1)),
    *(("seed", True), ("dtype", "int8"), ("dtype", []), ("precision", None)),
    *(("training", 1), ("steps", -1), ("steps", None), ("optimizer", {})),
    *(("optimizer", "adam"), ("steps", 10**9), ("seed", 10**30)),
]
DAMAGE |= {
    f"recipe.{name} is {value!r}": lambda c, name=name, value=value: c["recipe"].update(
        {name: value}
    )
    for name, value in WRONG_FIELDS
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_a_damaged_certificate_is_refused_in_a_line_that_names_the_field(
    problem: str, path: Path, tmp_path: Path, call: Called
):
    certificate = json.loads(path.read_text())
    DAMAGE[problem](certificate)
    damaged = tmp_path / "c.json"
    damaged.write_text(json.dumps(certificate))
    line = call.error("check", "--verify", damaged)
    assert str(damaged) in line
    assert problem in line


# --- the command ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_bit_that_a_half_type_drops_is_seen(call: Called, tmp_path: Path):
    weights, path = tmp_path / "weights.safetensors", tmp_path / "c.json"
    model = random_torch(TINY)
    parity.save(weights, model)
    call(
        *("check", "resnet18", "--forward", "--brief", "--size", "40x40"),
        *("--set", "layers=[1,2]", "--set", "widths=[8,16]", "--set", "num_classes=7"),
        *("--weights", weights, "--dtype", "bfloat16", "--certificate", path),
    )
    certificate = json.loads(path.read_text())
    certificate["setting"]["versions"]["jax"] = "0.0.1"
    falsified = tmp_path / "falsified.json"
    falsified.write_text(json.dumps(certificate))
    out, _ = call("check", "--verify", falsified)
    assert 'another machine: versions.jax: "0.0.1" is certified' in out
    assert out.splitlines()[-1].endswith("within what another machine may differ")

    state = parity.state_dict(model)
    before = parity.cast(state, "bfloat16")
    _perturb(state)
    after = parity.cast(state, "bfloat16")
    assert all(np.array_equal(before[name], after[name]) for name in state)
    parity.save(weights, state, config=TINY, overwrite=True)
    out, _ = call("check", "--verify", path, code=1)
    *_, said, verdict = out.splitlines()
    assert said.startswith("weights.source: ")
    assert verdict == f"NOT VERIFIED: {path} says otherwise in 1 places"
