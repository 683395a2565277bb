"""Everything that a network is made of, as nodes of an ONNX graph.

Read beside ``resnet_torch/layers.py``: each method adds what the layer of that name
computes. Values and initialisers have the names that modules and entries have there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from resnet_spec import ResNetConfig
from resnet_spec.config import Padding

COMPUTED_IN = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.FLOAT,
}
"""Dtype of the weights → what is computed in: few runtimes convolve bfloat16."""

_FAR = 2**62
"""Behind the end of every axis."""


def dtype_of(state: Mapping[str, np.ndarray]) -> str:
    """Returns the dtype of the weights.

    Raises:
        ValueError: a graph has no such weights.
    """
    dtype = next(iter(state.values())).dtype.name
    if dtype not in COMPUTED_IN:
        allowed = ", ".join(COMPUTED_IN)
        raise ValueError(f"the weights are {dtype}; a graph takes {allowed}")
    return dtype


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Adds the layers of one network to a graph: weights from a state, by name.

    Args:
        config: the network's settings.
        state: torchvision's names to arrays in its layouts.
        path: of the module whose layers are added.
        nodes: of the graph, in order.
        tensors: its initialisers, by name.
    """

    config: ResNetConfig
    state: Mapping[str, np.ndarray]
    path: str = ""
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)

    @property
    def folded(self) -> bool:
        """Whether batch norms have been folded into the convolutions before them."""
        if self.config.norm == "group":
            return False
        return not any(name.endswith(".running_var") for name in self.state)

    def inside(self, name: str) -> Layers:
        """Returns the same for what is inside of a module."""
        return replace(self, path=f"{self.path}{name}.")

    def conv(
        self,
        name: str,
        x: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Padding | None = None,
        bias: bool | None = None,
    ) -> str:
        """A convolution that keeps the map's size at stride 1; padded as in a block."""
        if bias is None:  # a norm behind it leaves one, if it is folded
            bias = self.config.conv_bias or self.folded
        leaves = ("weight", "bias") if bias else ("weight",)
        entries = self._entries(name, *leaves)
        kernel = self.state[f"{self.path}{name}.weight"].shape[2:]
        same = (padding or self.config.block_padding) == "same" and stride > 1
        how: dict[str, Any] = {"pads": [dilation * (n - 1) // 2 for n in kernel] * 2}
        if same and max(kernel) > 1:  # else both pad alike
            if dilation > 1:
                raise ValueError(
                    f"{self.path}{name} is strided, dilated and padded SAME at once; "
                    "ONNX Runtime knows no such convolution"
                )
            how = {"auto_pad": "SAME_UPPER"}
        return self.add(
            *("Conv", name, x, *entries),
            kernel_shape=kernel,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            group=groups,
            **how,
        )

    def conv_along(self, name: str, x: str) -> str:
        """A convolution along a row of numbers, without bias, that keeps its length."""
        entries = self._entries(name, "weight")
        around = self.state[f"{self.path}{name}.weight"].shape[2] // 2
        return self.add("Conv", name, x, *entries, pads=[around] * 2)

    def norm(self, name: str, x: str) -> str:
        """Normalisation by what the state has; nothing, where all are folded."""
        config = self.config
        if config.norm == "group":
            return self._group_norm(name, x)
        if self.folded:
            return x
        entries = self._entries(name, "weight", "bias", "running_mean", "running_var")
        eps = config.norm_eps
        return self.add("BatchNormalization", name, x, *entries, epsilon=eps)

    def relu(self, name: str, x: str) -> str:
        """The rectifier."""
        return self.add("Relu", name, x)

    def sigmoid(self, name: str, x: str) -> str:
        """The logistic function."""
        return self.add("Sigmoid", name, x)

    def maxpool(
        self, name: str, x: str, size: int, *, stride: int, padding: Padding = "torch"
    ) -> str:
        """The maximum over a window; padded positions never win."""
        how: dict[str, Any] = {"pads": [n // 2 for n in self._window(size)] * 2}
        if padding == "same":
            how = {"auto_pad": "SAME_UPPER"}
        window = self._window(size)
        how["strides"] = [stride] * 2
        return self.add("MaxPool", name, x, kernel_shape=window, **how)

    def avgpool(self, name: str, x: str) -> str:
        """The mean over the whole map, whatever its size."""
        return self.add("GlobalAveragePool", name, x)

    def avgpool_along(self, name: str, x: str, width: int) -> str:
        """The mean over windows of one row that do not overlap."""
        return self._mean(name, x, (1, width), [1, width])

    def pool_down(self, name: str, x: str, stride: int) -> str:
        """The mean over 2x2 windows; the last of a row may hang over the rim."""
        if stride == 1:
            return x
        return self._mean(name, x, self._window(2), [stride] * 2, ceil_mode=1)

    def pool_same(self, name: str, x: str) -> str:
        """The mean over 2x2 windows, one for each pixel; behind the rim are zeros."""
        rows, columns = window = self._window(2)
        behind = {"pads": [0, 0, rows - 1, columns - 1], "count_include_pad": 1}
        return self._mean(name, x, window, [1, 1], **behind)

    def average(self, name: str, x: str, width: int) -> str:
        """The mean over squares that do not overlap; what is left of a row is lost."""
        return self._mean(name, x, (width, width), [width] * 2)

    def average_around(self, name: str, x: str, stride: int) -> str:
        """The mean over 3x3 pixels around every stride-th; zeros at the rim count."""
        window = self._window(3)
        around = {"pads": [n // 2 for n in window] * 2, "count_include_pad": 1}
        return self._mean(name, x, window, [stride] * 2, **around)

    def blur(self, name: str, x: str, stride: int) -> str:
        """Every stride-th pixel of a map blurred by means of means, 2x2 pixels each."""
        around = self.constant(0, 0, 1, 1, 0, 0, 1, 1)
        x = self.add("Pad", f"{name}.padded", x, around, mode="reflect")
        x = self._mean(f"{name}.once", x, (2, 2), [1, 1])
        return self._mean(name, x, (2, 2), [stride] * 2)

    def pad_channels(self, name: str, x: str, channels: int, *, stride: int) -> str:
        """Every stride-th pixel, with channels of zeros behind its own."""
        if stride > 1:
            ends = self.constant(_FAR, _FAR)
            axes = self.constant(2, 3)
            steps = self.constant(stride, stride)
            zeros = self.constant(0, 0)
            x = self.add("Slice", f"{name}.fewer", x, zeros, ends, axes, steps)
        behind = self.constant(0, 0, 0, 0, 0, channels, 0, 0)
        return self.add("Pad", name, x, behind)

    def split(self, name: str, x: str, parts: int) -> list[str]:
        """So many maps of neighbouring channels."""
        if parts == 1:
            return [x]
        names = [f"{self.path}{name}.{part}" for part in range(parts)]
        how: dict[str, Any] = {"axis": 1, "num_outputs": parts}
        self.nodes.append(helper.make_node("Split", [x], names, names[0], **how))
        return names

    def joined(self, name: str, parts: Sequence[str]) -> str:
        """The sum of maps."""
        return self.add("Sum", name, *parts)

    def flatten(self, name: str, x: str) -> str:
        """All values of an image in one row: channels, then rows, then columns."""
        return self.add("Flatten", name, x, axis=1)

    def linear(self, name: str, x: str) -> str:
        """A linear layer with bias."""
        entries = self._entries(name, "weight", "bias")
        return self.add("Gemm", name, x, *entries, transB=1)

    def reshaped(self, name: str, x: str, shape: list[int]) -> str:
        """The same values in another shape: 0 keeps an axis, -1 is what is left."""
        return self.add("Reshape", name, x, self.constant(*shape))

    @property
    def _computed_in(self) -> int:
        return COMPUTED_IN[dtype_of(self.state)]

    def cast(self, name: str, x: str, dtype: str = "float32") -> str:
        """The same values in another dtype."""
        return self.add("Cast", name, x, to=COMPUTED_IN[dtype])

    def add(self, kind: str, name: str, *inputs: str, **how: Any) -> str:
        """Adds a node, and returns the name of what it gives."""
        output = f"{self.path}{name}".rstrip(".")
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **how))
        return output

    def constant(self, *numbers: int) -> str:
        """Returns the name of a row of integers, which is there once."""
        name = str(list(numbers))
        array = np.array(numbers, np.int64)
        self.tensors[name] = numpy_helper.from_array(array, name)
        return name

    def _group_norm(self, name: str, x: str) -> str:
        """Each group normalised as one row; some runtimes crash on ONNX's own."""
        inside, groups = self.inside(name), self.config.norm_groups
        units = []
        for word, array in (("ones", np.ones(groups)), ("zeros", np.zeros(groups))):
            tensor = helper.make_tensor(word, self._computed_in, (groups,), array)
            self.tensors[word] = tensor
            units.append(word)
        rows = inside.reshaped("rows", x, [0, groups, -1])
        eps = self.config.norm_eps
        rows = inside.add("InstanceNormalization", "normal", rows, *units, epsilon=eps)
        y = inside.add("Reshape", "map", rows, inside.add("Shape", "shape", x))
        weight, bias = (
            inside.reshaped(f"{leaf}.map", entry, [-1, 1, 1])
            for leaf, entry in zip(
                ("weight", "bias"), self._entries(name, "weight", "bias"), strict=True
            )
        )
        return self.add("Add", name, inside.add("Mul", "scaled", y, weight), bias)

    def _mean(
        self, name: str, x: str, window: tuple[int, ...], strides: list[int], **how: Any
    ) -> str:
        how |= {"kernel_shape": window, "strides": strides}
        return self.add("AveragePool", name, x, **how)

    def _window(self, size: int) -> tuple[int, int]:
        return (size if self.config.dimensions == 2 else 1, size)

    def _entries(self, name: str, *leaves: str) -> list[str]:
        """Returns the names of a layer's entries, which are now in the graph."""
        names = [f"{self.path}{name}.{leaf}" for leaf in leaves]
        for entry in names:
            if entry not in self.state:
                raise ValueError(
                    f"the state lacks {entry}; it must be one of the network that the "
                    "configuration describes"
                )
            array = np.ascontiguousarray(self.state[entry])
            self.tensors[entry] = numpy_helper.from_array(array, entry)
        if dtype_of(self.state) != "bfloat16":
            return names
        return [
            self.cast(f"{name}.{leaf}.float32", at)
            for leaf, at in zip(leaves, names, strict=True)
        ]
