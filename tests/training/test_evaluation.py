"""Weights over images: each image counted once, as the weights want them prepared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
import resnet_spec
from parity.errors import InputError
from parity.judging.tolerances import CEILINGS
from resnet_training import BEST, LAST, begin, evaluate, open_images
from resnet_training.arrays import of_arrays
from resnet_training.checkpoint import progress_in, write
from resnet_training.engine import Backend
from resnet_training.metrics import read
from tests.support.command import Called
from tests.support.networks import random_torch
from tests.support.photographs import folder_of
from tests.support.runs import drawn, recipe

DATA = drawn()
RECIPE = recipe(steps=10, ema_decay=0.5)
IMAGES, LABELS = (
    np.stack([np.asarray(DATA.train.read(i)) for i in range(9)]),
    DATA.train.labels[:9],
)
NAMES: tuple[Backend, ...] = ("torch", "flax")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in torch; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    begin(folder, DATA, RECIPE).to()
    return folder


@pytest.mark.parametrize("backend", NAMES)
def test_an_evaluation_alone_counts_what_the_run_counted(backend: Backend, done: Path):
    lines = [line for line in read(done) if "right" in line]
    best = max(lines, key=lambda line: (line["right"], -line["step"]))
    found = evaluate(DATA.validation, done / BEST, backend).facts
    assert (found["right"], found["images"]) == (best["right"], best["images"])


# An evaluation has none of them: no warm-up, milestones, mixing, groups or parts.
TRAINED: list[dict[str, Any]] = [
    {"warmup_epochs": 2, "decay": "cosine", "milestones": (), "mixup": 0.4},
    {"accumulate": 4, "norm": "groups=2", "epochs": 0.8, "steps": None},
    {"repeats": 4, "optimizer": "lamb", "clip_norm": 1.0, "drop_path": 0.5},
]


@pytest.mark.parametrize("fields", TRAINED)
def test_what_only_training_has_is_no_matter_to_an_evaluation(
    fields: dict[str, Any], done: Path, tmp_path: Path
):
    """The recipe is another one, and the weights are the same."""
    path, at = tmp_path / "other.safetensors", progress_in(done / BEST)
    assert at is not None
    other = replace(at, recipe=recipe(ema_decay=0.9, **fields))
    state = parity.load(done / BEST)
    write(path, state, RECIPE.config(4), other)
    few = of_arrays(
        *(IMAGES, LABELS), val_images=IMAGES[:5], val_labels=LABELS[:5]
    ).validation
    found, expected = (evaluate(few, file).facts for file in (path, done / BEST))
    assert found == expected
    assert found["images"] == 5


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of parts of photographs."""
    counts = {f"class {i}": 3 for i in range(5)}
    return folder_of(tmp_path_factory.mktemp("photographs") / "all", counts)


@pytest.mark.parametrize("form", ["huggingface", "timm"])
def test_weights_are_evaluated_on_images_as_they_want_them(
    form: Any, photographs: Path, tmp_path: Path
):
    model = random_torch(resnet_spec.resolve("resnet10t", num_classes=5))
    if form == "huggingface":
        model = random_torch(resnet_spec.resolve("resnet18", num_classes=5))
    how = resnet_spec.Preprocessing(
        resize=72,
        crop=64,
        interpolation="bicubic",
        mean=(0.5, 0.4, 0.3),
        std=(0.3, 0.2, 0.3),
    )
    path = tmp_path / "folder"
    parity.save(path, model, format=form, preprocessing=how)
    source, losses = open_images(photographs), {}
    assert len(source) == 15
    for its in (path, None):
        images = [
            parity.preprocess(source.read(i), model.config, its, framework="torch")
            for i in range(15)
        ]
        logits = logits_of(model, images)
        labels = torch.from_numpy(source.labels)
        losses[its] = torch.nn.functional.cross_entropy(logits, labels).item()
    assert abs(losses[path] - losses[None]) > 0.01
    for backend in NAMES:
        found = evaluate(source, path, backend, model=model.config, batch=4)
        error = abs(found.facts["loss"] - losses[path]) / losses[path]
        assert error <= CEILINGS["float32"].ceiling
        assert not any("preprocessing" in note for note in found.notes)


def logits_of(model: torch.nn.Module, images: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(image) for image in images])


def test_what_is_assumed_of_weights_that_do_not_tell_is_said(
    call: Called, done: Path, tmp_path: Path
):
    path = tmp_path / "net.safetensors"
    parity.save(path, parity.load(done / BEST), config=RECIPE.config(4))
    npz = tmp_path / "images.npz"
    np.savez(npz, images=IMAGES, labels=LABELS)
    out, said = call("evaluate", npz, "--weights", path)
    assert (
        said.count("nothing tells their preprocessing; it is taken to be CIFAR's") == 2
    )
    assert out.count("of 9)") == 2


def test_all_of_an_npz_is_evaluated_but_what_is_for_training_where_some_is(
    tmp_path: Path,
):
    np.savez(tmp_path / "all.npz", images=IMAGES, labels=LABELS)
    assert len(open_images(tmp_path / "all.npz")) == 9
    held: dict[str, Any] = {"val_images": IMAGES[:4], "val_labels": LABELS[:4]}
    np.savez(tmp_path / "some.npz", images=IMAGES, labels=LABELS, **held)
    assert len(open_images(tmp_path / "some.npz")) == 4
    np.savez(tmp_path / "half.npz", images=IMAGES, labels=LABELS, val_images=IMAGES)
    with pytest.raises(InputError, match=r"half\.npz: has no val_labels"):
        open_images(tmp_path / "half.npz")


def test_what_is_skipped_is_counted_and_what_does_not_fit_refused(
    call: Called, done: Path, photographs: Path, tmp_path: Path
):
    five = parity.create_model("resnet18", "torch", num_classes=5)
    path = tmp_path / "five.pth"
    parity.save(path, five)
    (photographs / "class 0" / "broken.jpg").write_bytes(b"none")
    try:
        asked = ("evaluate", photographs, "--weights", path, "--model", "resnet18")
        said = call.error(*asked)
        assert "broken.jpg" in said
        asked += ("--backend", "torch", "--skip-broken")
        out, _ = call(*asked)
        assert "of 15, 1 skipped)" in out
    finally:
        (photographs / "class 0" / "broken.jpg").unlink()
    said = call.error("evaluate", photographs, "--weights", done / LAST)
    assert "has the classes 0, 1, 2, 3; the images have class 0, class 1" in said
    said = call.error("evaluate", photographs, "--weights", path, "--model", "resnet34")
    assert str(path) in said
    given = ("--weights", path, "--set", "num_classes=5")
    said = call.error("evaluate", photographs, *given)
    assert "--set goes with --model" in said
