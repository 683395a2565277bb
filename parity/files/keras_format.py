"""Keras's three containers: one set of names, ``layer/leaf``, whichever it is.

The legacy ``.h5`` names its weights. A ``.weights.h5`` counts layers by class and their
weights; the layers' names stand beside them since Keras 3.6, and in a ``.keras`` in its
configuration. That is only searched for them: nothing is ever built from it.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parity.errors import CheckpointError
from parity.files.archive import END, Member, members, require_end
from parity.files.content import (
    MAX_INDEX,
    METADATA_KEY,
    Content,
    Hear,
    own_metadata,
    require_room,
    whole,
)
from parity.files.hdf5 import Hdf5, library

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
LEAVES = ("kernel", "bias", *_NORM)
"""The weights that layers of a residual network have."""

_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"
KERAS_MEMBERS = (_METADATA, _CONFIG, _WEIGHTS)
"""What a ``.keras`` is made of."""

_MAX_NAME = 1000  # bytes of a layer's
_OTHERS = ("optimizer", "optimizer_weights")  # beside a network that was trained
_CLASSES = {2: "dense", 3: "conv1d", 4: "conv2d", 5: "conv3d"}  # by a kernel's axes


def read_hdf5(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads a ``.h5`` of Keras, old or new, or the plain datasets of another's."""
    return _content(Hdf5(whole(file, size, hear)), {})


def read_keras(file: BinaryIO, size: int, hear: Hear) -> Content:
    """Reads the weights in a ``.keras``."""
    file.seek(-min(size, END.size), io.SEEK_END)
    require_end(file.read(), size)
    found = {m.name: m for m in members(whole(file, size, hear), _check_members)}
    require_room({m.name: m.size for m in found.values()}, size)
    names = _names_in(found[_CONFIG]) if _CONFIG in found else {}
    content = _content(Hdf5(found[_WEIGHTS].content(), size), names)
    content.kind, content.checked = ".keras", True
    return content


