"""Which image stands where: from the step alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resnet_spec import TrainingRecipe, get_recipe
from resnet_training.order import Numbers, Order, numbers_of, numbers_of_step, share


def recipe_of(**fields: Any) -> TrainingRecipe:
    return get_recipe("reference", **{"size": 32, "seed": 7, **fields})


def whole(recipe: TrainingRecipe, images: int, steps: int) -> np.ndarray:
    """Epochs, indices and copies of each position: shape (steps, 3, batch)."""
    order, positions = Order(images, recipe), np.arange(recipe.batch)
    places = [order.places(step, positions) for step in range(steps)]
    return np.array([(p.epochs, p.indices, p.copies) for p in places])


@pytest.mark.parametrize(("images", "batch"), [(20, 6), (7, 7), (23, 5), (64, 16)])
def test_each_epoch_has_each_image_once_and_batches_are_cut_through(
    images: int, batch: int
):
    found = whole(recipe_of(batch=batch), images, 3 * images)
    epochs, indices = (found[:, i].ravel() for i in (0, 1))
    for epoch in range(3 * batch):
        here = indices[epochs == epoch]
        assert sorted(here) == list(range(images))
        drawn = np.random.default_rng([7, epoch]).permutation(images)
        assert np.array_equal(here, drawn)
    assert np.array_equal(epochs, np.arange(len(epochs)) // images)
    assert not found[:, 2].any()


def test_any_step_can_be_asked_for_first():
    recipe = recipe_of(batch=6, repeats=4)
    found = whole(recipe, 31, 60)
    for step in (59, 0, 17, 16, 42):
        places = Order(31, recipe).places(step, np.arange(6))
        assert np.array_equal(places.indices, found[step, 1])
        some = Order(31, recipe).places(step, np.array([4, 1]))
        assert np.array_equal(some.indices, found[step, 1, [4, 1]])
        assert np.array_equal(some.copies, found[step, 2, [4, 1]])


def test_another_seed_gives_another_order():
    one, other = (whole(recipe_of(batch=8, seed=s), 40, 5) for s in (1, 2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("batch", "repeats"), [(12, 3), (16, 3), (8, 4), (5, 2)])
def test_repeated_images_are_in_one_batch_and_never_neighbours(
    batch: int, repeats: int
):
    images = 37
    found = whole(recipe_of(batch=batch, repeats=repeats), images, 80)
    for step, (epochs, indices, copies) in enumerate(found):
        assert len({*zip(epochs, indices, copies, strict=True)}) == batch
        times = np.bincount(copies)
        assert len(times) == repeats
        assert max(times) == -(-batch // repeats)
        assert epochs[0] == step * batch // images  # as without repeats: no drift
        same = (indices == np.roll(indices, 1)) & (epochs == np.roll(epochs, 1))
        assert not same.any()
    for epoch in range(5):  # each has the beginning of its own order
        once = (found[:, 0] == epoch) & (found[:, 2] == 0)
        drawn = np.random.default_rng([7, epoch]).permutation(images)
        part = found[:, 1][once]
        assert images // repeats - 1 <= len(part) < images
        assert np.array_equal(part, drawn[: len(part)])


def test_the_ranks_parts_are_the_batch():
    recipe = recipe_of(batch=24, accumulate=2)
    for ranks in (1, 2, 3, 4):
        pieces = [share(recipe, rank, ranks) for rank in range(ranks)]
        for part in range(2):
            joined = [i for p in pieces for i in range(*p[part])]
            assert joined == list(range(12 * part, 12 * part + 12))


@pytest.mark.parametrize(
    ("rank", "ranks", "said"),
    [
        (0, 5, "batch is 24; with accumulate 2 on 5 .* must be a multiple of 10"),
        (2, 2, "rank is 2; it must be an integer from 0 below 2"),
        (-1, 2, "rank is -1"),
        (0, 0, "ranks is 0; it must be an integer from 1"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(rank: int, ranks: int, said: str):
    with pytest.raises(ValueError, match=said):
        share(recipe_of(batch=24, accumulate=2), rank, ranks)


def test_no_two_images_and_no_step_share_random_numbers():
    recipe = recipe_of(batch=12, repeats=3)
    order, seen = Order(25, recipe), []
    for step in range(60):
        keys = order.keys(order.places(step, np.arange(12)))
        seen += [numbers_of(key).random() for key in keys]
        assert keys.dtype == np.uint64
        seen.append(numbers_of_step(recipe.seed, step).random())
    assert len(set(seen)) == 60 * 13


def draws(numbers: np.random.Generator) -> list[float]:
    """Some of each kind; an odd number of halves of a word."""
    found = [float(numbers.random(dtype=np.float32)) for _ in range(3)]
    return [*found, int(numbers.integers(7)), numbers.random(), numbers.beta(0.2, 0.2)]


def test_an_images_numbers_are_those_that_the_documentation_says():
    recipe = recipe_of(batch=12, repeats=3, seed=2**32 - 1)
    order = Order(14, recipe)
    places = order.places(9, np.arange(12))
    numbers = Numbers()
    for position, key in enumerate(order.keys(places)):
        epoch, index = int(places.epochs[position]), int(places.indices[position])
        words = [(2**32 - 1) << 32 | epoch, index | int(places.copies[position]) << 48]
        philox = np.random.Philox(key=np.array(words, np.uint64))
        expected = draws(np.random.Generator(philox))
        assert draws(numbers_of(key)) == draws(numbers.of(key)) == expected


def test_who_stands_in_is_the_next_of_the_epoch():
    order = Order(9, recipe_of(batch=4))
    places = order.places(1, np.arange(4))  # 4 to 7 of epoch 0
    expected = np.random.default_rng([7, 0]).permutation(9)
    found = [order.instead(places, 3, tries) for tries in (1, 2, 3)]
    assert found == [expected[8], expected[0], expected[1]]
