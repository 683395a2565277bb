"""Whether two networks compute the same, and where they part if they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from parity.digest import digest, environment
from parity.evidence import Evidence
from parity.gates import GATES, judge
from parity.report import Report
from parity.state import adapter
from parity.taps import ModuleError


def check(
    torch_model: Any,
    flax_model: Any,
    inputs: np.ndarray,
    *,
    gates: Sequence[str] = GATES,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Compares two networks at every module, in evaluation mode.

    The reference is a float64 run of the torch network. Both models are copied: neither
    their parameters nor their modes change. A hundred megabytes of maps per image are
    held at a time for a resnet50 at 224x224.

    Args:
        torch_model: any torch module of one input whose module paths are torchvision's.
        flax_model: any Flax NNX module of one input with the same paths.
        inputs: float array of images, (n, c, h, w).
        gates: which gates to go through, in order; by default all.
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
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown:
        raise ValueError(f"no gate {unknown[0]!r}; there are {', '.join(GATES)}")
    hands = {"torch": adapter(torch_model), "flax": adapter(flax_model)}
    for framework, found in hands.items():
        if framework != found.FRAMEWORK:
            raise TypeError(
                f"the {framework} model is one of {found.FRAMEWORK}; check takes the "
                "torch model first, the Flax model second"
            )
    evidence = Evidence(
        hands["torch"].in_eval(torch_model),
        hands["flax"].in_eval(flax_model),
        inputs,
        progress,
    )
    results = tuple(judge(gate, evidence) for gate in gates)
    config = getattr(torch_model, "config", None)
    setting = {
        "config": config.to_json() if config is not None else None,
        "dtype": evidence.dtype,
        "inputs": {"shape": list(inputs.shape), "sha256": digest({"inputs": inputs})},
        "weights": {name: digest(state) for name, state in evidence.states.items()},
        **environment(),
    }
    with suppress(ModuleError):  # then the gates have said so
        return Report(results, evidence.shapes, setting)
    return Report(results, {}, setting)
