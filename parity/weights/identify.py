"""Which network a state belongs to, read off its names and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from math import gcd
from typing import Any

import resnet_spec
from parity.weights.names import COUNTER
from resnet_spec import ResNetConfig
from resnet_spec.attention import ATTENTION, squeezed
from resnet_spec.channels import EXPANSION
from resnet_spec.sizes import SIGNAL_POOL

Shapes = Mapping[str, tuple[int, ...]]


def identify(shapes: Shapes) -> ResNetConfig | None:
    """Reads the configuration off the names and shapes of a state in torch's layout.

    What shapes do not show has its default: a bottleneck strides on its 3x3 (v1.5), as
    torchvision's do, without projections the shortcut is A, not none; nothing is
    dilated or anti-aliased; padding, eps and momentum are torch's. Norms without
    running statistics are of 32 groups, or as many as divide their channels.

    Returns:
        The configuration, or ``None`` if this is no residual network of this family.
        The state may still lack entries, or have others: that is for a strict check.
    """
    try:
        return ResNetConfig(**_fields(shapes))
    except (KeyError, IndexError, ValueError, ZeroDivisionError, StopIteration):
        return None


def guessed(config: ResNetConfig) -> tuple[str, ...]:
    """Returns the settings of an identified network that shapes do not show."""
    fields = ["stride_on", "replace_stride_with_dilation", "norm_eps", "signal_width"]
    fields.append("block_padding")
    if config.stem != "3x3":
        fields += ["stem_padding", "pool_padding"]
        if config.head == "linear" and config.dimensions == 2:
            fields.append("anti_alias")
    if config.shortcut in ("A", "none"):
        fields.append("shortcut")
    if config.norm == "group":
        fields.append("norm_groups")
    if config.attention == "se":  # it is rounded
        fields.append("attention_ratio")
    return tuple(fields)


def closest_name(shapes: Shapes) -> str | None:
    """Returns the name of the network that a state's body looks like."""
    config = identify(shapes)
    return None if config is None else resnet_spec.closest_name(config)


def _fields(shapes: Shapes) -> dict[str, Any]:
    layers = _count_blocks(shapes)
    block = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    last = {"basic": "2", "bottleneck": "3"}[block]
    widths = tuple(
        _channels(shapes, f"layer{s + 1}.0.conv{last}", f"layer{s + 1}.0.bn{last}")
        // EXPANSION[block]
        for s in range(len(layers))
    )
    radix = _radix(shapes)
    second = "layer1.0.conv2.conv" if radix else "layer1.0.conv2"
    _, per_group, height, width = shapes[f"{second}.weight"]
    norm = "layer1.0.conv2.bn0" if radix else "layer1.0.bn2"
    inner = _channels(shapes, second, norm) // max(radix, 1)
    before = _channels(shapes, "layer1.0.conv1", "layer1.0.bn1")
    groups = before // per_group // max(radix, 1)
    deep = "conv1.0.weight" in shapes
    first = shapes["conv1.0.weight" if deep else "conv1.weight"]
    stem = {3: "3x3", 7: "7x7"}[first[3]]
    stem_channels = _channels(shapes, "conv1.6" if deep else "conv1", "bn1")
    if deep:
        stem = "deep" if 2 * first[0] == stem_channels else "tiered"
    fields: dict[str, Any] = {
        "block": block,
        "layers": layers,
        "widths": widths,
        "groups": groups,
        "radix": radix,
        "width_per_group": 64,
        "reduce_first": inner // before,
        "stem": stem,
        "stem_channels": stem_channels,
        "stem_pool": "conv" if "maxpool.0.weight" in shapes else "max",
        "shortcut": _shortcut(shapes, layers, widths),
        "conv_bias": "layer1.0.conv1.bias" in shapes,
        "dimensions": 1 if height < width else 2,
        "in_channels": first[1],
    }
    if block == "bottleneck":
        fields["width_per_group"] = inner // groups * 64 // widths[0]
    fields |= _norm(shapes) | _attention(shapes, layers)
    return fields | _head(shapes, ResNetConfig(**fields))


def _radix(shapes: Shapes) -> int:
    """Returns how many splits the first 3x3 of a bottleneck has; 0 if it is alone."""
    if "layer1.0.conv2.conv.weight" not in shapes:
        return 0
    return shapes["layer1.0.conv2.conv.weight"][0] // shapes["layer1.0.conv3.weight"][1]


