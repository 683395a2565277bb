"""What the twins' annotations say of shapes and dtypes holds while they run.

A process of its own imports both under jaxtyping's hook, where beartype looks at every
argument and every result. (In the tests' own process it could not: what is refused in
one sentence, scripted or traced would meet the hook first.)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("beartype")

_CHECKED = """
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook(["resnet_torch", "resnet_flax"], "beartype.beartype"):
    import resnet_flax, resnet_torch

import jax, numpy as np, torch
from flax import nnx
from resnet_spec import get_config

COUNTED = 0
for name, more in (
    ("resnet18", {"drop_path_rate": 0.5}),
    ("resnet50_v1", {"stem_padding": "same", "block_padding": "same"}),
    ("resnet50", {"groups": 2, "num_classes": 3}),
    ("seresnet18", {"drop_block_rate": 0.5}),
    ("ecaresnet50t", {}),
    ("resnetblur50d", {}),
    ("resnet50_gn", {"norm_groups": 2}),
    ("cifar_resnet20", {"layers": (1, 1, 1), "widths": (4, 6, 8)}),
):
    small = {"layers": (1, 1), "widths": (8, 16)}
    config = get_config(name).replace(**{**small, **more})
    x = np.random.default_rng(0).standard_normal((2, 3, 43, 60), np.float32)
    model, twin = resnet_torch.create_model(config), resnet_flax.create_model(
        config, rngs=0)
    y = jax.numpy.asarray(x.transpose(0, 2, 3, 1))
    model(torch.from_numpy(x)).sum().backward()
    nnx.grad(lambda twin: twin(y).sum())(twin)
    for network, images in ((model.eval(), torch.from_numpy(x)), (twin, y)):
        network.eval()
        network(images)
        network.features(images)
        network.forward_head(network.forward_features(images))
        COUNTED += 1
    twin(y[:1])
    jax.jit(lambda y: twin(y))(y)
    if config.norm == "batch":
        resnet_torch.fuse(model)(torch.from_numpy(x))
        resnet_flax.fuse(twin)(y)
assert COUNTED == 16

# And the hook is at work: what is no map of images is refused by it.
for layers, wrong in (
    (resnet_torch.layers, torch.zeros(3, 4)), (resnet_flax.layers, y[0, 0]),
):
    try:
        layers.PadChannels(8, stride=1)(wrong)
    except TypeCheckError:
        continue
    raise SystemExit(f"{layers} took two axes")
print("held")
"""


def test_annotations_of_shapes_hold_in_both_twins():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _CHECKED], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "held\n"
