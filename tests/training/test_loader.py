"""Batches: the same whoever makes them, and nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.errors import InputError
from resnet_training.augment import augmented, centre
from resnet_training.folders import ImageFolder
from resnet_training.loader import Batch, Loader
from resnet_training.mixing import mix_of_step
from resnet_training.order import Order, numbers_of
from resnet_training.sources import Data, Source
from tests.support.batches import MIXED, digest, digests, recipe_of
from tests.support.photographs import folder_of

ROOT = Path(__file__).parent.parent.parent


def joined(parts: Sequence[np.ndarray | None], pieces: int) -> np.ndarray | None:
    """The ranks' arrays as one: each is so many pieces, one of each part of a batch."""
    whole = [np.split(part, pieces) for part in parts if part is not None]
    if not whole:
        return None
    return np.concatenate([rank[i] for i in range(pieces) for rank in whole])


# What a batch is.


def test_a_batch_is_what_the_order_and_the_augmentation_say(folder: Source):
    recipe = recipe_of(crop="random-resized", erasing=0.5)
    order = Order(len(folder), recipe)
    with Loader(folder, recipe) as loader:
        for step, batch in enumerate(loader.batches(0, 6)):
            places = order.places(step, np.arange(12))
            assert np.array_equal(batch.labels, folder.labels[places.indices])
            assert batch.labels.dtype == np.int64
            assert batch.count == 12
            assert batch.erased is not None
            assert batch.erased.dtype == np.int32
            for i, key in enumerate(order.keys(places)):
                image = folder.read(int(places.indices[i]))
                pixels, erased = augmented(image, recipe, numbers_of(key))
                assert np.array_equal(batch.images[i], pixels)
                assert tuple(batch.erased[i]) == erased


def test_nothing_is_said_of_what_a_recipe_does_not_do(folder: Source):
    with Loader(folder, recipe_of()) as loader:
        batch = next(loader.batches(0, 1))
    others = (batch.erased, batch.partners, batch.partners_erased, batch.own)
    assert (*others, batch.partner_labels) == (None,) * 5
    assert batch.share == 1.0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_partner_is_the_image_before_it_in_its_part(arrays: Data, accumulate: int):
    recipe, part = recipe_of(accumulate=accumulate, **MIXED), 12 // accumulate
    with Loader(arrays.train, recipe) as loader:
        for step, batch in enumerate(loader.batches(3, 7), 3):
            mix = mix_of_step(recipe, step)
            assert mix is not None
            assert batch.own is not None
            assert np.array_equal(batch.own, mix.own)
            assert batch.share == mix.share
            for own, other in (
                (batch.images, batch.partners),
                (batch.labels, batch.partner_labels),
                (batch.erased, batch.partners_erased),
            ):
                assert own is not None
                assert other is not None
                for start in range(0, 12, part):
                    here = slice(start, start + part)
                    assert np.array_equal(other[here], np.roll(own[here], 1, 0))


def test_a_gray_network_gets_gray_images(arrays: Data, folder: Source):
    settings = {"in_channels": 1}
    recipe = recipe_of(settings=settings, mean=[0.5], std=[0.5], batch=4, crop="none")
    with Loader(folder, recipe) as loader:
        batch = next(loader.batches(0, 1))
        tested = next(loader.evaluation(arrays.validation, 4))
    assert batch.images.shape == (4, 32, 32, 1)
    index = Order(len(folder), recipe).places(0, np.arange(1)).indices[0]
    gray = np.asarray(folder.read(int(index)).convert("L").resize((32, 32), 2))
    found = batch.images[0, ..., 0]
    assert np.array_equal(found, gray) or np.array_equal(found, gray[:, ::-1])
    squeezed = centre(arrays.validation.read(1).convert("L"), recipe)
    assert np.array_equal(tested.images[1], squeezed)


# The same batches for all.


@pytest.fixture(scope="module")
def expected(folder: Source) -> list[str]:
    with Loader(folder, recipe_of(**MIXED)) as loader:
        return digests(loader.batches(0, 9))


