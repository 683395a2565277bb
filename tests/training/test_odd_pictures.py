"""Pictures that are not RGB: torchvision's where it reads rightly, else predict's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as Theirs

from parity.errors import InputError
from parity.images import seen
from resnet_training import pictures
from resnet_training.folders import ImageFolder
from resnet_training.loader import Loader
from resnet_training.pictures import picture
from tests.support.batches import recipe_of
from tests.support.photographs import cut, folder_of, noise


def odd_images(folder: Path) -> None:
    """One of each mode that people meet."""
    photograph = cut(3)
    for mode in ("L", "1", "P", "CMYK", "YCbCr"):
        end = "png" if mode in ("L", "1", "P") else "jpg"
        photograph.convert(mode).save(folder / f"{mode}.{end}")
    for mode in ("RGBA", "LA"):
        photograph.convert(mode).save(folder / f"{mode}.png")
    photograph.save(folder / "progressive.jpg", progressive=True, quality=40)
    photograph.save(folder / "fine.jpg", subsampling=0, quality=99)
    photograph.save(folder / "upright.jpg", exif=exif_of(1))
    photograph.save(folder / "damaged.jpg", exif=b"Exif\0\0no TIFF at all")
    photograph.crop((0, 0, 1, 1)).save(folder / "pixel.jpg")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description
    tiff:Orientation="8"/></x:xmpmeta>"""


def misread_images(folder: Path) -> None:
    """Those of which torchvision does not get what people see."""
    photograph, wide = cut(3), noise(50, 60).astype(np.uint16) * 200
    Image.fromarray(wide).save(folder / "sixteen.png")
    Image.fromarray(wide).save(folder / "sixteen.tif")
    palette = photograph.quantize(8)
    palette.save(folder / "clear.png", transparency=bytes([0, 90, *[255] * 6]))
    palette.save(folder / "one.png", transparency=3)
    for mode in ("RGBA", "LA"):
        clear = photograph.convert(mode)
        clear.putalpha(Image.fromarray(noise(*photograph.size[::-1])))
        clear.save(folder / f"{mode}.png")
    for orientation in range(2, 9):
        exif = exif_of(orientation)
        photograph.save(folder / f"turned{orientation}.jpg", exif=exif)
    photograph.convert("L").save(folder / "gray.jpg", exif=exif_of(6))
    photograph.save(folder / "turned.png", exif=exif_of(6))
    photograph.save(folder / "turned.webp", exif=exif_of(6), lossless=True)
    photograph.save(folder / "xmp.jpg", xmp=XMP)


def test_images_of_every_mode_are_torchvisions_and_gray_ones_are_its_gray(
    tmp_path: Path,
):
    for name in ("odd", "other"):
        (tmp_path / name).mkdir()
    odd_images(tmp_path / "odd")
    cut(1).save(tmp_path / "other" / "1.png")
    mine, theirs = ImageFolder(tmp_path), Theirs(str(tmp_path))
    assert len(mine) == 13
    for index in range(len(theirs)):
        image, _ = theirs[index]
        assert np.array_equal(np.asarray(mine.read(index)), np.asarray(image))
        gray = picture(mine.name(index), 1)
        assert gray.mode == "L"
        assert np.array_equal(np.asarray(gray), np.asarray(image.convert("L")))


@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")  # torchvision's
@pytest.mark.parametrize("quick", [True, False])
def test_what_torchvision_misreads_is_read_as_predict_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
):
    if not quick:
        monkeypatch.setattr(pictures, "_equal_simplejpeg", lambda: None)
    for make, count in ((odd_images, 12), (misread_images, 17)):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder)
        files = sorted(folder.iterdir())
        assert len(files) == count
        for file in files:
            found, expected = np.asarray(picture(str(file))), np.asarray(seen(file))
            assert np.array_equal(found, expected), file
            with Image.open(file) as image:
                theirs = np.asarray(image.convert("RGB"))
            assert np.array_equal(found, theirs) == (make is odd_images), file


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_what_has_no_white_is_refused_in_training_too(tmp_path: Path, dtype: type):
    path = tmp_path / "image.tiff"
    Image.fromarray(noise(40, 50).astype(dtype)).save(path)
    with pytest.raises(InputError, match=r"image\.tiff: has gray pixels of the kind"):
        picture(str(path))


def test_a_loaders_process_prints_no_warning_of_pils(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder_of(tmp_path, {"cat": 4, "dog": 5})
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\0\0\0"
    path = tmp_path / "cat" / "warns.jpg"
    cut(3).save(path, exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF|larger than file"):
        seen(path)
    picture(str(path))
    source = ImageFolder(tmp_path)
    with Loader(source, recipe_of(), workers=1) as loader:
        list(loader.evaluation(source))
    assert capfd.readouterr() == ("", "")
