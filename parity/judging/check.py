"""Whether two networks compute the same, and where they part if they do not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from parity.judging.blind import blind_spots
from parity.judging.evidence import Evidence
from parity.judging.gates import FORWARD, GATES, judge
from parity.judging.report import Report
from parity.machine import Precision, environment
from parity.running.pair import Mapped, pair_of
from parity.running.taps import ModuleError
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
    inputs: np.ndarray,
    *,
    mapping: Mapped = None,
    gates: Sequence[str] = GATES,
    seed: int = 0,
    precision: Precision = "strict",
    progress: Say = lambda what: None,
) -> Report:
    """Does what :func:`check` does for any pair of networks.

    Args:
        torch_module: any torch module of one input.
        jax_callable: a Flax NNX module, or a function, of images (n, h, w, c). A
            function may return a pair, its result and a nested mapping of what else it
            computes (as Flax Linen's ``capture_intermediates`` does). Its parameters
            are raised to float64 if it is ``functools.partial(function, parameters)``.
            It is judged in evaluation mode, without G0 and the isolated gates.
        inputs: float array of images, (n, c, h, w).
        mapping: path of a module in torch → path in JAX: a function, or names, of which
            the longest that begins a path counts (``{"layer1": "stages.0"}``). A path
            that it does not have is the same in both.
        gates: see :func:`check`.
        seed: see :func:`check`.
        precision: see :func:`check`.
        progress: see :func:`check`.

    Returns:
        The report, in torch's names.

    Raises:
        ValueError: the inputs are no float images, a gate does not exist, or the
            mapping names what is not there.
        TypeError: a model is of another framework than it should be.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != 4 or inputs.dtype.kind != "f":
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}; "
            "expected floats of shape (n, c, h, w)"
        )
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown:
        raise ValueError(f"no gate {unknown[0]!r}; there are {', '.join(GATES)}")
    found = adapter(torch_module).FRAMEWORK
    if found != "torch":
        raise _misplaced("torch", found)
    pair = pair_of(torch_module, jax_callable, mapping)
    with tempfile.TemporaryDirectory(prefix="resnet-twins-") as folder:
        evidence = Evidence(
            pair,
            inputs,
            seed=seed,
            precision=precision,
            folder=Path(folder),
            progress=progress,
        )
        results = [judge(gate, evidence) for gate in gates]
        shapes, hidden = {}, ()
        with suppress(ModuleError):  # then the gates have said so
            phase = evidence.forward if set(FORWARD) & set(gates) else evidence.training
            shapes = phase.reference.shapes if gates else {}
            hidden = tuple(blind_spots(evidence, phase if gates else None))
    setting = {
        "config": _config(torch_module),
        "dtype": evidence.dtype,
        "arithmetic": evidence.arithmetic,
        "precision": precision,
        "seed": seed,
        "inputs": {"shape": list(inputs.shape), "sha256": digest({"inputs": inputs})},
        "weights": {name: digest(state) for name, state in evidence.states.items()},
        **environment(),
    }
    return Report(tuple(results), shapes, setting, hidden)


def _config(model: Any) -> str | None:
    config = getattr(model, "config", None)
    return config.to_json() if isinstance(config, ResNetConfig) else None


def _misplaced(framework: str, found: str) -> TypeError:
    return TypeError(
        f"the {framework} model is one of {found}; the torch model comes first, the "
        "Flax model second"
    )
