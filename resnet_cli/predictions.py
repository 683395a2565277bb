"""What ``resnet-twins predict`` does: choose weights, run the twins, print classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import resnet_spec
from parity.files.preprocessing import preprocess
from parity.files.selecting import Selection
from parity.files.sources import weights_for
from parity.running.network import logits
from parity.running.network import top as likeliest
from parity.text import table
from parity.weights.twins import build, load_frameworks, require
from resnet_cli.progress import download_bar, say_notes, status
from resnet_spec.printable import plain


def predict(
    image: Path,
    name: str,
    config: resnet_spec.ResNetConfig,
    frameworks: Sequence[str],
    *,
    weights: str,
    named: bool,
    chosen: Selection,
    allow_nonfinite: bool,
    seed: int,
    top: int,
    as_json: bool,
) -> None:
    """Prints the likeliest classes of a photograph, by each framework's twin."""
    require(*frameworks)
    pixels = preprocess(image, config, weights)  # before anything is downloaded for it
    load_frameworks(*frameworks)
    with download_bar() as progress:
        found = weights_for(
            config,
            weights,
            seed=seed,
            chosen=chosen,
            named=named,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    say_notes(weights, found.notes)
    scores = {}
    with status("predicting") as say:
        for framework in frameworks:
            say(f"running {framework}")
            twin = build(framework, config, found.state)
            scores[framework] = logits(twin, pixels)[0]
    guesses = {framework: likeliest(s, top) for framework, s in scores.items()}
    names = found.labels
    if config.num_classes != len(names):
        names = resnet_spec.class_names()
    if config.num_classes != len(names):
        names = tuple(f"class {index}" for index in range(config.num_classes))
    if as_json:
        facts = {
            "image": str(image),
            "model": name,
            "weights": found.what,
            "top": {
                framework: [
                    {"class": names[i], "index": i, "probability": p} for i, p in guess
                ]
                for framework, guess in guesses.items()
            },
        }
        print(json.dumps(facts, indent=2))
        return
    print(plain(f"{image}: {name}, {found.what}") + "\n")
    cells = [
        [f"{names[i]} {p:.2%}" for i, p in rank]
        for rank in zip(*guesses.values(), strict=True)
    ]
    print(table(tuple(guesses), cells))