def _channels(shapes: Shapes, conv: str, norm: str) -> int:
    """Returns how many channels most of a kernel and the norm behind it have.

    So one that has other ones is what a strict check names, and not all the others.
    """
    sizes = [shapes[f"{conv}.weight"][:1]]
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        sizes.append(shapes.get(f"{norm}.{leaf}", ()))
    counts = Counter(size for size in sizes if len(size) == 1)
    ((channels,), _), *_ = counts.most_common(1)
    return channels


def _count_blocks(shapes: Shapes) -> tuple[int, ...]:
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        stage, _, rest = name.partition(".")
        block = rest.partition(".")[0]
        if stage.startswith("layer") and stage[5:].isdigit() and block.isdigit():
            blocks.setdefault(int(stage[5:]), set()).add(int(block))
    counts = []
    for stage in range(len(blocks)):
        numbers = blocks[stage + 1]
        if numbers != set(range(len(numbers))):
            raise ValueError("a gap in the numbering is no network's")
        counts.append(len(numbers))
    return tuple(counts)


def _norm(shapes: Shapes) -> dict[str, Any]:
    """Reads the kind of norms: a batch norm has statistics, be it only some of them."""
    leaves = {name.rpartition(".")[2] for name in shapes}
    if leaves & {"running_mean", "running_var", COUNTER} or "bn1.weight" not in shapes:
        return {"norm": "batch"}
    # As many as divide the channels of all norms: no other weight has one axis.
    weights = [shape for n, shape in shapes.items() if n.endswith(".weight")]
    channels = [shape[0] for shape in weights if len(shape) == 1]
    return {"norm": "group", "norm_groups": gcd(32, *channels)}


def _attention(shapes: Shapes, layers: tuple[int, ...]) -> dict[str, Any]:
    """Reads what weighs channels off its layers in the first block."""
    prefix = "layer1.0.se."
    names = {n.removeprefix(prefix) for n in shapes if n.startswith(prefix)}
    found = {name.partition(".")[0] for name in names}
    if not found:
        return {}
    kind = next(kind for kind, own in ATTENTION.items() if found == set(own))
    if kind != "se":
        return {"attention": kind}
    sizes = set()
    for stage in range(len(layers)):
        inner, channels = shapes[f"layer{stage + 1}.0.se.fc1.weight"][:2]
        sizes.add((channels, inner))
    channels, inner = max(sizes)  # whose ratio is rounded least
    for ratio in (1 / 16, 1 / 4, 1 / 8, 1 / 2, 1 / 32, inner / channels):
        if all(squeezed(c, ratio) == size for c, size in sizes):
            return {"attention": kind, "attention_ratio": ratio}
    raise ValueError("no ratio gives these sizes")


def _shortcut(shapes: Shapes, layers: tuple[int, ...], widths: tuple[int, ...]) -> str:
    projected = {name.rpartition(".downsample.")[0] for name in shapes} - {""}
    if not projected:
        return "none" if any(b < a for a, b in pairwise(widths)) else "A"
    if any(name.endswith("downsample.2.weight") for name in shapes):
        return "D"
    kernels = [s[2:] for n, s in shapes.items() if n.endswith("downsample.0.weight")]
    if (3, 3) in kernels or (1, 3) in kernels:
        return "B3"
    every = f"layer1.{layers[0] - 1}" in projected and layers[0] > 1
    return "C" if every or (layers[0] == 1 and len(projected) == sum(layers)) else "B"


def _head(shapes: Shapes, body: ResNetConfig) -> dict[str, Any]:
    if "fc2.weight" in shapes:
        return {"head": "conv", "num_classes": shapes["fc2.weight"][0]}
    if "fc.weight" not in shapes:
        return {"include_top": False}
    classes, *rest = shapes["fc.weight"]
    channels = body.widths[-1] * body.expansion
    features = rest[0] if len(rest) == 1 else 0
    if features % channels or features in (0, channels):
        # What does not fit, a strict check names.
        biases = shapes.get("fc.bias", ())
        return {
            "num_classes": biases[0] if features != channels and biases else classes
        }
    # Any width that pools to as many positions has the same weights; 1000 is the one
    # that the network was made for.
    positions = features // channels
    for width in (1000, positions * SIGNAL_POOL << body.halvings):
        head = {"num_classes": classes, "head": "signal", "signal_width": width}
        if body.replace(**head).signal_positions == positions:
            return head
    return {"num_classes": classes}