@pytest.mark.parametrize(("workers", "ahead"), [(1, None), (3, 2)])
def test_batches_are_the_same_for_any_number_of_workers(
    folder: Source, arrays: Data, expected: list[str], workers: int, ahead: int | None
):
    recipe = recipe_of(**MIXED)
    with Loader(folder, recipe, workers=workers, ahead=ahead) as loader:
        assert len(loader.processes) == workers
        assert digests(loader.batches(0, 9)) == expected
        assert digests(loader.batches(4, 6)) == expected[4:6]
        tested = digests(loader.evaluation(arrays.validation, 3))
    with Loader(folder, recipe) as loader:
        assert digests(loader.evaluation(arrays.validation, 3)) == tested


def test_batches_are_the_same_from_any_step(folder: Source, expected: list[str]):
    for start in (8, 1, 5):
        with Loader(folder, recipe_of(**MIXED)) as loader:
            assert digests(loader.batches(start, 9)) == expected[start:]
            assert digests(loader.batches(start, start)) == []


def test_a_batch_in_the_middle_of_another_is_the_same(
    folder: Source, arrays: Data, expected: list[str]
):
    """An evaluation, as a run does it: training's batches that are begun stay so."""
    with Loader(folder, recipe_of(**MIXED), workers=2) as loader:
        batches = loader.batches(0, 9)
        found = [digest(next(batches)) for _ in range(3)]
        assert sum(b.count for b in loader.evaluation(arrays.validation)) == 10
        assert found + digests(batches) == expected


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("given", [{}, MIXED, {**MIXED, "repeats": 3}])
def test_the_ranks_batches_are_the_batches_of_one(
    folder: Source, accumulate: int, given: dict[str, Any]
):
    recipe = recipe_of(accumulate=accumulate, **given)
    with Loader(folder, recipe) as loader:
        whole = list(loader.batches(1, 5))
    for ranks in (2, 3, 6):
        parts = [
            list(Loader(folder, recipe, rank=rank, ranks=ranks).batches(1, 5))
            for rank in range(ranks)
        ]
        for step, batch in enumerate(whole):
            here = [part[step] for part in parts]
            assert [b.count for b in here] == [12 // ranks] * ranks
            together = {}
            for field in fields(Batch):
                values = [getattr(b, field.name) for b in here]
                if field.name == "count":
                    together[field.name] = sum(values)
                elif field.name in ("own", "share"):
                    assert all(np.array_equal(values[0], value) for value in values)
                    together[field.name] = values[0]
                else:
                    together[field.name] = joined(values, accumulate)
            assert digest(Batch(**together)) == digest(batch)


def test_a_seed_gives_other_batches(folder: Source, expected: list[str]):
    with Loader(folder, recipe_of(seed=6, **MIXED)) as loader:
        assert not set(digests(loader.batches(0, 9))) & set(expected)


# Evaluation.


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [None, 1, 3, 10, 16])
def test_an_evaluation_has_each_image_once_over_all_ranks(
    arrays: Data, ranks: int, batch: int | None
):
    recipe, seen = recipe_of(evaluation_resize=34), []
    parts = [
        list(
            Loader(arrays.train, recipe, rank=r, ranks=ranks).evaluation(
                arrays.validation, batch
            )
        )
        for r in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    local = -(-(batch or 12) // ranks)
    assert {b.images.shape for p in parts for b in p} == {(local, 32, 32, 3)}
    for batches in zip(*parts, strict=True):
        for one in batches:
            real = one.labels >= 0
            assert one.count == real.sum()
            assert not one.images[~real].any()
            seen += [
                (i.tobytes(), int(n))
                for i, n in zip(one.images[real], one.labels[real], strict=True)
            ]
    validation = arrays.validation
    images = [centre(validation.read(i), recipe) for i in range(10)]
    assert seen == [
        (image.tobytes(), int(label))
        for image, label in zip(images, validation.labels, strict=True)
    ]


# Broken images.


@pytest.fixture
def broken(tmp_path: Path) -> Source:
    """Of twenty images three cannot be read."""
    folder_of(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "03.jpg").write_bytes(b"no image")
    path = tmp_path / "b" / "07.jpg"
    path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "b" / "08.jpg").write_bytes(b"")
    return ImageFolder(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_with_its_path(broken: Source, workers: int):
    with Loader(broken, recipe_of(batch=10), workers=workers) as loader:
        for batches in (loader.batches(0, 4), loader.evaluation(broken)):
            with pytest.raises(InputError, match=r"0[378].jpg: .*") as caught:
                list(batches)
            assert Path(str(caught.value.path)).is_file()
            assert "\n" not in str(caught.value)
        assert not loader.skipped


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (0, 2), (2, 1)])
def test_a_broken_image_is_replaced_by_the_next_and_counted(
    broken: Source, workers: int, ranks: int
):
    recipe = recipe_of(batch=10, crop="none", flip=0.0, **{**MIXED, "augment": "none"})
    order, bad = Order(20, recipe), {3, 17, 18}
    loaders = [
        Loader(broken, recipe, workers=workers, rank=r, ranks=ranks, skip_broken=True)
        for r in range(ranks)
    ]
    for step in range(6):
        places, expected = order.places(step, np.arange(10)), []
        for position, index in enumerate(places.indices):
            tries = 0
            while index in bad:
                tries += 1
                index = order.instead(places, position, tries)
            expected.append(index)
        parts = [next(loader.batches(step, step + 1)) for loader in loaders]
        images, labels, partners = (
            joined([getattr(p, name) for p in parts], 1)
            for name in ("images", "labels", "partners")
        )
        assert images is not None
        assert labels is not None
        assert partners is not None
        assert np.array_equal(labels, broken.labels[expected])
        assert np.array_equal(partners, np.roll(images, 1, 0))
        for image, index in zip(images, expected, strict=True):
            pixels = broken.read(index).resize((32, 32), 2)
            assert np.array_equal(image, np.asarray(pixels))
    names = {name: why for loader in loaders for name, why in loader.skipped.items()}
    assert set(names) == {broken.name(index) for index in bad}
    assert all(name in why for name, why in names.items())
    for loader in loaders:
        loader.skipped.clear()
    tested = [b for loader in loaders for b in loader.evaluation(broken, 8)]
    assert sum(batch.count for batch in tested) == 17
    assert sum((batch.labels >= 0).sum() for batch in tested) == 17
    assert not any(batch.images[batch.labels < 0].any() for batch in tested)
    assert sum(len(loader.skipped) for loader in loaders) == 3
    for loader in loaders:
        loader.close()


