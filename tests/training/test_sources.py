"""What can be trained on, and what is said of what cannot."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as Theirs

from parity.errors import InputError
from resnet_training.arrays import of_arrays
from resnet_training.data import open_data
from resnet_training.folders import ImageFolder
from resnet_training.pictures import _agrees, decoder, picture
from tests.support.photographs import cut, folder_of, noise

TWO = {"cat": 4, "dog": 5}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with train and val."""
    folder_of(tmp_path / "train", TWO)
    folder_of(tmp_path / "val", {"cat": 2, "dog": 1}, first=20)
    return tmp_path


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_data(path, **how)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    return said.replace(str(path), "DATA")


# Folders.


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path: Path):
    root = folder_of(tmp_path, {"zebra": 3, "Äpfel und Birnen": 2, "a.b": 2, "B": 2})
    (root / "zebra" / "deep" / "er").mkdir(parents=True)
    (root / "zebra" / "deep-").mkdir()
    for number, name in enumerate(["deep/er/1.PNG", "deep/2.jpeg", "deep-/3.BMP"]):
        cut(number).convert("RGB").save(root / "zebra" / name)
    (root / "zebra" / "x.jpg").mkdir()  # a folder like any other
    cut(7).save(root / "zebra" / "x.jpg" / "inside.webp", lossless=True)
    (root / "B" / "notes.txt").write_text("no image")
    (root / "loose.jpg").write_bytes(b"beside the classes")
    (root / "linked").symlink_to(root / "B")
    mine, theirs = ImageFolder(root), Theirs(str(root))
    assert list(mine.classes) == theirs.classes
    found = mine.items(np.arange(len(mine)))
    assert list(zip(found, mine.labels.tolist(), strict=True)) == theirs.samples
    assert mine.labels.dtype == np.int64
    for index in range(len(theirs)):
        image, _ = theirs[index]
        assert np.array_equal(np.asarray(mine.read(index)), np.asarray(image))


def png_of(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, and has no pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", b""), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.jpg", b"this is a text", "is no image that PIL can read"),
        ("empty.jpg", b"", "is empty"),
        ("bomb.png", png_of(50_000, 50_000), "could be decompression bomb"),
        ("head.jpg", b"\xff\xd8\xff\xe0", "PIL can read|cannot be read as an image"),
        ("long.png", None, "is 1001 pixels wide and 10 high, no photograph"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
):
    path = tmp_path / name
    if content is None:
        Image.new("RGB", (1001, 10)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        picture(str(path))
    assert str(caught.value).startswith(str(path))
    assert caught.value.path == str(path)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, kind: str, kept: float):
    path = tmp_path / f"half.{kind}"
    cut(4).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"half\..*cannot be read as an image"):
        picture(str(path))


def test_a_link_to_nothing_and_a_pipe_are_no_images(tmp_path: Path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, said in (("gone", "no such file"), ("pipe", "is no regular file")):
        with pytest.raises(InputError, match=said):
            picture(str(tmp_path / f"{name}.jpg"))


def test_links_in_a_circle_are_refused(data: Path):
    (data / "train" / "cat" / "again").symlink_to(data / "train")
    assert "is a link to a folder that it lies in. Remove the link" in refused_below(
        data
    )


def refused_below(data: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_data(data)
    return str(caught.value)


def test_train_and_val_are_opened(data: Path):
    found = open_data(data)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0] * 4 + [1] * 5
    assert found.validation.labels.tolist() == [0, 0, 1]
    assert found.validation.name(2) == str(data / "val" / "dog" / "00.jpg")


def empty_class(data: Path) -> None:
    (data / "train" / "eel").mkdir()
    (data / "val" / "eel").mkdir()


def class_without_validation(data: Path) -> None:
    folder_of(data / "train" / "..", {"train/eel": 1})


def class_of_validation_alone(data: Path) -> None:
    (data / "val" / "fox").mkdir()


def only_train(data: Path) -> None:
    (data / "val").rename(data / "elsewhere")


def only_val(data: Path) -> None:
    (data / "train").rename(data / "elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (empty_class, "DATA (training): has no image of class 'eel'. Add images"),
        (class_without_validation, "DATA: validation has no class 'eel'. Both must"),
        (class_of_validation_alone, "DATA: validation has 'fox' besides, which"),
        (only_train, "DATA: has train and no val. Add val/CLASS/…, or name its train"),
        (only_val, "DATA: has val and no train. Add train/CLASS/…"),
    ],
)
def test_classes_that_do_not_agree_are_said(data: Path, change: Any, said: str):
    change(data)
    assert refused(data).startswith(said)


