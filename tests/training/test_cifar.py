"""CIFAR as its authors pack it, and files that only look so."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.errors import InputError
from resnet_training.data import open_data
from tests.support.photographs import noise

NAMES = {10: [f"class {i}" for i in range(10)], 100: [f"c{i}" for i in range(100)]}


def content(classes: int, count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Files of training and, last, of tests: name, pixels (n, 3, 32, 32), labels."""
    if classes == 10:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    else:
        names = ["train", "test"]
    labels = np.arange(count) % classes
    return [
        (name, noise(count, 3, 32, 32, seed=seed), labels)
        for seed, name in enumerate(names)
    ]


def write_binary(root: Path, classes: int, count: int) -> None:
    for name, pixels, labels in content(classes, count):
        columns = [labels[:, None], pixels.reshape(count, -1)]
        if classes == 100:
            columns.insert(0, labels[:, None] // 5)
        record = np.concatenate(columns, 1).astype(np.uint8)
        (root / f"{name}.bin").write_bytes(record.tobytes())
    meta = {10: "batches.meta.txt", 100: "fine_label_names.txt"}[classes]
    (root / meta).write_text("\n".join(NAMES[classes]) + "\n\n")


def write_python(root: Path, classes: int, count: int, how: str = "2") -> None:
    """As numpy 1 on Python 2 wrote it; or as ours, in protocol 2 or the newest."""
    key = "labels" if classes == 10 else "fine_labels"
    for name, pixels, labels in content(classes, count):
        held: dict[Any, Any] = {key: labels.tolist(), "batch_label": name}
        flat = pixels.reshape(count, -1)
        if how == "python 2":
            raw = old_pickle(flat, {**held, "coarse_labels": [1] * count})
        else:
            raw = pickle.dumps({**held, "data": flat}, int(how))
        (root / name).write_bytes(raw)
    meta = (
        ("batches.meta", "label_names")
        if classes == 10
        else ("meta", "fine_label_names")
    )
    (root / meta[0]).write_bytes(pickle.dumps({meta[1]: NAMES[classes]}, 2))


def old_pickle(pixels: np.ndarray, held: dict[str, Any]) -> bytes:
    """Protocol 2 with texts of Python 2 (opcodes U and T), as in the real files."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def of(value: Any) -> bytes:
        if isinstance(value, list):
            return b"](" + b"".join(map(of, value)) + b"e"
        return integer(value) if isinstance(value, int) else text(value.encode())

    items = b"".join(of(key) + of(value) for key, value in held.items())
    kind = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    kind += (
        b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    array += integer(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    return b"\x80\x02}(" + items + of("data") + array + b"u."


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("how", ["binary", "python 2", "2", "5"])
def test_cifar_is_read_in_each_version(tmp_path: Path, classes: int, how: str):
    count = 20 if classes == 10 else 100
    inside = {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]
    root = tmp_path / inside if how == "5" else tmp_path  # the folder, or one above it
    root.mkdir(exist_ok=True)
    if how == "binary":
        write_binary(root, classes, count)
    else:
        write_python(root, classes, count, how)
    data, files = open_data(tmp_path), content(classes, count)
    assert list(data.classes) == NAMES[classes]
    for source, parts in ((data.train, files[:-1]), (data.validation, files[-1:])):
        pixels = np.concatenate([pixels for _, pixels, _ in parts])
        labels = np.concatenate([labels for *_, labels in parts])
        assert np.array_equal(source.labels, labels)
        for index in (0, len(labels) // 2, len(labels) - 1):
            image = np.asarray(source.read(index))
            assert np.array_equal(image, pixels[index].transpose(1, 2, 0))


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def built(function: str, *given: str) -> bytes:
    """A pickle that calls a function, in the oldest protocol."""
    module, _, name = function.rpartition(".")
    return (
        f"c{module}\n{name}\n(".encode()
        + b"".join(f"V{value}\n".encode() for value in given)
        + b"tR."
    )


@pytest.mark.parametrize(
    "function",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.getattr",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "_codecs.decode",
        "resnet_training.cifar.open",
        "copyreg._reconstructor",
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_its_name(
    tmp_path: Path, function: str
):
    write_python(tmp_path, 10, 10)
    (tmp_path / "data_batch_3").write_bytes(built(function, f"touch {tmp_path}/ran"))
    with pytest.raises(
        InputError, match=r"data_batch_3: .* would run or build"
    ) as said:
        open_data(tmp_path)
    assert function in str(said.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_runs_nothing_wherever_it_is(tmp_path: Path, protocol: int):
    write_python(tmp_path, 10, 10)
    for file in ("data_batch_1", "test_batch", "batches.meta"):
        kept = (tmp_path / file).read_bytes()
        hidden = {"labels": [Runs(tmp_path / "ran")], "label_names": []}
        (tmp_path / file).write_bytes(pickle.dumps(hidden, protocol))
        with pytest.raises(InputError, match=r"would run or build \w+.system"):
            open_data(tmp_path)
        (tmp_path / file).write_bytes(kept)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))  # the test can fail
    assert (tmp_path / "ran").exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
TEN = list(range(10))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x05",
        b"a text",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": None, "labels": TEN}),
        pickle.dumps({"data": noise(10, 3072), "labels": None}),
        pickle.dumps({"data": noise(10, 3072), "labels": TEN[:9]}),
        pickle.dumps({"data": noise(10, 3072), "labels": [True] * 10}),
        pickle.dumps({"data": noise(10, 3072), "labels": [10**30] * 10}),
        pickle.dumps({"data": noise(10, 3071), "labels": TEN}),
        pickle.dumps({"data": noise(10, 3072).astype(np.float32), "labels": TEN}),
        pickle.dumps({"data": noise(3072), "labels": TEN}),
        b"}(Vdata\n" + ARRAY + b"Vlabels\n](K\x00eu.",  # an array without content
        pickle.dumps({"data": np.asfortranarray(noise(10, 3072)), "labels": TEN}, 2),
        pickle.dumps({"data": np.asfortranarray(noise(10, 3072)), "labels": TEN}, 5),
        b"}(Vdata\n" + ARRAY + b"(K\x01(I-1\nI3072\ntNNC\x00tbVlabels\n]u.",
        b"cnumpy\nndarray\n}Vx\nK\x01sb.",  # content for a class
        b"cnumpy\nndarray\nN}V__init__\nK\x01s\x86b.",
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",  # so many bytes follow
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"(" * 5000 + b".",
        b"Pid\n.",
        b"\x82\x01.",
        b"}(" + b"}](}e" + b"K\x01u.",  # a key that is no key
    ],
)
def test_a_pickle_of_something_else_is_one_sentence(tmp_path: Path, raw: bytes):
    write_python(tmp_path, 10, 10)
    (tmp_path / "data_batch_2").write_bytes(raw)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "data_batch_2"))
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_pickle_is_refused(tmp_path: Path):
    write_python(tmp_path, 10, 10, "python 2")
    whole = (tmp_path / "test_batch").read_bytes()
    places = [*range(1, 200, 3), *range(200, len(whole), 4001), len(whole) - 1]
    for kept in places:
        (tmp_path / "test_batch").write_bytes(whole[:kept])
        with pytest.raises(InputError, match="test_batch"):
            open_data(tmp_path)


def test_reading_leaves_the_stand_ins_as_they_were():
    from resnet_training import cifar

    before = {name: dict(vars(cifar._STAND_INS[name])) for name in cifar._STAND_INS}
    for raw in (
        b"c_codecs\nencode\nN}Vx\nK\x01s\x86b.",
        b"cnumpy\ndtype\n}Vx\nK\x01sb.",
    ):
        with pytest.raises((TypeError, AttributeError, pickle.UnpicklingError)):
            cifar._Inert(io.BytesIO(raw)).load()
    assert before == {n: dict(vars(cifar._STAND_INS[n])) for n in cifar._STAND_INS}


def test_binary_files_of_another_length_and_missing_ones_are_said(tmp_path: Path):
    write_binary(tmp_path, 10, 10)
    for name, change, said in (
        (
            "data_batch_4.bin",
            lambda p: p.write_bytes(b"x" * 3074),
            "records of CIFAR-10",
        ),
        ("data_batch_5.bin", lambda p: p.unlink(), "no such file"),
        ("test_batch.bin", lambda p: p.write_bytes(b"\x0a" + b"x" * 3072), "label 10"),
        ("batches.meta.txt", lambda p: p.write_text("a b c"), "list of 10 names"),
    ):
        kept = (tmp_path / name).read_bytes()
        change(tmp_path / name)
        with pytest.raises(InputError, match=said):
            open_data(tmp_path)
        (tmp_path / name).write_bytes(kept)
    with pytest.raises(InputError, match=r"is CIFAR, .* val_split is given"):
        open_data(tmp_path, val_split=0.1)
    (tmp_path / "batches.meta.txt").unlink()
    assert open_data(tmp_path).classes == tuple("0123456789")
