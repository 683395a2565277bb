"""The residual networks as ONNX graphs: what either twin computes in evaluation mode.

A third reading of ``resnet_spec``, without a framework: weights come as numpy arrays.
"""

from resnet_onnx.network import graph
from resnet_spec import __version__

__all__ = ["__version__", "graph"]