def test_a_folder_without_folders_a_file_and_nothing_are_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "none").mkdir()
    (tmp_path / "one" / "class").mkdir(parents=True)
    for name, said in (
        ("file", "is no folder"),
        ("missing", "no such folder"),
        ("none", "has no folders in it, and each class needs one"),
        ("missing.npz", "no such file"),
        ("nul\0byte", "cannot be read as a folder"),
    ):
        with pytest.raises(InputError, match=said):
            open_data(tmp_path / name, val_split=0.5)
    assert "has no images" in refused(tmp_path / "one", val_split=0.5)
    folder_of(tmp_path / "one", {"other/deeper": 2})
    (tmp_path / "one" / "class").rmdir()
    assert "has one class, 'other'" in refused(tmp_path / "one", val_split=0.5)


# A split.


def test_a_split_keeps_a_part_of_each_class_and_the_seed_decides(tmp_path: Path):
    folder_of(tmp_path, {"few": 2, "many": 20, "some": 7})
    found = open_data(tmp_path, val_split=0.25, seed=3)
    assert np.bincount(found.validation.labels).tolist() == [1, 5, 2]
    assert np.bincount(found.train.labels).tolist() == [1, 15, 5]
    names = [
        {s.name(i) for i in range(len(s))} for s in (found.train, found.validation)
    ]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 29
    again, other = (open_data(tmp_path, val_split=0.25, seed=s) for s in (3, 4))
    assert again.fingerprint == found.fingerprint != other.fingerprint
    for index in (0, 3):
        name = found.validation.name(index)
        pixels = np.asarray(picture(name))
        assert np.array_equal(np.asarray(found.validation.read(index)), pixels)


def test_a_split_that_cannot_be_is_refused(tmp_path: Path, data: Path):
    assert "has train and val, and val_split is given besides" in refused(
        data, val_split=0.1
    )
    alone = folder_of(tmp_path / "alone", {"cat": 1, "dog": 3})
    assert "has nothing to validate on. Make train/CLASS/… and val/" in refused(alone)
    assert "has one image of class 'cat', and a split needs two" in refused(
        alone, val_split=0.1
    )
    for part in (0, 1, -0.5, 1.5, "a", True, float("nan")):
        with pytest.raises(ValueError, match=r"val_split is .* between 0 and 1"):
            open_data(alone, val_split=part)  # type: ignore[arg-type]  # on purpose


# Fingerprints.


def test_a_fingerprint_tells_names_sizes_and_labels_and_not_the_place(
    data: Path, tmp_path_factory: pytest.TempPathFactory
):
    first = open_data(data).fingerprint
    assert open_data(data).fingerprint == first
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    data.rename(moved)
    assert open_data(moved).fingerprint == first
    file = moved / "train" / "cat" / "00.jpg"
    content, seen = file.read_bytes(), {first}
    file.write_bytes(content + b"\0")
    seen.add(open_data(moved).fingerprint)
    file.write_bytes(content)
    file.rename(file.with_name("000.jpg"))
    seen.add(open_data(moved).fingerprint)
    file.with_name("000.jpg").rename(moved / "train" / "dog" / "000.jpg")
    seen.add(open_data(moved).fingerprint)
    assert len(seen) == 4


# Arrays.


def test_arrays_are_data(tmp_path: Path):
    images, labels = noise(12, 9, 7, 3), np.arange(12) % 3
    data = of_arrays(images, labels, val_split=0.25, classes=["a", "b", "c"])
    assert (len(data.train), len(data.validation)) == (9, 3)
    assert data.classes == ("a", "b", "c")
    gray = noise(4, 9, 7)
    kept = {"val_images": gray[..., None], "val_labels": [0, 1, 2, 0]}
    path = tmp_path / "data.npz"
    np.savez(path, images=images, labels=labels.astype(np.uint8), **kept)
    found = open_data(path)
    assert found.classes == ("0", "1", "2")
    assert np.array_equal(np.asarray(found.train.read(5)), images[5])
    rgb = np.asarray(found.validation.read(2))
    assert np.array_equal(rgb, np.repeat(gray[2, :, :, None], 3, 2))
    assert found.train.name(5) == f"{path}[5]"
    changed = images.copy()
    changed[3, 4, 5, 1] ^= 1
    np.savez(tmp_path / "other.npz", images=changed, labels=labels, **kept)
    assert open_data(tmp_path / "other.npz").fingerprint != found.fingerprint
    np.savez(tmp_path / "other.npz", images=images, labels=(labels + 1) % 3, **kept)
    assert open_data(tmp_path / "other.npz").fingerprint != found.fingerprint


