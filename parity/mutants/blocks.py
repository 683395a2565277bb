"""Blocks and networks with a fault each, in the place of ``resnet_flax``'s."""

from __future__ import annotations

from jax import Array

from resnet_flax.blocks import BasicBlock, Bottleneck
from resnet_flax.resnet import ResNet


class ConvsExchanged(BasicBlock):
    """Calls its convolutions in the wrong order."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.relu(self.bn1(self.conv2(x)))
        return self.relu(self.bn2(self.conv1(out)) + beside(self, x))


class NormsExchanged(BasicBlock):
    """Calls its norms in the wrong order."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.relu(self.bn2(self.conv1(x)))
        return self.relu(self.bn1(self.conv2(out)) + beside(self, x))


class ReluBeforeAddition(BasicBlock):
    """Rectifies what it adds, not the sum."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out))) + beside(self, x)


class WithoutLastRelu(BasicBlock):
    """Hands the sum on as it is."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + beside(self, x)


class WithoutMiddleRelu(Bottleneck):
    """Leaves the rectifier between its last two convolutions out."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        assert self.bn2 is not None  # as it is where the middle one is split
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return self.relu(out + beside(self, x))


class HalvedResidual(BasicBlock):
    """Adds the mean of both ways, not their sum."""

    def __call__(self, x: Array) -> Array:
        """Computes the block."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu((self.bn2(self.conv2(out)) + beside(self, x)) / 2)


class BlueFirst(ResNet):
    """Takes the channels of its images in the other order."""

    def __call__(self, x: Array) -> Array:
        """Computes the logits."""
        return super().__call__(x[..., ::-1])


class OnItsSide(ResNet):
    """Takes the rows of its images for columns."""

    def __call__(self, x: Array) -> Array:
        """Computes the logits."""
        return super().__call__(x.transpose(0, 2, 1, 3))


def beside(block: BasicBlock | Bottleneck, x: Array) -> Array:
    """Computes what stands beside a block's branch."""
    return x if block.downsample is None else block.downsample(x)
