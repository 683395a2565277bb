"""Preprocessing is torchvision's, bit for bit, on photographs and on odd images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

import parity
import resnet_spec
from parity.images import prepare
from parity.weights.digest import differing_bits
from resnet_spec import get_weights


def _theirs(model: str, name: str, image: Image.Image) -> np.ndarray:
    weights = torchvision.models.get_model_weights(model)[name]
    return weights.transforms()(image.convert("RGB"))[None].numpy()


ALL = [
    (model, name)
    for model in resnet_spec.list_models()
    for name in resnet_spec.list_weights(model)
]


@pytest.mark.parametrize(("model", "name"), ALL)
def test_a_photograph_is_bit_identical_for_all_published_weights(
    photo: Path, model: str, name: str
):
    found = parity.load_image(photo, get_weights(model, name))
    assert found.dtype == np.float32
    with Image.open(photo) as image:
        assert differing_bits({"": found}, {"": _theirs(model, name, image)}) == {}


SIZES = (
    *((224, 224), (256, 256), (256, 300), (500, 331), (333, 500), (9, 40), (1001, 257)),
    # The crop's offset is 37.5 and becomes 38; 386.5 and 456.5, above, lose their half.
    *((299, 256), (256, 299)),
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_any_size_and_mode_is_bit_identical(tmp_path: Path, size, mode: str):
    rng = np.random.default_rng(sum(size))
    pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    with Image.open(path) as image:
        expected = _theirs("resnet50", "IMAGENET1K_V1", image)
    assert differing_bits({"": parity.load_image(path)}, {"": expected}) == {}


def test_every_value_a_pixel_can_have_is_bit_identical():
    pixels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(256, 1).repeat(3, 2)
    image = Image.fromarray(pixels)
    expected = _theirs("resnet50", "IMAGENET1K_V1", image)
    assert differing_bits({"": prepare(image)}, {"": expected}) == {}


def test_what_is_no_image_is_refused_by_name(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"nothing\.png: cannot be read \(No such file"
    ):
        parity.load_image(tmp_path / "nothing.png")
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: is no image"):
        parity.load_image(path)


def test_a_cut_image_is_refused(tmp_path: Path, photo: Path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read"):
        parity.load_image(path)


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="crop is 300; it must be at most resize, 256"):
        prepare(Image.new("RGB", (300, 300)), crop=300)
