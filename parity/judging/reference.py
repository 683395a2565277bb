"""The torch network in float64, on which everything else is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from parity.judging.distance import Deviation, deviation, l2, ratio
from parity.judging.kinks import Kinks
from parity.judging.series import (
    by_channel,
    lost_in_norm,
    lost_in_series,
    lost_of_products,
)
from parity.judging.tolerances import (
    GROWTH_MOST,
    SHADES,
    UNIT_ROUNDOFF,
    growth_of_product,
    growth_of_sum,
)
from parity.running.kept import KeptArrays
from parity.running.norms import Lost
from parity.running.objective import Objective
from parity.running.pair import Pair
from parity.running.perturbing import PERTURBATION
from parity.running.taps import (
    AGAIN,
    LOSS,
    NOTED,
    Branch,
    Calls,
    Inputs,
    Quantity,
    Visit,
    inputs_of,
    path_of,
)
from parity.weights.names import Shape

Values = MutableMapping[Quantity, np.ndarray]
ENOUGH = 2**22
"""Values of all taps together, from which one perturbation tells the growth."""

NOTHING = 1e-13
"""Of the largest parameter's gradient: less is what rounding leaves of nothing."""

Growth = tuple[float, float]
"""How many times larger than a rounding an error has grown: of e, and of m."""


