"""jax-resnet's ResNeSt, given the file that was written for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import parity
from tests.dialects.test_libraries import (
    STEM,
    nhwc,
    proved,
    state_of,
    variables,
    wide,
)

__all__ = ["wide"]  # a fixture, which every test here has


@pytest.mark.parametrize("option", ["avd", "avd_first"])
def test_resnest_of_jax_resnet(tmp_path: Path, option: Any):
    jax_resnet = pytest.importorskip("jax_resnet")
    config = STEM.replace(
        block="bottleneck",
        layers=(2, 1),
        stem="deep",
        shortcut="D",
        radix=2,
        anti_alias=option,
    )
    # Without a name nothing tells which side the mean stands on.
    path = tmp_path / "weights.msgpack"
    parity.save(path, state_of(config), config=config, dialect="jax-resnest")
    tree = variables(path)
    block = jax_resnet.ResNeStBottleneckBlock
    net = jax_resnet.ResNet(
        partial(
            block,
            avg_pool_first=option == "avd_first",
            # As its own pretrained ones are, and ResNeSt's reference.
            splat_cls=partial(jax_resnet.splat.SplAtConv2d, match_reference=True),
        ),
        stem_cls=jax_resnet.ResNetDStem,
        stage_sizes=config.layers,
        hidden_sizes=config.widths,
        n_classes=config.num_classes,
    )
    # Like its ResNet-D it cannot add where a map is of odd height.
    run = jax.jit(lambda x: net.apply(tree, x, mutable=False))
    other: Any = "avd" if option == "avd_first" else "avd_first"
    proved(config, lambda x: run(nhwc(x)), sizes=[(64, 96)], anti_alias=other)
    with pytest.raises(TypeError, match="broadcast"):
        run(jnp.ones((1, 65, 97, 3)))
    theirs = tmp_path / "theirs.msgpack"
    theirs.write_bytes(serialization.to_bytes(jax.tree.map(np.float32, tree)))
    found = parity.load(theirs)
    assert found.dialect == "jax-resnest"
    assert found.config == config.replace(anti_alias="avd")
    assert "anti_alias" in found.guessed
    assert any("assumed" in n and "anti_alias='avd'" in n for n in found.notes)
    for key, array in state_of(config).items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[key], array, strict=True)
