"""``efficientnet-lite0``: features of an ImageNet classifier, for generators of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.errors import UsageError
from mpsearch.zoo.published import EfficientNetLite0, load_published
from mpsearch.zoo.published.efficientnet_lite import SIDE


@dataclass(frozen=True)
class EfficientNetFeatures:
    """Images ``(N, 3 or 1, H, W)`` to ``(N, 1280)``, where they lie; the weights are fetched when first needed.

    Pixels are scaled to 0 … 255, resized to 224x224 by antialiased bicubic interpolation, clamped, and taken as
    ``(p - 127) / 128``, as the network was trained. They are not rounded.

    Attributes:
        low: value of black in the images.
        high: value of white.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"efficientnet-lite0 needs low below high, not {self.low} and {self.high}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = (images.float() - self.low) * (255 / (self.high - self.low))
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        return _network(str(images.device)).features((pixels.clamp(0, 255) - 127) / 128)


@cache
def _network(device: str) -> EfficientNetLite0:
    network = load_published("efficientnet-lite0")
    assert isinstance(network, EfficientNetLite0)
    return network.to(device)
