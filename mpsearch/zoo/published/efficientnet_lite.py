"""EfficientNet-Lite0, an ImageNet classifier whose pooled activations serve as features.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
(https://arxiv.org/abs/1905.11946); Lite: ReLU6 in place of swish, no squeeze-and-excitation. Modules are named as in
the published weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, SIDE = 1280, 224
EPSILON = 1e-3
# (blocks, kernel, stride of the first, expansion, channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """Convolution whose output has ``ceil(size / stride)`` pixels; an odd margin goes to the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        margins: list[int] = []
        for size, step, kernel in zip(input.shape[:-3:-1], self.stride[::-1], self.kernel_size[::-1], strict=True):
            whole = max((-(-size // step) - 1) * step + kernel - size, 0)
            margins += [whole // 2, whole - whole // 2]
        return super().forward(F.pad(input, margins))


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        width = inputs * expansion
        if self.expands:
            self._expand_conv = SameConv(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, EPSILON)
        self._depthwise_conv = SameConv(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, EPSILON)
        self._project_conv = SameConv(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        projected: Tensor = self._bn2(self._project_conv(h))
        return x + projected if self.residual else projected


class EfficientNetLite0(nn.Module):
    """Bytes ``(N, 3, 224, 224)`` as ``(p - 127) / 128`` to 1000 logits; ``features`` gives ``(N, 1280)``."""

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        self._conv_stem = SameConv(3, channels, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(channels, EPSILON)
        self._blocks = nn.ModuleList()
        for blocks, kernel, stride, expansion, outputs in STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                self._blocks.append(InvertedBottleneck(channels, outputs, kernel, step, expansion))
                channels = outputs
        self._conv_head = SameConv(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPSILON)
        self._fc = nn.Linear(FEATURES, 1000)

    def features(self, images: Tensor) -> Tensor:
        """Activations before the last layer, averaged over positions, ``(N, 1280)``."""
        h = F.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._fc(self.features(images))
        return logits
