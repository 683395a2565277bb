"""From the start of `resnet-twins predict` to its answer, in parts:
`python -m benchmarks.starting [NAME]`.

Each round starts a process for each framework, which does what the command does and
looks at the clock in between, and the command itself; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FRAMEWORKS = ("torch", "flax")
COMMAND = "the command itself"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.parts:
        _child(asked.name, *asked.parts)
        return

    import matplotlib.cbook

    import parity
    from parity.text import table

    photo = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    found: dict[str, dict[str, list[float]]] = {f: {} for f in FRAMEWORKS}
    with tempfile.TemporaryDirectory(prefix="resnet-twins-start-") as folder:
        path = Path(folder) / "weights.safetensors"
        parity.save(path, parity.create_model(asked.name))
        for _ in range(asked.rounds):
            for framework, seconds in found.items():
                for part, took in _once(asked.name, framework, str(photo), path):
                    seconds.setdefault(part, []).append(took)
    rows = [
        (part, *(f"{statistics.median(found[f][part]):.2f} s" for f in FRAMEWORKS))
        for part in found["torch"]
    ]
    print(table((f"{asked.name}, float32, one photograph", *FRAMEWORKS), rows))


def _once(name: str, framework: str, photo: str, path: Path) -> list[tuple[str, float]]:
    own = [sys.executable, "-m", "benchmarks.starting", name, "--parts"]
    start = time.time()
    said = subprocess.check_output([*own, framework, photo, str(path), str(start)])
    parts = list(json.loads(said).items())
    command = Path(sys.executable).with_name("resnet-twins")
    options = ["--model", name, "--weights", str(path), "--backend", framework]
    start = time.time()
    subprocess.check_output([command, "predict", photo, *options])
    return [*parts, (COMMAND, time.time() - start)]


def _child(name: str, framework: Any, photo: str, path: str, start: str) -> None:
    """Does what the command does, and prints how long each part took."""
    seconds, last = {"interpreter": time.time() - float(start)}, time.time()

    def done(part: str) -> None:
        nonlocal last
        seconds[part], last = time.time() - last, time.time()

    import resnet_cli.predictions  # noqa: F401  what the command loads
    from parity.files.preprocessing import preprocess
    from parity.files.sources import weights_for
    from parity.running.network import logits
    from parity.weights.twins import build
    from resnet_spec import resolve

    done("the command's own modules")
    config = resolve(name)
    pixels = preprocess(photo, config, path)
    done("photograph")
    _IMPORTS[framework]()
    done("the framework's modules")
    state = weights_for(config, path).state
    done("weights, read and checked")
    twin = build(framework, config, state)
    done("network")
    logits(twin, pixels)
    done("first answer, compilation included")
    print(json.dumps(seconds))


def _torch() -> None:
    import resnet_torch  # noqa: F401


def _flax() -> None:
    import resnet_flax  # noqa: F401


_IMPORTS: dict[str, Callable[[], None]] = {"torch": _torch, "flax": _flax}


if __name__ == "__main__":
    main()