def test_if_no_image_can_be_read_it_says_so(tmp_path: Path):
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    with (
        Loader(ImageFolder(tmp_path), recipe_of(batch=4), skip_broken=True) as loader,
        pytest.raises(InputError, match="none of the 4 images can be read; the last"),
    ):
        next(loader.batches(0, 1))


# Before anything starts.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ranks": 5}, "batch is 12; .* on 5 .* a multiple of 5"),
        ({"workers": -1}, "workers is -1; it must be an integer from 0"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"ahead": 0}, "ahead is 0; it must be an integer from 1"),
    ],
)
def test_what_cannot_be_loaded_is_refused_at_once(
    arrays: Data, given: dict[str, Any], said: str
):
    with pytest.raises(ValueError, match=said):
        Loader(arrays.train, **{"recipe": recipe_of(), **given})


def test_fewer_images_than_a_batch_cannot_be_trained_on_but_evaluated(arrays: Data):
    with Loader(arrays.train, recipe_of(batch=41)) as loader:
        with pytest.raises(InputError, match=r"there are 40 images .* a batch has 41"):
            next(loader.batches(0, 1))
        (batch,) = loader.evaluation(arrays.train)
    assert (batch.count, len(batch.images)) == (40, 41)


def test_steps_and_batches_that_do_not_exist_are_refused(arrays: Data):
    with Loader(arrays.train, recipe_of()) as loader:
        with pytest.raises(ValueError, match="start is 3 and stop 2"):
            next(loader.batches(3, 2))
        with pytest.raises(ValueError, match="batch is 0"):
            next(loader.evaluation(arrays.validation, 0))


# Processes.


def test_pixels_of_a_picture_are_not_shared_between_batches(arrays: Data):
    with Loader(arrays.train, recipe_of()) as loader:
        first, second = loader.batches(0, 2)
    assert not np.shares_memory(first.images, second.images)
