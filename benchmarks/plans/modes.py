"""The ways to run a network: this project's, other libraries', and the ceilings.

A table without frameworks: which there are, what each needs, and why one cannot run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Literal

from benchmarks.plans.cases import DEPTHS, TASKS, Case, Device, Task

Arithmetic = Literal["float32", "tf32", "bfloat16"]
"""What products are computed in; see ``parity.machine`` for the first two."""

Kind = Literal["twin", "peer", "ceiling"]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to compute.

    Args:
        name: in tables, files and on the command line.
        what: it is, in words.
        kind: ours, another library's, or the machine's ceiling.
        runner: module that builds it, one of ``benchmarks.runners`` or by its path.
        options: that the runner reads; with ``"fast"`` XLA gets faster CPU settings.
        arithmetic: of its products.
        environment: variables of its process; XLA reads its flags once.
        needs: modules that must be there.
        tasks: that it can do.
        devices: that it is for.
        networks: that a peer has, if not all; see :func:`why_not`.
        sweeps: whether it is timed where costs are to be seen growing.
    """

    name: str
    what: str
    kind: Kind = "twin"
    runner: str
    options: frozenset[str] = frozenset()
    arithmetic: Arithmetic = "float32"
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = TASKS
    devices: tuple[Device, ...] = ("cpu", "cuda")
    networks: tuple[str, ...] = ()
    sweeps: bool = False

    @property
    def engine(self) -> str | None:
        """What runs a compiled twin, if it is not its framework."""
        words = (option.partition(" ") for option in self.options)
        return next((name for word, _, name in words if word == "engine"), None)

    @property
    def framework(self) -> str:
        """Which side of the plot it is on."""
        return self.runner.partition("_")[0]


_TORCH, _FLAX = ("torch",), ("jax", "flax")
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
_FORWARD: tuple[Task, ...] = ("inference",)
_CPU: tuple[Device, ...] = ("cpu",)
_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def _torch(name: str, what: str, *options: str, **more) -> Mode:
    if "fused" in options:
        more["tasks"] = _FORWARD
    return Mode(
        name=f"torch-{name}",
        what=f"torch twin, {what}",
        runner="torch_twin",
        options=frozenset(options),
        needs=more.pop("needs", _TORCH),
        **more,
    )


def _flax(name: str, what: str, *options: str, **more) -> Mode:
    if "fused" in options:
        more["tasks"] = _FORWARD
    if "fast" in options:
        more["devices"] = _CPU
    return Mode(
        name=f"flax-{name}",
        what=f"Flax twin, {what}",
        runner="flax_twin",
        options=frozenset(options),
        needs=more.pop("needs", _FLAX),
        **more,
    )


def _peer(name: str, what: str, runner: str, needs: tuple[str, ...], **more) -> Mode:
    more.setdefault("tasks", _FORWARD)
    more["options"] = frozenset(more.pop("options", ()))
    return Mode(name=name, what=what, kind="peer", runner=runner, needs=needs, **more)


def _ceiling(name: str, what: str, runner: str, needs, **more) -> Mode:
    return Mode(
        name=name, what=what, kind="ceiling", runner=runner, needs=needs, **more
    )


