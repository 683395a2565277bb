"""A run that is handed over is what torchvision's network learns in a plain loop.

The loop is written as anybody would, with torch's own optimiser, schedule and loss; of
this project it has the order of the images alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.judging.distance import deviation
from parity.judging.tolerances import AFTER_STEPS
from resnet_spec import TrainingRecipe
from resnet_training import LAST, Options, begin, initial_state, resume
from resnet_training.order import Order
from resnet_training.plan import Plan
from tests.conftest import torchvision
from tests.support.runs import drawn

DATA = drawn(side=40)
STEPS, BATCH = 7, 6  # of 30 images: an epoch and a bit
USUAL: dict[str, Any] = {
    "network": "resnet18", "settings": {"layers": [1] * 4}, "batch": BATCH,
    "epochs": None, "steps": STEPS, "dtype": "float64", "size": 40,
    "evaluation_resize": 40, "crop": "none", "flip": 0.0, "evaluate_every": 9,
}  # fmt: skip
SGD = TrainingRecipe(
    **USUAL, learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3,
    label_smoothing=0.1, decay="milestones", milestones=(3 / 7, 6 / 7), clip_norm=1.0,
)  # fmt: skip
ADAMW = TrainingRecipe(
    **USUAL, learning_rate=1e-3, optimizer="adamw", weight_decay=0.05, decay="cosine",
    accumulate=2,
)  # fmt: skip


def _loop(recipe: TrainingRecipe) -> dict[str, np.ndarray]:
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1] * 4, num_classes=4).double()
    start = initial_state(Plan(recipe, 30, 4).config, seed=recipe.seed)
    model.load_state_dict({n: torch.from_numpy(a) for n, a in start.items()})
    rate: Any
    if recipe is SGD:
        optimizer: Any = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        rate = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    normal = torchvision.transforms.Normalize(recipe.mean, recipe.std)
    every = np.stack([np.asarray(DATA.train.read(i)) for i in range(30)])
    images = normal(
        torch.from_numpy(every).permute(0, 3, 1, 2) / torch.tensor(255.0).double()
    )
    order = Order(30, recipe)
    for step in range(STEPS):
        rows = order.places(step, np.arange(BATCH)).indices
        optimizer.zero_grad()
        for part in np.split(rows, recipe.accumulate):
            labels = torch.from_numpy(DATA.train.labels[part])
            (loss(model(images[part]), labels) / recipe.accumulate).backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        rate.step()
    return {n: t.numpy() for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(SGD, id="sgd"),
        pytest.param(ADAMW, id="adamw", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_both_frameworks_is_torchvisions_in_a_plain_loop(
    recipe: TrainingRecipe, tmp_path: Path
):
    begin(tmp_path, DATA, recipe, "torch").to(2)
    devices = Options(engine={"devices": 1})
    resume(tmp_path, DATA, "flax", options=devices).to(5)
    resume(tmp_path, DATA, "torch").to()
    found, expected = parity.load(tmp_path / LAST), _loop(recipe)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert deviation(found[name], array).l2 <= AFTER_STEPS, name
