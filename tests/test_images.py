"""Preprocessing is torchvision's, bit for bit, on photographs and on odd images."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import EpsImagePlugin, Image, features

import parity
import resnet_spec
from parity.errors import InputError
from parity.images import load_image, prepare, seen
from parity.weights.digest import differing_bits
from resnet_spec import get_config, get_weights
from resnet_training.pictures import picture
from tests.support.networks import TINY


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
    with pytest.raises(ValueError, match=r"nothing\.png: no such file. Check the path"):
        parity.load_image(tmp_path / "nothing.png")
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: is no image"):
        parity.load_image(path)


def test_a_picture_that_is_a_program_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / "image.jpg"
    Image.new("RGB", (30, 20)).save(path, "EPS")
    said = "is drawn by a program, which is not run .EPS.. Save it as PNG"
    with pytest.raises(InputError, match=rf"image\.jpg: {said}"):
        load_image(path)
    with pytest.raises(InputError, match=said), Image.open(path) as image:
        seen(image)
    with pytest.raises(InputError, match=rf"image\.jpg: {said}"):
        picture(str(path))


def test_a_cut_image_is_refused(tmp_path: Path, photo: Path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read"):
        parity.load_image(path)


def test_an_open_image_is_refused_by_its_files_name(tmp_path: Path, photo: Path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo.read_bytes()[:20000])
    with Image.open(path) as image:
        with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read .* Get the"):
            parity.preprocess(image)
        with pytest.raises(ValueError, match=r"cut\.jpg: a photograph has 3 channels"):
            parity.preprocess(image, "resnet18_1d")
    with pytest.raises(ValueError, match="the image: is 9 pixels wide and 901 high, n"):
        parity.preprocess(Image.new("RGB", (9, 901)))
    with pytest.raises(ValueError, match="the image: a photograph has 3 channels"):
        parity.preprocess(Image.new("RGB", (9, 9)), "resnet18_1d")


@pytest.mark.parametrize("name", ["seresnet50", "resnet50_v1", "plain18", TINY])
def test_where_torchvision_has_no_weights_their_default_is_its_first_ones(name: Any):
    image = Image.fromarray(_noise())
    found = parity.preprocess(image, name)
    assert differing_bits({"": found}, {"": prepare(image.convert("RGB"))}) == {}
    with pytest.raises(ValueError, match="no published weights 'IMAGENET1K_V2' for"):
        parity.preprocess(image, name, "IMAGENET1K_V2")


@pytest.mark.parametrize("settings", [{"num_classes": 5}, {"output_stride": 8}])
def test_classes_and_stride_change_nothing_in_photographs(settings: dict[str, Any]):
    image = Image.fromarray(_noise())
    config = get_config("resnet50").replace(**settings)
    found, expected = parity.preprocess(image, config), parity.preprocess(image)
    assert differing_bits({"": found}, {"": expected}) == {}
    default = get_weights("resnet50", "DEFAULT").preprocessing
    assert default.resize == 232
    whole = prepare(image.convert("RGB"), **vars(default))
    assert differing_bits({"": found}, {"": whole}) == {}


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="crop is 300; it must be at most resize, 256"):
        prepare(Image.new("RGB", (300, 300)), crop=300)


# --- what torchvision misreads -----------------------------------------------------


def _same(found: Image.Image | Path, expected: Image.Image) -> bool:
    pixels = parity.preprocess(found, weights=None)
    if isinstance(found, Path):
        assert differing_bits({"": parity.load_image(found)}, {"": pixels}) == {}
    return differing_bits({"": pixels}, {"": prepare(expected)}) == {}


def _noise(seed: int = 0, size: tuple[int, int] = (300, 260)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm", "jp2"])
def test_gray_of_16_bits_is_scaled_to_8(tmp_path: Path, suffix: str):
    gray = _noise()
    # The nearest of 256 levels: what was scaled up comes back.
    wide = gray.astype(np.uint16) * 257 + np.random.default_rng(1).integers(
        -128, 129, gray.shape
    ).clip(-gray.astype(int) * 257, (255 - gray.astype(int)) * 257).astype(np.int16)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(wide.astype(np.uint16)).save(path, irreversible=False)
    assert _same(path, Image.fromarray(gray).convert("RGB"))


@pytest.mark.parametrize(("byte", "mode"), [(">", "I;16B"), ("<", "I;16")])
def test_gray_of_16_bits_is_scaled_in_either_order_of_bytes(byte: str, mode: str):
    gray = _noise()
    data = (gray.astype(f"{byte}u2") * 257).astype(f"{byte}u2").tobytes()
    image = Image.frombytes(mode, gray.shape[::-1], data)
    assert _same(image, Image.fromarray(gray).convert("RGB"))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_gray_of_32_bits_has_no_white_and_is_refused(tmp_path: Path, dtype: type):
    path = tmp_path / "image.tiff"
    Image.fromarray(_noise().astype(dtype)).save(path)
    said = r"image\.tiff: has gray pixels of the kind [IF], .* Save it with 8"
    with pytest.raises(ValueError, match=said):
        parity.load_image(path)
    with pytest.raises(ValueError, match="which of their values is white"):
        parity.preprocess(Image.fromarray(_noise().astype(dtype)))


def test_gray_that_is_inverted_is_refused(tmp_path: Path):
    path = tmp_path / "image.tiff"
    wide = Image.fromarray(_noise().astype(np.uint16) * 257)
    wide.save(path, tiffinfo={262: 0})
    with pytest.raises(ValueError, match="which of their values is white"):
        parity.load_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_picture_is_turned_as_its_exif_says(
    tmp_path: Path, orientation: int, suffix: str
):
    upright = Image.fromarray(np.stack([_noise(i, (90, 70)) for i in range(3)], -1))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright
    if orientation in turns:  # so that turning it back gives what was upright
        stored = upright.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    stored.save(path, exif=exif, lossless=True, quality=100)
    with Image.open(path) as image:
        image.load()
        seen = image.convert("RGB")
    if suffix == "jpg":  # loses bits; PIL turns TIFF by itself
        expected = seen.transpose(
            {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(
                orientation, turns.get(orientation, Image.Transpose.ROTATE_180)
            )
        )
        expected = seen if orientation == 1 else expected
    else:
        expected = upright
    assert _same(path, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str):
    gray = _noise()
    path = tmp_path / "image.png"
    logo = np.zeros_like(gray)
    shown = gray > 100
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray(np.where(shown, np.uint8(255), np.uint8(0)))
        image = Image.fromarray(logo).convert(mode)
        image.putalpha(alpha)
        image.save(path)
    else:
        logo[~shown] = 7
        image = Image.fromarray(logo)
        if mode == "P":
            image = image.convert("P")
        key = (7, 7, 7) if mode == "RGB" else 7
        image.convert(mode).save(path, transparency=key)
    expected = np.where(shown, np.uint8(0), np.uint8(255))
    assert _same(path, Image.fromarray(expected).convert("RGB"))


def test_what_is_half_transparent_is_half_white():
    image = Image.new("RGBA", (256, 256), (0, 100, 200, 51))
    assert _same(image, Image.new("RGB", (256, 256), (204, 224, 244)))


@pytest.mark.parametrize("size", [(1, 5000), (65000, 1), (3, 301)])
def test_what_is_no_photographs_shape_is_refused(tmp_path: Path, size: tuple[int, int]):
    path = tmp_path / "strip.png"
    Image.new("RGB", size).save(path)
    said = rf"strip\.png: is {size[0]} pixels wide and {size[1]} high.* Cut out"
    with pytest.raises(ValueError, match=said):
        parity.load_image(path)


def test_what_a_decoder_says_is_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise OSError("broken data stream. Offset 3")

    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(Image.Image, "convert", fail)
    said = r"cannot be read \(broken data stream\. Offset 3\)\. Get the file again"
    with pytest.raises(InputError, match=said):
        parity.load_image(path)


def test_what_is_no_regular_file_is_no_image(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path}: is no regular file"):
            parity.load_image(path)
    with pytest.raises(ValueError, match="is a directory"):
        parity.load_image(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of PIL's
@pytest.mark.parametrize(
    "suffix",
    [
        *("png", "jpg", "ppm", "tiff", "webp", "gif", "dds"),
        pytest.param(
            "avif",
            marks=pytest.mark.skipif(
                not features.check("avif"), reason="this Pillow has no AVIF"
            ),
        ),
    ],
)
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path: Path, suffix: str):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.stack([_noise(seed, (40, 30)) for seed in range(3)], -1)).save(
        path
    )
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 300), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        with suppress(ValueError):
            parity.load_image(path)
            continue
        with pytest.raises(ValueError, match=rf"^{path}: .*\. \w") as error:
            parity.load_image(path)
        assert str(error.value).isprintable()