def write_h5(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Writes the legacy layout, which ``load_weights`` takes, by names too."""
    layers = _layers(arrays)
    texts: dict[str, Any] = {"backend": "numpy", "keras_version": "3"}

    def fill(file: Any) -> None:
        file.attrs.update(texts)
        _write_texts(file, "layer_names", list(layers))
        for layer, leaves in layers.items():
            group = file.create_group(layer)
            _write_texts(group, "weight_names", [f"{layer}/{leaf}" for leaf in leaves])
            for leaf, array in leaves.items():
                _write_array(group, f"{layer}/{leaf}", array)

    _write(path, fill, metadata)


def write_weights_h5(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Writes what ``load_weights`` of Keras 3 takes: layers counted in its order."""
    counted: Counter[str] = Counter()

    def fill(file: Any) -> None:
        for layer, leaves in _layers(arrays).items():
            kind = _class_of(layer, leaves)
            number = f"_{counted[kind]}" if counted[kind] else ""
            counted[kind] += 1
            group = file.create_group(f"layers/{kind}{number}/vars")
            group.attrs["name"] = layer
            for index, array in enumerate(leaves.values()):
                _write_array(group, str(index), array)

    _write(path, fill, metadata)


def _content(file: Hdf5, names: Mapping[str, str]) -> Content:
    """Returns what a file has; layers without a name are looked up in the names."""
    paths = [name for name in file.names() if name.partition("/")[0] not in _OTHERS]
    left = sorted({name.partition("/")[0] for name in file.names()} & {*_OTHERS})
    root = "model_weights/" if file.has("model_weights", "layer_names") else ""
    root = "model_weights/" if file.has("model_weights", "layer_names0") else root
    if root or file.has("/", "layer_names") or file.has("/", "layer_names0"):
        kind, flat = (
            "Keras HDF5",
            _legacy([p for p in paths if p.startswith(root)], root),
        )
    elif any(path.split("/")[-2:-1] == ["vars"] for path in paths):
        kind, flat = "Keras 3 HDF5", _counted(paths, file, names)
    else:
        kind, flat = "HDF5", [(path, path) for path in paths]
    repeated = [name for name, n in Counter(name for name, _ in flat).items() if n > 1]
    if repeated:
        raise CheckpointError(
            {"has two arrays for one name": repeated},
            advice="Save the one network that it is about on its own",
        )
    value = {name: file.array(path) for name, path in flat}
    text = file.text("/", METADATA_KEY, MAX_INDEX)
    metadata = own_metadata(None if text is None else {METADATA_KEY: text})
    notes = [f"left out what stands in the group {name!r}" for name in left]
    return Content(kind, value, metadata, notes=notes)


def _legacy(paths: Sequence[str], root: str) -> list[tuple[str, str]]:
    """Returns flat names and paths, by a layer's group and what is called how in it.

    A network within a network is one layer, whose weights are called after its layers.
    """
    below: dict[str, list[str]] = {}
    for path in paths:
        below.setdefault(path.removeprefix(root).partition("/")[0], []).append(path)
    found = []
    for layer, inner in below.items():
        parents = {path.split("/")[-2] for path in inner if "/" in path}
        for path in inner:
            *_, parent, leaf = ("", *path.split("/"))
            name = parent if len(parents) > 1 else layer
            found.append((f"{name}/{leaf.partition(':')[0]}", path))
    return found


def _counted(
    paths: Sequence[str], file: Hdf5, names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns flat names and paths, of layers that are only counted."""
    below: dict[str, list[str]] = {}
    for path in paths:
        below.setdefault(path.rpartition("/")[0], []).append(path)
    found, nameless = [], []
    for group, inner in below.items():
        counted = group.removesuffix("/vars")
        layer = file.text(group, "name", _MAX_NAME) or names.get(
            counted.rpartition("/")[2]
        )
        if layer is None:
            nameless.append(counted)
            continue
        inner.sort(key=lambda path: (len(path), path))  # 10 comes after 9
        ranks = [len(file.shape(path)) for path in inner]
        leaves = _leaves(ranks, counted.rpartition("/")[2])
        if leaves is None or not group.endswith("/vars"):  # not of such a network
            found += [(path, path) for path in inner]
        else:
            pairs = zip(leaves, inner, strict=True)
            found += [(f"{layer}/{leaf}", path) for leaf, path in pairs]
    if nameless:
        raise CheckpointError(
            {"does not say what its layers are called": nameless},
            advice="Keras before 3.6 wrote it: load it into its model, and save "
            "that as .keras or with a later Keras",
        )
    return found


def _leaves(ranks: Sequence[int], counted: str) -> Sequence[str] | None:
    """Returns what a layer's weights are, in Keras's order; ``None`` if unknown."""
    if ranks == [1, 1, 1, 1]:
        return _NORM
    if ranks and ranks[0] > 1 and list(ranks[1:]) in ([], [1]):
        return LEAVES[: len(ranks)]
    if ranks == [1, 1] and counted.startswith("batch_normalization"):
        return _NORM[2:]
    return None


def _names_in(config: Member) -> dict[str, str]:
    """Returns the names of layers by how they are counted, out of a configuration."""
    if config.size > MAX_INDEX:
        raise CheckpointError(f"its {_CONFIG} has {config.size} bytes, more than any")
    counted: Counter[str] = Counter()
    names: dict[str, str] = {}
    try:
        for layer in json.loads(bytes(config.content()))["config"]["layers"]:
            kind = _snake_case(layer["class_name"])
            number = f"_{counted[kind]}" if counted[kind] else ""
            counted[kind] += 1
            name = layer["config"]["name"]
            if isinstance(name, str):
                names[f"{kind}{number}"] = name
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}  # then the weights must have the names
    return names


def _snake_case(name: str) -> str:
    """Returns a class's name as Keras counts it: ``Conv2D`` becomes ``conv2d``."""
    found = ""
    for index, letter in enumerate(name):
        before, after = name[index - 1 : index], name[index + 1 : index + 2]
        starts = letter.isupper() and (
            (before.isalnum() and after.islower()) or before.islower()
        )
        found += f"_{letter}" if starts else letter
    return found.lower()


def _check_members(names: list[str]) -> None:
    others = [
        n for n in names if n not in KERAS_MEMBERS and not n.startswith("assets/")
    ]
    if others:
        raise CheckpointError(
            f"is a .keras with a member that Keras does not write, {others[0]!r}"
        )
    if _WEIGHTS not in names:
        raise CheckpointError(f"is a .keras without {_WEIGHTS}")


def _layers(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the arrays by layer, both in Keras's order."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition("/")
        if not layer or "/" in layer or leaf not in LEAVES:
            raise CheckpointError(
                f"{name!r} is no name of Keras's, which are layer/leaf with one of "
                f"{', '.join(LEAVES)}",
                advice="Write .safetensors, or give the arrays Keras's names",
            )
        layers.setdefault(layer, {})[leaf] = array
    return {
        layer: {leaf: layers[layer][leaf] for leaf in LEAVES if leaf in layers[layer]}
        for layer in _in_order(layers)
    }


def _in_order(layers: Iterable[str]) -> list[str]:
    """Returns layers as Keras has them: a block's projection before its last of a kind.

    Keras sorts by the distance from the output, and there the two stand side by side.
    """
    order = list(layers)
    for projection in [layer for layer in order if "_0_" in layer]:
        block, _, kind = projection.rpartition("_0_")
        last = max(layer for layer in order if _is_of(layer, block, kind))
        if last != projection:
            order.remove(projection)
            order.insert(order.index(last), projection)
    return order


def _is_of(layer: str, block: str, kind: str) -> bool:
    number = layer.removeprefix(f"{block}_").removesuffix(f"_{kind}")
    return layer == f"{block}_{number}_{kind}" and number.isdecimal()


def _class_of(layer: str, leaves: Mapping[str, np.ndarray]) -> str:
    if set(leaves) == {*_NORM}:
        return "batch_normalization"
    kernel = leaves.get("kernel")
    if (
        kernel is None
        or not {*leaves} <= {"kernel", "bias"}
        or kernel.ndim not in _CLASSES
    ):
        raise CheckpointError(
            f"{layer} has {', '.join(leaves)}, which no convolution, dense layer or "
            "norm has",
            advice="Write .h5, which has names for each",
        )
    return _CLASSES[kernel.ndim]


def _write(path: Path, fill: Any, metadata: dict[str, str] | None) -> None:
    # In memory, since HDF5 tells neither a full disk nor an interrupt as Python does.
    buffer = io.BytesIO()
    with library().File(buffer, "w") as file:
        fill(file)
        for key, text in (metadata or {}).items():
            file.attrs[key] = np.bytes_(text.encode())  # a length of its own is checked
    path.write_bytes(buffer.getbuffer())


def _write_array(group: Any, name: str, array: np.ndarray) -> None:
    dataset = group.create_dataset(name, data=array, track_times=False)
    if array.dtype.name == "bfloat16":  # as Keras marks it
        dataset.attrs["dtype"] = "bfloat16"


def _write_texts(group: Any, name: str, texts: list[str]) -> None:
    """Writes names, in several attributes where one would be too large for a header."""
    data = np.array([text.encode() for text in texts])
    parts = -(-data.nbytes // 2**15)
    if parts < 2:
        group.attrs[name] = data
    else:
        for index, part in enumerate(np.array_split(data, parts)):
            group.attrs[f"{name}{index}"] = part
