"""Whether two networks compute the same, and where they part if they do not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from parity.judging.blind import blind_spots
from parity.judging.evidence import Evidence
from parity.judging.gates import FORWARD, GATES, TRAINING, judge
from parity.judging.layouts import told_by_values
from parity.judging.report import Report
from parity.judging.wishes import Wish, together
from parity.machine import Precision, environment
from parity.running.pair import Mapped, pair_of
from parity.running.taps import Inputs, ModuleError, inputs_of
from parity.running.translation import Weights
from parity.weights.digest import digest
from parity.weights.state import adapter
from resnet_spec import ResNetConfig

Say = Callable[[str], None]


def check(
    torch_model: Any,
    flax_model: Any,
    inputs: np.ndarray,
    *,
    gates: Sequence[str] = GATES,
    seed: int = 0,
    precision: Precision = "strict",
    progress: Say = lambda what: None,
) -> Report:
    """Compares two networks at every module, forwards and backwards.

    The reference is a float64 run of the torch network. Both models are copied: neither
    their parameters nor their modes change. Maps are kept in a temporary folder.

    Args:
        torch_model: any torch module of one input whose module paths are torchvision's.
        flax_model: any Flax NNX module of one input with the same paths.
        inputs: float array of images, (n, c, h, w). Statistics need two: in training
            mode one alone is joined by its mirror image.
        gates: which gates to go through, in order; by default all. Those of evaluation
            mode are ``parity.FORWARD``, those of training mode ``parity.TRAINING``.
        seed: of the labels.
        precision: how accelerators multiply float32; see
            :mod:`parity.machine`.
        progress: told in words what is about to be computed.

    Returns:
        The report. Networks that differ make ``report.ok`` false; they do not raise.

    Raises:
        ValueError: the inputs are no float images, or a gate does not exist.
        TypeError: a model is of another framework than it should be.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != 4 or inputs.dtype.kind != "f":
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}; "
            "expected floats of shape (n, c, h, w)"
        )
    found = adapter(flax_model).FRAMEWORK
    if found != "flax":
        raise _misplaced("flax", found)
    return compare_modules(
        torch_model,
        flax_model,
        inputs,
        gates=gates,
        seed=seed,
        precision=precision,
        progress=progress,
    )


