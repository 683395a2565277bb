"""Writes what the torch twin gives, for an environment that has no torch.

``python -m tests.latest.record FOLDER``: for each network its weights, images and
labels, its output, and what three training steps make of it; all in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from resnet_spec import OptimizerConfig, ResNetConfig, Schedule

NETWORKS = {
    "basic": ResNetConfig(block="basic", layers=(1, 2), widths=(8, 16), num_classes=7),
    "resnext": ResNetConfig(
        block="bottleneck",
        layers=(1, 2),
        widths=(8, 16),
        groups=2,
        stem="deep",
        shortcut="D",
        num_classes=7,
    ),
}
OPTIMIZERS = {
    "basic": OptimizerConfig(
        kind="sgd",
        schedule=Schedule(learning_rate=0.1),
        momentum=0.9,
        weight_decay=1e-2,
    ),
    "resnext": OptimizerConfig(
        kind="adamw", schedule=Schedule(learning_rate=0.01), eps=1e-3
    ),
}
STEPS = 3


def record(folder: Path) -> None:
    """Writes ``NAME.safetensors``, ``NAME.npz`` and ``digests.json`` into a folder."""
    import torch

    import parity
    import resnet_flax
    import resnet_torch
    import resnet_torch.optim

    digests = {}
    for name, config in NETWORKS.items():
        model = resnet_torch.create_model(config).double()
        weights = parity.random_state(parity.entries(model), seed=1)
        parity.load_state_dict(model, weights)
        parity.save(
            folder / f"{name}.safetensors",
            parity.state_dict(model),
            config=config,
            overwrite=True,
        )
        rng = np.random.default_rng(2)
        images = rng.standard_normal((STEPS, 4, 3, 65, 49))
        labels = rng.integers(0, config.num_classes, (STEPS, 4))
        with torch.no_grad():
            output = model.eval()(torch.from_numpy(images[0])).numpy()
        optimizer = resnet_torch.optim.create_optimizer(model.train(), OPTIMIZERS[name])
        losses = [
            resnet_torch.optim.train_step(
                model, optimizer, torch.from_numpy(x), torch.from_numpy(y)
            ).item()
            for x, y in zip(images, labels, strict=True)
        ]
        after = {f"after {key}": v for key, v in parity.state_dict(model).items()}
        given = {"images": images, "labels": labels}
        found = {"output": output, "losses": np.array(losses), **after}
        save: Any = np.savez  # its keywords are names of arrays
        save(folder / f"{name}.npz", **given, **found)
        digests[name] = parity.digest_of(resnet_flax.create_model(config, rngs=0))
    (folder / "digests.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    record(where)
