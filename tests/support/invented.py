"""A run of the benchmarks that no machine made, for tests of what is made of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.flops import flops
from benchmarks.plans.cases import Plan, case
from benchmarks.plans.modes import NAMES
from benchmarks.results import file
from resnet_spec import get_config


def invented(*, factor: float = 1.0, seed: int = 0, slope: float = 1.0) -> Any:
    """A run as no machine made it: resnet50 in three modes; sweeps, two crossing."""
    rng = np.random.default_rng(seed)

    def row(mode: str, seconds: float, memory: float = 2**28, **more: Any) -> Any:
        it = NAMES[mode]
        return {
            "mode": mode,
            "what": it.what,
            "kind": it.kind,
            "framework": it.framework,
            "arithmetic": it.arithmetic,
            "environment": {},
            "status": "timed",
            "reason": "",
            "first": seconds + 3.0,
            "times": list(seconds * rng.normal(1, 0.02, 15)),
            "memory": {
                "start": 2**27,
                "peak": 2**28 + memory,
                "running": 2**27 + memory,
            },
            "flops": None,
            **more,
        }

    def one(network: str, batch: int, side: int, sweeps: tuple, rows: list) -> Any:
        it = case(network, "inference", batch, (side, side), sweeps=sweeps)
        work = flops(it.spec, "inference", batch, it.size)
        return {**it.to_dict(), "flops": work, "growth": 7.0, "rows": rows}

    product = row("product-torch", 0.04, flops=2 * 2048**3)
    refused = row("flax-eager", 1.0) | {"status": "refused", "reason": "logits 1e-1"}
    del refused["times"]
    cases = [
        one(
            "resnet50",
            batch,
            224,
            (),
            [
                row("torch-channels-last", 0.025 * batch),
                row("flax-jit", 0.04 * batch * factor),
                row("torchvision", 0.03 * batch),
                row("torch-bf16", 0.02 * batch, arithmetic="bfloat16"),
                product,
                refused,
            ],
        )
        for batch in (1, 8)
    ]
    work = flops(get_config("resnet18"), "inference", 1, (224, 224))
    for batch in (1, 2, 4, 8, 16, 32):
        cost, memory = 1e-11 * work * batch**slope, 2**28 * batch
        rows = [row("torch-channels-last", cost, memory), row("flax-jit", cost * 1.3)]
        sweeps = ("batch", "depth") if batch == 1 else ("batch",)
        cases.append(one("resnet18", batch, 224, sweeps, rows))
    for depth in (34, 50, 101, 152):
        work = flops(get_config(f"resnet{depth}"), "inference", 1, (224, 224))
        rows = [row("torch-channels-last", 1e-11 * work)]
        cases.append(one(f"resnet{depth}", 1, 224, ("depth",), rows))
    for side in (128, 192, 256, 320):
        rows = [row("torch-channels-last", 1e-6 * side**2)]
        cases.append(one("resnet18", 4, side, ("size",), rows))
    plan = Plan(name="test", cases=(), repeats=15)
    found = {
        "format": file.FORMAT,
        "environment": file.environment(plan, 2),
        "took": 60.0,
        "cases": cases,
        "conversion": [],
        "programs": [
            {
                "network": name,
                "program": "export, ONNX",
                "seconds": 1e-9 * work**slope,
                "memory": work,
                "flops": work,
            }
            for name in ("resnet18", "resnet50", "resnet152")
            for work in [flops(get_config(name), "inference", 1, (224, 224))]
        ],
    }
    return json.loads(json.dumps(found))


def written(found: Any, path: Path) -> Path:
    file.write(found, path)
    return path
