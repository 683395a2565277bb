"""Functions whose derivative jumps: on which side of its jumps a unit is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from parity.running.taps import NESTED, Branch, Calls, Quantity, Visit


@dataclass(frozen=True)
class Pieces:
    """A function of one number, made of polynomials.

    Args:
        breaks: where one ends and the next begins.
        polynomials: coefficients, of x² first.
    """

    breaks: tuple[float, ...]
    polynomials: tuple[tuple[float, float, float], ...]

    def way(self, x: np.ndarray) -> np.ndarray:
        """Returns which piece each unit is on, from what it is given."""
        return sum((x > b for b in self.breaks), np.zeros(x.shape, np.uint8))

    def way_of_output(self, y: np.ndarray) -> np.ndarray:
        """Returns which piece each unit is on, from what it gives."""
        found = np.zeros(y.shape, np.uint8)
        for b, above in zip(self.breaks, self.polynomials[1:], strict=True):
            at = float(_value(above, np.float64(b)))
            flat = not any(above[:2])  # what lies above it gives the same
            found += (y >= at) if flat else (y > at)
        return found

    def way_of_gradients(
        self,
        x: np.ndarray,
        way: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        *,
        close: float,
    ) -> np.ndarray:
        """Returns on which side of a break each unit near it has its gradient from.

        Args:
            x: what the units are given.
            way: of those that are further away, or whose gradients do not tell.
            before: the gradient by what they are given.
            after: the gradient by what they give.
            close: the largest distance that is near.
        """
        if not (near := self.distance(x) <= close).any():
            return way
        slopes = np.array([slope for _, slope, _ in self.polynomials])
        below = np.argmin([np.abs(x - b) for b in self.breaks], axis=0)
        found = way
        for side in (below, below + 1):
            slope = slopes[side].astype(after.dtype)
            theirs = near & (after != 0) & (before == slope * after)
            found = np.where(theirs, side.astype(way.dtype), found)
        return found

    def output(self, x: Any, way: Any) -> Any:
        """Returns what a unit gives on this piece, in either framework's arrays."""
        where = torch.where if isinstance(x, Tensor) else np.where
        found = _value(self.polynomials[0], x)
        for index, polynomial in enumerate(self.polynomials[1:], start=1):
            found = where(way == index, _value(polynomial, x), found)
        return found

    def distance(self, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
        """Returns how far each unit is from the next break."""
        return np.min([np.abs(x - b) for b in self.breaks], axis=0)


def _value(polynomial: tuple[float, float, float], x: Any) -> Any:
    square, slope, constant = polynomial
    if square:
        return (square * x + slope) * x + constant
    return slope * x + constant if constant else slope * x


@dataclass(frozen=True)
class Pool:
    """A maximum over windows, of which one value wins.

    Args:
        function: its name in ``torch.nn.functional``.
        settings: of that.
    """

    function: str
    settings: tuple[tuple[str, Any], ...]

    def way(self, x: np.ndarray) -> np.ndarray:
        """Returns the place of each winner in its map, counted by rows."""
        pool = getattr(functional, self.function)
        given = torch.from_numpy(np.array(x))
        return pool(given, **dict(self.settings), return_indices=True)[1].numpy()

    def way_of_output(self, y: np.ndarray) -> np.ndarray | None:
        """Returns nothing: what it gives does not say where that was."""
        return None

    def way_of_gradients(
        self, x: np.ndarray, way: np.ndarray, *gradients: np.ndarray, close: float
    ) -> np.ndarray:
        """Returns the way as it is: a winner's gradient is that of all its windows."""
        return way

    def output(self, x: Any, way: Any) -> Any:
        """Returns the values at these places, in either framework's arrays."""
        if isinstance(x, Tensor):
            return x.flatten(2).gather(2, way.flatten(2)).view(way.shape)
        flat, places = (a.reshape(*a.shape[:2], -1) for a in (x, way))
        return np.take_along_axis(flat, places, 2).reshape(way.shape)

    def distance(
        self, x: np.ndarray, ours: np.ndarray, other: np.ndarray
    ) -> np.ndarray:
        """Returns how far apart the values are that won in two ways."""
        return np.abs(self.output(x, other) - self.output(x, ours))


Fold = Pieces | Pool

_ZERO, _SAME = (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)

RELU = Pieces((0.0,), (_ZERO, _SAME))

_WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

POOLS = {
    f"{kind}max_pool{axes}d": (axes, settings)
    for kind, settings in (("", _WINDOWS), ("adaptive_", ("output_size",)))
    for axes in (1, 2, 3)
}
"""By name, since torch's functional pools are not its own: axes, and settings."""


def fold_of(function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Fold | None:
    """Returns how a call of torch jumps, if it does."""
    name = getattr(function, "__name__", "").removesuffix("_")
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    if name in POOLS:
        axes, names = POOLS[name]
        settings = dict(zip(names, args[1:], strict=False)) | named
        if settings.pop("return_indices", False) or args[0].ndim != axes + 2:
            return None
        return Pool(name, tuple(settings.items()))
    if name == "relu":
        return RELU
    if name == "relu6":
        return _clamped(0.0, 6.0)
    if name == "leaky_relu":
        slope = named.get("negative_slope", args[1] if len(args) > 1 else 0.01)
        return Pieces((0.0,), ((0.0, float(slope), 0.0), _SAME))
    if name == "abs":
        return Pieces((0.0,), ((0.0, -1.0, 0.0), _SAME))
    if name == "hardswish":
        return Pieces((-3.0, 3.0), (_ZERO, (1 / 6, 0.5, 0.0), _SAME))
    if name == "hardsigmoid":
        return Pieces((-3.0, 3.0), (_ZERO, (0.0, 1 / 6, 0.5), (0.0, 0.0, 1.0)))
    bounds = {
        "hardtanh": ("min_val", "max_val"),
        "clamp": ("min", "max"),
        "clamp_min": ("min", ""),
    }.get(name)
    if bounds is None:
        return None
    given = dict(zip(bounds, args[1:], strict=False)) | named
    low, high = (given.get(bound) for bound in bounds)
    if name == "hardtanh":
        low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return None
    return _clamped(low, high)


def _clamped(low: float | None, high: float | None) -> Pieces:
    breaks = [float(bound) for bound in (low, high) if bound is not None]
    pieces = [_SAME]
    if low is not None:
        pieces.insert(0, (0.0, 0.0, float(low)))
    if high is not None:
        pieces.append((0.0, 0.0, float(high)))
    return Pieces(tuple(breaks), tuple(pieces))


MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
"""Modules that are such a function, and nothing else: it has the name of their call."""


class Rectifying(TorchFunctionMode):
    """Notes the largest values that rectifiers are given, modules or functions.

    Args:
        calls: of the run.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        if self._calls.current and fold_of(func, args, kwargs) == RELU:
            _note_rectified(self._calls, args[0])
        return func(*args, **kwargs)


def _note_rectified(calls: Calls, x: Tensor) -> None:
    tap, _ = calls.current or ("", "")
    largest = float(x.detach().max()) if x.numel() else 0.0
    calls.rectified[tap] = max(calls.rectified.get(tap, largest), largest)


class Folding(TorchFunctionMode):
    """Notes which way such functions took, by the calls of modules that they are in.

    Args:
        calls: of the run.
        modules: by path.
        visit: told ``"kink"``, what each was given, and ``"way"``.
        branch: ways that they shall take instead of their own.
    """

    def __init__(
        self,
        calls: Calls,
        modules: dict[str, nn.Module],
        visit: Visit,
        branch: Branch | None,
    ) -> None:
        super().__init__()
        self._calls = calls
        self._modules = modules
        self._visit = visit
        self._branch = branch or {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        if not self._calls.current:
            return func(*args, **kwargs)
        in_place = kwargs.pop("inplace", False) if func in INPLACE else False
        fold = fold_of(func, args, kwargs)
        if in_place:
            kwargs["inplace"] = True
        if fold is None:
            return func(*args, **kwargs)
        if fold == RELU:
            _note_rectified(self._calls, args[0])
        name = self._named(fold)
        x = args[0]
        values = x.detach().cpu()
        values = (values.float() if values.dtype.itemsize < 4 else values).numpy()
        self._calls.folds[name] = fold
        self._visit(Quantity("kink", name), values)
        self._visit(Quantity("way", name), fold.way(values))
        if name not in self._branch:
            return func(*args, **kwargs)
        y = fold.output(x, torch.from_numpy(np.array(self._branch[name])).to(x.device))
        written = in_place or func.__name__.endswith("_")
        return x.copy_(y) if written else y

    def _named(self, fold: Fold) -> str:
        tap, path = self._calls.current or ("", "")
        if isinstance(self._modules.get(path), MODULES):
            return tap
        what = "maxpool" if isinstance(fold, Pool) else "kink"
        count = sum(
            name.startswith(f"{tap}{NESTED}{what}") for name in self._calls.folds
        )
        return f"{tap}{NESTED}{what}{count + 1 if count else ''}"


INPLACE = {
    *(functional.relu, functional.relu6, functional.leaky_relu),
    *(functional.hardtanh, functional.hardswish, functional.hardsigmoid),
}
"""Functions that may be told to work in place."""
