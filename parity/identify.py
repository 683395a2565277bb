"""Which network a state belongs to, read off its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from resnet_spec import ResNetConfig, find_name

Shapes = Mapping[str, tuple[int, ...]]


def identify(shapes: Shapes) -> ResNetConfig | None:
    """Reads the configuration off the names and shapes of a state in torch's layout.

    What shapes do not show has its default: the stride of a bottleneck is taken to be
    on the 3x3 (v1.5), as torchvision has it; dilation, eps and momentum likewise.

    Returns:
        The configuration, or ``None`` if this is no residual network of this family.
        The state may still lack entries, or have others: that is for a strict check.
    """
    try:
        layers = _count_blocks(shapes)
        bottleneck = "layer1.0.conv3.weight" in shapes
        last = "conv3" if bottleneck else "conv2"
        expansion = 4 if bottleneck else 1
        widths = tuple(
            shapes[f"layer{stage + 1}.0.{last}.weight"][0] // expansion
            for stage in range(len(layers))
        )
        inner, per_group, _, _ = shapes["layer1.0.conv2.weight"]
        groups = inner // per_group
        stem = shapes["conv1.weight"]
        top = shapes.get("fc.weight")
        config = ResNetConfig(
            block="bottleneck" if bottleneck else "basic",
            layers=layers,
            widths=widths,
            groups=groups,
            width_per_group=per_group * 64 // widths[0],
            in_channels=stem[1],
            num_classes=1000 if top is None else top[0],
            include_top=top is not None,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None
    if stem[0] != config.widths[0] or stem[2:] != (7, 7):
        return None  # another stem: a deep one, or a CIFAR network's
    return config


def closest_name(shapes: Shapes) -> str | None:
    """Returns the name of the network that a state's body looks like."""
    config = identify(shapes)
    if config is None:
        return None
    return find_name(config.replace(num_classes=1000, in_channels=3, include_top=True))


def _count_blocks(shapes: Shapes) -> tuple[int, ...]:
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        stage, _, rest = name.partition(".")
        block = rest.partition(".")[0]
        if stage.startswith("layer") and stage[5:].isdigit() and block.isdigit():
            blocks.setdefault(int(stage[5:]), set()).add(int(block))
    # A gap in either numbering is no network's.
    return tuple(max(blocks[stage + 1]) + 1 for stage in range(max(blocks)))
