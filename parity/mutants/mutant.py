"""What a mutant is: a fault, the network it shows on, who must see it and name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from parity.images import random_images
from parity.judging.check import check
from parity.judging.report import Report
from parity.weights.flax_state import modules, variables
from parity.weights.samples import random_state
from parity.weights.state import load_state_dict
from parity.weights.twins import abstract_flax, abstract_torch, entries_of
from resnet_spec import ResNetConfig

Change = Callable[[Any], None]
"""Changes a Flax twin in place."""

Fault = type[nnx.Module] | Mapping[str, Any]
"""What a module becomes an instance of, or the attributes that it is given."""

_BASIC = ResNetConfig(block="basic", layers=(1, 1), widths=(4, 6), num_classes=5)

NETWORKS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        "basic": _BASIC,
        "square": _BASIC.replace(num_classes=6),  # its last weight's shape hides a turn
        "biased": _BASIC.replace(layers=(1,), widths=(4,), stem="3x3", conv_bias=True),
        "A": _BASIC.replace(shortcut="A"),
        "D": _BASIC.replace(shortcut="D", stem="deep"),
        "bottleneck": ResNetConfig(
            block="bottleneck", layers=(1, 1), widths=(4, 4), groups=2, num_classes=5
        ),
        "SE": _BASIC.replace(attention="se"),
        "ECA": ResNetConfig(
            block="bottleneck",
            layers=(1,),
            widths=(32,),
            width_per_group=8,
            stem_channels=4,
            num_classes=5,
            attention="eca",
        ),
        "blur": _BASIC.replace(anti_alias="blur"),
        "blurred bottleneck": ResNetConfig(
            block="bottleneck",
            layers=(1, 1),
            widths=(4, 4),
            num_classes=5,
            anti_alias="blur",
        ),
        "average": _BASIC.replace(anti_alias="average"),
        "tiered": _BASIC.replace(stem="tiered", stem_channels=8, shortcut="D"),
        "wide": _BASIC.replace(stem="deep", stem_channels=12, shortcut="D"),
        "reduced": ResNetConfig(
            block="bottleneck",
            layers=(1, 1),
            widths=(4, 4),
            reduce_first=2,
            num_classes=5,
        ),
        "drops": _BASIC.replace(
            layers=(1, 1, 1),
            widths=(4, 6, 6),
            drop_path_rate=0.2,
            drop_block_rate=0.1,
        ),
        "group": _BASIC.replace(widths=(4, 8), norm="group", norm_groups=4),
        "split": ResNetConfig(
            block="bottleneck",
            layers=(1, 1),
            widths=(8, 8),
            groups=2,
            radix=2,
            anti_alias="avd",
            num_classes=5,
        ),
        "RS": _BASIC.replace(stem_pool="conv", shortcut="B3"),
        "conv head": _BASIC.replace(layers=(1,), widths=(4,), stem="3x3", head="conv"),
        "signal": ResNetConfig(
            block="basic",
            layers=(1,),
            widths=(4,),
            num_classes=5,
            head="signal",
            dimensions=1,
            signal_width=64,
        ),
    }
)
"""Small networks, by name; each fault shows on one of them."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault of the Flax twin.

    Args:
        number: in the project's list; several may share one.
        name: in words, unique.
        gates: that must fail, the one that should kill it first. An equivalent has
            none: it computes the same, and no gate may fail.
        passes: gates that an equivalent must pass.
        culprit: what the first of these gates must name first: a module, or an entry of
            the state.
        apply: makes the fault.
        proof: why an equivalent computes the same.
        network: on which it shows, of ``NETWORKS``.
        size: of the images, (height, width). On odd sizes much is the same that is not
            on even ones.
        state: changes the weights of both twins first, for faults that only show on
            some.
    """

    number: int
    name: str
    apply: Change
    gates: tuple[str, ...] = ("G1 isolated", "G1")
    passes: tuple[str, ...] = ("G1 isolated",)
    culprit: str = ""
    proof: str = ""
    network: str = "basic"
    size: tuple[int, int] = (64, 48)
    state: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict

    def twins(self, *, seed: int = 0) -> tuple[Any, Any]:
        """Makes both twins of its network, equal, every value random.

        Args:
            seed: of the weights.
        """
        config = NETWORKS[self.network]
        state = self.state(random_state(entries_of(config), seed=seed))
        twins = abstract_torch(config), abstract_flax(config)
        for twin in twins:
            load_state_dict(twin, state)
        return twins

    def images(self, *, seed: int = 1) -> np.ndarray:
        """Draws two images that it shows on.

        Args:
            seed: of the images.
        """
        shape = (2, NETWORKS[self.network].in_channels, *self.size)
        return random_images(shape, seed=seed)

    def applied(self, model: Any) -> Any:
        """Returns a copy of a Flax twin with the fault."""
        copy = nnx.merge(*nnx.split(model), copy=True)  # of the variables too
        self.apply(copy)
        return copy

    def check(self, gates: Sequence[str], *, seed: int = 0) -> Report:
        """Checks the right torch twin against the wrong Flax twin.

        Args:
            gates: to go through.
            seed: of weights and images.
        """
        torch_model, flax_model = self.twins(seed=seed)
        images = self.images(seed=seed + 1)
        return check(torch_model, self.applied(flax_model), images, gates=gates)


def at(number: int, name: str, path: str, fault: Fault, **others: Any) -> Mutant:
    """A mutant of which one module is wrong, and must be named.

    Args:
        number: as all that is not said here, see :class:`Mutant`.
        name: in words.
        path: of the module.
        fault: what is wrong with it.
        **others: what else a mutant has.
    """
    change = become(path, fault) if isinstance(fault, type) else set_at(path, **fault)
    return Mutant(number=number, name=name, culprit=path, apply=change, **others)


def everywhere(
    number: int,
    name: str,
    culprit: str,
    base: type[nnx.Module],
    fault: Fault,
    **others: Any,
) -> Mutant:
    """A mutant of which every module of a class is wrong.

    Args:
        number: as all that is not said here, see :class:`Mutant`.
        name: in words.
        culprit: the first of these modules.
        base: their class.
        fault: what is wrong with them.
        **others: what else a mutant has.
    """
    if isinstance(fault, type):
        change = all_become(base, fault)
    else:
        change = set_all(base, **fault)
    return Mutant(number=number, name=name, culprit=culprit, apply=change, **others)


def become(path: str, cls: type[nnx.Module]) -> Change:
    """Makes one module an instance of another class; its data stay."""
    return lambda model: _turn(dict(modules(model))[path], cls)


def all_become(base: type[nnx.Module], cls: type[nnx.Module]) -> Change:
    """Makes every module of a class an instance of another."""

    def change(model: Any) -> None:
        for _, module in modules(model):
            if isinstance(module, base):
                _turn(module, cls)

    return change


def set_at(path: str, **attributes: Any) -> Change:
    """Sets attributes of one module."""

    def change(model: Any) -> None:
        module = dict(modules(model))[path]
        for name, value in attributes.items():
            setattr(module, name, value)

    return change


def set_all(base: type[nnx.Module], **attributes: Any) -> Change:
    """Sets attributes of every module of a class."""

    def change(model: Any) -> None:
        for _, module in modules(model):
            if isinstance(module, base):
                for name, value in attributes.items():
                    setattr(module, name, value)

    return change


def both(*changes: Change) -> Change:
    """Makes several changes."""

    def change(model: Any) -> None:
        for one in changes:
            one(model)

    return change


def rewrite(wanted: str, function: Callable[[jax.Array], jax.Array]) -> Change:
    """Changes the values of the entries whose torch name ends so, but no counter."""

    def change(model: Any) -> None:
        for name, _, variable in variables(model):
            value = variable.get_value()
            if name.endswith(wanted):
                variable.set_value(function(value))

    return change


def exchange(first: str, second: str) -> Change:
    """Exchanges the values of two entries, by their torch names."""

    def change(model: Any) -> None:
        found = {name: variable for name, _, variable in variables(model)}
        a, b = found[first].get_value(), found[second].get_value()
        found[first].set_value(b)
        found[second].set_value(a)

    return change


def _turn(module: nnx.Module, cls: type[nnx.Module]) -> None:
    object.__setattr__(module, "__class__", cls)
