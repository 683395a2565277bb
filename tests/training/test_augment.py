"""Augmentations against torchvision's own, given the same draws: to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import transforms as theirs
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide

from parity.judging.tolerances import UNIT_ROUNDOFF
from resnet_spec import TrainingRecipe, get_recipe
from resnet_training.augment import augmented, centre, random_erased, random_part
from resnet_training.operations import magnitude_of, operate, rand_augment
from resnet_training.order import numbers_of
from tests.support.draws import torch_draws_from
from tests.support.photographs import cut


def recipe_of(**fields: Any) -> TrainingRecipe:
    return get_recipe("reference", **{"size": 56, **fields})


def torchvisions(recipe: TrainingRecipe) -> Any:
    """The chain of torchvision's reference, for a recipe."""
    how = InterpolationMode(recipe.interpolation)
    size, chain = recipe.size, []
    if recipe.crop == "random-resized":
        ends = (recipe.crop_scale, recipe.crop_ratio)
        chain += [theirs.RandomResizedCrop(size, *ends, interpolation=how)]
    else:
        chain += [theirs.Resize((size, size), how)]
    if recipe.crop in ("padded", "shifted"):
        mode = {"padded": "constant", "shifted": "edge"}[recipe.crop]
        chain += [theirs.RandomCrop(size, size // 8, padding_mode=mode)]
    chain += [theirs.RandomHorizontalFlip(recipe.flip)]
    if recipe.augment == "trivial":
        chain += [TrivialAugmentWide(interpolation=how)]
    if recipe.augment == "randaugment":
        settings = recipe.augment_operations, recipe.augment_magnitude
        chain += [RandAugment(*settings, interpolation=how)]
    chain += [theirs.PILToTensor()]
    if recipe.erasing:  # they erase what is normalised; here 0 marks what is erased
        chain += [lambda pixels: pixels.int() + 1, theirs.RandomErasing(recipe.erasing)]
    return theirs.Compose(chain)


@pytest.mark.parametrize("augment", ["none", "trivial", "randaugment"])
@pytest.mark.parametrize("crop", ["random-resized", "padded", "shifted", "none"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_images_are_torchvisions(crop: Any, augment: Any, interpolation: Any):
    recipe = recipe_of(crop=crop, augment=augment, interpolation=interpolation)
    chain = torchvisions(recipe)
    changed = 0
    for number in range(25):
        image = cut(number)
        image = image.convert("L") if number % 5 == 4 else image
        pixels, _ = augmented(image, recipe, numbers_of((0, number)))
        with torch_draws_from(numbers_of((0, number))):
            expected = chain(image).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, expected), number
        plain = np.asarray(image.resize((56, 56))).reshape(pixels.shape)
        changed += not np.array_equal(pixels, plain)
    assert changed > 5


@pytest.mark.parametrize("augment", ["none", "trivial", "randaugment"])
def test_what_is_erased_is_torchvisions_and_drawn_last(augment: Any):
    recipe = recipe_of(erasing=0.6, augment=augment)
    chain, without = torchvisions(recipe), recipe_of(augment=augment)
    erasures = 0
    for number in range(30):
        pixels, (top, left, height, width) = augmented(
            cut(number), recipe, numbers_of((0, number))
        )
        mine = pixels.astype(int) + 1
        mine[top : top + height, left : left + width] = 0
        with torch_draws_from(numbers_of((0, number))):
            assert np.array_equal(mine, chain(cut(number)).permute(1, 2, 0).numpy())
        same, _ = augmented(cut(number), without, numbers_of((0, number)))
        assert np.array_equal(pixels, same)
        erasures += height > 0
    assert 9 < erasures < 27


@pytest.mark.parametrize("sides", [(640, 427), (32, 900), (900, 32), (1, 1), (7, 3)])
def test_random_parts_are_torchvisions(sides: tuple[int, int]):
    image: Any = Image.new("L", sides)
    parts = set()
    ends = ((0.08, 1.0), (3 / 4, 4 / 3))
    for number in range(400):
        mine = random_part(image, *ends, numbers_of((1, number)))
        with torch_draws_from(numbers_of((1, number))):
            expected = theirs.RandomResizedCrop.get_params(
                image, list(ends[0]), list(ends[1])
            )
        assert mine == expected
        parts.add(mine)
    assert len(parts) > 1 or sides == (1, 1) or min(sides) * 20 < max(sides)


def test_an_image_in_which_nothing_fits_is_not_erased():
    pixels, nothing = torch.ones(3, 4, 400), 0
    for number in range(100):
        with torch_draws_from(numbers_of((2, number))):
            *expected, value = theirs.RandomErasing.get_params(
                pixels, (0.02, 0.33), (0.3, 3.3), [0.0]
            )
        given_up = value is pixels
        mine = random_erased(4, 400, numbers_of((2, number)))
        assert mine == ((0, 0, 0, 0) if given_up else tuple(expected))
        nothing += given_up
    assert 0 < nothing < 100


def test_torch_computes_uniform_numbers_with_one_rounding_or_two():
    """What draws.py does in torch's place: exact on processors that fuse."""
    generator, fused, plain = torch.Generator(), 0, 0
    low, high = np.float32(0.08), np.float32(1)
    for seed in range(300):
        unit = torch.rand(1, generator=generator.manual_seed(seed)).numpy()[0]
        value = torch.empty(1).uniform_(0.08, 1, generator=generator.manual_seed(seed))
        once = np.float32(float(high - low) * float(unit) + float(low))
        fused += float(value) == float(once)
        plain += float(value) == float((high - low) * unit + low)
    assert 300 in (fused, plain)


@pytest.mark.parametrize("space", [TrivialAugmentWide(), RandAugment()])
def test_magnitudes_are_torchvisions(space: Any):
    for size in (32, 56, 160, 176, 224, 331):
        trivial = isinstance(space, TrivialAugmentWide)
        given = (31,) if trivial else (31, (size, size))
        for name, (theirs_, _) in space._augmentation_space(*given).items():
            if theirs_.ndim == 0:
                continue
            first, last = float(theirs_[0]), float(theirs_[-1])
            if name.startswith("Translate") and not trivial:
                last = 150 / 331 * size
            elif name != "Posterize":
                last = round(last, 2)
            mine = [magnitude_of(name, first, last, i) for i in range(31)]
            if name.startswith("Translate"):  # only whole pixels are used
                assert list(map(int, mine)) == list(map(int, theirs_.tolist()))
            error = np.abs(np.array(mine) - theirs_.double().numpy())
            assert error.shape == (31,)
            limit = 2 * UNIT_ROUNDOFF["float32"]  # a float32 that is rounded twice
            assert (error <= limit * np.abs(theirs_.double().numpy())).all()
            fuses = torch.linspace(0, 0.99, 31)[20] == np.float32(
                magnitude_of("ShearX", 0, 0.99, 20)
            )
            assert not fuses or mine == theirs_.tolist(), (name, size)


def test_randaugment_shifts_by_a_part_of_each_side():
    theirs_: Any = RandAugment(1, 30)
    shifted = 0
    for number in range(60):
        image = cut(1, 200, 50)
        with torch_draws_from(numbers_of((3, number))):
            expected = theirs_(image)
        nearest, numbers = Image.Resampling.NEAREST, numbers_of((3, number))
        mine = rand_augment(image, numbers, nearest, operations=1, magnitude=30)
        assert np.array_equal(np.asarray(mine), np.asarray(expected))
        shifted += int(numbers_of((3, number)).integers(14)) in (3, 4)
    assert shifted > 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_operation_changes_a_photograph(mode: str):
    image = cut(1).convert(mode)
    for name, size in {
        "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 5, "TranslateY": 5, "Rotate": 9,
        "Brightness": 0.5, "Contrast": 0.5, "Sharpness": 0.9, "Posterize": 3,
        "Solarize": 40, "AutoContrast": 0, "Equalize": 0,
    }.items():  # fmt: skip
        out = operate(image, name, size, Image.Resampling.BILINEAR)
        assert out.size == image.size
        same = np.array_equal(np.asarray(out), np.asarray(image))
        assert not same or name == "AutoContrast", name
    for name in ("Identity", "Color"):
        out = operate(image, name, 0, Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(out), np.asarray(image))


@pytest.mark.parametrize("resize", [None, 64, 71])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluated_images_are_torchvisions(resize: int | None, interpolation: Any):
    recipe = recipe_of(
        evaluation_resize=resize, evaluation_crop=64, interpolation=interpolation
    )
    how = InterpolationMode(interpolation)
    steps = [
        theirs.Resize(resize or (64, 64), how),
        theirs.CenterCrop(64),
        theirs.PILToTensor(),
    ]
    chain: Any = theirs.Compose(steps)
    for number in range(12):
        image = cut(number).convert("L" if number % 5 == 4 else "RGB")
        expected = chain(image).permute(1, 2, 0).numpy()
        assert np.array_equal(centre(image, recipe), expected)


def test_an_image_of_one_pixel_and_one_of_the_size_itself_go_through():
    for crop in ("random-resized", "padded", "shifted", "none"):
        recipe = recipe_of(crop=crop, augment="randaugment", evaluation_resize=64)
        for sides in ((1, 1), (56, 56), (1, 60)):
            image = cut(3).resize(sides)
            pixels, _ = augmented(image, recipe, np.random.default_rng(0))
            assert pixels.shape == centre(image, recipe).shape == (56, 56, 3)


def test_a_flip_happens_as_often_as_asked():
    image = cut(2).resize((56, 56))
    for chance in (0.0, 0.25, 1.0):
        recipe = recipe_of(crop="none", flip=chance)
        flips = sum(
            not np.array_equal(
                augmented(image, recipe, numbers_of((0, i)))[0], np.asarray(image)
            )
            for i in range(200)
        )
        assert abs(flips - 200 * chance) < 25 * (0 < chance < 1) + 1
