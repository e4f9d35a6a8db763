"""waifu2x's ``upconv_7``: six unpadded convolutions, then a transposed one that doubles the size.

nagadomi, https://github.com/nagadomi/waifu2x, after Dong et al., "Image Super-Resolution Using Deep Convolutional
Networks" (https://arxiv.org/abs/1501.00092).
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (3, 16, 32, 64, 128, 128, 256)
MARGIN = 7  # pixels that the unpadded layers take off every side


class UpConv7(nn.Module):
    """Images ``(N, 3, H, W)`` in [0, 1] to ``(N, 3, 2H, 2W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(WIDTHS))
        self.up = nn.ConvTranspose2d(WIDTHS[-1], 3, 4, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        h = F.pad(images, (MARGIN,) * 4, mode="replicate")
        for conv in self.convs:
            h = F.leaky_relu(conv(h), 0.1)
        enlarged: Tensor = self.up(h)
        return enlarged