# fmt: off
MODES: tuple[Mode, ...] = (
    _torch("eager", "eager"),
    _torch("channels-last", "eager, channels_last", "channels_last", sweeps=True),
    _torch("compiled", "torch.compile, channels_last (inference: frozen)",
           "channels_last", "compiled"),
    _torch("fused", "fused, channels_last", "channels_last", "fused"),
    _torch("compiled-fused", "fused, torch.compile, channels_last, frozen",
           "channels_last", "compiled", "fused"),
    *(_torch(engine, f"fused, by {what}", "fused", f"engine {engine}",
             needs=("torch", "onnx", engine), devices=_CPU)
      for engine, what in _ENGINES.items()),
    _torch("bf16", "autocast to bfloat16, channels_last",
           "channels_last", arithmetic="bfloat16"),
    _torch("compiled-bf16", "autocast to bfloat16, torch.compile, channels_last",
           "channels_last", "compiled", arithmetic="bfloat16"),
    _torch("compiled-fused-bf16",
           "fused, autocast to bfloat16, torch.compile, channels_last",
           "channels_last", "compiled", "fused", arithmetic="bfloat16"),
    _torch("compiled-fused-tf32", "fused, TF32, torch.compile, channels_last",
           "channels_last", "compiled", "fused", arithmetic="tf32", devices=("cuda",)),
    _torch("compiled-tf32", "TF32, torch.compile, channels_last",
           "channels_last", "compiled", arithmetic="tf32", devices=("cuda",)),
    _flax("eager", "without jit", "eager", tasks=_FORWARD),
    _flax("jit", "jax.jit", sweeps=True),
    _flax("nnx-jit", "nnx.jit", "nnx"),
    _flax("fused", "fused, jax.jit", "fused"),
    _flax("fast", "jax.jit, XLA's faster CPU settings", "fast", sweeps=True),
    _flax("fused-fast", "fused, jax.jit, XLA's faster CPU settings", "fused", "fast"),
    _flax("winograd-fast",
          "fused, 3x3 by Winograd, jax.jit, XLA's faster CPU settings",
          "fused", "winograd", "fast"),
    *(_flax(engine, f"fused, by {what}", "fused", f"engine {engine}",
            needs=(*_FLAX, "onnx", engine), devices=_CPU)
      for engine, what in _ENGINES.items()),
    _flax("bf16", "bfloat16, jax.jit", arithmetic="bfloat16"),
    _flax("fused-bf16", "fused, bfloat16, jax.jit", "fused", arithmetic="bfloat16"),
    _flax("fused-tf32", "fused, TF32, jax.jit", "fused", arithmetic="tf32",
          devices=("cuda",)),
    _flax("tf32", "TF32, jax.jit", arithmetic="tf32", devices=("cuda",)),
    _peer("torchvision", "torchvision, eager", "torch_peers", ("torchvision",),
          tasks=TASKS, networks=_TORCHVISION),
    _peer("torchvision-channels-last", "torchvision, eager, channels_last",
          "torch_peers", ("torchvision",), options=("channels_last",),
          tasks=TASKS, networks=_TORCHVISION),
    _peer("torchvision-compiled",
          "torchvision, torch.compile, channels_last (inference: frozen)",
          "torch_peers", ("torchvision",), options=("channels_last", "compiled"),
          tasks=TASKS, networks=_TORCHVISION),
    _peer("torchvision-compiled-bf16",
          "torchvision, autocast to bfloat16, torch.compile, channels_last",
          "torch_peers", ("torchvision",), options=("channels_last", "compiled"),
          arithmetic="bfloat16", tasks=TASKS, networks=_TORCHVISION, devices=("cuda",)),
    _peer("torchvision-compiled-tf32",
          "torchvision, TF32, torch.compile, channels_last",
          "torch_peers", ("torchvision",), options=("channels_last", "compiled"),
          arithmetic="tf32", tasks=TASKS, networks=_TORCHVISION, devices=("cuda",)),
    _peer("timm", "timm, eager, channels_last", "torch_peers", ("timm",),
          options=("channels_last", "timm"), networks=(*_TORCHVISION, "resnet50d")),
    _peer("keras-jax", "Keras on JAX", "keras_peers", ("keras", "jax"),
          networks=("resnet50",), environment={"KERAS_BACKEND": "jax"}, devices=_CPU),
    _peer("keras-torch", "Keras on torch", "keras_peers", ("keras", "torch"),
          networks=("resnet50",), environment={"KERAS_BACKEND": "torch"}, devices=_CPU),
    _peer("jax-resnet", "jax-resnet, jax.jit", "flax_peers", ("jax_resnet",),
          networks=DEPTHS),
    _peer("jax-resnet-fast", "jax-resnet, jax.jit, XLA's faster CPU settings",
          "flax_peers", ("jax_resnet",), options=("fast",), networks=DEPTHS,
          devices=_CPU),
    _peer("flaxmodels", "flaxmodels, jax.jit", "flax_peers", ("flaxmodels",),
          options=("flaxmodels",), networks=DEPTHS),
    _peer("flaxmodels-fast", "flaxmodels, jax.jit, XLA's faster CPU settings",
          "flax_peers", ("flaxmodels",), options=("flaxmodels", "fast"),
          networks=DEPTHS, devices=_CPU),
    _peer("onnxruntime", "ONNX Runtime", "engine_peers",
          ("onnxruntime", "onnxscript", "torch"), devices=_CPU),
    _peer("openvino", "OpenVINO", "engine_peers", ("openvino", "torch"),
          options=("openvino",), devices=_CPU),
    _ceiling("product-torch", "matrix product in torch", "torch_product", _TORCH),
    _ceiling("product-torch-bf16", "matrix product in torch, bfloat16",
             "torch_product", _TORCH, arithmetic="bfloat16"),
    _ceiling("product-torch-tf32", "matrix product in torch, TF32",
             "torch_product", _TORCH, arithmetic="tf32", devices=("cuda",)),
    _ceiling("product-xla", "matrix product in XLA", "flax_product", ("jax",)),
    _ceiling("product-xla-fast", "matrix product in XLA, its faster CPU settings",
             "flax_product", ("jax",), options=frozenset({"fast"}), devices=_CPU),
)
# fmt: on

NAMES = {mode.name: mode for mode in MODES}


def why_not(mode: Mode, case: Case) -> str | None:
    """Says why a mode cannot do a case here; ``None`` if it can."""
    if case.task not in mode.tasks:
        return f"it is not for {case.task}"
    if case.device not in mode.devices:
        reason = "is the same as float32 on" if mode.arithmetic == "tf32" else "skips"
        return f"it {reason} {case.device}"
    if mode.networks and case.network not in mode.networks:
        return f"it has no {case.network} here"
    for need in mode.needs:
        if reason := _missing(need):
            return reason
    if case.device == "cuda":
        return no_device("torch" if mode.framework == "torch" else "jax")
    return None


@cache
def _missing(module: str) -> str | None:
    if find_spec(module) is not None:
        return None
    extra = {"torch": "torch", "jax": "flax", "flax": "flax"}.get(module, "bench-peers")
    return f"{module} is not installed; `pip install 'resnet-twins[{extra}]'`"


@cache
def no_device(framework: str) -> str | None:
    """Says why a framework has no accelerator here; asked in a process of its own."""
    if framework == "torch":
        code = "import torch; print(torch.cuda.is_available())"
    else:
        code = "import jax; print(jax.default_backend() == 'gpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.stdout.strip().endswith("True"):
        return None
    name = {"torch": "torch", "jax": "JAX"}[framework]
    return f"{name} sees no CUDA device"
