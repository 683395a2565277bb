"""What He et al. 2015 (arXiv 1512.03385) print, to be set beside what we count."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_spec.config import ResNetConfig
from resnet_spec.variants import get_config


@dataclass(frozen=True)
class Printed:
    """One figure of the paper.

    Args:
        where: its table.
        what: the network, in the paper's words.
        name: ours.
        config: ours, as the paper built it.
        quantity: ``"multiply_adds"`` (the paper's FLOPs) or ``"parameters"``.
        unit: what the figure is to be multiplied by.
        figure: as printed.
    """

    where: str
    what: str
    name: str
    config: ResNetConfig
    quantity: str
    unit: float
    figure: str


def printed() -> list[Printed]:
    """Returns the paper's counts, in its order."""
    flops = [
        # Identity shortcuts with zero padding for the basic blocks (section 3.4).
        ("18-layer", "resnet18", get_config("resnet18").replace(shortcut="A"), "1.8"),
        ("34-layer", "resnet34", get_config("resnet34").replace(shortcut="A"), "3.6"),
        ("50-layer", "resnet50_v1", get_config("resnet50_v1"), "3.8"),
        ("101-layer", "resnet101_v1", get_config("resnet101_v1"), "7.6"),
        ("152-layer", "resnet152_v1", get_config("resnet152_v1"), "11.3"),
    ]
    sizes = [
        ("20", "0.27"),
        ("32", "0.46"),
        ("44", "0.66"),
        ("56", "0.85"),
        ("110", "1.7"),
        ("1202", "19.4"),
    ]
    return [
        Printed("Table 1", what, name, config, "multiply_adds", 1e9, figure)
        for what, name, config, figure in flops
    ] + [
        Printed(
            where="Table 6",
            what=f"ResNet-{depth}",
            name=f"cifar_resnet{depth}",
            config=get_config(f"cifar_resnet{depth}"),
            quantity="parameters",
            unit=1e6,
            figure=figure,
        )
        for depth, figure in sizes
    ]