IMAGES, LABELS = noise(6, 4, 4, 3), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES / 255}, "images are of type float64; they must be uint8"),
        ({"images": IMAGES[0]}, "labels have shape .6,.; it must be .4,., one label"),
        ({"images": noise(6, 4, 4, 4)}, "images have shape .6, 4, 4, 4.; it must be"),
        ({"images": noise(6, 0, 4)}, "images have shape .6, 0, 4."),
        ({"images": noise(0, 4, 4), "labels": []}, "has no images"),
        ({"labels": LABELS[:5]}, "labels have shape .5,."),
        ({"labels": LABELS / 2}, "labels are of type float64; they must be integers"),
        ({"labels": LABELS - 1}, "has the label -1, and labels of 1 classes|one class"),
        ({"labels": LABELS * 2}, "has no image of class '1'"),
        ({"labels": LABELS * 0}, "has one class, '0'"),
        ({"classes": ["a"]}, "has one class"),
        ({"classes": ["a", "b", "c"]}, "has no image of class 'c'"),
        (
            {"labels": [0, 1, 2, 0, 1, 2], "classes": "ab"},
            "has the label 2, and labels",
        ),
        ({"val_images": IMAGES}, "has no val_labels"),
        ({"val_labels": LABELS}, "has no val_images"),
        ({"val_split": None}, "has nothing to validate on"),
        ({"val_images": IMAGES, "val_labels": LABELS}, "val_split is given besides"),
        (
            {"val_images": IMAGES, "val_labels": LABELS + 1, "val_split": None},
            "validation.: has the label 2, and labels of 2 classes go from 0 to 1",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], said: str):
    given = {"images": IMAGES, "labels": LABELS, "val_split": 0.5, **arrays}
    with pytest.raises(InputError, match=said):
        of_arrays(**given)


def test_a_npz_without_images_a_damaged_one_and_objects_are_refused(tmp_path: Path):
    np.savez(tmp_path / "other.npz", x=LABELS)
    assert "has no array 'images'; there is 'x'" in refused(tmp_path / "other.npz")
    objects = np.array([print] * 6, object)
    np.savez(tmp_path / "objects.npz", images=objects, labels=LABELS)
    (tmp_path / "text.npz").write_text("a text")
    np.savez(tmp_path / "cut.npz", images=IMAGES, labels=LABELS)
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-40])
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("objects", "text", "cut", "one"):
        said = refused(tmp_path / f"{name}.npz", val_split=0.5)
        assert "cannot be read as a .npz" in said, name


# Decoders.


def test_a_decoder_that_gives_other_pixels_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
):
    import simplejpeg

    from resnet_training import pictures

    assert decoder().startswith("simplejpeg 1")
    assert "equal to Pillow" in decoder()
    decode = simplejpeg.decode_jpeg

    def wrong(*given: Any) -> np.ndarray:
        pixels = decode(*given)
        pixels[-1, -1, 0] ^= 1
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", wrong)
    assert not _agrees(simplejpeg)
    pictures._equal_simplejpeg.cache_clear()
    assert decoder().startswith("Pillow")
    pictures._equal_simplejpeg.cache_clear()


def test_photographs_are_the_same_by_either_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from resnet_training import pictures

    for number in range(24):
        path, quality = tmp_path / f"{number}.jpg", 30 + 3 * number
        cut(number).save(path, quality=quality, subsampling=number % 3)
    paths = sorted(map(str, tmp_path.iterdir()))
    quick = [np.asarray(picture(path)) for path in paths]
    monkeypatch.setattr(pictures, "_equal_simplejpeg", lambda: None)
    for pixels, path in zip(quick, paths, strict=True):
        assert np.array_equal(pixels, np.asarray(picture(path)))
