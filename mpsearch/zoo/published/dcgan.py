"""DCGAN generator of 64x64 colour images.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional GANs", ICLR 2016
(https://arxiv.org/abs/1511.06434).
"""

from __future__ import annotations

from torch import Tensor, nn

LATENT = 100


class DCGANGenerator(nn.Module):
    """Latents ``(N, 100, 1, 1)`` from N(0, 1) to images ``(N, 3, 64, 64)`` in [-1, 1]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, stride, padding = LATENT, 1, 0
        for outputs in (8 * width, 4 * width, 2 * width, width):
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs, stride, padding = outputs, 2, 1
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(inputs, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.main(latents)
        return images
