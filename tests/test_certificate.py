"""A certificate is confirmed by the same check, and by no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import parity
from parity.certificate import differences, read_certificate, to_certificate
from parity.samples import random_images
from tests.networks import TINY, flax_like, random_torch

GATES = ("G0", "G2", "G2 training", "G5")


def _report(change=None) -> parity.Report:
    model = random_torch(TINY)
    if change is not None:
        state = parity.state_dict(model)
        change(state)
        parity.load_state_dict(model, state)
    images = random_images((2, 3, 48, 64), seed=1)
    return parity.check(model, flax_like(model), images, gates=GATES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "tiny.json"
    path.write_text(to_certificate(_report(), {}), encoding="utf-8")
    return path


def test_the_same_check_confirms_every_figure(path: Path):
    assert differences(read_certificate(path), _report()) == []


def test_one_unit_in_the_last_place_of_one_weight_does_not(path: Path):
    def nudge(state: dict[str, np.ndarray]) -> None:
        weight = state["layer2.1.conv2.weight"]
        weight[3, 2, 1, 0] = np.nextafter(weight[3, 2, 1, 0], np.float32(9))

    found = _report(nudge)
    assert found.ok  # both have it: only the certificate can tell
    said = differences(read_certificate(path), found)
    assert said[0].startswith("weights: ")


def test_another_figure_or_verdict_is_seen(path: Path):
    certificate = read_certificate(path)
    row = certificate["gates"][1]["rows"][3]
    row["error"] /= 100
    said = differences(certificate, _report())
    assert [line.split(":")[0] for line in said] == [f"G2, {row['name']} output"]
    certificate = read_certificate(path)
    certificate["ok"] = False
    certificate["gates"][0]["ok"] = False
    said = differences(certificate, _report())
    assert "G0: another verdict" in said


def test_on_another_machine_figures_may_differ_a_little(path: Path):
    certificate = read_certificate(path)
    certificate["setting"]["processors"] = -1
    certificate["gates"][1]["rows"][3]["error"] *= 3
    assert differences(certificate, _report()) == []
    certificate["gates"][1]["rows"][3]["error"] *= 1000
    assert len(differences(certificate, _report())) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": "other"})])
def test_what_is_no_certificate_is_refused_by_name(tmp_path: Path, text: str):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json is no certificate"):
        read_certificate(path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_certificate(tmp_path / "none.json")
