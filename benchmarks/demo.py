"""The whole road once: a torchvision file to Flax and back, the proof, first timings.

Run it with ``make demo``, or ``python -m benchmarks.demo [PHOTO]``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity
from benchmarks.measuring.timing import interleaved
from benchmarks.torchvision_import import import_torchvision
from parity.text import table
from parity.weights.digest import differing_bits
from parity.weights.twins import abstract_torch, build, entries_of
from resnet_spec import get_config

NAME = "resnet50"
SEED = 0


def main(photo: Path) -> int:
    config = get_config(NAME)
    with tempfile.TemporaryDirectory(prefix="resnet-twins-demo-") as name:
        folder = Path(name)
        source, there = folder / f"{NAME}.pth", folder / f"{NAME}.safetensors"
        back = folder / f"{NAME}-back.pth"
        headline(f"a {NAME} checkpoint as torchvision saves it")
        author = _write_checkpoint(source)
        print(f"{source.name}: {source.stat().st_size:,} bytes, saved by {author};")
        print(f"random weights, seed {SEED} (not trained: its classes mean nothing)")

        headline("to safetensors and back")
        for done in (parity.convert(source, there), parity.convert(there, back)):
            print(f"{done.source.name} -> {done.target.name}: {done.entries} entries,")
            print(f"  sha256 of the values {done.sha256}")
        states = [parity.load(path) for path in (source, there, back)]
    for state, path in zip(states[1:], (there, back), strict=True):
        differences = differing_bits(states[0], state)
        print(
            f"{path.name}: {len(differences)} of {len(state)} tensors differ in a bit"
        )
        if differences:
            return 1

    headline(f"both twins on {photo.name}, in float32 and float64, every layer")
    images = parity.load_image(photo)
    torch_model, flax_model = (build(f, config, states[1]) for f in ("torch", "flax"))
    gates = ("G0", "G1", "G2", "G5")
    report = parity.check(torch_model, flax_model, images, gates=gates)
    print(report)

    headline("first timings, one photograph")
    print(_timings(torch_model, flax_model, images))
    return 0 if report.ok else 1


def _write_checkpoint(path: Path) -> str:
    config = get_config(NAME)
    state = parity.random_state(entries_of(config), seed=SEED)
    try:
        model = import_torchvision().models.get_model(NAME)
        author = f"torchvision's {NAME}"
    except ImportError:
        model, author = abstract_torch(config), f"resnet_torch's {NAME}"
    parity.load_state_dict(model, state)
    torch.save(model.state_dict(), path)
    return author


def _timings(
    torch_model: torch.nn.Module, flax_model: nnx.Module, images: np.ndarray
) -> str:
    x = torch.from_numpy(images)
    y = jnp.asarray(images.transpose(0, 2, 3, 1))
    graph, state = nnx.split(flax_model)

    @jax.jit
    def forward(state: nnx.State, y: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(y)  # type: ignore[operator]

    def eager() -> torch.Tensor:
        with torch.no_grad():
            return torch_model(x)

    functions: dict[str, Callable[[], object]] = {
        "torch, eager": eager,
        "Flax, without jit": lambda: flax_model(y).block_until_ready(),  # type: ignore
        "Flax, jit": lambda: forward(state, y).block_until_ready(),
    }
    found = interleaved(functions, repeats=9)
    fastest = min(timing.median for timing in found.values())
    rows = [
        (
            name,
            f"{timing.first:.2f} s",
            f"{timing.median * 1000:.0f} ms",
            f"±{timing.spread:.0%}",
            f"{timing.median / fastest:.2f}",
        )
        for name, timing in found.items()
    ]
    heads = ("mode", "first call", "median of 9", "spread", "over the fastest")
    return table(heads, rows)


def headline(what: str) -> None:
    """Prints what comes next."""
    print(f"\n== {what}\n", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        chosen = Path(sys.argv[1])
    else:
        import matplotlib.cbook

        chosen = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    start = time.perf_counter()
    code = main(Path(chosen))
    print(f"\nthe demo took {time.perf_counter() - start:.0f} s")
    sys.exit(code)