def compare_modules(
    torch_module: Any,
    jax_callable: Any,
    inputs: Any,
    *,
    mapping: Mapped = None,
    weights: Weights | None = None,
    layouts: Mapping[str, str] | None = None,
    rtol: Mapping[str, float] | None = None,
    skip: str | Sequence[str] = (),
    gates: Sequence[str] = GATES,
    seed: int = 0,
    precision: Precision = "strict",
    progress: Say = lambda what: None,
) -> Report:
    """Does what :func:`check` does for any pair of networks.

    Both may take several inputs, and give arrays nested in mappings, sequences and
    dataclasses: ``output:logits`` and ``output:0`` are parts of an output. What drops
    at random in training mode is set to drop nothing, and the rates are compared.
    Frozen parameters are judged all the same, and a module in evaluation mode beside
    one in training mode stays so.

    Args:
        torch_module: any torch module. ``torch.nn.DataParallel``, ``torch.compile`` and
            their like are looked through.
        jax_callable: a Flax NNX module, or a function: of Linen
            (``functools.partial(module.apply, variables)``), of Equinox, or made by
            hand. What a function computes with is found in the arguments of
            ``functools.partial``, in its closure and in the globals that it names, and
            raised to float64 for G1. It may return a pair, its result and a nested
            mapping of what else it computes (as Flax Linen's ``capture_intermediates``
            does). It is judged by its result, by what it shows and by the gradients of
            its inputs, torch in evaluation mode; it has no isolated gates.
        inputs: what both are called with, as torch has it: an array, several in a tuple
            by position, or a mapping by keyword. A list holds several of these, which
            are judged one after the other. Arrays of four axes are (n, c, h, w) in
            torch and (n, h, w, c) in JAX; others are alike, (n, features) or
            (n, l, d).
        mapping: path of a module in torch → path in JAX: a function, or names, of which
            the longest that begins a path counts (``{"layer1": "stages.0"}``). A path
            that it does not have is the same in both. A part of an output is named
            whole: ``{"output:logits": "output:0"}``.
        weights: entry of torch's state → function that makes it of JAX's entries, which
            it is given by their own names (``"query.kernel"``), in numpy: it joins,
            splits and turns what rules cannot tell. Gradients go the same way.
        layouts: pattern of taps and inputs → their axes in JAX and in torch, as
            ``{"encoder.*": "nlc->ncl", "input": "nchw->nchw"}``. Where it says nothing,
            shapes tell maps with channels last from others; where height, width and
            channels are equal, values do, and the report says so.
        rtol: pattern of names → relative error (2-norm) that is granted instead of the
            gate's own limit, in float64 too. The report says where.
        skip: pattern or patterns of names that no gate judges. The report says which,
            and ``report.hidden`` which pattern is no name.
        gates: see :func:`check`.
        seed: see :func:`check`.
        precision: see :func:`check`.
        progress: see :func:`check`.

    Returns:
        The report, in torch's names.

    Raises:
        ValueError: the inputs are none, a gate does not exist, a layout is none, or the
            mapping names what is not there.
        TypeError: a model is of another framework than it should be.
    """
    batches = [inputs_of(batch) for batch in _batches(inputs)]
    wish = Wish(dict(rtol or {}), (skip,) if isinstance(skip, str) else tuple(skip))
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown:
        raise ValueError(f"no gate {unknown[0]!r}; there are {', '.join(GATES)}")
    found = adapter(torch_module).FRAMEWORK
    if found != "torch":
        raise _misplaced("torch", found)
    layouts = dict(layouts or {})
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:

        def begun() -> list[Evidence]:
            how: Any = {"weights": weights, "layouts": layouts}
            pair = pair_of(torch_module, jax_callable, mapping, **how)
            how = {"seed": seed, "precision": precision, "folder": Path(folder)}
            return [Evidence(pair, b, progress=progress, **how) for b in batches]

        several = begun()
        told, neither = told_by_values(several[0]) if gates else ({}, [])
        if told:
            layouts |= told
            several = begun()
            said.append(_TOLD.format(_named(told), "read in the layout that fits"))
        if neither:
            said.append(_TOLD.format(_named(neither), "taken for (n, h, w, c)"))
        evidence = several[0]
        found = [[judge(gate, one) for gate in gates] for one in several]
        shapes, quantities, hidden = {}, {}, []
        with suppress(ModuleError):  # then the gates have said so
            forward = not set(gates).isdisjoint(FORWARD)
            phase = evidence.forward if forward else evidence.training
            shapes = phase.reference.shapes if gates else {}
            hidden = blind_spots(several, training=not forward) if gates else []
            if len(several) == 1:
                quantities = {
                    gate: evidence.phase_of(
                        training=gate in TRAINING
                    ).reference.all_shapes
                    for gate in gates
                }
    results = [wish.granted(together(of_one)) for of_one in zip(*found, strict=True)]
    setting = {
        "config": _config(torch_module),
        "dtype": evidence.dtype,
        "arithmetic": evidence.arithmetic,
        "precision": precision,
        "seed": seed,
        "inputs": _digested(batches),
        "weights": {name: digest(state) for name, state in evidence.states.items()},
        **wish.setting(),
        **({"layouts": layouts} if layouts else {}),
        **environment(),
    }
    hidden = (*wish.vain(results), *said, *hidden)
    return Report(tuple(results), shapes, setting, hidden, quantities)


_TOLD = "height, width and channels of {} are equal: {}; layouts= says which it is"


def _named(taps: Collection[str]) -> str:
    first = ", ".join(list(taps)[:3])
    return f"{first} and {len(taps) - 3} more" if len(taps) > 3 else first


def _batches(inputs: Any) -> list[Any]:
    batches = inputs if isinstance(inputs, list) else [inputs]
    for batch in batches:
        for name, array in inputs_of(batch).items():
            if array.dtype.kind not in "fiub" or not array.size:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; expected arrays "
                    "of numbers, (n, c, h, w) for images"
                )
    if not batches:
        raise ValueError("inputs are an empty list; expected a batch or several")
    return batches


def _digested(batches: Sequence[Inputs]) -> dict[str, Any]:
    if len(batches) == 1 and list(batches[0]) == ["input"]:
        inputs = batches[0]["input"]
        return {"shape": list(inputs.shape), "sha256": digest({"inputs": inputs})}
    arrays = {
        f"{index}:{name}": array
        for index, batch in enumerate(batches)
        for name, array in batch.items()
    }
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {"shapes": shapes, "sha256": digest(arrays)}


def _config(model: Any) -> str | None:
    config = getattr(model, "config", None)
    return config.to_json() if isinstance(config, ResNetConfig) else None


def _misplaced(framework: str, found: str) -> TypeError:
    return TypeError(
        f"the {framework} model is one of {found}; the torch model comes first, the "
        "Flax model second"
    )