@dataclass(frozen=True)
class Reference:
    """A run of the torch network in float64, and what it says about rounding.

    Args:
        pair: both networks.
        images: what the network is given; one array is images (n, c, h, w).
        objective: what is differentiated, in training mode; ``None`` in evaluation
            mode.
        progress: told what is about to be computed.
        values: every quantity, in order.
        calls: of its modules.
    """

    pair: Pair
    images: Inputs
    objective: Objective | None
    progress: Callable[[str], None]
    values: Values
    calls: Calls

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tap."""
        taps = [quantity for quantity in self.values if quantity.kind == "output"]
        return {tap.name: self.values[tap].shape for tap in taps}

    @cached_property
    def all_shapes(self) -> dict[Quantity, Shape]:
        """The shape of every quantity, and of what the network is given."""
        given = {Quantity("input", name): a.shape for name, a in self.images.items()}
        return given | {quantity: v.shape for quantity, v in self.values.items()}

    @property
    def outputs(self) -> list[str]:
        """The taps on the network's own result."""
        return [tap for tap in self.shapes if path_of(tap) == "" and "@" not in tap]

    def run(
        self, visit: Visit, *, branch: Branch | None = None, draw: int | None = None
    ) -> Calls:
        """Runs it once more.

        Args:
            visit: called with each quantity and its value, which is only good until
                the call returns.
            branch: where kinks shall go another way than its own.
            draw: with state and images moved by float64's roundoff, up or down as
                this draw says, and with what the sums of norms lose.
        """
        how: Any = {} if draw is None else {"draw": draw, "lost": self._lost}
        return _run(
            *(self.pair, self.images, self.objective, visit), branch=branch, **how
        )

    def input(self, tap: str) -> np.ndarray:
        """Returns what a module's call was given."""
        return self.values[Quantity("input", tap)]

    def has_state(self, tap: str) -> bool:
        """Whether the module has parameters or buffers, or one inside has."""
        path = path_of(tap)
        inside = f"{path}." if path else ""
        return any(name.startswith(inside) for name in self._state)

    @cached_property
    def kinks(self) -> Kinks:
        """Its rectifiers and pools."""
        return Kinks(self.calls.folds, self.values)

    @cached_property
    def _state(self) -> dict[str, Shape]:
        return {name: entry.shape for name, entry in self.pair.torch.entries.items()}

    @cached_property
    def _depths(self) -> dict[str, int]:
        """How many layers with a kernel have run at each tap."""
        depths: dict[str, int] = {}
        depth = 0
        for tap in self.shapes:
            kernel = self._state.get(f"{path_of(tap)}.weight")
            depth += kernel is not None and len(kernel) > 1
            depths[tap] = depth
        return depths

    def _layers(self, quantity: Quantity) -> int:
        """How many layers a quantity has come through: a gradient there and back."""
        kind, name = quantity
        depths = self._depths
        at = depths.get(name, depths.get(name.rpartition(".")[0], 0))
        there_and_back = 2 * max(depths.values()) - at
        return max(there_and_back if "gradient" in kind else at, 1)

    def growth(self, quantity: Quantity) -> Growth:
        """How many times larger than a rounding an error has grown: of e, and of m.

        The root of the layers behind it, as of a random walk, or more where the network
        magnifies errors. This is measured: the reference is run once more with state
        and images moved by float64's roundoff, and what that moves the quantity by is
        divided by it. What a kernel's gradient sums up, over the batch and the map,
        adds its own roundings.
        """
        layers = sqrt(self._layers(quantity))
        by_l2, by_max = self._magnified.get(quantity, (1.0, 1.0))
        if quantity == LOSS:  # one number, which a draw may happen to leave alone
            of_output = self.growth(Quantity("output", self.outputs[-1]))
            by_l2, by_max = max(by_l2, of_output[0]), max(by_max, of_output[1])
        own = self._sums.get(quantity, 0.0)
        return max(layers, hypot(by_l2, own)), max(layers, hypot(by_max, own))

    @cached_property
    def _magnified(self) -> dict[Quantity, Growth]:
        mode = "" if self.objective is None else " in training"
        self.progress(f"torch in float64{mode}, perturbed")
        found: dict[Quantity, Growth] = {}

        def visit(quantity: Quantity, value: np.ndarray) -> None:
            if quantity.kind not in NOTED and quantity in self.values:
                moved = self.deviation(quantity, value, self.values[quantity])
                found[quantity] = grown(moved, found.get(quantity))

        for draw in self.draws:
            self.run(visit, draw=draw)
        return found

    @cached_property
    def _lost(self) -> dict[str, Lost]:
        """What serial sums lose of norms' outputs and inputs' gradients, by tap.

        A perturbation moves terms apart from each other, and their sum hardly. A serial
        sum loses the same way at each step where its terms are equal, as gradients
        behind a mean are, or all positive, as squares. Half types are summed up in
        float32.
        """
        state = self.pair.torch.state()
        if any(array.dtype.itemsize == 2 for array in state.values()):
            return {}
        training = self.objective is not None and not self.pair.is_function
        known = self.pair.torch.norms(training=training)
        found = {}
        for tap, shape in self.shapes.items():
            x = self.values.get(Quantity("input", tap))
            norm = known.get(path_of(tap))
            if norm is not None and x is not None and x.shape == shape:
                weight = state.get(f"{path_of(tap)}.weight", np.ones(shape[1]))
                weight = weight.reshape(-1, *(1 for _ in shape[2:]))
                gradient = self.values.get(Quantity("gradient", tap))
                found[tap] = lost_in_norm(norm, x, gradient, weight)
        return found

    @cached_property
    def _sums(self) -> dict[Quantity, float]:
        """The growth of roundings in the sums of parameters' gradients."""
        own = {}
        for name, shape in self._state.items():
            quantity = Quantity("parameter gradient", name)
            if quantity in self.values:
                growth = self._sum_of_products if len(shape) > 1 else self._plain_sum
                own[quantity] = min(growth(quantity, shape), GROWTH_MOST)
        return own

    def _plain_sum(self, quantity: Quantity, shape: Shape) -> float:
        """A bias or a norm's weight, which on one thread torch sums serially."""
        terms = self._summed(quantity, shape)
        if terms is None:
            return 0.0
        lost = max(l2(lost_in_series(terms * s)) for s in SHADES)
        size = l2(self._terms[quantity])
        by_normal = 0.0
        path, _, leaf = quantity.name.rpartition(".")
        if leaf == "weight" and path in self._lost:
            x, by = (self.values[Quantity(k, path)] for k in ("input", "gradient"))
            of_weight = self._lost[path].of_weight(x, by)
            by_normal = ratio(l2(of_weight), size)
        return hypot(ratio(lost, size) / UNIT_ROUNDOFF["float32"], by_normal)

    def _sum_of_products(self, quantity: Quantity, shape: Shape) -> float:
        """A kernel's gradient, by the length of its sum.

        A partial sum is as large as a random walk's, and as what the means of its terms
        add up to over an image: these have one sign there, another in the next image.
        Where most terms are tiny, roundings do not average out: what is lost of the
        gradient by a serial sum in float32, times the mean of the input, may be more.
        """
        path = quantity.name.rpartition(".")[0]
        gradient = self.values.get(Quantity("gradient", path))
        x = self.values.get(Quantity("input", path))
        if gradient is None or x is None or x.ndim < 2 or x.shape[1] % shape[1]:
            return 0.0
        groups = x.shape[1] // shape[1]
        if gradient.shape[1] % groups:
            return 0.0
        sizes = np.ones((len(x), groups))
        means = np.ones((len(x), groups))
        for factor in (gradient, x):
            by_channel = factor.reshape(*sizes.shape, factor.shape[1] // groups, -1)
            sizes *= np.square(by_channel).mean(3).sum(2)
            means *= np.square(by_channel.mean(3)).sum(2)
        positions = prod(gradient.shape[2:])
        partial = (positions * sizes + positions**2 * means).sum()
        window = sqrt(prod(shape[2:]))
        size = l2(self.values[quantity])
        cancels = ratio(sqrt(partial) * window, size)
        by_length = growth_of_product(len(x) * positions)
        lost = ratio(lost_of_products(gradient, x, groups) * window, size)
        return max(by_length * cancels, lost / UNIT_ROUNDOFF["float32"])

    @property
    def draws(self) -> range:
        """How often to perturb: of few values one draw may happen to move nothing."""
        values = sum(map(prod, self.shapes.values()))
        return range(min(max(ENOUGH // values, 1), 8))

    def growth_of_one(self, quantity: Quantity, tap: str, magnified: float) -> float:
        """Does what :meth:`growth` does for one module, whose sums add to it.

        Args:
            quantity: what its experiment gives.
            tap: its call.
            magnified: what a perturbation moves the quantity by.
        """
        kernel = self._state.get(f"{path_of(tap)}.weight")
        outputs, inputs = self.shapes[tap], self.input(tap).shape
        positions = prod(outputs) // outputs[1] if len(outputs) > 1 else 1
        of_bias = quantity.name.endswith(".bias")
        if kernel is None or len(kernel) == 1 or of_bias:
            # A norm's statistics, a pool's mean.
            sums = growth_of_sum(max(positions, prod(inputs[2:])))
            return max(sums, magnified, self._lost_by_one(quantity, tap))
        terms = prod(kernel[1:])
        if quantity.kind == "parameter gradient":
            terms = positions
        elif quantity.kind == "input gradient":
            terms = prod(kernel) // inputs[min(1, len(inputs) - 1)]
        # Where a sum's terms cancel, its partial sums are larger than the sum: what is
        # rounded off these counts as often more.
        return min(growth_of_product(terms) * magnified, GROWTH_MOST)

    def _lost_by_one(self, quantity: Quantity, tap: str) -> float:
        """The growth of roundings in a norm's sums, where what they make cancels."""
        if tap not in self._lost or quantity.kind not in ("output", "input gradient"):
            return 0.0
        lost, x = self._lost[tap], self.input(tap)
        if quantity.kind == "output":
            size = l2(self.values[quantity])
            return ratio(l2(lost.of(x)[0]), size)
        normal, divisor = lost.norm.normal(x)
        by = self.values[Quantity("gradient", tap)] * lost.weight
        steady, scaled = (
            lost.norm.spread(lost.norm.rows(part).mean(1), x)
            for part in (by, by * normal)
        )
        size = l2((by - steady - scaled * normal) / divisor)
        return ratio(l2(lost.of(x)[1]), size)

    def deviation(
        self,
        quantity: Quantity,
        value: np.ndarray | None,
        expected: np.ndarray | None,
    ) -> Deviation | None:
        """Measures a value of a quantity; ``None`` where the two cannot be compared."""
        if value is None or expected is None or value.shape != expected.shape:
            return None
        return deviation(value, expected, terms=self._terms.get(quantity))

    @cached_property
    def _terms(self) -> dict[Quantity, np.ndarray]:
        """What sums over the batch and the map are measured against: sums of sizes.

        Such a sum's rounding errors are those of its terms, however much these cancel.
        They may do so completely: a bias before a batch norm in training mode has no
        effect, and its gradient no digit that could agree.
        """
        found = {}
        of_parameters = [q for q in self.values if q.kind == "parameter gradient"]
        norms = {q: l2(self.values[q]) for q in of_parameters}
        largest = max(norms.values(), default=0.0)
        for quantity in of_parameters:
            shape = self.values[quantity].shape
            terms = self._summed(quantity, shape)
            if terms is not None:
                found[quantity] = np.abs(terms).sum(1)
            elif norms[quantity] < NOTHING * largest:  # a key's bias in attention
                size = max(self.values[quantity].size, 1)
                found[quantity] = np.full(shape, largest / sqrt(size))
        return found

    def _summed(self, quantity: Quantity, shape: Shape) -> np.ndarray | None:
        """Returns what a parameter's gradient sums up: (channels, terms)."""
        path, _, leaf = quantity.name.rpartition(".")
        terms = self.values.get(Quantity("gradient", path))
        axis = None if terms is None else self._channels(path, terms, shape)
        if terms is None or axis is None:
            return None
        if leaf == "weight":  # of a norm: each gradient times the normal value
            x = self.values[Quantity("input", path)]
            axes = tuple(other for other in range(x.ndim) if other != axis)
            deviation = x.std(axes, keepdims=True)
            centred = x - x.mean(axes, keepdims=True)
            terms = terms * centred / np.where(deviation > 0, deviation, 1)
        return by_channel(terms, axis)

    def _channels(self, path: str, by_output: np.ndarray, shape: Shape) -> int | None:
        """Returns the axis of an output that has a value of this parameter each."""
        kernel = self._state.get(f"{path}.weight", ())
        axes = [by_output.ndim - 1, 1] if len(kernel) == 2 else [1, by_output.ndim - 1]
        alike = (axis for axis in axes if shape == by_output.shape[axis : axis + 1])
        return next(alike, None) if shape else None


def reference_of(
    pair: Pair,
    images: Inputs | np.ndarray,
    *,
    objective: Objective | None,
    folder: Path,
    progress: Callable[[str], None],
) -> Reference:
    """Runs the torch network in float64.

    Args:
        pair: both networks.
        images: what the network is given; one array is images (n, c, h, w).
        objective: see :class:`Reference`.
        folder: where arrays are kept meanwhile.
        progress: told what is about to be computed.
    """
    progress(f"torch in float64{'' if objective is None else ' in training'}")
    values = KeptArrays(folder)
    images = images if isinstance(images, Mapping) else inputs_of(images)
    ask = [AGAIN, *pair.methods]
    calls = _run(pair, images, objective, values.__setitem__, ask=ask)
    values.finished()
    return Reference(pair, images, objective, progress, values, calls)


def _run(
    pair: Pair,
    images: Inputs,
    objective: Objective | None,
    visit: Visit,
    *,
    branch: Branch | None = None,
    ask: Sequence[str] = (),
    **how: Any,
) -> Calls:
    if objective is None:
        return pair.torch.forward(images, visit, ask=ask, float64=True, **how)
    return pair.training(images, objective, visit, branch=branch, float64=True, **how)


def grown(moved: Deviation | None, before: Growth | None) -> Growth:
    """Returns the growth of what was moved by so much, or that of another draw."""
    by_l2, by_max = before or (1.0, 1.0)
    if moved is None:
        return by_l2, by_max
    return (
        min(max(by_l2, moved.l2 / PERTURBATION), GROWTH_MOST),
        min(max(by_max, moved.max / PERTURBATION), GROWTH_MOST),
    )
