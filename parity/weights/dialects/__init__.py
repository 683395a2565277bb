"""Whose names a state has: every library's, each in a small file of its own."""

from __future__ import annotations

from parity.weights.dialects import (
    bonsai,
    cifar,
    detectron,
    flaxmodels,
    haiku,
    huggingface,
    jax_resnet,
    jaxnn,
    keras,
    linen,
    mlx,
    mmdetection,
    mmpretrain,
    nnx,
    sequential,
    torchvision,
)

DIALECTS = {
    dialect.name: dialect
    for dialect in (
        torchvision.DIALECT,
        huggingface.DIALECT,
        huggingface.BARE,
        keras.APPLICATIONS,
        keras.HUB,
        nnx.DIALECT,
        jaxnn.DIALECT,
        jaxnn.GROUPS,
        bonsai.DIALECT,
        linen.EXAMPLE,
        linen.ALGOPERF,
        jax_resnet.DIALECT,
        jax_resnet.SPLITS,
        flaxmodels.DIALECT,
        huggingface.IN_FLAX,
        haiku.DIALECT,
        mlx.DIALECT,
        mmpretrain.DIALECT,
        mmdetection.DIALECT,
        detectron.DIALECT,
        sequential.DIALECT,
        cifar.KUANGLIU,
        cifar.AKAMASTER,
    )
}
"""By name."""
