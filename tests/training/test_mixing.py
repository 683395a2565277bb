"""mixup and cutmix against torchvision's, given the same draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from parity.judging.tolerances import UNIT_ROUNDOFF
from resnet_spec import TrainingRecipe, get_recipe
from resnet_training.mixing import Mix, cutmix, mix_of_step, mixup
from resnet_training.order import numbers_of_step
from tests.support.draws import torch_draws_from

SIZE = 24


def recipe_of(**fields: Any) -> TrainingRecipe:
    return get_recipe("reference", **{"size": 32, "batch": 4, "seed": 3, **fields})


def mixed(mix: Mix, images: np.ndarray) -> np.ndarray:
    return mix.own * images + (1 - mix.own) * np.roll(images, 1, 0)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_labels_are_mixed_as_torchvision_mixes_them(kind: str, alpha: float):
    draw, transform = {"mixup": (mixup, v2.MixUp), "cutmix": (cutmix, v2.CutMix)}[kind]
    theirs = transform(alpha=alpha, num_classes=5)
    images, labels = (
        np.random.default_rng(0).random((6, 3, SIZE, SIZE)),
        np.arange(6) % 5,
    )
    one_hot, shares = np.eye(5)[labels], set()
    for step in range(60):
        numbers = numbers_of_step(0, step)
        theirs._dist.sample = lambda *_, n=numbers: torch.tensor(
            np.float32(n.beta(alpha, alpha))
        )
        with torch_draws_from(numbers):
            expected, targets = theirs(torch.tensor(images), torch.tensor(labels))
        mix = draw(alpha, SIZE, numbers_of_step(0, step))
        assert mix.own.dtype == np.float32
        assert mix.own.shape == (SIZE, SIZE)
        assert np.array_equal(
            mixed(Mix(mix.own.astype(np.float64), 0), images), expected.numpy()
        )
        label = mix.share * one_hot + (1 - mix.share) * np.roll(one_hot, 1, 0)
        # Theirs are float32; no label is above 1.
        error = np.abs(label - targets.double().numpy())
        assert error.shape == (6, 5)
        assert error.max() <= 2 * UNIT_ROUNDOFF["float32"]
        error = abs(mix.own.mean(dtype=np.float64) - mix.share)
        assert error <= UNIT_ROUNDOFF["float32"]
        shares.add(mix.share)
    assert len(shares) > 30
    assert min(shares) < 0.5 < max(shares)


def test_a_step_has_one_of_both_as_likely_as_the_other():
    recipe = recipe_of(mixup=0.2, cutmix=1.0)
    mixes = [mix_of_step(recipe, step) for step in range(300)]
    cut = [set(np.unique(mix.own)) <= {0, 1} for mix in mixes if mix]
    assert len(cut) == 300
    assert 120 < sum(cut) < 180


def test_each_step_draws_anew_and_a_seed_repeats_it():
    recipe = recipe_of(cutmix=1.0)
    one, again, other = (
        [mix.share for step in range(50) if (mix := mix_of_step(r, step))]
        for r in (recipe, recipe, recipe_of(cutmix=1.0, seed=4))
    )
    assert len(set(one)) > 40
    assert one == again != other


def test_nothing_is_mixed_that_was_not_asked_for():
    assert mix_of_step(recipe_of(), 0) is None
    mix = mix_of_step(recipe_of(mixup=0.3), 0)
    assert mix is not None
    assert len(np.unique(mix.own)) == 1
