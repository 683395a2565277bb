"""A whole network as a model that runtimes load: inputs, outputs, what it says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from resnet_onnx.layers import Layers, dtype_of
from resnet_onnx.resnet import resnet
from resnet_spec import Preprocessing, ResNetConfig, __version__

OPSET, IR_VERSION = 18, 8
"""Of ONNX 1.13, so that older runtimes take a graph too."""

COUNTER = "num_batches_tracked"
"""What evaluation does without."""

IMAGES, LOGITS = "images", "logits"
"""Names of what goes in and comes out; without a top, maps come out."""


def graph(
    config: ResNetConfig,
    state: Mapping[str, np.ndarray],
    *,
    preprocessing: Preprocessing | None = None,
    facts: Mapping[str, str] | None = None,
) -> ModelProto:
    """Writes a network as an ONNX model, for images of any size and number.

    It takes and gives float32, whatever its weights are. Those of float16 are computed
    with in float16, as far as the runtime does; those of bfloat16 in float32. A value
    has the name of the module that gives it in torchvision, an initialiser that of the
    entry.

    Args:
        config: the network.
        state: torchvision's names to arrays in its layouts, all of one dtype. That of a
            fused network has biases in place of norms.
        preprocessing: whose mean and std are inside: the model then takes pixels, uint8
            of shape (n, h, w, 3). Resizing and cutting stay outside.
        facts: what the model says of itself, by key.

    Returns:
        A model from ``images``, (n, c, h, w), to ``logits``, (n, classes).

    Raises:
        ValueError: the state is not the network's, a graph has no such dtype, or the
            network cannot be written.
    """
    if config.out_indices is not None:
        raise ValueError(
            f"out_indices is {config.out_indices}; a graph has one result: write the "
            "network without them"
        )
    layers = Layers(config=config, state=state)
    dtype = dtype_of(state)
    x = IMAGES if preprocessing is None else normalised(layers, preprocessing)
    x = resnet(layers, layers.cast("input", x, dtype))
    layers.cast(LOGITS, x)
    unused = [n for n in state if n not in layers.tensors and not n.endswith(COUNTER)]
    if unused:
        raise ValueError(
            f"the state has {unused[0]}, which the network that the configuration "
            "describes does not have"
        )
    given = ["n", config.in_channels, "h" if config.dimensions == 2 else 1, "w"]
    kind = TensorProto.FLOAT
    if preprocessing is not None:
        given, kind = ["n", "h", "w", 3], TensorProto.UINT8
    gives: list[int | str] = ["n", config.num_features, "rows", "columns"]
    if config.include_top:
        signal = config.head == "signal"
        gives = ["n", *([1, 1] if signal else []), config.num_classes]
    body = helper.make_graph(
        layers.nodes,
        "resnet",
        [helper.make_tensor_value_info(IMAGES, kind, given)],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, gives)],
        list(layers.tensors.values()),
    )
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnet-twins",
        producer_version=__version__,
    )
    helper.set_model_props(model, dict(facts or {}))
    return model


def normalised(layers: Layers, preprocessing: Preprocessing) -> str:
    """Adds what makes images of pixels, in :func:`parity.images.prepare`'s order."""
    x = layers.cast("pixels", IMAGES)
    x = layers.add("Transpose", "planes", x, perm=[0, 3, 1, 2])
    for kind, name, values in (
        ("Div", "white", 255.0),
        ("Sub", "mean", preprocessing.mean),
        ("Div", "std", preprocessing.std),
    ):
        array = np.array(values, np.float32).reshape(-1, 1, 1)
        layers.tensors[name] = numpy_helper.from_array(array, name)
        x = layers.add(kind, f"by_{name}", x, name)
    return x
